"""What crosses a mesh inside ``jax.shard_map``: sums, by what is summed, and what an earlier part of time hands to the later ones.

Every function of a layer is given the :class:`ShardAxes` of the mesh; without one they are empty, and nothing crosses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

Tree = TypeVar("Tree")


class ShardAxes(NamedTuple):
    """Names of the mesh axes that arrays are split over. An axis of length 1 is left out: it splits nothing."""

    batch: tuple[str, ...] = ()
    """Of the axis that examples are spread over."""
    sequence: tuple[str, ...] = ()
    """Of the axis that has a part of time on each shard, in order."""
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

    def mean_over_tokens(self, array: jax.Array) -> jax.Array:
        """The mean over the shards of batch and time, which have equally many tokens."""
        over = (*self.batch, *self.sequence)
        return jax.lax.pmean(array, over) if over else array

    def sum_over_time(self, array: jax.Array) -> jax.Array:
        """The sum over the parts of time."""
        return jax.lax.psum(array, self.sequence) if self.sequence else array

    def from_last(self, tree: Tree) -> Tree:
        """What the last part of time has, on all of them."""
        if not self.sequence:
            return tree
        last = jax.lax.axis_index(self.sequence) == jax.lax.axis_size(self.sequence) - 1
        return jax.tree.map(lambda leaf: jax.lax.psum(jnp.where(last, leaf, jnp.zeros_like(leaf)), self.sequence), tree)

    def before(self, part: Tree, combine: Callable[[Tree, Tree], Tree], nothing: Tree) -> Tree:
        """What all earlier parts of time make together: after log₂ rounds, in each of which a tree like ``part`` crosses.

        Args:
          part: what this part of time makes by itself.
          combine: (earlier, later) → both as one; associative.
          nothing: what the first part finds before it, a tree like ``part``: combined with anything it changes nothing.
        """
        (axis,) = self.sequence
        shards, here = jax.lax.axis_size(axis), jax.lax.axis_index(axis)

        def from_earlier(tree: Tree, steps: int) -> Tree:
            pairs = [(shard, shard + steps) for shard in range(shards - steps)]
            came = jax.tree.map(lambda leaf: jax.lax.ppermute(vary_like(leaf, here), axis, pairs), tree)
            return jax.tree.map(lambda leaf, empty: jnp.where(here < steps, empty, leaf), came, nothing)

        found, steps = from_earlier(part, 1), 1
        while steps < shards - 1:
            found, steps = combine(from_earlier(found, steps), found), 2 * steps
        return found

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
    return ShardAxes(*((name,) if mesh.shape[name] > 1 else () for name in ("data", "sequence", "heads", "neurons")))


def vary_like(array: jax.Array, like: jax.Array) -> jax.Array:
    """``array`` typed as different on every shard where ``like`` is: inside ``jax.shard_map`` a carry must say so."""
    missing = jax.typeof(like).manual_axis_type.varying - jax.typeof(array).manual_axis_type.varying
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array
