"""A model whose one-token calls put their writes into W slots, and fold them into S by one product when a caller says so.

    S_t = scale · S + Σ_w weight_w key_w ⊗ value_w        for each example and head

A token then moves W rows instead of S. Folding is a call of its own, with the state given up: :func:`flush`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.state import FastState, Sizes, State, array, declare, zeros
from bdh_jax.kernels.fast_weight_scan import fast_weight_scan
from bdh_jax.layers.norm import layer_norm
from bdh_jax.models.base import Architecture, Call, LayerOutput, ModelConfig, Setup, Weight
from bdh_jax.types import Slow


@dataclasses.dataclass(frozen=True)
class BufferedConfig(ModelConfig):
    architecture: str = "tests.stubs.buffered:BufferedConfig"
    n_layer: int = 2
    d_model: int = 6
    n_head: int = 2
    n_neurons: int = 16
    slots: int = 4
    decay: float = 0.9
    has_state = True

    def make_architecture(self) -> BufferedArchitecture:
        return BufferedArchitecture(self)


@flax.struct.dataclass
class Buffered(State):
    S: jax.Array = array("batch", "head", "neuron", "model")
    scale: jax.Array = array("batch", "head")
    key: jax.Array = array("batch", "slot", "head", "neuron")
    value: jax.Array = array("batch", "slot", "model")
    weight: jax.Array = array("batch", "slot", "head")
    used: jax.Array = array(dtype="int32")

    def effective(self) -> jax.Array:
        """What an address reads, [B, H, N, D]."""
        written = jnp.einsum("bwh,bwhn,bwd->bhnd", self.weight, self.key, self.value)
        return self.scale[..., None, None] * self.S + written

    def folded(self) -> Buffered:
        """The same, with nothing in the slots."""
        empty = [jnp.zeros_like(a) for a in (self.key, self.value, self.weight, self.used)]
        return Buffered(self.effective(), jnp.ones_like(self.scale), *empty)


@functools.partial(jax.jit, donate_argnums=0)
def flush(fast: FastState) -> FastState:
    """Fold what is in the slots into S."""
    return fast.replace(layers=tuple(layer.folded() for layer in fast.layers))


class BufferedArchitecture(Architecture):
    def sizes(self, batch_size: int) -> Sizes:
        config, sizes = self.config, super().sizes(batch_size)
        rows = {"head": config.n_head, "neuron": config.n_neurons // config.n_head, "slot": config.slots}
        return sizes._replace(axes={**sizes.axes, **rows})

    def weights(self) -> dict[str, Any]:
        names = {"embed": ("vocab", "model"), "encoder": ("model", "head", "neuron"), "lm_head": ("model", "vocab")}
        lengths, normal = self.sizes(1).axes, nn.initializers.normal(0.5)
        shapes = {name: tuple(lengths[axis] for axis in axes) for name, axes in names.items()}
        return {name: Weight(names[name], shape, normal, self.config.state_dtype) for name, shape in shapes.items()}

    def state(self, batch_size: int) -> FastState:
        sizes = self.sizes(batch_size)
        return declare(FastState, sizes, {"position"}, layers=(declare(Buffered, sizes),) * self.config.n_layer)

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        return layer_norm(slow["embed"][tokens])

    def layer_weights(self, slow: Slow, index: int) -> Slow:
        return slow

    def block(
        self, weights: Slow, x: jax.Array, state: Buffered | None, call: Call, draws: Any, setup: Setup
    ) -> LayerOutput:
        code = jax.nn.relu(jnp.einsum("btd,dhn->bhtn", x, weights["encoder"]))
        state = zeros(self.state(len(x)).layers[0]) if state is None else state
        if x.shape[1] == 1:
            read, state = self.one_token(code[:, :, 0], x[:, 0], state, call)
        else:
            state, masks = state.folded(), {"valid": call.masks.writes, "reset": call.masks.reset}
            read, S = fast_weight_scan(code, code, x, state.S, decay=self.config.decay, **masks, sum_heads=True)
            state = state.replace(S=S)
        return LayerOutput(layer_norm(x + read), state, {})

    def one_token(self, code: jax.Array, x: jax.Array, state: Buffered, call: Call) -> tuple[jax.Array, Buffered]:
        """Read S and the slots as they are, then take the next slot. An invalid token takes one too, of weight 0."""
        scale, weight = state.scale, state.weight
        if call.masks.reset is not None:  # nothing of the episode before is left, without a look at S
            scale = jnp.where(call.masks.reset, 0, scale)
            weight = jnp.where(call.masks.reset[:, None], 0, weight)
        shares = weight * jnp.einsum("bhn,bwhn->bwh", code, state.key)
        read = jnp.einsum("bhn,bhnd->bhd", code, state.S) * scale[..., None]
        read = jnp.sum(read, axis=1) + jnp.einsum("bwh,bwd->bd", shares, state.value)
        writes = jnp.ones((len(x), 1), bool) if call.masks.writes is None else call.masks.writes
        kept = jnp.where(writes, self.config.decay, 1.0).astype(scale.dtype)
        new = jnp.broadcast_to(writes, scale.shape).astype(scale.dtype)
        slots = {"key": (state.key, code), "value": (state.value, x), "weight": (weight * kept[..., None], new)}
        placed = {name: _put(array, row, state.used) for name, (array, row) in slots.items()}
        return read[:, None], state.replace(scale=scale * kept, used=state.used + 1, **placed)

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        return x @ slow["lm_head"]


def _put(slots: jax.Array, row: jax.Array, index: jax.Array) -> jax.Array:
    """The slots [B, W, ...] with ``row`` [B, ...] in one of them."""
    return jax.lax.dynamic_update_index_in_dim(slots, row.astype(slots.dtype), index, axis=1)
