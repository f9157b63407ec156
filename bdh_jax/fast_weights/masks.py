"""What all layers of one call share: where each token stands in its episode, and which tokens count.

Axis letters: B batch, T time, N neurons per head, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.state import FastState
from bdh_jax.kernels.fast_weight_scan.xla import exclusive_count
from bdh_jax.layers.rotary import rope_angles
from bdh_jax.models.config import BDHConfig


class Episode(NamedTuple):
    """What all layers of one call share."""

    cos: jax.Array | None  # [B or 1, 1, T, N]
    sin: jax.Array | None
    end_position: jax.Array  # [B]
    counted: jax.Array | None  # [B, T] float: tokens that count towards the activity of the last episode
    continues: jax.Array | None  # [B] bool: no reset in this call, so earlier activity still counts
    valid: jax.Array | None
    reset: jax.Array | None


def episode_of(
    config: BDHConfig,
    fast: FastState | None,
    valid: jax.Array | None,
    reset: jax.Array | None,
    shape: tuple[int, ...],
    neurons: jax.Array,
) -> Episode:
    """Positions, rotary phases and masks of one call.

    Args:
      config: the model's configuration.
      fast: the state that the call continues, or None.
      valid: [B, T] bool or None.
      reset: [B, T] bool or None.
      shape: (B, T, D).
      neurons: indices of the neurons at hand within their head.
    """
    batch, length, _ = shape
    before = jnp.arange(length, dtype=jnp.int32)[None] if valid is None else exclusive_count(valid)
    total = before[:, -1] + (1 if valid is None else valid[:, -1].astype(jnp.int32))
    start = jnp.zeros((batch,), jnp.int32) if fast is None else fast.position
    counted = jnp.ones((batch, length), bool) if valid is None else valid
    continues = None
    if reset is None:
        position = before if fast is None else before + start[:, None]
        end = start + total
    else:
        episode = jnp.cumsum(reset, axis=1)
        # `before` never falls, so the running maximum over resets is its value at the last one.
        base = jax.lax.cummax(jnp.where(reset, before, 0), axis=1)
        position = before - base + jnp.where(episode == 0, start[:, None], 0)
        end = total - base[:, -1] + jnp.where(episode[:, -1] == 0, start, 0)
        counted = counted & (episode == episode[:, -1:])
        continues = episode[:, -1] == 0
    cos = sin = None
    if config.attention == "rope":
        arguments = (neurons, config.neurons_per_head, config.rope_theta, config.state_dtype)
        if fast is None and position.shape[0] > 1:
            # Positions lie in [0, T): one table of T angles, looked up, instead of B·T angles.
            tables = rope_angles(jnp.arange(length)[None], *arguments)
            cos, sin = (table[0, 0][position][:, None] for table in tables)
        else:
            cos, sin = rope_angles(position, *arguments)
    return Episode(cos, sin, end, counted.astype(config.state_dtype), continues, valid, reset)


def keep(array: jax.Array, where: jax.Array | None) -> jax.Array:
    """``array`` [B, ...] where ``where`` [B] holds, zero elsewhere."""
    if where is None:
        return array
    return jnp.where(where.reshape(-1, *[1] * (array.ndim - 1)), array, jnp.zeros((), array.dtype))
