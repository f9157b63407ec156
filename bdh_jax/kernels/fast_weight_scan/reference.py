"""Reference form of the scan: ``jax.lax.scan`` over tokens with the state as its explicit carry; and the plain write.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Rate, ScanRule, Stretch, Token, Write


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
      value: x, [..., 1, D] or [..., H, D].
      learning_rate: η, a scalar, [H], or anything that fits [..., H, N].
      decay: λ, likewise.

    Returns:
      read [..., H, D], one part from each head, and the next state [..., H, N, D], both in the state's dtype.
    """
    found = read(query, state)
    kept = over_matrix(decay, state.dtype) * once_read(state, found)
    return found, kept + over_matrix(learning_rate, state.dtype) * outer(key, value, state.dtype)


def read(query: jax.Array, state: jax.Array) -> jax.Array:
    """q @ S: query [..., N], state [..., N, D] → [..., D] in the state's dtype."""
    return jnp.einsum("...n,...nd->...d", query.astype(state.dtype), state)


def read_all(query: jax.Array, state: jax.Array) -> jax.Array:
    """Every q_t @ S of one S: query [B, H, T, N], state [B, H, N, D] → [B, H, T, D] in the state's dtype."""
    return jnp.einsum("bhtn,bhnd->bhtd", query.astype(state.dtype), state)


def once_read(state: jax.Array, found: jax.Array) -> jax.Array:
    """S [..., H, N, D], which as far as the compiler can tell depends on what was read from it, ``found`` [..., H, D].

    So a write cannot come before the read, and XLA lets it overwrite a donated S. Otherwise it copies S first: at the published size
    400 MB a token, and more than half of its time on a CPU.
    """
    zero = jax.lax.stop_gradient(jnp.minimum(jnp.max(jnp.abs(found), axis=-1, keepdims=True), 0))
    return state + zero[..., None]


def outer(key: jax.Array, value: jax.Array, dtype: Any) -> jax.Array:
    """k ⊗ x: key [..., N], value [..., D] → [..., N, D]."""
    return key.astype(dtype)[..., :, None] * value.astype(dtype)[..., None, :]


def over_matrix(rate: Rate, dtype: Any) -> jax.Array:
    """A rate as a factor of S [..., H, N, D]: a scalar, one a head [H], or one a row [..., H or 1, N or 1]."""
    rate = jnp.asarray(rate, dtype)
    if rate.ndim == 0:
        return rate
    return rate[..., None, None] if rate.ndim == 1 else rate[..., None]


def _write(state: jax.Array, token: Token, dynamics: Dynamics) -> tuple[jax.Array, jax.Array]:
    value = token.value
    if token.write_gate is not None:
        value = token.write_gate[:, None, None].astype(state.dtype) * value.astype(state.dtype)
    return hebbian(state, token.query, token.key, value, learning_rate=dynamics.learning_rate, decay=dynamics.decay)


HEBBIAN = ScanRule("hebbian", _write, linear=True)
"""The plain write."""


def recurrent(stretch: Stretch, state: Any, dynamics: Dynamics, write: Write) -> tuple[jax.Array, Any]:
    """Scan a write over time.

    Args:
      stretch: the tokens.
      state: before the first token: [B, H, N, D], or a pytree of arrays [B, ...].
      dynamics: rates.
      write: one token.

    Returns:
      read [B, H, T, D] and the state after the last token.
    """

    def step(state: Any, inputs: tuple[Token, Dynamics, jax.Array | None, jax.Array | None]) -> tuple[Any, jax.Array]:
        token, rates, valid, reset = inputs
        if reset is not None:
            state = jax.tree.map(lambda leaf: jnp.where(_like(reset, leaf), jnp.zeros((), leaf.dtype), leaf), state)
        read, written = write(state, token, rates)
        chex.assert_shape(read, (*token.query.shape[:2], token.value.shape[-1]))
        chex.assert_trees_all_equal_shapes(written, state)
        if valid is not None:
            written = jax.tree.map(lambda new, old: jnp.where(_like(valid, new), new, old), written, state)
        return written, read

    # Some inputs are absent: a None is an empty pytree, so it passes through the scan as None.
    query, key, value = (jnp.moveaxis(array, -2, 0) for array in (stretch.query, stretch.key, stretch.value))
    tokens = Token(query, key, value, _time_first(stretch.write_gate))
    masks = _time_first(stretch.valid), _time_first(stretch.reset)
    length = stretch.query.shape[-2]
    rates, by_token = zip(*(_rate(rate, length) for rate in dynamics), strict=True)

    def with_rates(state: Any, inputs: Any) -> tuple[Any, jax.Array]:
        token, valid, reset, here = inputs
        chosen = (rate if now is None else now for rate, now in zip(rates, here, strict=True))
        return step(state, (token, Dynamics(*chosen), valid, reset))

    inputs = (tokens, *masks, by_token)
    if length == 1:
        state, read = with_rates(state, jax.tree.map(lambda a: a[0], inputs))
        return read[:, :, None], state
    state, reads = jax.lax.scan(with_rates, state, inputs)
    return jnp.moveaxis(reads, 0, 2), state


def _rate(rate: Rate, length: int) -> tuple[Any, jax.Array | None]:
    """A rate that every token has, beside the batch axis, and None; or nothing, and the rate of each token with time first."""
    if jnp.ndim(rate) == 0:
        return rate, None
    rate = jnp.asarray(rate)
    if rate.ndim == 1:
        return rate[None, :, None], None
    return (rate[:, :, 0], None) if rate.shape[2] == 1 else (None, jnp.moveaxis(rate, 2, 0))


def _time_first(mask: jax.Array | None) -> jax.Array | None:
    return None if mask is None else mask.T


def _like(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """[B] with as many axes as ``leaf`` [B, ...]."""
    return mask.reshape(-1, *[1] * (leaf.ndim - 1))
