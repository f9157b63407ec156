"""The neighbour of every BDH number: a GPT with layer norms before attention and MLP, rotary positions, and no biases.

    x = x + attention(LN(x))      softmax over the past and the token itself, queries and keys rotated
    x = x + MLP(LN(x))            gelu, ``width_factor`` times as wide
    logits = LN(x) @ lm_head

Axis letters: see :mod:`bdh_jax.types`; N is the width of a head here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bdh_jax.config import check_types, require, require_choice, require_sizes
from bdh_jax.config.identity import HOW
from bdh_jax.fast_weights.masks import Places
from bdh_jax.layers.rotary import rope, rope_angles, rope_frequencies
from bdh_jax.models.base import (
    Architecture,
    Call,
    DType,
    Inputs,
    LayerOutput,
    LocalMap,
    Model,
    ModelConfig,
    Setup,
    Weight,
    check_layers,
)
from bdh_jax.types import Slow

LINEAR = {
    "attention_in": ("model", "wide", "attention"),
    "attention_out": ("model", "model", "attention"),
    "mlp_in": ("model", "wide", "ffn"),
    "mlp_out": ("wide", "model", "ffn"),
}
"""Linear layer → the axis of its inputs, the axis of its outputs, and the part of the layer that it belongs to."""


@dataclasses.dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """The baseline: a GPT with layer norms before its parts and rotary positions (``bdh_jax.models.gpt``)."""

    architecture: str = "gpt"
    vocab_size: int = 256
    n_layer: int = 6
    d_model: int = 384
    n_head: int = 6
    """H, heads of the attention."""
    width_factor: int = 4
    """Width of the hidden layer of an MLP, in ``d_model``."""
    dropout: float = 0.1
    dtype: DType = "float32"
    """Compute dtype. Parameters are float32 (float64 when this is float64)."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths: the largest is about 2π times as many tokens."""
    remat: bool = dataclasses.field(default=False, metadata=HOW)
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        check_types(self)
        require_sizes(self, ("vocab_size", "n_layer", "d_model", "n_head", "width_factor"))
        check_layers(self)
        require(
            self.d_model % (2 * self.n_head) == 0,
            f"d_model={self.d_model} is not divisible by 2 · n_head={2 * self.n_head}: every head has an even width, as rotary "
            "positions need",
        )
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require(self.rope_theta > 1, f"rope_theta={self.rope_theta} must be greater than 1")
        require_choice("dtype", self.dtype, DType)

    def multiply_adds_per_token(self, length: int) -> int:
        """Of a forward pass over so many tokens, for each: (4 + 2·width_factor)·D² + 2·T·D a layer, and V·D for the logits."""
        layer = (4 + 2 * self.width_factor) * self.d_model**2 + 2 * length * self.d_model
        return self.n_layer * layer + self.vocab_size * self.d_model

    def make_architecture(self) -> GPTArchitecture:
        """What it is made of."""
        return GPTArchitecture(self)

    def build(self, mesh: Mesh | None = None) -> GPT:
        """The model."""
        return GPT(self, mesh)


class GPT(Model):
    """A GPT that is called like :class:`bdh_jax.BDH`, without a state to carry.

    Attributes:
      config: :class:`GPTConfig`.
      mesh: device mesh; sequences are spread over ``data``, weights are whole on every device.
    """

    config: GPTConfig  # pyright: ignore[reportIncompatibleVariableOverride] - modules are frozen, which Flax does not say
    mesh: Mesh | None = None


class Seen(NamedTuple):
    """What every layer's attention needs.

    Attributes:
      cos: [B, 1, T, N], of the rotary phases.
      sin: likewise.
      mask: [B, 1, T, T] bool, which token (last axis) each token sees.
    """

    cos: jax.Array
    sin: jax.Array
    mask: jax.Array


