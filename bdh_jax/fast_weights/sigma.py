"""The σ rule of tiny_bdh_xor: one matrix of fast weights between neurons, written after each training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sigma_update(
    sigma: jax.Array,
    post: jax.Array,
    pre: jax.Array,
    *,
    forget: jax.Array | float,
    learning_rate: jax.Array | float,
    clamp: jax.Array | float,
    threshold: jax.Array | float,
) -> jax.Array:
    """One Hebbian update of σ with forgetting, sparsification and a bound on every row (github.com/ZhukMax/tiny_bdh_xor).

    In the published order: σ ← (1 − forget)·σ + learning_rate · mean over the batch of post ⊗ pre; clamp each entry to
    ±``clamp``; zero the entries smaller than ``threshold``; divide each row by max(1, its L2 norm).

    Args:
      sigma: σ [P, Q], row i holds the synapses onto neuron i.
      post: activity [B, P] of the neurons written to.
      pre: activity [B, Q] of the neurons read from.
      forget: in [0, 1], the share of σ that is lost.
      learning_rate: size of a write.
      clamp: largest absolute entry.
      threshold: entries of smaller absolute value become zero.

    Returns:
      The next σ [P, Q], in the dtype of ``sigma``.

    Raises:
      ValueError: for shapes that do not fit each other.
    """
    if post.ndim != 2 or pre.ndim != 2 or post.shape[0] != pre.shape[0] or sigma.shape != (post.shape[1], pre.shape[1]):
        raise ValueError(f"sigma {sigma.shape}, post {post.shape} and pre {pre.shape} must be [P, Q], [B, P] and [B, Q]")
    written = jnp.einsum("bp,bq->pq", post, pre, preferred_element_type=sigma.dtype) * (learning_rate / post.shape[0])
    sigma = jnp.clip((1 - forget) * sigma + written, -clamp, clamp)
    sigma = jnp.where(jnp.abs(sigma) < threshold, jnp.zeros((), sigma.dtype), sigma)
    square = jnp.sum(jnp.square(sigma), axis=1, keepdims=True)
    # Not max(1, √square), whose gradient at an empty row is 0 · ∞.
    return sigma / jnp.sqrt(jnp.maximum(square, 1))
