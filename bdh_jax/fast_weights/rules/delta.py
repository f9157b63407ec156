"""The delta rule: S ← S' + η k ⊗ (x − S'ᵀ k) with S' = λ S. It writes what S does not predict yet."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.rules.base import Context, Rule, over_matrix
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Rate, Stretch, Token
from bdh_jax.kernels.fast_weight_scan.reference import once_read, outer, read
from bdh_jax.kernels.fast_weight_scan.stretch import Coefficients
from bdh_jax.kernels.linear_algebra import solve_unit_lower
from bdh_jax.parallel.collectives import WHOLE, ShardAxes


def delta(
    state: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    learning_rate: Rate,
    decay: Rate,
    gate: jax.Array | float = 1.0,
    axes: ShardAxes = WHOLE,
) -> tuple[jax.Array, jax.Array]:
    """Delta rule: r = q @ S, then S ← S' + η β k ⊗ (x − Σ_heads S'ᵀ k) with S' = λ S.

    With ‖k‖ = 1, η = λ = β = 1, a pair just written is read back exactly. Stable for η β ‖k‖² < 2.

    Args:
      state: S, [..., H, N, D].
      query: q, [..., H, N].
      key: k, [..., H, N].
      value: x, [..., 1, D].
      learning_rate: η, a scalar, [H], or anything that fits [..., H, N].
      decay: λ, likewise.
      gate: β in [0, 1], a scalar or [...]: one for each token.
      axes: mesh axes that the rows are split over, inside ``jax.shard_map``.

    Returns:
      read [..., H, D] and the next state [..., H, N, D].
    """
    found = read(query, state)
    kept = over_matrix(decay, state.dtype) * once_read(state, found)
    predicted = axes.sum_over_rows(jnp.sum(read(key, kept), axis=-2, keepdims=True))
    gate = jnp.asarray(gate, state.dtype)
    error = (gate[..., None, None] if gate.ndim else gate) * (value.astype(state.dtype) - predicted)
    return found, kept + over_matrix(learning_rate, state.dtype) * outer(key, error, state.dtype)


def correct(
    stretch: Stretch,
    state: jax.Array | None,
    found: Coefficients,
    dynamics: Dynamics,
    context: Context,
    gate: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A stretch's keys and values as the delta rule writes them (arXiv 2406.06484).

    It writes k_t ⊗ u_t, where u_t is what is left of x_t once the prediction from S is taken off. That prediction is a read, so it is a
    sum over earlier writes of the same stretch, and all u of the stretch solve one unit lower triangular system of T × T. No array
    [T, N, D] is formed.

    Args:
      stretch: the tokens, query and key [B, H, T, N], value [B, 1, T, D].
      state: S at the start of the stretch, [B, H, D, N], or None for zeros.
      found: the stretch's coefficients, with axes [B or 1, H or 1, ...].
      dynamics: η and λ.
      context: of the rule.
      gate: β [B, T]; None takes that of the stretch, or 1.

    Returns:
      key [B, H, T, N] with η in it and value [B, 1, T, D], float32 or wider.
    """
    dtype = jnp.promote_types(jnp.float32, stretch.key.dtype)
    # The products below feed a recursion, so they are not rounded to a narrow compute type.
    key, value = stretch.key.astype(dtype), stretch.value.astype(dtype)
    rate, decay = (over_stretch(r, dtype) for r in dynamics)
    # A prediction is made from S after it decayed, a read from S before: one power of λ more.
    between, since_start = decay * found.scores, decay * found.initial[..., None]
    gate = stretch.write_gate if gate is None else gate
    beta = 1.0 if gate is None else gate.astype(dtype)[:, None, :, None]
    wanted = value
    if state is not None:
        predicted = since_start * jnp.einsum("bhtn,bhdn->bhtd", key, state)
        wanted = wanted - context.axes.sum_over_rows(jnp.sum(predicted, axis=1, keepdims=True))
    overlap = jnp.sum(between * jnp.einsum("bhtn,bhsn->bhts", key, rate * key), axis=1, keepdims=True)
    return rate * key, solve_unit_lower(beta * context.axes.sum_over_rows(overlap), beta * wanted)


def over_stretch(rate: Rate, dtype: jnp.dtype) -> jax.Array:
    """A rate as a factor of [B, H, T, ...]: a scalar or [H] as [1, H or 1, 1, 1], or what has four axes already."""
    rate = jnp.asarray(rate, dtype)
    return rate if rate.ndim == 4 else rate.reshape(1, -1, 1, 1)


def _write(state: jax.Array, token: Token, dynamics: Dynamics, context: Context) -> tuple[jax.Array, jax.Array]:
    gate = 1.0 if token.write_gate is None else token.write_gate
    rates = {"learning_rate": dynamics.learning_rate, "decay": dynamics.decay}
    return delta(state, token.query, token.key, token.value, **rates, gate=gate, axes=context.axes)


RULE = Rule(_write, correct=correct, predicts_values=True)
