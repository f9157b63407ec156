"""Reference form of the token step: every matrix is read whole.

Axis letters: see :mod:`bdh_jax.types`; W slots.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.kernels.token_step.arguments import Recent


def read(query: jax.Array, matrix: jax.Array, sum_heads: bool = False) -> jax.Array:
    """q @ M of each head, or summed over the heads.

    Args:
      query: [B, H, N], of M's dtype or what M is rounded to.
      matrix: M, [B, H, N, D], or [1, H, N, D] for all examples.
      sum_heads: whether to sum.

    Returns:
      [B, H, D] or [B, D] in the wider dtype of both, at least float32.
    """
    dtype = jnp.promote_types(jnp.float32, jnp.promote_types(query.dtype, matrix.dtype))
    matrix, (batch, heads, neurons) = matrix.astype(query.dtype), query.shape
    if matrix.shape[0] < batch or batch == 1:
        if sum_heads:
            flat = query.reshape(batch, heads * neurons), matrix[0].reshape(heads * neurons, -1)
            return jnp.matmul(*flat, preferred_element_type=dtype)
        return jnp.einsum("bhn,hnd->bhd", query, matrix[0], preferred_element_type=dtype)
    return jnp.einsum("bhn,bhnd->b" + "h" * (not sum_heads) + "d", query, matrix, preferred_element_type=dtype)


def project(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """M @ x of each head: x [B, H, D], matrix [H, N, D] → [B, H, N]."""
    return jnp.einsum("bhd,hnd->bhn", x, matrix.astype(x.dtype))


def flushed(matrix: jax.Array, recent: Recent) -> jax.Array:
    """M [B, H, N, D] with all recent writes in it."""
    weighted = recent.weight[..., None] * recent.key.astype(matrix.dtype)
    written = jnp.einsum("bhwn,bwd->bhnd", weighted, recent.value.astype(matrix.dtype))
    return recent.scale[..., None, None] * matrix + written
