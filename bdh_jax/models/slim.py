"""BDH-SLIM: a Transformer with layer norms before its parts, whose linear layers show their inputs and outputs to local learning rules.

    x = embedding[token] + position[t]
    x = x + attention(LN(x))      softmax over the past and the token itself; query, key, value and output have biases
    x = x + FFN(LN(x))            gelu between two linear layers with biases
    logits = LN(x) @ lm_head      without a bias

It is the model of github.com/jamclaug/llm-foundation (models/bdh), whose layers are changed by their own activities besides or instead of
the gradient. The learning is no part of the model: ``bdh_jax.training.local_rules`` adds it to the training step. What a layer's rule sees are the
taps ``<layer>.x``, its input, and ``<layer>.y``, its output with the bias and before any nonlinearity.

Attention goes back to the start of a segment of ``max_length`` tokens, since there are no positions beyond; what a call carries on are the keys
and values of its last segment.

Axis letters: see :mod:`bdh_jax.types`; C is the length of a segment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.config import check_types, require, require_choice, require_sizes
from bdh_jax.config.identity import HOW
from bdh_jax.fast_weights.masks import Places
from bdh_jax.fast_weights.state import FastState, Sizes, State, array, declare
from bdh_jax.models.base import (
    Architecture,
    Call,
    DType,
    Inputs,
    LayerOutput,
    LocalMap,
    ModelConfig,
    Setup,
    Weight,
    check_layers,
)
from bdh_jax.types import Slow

LINEAR = {
    "query": ("model", "model", "attention"),
    "key": ("model", "model", "attention"),
    "value": ("model", "model", "attention"),
    "output": ("model", "model", "attention"),
    "ffn_in": ("model", "wide", "ffn"),
    "ffn_out": ("wide", "model", "ffn"),
}
"""Linear layer → the axis of its inputs, the axis of its outputs, and the part of the layer that it belongs to."""


@dataclasses.dataclass(frozen=True)
class SlimConfig(ModelConfig):
    """BDH-SLIM, a Transformer for local learning rules (``bdh_jax.models.slim``)."""

    architecture: str = "slim"
    vocab_size: int = 256
    n_layer: int = 3
    d_model: int = 128
    n_head: int = 4
    """H, heads of the attention."""
    d_ff: int = 256
    """Width of the hidden layer of the feed-forward part."""
    max_length: int = 64
    """C, positions that are learned. A longer episode is read in segments of so many tokens, and attention begins anew with each."""
    dropout: float = 0.0
    dtype: DType = "float32"
    """Compute dtype. Parameters are float32 (float64 when this is float64)."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; biases start at zero."""
    remat: bool = dataclasses.field(default=False, metadata=HOW)
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        check_types(self)
        require_sizes(self, ("vocab_size", "n_layer", "d_model", "n_head", "d_ff", "max_length"))
        check_layers(self)
        require(
            self.d_model % self.n_head == 0,
            f"d_model={self.d_model} is not divisible by n_head={self.n_head}; change one of them",
        )
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require_choice("dtype", self.dtype, DType)

    def multiply_adds_per_token(self, length: int) -> int:
        """Of a forward pass over so many tokens, for each: 4·D² + 2·D·d_ff + 2·T·D a layer, and V·D for the logits."""
        layer = 4 * self.d_model**2 + 2 * self.d_model * self.d_ff + 2 * length * self.d_model
        return self.n_layer * layer + self.vocab_size * self.d_model

    @property
    def has_state(self) -> bool:
        """It carries the segment that is being read."""
        return True

    def make_architecture(self) -> SlimArchitecture:
        """What it is made of."""
        return SlimArchitecture(self)


@flax.struct.dataclass
class Kept(State):
    """What a layer has read of this segment.

    Attributes:
      key: [B, C, D], of the token at each place of the segment.
      value: likewise.
      written: [B, C] bool, where there is one.
    """

    key: jax.Array = array("batch", "slot", "model", dtype="compute")
    value: jax.Array = array("batch", "slot", "model", dtype="compute")
    written: jax.Array = array("batch", "slot", dtype="bool")


class Seen(NamedTuple):
    """What every layer's attention needs.

    Attributes:
      own: [B, 1, T, T] bool, which token of this call (last axis) each token sees.
      kept: [B, 1, T, 1] bool, whether a token sees what was kept; None at the start of an episode.
      slot: [B, T], where a token is kept; C, which is nowhere, if it is not.
      goes_on: [B] bool, whether what was kept stays so; None at the start of an episode.
    """

    own: jax.Array
    kept: jax.Array | None
    slot: jax.Array
    goes_on: jax.Array | None


