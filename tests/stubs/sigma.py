"""A model whose only state is one σ [N, N] a layer, written by all examples together: an array without a batch axis."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.state import FastState, Sizes, State, array, declare
from bdh_jax.layers.norm import layer_norm
from bdh_jax.models.base import Architecture, Call, LayerOutput, ModelConfig, Setup, Weight
from bdh_jax.types import Slow


@dataclasses.dataclass(frozen=True)
class SigmaConfig(ModelConfig):
    architecture: str = "tests.stubs.sigma:SigmaConfig"
    n_layer: int = 2
    d_model: int = 6
    n_neurons: int = 8
    decay: float = 0.9
    has_state = True

    def make_architecture(self) -> SigmaArchitecture:
        return SigmaArchitecture(self)


@flax.struct.dataclass
class Synapses(State):
    sigma: jax.Array = array("neuron", "neuron")


class SigmaArchitecture(Architecture):
    def sizes(self, batch_size: int) -> Sizes:
        sizes = super().sizes(batch_size)
        return sizes._replace(axes={**sizes.axes, "neuron": self.config.n_neurons})

    def weights(self) -> dict[str, Any]:
        lengths = self.sizes(1).axes
        names = {"embed": ("vocab", "model"), "encoder": ("model", "neuron"), "decoder": ("neuron", "model")}
        names["lm_head"] = ("model", "vocab")
        shapes = {name: tuple(lengths[axis] for axis in axes) for name, axes in names.items()}
        normal, dtype = nn.initializers.normal(0.5), self.config.state_dtype
        return {name: Weight(names[name], shape, normal, dtype) for name, shape in shapes.items()}

    def state(self, batch_size: int) -> FastState:
        sizes = self.sizes(batch_size)
        return declare(FastState, sizes, {"position"}, layers=(declare(Synapses, sizes),) * self.config.n_layer)

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        return layer_norm(slow["embed"][tokens])

    def layer_weights(self, slow: Slow, index: int) -> Slow:
        return slow

    def block(
        self, weights: Slow, x: jax.Array, state: Synapses | None, call: Call, draws: Any, setup: Setup
    ) -> LayerOutput:
        """σ ← λ σ + the mean over the batch of y ⊗ y, after every token."""
        y = jax.nn.relu(x @ weights["encoder"])
        writes = jnp.ones(x.shape[:2], y.dtype) if call.masks.writes is None else call.masks.writes.astype(y.dtype)
        start = jnp.zeros((y.shape[-1],) * 2, y.dtype) if state is None else state.sigma

        def step(sigma: jax.Array, token: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            y, write = token
            return self.config.decay * sigma + jnp.einsum("b,bn,bm->nm", write, y, y) / len(y), y @ sigma

        sigma, read = jax.lax.scan(step, start, (y.swapaxes(0, 1), writes.T))
        return LayerOutput(layer_norm(x + read.swapaxes(0, 1) @ weights["decoder"]), Synapses(sigma), {})

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        return x @ slow["lm_head"]
