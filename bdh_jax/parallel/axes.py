"""Which axis of an array lies on which axis of the mesh, from what a model declares of its arrays.

A model declares every weight and every leaf of its state once, with the names of its axes (:class:`Leaf`). How they are laid out on a
mesh follows from those names and the one table ``RULES``; nothing is recognised by the name of an array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax.config import require

RULES: dict[str, str | None] = {
    "batch": "data",
    "head": "heads",
    "neuron": "neurons",
    # Everything else is whole on every device.
    "expert": None,
    "layer": None,
    "level": None,
    "model": None,
    "row": None,
    "slot": None,
    "time": None,
    "vocab": None,
    "wide": None,
}
"""Logical axis → mesh axis."""


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


def spec_of(axes: tuple[str, ...], mesh: Mesh, *, batched: bool = True) -> P:
    """Partition of an array with these axes. A mesh axis of length 1 is not named: it splits nothing.

    Args:
      axes: logical names.
      mesh: the mesh.
      batched: False says that the batch axis has length 1 and is not split.

    Raises:
      ConfigError: for an axis that ``RULES`` does not know.
    """
    for axis in axes:
        require(axis in RULES, f"an array has the axis {axis!r}, which is not one of {', '.join(RULES)}; use one of them")
    on = [RULES[axis] if batched or axis != "batch" else None for axis in axes]
    return P(*(name if name is not None and mesh.shape[name] > 1 else None for name in on))


def specs(declared: Any, mesh: Mesh, *, batched: bool = True) -> Any:
    """The same tree with a partition spec in place of every declaration."""
    return jax.tree.map(lambda leaf: spec_of(leaf.axes, mesh, batched=batched), declared, is_leaf=is_leaf)


def shardings(declared: Any, mesh: Mesh, *, batched: bool = True) -> Any:
    """The same tree with a ``NamedSharding`` on ``mesh`` in place of every declaration."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec_of(leaf.axes, mesh, batched=batched)), declared, is_leaf=is_leaf
    )
