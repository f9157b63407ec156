"""Write rules, one token at a time: the reference that every faster form is held to.

A rule maps ``(state, query, key, value)`` to ``(read, state)``. It reads before it writes, so what a token writes is
seen from the next token on. The axes before the last are batch axes and broadcast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def hebbian(
    state: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    learning_rate: jax.Array | float,
    decay: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Hebbian write with decay: r = q @ S, then S ← λ S + η k ⊗ x.

    With λ = η = 1 this is linear attention; with the previous token's address as key it is the write-back of
    bdh-fast-weights, made causal.

    Args:
      state: S, [..., K, D].
      query: q, [..., K].
      key: k, [..., K].
      value: x, [..., D].
      learning_rate: η, a scalar or an array over the batch axes [...].
      decay: λ, likewise.

    Returns:
      read [..., D] and the next state [..., K, D], both in the state's dtype.
    """
    learning_rate, decay = (_over_matrix(rate, state.dtype) for rate in (learning_rate, decay))
    read = jnp.einsum("...k,...kd->...d", query.astype(state.dtype), state)
    write = key.astype(state.dtype)[..., :, None] * value.astype(state.dtype)[..., None, :]
    return read, decay * state + learning_rate * write


def _over_matrix(rate: jax.Array | float, dtype: jnp.dtype) -> jax.Array:
    rate = jnp.asarray(rate, dtype)
    return rate[..., None, None] if rate.ndim else rate
