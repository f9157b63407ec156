"""The linear maps that a model declares, as matrices, and what went in and came out of them.

Axis letters: M activities, the tokens of a batch (times the layers, of a weight that layers share); I inputs, O outputs of a map y = x @ W.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.config import require
from bdh_jax.models.base import LocalMap, Model
from bdh_jax.types import Slow


def choose(model: Model, where: str) -> dict[str, LocalMap]:
    """The linear maps of a model that a setting names, as in :func:`local_learning`.

    Raises:
      ConfigError: if there is none.
    """
    declared = model.architecture.local_maps()
    require(bool(declared), f"a {model.config.architecture!r} model declares no linear maps for local rules (local_maps)")
    if where in ("all", "attention", "ffn"):
        return {name: one for name, one in declared.items() if where in ("all", one.part)}
    chosen: dict[str, LocalMap] = {}
    for pattern in where.split(","):
        found = fnmatch.filter(declared, pattern)
        require(
            bool(found),
            f"train.hook_options.where={where!r}: {pattern!r} names no linear map; there are {', '.join(declared)}, and "
            "'all', 'attention', 'ffn'",
        )
        chosen |= {name: declared[name] for name in found}
    return chosen


def activities(
    collected: Mapping[str, jax.Array], axes: Mapping[str, tuple[str, ...]], one: LocalMap, side: str
) -> jax.Array:
    """A map's inputs ("x") or outputs ("y"), [M, N], of the taps of a forward pass.

    Args:
      collected: name → [L, B, ...].
      axes: name → the logical axes of a tap (``Architecture.taps``).
      one: the map.
      side: "x" or "y".
    """
    tap = one.x if side == "x" else one.y
    array = collected[tap]
    array = array if one.layer is None else array[one.layer : one.layer + 1]
    names = ("layer", *axes[tap])
    first = [names.index(name) for name in ("layer", "batch", "time")]
    rest = [place for place in range(array.ndim) if place not in first]
    array = jnp.transpose(array, (*first, *rest))
    return array.reshape(array.shape[0] * array.shape[1] * array.shape[2], -1)


def matrix_of(slow: Slow, one: LocalMap) -> jax.Array:
    """A map's weight as a matrix [I, O]."""
    weight = weight_of(slow, one)
    return weight.reshape(math.prod(weight.shape[: one.inputs]), -1)


def weight_of(slow: Slow, one: LocalMap) -> jax.Array:
    """A map's weight, in its own shape."""
    node: Any = slow
    for name in one.path:
        node = node[name]
    return node


def with_weight(slow: Slow, path: tuple[str, ...], weight: jax.Array) -> Slow:
    """The same slow weights with another one at a path."""
    first, *rest = path
    return {**slow, first: with_weight(slow[first], tuple(rest), weight) if rest else weight}
