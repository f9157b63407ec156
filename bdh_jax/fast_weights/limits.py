"""Limits on S after every write. They are not linear in S, so a rule with limits has the form token by token only."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def bound(state: jax.Array, *, clamp: float | None, threshold: float | None, row_norm: float | None) -> jax.Array:
    """The limits of the σ rule (:func:`bdh_jax.fast_weights.sigma.sigma_update`), put on S after a write, in that order.

    Args:
      state: S, [..., D].
      clamp: largest absolute entry.
      threshold: smaller entries become zero.
      row_norm: largest L2 norm of a row.

    Returns:
      S within the limits; None is no limit.
    """
    if clamp is not None:
        state = jnp.clip(state, -clamp, clamp)
    if threshold is not None:
        state = jnp.where(jnp.abs(state) < threshold, jnp.zeros((), state.dtype), state)
    if row_norm is not None:
        square = jnp.sum(jnp.square(state), axis=-1, keepdims=True)
        # Short rows, zeros among them, are left alone, in value and in gradient.
        long = square > row_norm**2
        state = jnp.where(long, state * (row_norm * jax.lax.rsqrt(jnp.where(long, square, 1))), state)
    return state
