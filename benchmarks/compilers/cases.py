"""What is compiled: a name, and how to lower it for a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


class Case(NamedTuple):
    """A program for the compiler of an accelerator."""

    name: str
    """What it is, without its sizes: cases of one name are rows of one table."""
    size: str
    """Its sizes and dtype, for people."""
    lower: Callable[[Mesh], jax.stages.Lowered]
    """Lower it for the devices of a mesh."""
    refused: str = ""
    """Of what exceeds the hardware on purpose: what the compiler has to say of it, a regular expression. A compiler that takes it checks
    nothing."""


def lowering(
    function: Callable[..., Any], arguments: Sequence[Any], donate: tuple[int, ...] = ()
) -> Callable[[Mesh], jax.stages.Lowered]:
    """How to lower a function of arrays that every device holds whole.

    Args:
      function: of arrays.
      arguments: their shapes and dtypes, as pytrees of ``jax.ShapeDtypeStruct``.
      donate: numbers of the arguments that may be overwritten.
    """

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        whole = NamedSharding(mesh, P())
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), arguments)
        with jax.set_mesh(mesh):  # a kernel for TPUs looks there for the kind of chip
            return jax.jit(function, donate_argnums=donate).lower(*shapes)

    return lower
