"""BDH with a named loss of its own and random arrays by name: what a model adds is added on a mesh and token by token as well."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.models.base import Call, LayerOutput, Setup
from bdh_jax.models.bdh import BDHArchitecture, BDHConfig, LayerState, LayerWeights


@dataclasses.dataclass(frozen=True)
class SparseConfig(BDHConfig):
    architecture: str = "tests.stubs.sparse:SparseConfig"

    def make_architecture(self) -> SparseArchitecture:
        return SparseArchitecture(self)


class SparseArchitecture(BDHArchitecture):
    def draws(self, key: jax.Array, batch: int, length: int) -> dict[str, jax.Array]:
        keys = jax.random.split(key)
        noise = 0.1 * jax.random.normal(keys[1], (self.config.n_layer, batch, length, self.config.d_model))
        return {"kept": super().draws(keys[0], batch, length), "noise": noise}

    def draw_axes(self) -> dict[str, tuple[str, ...]]:
        return {"kept": super().draw_axes(), "noise": ("layer", "batch", "time", "model")}

    def block(
        self, weights: LayerWeights, x: jax.Array, state: LayerState | None, call: Call, draws: Any, setup: Setup
    ) -> LayerOutput:
        if draws is not None:
            x, draws = x + draws["noise"].astype(x.dtype), draws["kept"]
        output = super().block(weights, x, state, call, draws, setup)
        code = output.taps["code"]
        share = setup.axes.sum_over_rows(jnp.sum(code, axis=(1, 3))) / self.config.n_neurons
        return output._replace(losses={"sparsity": jnp.mean(share)}, metrics={"largest": jnp.mean(share**2)})
