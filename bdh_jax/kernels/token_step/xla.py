"""Reads of active rows by gathers, in plain JAX.

Rows are gathered and never scattered: a scatter into a matrix is a loop over rows, on CPUs at least. A row that was not asked for
is not read. Every function here takes one example.

Axis letters: see :mod:`bdh_jax.types`; R rows that are read at most, G neighbouring rows that are read together.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.kernels.token_step.arguments import Recent, Rows

_WORD = 32
FLUSH_ROWS = 512
"""Rows of a head that are flushed at a time: what is added to them stays in the cache, and takes no memory of M's size."""


def active_rows(active: jax.Array, budget: int) -> Rows:
    """The places of what is true, the first R of them.

    They are counted in words of 32 bits, and those in groups of 32 words. Which group the r-th lies in is how many groups end before it,
    which word of the group likewise, and which bit of the word takes five halvings. ``jnp.nonzero`` with a size takes a prefix sum over all
    K and a scatter, and ten times as long on a CPU.

    Args:
      active: [K] bool.
      budget: R.
    """
    size = active.shape[0]
    bits = jnp.pad(active, (0, -size % _WORD**2)).reshape(-1, _WORD)
    place = jnp.uint32(1) << jnp.arange(_WORD, dtype=jnp.uint32)
    words = jnp.sum(jnp.where(bits, place[None], jnp.uint32(0)), axis=1, dtype=jnp.uint32)
    counts = jax.lax.population_count(words).astype(jnp.int32).reshape(-1, _WORD)
    until = jnp.cumsum(counts, axis=1)
    of_groups = jnp.cumsum(until[:, -1])
    number = jnp.arange(budget, dtype=jnp.int32)
    group = jnp.minimum(_count(of_groups[None] <= number[:, None]), len(of_groups) - 1)
    left = number - (of_groups - until[:, -1])[group]
    word = jnp.minimum(_count(until[group] <= left[:, None]), _WORD - 1)
    where = group * _WORD + word
    before = (until - counts).reshape(-1)[where]
    word, left = words[where], (left - before).astype(jnp.uint32)
    bit = jnp.zeros_like(left)
    for half in (16, 8, 4, 2, 1):
        below = jax.lax.population_count(word & jnp.uint32((1 << half) - 1))
        above = left >= below
        left, word = jnp.where(above, left - below, left), jnp.where(above, word >> jnp.uint32(half), word)
        bit = jnp.where(above, bit + jnp.uint32(half), bit)
    index = where * _WORD + bit.astype(jnp.int32)
    return Rows(jnp.where(number < of_groups[-1], index, size), of_groups[-1])


def _count(true: jax.Array) -> jax.Array:
    return jnp.sum(true, axis=1, dtype=jnp.int32)


def read(query: jax.Array, matrix: jax.Array, budget: int, group: int) -> tuple[jax.Array, jax.Array]:
    """Each head's part of q @ M, from the rows where q is not zero.

    Args:
      query: [H, N].
      matrix: M, [H, N, D].
      budget: R, groups of rows.
      group: G, rows that are read together.

    Returns:
      [H, D] in the wider dtype of both, at least float32, and how many groups are active. The read means nothing where they are more
      than R.
    """
    heads, neurons = query.shape
    dtype = jnp.promote_types(jnp.float32, jnp.promote_types(query.dtype, matrix.dtype))
    groups = query.reshape(-1, group)
    # As in ``project``, so that rows of one code are looked for once.
    rows = active_rows(query.reshape(-1) != 0 if group == 1 else jnp.any(groups != 0, axis=1), budget)
    found, last = rows.index < len(groups), jnp.minimum(rows.index, len(groups) - 1)
    chosen = _take(groups, last)
    head = last // (neurons // group)
    # Zeros in the rows of other heads: one product of all rows reads each of them once.
    mine = (head[None] == jnp.arange(heads)[:, None]) & found[None]
    query = jnp.where(mine[..., None], chosen[None], jnp.zeros((), query.dtype)).reshape(heads, -1)
    picked = _take(matrix.reshape(len(groups), -1), last).reshape(query.shape[1], -1)
    return jnp.matmul(query, picked.astype(query.dtype), preferred_element_type=dtype), rows.count


