"""Sums over the shards of a mesh, by what is summed: the neurons within a head, or all rows.

Inside ``jax.shard_map`` every function of a layer is given the :class:`ShardAxes` of the mesh; without one they are empty, and nothing is
summed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.sharding import Mesh


class ShardAxes(NamedTuple):
    """Names of the mesh axes that arrays are split over. An axis of length 1 is left out: it splits nothing."""

    batch: tuple[str, ...] = ()
    """Of the axis that examples are spread over."""
    heads: tuple[str, ...] = ()
    """Of the axis that has whole heads on each shard."""
    neurons: tuple[str, ...] = ()
    """Of the axis that splits the neurons of a head."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Of all axes that the rows of a layer are split over."""
        return (*self.heads, *self.neurons)

    def mean_over_batch(self, array: jax.Array) -> jax.Array:
        """The mean over the shards of the batch."""
        return jax.lax.pmean(array, self.batch) if self.batch else array

    def sum_within_head(self, array: jax.Array) -> jax.Array:
        """The sum over the shards of a head's neurons: every shard then has its own heads' whole sums."""
        return jax.lax.psum(array, self.neurons) if self.neurons else array

    def sum_over_rows(self, array: jax.Array) -> jax.Array:
        """The sum over all shards of rows, of all heads."""
        return jax.lax.psum(array, self.rows) if self.rows else array

    def shards(self) -> int:
        """How many shards the rows are split into."""
        return jax.lax.axis_size(self.rows) if self.rows else 1

    def first_head(self, heads: int) -> jax.Array | int:
        """Number of the first head at hand, where ``heads`` are at hand."""
        return jax.lax.axis_index(self.heads) * heads if self.heads else 0

    def first_neuron(self, neurons: int) -> jax.Array | int:
        """Number, within its head, of the first neuron at hand, where ``neurons`` of each head are at hand."""
        return jax.lax.axis_index(self.neurons) * neurons if self.neurons else 0


WHOLE = ShardAxes()
"""Everything at hand: no mesh."""


def shard_axes(mesh: Mesh | None) -> ShardAxes:
    """The axes of a mesh that split something."""
    if mesh is None:
        return WHOLE
    return ShardAxes(*((name,) if mesh.shape[name] > 1 else () for name in ("data", "heads", "neurons")))


def vary_like(array: jax.Array, like: jax.Array) -> jax.Array:
    """``array`` typed as different on every shard where ``like`` is: inside ``jax.shard_map`` a carry must say so."""
    missing = jax.typeof(like).manual_axis_type.varying - jax.typeof(array).manual_axis_type.varying
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array
