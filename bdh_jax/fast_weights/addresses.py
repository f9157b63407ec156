"""Addresses of the fast weights: how a code becomes one, and which token's address a write goes to.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.layers.largest import kth_largest
from bdh_jax.parallel.collectives import ShardAxes, vary_like

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
    last_winner = kth_largest(rows, min(active, rows.shape[-1] * axes.shards()), axes.sum_over_rows)
    return jnp.where(code >= last_winner[:, None, :, None], code, jnp.zeros((), code.dtype))


def address_scale(code: jax.Array, norm: str, axes: ShardAxes, squares: jax.Array | None = None) -> jax.Array:
    """What a code [B, H, T, N] is multiplied by to become an address: [B, 1, T, 1], float32 or wider.

    "none" leaves the code as it is, "sum" limits its sum to 1, the others keep its direction and make its length 1. Norms are over
    all K = H·N neurons, on every shard of ``axes``.

    Args:
      code: [B, H, T, N].
      norm: of the configuration.
      axes: of the mesh.
      squares: the sum of its squares, [B, H, T] or [B, 1, T], where it is known.
    """
    wide = code.astype(jnp.promote_types(jnp.float32, code.dtype))
    if norm == "none":
        return jnp.ones_like(wide[:, :1, :, :1])
    if norm != "sum" and squares is not None:
        total = jnp.sum(squares, axis=1)
    else:
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
    first = jnp.zeros_like(current[:, :, 0]) if carried is None else carried.astype(current.dtype)
    if valid is None and reset is None:
        return jnp.concatenate([first[:, :, None], current[:, :, :-1]], axis=2), current[:, :, -1]
    extended = jnp.concatenate([first[:, :, None], current], axis=2)  # entry t is the value of token t − 1
    source, inside = _previous(valid, reset, current.shape[0], current.shape[2])
    previous = jnp.take_along_axis(extended, source[:, None, :, None], axis=2)
    if inside is not None:
        previous = jnp.where(inside[:, None, :, None], previous, jnp.zeros((), previous.dtype))
    return previous[:, :, :-1], previous[:, :, -1]


def carried_over(
    current: jax.Array, carried: jax.Array | None, valid: jax.Array | None, reset: jax.Array | None, axes: ShardAxes
) -> jax.Array | None:
    """What :func:`shift_to_previous` is to take for the value before the first token at hand: where time is split, that of the last
    valid token of earlier parts, if it is of the same episode.

    Args:
      current, valid, reset: as of :func:`shift_to_previous`, of the part of time at hand.
      carried: the value before the first token of all parts; None for zeros.
      axes: of the mesh.
    """
    if not axes.sequence:
        return carried
    start = jnp.zeros_like(current[:, :, 0]) if carried is None else vary_like(carried.astype(current.dtype), current)
    _, last = shift_to_previous(current, None, valid, reset)

    def later(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return first[0] | second[0], jnp.where(second[0][:, None, None], second[1], first[1])

    if valid is None:  # every part has a valid token then, and the next part needs no other
        return axes.before(last, lambda first, second: second, start)
    # A part without a valid token and without a reset hands on what it was handed.
    ended = jnp.any(valid if reset is None else valid | reset, axis=1)
    known, value = axes.before((ended, last), later, (jnp.zeros_like(ended), jnp.zeros_like(last)))
    return jnp.where(known[:, None, None], value, start)


def scores_of_previous(
    scores: jax.Array,
    query: jax.Array,
    carried: jax.Array | None,
    valid: jax.Array | None,
    reset: jax.Array | None,
) -> jax.Array:
    """q_t · k_s where k is what :func:`shift_to_previous` makes of the values v, from q_t · v_s: no array of neurons is copied.

    Args:
      scores: q_t · v_s, [B, H, T, T].
      query: q, [B, H, T, N].
      carried: [B, H, N], the value before the first token; None for zeros.
      valid: [B, T] bool or None.
      reset: [B, T] bool or None.

    Returns:
      [B, H, T, T].
    """
    if carried is None:
        first = jnp.zeros_like(scores[..., :1])
    else:
        first = jnp.einsum("bhtn,bhn->bht", query, carried.astype(query.dtype), preferred_element_type=scores.dtype)[
            ..., None
        ]
    if valid is None and reset is None:
        return jnp.concatenate([first, scores[..., :-1]], axis=-1)
    extended = jnp.concatenate([first, scores], axis=-1)
    source, inside = _previous(valid, reset, scores.shape[0], scores.shape[2])
    previous = jnp.take_along_axis(extended, source[:, None, None, :-1], axis=-1)
    return previous if inside is None else jnp.where(inside[:, None, None, :-1], previous, jnp.zeros((), previous.dtype))


def _previous(
    valid: jax.Array | None, reset: jax.Array | None, batch: int, length: int
) -> tuple[jax.Array, jax.Array | None]:
    """Where the last valid token strictly before each token lies, and before the one after the last.

    Returns:
      [B, T + 1] in 0 … T: 1 is the first token, 0 what is carried; and bool [B, T + 1], whether it is of the same episode, or None for
      everywhere.
    """
    time = jnp.arange(1, length + 1)[None]
    stored = jnp.broadcast_to(time, (batch, length)) if valid is None else jnp.where(valid, time, 0)
    source = jnp.pad(jax.lax.cummax(stored, axis=1), ((0, 0), (1, 0)))
    if reset is None:
        return source, None
    # Token t (1-based) that resets may only see tokens ≥ t; the end of the sequence inherits the last episode's start.
    start = jax.lax.cummax(jnp.where(reset, time, 0), axis=1)
    start = jnp.concatenate([start, start[:, -1:]], axis=1)
    return source, source >= start
