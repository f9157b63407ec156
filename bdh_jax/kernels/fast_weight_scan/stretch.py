"""How much every token of a stretch counts, from λ and the masks: the coefficients of the matrix forms. **The causal mask is here.**

Axis letters: see :mod:`bdh_jax.types`; "..." is [B or 1, H or 1], absent where nothing depends on it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Coefficients(NamedTuple):
    """How much every token of a stretch counts.

    Attributes:
      scores: [..., T, T], of the write at s (last axis) in the read at t.
      initial: [..., T], of the stretch's first state in the read at t.
      written: [..., T], of the write at s in the last state.
      kept: [...], of the first state in the last one.
    """

    scores: jax.Array
    initial: jax.Array
    written: jax.Array
    kept: jax.Array


def coefficients(
    length: int, dtype: Any, log_decay: jax.Array | None, valid: jax.Array | None, reset: jax.Array | None
) -> Coefficients:
    """Coefficients of a stretch of T tokens.

    Args:
      length: T.
      dtype: of the coefficients.
      log_decay: ln λ: a scalar, [H], or [B or 1, H or 1, T] for each token; None for λ = 1.
      valid: [T] or [B, T] bool, or None.
      reset: [T] or [B, T] bool, or None.
    """
    if log_decay is not None and log_decay.ndim == 3:
        return _of_tokens(length, dtype, log_decay, valid, reset)
    if any(mask is not None and mask.ndim == 2 for mask in (valid, reset)):
        of_example = jax.vmap(lambda *masks: coefficients(length, dtype, log_decay, *masks))(valid, reset)
        if log_decay is None or log_decay.ndim == 0:
            of_example = jax.tree.map(lambda a: a[:, None], of_example)
        return of_example
    if log_decay is not None and log_decay.ndim == 1:
        return jax.vmap(lambda rate: coefficients(length, dtype, rate, valid, reset))(log_decay)

    time = jnp.arange(length, dtype=jnp.int32)
    valid = jnp.ones((length,), bool) if valid is None else valid
    episode = jnp.zeros((length,), jnp.int32) if reset is None else jnp.cumsum(reset, dtype=jnp.int32)
    before = exclusive_count(valid)
    total = before[-1] + valid[-1].astype(jnp.int32)

    def power(steps: jax.Array, where: jax.Array) -> jax.Array:
        """λ^steps where ``where`` holds, zero elsewhere."""
        if log_decay is None:
            return where.astype(dtype)
        # Masked steps may be negative, and their powers too large to be multiplied by a zero gradient.
        return jnp.where(where, jnp.exp(jnp.where(where, steps, 0).astype(dtype) * log_decay), jnp.zeros((), dtype))

    causal = (time[:, None] > time[None, :]) & (episode[:, None] == episode[None, :]) & valid[None, :]
    return Coefficients(
        scores=power(before[:, None] - before[None, :] - 1, causal),
        initial=power(before, episode == 0),
        written=power(total - before - 1, valid & (episode == episode[-1])),
        kept=power(total, episode[-1] == 0),
    )


def _of_tokens(
    length: int, dtype: Any, log_decay: jax.Array, valid: jax.Array | None, reset: jax.Array | None
) -> Coefficients:
    """As :func:`coefficients`, with a λ of its own for every token: powers become products, sums of logarithms."""

    def of_row(log_decay: jax.Array, valid: jax.Array | None, reset: jax.Array | None) -> Coefficients:
        time = jnp.arange(length, dtype=jnp.int32)
        valid = jnp.ones((length,), bool) if valid is None else valid
        episode = jnp.zeros((length,), jnp.int32) if reset is None else jnp.cumsum(reset, dtype=jnp.int32)
        after = jnp.cumsum(jnp.where(valid, log_decay, 0))
        before = after - jnp.where(valid, log_decay, 0)

        def product(logs: jax.Array, where: jax.Array) -> jax.Array:
            return jnp.where(where, jnp.exp(jnp.where(where, logs, 0)), jnp.zeros((), dtype)).astype(dtype)

        causal = (time[:, None] > time[None, :]) & (episode[:, None] == episode[None, :]) & valid[None, :]
        return Coefficients(
            scores=product(before[:, None] - after[None, :], causal),
            initial=product(before, episode == 0),
            written=product(after[-1] - after, valid & (episode == episode[-1])),
            kept=product(after[-1], episode[-1] == 0),
        )

    rows = max([log_decay.shape[0], *(mask.shape[0] for mask in (valid, reset) if mask is not None and mask.ndim == 2)])
    log_decay = jnp.broadcast_to(log_decay, (rows, *log_decay.shape[1:]))
    in_axes = [None if mask is None or mask.ndim == 1 else 0 for mask in (valid, reset)]
    over_heads = jax.vmap(of_row, (0, None, None))
    return jax.vmap(over_heads, (0, *in_axes))(log_decay, valid, reset)


def coefficients_like(
    rows: jax.Array, log_decay: jax.Array | None, valid: jax.Array | None, reset: jax.Array | None
) -> Coefficients:
    """:func:`coefficients` for rows [..., T, N], with as many leading axes as they have."""
    found = coefficients(rows.shape[-2], jnp.promote_types(jnp.float32, rows.dtype), log_decay, valid, reset)
    missing = (1,) * (rows.ndim - 2 - found.kept.ndim)
    return jax.tree.map(lambda a: a.reshape(missing + a.shape), found)


def exclusive_count(valid: jax.Array) -> jax.Array:
    """Number of valid tokens before each token, [..., T] int32, from ``valid`` [..., T] bool."""
    return jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - valid.astype(jnp.int32)


def safe_log(decay: jax.Array) -> jax.Array:
    """ln λ, finite also for a learned λ that underflows to zero: zero to the power of zero steps is still one."""
    return jnp.log(jnp.maximum(decay, jnp.finfo(decay.dtype).tiny))
