"""Reference form of the scan: ``jax.lax.scan`` over tokens with the fast weights as its explicit carry."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights import rules


def recurrent(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: jax.Array,
    *,
    learning_rate: jax.Array,
    decay: jax.Array,
    valid: jax.Array | None,
    reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Scan the Hebbian rule over time.

    Args:
      query: [B, H, T, N].
      key: [B, H, T, N].
      value: [B, 1, T, D], shared by the heads.
      state: [B, H, N, D].
      learning_rate: scalar or [H].
      decay: scalar or [H].
      valid: [B, T] bool or None. An invalid token neither writes nor decays.
      reset: [B, T] bool or None. The state is zero when that token reads.

    Returns:
      read [B, H, T, D] and the final state [B, H, N, D].
    """

    # One rate per head, beside the batch axis.
    learning_rate, decay = (jnp.asarray(r)[None] if jnp.ndim(r) else r for r in (learning_rate, decay))

    def step(state, token):
        q, k, v, token_valid, token_reset = token
        if token_reset is not None:
            state = jnp.where(token_reset[:, None, None, None], jnp.zeros((), state.dtype), state)
        read, written = rules.hebbian(state, q, k, v, learning_rate=learning_rate, decay=decay)
        if token_valid is not None:
            written = jnp.where(token_valid[:, None, None, None], written, state)
        return written, read

    # Some inputs are absent: a None is an empty pytree, so it passes through the scan as None.
    tokens = jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), (query, key, value))
    masks = jax.tree.map(lambda a: a.T, (valid, reset))
    if query.shape[-2] == 1:
        state, read = step(state, jax.tree.map(lambda a: a[0], (*tokens, *masks)))
        return read[:, :, None], state
    state, read = jax.lax.scan(step, state, (*tokens, *masks))
    return jnp.moveaxis(read, 0, 2), state
