"""Write rules, one token at a time: the reference that every faster form is held to.

A rule maps ``(state, query, key, value)`` to ``(read, state)``. It reads before it writes, so what a token writes is
seen from the next token on. Of one example the state is S [H, N, D], query and key are [H, N], the value is [1, D] and belongs to
all heads: they are parts of one address of K = H·N rows. Leading axes are batch axes and broadcast; η and λ are scalars or [H].

| rule | write, with S' = λ S | |
|---|---|---|
| hebbian | S' + η k ⊗ x | |
| gated_hebbian | S' + η β k ⊗ x, β = σ(x·w + b) for each token | a learned gate keeps junk out |
| delta | S' + η k ⊗ (x − S'ᵀ k) | Widrow and Hoff; arXiv 2102.11174, 2412.06464 with λ < 1 |
| gated_delta | the same with η β | |
| longhorn | the same with η ÷ (1 + η‖k‖²) | arXiv 2407.14207: the implicit step, which no η makes diverge |
| oja | S' + η (k − S' x ÷ D) ⊗ x | Oja (1982), linear: the address is predicted from the value |
| mesa | S' + η k ⊗ x and G' + η k ⊗ k, read (G + ridge)⁻¹ S | arXiv 2309.05858: ridge regression on all pairs so far |
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.kernels.linear_algebra import solve_positive
from bdh_jax.parallel.axes import sum_over_shards

Rate = jax.Array | float


def hebbian(
    state: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, *, learning_rate: Rate, decay: Rate
) -> tuple[jax.Array, jax.Array]:
    """Hebbian write with decay: r = q @ S, then S ← λ S + η k ⊗ x.

    With λ = η = 1 this is linear attention; with the previous token's address as key it is the write-back of
    bdh-fast-weights, made causal.

    Args:
      state: S, [..., H, N, D].
      query: q, [..., H, N].
      key: k, [..., H, N].
      value: x, [..., 1, D].
      learning_rate: η, a scalar or [H].
      decay: λ, likewise.

    Returns:
      read [..., H, D], one part from each head, and the next state [..., H, N, D], both in the state's dtype.
    """
    kept = _over_matrix(decay, state.dtype) * state
    return _read(query, state), kept + _over_matrix(learning_rate, state.dtype) * _outer(key, value, state.dtype)


def delta(
    state: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    learning_rate: Rate,
    decay: Rate,
    gate: jax.Array | float = 1.0,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Delta rule: r = q @ S, then S ← S' + η β k ⊗ (x − Σ_heads S'ᵀ k) with S' = λ S.

    It writes what S does not predict yet. With ‖k‖ = 1, η = λ = β = 1, a pair just written is read back exactly. Stable for
    η β ‖k‖² < 2.

    Args:
      state: S, [..., H, N, D].
      query: q, [..., H, N].
      key: k, [..., H, N].
      value: x, [..., 1, D].
      learning_rate: η, a scalar or [H].
      decay: λ, likewise.
      gate: β in [0, 1], a scalar or [...]: one for each token.
      axis: name of the mesh axis that N is split over, inside ``jax.shard_map``.

    Returns:
      As :func:`hebbian`.
    """
    kept = _over_matrix(decay, state.dtype) * state
    error = value.astype(state.dtype) - _head_sum(_read(key, kept), axis)
    error = _over_matrix(gate, state.dtype) * error
    return _read(query, state), kept + _over_matrix(learning_rate, state.dtype) * _outer(key, error, state.dtype)


def longhorn_gate(key: jax.Array, learning_rate: Rate, axis: str | None = None) -> jax.Array:
    """β of Longhorn's step, 1 ÷ (1 + Σ_heads η ‖k‖²), which minimises ‖S − S'‖²/η + ‖x − Sᵀ k‖² exactly (arXiv 2407.14207).

    Args:
      key: k, [..., H, N].
      learning_rate: η, a scalar or [H].
      axis: as in :func:`delta`.

    Returns:
      [...] float32 or wider.
    """
    wide = key.astype(jnp.promote_types(jnp.float32, key.dtype))
    size = jnp.sum(jnp.asarray(learning_rate, wide.dtype) * jnp.sum(jnp.square(wide), axis=-1), axis=-1)
    return 1 / (1 + sum_over_shards(size, axis))


