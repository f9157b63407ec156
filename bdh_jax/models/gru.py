"""The other neighbour of small memories: a gated recurrent network, Flax's GRU cell, whose memory is a vector.

    h_t = GRU(h_t−1, x_t)         a layer; x_t of the first is the token's row of ``embed``
    logits = h_t @ lm_head

Axis letters: see :mod:`bdh_jax.types`; W is the width of h.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.config import check_types, require, require_choice, require_sizes
from bdh_jax.fast_weights.state import FastState, Sizes, State, array, declare
from bdh_jax.models.base import Architecture, Call, DType, LayerOutput, ModelConfig, Setup, Weight, check_layers
from bdh_jax.types import Slow

_FROM_INPUT, _FROM_STATE = ("ir", "iz", "in"), ("hr", "hz", "hn")
_BIASED = (*_FROM_INPUT, "hn")


@dataclasses.dataclass(frozen=True)
class GRUConfig(ModelConfig):
    """The baseline of small memories: gated recurrent units (``bdh_jax.models.gru``)."""

    architecture: str = "gru"
    vocab_size: int = 256
    n_layer: int = 1
    d_model: int = 32
    """W, width of a layer's memory, and of the embedding."""
    dropout: float = 0.0
    """There is none: it has to be 0."""
    dtype: DType = "float32"
    init_std: float = 0.2
    """Standard deviation of the initial embed and lm_head; the cells start as Flax starts them."""

    def __post_init__(self) -> None:
        check_types(self)
        require_sizes(self, ("vocab_size", "n_layer", "d_model"))
        check_layers(self)
        require(self.dropout == 0, f"dropout={self.dropout}: a GRU has no dropout here; set it to 0")
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require_choice("dtype", self.dtype, DType)

    @property
    def has_state(self) -> bool:
        """The vector h of every layer."""
        return True

    def multiply_adds_per_token(self, length: int) -> int:
        """6·W² a layer, and V·W for the logits."""
        del length
        return 6 * self.n_layer * self.d_model**2 + self.vocab_size * self.d_model

    def make_architecture(self) -> GRUArchitecture:
        """What it is made of."""
        return GRUArchitecture(self)


@flax.struct.dataclass
class Kept(State):
    """One layer's memory.

    Attributes:
      h: [B, W].
    """

    h: jax.Array = array("batch", "wide")


class GRUArchitecture(Architecture):
    """What a GRU is made of."""

    config: GRUConfig

    def sizes(self, batch_size: int) -> Sizes:
        """Lengths of the logical axes."""
        sizes = super().sizes(batch_size)
        return sizes._replace(axes={**sizes.axes, "wide": self.config.d_model})

    def weights(self) -> dict[str, Any]:
        """The slow weights: embed, layer0 … with what Flax's cell has, lm_head."""
        config, width = self.config, self.config.d_model
        normal = nn.initializers.normal(config.init_std)

        def dense(name: str) -> dict[str, Weight]:
            init = nn.initializers.lecun_normal() if name in _FROM_INPUT else nn.initializers.orthogonal()
            weights = {"kernel": Weight(("wide", "wide"), (width, width), init, config.state_dtype)}
            if name in _BIASED:
                weights["bias"] = Weight(("wide",), (width,), nn.initializers.zeros, config.state_dtype)
            return weights

        layer = {name: dense(name) for name in (*_FROM_INPUT, *_FROM_STATE)}
        return {
            "embed": Weight(("vocab", "model"), (config.vocab_size, width), normal, config.state_dtype),
            **{f"layer{index}": layer for index in range(config.n_layer)},
            "lm_head": Weight(("model", "vocab"), (width, config.vocab_size), normal, config.state_dtype),
        }

    def state(self, batch_size: int) -> FastState:
        """h of every layer."""
        sizes = self.sizes(batch_size)
        return declare(FastState, sizes, {"position"}, layers=(declare(Kept, sizes),) * self.config.n_layer)

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T] → [B, T, W]."""
        return slow["embed"].astype(self.config.compute_dtype)[tokens]

    def layer_weights(self, slow: Slow, index: int) -> Slow:
        """Every layer has its own."""
        return slow[f"layer{index}"]

    def block(self, weights: Slow, x: jax.Array, state: Kept | None, call: Call, draws: Any, setup: Setup) -> LayerOutput:
        """One layer over [B, T, W]."""
        del draws, setup
        config, masks = self.config, call.masks
        cell = nn.GRUCell(config.d_model, dtype=config.compute_dtype, param_dtype=config.state_dtype, parent=None)
        bound = cell.bind({"params": weights})

        def step(h: jax.Array, token: tuple[jax.Array, jax.Array | None, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
            x, writes, reset = token
            if reset is not None:
                h = jnp.where(reset[:, None], jnp.zeros((), h.dtype), h)
            after = bound(h.astype(x.dtype), x)[0]
            # A token that does not write sees h as it would become, and leaves it as it is.
            kept = after.astype(h.dtype)
            return kept if writes is None else jnp.where(writes[:, None], kept, h), after

        start = jnp.zeros((x.shape[0], config.d_model), config.state_dtype) if state is None else state.h
        over_time = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), (x, masks.writes, masks.reset))
        h, every = jax.lax.scan(step, start, over_time)
        return LayerOutput(jnp.moveaxis(every, 0, 1), Kept(h), {})

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        """[B, T, W] → logits [B, T, V]."""
        head = slow["lm_head"].astype(self.config.compute_dtype)
        return jnp.einsum("btd,dv->btv", x, head, preferred_element_type=self.config.state_dtype)


CONFIG = GRUConfig
"""The entry of the table of models."""
