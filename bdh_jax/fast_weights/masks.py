"""Which tokens of a call count, and where each stands in its episode: what all layers of a call share.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.kernels.fast_weight_scan.stretch import exclusive_count
from bdh_jax.parallel.collectives import WHOLE, ShardAxes, vary_like


class Masks(NamedTuple):
    """What the caller says of the tokens of a call, each [B, T] bool.

    Attributes:
      valid: an invalid token does nothing at all. None: all are valid.
      reset: a new episode starts at that token. None: at none.
      write: a token without it counts and reads, but neither writes nor lets decay: frozen memory. None: all write.
    """

    valid: jax.Array | None = None
    reset: jax.Array | None = None
    write: jax.Array | None = None

    @property
    def writes(self) -> jax.Array | None:
        """Tokens that write, and let what is written decay. None: all."""
        if self.valid is None or self.write is None:
            return self.valid if self.write is None else self.write
        return self.valid & self.write


class Places(NamedTuple):
    """Where the tokens of a call stand in their episodes.

    Attributes:
      position: [B or 1, T] int32, valid tokens before each one since its episode's start.
      end_position: [B] int32, the same after the last token of the call.
      counted: [B, T] float, 1 for tokens that count towards the activity of the last episode.
      continues: [B] bool, whether no episode starts in this call, so that earlier activity still counts; None: nowhere does one.
    """

    position: jax.Array
    end_position: jax.Array
    counted: jax.Array
    continues: jax.Array | None


def places(masks: Masks, start: jax.Array | None, shape: tuple[int, int], dtype: Any, axes: ShardAxes = WHOLE) -> Places:
    """Where each token stands.

    Args:
      masks: of the call; of the part of time at hand, where time is split.
      start: [B] int32, the position that the call goes on from; None for zeros.
      shape: (B, T) of what is at hand.
      dtype: of ``counted``.
      axes: of the mesh.
    """
    if not axes.sequence:
        return _places(masks, start, shape, dtype)
    alone = _places(masks, None, shape, dtype)
    resets = jnp.zeros((shape[0],), bool) if masks.reset is None else jnp.any(masks.reset, axis=1)
    part = (resets, vary_like(alone.end_position, resets))
    before_all = jnp.zeros((shape[0],), jnp.int32) if start is None else start

    def later(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return first[0] | second[0], jnp.where(second[0], second[1], first[1] + second[1])

    anew, tokens = axes.before(part, later, (jnp.zeros_like(resets), jnp.zeros_like(alone.end_position)))
    found = _places(masks, jnp.where(anew, tokens, before_all + tokens), shape, dtype)
    found = found._replace(end_position=axes.from_last(found.end_position))
    if masks.reset is None:
        return found
    # What counts is of the last episode of all parts, and earlier activity counts on if none of them began one.
    number = axes.sum_over_time(resets.astype(jnp.int32))
    up_to_here = axes.before(resets.astype(jnp.int32), jnp.add, jnp.zeros(shape[0], jnp.int32)) + resets
    counted = jnp.where((up_to_here == number)[:, None], found.counted, jnp.zeros((), dtype))
    return found._replace(counted=counted, continues=number == 0)


def _places(masks: Masks, start: jax.Array | None, shape: tuple[int, int], dtype: Any) -> Places:
    batch, length = shape
    valid, reset = masks.valid, masks.reset
    before = jnp.arange(length, dtype=jnp.int32)[None] if valid is None else exclusive_count(valid)
    total = before[:, -1] + (1 if valid is None else valid[:, -1].astype(jnp.int32))
    first = jnp.zeros((batch,), jnp.int32) if start is None else start
    counted = jnp.ones((batch, length), bool) if valid is None else valid
    continues = None
    if reset is None:
        position = before if start is None else before + first[:, None]
        end = first + total
    else:
        episode = jnp.cumsum(reset, axis=1)
        # `before` never falls, so the running maximum over resets is its value at the last one.
        base = jax.lax.cummax(jnp.where(reset, before, 0), axis=1)
        position = before - base + jnp.where(episode == 0, first[:, None], 0)
        end = total - base[:, -1] + jnp.where(episode[:, -1] == 0, first, 0)
        counted = counted & (episode == episode[:, -1:])
        continues = episode[:, -1] == 0
    return Places(position, end, counted.astype(dtype), continues)


def keep(array: jax.Array, where: jax.Array | None) -> jax.Array:
    """``array`` [B, ...] where ``where`` [B] holds, zero elsewhere; None holds everywhere."""
    if where is None:
        return array
    return jnp.where(where.reshape(-1, *[1] * (array.ndim - 1)), array, jnp.zeros((), array.dtype))
