"""What a router does: which expert reads which tokens, what becomes of that where tokens trade their routes, and how many weights it uses.

Axis letters: see :mod:`bdh_jax.types`; E experts, G groups.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.config.seeds import key_of
from bdh_jax.models.base import count_parameters, named_weights
from bdh_jax.models.mixture import MixtureArchitecture, MixtureConfig, Route
from bdh_jax.types import Slow


@functools.partial(jax.jit, static_argnums=0)
def routed(config: MixtureConfig, slow: Slow, tokens: jax.Array, valid: jax.Array, reset: jax.Array) -> jax.Array:
    """Which experts read each token: [L, B, T, E] bool, the experts in alphabetical order.

    Args:
      config: of the model.
      slow: its weights.
      tokens: [B, T].
      valid: [B, T] bool.
      reset: [B, T] bool.
    """
    out = config.build().apply({"params": slow}, tokens, valid=valid, reset=reset, state="none", collect=("route",))
    return out.collected["route"] > 0


def shares(chosen: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """The share of each group's tokens that each expert reads.

    Args:
      chosen: [L, B, T, E] bool, as of :func:`routed`.
      group: [B, T] int, the group of each token; −1 for tokens of none.
      groups: G.

    Returns:
      [L, G, E]; NaN for a group without tokens.
    """
    found = np.full((chosen.shape[0], groups, chosen.shape[-1]), np.nan)
    for number in range(groups):
        if np.any(group == number):
            found[:, number] = chosen[:, group == number].mean(axis=1)
    return found


@dataclasses.dataclass(frozen=True)
class ShuffledConfig(MixtureConfig):
    """The same mixture, in which every token goes where the router sends another token of the batch, in all layers the same one. Each expert
    reads as many tokens as before. It is no causal model: the other token may come later."""

    architecture: str = "bdh_jax.analysis.routing:ShuffledConfig"
    shuffle_seed: int = 0
    """Which token takes whose route."""

    def make_architecture(self) -> MixtureArchitecture:
        """What it is made of."""
        return _Shuffled(self)


def shuffled(config: MixtureConfig, seed: int = 0) -> ShuffledConfig:
    """The mixture with shuffled routes; it takes the same weights."""
    same = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return ShuffledConfig(**{**same, "architecture": ShuffledConfig.architecture}, shuffle_seed=seed)


class _Shuffled(MixtureArchitecture):
    def __init__(self, config: ShuffledConfig):
        super().__init__(config)
        self.seed = config.shuffle_seed

    def route(self, router: jax.Array, x: jax.Array, noise: jax.Array | None, valid: jax.Array | None) -> Route:
        """Those of other valid tokens."""
        found = super().route(router, x, noise, valid)
        count = x.shape[0] * x.shape[1]
        draw = jax.random.uniform(key_of(self.seed), (count,))
        there = jnp.ones(count, bool) if valid is None else valid.reshape(-1)
        # Both list the valid tokens first, one in their order and one in a random order.
        here, other = jnp.argsort(~there, stable=True), jnp.argsort(jnp.where(there, draw, jnp.inf), stable=True)
        source = jnp.zeros(count, here.dtype).at[here].set(other)
        return Route(*(part.reshape(count, -1)[source].reshape(part.shape) for part in found))


def weights_used(config: MixtureConfig) -> tuple[int, int]:
    """The least and the most slow weights that one token's output can depend on, by the k experts of each layer.

    Counted are embedding, routers and readout, and every weight of a layer that a chosen expert applies there, once however many layers
    apply it. All routes are tried: C(E, k) to the power of L.

    Args:
      config: of the mixture.

    Returns:
      (least, most).
    """
    architecture = config.make_architecture()
    declared = architecture.weights()
    names = list(architecture.experts)
    common = count_parameters({name: weight for name, weight in declared.items() if name not in names})
    used = {(name, layer): _used_by_layer(architecture, name, layer) for name in names for layer in range(config.n_layer)}
    sizes = {(name, path): int(np.prod(weight.shape)) for name in names for path, weight in named_weights(declared[name])}
    counts = []
    choices = list(itertools.combinations(names, config.top_k))
    for route in itertools.product(choices, repeat=config.n_layer):
        paths = {(name, path) for layer, chosen in enumerate(route) for name in chosen for path in used[name, layer]}
        counts.append(common + sum(sizes[path] for path in paths))
    return min(counts), max(counts)


def _used_by_layer(architecture: MixtureArchitecture, name: str, layer: int) -> Sequence[tuple[str, ...]]:
    """Paths of the weights of an expert that a layer applies: those that what it picks changes with."""
    declared = architecture.weights()[name]
    expert = architecture.experts[name]

    def tree(changed: tuple[str, ...] | None) -> Slow:
        made: Slow = {}
        for path, weight in named_weights(declared):
            node = made
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = np.full(weight.shape, 1.0 if path == changed else 0.0, np.float32)
        return made

    def picked(changed: tuple[str, ...] | None) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(expert.layer_weights(tree(changed), layer))]

    before = picked(None)
    found = []
    for path, _ in named_weights(declared):
        after = picked(path)
        if any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
            found.append(path)
    return found
