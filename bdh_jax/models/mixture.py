"""Experts of different kinds under a router: each token is read by k of them in every layer, and each learns by its own rule.

    p   = softmax(x @ router)                 of this layer, over the E experts
    k of them are chosen, the most likely     p' = p where chosen, else 0; not made to sum up to 1, so that k = 1 has a gradient
    x   = LN(x + Σ_e p'_e (block_e(x) − x))   block_e: one layer of expert e, any registered model's
    logits = x @ lm_head                      embedding and readout are the mixture's own, for all experts

What a token means to an expert that it is not routed to is ``writes``:

* "all": it is written there like any other, into fast weights, attention's state and what is attended to. Routing decides whose output
  counts. So a router that sends a question to the expert that can answer it gets a gradient for that.
* "routed": it *counts* there, and is not *written* (``Masks.write``). Positions go on, and the address "previous" is that of the token
  before, whoever reads it; but fast weights and linear attention neither hold the token nor decay for it, and no softmax attention sees
  it. Whether to write is then a choice without a gradient: what comes of it, comes at later tokens.

Every router sees its own token alone, so all stays causal either way, and a stretch of tokens gives the same in one call or several.

An expert whose block keeps no state of its own, as a GPT's, is given one: the inputs of this segment that were written. A segment
is ``context`` tokens of an episode, and attention begins anew with each; so a call of one token costs the same however long the text is.

Every expert computes every token, and what was not chosen is masked: a step takes the time of all experts together. What is sparse is
which weights a token's way from layer to layer passes (:mod:`bdh_jax.analysis.routing` counts them).

The loss that keeps the router from always choosing the same is E · Σ_e f_e P_e, of f_e, the share of the choices that fell on e, and
P_e, the mean of p_e (Fedus, Zoph, Shazeer, Switch Transformers, JMLR 2022).

Axis letters: see :mod:`bdh_jax.types`; E is the number of experts here, C the length of a segment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError, check_types, require, require_choice, require_sizes
from bdh_jax.config.convert import from_config_dict
from bdh_jax.config.identity import HOW
from bdh_jax.config.options import Options
from bdh_jax.fast_weights.masks import Masks, Places
from bdh_jax.fast_weights.state import FastState, Sizes, State, array, declare
from bdh_jax.layers.norm import layer_norm
from bdh_jax.models.base import (
    Architecture,
    Call,
    DType,
    Inputs,
    LayerOutput,
    ModelConfig,
    Setup,
    Weight,
    check_layers,
)
from bdh_jax.models.registry import MODELS
from bdh_jax.types import Slow

Writes = Literal["all", "routed"]
SHARED = ("vocab_size", "n_layer", "d_model", "dropout", "dtype")
"""Settings that the mixture and all of its experts have alike."""
_OWN = ("embed", "router", "lm_head")
_DEFAULT = Options(bdh=Options(n_head=1, n_neurons=512, init_std=0.1), gpt=Options(n_head=4))


@dataclasses.dataclass(frozen=True)
class MixtureConfig(ModelConfig):
    """Experts of different kinds under a router (``bdh_jax.models.mixture``)."""

    architecture: str = "mixture"
    vocab_size: int = 256
    n_layer: int = 2
    d_model: int = 64
    experts: Options = _DEFAULT
    """Name of each expert → options of its model. ``architecture`` among them names the model, or ``module:Class`` of a configuration of your
    own; without it that is the expert's name. Vocabulary, layers, width, dropout and dtype are the mixture's."""
    top_k: int = 1
    """k, experts that a token is routed to in each layer."""
    writes: Writes = "all"
    """The tokens that an expert writes and attends to: "all", or those that are "routed" to it."""
    context: int = 256
    """C, tokens that an expert without a state of its own reads together; of a longer episode it reads one such segment after another."""
    balance: float = 0.01
    """Weight of the loss that balances the router: E · Σ f_e P_e, summed over layers, which is 1 a layer where all experts have the same. f and P are
    means over the tokens of a batch, or of one position where an expert goes token by token."""
    router_noise: float = 0.0
    """Standard deviation of the noise that is added to the router's scores in training."""
    init_std: float = 0.02
    """Standard deviation of the initial weights of embedding, router and readout."""
    dropout: float = 0.0
    dtype: DType = "float32"
    """Compute dtype. Parameters and states are float32 (float64 when this is float64)."""
    remat: bool = dataclasses.field(default=False, metadata=HOW)
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "experts", Options.of("experts", self.experts))
        require_sizes(self, ("vocab_size", "n_layer", "d_model", "top_k", "context"))
        check_layers(self)
        require(
            len(self.experts) >= 2, f"experts={dict(self.experts)} names {len(self.experts)}; a mixture has at least two"
        )
        require(
            self.top_k <= len(self.experts),
            f"top_k={self.top_k} is more than the {len(self.experts)} experts; use a smaller one, or name more experts",
        )
        for name in ("balance", "router_noise"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be ≥ 0; 0 leaves it out")
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        require_choice("dtype", self.dtype, DType)
        require_choice("writes", self.writes, Writes)
        for name, expert in self.parts.items():
            require(
                expert.no_part is None,
                f"experts.{name}: {expert.no_part}, or leave it out: the layers of a mixture's expert stand each for itself",
            )
            _check_state(name, expert.make_architecture().state(1))

    @property
    def parts(self) -> dict[str, ModelConfig]:
        """Name → the expert's configuration, in alphabetical order: that of the router's columns.

        Raises:
          ConfigError: for a name that cannot be one, a model that does not exist, or an option that it does not have.
        """
        return {name: self._expert_config(name) for name in sorted(self.experts)}

    def _expert_config(self, name: str) -> ModelConfig:
        where, options = f"experts.{name}", self.experts[name]
        require(
            name.isidentifier() and name not in _OWN,
            f"experts has the name {name!r}, which must be a word other than {', '.join(_OWN)}",
        )
        require(isinstance(options, Mapping), f"{where}={options!r} should be a mapping of the options of its model")
        alike = [option for option in options if option in SHARED]
        require(not alike, f"{where}.{', '.join(alike)}: all experts have the mixture's; set it there")
        architecture = options.get("architecture", name)
        kind = MODELS.get(architecture, f"{where}.architecture")
        require(
            not issubclass(kind, MixtureConfig), f"{where}.architecture={architecture!r}: a mixture is no expert of another"
        )
        shared = {option: getattr(self, option) for option in SHARED}
        return from_config_dict(kind, {**options, **shared, "architecture": architecture}, where)

    @property
    def draws_in_training(self) -> bool:
        """Dropout, or the router's noise."""
        return self.dropout > 0 or self.router_noise > 0

    @property
    def has_state(self) -> bool:
        """It carries a state from call to call."""
        return True

    @property
    def widest(self) -> int:
        """Those of all experts together."""
        return sum(expert.widest for expert in self.parts.values())

    def multiply_adds_per_token(self, length: int) -> int | None:
        """Of a forward pass over so many tokens, for each: those of all experts, which all read every token, and E·D a layer for the router.
        None where an expert does not say."""
        total = self.n_layer * len(self.experts) * self.d_model + self.vocab_size * self.d_model
        for expert in self.parts.values():
            found = expert.multiply_adds_per_token(length)
            if found is None:
                return None
            total += found - self.vocab_size * self.d_model  # the readout is shared
        return total

    def make_architecture(self) -> MixtureArchitecture:
        """What it is made of."""
        return MixtureArchitecture(self)


def _check_state(name: str, declared: FastState | None) -> None:
    """Refuse an expert with a state that is not of its layers, one by one: between two of them other experts have their turn."""
    if declared is None:
        return
    for part, setting in (
        ("shared", "a state that all layers share (fast.scope)"),
        ("token_steps", "writes that wait in slots"),
    ):
        require(
            getattr(declared, part) is None,
            f"experts.{name} has {setting}, and the layers of a mixture's expert stand each for itself; set it otherwise",
        )


@flax.struct.dataclass
class Kept(State):
    """What an expert without a state of its own has read of this segment.

    Attributes:
      x: [B, C, D], the layer's input at each place of the segment; zero where nothing is written.
      written: [B, C] bool, where there is a token.
    """

    x: jax.Array = array("batch", "time", "model", dtype="compute")
    written: jax.Array = array("batch", "time", dtype="bool")


@flax.struct.dataclass
class MixtureLayer(State):
    """One layer's part of the state.

    Attributes:
      experts: the state of each expert's layer, in the order of their names.
    """

    experts: tuple[Any, ...]


class LayerWeights(NamedTuple):
    """The slow weights of one layer.

    Attributes:
      router: [D, E].
      whole: all weights of each expert, of which it computes what its layers share.
      own: those of this layer of each expert.
    """

    router: jax.Array
    whole: tuple[Any, ...]
    own: tuple[Any, ...]


class LayerDraws(NamedTuple):
    """The random arrays of one layer.

    Attributes:
      noise: [B, T, E] of variance 1, or None.
      experts: those of each expert, or None.
    """

    noise: jax.Array | None
    experts: tuple[Any, ...]


class Route(NamedTuple):
    """Which experts read a token.

    Attributes:
      share: [B, T, E], how much an expert's output counts; 0 where the token is not routed to it.
      chosen: [B, T, E] bool.
      probability: [B, T, E], of all experts; sums up to 1.
    """

    share: jax.Array
    chosen: jax.Array
    probability: jax.Array


class MixtureArchitecture(Architecture):
    """What a mixture is made of."""

    config: MixtureConfig
    outside: ClassVar[tuple[str, ...]] = ("embed", "lm_head")

    def __init__(self, config: MixtureConfig):
        super().__init__(config)
        self.experts = {name: expert.make_architecture() for name, expert in config.parts.items()}
        self.taps = {"route": ("batch", "time", "expert")}
        for name, expert in self.experts.items():
            self.taps |= {f"{name}.{tap}": axes for tap, axes in expert.taps.items()}

    # Declarations.

    def sizes(self, batch_size: int) -> Sizes:
        """Lengths of the logical axes; that of time is a segment's."""
        sizes = super().sizes(batch_size)
        return sizes._replace(axes={**sizes.axes, "expert": len(self.experts), "time": self.config.context})

    def weights(self) -> dict[str, Any]:
        """The slow weights: embed, router, lm_head, and under each expert's name those that its layers use."""
        config, sizes = self.config, self.sizes(1).axes

        def weight(*axes: str) -> Weight:
            shape = tuple(sizes[axis] for axis in axes)
            return Weight(axes, shape, nn.initializers.normal(config.init_std), config.state_dtype)

        experts = {
            name: {key: value for key, value in expert.weights().items() if key not in expert.outside}
            for name, expert in self.experts.items()
        }
        router = weight("layer", "model", "expert")
        return {"embed": weight("vocab", "model"), "router": router, "lm_head": weight("model", "vocab"), **experts}

    def state(self, batch_size: int) -> FastState:
        """The state of an episode, declared."""
        sizes, of_experts = self.sizes(batch_size), []
        for expert in self.experts.values():
            own = expert.state(batch_size)
            of_experts.append((declare(Kept, sizes),) * self.config.n_layer if own is None else own.layers)
        layers = tuple(MixtureLayer(tuple(of_layer)) for of_layer in zip(*of_experts, strict=True))
        return declare(FastState, sizes, {"position"}, layers=layers)

    # The three functions.

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T] → [B, T, D]."""
        return layer_norm(jnp.asarray(slow["embed"], self.config.compute_dtype)[tokens])

    def block(
        self, weights: LayerWeights, x: jax.Array, state: MixtureLayer | None, call: Call, draws: LayerDraws, setup: Setup
    ) -> LayerOutput:
        """One layer over [B, T, D]."""
        route = self.route(weights.router, x, draws.noise, call.masks.valid)
        taps, losses, metrics, states, change = {"route": route.share}, {}, {}, [], jnp.zeros_like(x)
        for number, (name, expert) in enumerate(self.experts.items()):
            wanted = tuple(tap.removeprefix(f"{name}.") for tap in setup.collect if tap.startswith(f"{name}."))
            part = _Part(expert, weights.whole[number], weights.own[number], setup._replace(collect=wanted))
            before = None if state is None else state.experts[number]
            masks, fast = self._masks(call.masks, route.chosen[..., number]), call.extra[number]
            if expert.state(1) is None:
                output = self._with_context(part, x, before, call._replace(masks=masks, extra=fast), draws.experts[number])
            else:
                output = part.run(x, before, fast, masks, call.places, draws.experts[number])
            change += route.share[..., number, None].astype(x.dtype) * (output.x - x)
            states.append(output.state)
            taps |= {f"{name}.{tap}": output.taps[tap] for tap in wanted}
            losses |= {f"{name}.{loss}": value for loss, value in (output.losses or {}).items()}
            metrics |= {f"{name}.{metric}": value for metric, value in (output.metrics or {}).items()}
        shares = _mean(route.chosen.astype(route.probability.dtype), call.masks.valid)
        metrics |= {f"share_{name}": shares[number] for number, name in enumerate(self.experts)}
        if self.config.balance:
            losses["balance"] = self.config.balance * self._imbalance(route, shares, call.masks.valid)
        after = MixtureLayer(tuple(states)) if setup.final != "none" else None
        return LayerOutput(layer_norm(x + change), after, taps, losses, metrics)

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        """[B, T, D] → logits [B, T, V]."""
        config = self.config
        return jnp.einsum(
            "btd,dv->btv", x, slow["lm_head"].astype(config.compute_dtype), preferred_element_type=config.state_dtype
        )

    def route(self, router: jax.Array, x: jax.Array, noise: jax.Array | None, valid: jax.Array | None) -> Route:
        """Which experts read each token.

        Args:
          router: [D, E].
          x: [B, T, D], the layer's input.
          noise: [B, T, E] of variance 1, or None.
          valid: [B, T] bool, tokens that count, or None for all.
        """
        del valid
        scores = x.astype(router.dtype) @ router
        if noise is not None:
            scores += self.config.router_noise * noise
        probability = jax.nn.softmax(scores)
        count = probability.shape[-1]
        if self.config.top_k == count:
            return Route(probability, jnp.ones_like(probability, bool), probability)
        best = jax.lax.top_k(scores, self.config.top_k)[1]
        chosen = jnp.any(jax.nn.one_hot(best, count, dtype=bool), axis=-2)
        return Route(jnp.where(chosen, probability, 0), chosen, probability)

    # How they compose.

    def by_token(self, length: int) -> bool:
        """Whether a call of so many tokens goes token by token, as it does where one expert has to."""
        return any(expert.by_token(length) for expert in self.experts.values())

    def layer_weights(self, slow: Slow, index: int) -> LayerWeights:
        """Each layer has a router of its own, and of each expert what that says."""
        whole = tuple(slow[name] for name in self.experts)
        own = tuple(expert.layer_weights(slow[name], index) for name, expert in self.experts.items())
        return LayerWeights(slow["router"][index], whole, own)

    def draws(self, key: jax.Array, batch: int, length: int) -> dict[str, Any]:
        """The router's noise [L, B, T, E], and the experts' own arrays."""
        config, keys = self.config, jax.random.split(key, 1 + len(self.experts))
        drawn: dict[str, Any] = {"noise": None, "experts": None}
        if config.router_noise:
            drawn["noise"] = jax.random.normal(keys[0], (config.n_layer, batch, length, len(self.experts)))
        if config.dropout:
            self._check_dropout(self.by_token(length))
            drawn["experts"] = {
                name: expert.draws(own, batch, length)
                for (name, expert), own in zip(self.experts.items(), keys[1:], strict=True)
            }
        return drawn

    def layer_draws(self, draws: Any, index: int) -> LayerDraws:
        """Those of layer ``index``."""
        noise = None if draws is None or draws["noise"] is None else draws["noise"][index]
        of_experts = None if draws is None else draws["experts"]
        own = tuple(
            None if of_experts is None else expert.layer_draws(of_experts[name], index)
            for name, expert in self.experts.items()
        )
        return LayerDraws(noise, own)

    def draw_axes(self) -> dict[str, Any]:
        """Logical axes of :meth:`draws`."""
        config = self.config
        noise = ("layer", "batch", "time", "expert") if config.router_noise else None
        own = {name: expert.draw_axes() for name, expert in self.experts.items()} if config.dropout else None
        return {"noise": noise, "experts": own}

    def shared(self, weights: Slow, inputs: Inputs, places: Places, setup: Setup) -> tuple[FastState | None, ...]:
        """The state of each expert that a call goes on from. What its layers share hangs on what they are routed, and is computed there."""
        del weights, places, setup
        fast = inputs.fast
        if fast is None:
            return (None,) * len(self.experts)
        return tuple(
            FastState(tuple(layer.experts[number] for layer in fast.layers), position=fast.position)
            for number in range(len(self.experts))
        )

    def _check_dropout(self, goes_on: bool) -> None:
        """Refuse what would need dropout masks of tokens that an earlier call read."""
        for name, expert in self.experts.items():
            if goes_on and expert.state(1) is None:
                raise ConfigError(
                    f"dropout={self.config.dropout}: the expert {name!r} reads its segment again from the state, of which no dropout masks are "
                    "kept; set it to 0, or let every call start an episode (train.carry_state=False)"
                )

    def _masks(self, masks: Masks, chosen: jax.Array) -> Masks:
        """What is written at an expert."""
        if self.config.writes == "all" or self.config.top_k == len(self.experts):
            return masks
        return masks._replace(write=chosen if masks.write is None else chosen & masks.write)

    def _with_context(self, part: _Part, x: jax.Array, before: Kept | None, call: Call, draws: Any) -> LayerOutput:
        """A layer of an expert that keeps nothing, over the segment so far and the tokens at hand. ``call.extra`` is its state."""
        segment, masks, places = self.config.context, call.masks, call.places
        shape = x.shape[:2]
        position = jnp.broadcast_to(places.position, shape)
        reset = masks.reset
        if before is not None or shape[1] > segment:
            begins = position % segment == 0
            reset = begins if reset is None else reset | begins
        if before is None:
            output = part.run(x, None, None, masks._replace(reset=reset), places, draws)
            return output._replace(state=self._keep(x, None, call, position))
        if draws is not None:
            self._check_dropout(True)
        start = call.extra.position
        first = (start - 1) // segment * segment  # of the segment that was read last
        nothing = jnp.zeros_like(before.written)
        everything = jnp.ones(shape, bool)

        def both(kept: jax.Array, new: jax.Array | None) -> jax.Array:
            return jnp.concatenate([kept, everything if new is None else new], axis=1)

        longer = Masks(both(before.written, masks.valid), both(nothing, reset), both(before.written, masks.write))
        longer_places = places._replace(
            position=both(first[:, None] + jnp.arange(segment, dtype=first.dtype)[None], position),
            counted=both(nothing.astype(places.counted.dtype), places.counted),
        )
        output = part.run(both(before.x, x), None, None, longer, longer_places, None)
        taps = {
            tap: jax.lax.slice_in_dim(value, segment, None, axis=part.expert.taps[tap].index("time"))
            for tap, value in output.taps.items()
            if tap in part.setup.collect
        }
        return output._replace(x=output.x[:, segment:], state=self._keep(x, before, call, position), taps=taps)

    def _keep(self, x: jax.Array, before: Kept | None, call: Call, position: jax.Array) -> Kept:
        """What the next call has to see again: the tokens of the last segment that were written."""
        segment, places = self.config.context, call.places
        end = places.end_position[:, None]
        last = (end - 1) // segment
        here = (places.counted > 0) & (position // segment == last)
        if call.masks.writes is not None:
            here &= call.masks.writes
        goes = here[..., None] & jax.nn.one_hot(position % segment, segment, dtype=bool)  # [B, T, C]
        written, new = jnp.any(goes, axis=1), jnp.einsum("btc,btd->bcd", goes.astype(x.dtype), x)
        if before is None:
            return Kept(new, written)
        stays = before.written & ((call.extra.position[:, None] - 1) // segment == last)
        if places.continues is not None:
            stays &= places.continues[:, None]
        return Kept(jnp.where(stays[..., None], before.x, new), written | stays)

    def _imbalance(self, route: Route, shares: jax.Array, valid: jax.Array | None) -> jax.Array:
        """E · Σ f_e P_e, 1 where all experts have the same."""
        return len(self.experts) / self.config.top_k * jnp.sum(shares * _mean(route.probability, valid))


class _Part(NamedTuple):
    """One layer of one expert.

    Attributes:
      expert: what it is made of.
      whole: its slow weights.
      own: those of the layer.
      setup: of the call, with the expert's own names of taps.
    """

    expert: Architecture
    whole: Any
    own: Any
    setup: Setup

    def run(self, x: jax.Array, state: Any, fast: FastState | None, masks: Masks, places: Places, draws: Any) -> LayerOutput:
        extra = self.expert.shared(self.whole, Inputs(x, fast, masks, None), places, self.setup)
        return self.expert.block(self.own, x, state, Call(masks, places, extra), draws, self.setup)


def _mean(array: jax.Array, valid: jax.Array | None) -> jax.Array:
    """[B, T, E] → [E], over the tokens that count."""
    if valid is None:
        return jnp.mean(array, axis=(0, 1))
    return jnp.sum(array * valid[..., None], axis=(0, 1)) / jnp.maximum(jnp.sum(valid), 1)


CONFIG = MixtureConfig
"""The entry of the table of models."""
