"""Addresses of the fast weights: how a code becomes one, and which token's address a write goes to.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.parallel.collectives import ShardAxes

ADDRESS_NORM_EPSILON = 1e-12


def address_code(code: jax.Array, norm: str, active: int, axes: ShardAxes) -> jax.Array:
    """The code [B, H, T, N] that ``address_scale`` is to be of: without its losers for "kwta", without its mean for "centred".

    Over all K = H·N neurons, on every shard of ``axes``. Codes equal to the last winner win too.
    """
    if norm not in ("kwta", "centred"):
        return code
    rows = jnp.swapaxes(code, 1, 2).reshape(code.shape[0], code.shape[2], -1)  # [B, T, K]
    if norm == "centred":
        total = axes.sum_over_rows(jnp.sum(rows, axis=-1, dtype=jnp.promote_types(jnp.float32, code.dtype)))
        return code - (total / (rows.shape[-1] * axes.shards())).astype(code.dtype)[:, None, :, None]
    largest = jax.lax.top_k(jax.lax.stop_gradient(rows), min(active, rows.shape[-1]))[0]
    if axes.rows:
        # As many from each shard as may win, and then the winners among those.
        largest = axes.gather_rows(largest, 2)
        largest = jax.lax.top_k(largest, min(active, largest.shape[-1]))[0]
    return jnp.where(code >= largest[:, None, :, -1:], code, jnp.zeros((), code.dtype))


def address_scale(code: jax.Array, norm: str, axes: ShardAxes) -> jax.Array:
    """What a code [B, H, T, N] is multiplied by to become an address: [B, 1, T, 1], float32 or wider.

    "none" leaves the code as it is, "sum" limits its sum to 1, the others keep its direction and make its length 1. Norms are over
    all K = H·N neurons, on every shard of ``axes``.
    """
    wide = code.astype(jnp.promote_types(jnp.float32, code.dtype))
    if norm == "none":
        return jnp.ones_like(wide[:, :1, :, :1])
    rows = jnp.swapaxes(wide, 1, 2).reshape(code.shape[0], code.shape[2], -1)  # [B, T, K]
    total = jnp.sum(rows if norm == "sum" else jnp.square(rows), axis=-1)
    total = axes.sum_over_rows(total)[:, None, :, None]
    return 1 / jnp.maximum(total, 1) if norm == "sum" else jax.lax.rsqrt(total + ADDRESS_NORM_EPSILON)


def shift_to_previous(
    current: jax.Array, carried: jax.Array | None, valid: jax.Array | None, reset: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """What each token sees as the value of the last valid token before it in its episode; zero at an episode's start.

    Args:
      current: [B, H, T, N], the value at each token.
      carried: [B, H, N], the value before the first token; None for zeros.
      valid: [B, T] bool or None.
      reset: [B, T] bool or None.

    Returns:
      previous [B, H, T, N], and the value to carry on [B, H, N].
    """
    batch, _, length, _ = current.shape
    first = jnp.zeros_like(current[:, :, 0]) if carried is None else carried.astype(current.dtype)
    if valid is None and reset is None:
        return jnp.concatenate([first[:, :, None], current[:, :, :-1]], axis=2), current[:, :, -1]
    extended = jnp.concatenate([first[:, :, None], current], axis=2)  # entry t is the value of token t − 1
    time = jnp.arange(1, length + 1)[None]
    # source [B, T + 1]: where in `extended` the last valid token strictly before each token lies; 0 is the carried value.
    stored = jnp.broadcast_to(time, (batch, length)) if valid is None else jnp.where(valid, time, 0)
    source = jnp.pad(jax.lax.cummax(stored, axis=1), ((0, 0), (1, 0)))
    previous = jnp.take_along_axis(extended, source[:, None, :, None], axis=2)
    if reset is not None:
        # Token t (1-based) that resets may only see tokens ≥ t; the end of the sequence inherits the last episode's start.
        start = jax.lax.cummax(jnp.where(reset, time, 0), axis=1)
        start = jnp.concatenate([start, start[:, -1:]], axis=1)
        inside = source >= start
        previous = jnp.where(inside[:, None, :, None], previous, jnp.zeros((), previous.dtype))
    return previous[:, :, :-1], previous[:, :, -1]