def read_summed(query: jax.Array, matrix: jax.Array, budget: int) -> tuple[jax.Array, jax.Array]:
    """As :func:`read`, summed over the heads: [D]."""
    flat = query.reshape(1, -1)
    read_, count = read(flat, matrix.reshape(1, flat.shape[1], -1), budget, 1)
    return read_[0], count


def project(x: jax.Array, matrix: jax.Array, active: jax.Array, budget: int) -> tuple[jax.Array, jax.Array]:
    """M @ x of each head at the active rows, zeros elsewhere.

    Args:
      x: [H, D].
      matrix: M, [H, N, D].
      active: [H, N] bool.
      budget: R.

    Returns:
      [H, N] in the dtype of x, and how many rows are active. What is returned means nothing where they are more than R.
    """
    heads, neurons = active.shape
    rows = active_rows(active.reshape(-1), budget)
    last = jnp.minimum(rows.index, active.size - 1)
    picked = _take(matrix.reshape(active.size, -1), last).astype(x.dtype)
    of_heads = picked @ x.T
    mine = (last // neurons)[:, None] == jnp.arange(heads)[None]
    values = jnp.sum(jnp.where(mine, of_heads, jnp.zeros((), x.dtype)), axis=1)
    projected = jnp.zeros((active.size,), x.dtype).at[rows.index].set(values, mode="drop")
    return projected.reshape(active.shape), rows.count


def flush(matrix: jax.Array, recent: Recent) -> jax.Array:
    """M [B, H, N, D] with all recent writes in it; block after block, each in its place."""
    return _flush_blocks(matrix, recent, None)


@jax.custom_vjp
def flush_where(matrix: jax.Array, recent: Recent, wanted: jax.Array) -> jax.Array:
    """:func:`flush` where ``wanted``, a bool scalar, says so, and M otherwise.

    A loop that has no block to go through leaves M in its place on every machine. A condition does so on CPUs; for GPUs XLA copies what
    its branches are given, and what they return once more.
    """
    return _flush_blocks(matrix, recent, wanted)


def _keep_arguments(matrix: jax.Array, recent: Recent, wanted: jax.Array) -> tuple[jax.Array, Any]:
    return flush_where(matrix, recent, wanted), (matrix, recent, wanted)


def _differentiate(arguments: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    """Of a loop whose length is not known there is no derivative: that of the condition, which is the same function."""
    matrix, recent, wanted = arguments

    def conditional(matrix: jax.Array, recent: Recent) -> jax.Array:
        return jax.lax.cond(wanted, lambda: flush(matrix, recent), lambda: matrix)

    _, pull_back = jax.vjp(conditional, matrix, recent)
    return (*pull_back(cotangent), None)


flush_where.defvjp(_keep_arguments, _differentiate)


def _flush_blocks(matrix: jax.Array, recent: Recent, wanted: jax.Array | None) -> jax.Array:
    weighted = recent.weight[..., None].astype(matrix.dtype)
    scale, value = recent.scale[..., None, None], recent.value.astype(matrix.dtype)
    neurons = matrix.shape[2]
    size = min(FLUSH_ROWS, neurons)

    def block(matrix: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
        old = jax.lax.dynamic_slice_in_dim(matrix, start, size, axis=2)
        key = weighted * jax.lax.dynamic_slice_in_dim(recent.key, start, size, axis=3).astype(matrix.dtype)
        new = scale * old + jnp.einsum("bhwn,bwd->bhnd", key, value)
        return jax.lax.dynamic_update_slice_in_dim(matrix, new, start, axis=2)

    def times(count: int) -> Any:
        return count if wanted is None else jnp.where(wanted, jnp.int32(count), jnp.int32(0))

    whole = neurons // size
    matrix = jax.lax.fori_loop(0, times(whole), lambda number, matrix: block(matrix, number * size, size), matrix)
    if not neurons % size:
        return matrix
    rest = neurons - whole * size
    return jax.lax.fori_loop(0, times(1), lambda _, matrix: block(matrix, whole * size, rest), matrix)


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.asarray(array).at[index].get(mode="promise_in_bounds", indices_are_sorted=True)
