"""The last written rows of an episode, and the causal convolution over time that looks at them.

Axis letters: see :mod:`bdh_jax.types`; W is how many rows are kept, C how many channels a row has.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Written(NamedTuple):
    """Rows in the order in which they were written, those from before the call first.

    Attributes:
      rows: [B, W + T, C]; token t's own row would follow those before index ``end[b, t]``. Behind the last there are zeros.
      end: [B or 1, T] int32, how many rows stand before token t.
      first: [B, T] int32, the first row of token t's episode; None where no episode starts in the call.
      last: what the next call goes on with, [B, W, C]: zeros where an episode has not written as many.
    """

    rows: jax.Array
    end: jax.Array
    first: jax.Array | None
    last: jax.Array


def in_order(rows: jax.Array, before: jax.Array, writes: jax.Array | None, reset: jax.Array | None) -> Written:
    """The rows of a call behind those that earlier calls kept.

    Args:
      rows: [B, T, C].
      before: [B, W, C], the last rows that were written, the newest at the end, W ≥ 1; zeros where there are none.
      writes: [B, T] bool, tokens whose row is kept. None: all.
      reset: [B, T] bool, tokens where an episode starts. None: nowhere.

    Raises:
      AssertionError: if ``before`` has other examples or channels than ``rows``, or no rows.
    """
    (batch, length, channels), kept = rows.shape, before.shape[1]
    chex.assert_shape(before, (batch, None, channels))
    chex.assert_axis_dimension_gt(before, 1, 0)
    if writes is None:
        found = jnp.concatenate([before, rows], axis=1)
        end = kept + jnp.arange(length, dtype=jnp.int32)[None]
        total = jnp.full((batch,), kept + length, jnp.int32)
    else:
        count = jnp.cumsum(writes, axis=1, dtype=jnp.int32)
        end, total = kept + count - writes, kept + count[:, -1]
        found = jnp.pad(before, ((0, 0), (0, length), (0, 0)))
        place = jnp.where(writes, end, kept + length)
        found = found.at[jnp.arange(batch)[:, None], place].set(rows.astype(found.dtype), mode="drop")
    first = None
    if reset is not None:
        # ``end`` never falls, so the running maximum over resets is its value at the last one.
        first = jax.lax.cummax(jnp.where(reset, jnp.broadcast_to(end, reset.shape), 0), axis=1)
    if writes is None and reset is None:
        return Written(found, end, first, found[:, -kept:])
    index = total[:, None] - kept + jnp.arange(kept)[None]
    last = jnp.take_along_axis(found, index[..., None], axis=1)
    if first is not None:
        last = jnp.where((index >= first[:, -1:])[..., None], last, jnp.zeros((), last.dtype))
    return Written(found, end, first, last)


def short_convolution(
    rows: jax.Array,
    kernel: jax.Array,
    before: jax.Array | None,
    writes: jax.Array | None = None,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Each channel's weighted sum over its own row and the W rows written before it in the episode.

    What is not written is in no other token's sum; before the first row of an episode there are zeros.

    Args:
      rows: [B, T, C].
      kernel: [W + 1, C], the weight of the token's own row last.
      before: [B, W, C], what the last call returned; None at the start of an episode.
      writes: [B, T] bool. None: all tokens write.
      reset: [B, T] bool. None: no episode starts.

    Returns:
      the sums [B, T, C], and the rows to go on with, [B, W, C], or None of a kernel that looks at no other row (W = 0).

    Raises:
      AssertionError: if the kernel has other channels than ``rows``, or ``before`` is not of its W rows.
    """
    chex.assert_shape(kernel, (None, rows.shape[2]))
    kept = kernel.shape[0] - 1
    total = rows * kernel[-1][None, None]
    if not kept:
        return total, None
    if before is None:
        before = jnp.zeros((rows.shape[0], kept, rows.shape[2]), rows.dtype)
    chex.assert_axis_dimension(before, 1, kept)
    found = in_order(rows, before.astype(rows.dtype), writes, reset)
    length = rows.shape[1]
    for back in range(1, kept + 1):
        if writes is None and reset is None:
            earlier = found.rows[:, kept - back : kept - back + length]
        else:
            index = jnp.broadcast_to(found.end - back, rows.shape[:2])
            earlier = jnp.take_along_axis(found.rows, index[..., None], axis=1)
            if found.first is not None:
                earlier = jnp.where((index >= found.first)[..., None], earlier, jnp.zeros((), rows.dtype))
        total = total + earlier * kernel[kept - back][None, None]
    return total, found.last
