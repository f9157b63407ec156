"""Which axis of an array lies on which axis of the mesh, from what a model declares of its arrays.

A model declares every weight and every leaf of its state once, with the names of its axes (:class:`Leaf`). How they are laid out on a
mesh follows from those names and the one table ``RULES``; nothing is recognised by the name of an array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax.config import require

RULES: dict[str, str | None] = {
    "batch": "data",
    "head": "heads",
    "neuron": "neurons",
    "time": "sequence",
    # Everything else is whole on every device.
    "expert": None,
    "layer": None,
    "level": None,
    "model": None,
    "row": None,
    "slot": None,
    "vocab": None,
    "wide": None,
}
"""Logical axis → mesh axis."""
SPREAD = ("neuron", "wide", "vocab", "model")
"""Axes of a weight that fsdp may split over ``data`` as well: of those that it has, the first whose part on a device divides evenly. A
weight that has none, such as a rate of each head, stays as it is."""


class Leaf(NamedTuple):
    """What is known of an array before it exists."""

    axes: tuple[str, ...]
    """Logical names of its axes."""
    shape: tuple[int, ...]
    dtype: Any

    @property
    def batch_axis(self) -> int | None:
        """Where the examples are; None if all examples share the array."""
        return self.axes.index("batch") if "batch" in self.axes else None

    def struct(self) -> jax.ShapeDtypeStruct:
        """Its shape and dtype, as ``jax.eval_shape`` gives them."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


def is_leaf(node: Any) -> bool:
    """Whether a node of a tree of declarations is a declaration: anything with named axes."""
    return hasattr(node, "axes") and hasattr(node, "shape")


def split(axes: tuple[str, ...], lengths: Mapping[str, int], *, batched: bool = True) -> list[tuple[str, ...]]:
    """The mesh axes that each axis of an array is split over. One of length 1 splits nothing and is not among them.

    Args:
      axes: logical names.
      lengths: name of each mesh axis → its length.
      batched: False says that the batch axis has length 1 and is not split.

    Raises:
      ConfigError: for an axis that ``RULES`` does not know.
    """
    for axis in axes:
        require(axis in RULES, f"an array has the axis {axis!r}, which is not one of {', '.join(RULES)}; use one of them")
    on = [RULES[axis] if batched or axis != "batch" else None for axis in axes]
    return [(name,) if name is not None and lengths[name] > 1 else () for name in on]


def split_weight(axes: tuple[str, ...], shape: tuple[int, ...], lengths: Mapping[str, int]) -> list[tuple[str, ...]]:
    """As :func:`split` of a slow weight that fsdp spreads over ``data`` as well, by ``SPREAD``.

    Args:
      axes: logical names.
      shape: of the whole weight.
      lengths: name of each mesh axis → its length.
    """
    over = split(axes, lengths)
    ways = lengths["data"]
    for name in SPREAD if ways > 1 else ():
        for place, axis in enumerate(axes):
            if axis == name and shape[place] % (ways * math.prod(lengths[split_by] for split_by in over[place])) == 0:
                over[place] = (*over[place], "data")
                return over
    return over


def spec_of(axes: tuple[str, ...], mesh: Mesh, *, batched: bool = True) -> P:
    """Partition of an array with these axes; arguments and errors as of :func:`split`."""
    return _spec(split(axes, mesh.shape, batched=batched))


def specs(declared: Any, mesh: Mesh, *, batched: bool = True) -> Any:
    """The same tree with a partition spec in place of every declaration."""
    return jax.tree.map(lambda leaf: spec_of(leaf.axes, mesh, batched=batched), declared, is_leaf=is_leaf)


def shardings(declared: Any, mesh: Mesh, *, batched: bool = True, fsdp: bool = False) -> Any:
    """The same tree with a ``NamedSharding`` on ``mesh`` in place of every declaration.

    Args:
      declared: a tree of declarations.
      mesh: the mesh.
      batched: as of :func:`split`.
      fsdp: whether they are slow weights that are split over ``data`` as well (:func:`split_weight`).
    """

    def one(leaf: Any) -> NamedSharding:
        over = split_weight(leaf.axes, leaf.shape, mesh.shape) if fsdp else split(leaf.axes, mesh.shape, batched=batched)
        return NamedSharding(mesh, _spec(over))

    return jax.tree.map(one, declared, is_leaf=is_leaf)


def _spec(over: list[tuple[str, ...]]) -> P:
    return P(*(names[0] if len(names) == 1 else names or None for names in over))
