"""A mixture of two registered blocks, BDH's and a GPT's, under a router: their weights nest, each has its own state, and a named loss keeps
the router from choosing one of them always."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.fast_weights.masks import Places
from bdh_jax.fast_weights.state import FastState, LayerState, State, declare
from bdh_jax.models.base import Architecture, Call, Inputs, LayerOutput, ModelConfig, Setup, Weight
from bdh_jax.models.registry import MODELS
from bdh_jax.types import Slow

EXPERTS = ("bdh", "gpt")


@dataclasses.dataclass(frozen=True)
class MixtureConfig(ModelConfig):
    architecture: str = "tests.stubs.mixture:MixtureConfig"
    n_layer: int = 2
    d_model: int = 8
    balance: float = 0.01
    has_state = True

    def experts(self) -> dict[str, Architecture]:
        same = {name: getattr(self, name) for name in ("vocab_size", "n_layer", "d_model", "dropout", "dtype")}
        sizes = {"bdh": {"n_head": 2, "n_neurons": 16, "init_std": 0.3}, "gpt": {"n_head": 1, "init_std": 0.3}}
        sizes["bdh"]["fast"] = FastWeightConfig(address="current")
        return {name: MODELS.get(name, "expert")(**same, **sizes[name]).make_architecture() for name in EXPERTS}

    def make_architecture(self) -> MixtureArchitecture:
        return MixtureArchitecture(self)


@flax.struct.dataclass
class ExpertStates(State):
    bdh: LayerState | None = None
    gpt: State | None = None


class MixtureArchitecture(Architecture):
    taps: ClassVar = {"route": ("batch", "time", "expert")}

    def __init__(self, config: MixtureConfig):
        super().__init__(config)
        self.experts = config.experts()

    def weights(self) -> dict[str, Any]:
        shape = (self.config.d_model, len(EXPERTS))
        router = Weight(("model", "expert"), shape, nn.initializers.normal(0.5), self.config.state_dtype)
        return {"router": router, **{name: expert.weights() for name, expert in self.experts.items()}}

    def state(self, batch_size: int) -> FastState:
        of_bdh = self.experts["bdh"].state(batch_size).layers
        return declare(FastState, self.sizes(batch_size), {"position"}, layers=tuple(map(ExpertStates, of_bdh)))

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        return self.experts["bdh"].embed(slow["bdh"], tokens)

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        return self.experts["gpt"].readout(slow["gpt"], x)

    def layer_weights(self, slow: Slow, index: int) -> Slow:
        own = {name: expert.layer_weights(slow[name], index) for name, expert in self.experts.items()}
        return {"router": slow["router"], **own}

    def draws(self, key: jax.Array, batch: int, length: int) -> dict[str, Any]:
        keys = dict(zip(EXPERTS, jax.random.split(key), strict=True))
        return {name: expert.draws(keys[name], batch, length) for name, expert in self.experts.items()}

    def layer_draws(self, draws: Any, index: int) -> dict[str, Any]:
        return {n: expert.layer_draws(None if draws is None else draws[n], index) for n, expert in self.experts.items()}

    def shared(self, weights: Slow, inputs: Inputs, places: Places, setup: Setup) -> dict[str, Any]:
        return {n: expert.shared(weights[n], inputs, places, setup) for n, expert in self.experts.items()}

    def block(
        self, weights: Slow, x: jax.Array, state: ExpertStates | None, call: Call, draws: Any, setup: Setup
    ) -> LayerOutput:
        route = jax.nn.softmax(x @ weights["router"])
        outputs = {}
        for name, expert in self.experts.items():
            own, extra = None if state is None else getattr(state, name), call._replace(extra=call.extra[name])
            outputs[name] = expert.block(weights[name], x, own, extra, draws[name], setup)
        x = sum(route[..., i, None] * outputs[name].x for i, name in enumerate(EXPERTS))
        used = jnp.mean(route, axis=(0, 1))
        losses = {"balance": self.config.balance * len(EXPERTS) * jnp.sum(jnp.square(used))}
        metrics = {f"used_{name}": used[i] for i, name in enumerate(EXPERTS)}
        states = ExpertStates(**{name: output.state for name, output in outputs.items()})
        return LayerOutput(x, states, {"route": route}, losses, metrics)
