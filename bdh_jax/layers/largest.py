"""The largest numbers of an axis, without sorting it.

The smallest of them is found bit by bit, by counting how many numbers are at least as large: 32 passes over R numbers, where sorting them
takes several times as long. A count is all that crosses where the axis is split over devices.

Axis letters: see :mod:`bdh_jax.types`; R rows.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def alone(part: jax.Array) -> jax.Array:
    """The sum over the parts of an axis that is whole."""
    return part


def kth_largest(numbers: jax.Array, k: int, total: Callable[[jax.Array], jax.Array] = alone) -> jax.Array:
    """The k-th largest of the last axis, exactly. It carries no gradient.

    Args:
      numbers: [..., R], floating point.
      k: in [1, R]; where the axis is split, R of all its parts.
      total: of counts [...], their sum over the parts of an axis that is split; each part then finds the same.

    Returns:
      [...], in the dtype of ``numbers``.
    """
    numbers = jax.lax.stop_gradient(numbers)
    kth = _kth(_order(numbers), k, total)
    kind = jnp.float64 if kth.dtype == jnp.int64 else jnp.float32
    return jax.lax.bitcast_convert_type(_by_sign(kth), kind).astype(numbers.dtype)


def largest(scores: jax.Array, count: int) -> jax.Array:
    """Where the ``count`` largest scores of the last axis are. The first of equal ones win, as in ``jax.lax.top_k``.

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
    return _by_sign(jax.lax.bitcast_convert_type(scores.astype(jnp.promote_types(jnp.float32, scores.dtype)), kind))


def _by_sign(bits: jax.Array) -> jax.Array:
    """There and back between sign and magnitude, and two's complement."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _kth(order: jax.Array, count: int, total: Callable[[jax.Array], jax.Array] = alone) -> jax.Array:
    """The ``count``-th largest of the last axis, [...]."""
    kind = order.dtype
    # Sums of float32 are exact up to here, and on CPUs faster than those of integers.
    counted = jnp.float32 if order.shape[-1] < 2**24 else jnp.int32
    bits = jnp.iinfo(kind).bits

    def reached(least: jax.Array) -> jax.Array:
        return total(jnp.sum((order >= least[..., None]).astype(counted), axis=-1)) >= count

    zero = jnp.zeros(order.shape[:-1], kind)
    lowest = jnp.where(reached(zero), zero, jnp.iinfo(kind).min)

    def bit(index: jax.Array, least: jax.Array) -> jax.Array:
        larger = least + (jnp.ones((), kind) << (bits - 2 - index).astype(kind))
        return jnp.where(reached(larger), larger, least)

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(bits - 1), bit, lowest)
