"""Rotary positions of the attention: neurons of a head turn in pairs by an angle that grows with the position."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def rope_frequencies(neurons: jax.Array, neurons_per_head: int, theta: float, dtype: Any) -> jax.Array:
    """Turns per token of each neuron: neurons 2j and 2j+1 form a pair that turns by t·θ^(−2j/N) radians, which the published code
    counts in turns.

    Args:
      neurons: indices within a head, [N] or one shard of it.
      neurons_per_head: N over all shards.
      theta: θ.
      dtype: of the result, at least float32.

    Returns:
      [N] or the shard's part of it.
    """
    pair = 2 * (neurons // 2)
    return 1 / (theta ** (pair.astype(dtype) / neurons_per_head)) / (2 * math.pi)


def rope_angles(position: jax.Array, neurons: jax.Array, turns_per_token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the rotary phase of each neuron at each position, with the sign of the pair's first member in sin.

    In float32 the angle of the fastest pair is off by 0.1 at position 10⁶ and means nothing at 10⁷.

    Args:
      position: [B or 1, T] integers.
      neurons: indices within a head, [N] or one shard of it: which member of its pair each is.
      turns_per_token: [N], the frequency of each neuron.

    Returns:
      cos and sin, each [B or 1, 1, T, N].
    """
    dtype = turns_per_token.dtype
    turns = position[:, None, :, None].astype(dtype) * turns_per_token[None, None, None]
    angle = (turns % 1) * (2 * math.pi)
    sign = jnp.where(neurons % 2 == 0, -1, 1).astype(dtype)
    return jnp.cos(angle), sign[None, None, None] * jnp.sin(angle)


def rope(code: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate neighbouring neurons: (c_0, c_1) → (c_0 cos − c_1 sin, c_1 cos + c_0 sin); code [B, H, T, N]."""
    swapped = code.reshape(*code.shape[:-1], -1, 2)[..., ::-1].reshape(code.shape)
    return (code * cos + swapped * sin).astype(code.dtype)