def oja(
    state: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, *, learning_rate: Rate, decay: Rate
) -> tuple[jax.Array, jax.Array]:
    """Oja's rule, linear: r = q @ S, then S ← S' + η (k − S' x ÷ D) ⊗ x with S' = λ S.

    The mirror of the delta rule: what is predicted, and replaced, is the address that a value was written under. Values leave a
    layer norm, so ‖x‖² = D and the division makes them unit vectors.

    Args:
      state: S, [..., H, N, D].
      query: q, [..., H, N].
      key: k, [..., H, N].
      value: x, [..., 1, D].
      learning_rate: η, a scalar or [H].
      decay: λ, likewise.

    Returns:
      As :func:`hebbian`.
    """
    kept = _over_matrix(decay, state.dtype) * state
    predicted = jnp.einsum("...hnd,...hd->...hn", kept, value.astype(state.dtype) / value.shape[-1])
    error = key.astype(state.dtype) - predicted
    return _read(query, state), kept + _over_matrix(learning_rate, state.dtype) * _outer(error, value, state.dtype)


def mesa(
    state: jax.Array,
    gram: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    learning_rate: float,
    decay: float,
    ridge: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Online ridge regression: r = q @ (G + ridge)⁻¹ S, then S ← λ S + η k ⊗ x and G ← λ G + η k ⊗ k (arXiv 2309.05858).

    No other linear read of the same addresses has a smaller squared error on the pairs so far, each weighted by λ per token of age:
    it is the bound of the other rules. It costs K² numbers and a K × K solution at every token.

    Args:
      state: S, [..., H, N, D].
      gram: G, [..., K, K].
      query: q, [..., H, N].
      key: k, [..., H, N].
      value: x, [..., 1, D].
      learning_rate: η.
      decay: λ.
      ridge: > 0.

    Returns:
      read [..., H, D], and the next state and gram.
    """
    flat = key.astype(gram.dtype).reshape(*key.shape[:-2], -1)
    read = _read(query, ridge_solution(gram, state, ridge))
    state = decay * state + learning_rate * _outer(key, value, state.dtype)
    return read, state, decay * gram + learning_rate * _outer(flat, flat, gram.dtype)


def ridge_solution(gram: jax.Array, state: jax.Array, ridge: float) -> jax.Array:
    """W = (G + ridge·I)⁻¹ S: the ridge regression of all values on their keys, which is what the mesa rule reads.

    Args:
      gram: G = Σ k ⊗ k, [..., K, K] with K = H·N.
      state: S = Σ k ⊗ x, [..., H, N, D].
      ridge: > 0.

    Returns:
      [..., H, N, D].
    """
    rows, width = gram.shape[-1], state.shape[-1]
    diagonal = jnp.expand_dims(ridge * jnp.eye(rows, dtype=gram.dtype), range(gram.ndim - 2))
    flat = state.reshape(*state.shape[:-3], rows, width)
    return solve_positive(gram + diagonal, flat).reshape(state.shape)


def bound(state: jax.Array, *, clamp: float | None, threshold: float | None, row_norm: float | None) -> jax.Array:
    """The limits of the σ rule (:func:`bdh_jax.fast_weights.sigma.sigma_update`), put on S after a write, in that order.

    Args:
      state: S, [..., D].
      clamp: largest absolute entry.
      threshold: smaller entries become zero.
      row_norm: largest L2 norm of a row.

    Returns:
      S within the limits; None is no limit.
    """
    if clamp is not None:
        state = jnp.clip(state, -clamp, clamp)
    if threshold is not None:
        state = jnp.where(jnp.abs(state) < threshold, jnp.zeros((), state.dtype), state)
    if row_norm is not None:
        square = jnp.sum(jnp.square(state), axis=-1, keepdims=True)
        # Short rows, zeros among them, are left alone, in value and in gradient.
        long = square > row_norm**2
        state = jnp.where(long, state * (row_norm * jax.lax.rsqrt(jnp.where(long, square, 1))), state)
    return state


def _read(query: jax.Array, state: jax.Array) -> jax.Array:
    return jnp.einsum("...n,...nd->...d", query.astype(state.dtype), state)


def _outer(key: jax.Array, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return key.astype(dtype)[..., :, None] * value.astype(dtype)[..., None, :]


def _head_sum(array: jax.Array, axis: str | None) -> jax.Array:
    """[..., H, D] → [..., 1, D], over the heads and their shards."""
    return sum_over_shards(jnp.sum(array, axis=-2, keepdims=True), axis)


def _over_matrix(rate: Rate, dtype: jnp.dtype) -> jax.Array:
    rate = jnp.asarray(rate, dtype)
    return rate[..., None, None] if rate.ndim else rate