class GPTArchitecture(Architecture):
    """What a GPT is made of."""

    config: GPTConfig
    taps: Mapping[str, tuple[str, ...]] = {
        f"{name}.{side}": ("batch", "time", axis)
        for name, (rows, columns, _) in LINEAR.items()
        for side, axis in (("x", rows), ("y", columns))
    }

    def local_maps(self) -> dict[str, LocalMap]:
        """The four linear layers of every layer."""
        return {
            f"layer{index}.{name}": LocalMap((f"layer{index}", name, "kernel"), f"{name}.x", f"{name}.y", part, layer=index)
            for index in range(self.config.n_layer)
            for name, (_, _, part) in LINEAR.items()
        }

    def weights(self) -> dict[str, Any]:
        """The slow weights: embed, layer0 …, norm, lm_head."""
        config, width = self.config, self.config.d_model
        # Parts that end in the residual start smaller, as in GPT-2: their sum then does not grow with the number of layers.
        last = config.init_std / (2 * config.n_layer) ** 0.5

        def norm() -> dict[str, Weight]:
            return {"scale": Weight(("model",), (width,), nn.initializers.ones, config.state_dtype)}

        def dense(rows: str, columns: str, shape: tuple[int, int], std: float = config.init_std) -> dict[str, Weight]:
            return {"kernel": Weight((rows, columns), shape, nn.initializers.normal(std), config.state_dtype)}

        hidden = config.width_factor * width
        layers = {
            f"layer{index}": {
                "attention_norm": norm(),
                "attention_in": dense("model", "wide", (width, 3 * width)),
                "attention_out": dense("model", "model", (width, width), last),
                "mlp_norm": norm(),
                "mlp_in": dense("model", "wide", (width, hidden)),
                "mlp_out": dense("wide", "model", (hidden, width), last),
            }
            for index in range(config.n_layer)
        }
        embedding = Weight(
            ("vocab", "model"), (config.vocab_size, width), nn.initializers.normal(config.init_std), config.state_dtype
        )
        return {
            "embed": {"embedding": embedding},
            **layers,
            "norm": norm(),
            "lm_head": dense("model", "vocab", (width, config.vocab_size)),
        }

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T] → [B, T, D]."""
        return jnp.asarray(slow["embed"]["embedding"], self.config.compute_dtype)[tokens]

    def draws(self, key: jax.Array, batch: int, length: int) -> dict[str, jax.Array]:
        """Dropout masks of the embedded tokens [B, T, D], and of each layer's two parts [L, 2, B, T, D]."""
        config = self.config
        shape = (batch, length, config.d_model)
        of_embed, of_layers = jax.random.split(key)
        return {
            "embed": jax.random.bernoulli(of_embed, 1 - config.dropout, shape),
            "layers": jax.random.bernoulli(of_layers, 1 - config.dropout, (config.n_layer, 2, *shape)),
        }

    def layer_draws(self, draws: Any, index: int) -> jax.Array | None:
        """The masks of layer ``index``, [2, B, T, D]."""
        return None if draws is None else draws["layers"][index]

    def embed_draws(self, x: jax.Array, draws: Any) -> jax.Array:
        """The embedded tokens after dropout."""
        return x if draws is None else self._drop(x, draws["embed"])

    def layer_weights(self, slow: Slow, index: int) -> Slow:
        """Every layer has its own."""
        return slow[f"layer{index}"]

    def shared(self, weights: Slow, inputs: Inputs, places: Places, setup: Setup) -> Seen:
        """Rotary phases, and which token each token sees."""
        del weights, setup
        config, masks = self.config, inputs.masks
        batch, length = inputs.x.shape[:2]
        # What is not written is not there to be attended to.
        valid = jnp.ones((batch, length), bool) if masks.writes is None else masks.writes
        document = jnp.zeros((batch, length), jnp.int32) if masks.reset is None else jnp.cumsum(masks.reset, axis=1)
        causal = jnp.tril(jnp.ones((length, length), bool))
        same = document[:, :, None] == document[:, None, :]
        # A token always sees itself, so that a row of padding has something to be normalised over.
        mask = causal[None] & same & (valid[:, None, :] | jnp.eye(length, dtype=bool)[None])
        width = config.d_model // config.n_head
        frequencies = rope_frequencies(jnp.arange(width), width, config.rope_theta, config.state_dtype)
        cos, sin = rope_angles(places.position, jnp.arange(width), frequencies)
        return Seen(cos, sin, mask[:, None])

    def block(self, weights: Slow, x: jax.Array, state: None, call: Call, draws: Any, setup: Setup) -> LayerOutput:
        """One layer over [B, T, D]."""
        del state, setup
        config, seen = self.config, call.extra
        batch, length, width = x.shape
        heads = (batch, length, 3, config.n_head, width // config.n_head)
        taps: dict[str, jax.Array] = {}

        def linear(name: str, x: jax.Array) -> jax.Array:
            taps[f"{name}.x"], taps[f"{name}.y"] = x, x @ self._kernel(weights[name])
            return taps[f"{name}.y"]

        rows = linear("attention_in", self._norm(weights["attention_norm"], x))
        query, key, value = jnp.moveaxis(rows.reshape(heads), 2, 0)
        query, key = (rope(part.swapaxes(1, 2), seen.cos, seen.sin).swapaxes(1, 2) for part in (query, key))
        attended = jax.nn.dot_product_attention(query, key, value, mask=seen.mask).reshape(x.shape)
        x = x + self._drop(linear("attention_out", attended), None if draws is None else draws[0])
        hidden = jax.nn.gelu(linear("mlp_in", self._norm(weights["mlp_norm"], x)))
        x = x + self._drop(linear("mlp_out", hidden), None if draws is None else draws[1])
        return LayerOutput(x, None, taps)

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        """[B, T, D] → logits [B, T, V]."""
        logits = self._norm(slow["norm"], x) @ self._kernel(slow["lm_head"])
        return logits.astype(self.config.state_dtype)

    def _kernel(self, weights: Slow) -> jax.Array:
        return weights["kernel"].astype(self.config.compute_dtype)

    def _norm(self, weights: Slow, x: jax.Array) -> jax.Array:
        config = self.config
        norm = nn.LayerNorm(use_bias=False, dtype=config.compute_dtype, param_dtype=config.state_dtype, parent=None)
        return norm.bind({"params": weights})(x)

    def _drop(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        return x if mask is None else jnp.where(mask, x / (1 - self.config.dropout), jnp.zeros((), x.dtype))


CONFIG = GPTConfig
"""The entry of the table of models."""
