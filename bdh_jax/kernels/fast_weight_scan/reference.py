"""Reference form of the scan: ``jax.lax.scan`` over tokens with the fast weights as its explicit carry."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp


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
    rule: str = "hebbian",
    gate: jax.Array | None = None,
    axis: str | None = None,
    limits: Mapping[str, float | None] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Scan a write rule over time.

    Args:
      query: [B, H, T, N].
      key: [B, H, T, N].
      value: [B, 1, T, D], shared by the heads.
      state: [B, H, N, D].
      learning_rate: scalar or [H].
      decay: scalar or [H].
      valid: [B, T] bool or None. An invalid token neither writes nor decays.
      reset: [B, T] bool or None. The state is zero when that token reads.
      rule: "hebbian", "delta", "gated_delta", "longhorn" or "oja", see :mod:`bdh_jax.fast_weights.rules.tokenwise`.
      gate: β [B, T] of "gated_delta", or None.
      axis: name of the mesh axis that N is split over, inside ``jax.shard_map``.
      limits: arguments of :func:`bdh_jax.fast_weights.rules.tokenwise.bound`, put on the state after each write, or None.

    Returns:
      read [B, H, T, D] and the final state [B, H, N, D].
    """

    from bdh_jax.fast_weights.rules import tokenwise as rules

    # One rate per head, beside the batch axis.
    learning_rate, decay = (jnp.asarray(r)[None] if jnp.ndim(r) else r for r in (learning_rate, decay))

    def step(state, token):
        q, k, v, token_valid, token_reset, token_gate = token
        if token_reset is not None:
            state = jnp.where(token_reset[:, None, None, None], jnp.zeros((), state.dtype), state)
        rates = dict(learning_rate=learning_rate, decay=decay)
        if rule == "hebbian":
            read, written = rules.hebbian(state, q, k, v, **rates)
        elif rule == "oja":
            read, written = rules.oja(state, q, k, v, **rates)
        else:
            if rule == "longhorn":
                token_gate = rules.longhorn_gate(k, learning_rate, axis)
            beta = 1.0 if token_gate is None else token_gate
            read, written = rules.delta(state, q, k, v, **rates, gate=beta, axis=axis)
        if limits is not None:
            written = rules.bound(written, **limits)
        if token_valid is not None:
            written = jnp.where(token_valid[:, None, None, None], written, state)
        return written, read

    # Some inputs are absent: a None is an empty pytree, so it passes through the scan as None.
    tokens = jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), (query, key, value))
    masks = jax.tree.map(lambda a: a.T, (valid, reset, gate))
    if query.shape[-2] == 1:
        state, read = step(state, jax.tree.map(lambda a: a[0], (*tokens, *masks)))
        return read[:, :, None], state
    state, read = jax.lax.scan(step, state, (*tokens, *masks))
    return jnp.moveaxis(read, 0, 2), state
