"""Which rows: the largest scores, without sorting.

Axis letters: see :mod:`bdh_jax.types`; R rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def largest(scores: jax.Array, count: int) -> jax.Array:
    """Where the ``count`` largest scores of the last axis are. The first of equal ones win, as in ``jax.lax.top_k``.

    The smallest of them is found bit by bit, by counting how many scores are at least as large: 32 passes over R numbers, where
    sorting them takes several times as long.

    Args:
      scores: [..., R], floating point.
      count: in [1, R].

    Returns:
      [..., R] bool.

    Raises:
      ValueError: for a count outside that range.
    """
    if not 1 <= count <= scores.shape[-1]:
        raise ValueError(f"count={count} must lie in [1, {scores.shape[-1]}]: there are that many scores")
    order = _order(scores)
    least = _kth(order, count)[..., None]
    enough = order >= least

    def first_of_equal() -> jax.Array:
        above, equal = order > least, order == least
        left = count - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32)
        return above | (equal & (jnp.cumsum(equal, axis=-1, dtype=jnp.int32) <= left))

    return jax.lax.cond(jnp.any(jnp.sum(enough, axis=-1) > count), first_of_equal, lambda: enough)


def _order(scores: jax.Array) -> jax.Array:
    """Signed integers in the order of the scores: floating point numbers are stored as sign and magnitude."""
    kind = jnp.int64 if scores.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.promote_types(jnp.float32, scores.dtype)), kind)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)


def _kth(order: jax.Array, count: int) -> jax.Array:
    """The ``count``-th largest of the last axis, [...]."""
    kind = order.dtype
    # Sums of float32 are exact up to here, and on CPUs faster than those of integers.
    counted = jnp.float32 if order.shape[-1] < 2**24 else jnp.int32
    bits = jnp.iinfo(kind).bits

    def reached(least: jax.Array) -> jax.Array:
        return jnp.sum((order >= least[..., None]).astype(counted), axis=-1) >= count

    zero = jnp.zeros(order.shape[:-1], kind)
    lowest = jnp.where(reached(zero), zero, jnp.iinfo(kind).min)

    def bit(index: jax.Array, least: jax.Array) -> jax.Array:
        larger = least + (jnp.ones((), kind) << (bits - 2 - index).astype(kind))
        return jnp.where(reached(larger), larger, least)

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(bits - 1), bit, lowest)