class SlimArchitecture(Architecture):
    """What BDH-SLIM is made of."""

    config: SlimConfig
    outside: ClassVar[tuple[str, ...]] = ("embed", "position", "norm", "lm_head")
    taps: Mapping[str, tuple[str, ...]] = {
        f"{name}.{side}": ("batch", "time", axis)
        for name, (rows, columns, _) in LINEAR.items()
        for side, axis in (("x", rows), ("y", columns))
    }

    def sizes(self, batch_size: int) -> Sizes:
        """Lengths of the logical axes."""
        sizes = super().sizes(batch_size)
        return sizes._replace(axes={**sizes.axes, "wide": self.config.d_ff, "slot": self.config.max_length})

    def weights(self) -> dict[str, Any]:
        """The slow weights: embed, position, layer0 …, norm, lm_head."""
        config, lengths = self.config, self.sizes(1).axes
        normal, dtype = nn.initializers.normal(config.init_std), config.state_dtype

        def vector(axis: str, init: Any = nn.initializers.zeros) -> Weight:
            return Weight((axis,), (lengths[axis],), init, dtype)

        def matrix(rows: str, columns: str) -> Weight:
            return Weight((rows, columns), (lengths[rows], lengths[columns]), normal, dtype)

        norm = {"scale": vector("model", nn.initializers.ones), "bias": vector("model")}
        linear = {
            name: {"kernel": matrix(rows, columns), "bias": vector(columns)} for name, (rows, columns, _) in LINEAR.items()
        }
        layer = {"attention_norm": norm, "ffn_norm": norm, **linear}
        position = Weight(("time", "model"), (config.max_length, config.d_model), normal, dtype)
        return {
            "embed": {"embedding": matrix("vocab", "model")},
            "position": {"embedding": position},
            **{f"layer{index}": layer for index in range(config.n_layer)},
            "norm": norm,
            "lm_head": {"kernel": matrix("model", "vocab")},
        }

    def local_maps(self) -> dict[str, LocalMap]:
        """The six linear layers of every layer."""
        return {
            f"layer{index}.{name}": LocalMap((f"layer{index}", name, "kernel"), f"{name}.x", f"{name}.y", part, layer=index)
            for index in range(self.config.n_layer)
            for name, (_, _, part) in LINEAR.items()
        }

    def state(self, batch_size: int) -> FastState:
        """Keys and values of the segment that is being read."""
        sizes = self.sizes(batch_size)
        layers = tuple(declare(Kept, sizes) for _ in range(self.config.n_layer))
        return declare(FastState, sizes, {"position"}, layers=layers)

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T] → [B, T, D], without their positions."""
        return jnp.asarray(slow["embed"]["embedding"], self.config.compute_dtype)[tokens]

    def draws(self, key: jax.Array, batch: int, length: int) -> dict[str, jax.Array]:
        """Dropout masks of the embedded tokens [B, T, D]; and of each layer, of its two parts [L, 2, B, T, D], its hidden layer [L, B, T, d_ff]
        and its attention [L, B, H, T, T]."""
        config = self.config
        layers, width = (config.n_layer,), (batch, length, config.d_model)
        shapes = {
            "embed": width,
            "parts": (*layers, 2, *width),
            "hidden": (*layers, batch, length, config.d_ff),
            "attention": (*layers, batch, config.n_head, length, length),
        }
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.bernoulli(own, 1 - config.dropout, shape)
            for own, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def layer_draws(self, draws: Any, index: int) -> Any:
        """The masks of layer ``index``."""
        return None if draws is None else {name: array[index] for name, array in draws.items() if name != "embed"}

    def layer_weights(self, slow: Slow, index: int) -> Slow:
        """Every layer has its own."""
        return slow[f"layer{index}"]

    def layers(self, weights: Slow, inputs: Inputs, setup: Setup) -> tuple[jax.Array, Any, Any]:
        """Layer after layer, from the tokens with their positions."""
        call, draws = self.call(weights, inputs, setup), inputs.draws
        place = call.places.position % self.config.max_length
        x = inputs.x + jnp.asarray(weights["position"]["embedding"], inputs.x.dtype)[place]
        x = self._drop(x, None if draws is None else draws["embed"])
        return super().layers(weights, inputs._replace(x=x), setup)

    def shared(self, weights: Slow, inputs: Inputs, places: Places, setup: Setup) -> Seen:
        """Which tokens each token sees, and what is kept for the next call."""
        del weights, setup
        masks, (batch, length), size = inputs.masks, inputs.x.shape[:2], self.config.max_length
        # What is not written is not there to be attended to.
        written = jnp.ones((batch, length), bool) if masks.writes is None else masks.writes
        document = jnp.zeros((batch, length), jnp.int32) if masks.reset is None else jnp.cumsum(masks.reset, axis=1)
        position = jnp.broadcast_to(places.position, (batch, length))
        segment = position // size
        same = (document[:, :, None] == document[:, None, :]) & (segment[:, :, None] == segment[:, None, :])
        # A token always sees itself, so that a row of padding has something to be normalised over.
        there = written[:, None, :] | jnp.eye(length, dtype=bool)[None]
        own = jnp.tril(jnp.ones((length, length), bool))[None] & same & there
        # The last segment of the last episode is what the next call goes on with.
        last = (places.end_position - 1) // size
        stays = written & (document == document[:, -1:]) & (segment == last[:, None])
        slot = jnp.where(stays, position % size, size)
        if inputs.fast is None:
            return Seen(own[:, None], None, slot, None)
        before = (inputs.fast.position - 1) // size
        earlier = (document == 0) & (segment == before[:, None])
        return Seen(own[:, None], earlier[:, None, :, None], slot, (document[:, -1] == 0) & (before == last))

    def block(self, weights: Slow, x: jax.Array, state: Kept | None, call: Call, draws: Any, setup: Setup) -> LayerOutput:
        """One layer over [B, T, D]."""
        taps: dict[str, jax.Array] = {}
        draws = {} if draws is None else draws
        parts = draws.get("parts", (None, None))

        def linear(name: str, x: jax.Array) -> jax.Array:
            kernel, bias = (weights[name][part].astype(x.dtype) for part in ("kernel", "bias"))
            taps[f"{name}.x"], taps[f"{name}.y"] = x, x @ kernel + bias[None, None]
            return taps[f"{name}.y"]

        normed = self._norm(weights["attention_norm"], x)
        query, key, value = (linear(name, normed) for name in ("query", "key", "value"))
        attended = self._attend(query, key, value, state, call.extra, draws.get("attention"))
        x = x + self._drop(linear("output", attended), parts[0])
        hidden = jax.nn.gelu(linear("ffn_in", self._norm(weights["ffn_norm"], x)), approximate=False)
        x = x + self._drop(linear("ffn_out", self._drop(hidden, draws.get("hidden"))), parts[1])
        return LayerOutput(x, self._kept(key, value, state, call.extra) if setup.final == "full" else None, taps)

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        """[B, T, D] → logits [B, T, V]."""
        logits = self._norm(slow["norm"], x) @ slow["lm_head"]["kernel"].astype(self.config.compute_dtype)
        return logits.astype(self.config.state_dtype)

    def _attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, state: Kept | None, seen: Seen, drop: jax.Array | None
    ) -> jax.Array:
        """Softmax attention of all heads, [B, T, D], to what is kept and to the tokens at hand."""
        mask = seen.own
        if state is not None:
            kept = state.written[:, None, None] if seen.kept is None else seen.kept & state.written[:, None, None]
            mask = jnp.concatenate([kept, mask], axis=-1)
            key, value = (jnp.concatenate(pair, axis=1) for pair in ((state.key, key), (state.value, value)))
            if drop is not None:
                drop = jnp.concatenate([jnp.ones((*drop.shape[:3], kept.shape[-1]), bool), drop], axis=-1)
        heads = self.config.n_head
        query, key, value = (part.reshape(*part.shape[:2], heads, -1) for part in (query, key, value))
        scores = jnp.einsum("bqhn,bkhn->bhqk", query, key) / query.shape[-1] ** 0.5
        scores = jnp.where(mask, scores.astype(self.config.state_dtype), -jnp.inf)
        share = self._drop(jax.nn.softmax(scores, axis=-1).astype(value.dtype), drop)
        attended = jnp.einsum("bhqk,bkhn->bqhn", share, value)
        return attended.reshape(*attended.shape[:2], -1)

    def _kept(self, key: jax.Array, value: jax.Array, state: Kept | None, seen: Seen) -> Kept:
        """What the next call goes on with: each token that stays in the slot of its place, others dropped."""
        rows, size = jnp.arange(key.shape[0])[:, None], self.config.max_length
        empty = jnp.zeros((key.shape[0], size, key.shape[-1]), key.dtype)
        before = Kept(empty, empty, jnp.zeros(empty.shape[:2], bool)) if state is None else state
        written = before.written if seen.goes_on is None else before.written & seen.goes_on[:, None]
        return Kept(
            before.key.at[rows, seen.slot].set(key, mode="drop"),
            before.value.at[rows, seen.slot].set(value, mode="drop"),
            written.at[rows, seen.slot].set(True, mode="drop"),
        )

    def _norm(self, weights: Slow, x: jax.Array) -> jax.Array:
        config = self.config
        norm = nn.LayerNorm(epsilon=1e-5, dtype=config.compute_dtype, param_dtype=config.state_dtype, parent=None)
        return norm.bind({"params": weights})(x)

    def _drop(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        return x if mask is None else jnp.where(mask, x / (1 - self.config.dropout), jnp.zeros((), x.dtype))


CONFIG = SlimConfig
"""The entry of the table of models."""
