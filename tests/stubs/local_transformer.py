"""A Transformer whose linear layers of the MLP are no business of the optimiser: a local Hebbian update changes them, from their own
inputs X and outputs Y."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bdh_jax.models.base import Call, LayerOutput, Model, Setup
from bdh_jax.models.gpt import GPTArchitecture, GPTConfig
from bdh_jax.tasks.base import Batch
from bdh_jax.training.hooks import Hooks, Taps, Update
from bdh_jax.types import Slow

LINEAR = ("mlp_in", "mlp_out")


@dataclasses.dataclass(frozen=True)
class LocalConfig(GPTConfig):
    architecture: str = "tests.stubs.local_transformer:LocalConfig"

    def make_architecture(self) -> LocalArchitecture:
        return LocalArchitecture(self)


class LocalArchitecture(GPTArchitecture):
    taps: ClassVar = {f"{name}.{side}": ("batch", "time", "wide") for name in LINEAR for side in "xy"}

    def weights(self) -> dict[str, Any]:
        declared = super().weights()
        for index in range(self.config.n_layer):
            for name in LINEAR:
                kernel = declared[f"layer{index}"][name]["kernel"]
                declared[f"layer{index}"][name]["kernel"] = kernel._replace(trained=False)
        return declared

    def block(self, weights: Slow, x: jax.Array, state: None, call: Call, draws: Any, setup: Setup) -> LayerOutput:
        taps: dict[str, jax.Array] = {}

        def linear(name: str, x: jax.Array) -> jax.Array:
            taps[f"{name}.x"], taps[f"{name}.y"] = x, x @ self._kernel(weights[name])
            return taps[f"{name}.y"]

        x = x + self.attend(weights, x, call.extra)
        hidden = jax.nn.gelu(linear("mlp_in", self._norm(weights["mlp_norm"], x)))
        return LayerOutput(x + linear("mlp_out", hidden), None, taps)

    def attend(self, weights: Slow, x: jax.Array, seen: Any) -> jax.Array:
        rows = self._norm(weights["attention_norm"], x) @ self._kernel(weights["attention_in"])
        query, key, value = (part[:, :, None] for part in jnp.split(rows, 3, axis=-1))
        return jax.nn.dot_product_attention(query, key, value, mask=seen.mask)[:, :, 0]


def hebbian(model: Model, *, rate: float = 0.01, keep: float = 0.99) -> Hooks:
    """W ← keep · W + rate · the mean over tokens of x ⊗ y."""

    def update(slow: Slow, taps: Taps, batch: Batch, history: tuple[()]) -> tuple[Slow, tuple[()]]:
        counted = jnp.ones(batch.tokens.shape) if batch.valid is None else batch.valid.astype(jnp.float32)
        for index in range(model.config.n_layer):
            layer = dict(slow[f"layer{index}"])
            for name in LINEAR:
                x, y = (taps.collected[f"{name}.{side}"][index] for side in "xy")
                pairs = jnp.einsum("bt,btn,btm->nm", counted, x, y) / jnp.sum(counted)
                layer[name] = {"kernel": keep * layer[name]["kernel"] + rate * pairs}
            slow = {**slow, f"layer{index}": layer}
        return slow, history

    names = tuple(LocalArchitecture.taps)
    return Hooks(updates=(Update("hebbian", lambda slow: (), update, collect=names),))
