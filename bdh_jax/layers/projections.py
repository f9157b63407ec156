"""The products between D and K wide arrays: encoders and decoder.

They are plain 2-D ones: for batched products XLA on CPU lays out their gradients badly, which costs more than the products.

Axis letters: B batch, T time, H head, N neurons per head, D model width; K = H·N.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def encode(x: jax.Array, encoder: jax.Array) -> jax.Array:
    """x [B, T, D] times encoder [D, H, N]: [B, H, T, N]."""
    batch, length, width = x.shape
    rows = x.reshape(batch * length, width) @ encoder.reshape(width, -1)
    return rows.reshape(batch, length, *encoder.shape[1:]).swapaxes(1, 2)


def encode_by_head(x: jax.Array, encoder: jax.Array) -> jax.Array:
    """Each head's x [B, H, T, D] times its encoder [H, D, N]: [B, H, T, N]."""
    batch, heads, length, width = x.shape
    rows = jnp.stack([x[:, h].reshape(batch * length, width) @ encoder[h] for h in range(heads)])
    return rows.reshape(heads, batch, length, -1).swapaxes(0, 1)


def decode(rows: jax.Array, decoder: jax.Array, dtype: Any) -> jax.Array:
    """Neurons [B, H, T, N] times decoder [H, N, D], summed over heads: [B, T, D] in ``dtype``."""
    batch, heads, length, neurons = rows.shape
    flat = rows.swapaxes(1, 2).reshape(batch * length, heads * neurons)
    y = jnp.matmul(flat, decoder.reshape(heads * neurons, -1), preferred_element_type=dtype)
    return y.reshape(batch, length, -1)
