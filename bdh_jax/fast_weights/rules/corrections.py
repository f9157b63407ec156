"""Matrix-product forms of the error-correcting rules: over a stretch of tokens they are the Hebbian rule with other writes.

Each of them writes k_t ⊗ u_t (delta, gated delta, Longhorn) or u_t ⊗ x_t (Oja), where u_t is what is left of x_t or k_t once the
prediction from S is taken off. That prediction is a read, so it is a sum over earlier writes of the same stretch, and all u of the
stretch solve one unit lower triangular system of T × T (arXiv 2406.06484 for the delta rule). No array [T, N, D] is formed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.rules.tokenwise import longhorn_gate
from bdh_jax.kernels.linear_algebra import solve_unit_lower
from bdh_jax.parallel.axes import sum_over_shards


def correct(
    rule: str,
    key: jax.Array,
    value: jax.Array,
    state: jax.Array | None,
    gate: jax.Array | None,
    weight: Any,
    *,
    learning_rate: jax.Array | float,
    decay: jax.Array | float,
    axis: str | None,
) -> tuple[jax.Array, jax.Array]:
    """The keys and values whose Hebbian write with η = 1 is this stretch's write under ``rule``.

    Args:
      rule: "delta", "gated_delta", "longhorn" or "oja".
      key: [B, H, T, N].
      value: [B, 1, T, D].
      state: S at the start of the stretch, [B, H, D, N], or None for zeros.
      gate: β [B, T], or None for 1.
      weight: :class:`bdh_jax.kernels.fast_weight_scan.xla.Weights` of the stretch, with axes [B or 1, H or 1, ...].
      learning_rate: η, a scalar or [H].
      decay: λ, likewise.
      axis: name of the mesh axis that N is split over, inside ``jax.shard_map``.

    Returns:
      key [B, H, T, N] with η in it and value [B, 1, T, D], float32 or wider.
    """
    dtype = jnp.promote_types(jnp.float32, key.dtype)
    # The products below feed a recursion, so they are not rounded to a narrow compute type.
    key, value = key.astype(dtype), value.astype(dtype)
    rate, decay = (jnp.asarray(r, dtype).reshape(1, -1, 1, 1) for r in (learning_rate, decay))
    # A prediction is made from S after it decayed, a read from S before: one power of λ more.
    between, since_start = decay * weight.scores, decay * weight.initial[..., None]
    if rule == "oja":
        unit = value / value.shape[-1]
        wanted = key
        if state is not None:
            wanted = wanted - since_start * jnp.einsum("bhdn,btd->bhtn", state, unit[:, 0])
        overlap = between * jnp.einsum("bhtd,bhsd->bhts", unit, value)
        return solve_unit_lower(rate * overlap, rate * wanted), value

    beta = 1.0 if gate is None else gate.astype(dtype)[:, None, :, None]
    if rule == "longhorn":
        beta = longhorn_gate(jnp.swapaxes(key, 1, 2), rate[:, None, :, 0, 0], axis)[:, None, :, None]
    wanted = value
    if state is not None:
        predicted = since_start * jnp.einsum("bhtn,bhdn->bhtd", key, state)
        wanted = wanted - sum_over_shards(jnp.sum(predicted, axis=1, keepdims=True), axis)
    overlap = jnp.sum(between * rate * jnp.einsum("bhtn,bhsn->bhts", key, key), axis=1, keepdims=True)
    return rate * key, solve_unit_lower(beta * sum_over_shards(overlap, axis), beta * wanted)
