"""Oja's rule, linear: S ← S' + η (k − S' x ÷ D) ⊗ x with S' = λ S (Oja 1982). The address is predicted from the value."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.rules.base import Context, Rule, over_matrix
from bdh_jax.fast_weights.rules.delta import over_stretch
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Rate, Stretch, Token
from bdh_jax.kernels.fast_weight_scan.reference import once_read, outer, read
from bdh_jax.kernels.fast_weight_scan.stretch import Coefficients
from bdh_jax.kernels.linear_algebra import solve_unit_lower


def oja(
    state: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, *, learning_rate: Rate, decay: Rate
) -> tuple[jax.Array, jax.Array]:
    """Oja's rule: r = q @ S, then S ← S' + η (k − S' x ÷ D) ⊗ x with S' = λ S.

    The mirror of the delta rule: what is predicted, and replaced, is the address that a value was written under. Values leave a
    layer norm, so ‖x‖² = D and the division makes them unit vectors.

    Args:
      state: S, [..., H, N, D].
      query: q, [..., H, N].
      key: k, [..., H, N].
      value: x, [..., 1, D].
      learning_rate: η, a scalar, [H], or anything that fits [..., H, N].
      decay: λ, likewise.

    Returns:
      read [..., H, D] and the next state [..., H, N, D].
    """
    found = read(query, state)
    kept = over_matrix(decay, state.dtype) * once_read(state, found)
    predicted = jnp.einsum("...hnd,...hd->...hn", kept, value.astype(state.dtype) / value.shape[-1])
    error = key.astype(state.dtype) - predicted
    return found, kept + over_matrix(learning_rate, state.dtype) * outer(error, value, state.dtype)


def _write(state: jax.Array, token: Token, dynamics: Dynamics, context: Context) -> tuple[jax.Array, jax.Array]:
    del context
    rates = {"learning_rate": dynamics.learning_rate, "decay": dynamics.decay}
    return oja(state, token.query, token.key, token.value, **rates)


def _correct(
    stretch: Stretch, state: jax.Array | None, found: Coefficients, dynamics: Dynamics, context: Context
) -> tuple[jax.Array, jax.Array]:
    """Writes u_t ⊗ x_t, where u_t is what is left of k_t; see :func:`bdh_jax.fast_weights.rules.delta.correct`."""
    del context
    dtype = jnp.promote_types(jnp.float32, stretch.key.dtype)
    key, value = stretch.key.astype(dtype), stretch.value.astype(dtype)
    rate, decay = (over_stretch(r, dtype) for r in dynamics)
    between, since_start = decay * found.scores, decay * found.initial[..., None]
    unit = value / value.shape[-1]
    wanted = key
    if state is not None:
        wanted = wanted - since_start * jnp.einsum("bhdn,btd->bhtn", state, unit[:, 0])
    overlap = between * jnp.einsum("bhtd,bhsd->bhts", unit, value)
    return solve_unit_lower(rate * overlap, rate * wanted), value


RULE = Rule(_write, correct=_correct)
