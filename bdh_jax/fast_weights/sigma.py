"""The σ rule of tiny_bdh_xor: a matrix of fast weights between neurons, written after each training step or after each token.

Axis letters: B batch, T time, P neurons written to, Q neurons read from.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.masks import Masks
from bdh_jax.kernels.fast_weight_scan.stretch import exclusive_count
from bdh_jax.kernels.linear_algebra import solve_unit_lower

SigmaForm = Literal["recurrent", "parallel"]


class SigmaRates(NamedTuple):
    """How σ is written; the published numbers.

    Attributes:
      forget: in [0, 1], the share of σ that a write takes off.
      learning_rate: size of a write.
      clamp: largest absolute entry, or None.
      threshold: entries of smaller absolute value become zero, or None.
      row_norm: largest L2 norm of the synapses onto one neuron, or None.
    """

    forget: float = 0.2
    learning_rate: float = 0.01
    clamp: float | None = 1.0
    threshold: float | None = 5e-3
    row_norm: float | None = 1.0

    @property
    def limited(self) -> bool:
        """Whether σ has any limit, which has to be looked at after every write."""
        return any(limit is not None for limit in (self.clamp, self.threshold, self.row_norm))


class SigmaTokens(NamedTuple):
    """What a stretch of tokens brings to σ.

    Attributes:
      drive: [B, T, P], what neurons do without σ.
      query: [B, T, Q], what is read with.
      key: [B, T, Q], what is written under.
    """

    drive: jax.Array
    query: jax.Array
    key: jax.Array


def sigma_scan(
    tokens: SigmaTokens, sigma: jax.Array, masks: Masks, rates: SigmaRates, form: SigmaForm
) -> tuple[jax.Array, jax.Array]:
    """Read σ with each token, then write what came of it: y_t = drive_t + σ_t query_t; σ_t+1 = update(σ_t, y_t ⊗ key_t).

    The write is :func:`sigma_update` of one example. Since y_t holds what was read, σ without limits is a linear recurrence whose step
    depends on the token, σ_t+1 = σ_t ((1 − forget) + η query_t ⊗ key_t) + η drive_t ⊗ key_t, which the parallel form solves for all tokens
    at once: (1 − A) y = drive + what σ_0 gives, A[t, s] = η (1 − forget)^(writes between) query_t · key_s for s < t.

    Args:
      tokens: of float32 or wider.
      sigma: [B, P, Q], before the first token.
      masks: of the tokens. Those that do not write leave σ as it is; before a reset σ becomes zero.
      rates: how σ is written.
      form: "recurrent" writes token by token; "parallel" has no limits.

    Returns:
      y [B, T, P], and σ [B, P, Q] after the last token.

    Raises:
      ValueError: for the parallel form with limits.
    """
    if form == "recurrent":
        return _token_by_token(tokens, sigma, masks, rates)
    if rates.limited:
        raise ValueError(f"the parallel form of σ has no limits, and these are {rates}; use the recurrent form")
    return _at_once(tokens, sigma, masks, rates)


def _token_by_token(tokens: SigmaTokens, sigma: jax.Array, masks: Masks, rates: SigmaRates) -> tuple[jax.Array, jax.Array]:
    update = jax.vmap(lambda sigma, post, key: sigma_update(sigma, post[None], key[None], **rates._asdict()))

    def step(sigma: jax.Array, token: tuple[SigmaTokens, jax.Array | None, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        (drive, query, key), writes, reset = token
        if reset is not None:
            sigma = jnp.where(reset[:, None, None], jnp.zeros((), sigma.dtype), sigma)
        y = drive + jnp.einsum("bpq,bq->bp", sigma, query)
        after = update(sigma, y, key)
        return after if writes is None else jnp.where(writes[:, None, None], after, sigma), y

    over_time = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), (tokens, masks.writes, masks.reset))
    sigma, y = jax.lax.scan(step, sigma, over_time)
    return jnp.moveaxis(y, 0, 1), sigma


def _at_once(tokens: SigmaTokens, sigma: jax.Array, masks: Masks, rates: SigmaRates) -> tuple[jax.Array, jax.Array]:
    drive, query, key = tokens
    batch, length, _ = drive.shape
    dtype, keep = drive.dtype, 1 - rates.forget
    writes = jnp.ones((batch, length), bool) if masks.writes is None else masks.writes
    reset = jnp.zeros((batch, length), bool) if masks.reset is None else masks.reset
    episode, before = jnp.cumsum(reset, axis=1), exclusive_count(writes)
    between = before[:, :, None] - before[:, None, :] - 1
    seen = jnp.tril(jnp.ones((length, length), bool), -1)[None] & writes[:, None, :]
    seen = seen & (episode[:, :, None] == episode[:, None, :])
    kept = jnp.where(seen, jnp.power(jnp.asarray(keep, dtype), jnp.maximum(between, 0)), 0)
    scores = rates.learning_rate * kept * jnp.einsum("btq,bsq->bts", query, key)
    start = jnp.where(episode == 0, jnp.power(jnp.asarray(keep, dtype), before), 0)
    drive = drive + start[:, :, None] * jnp.einsum("bpq,btq->btp", sigma, query)
    y = solve_unit_lower(-scores, drive)

    total = before[:, -1:] + writes[:, -1:]
    last = jnp.where(writes & (episode == episode[:, -1:]), jnp.power(jnp.asarray(keep, dtype), total - before - 1), 0)
    carried = jnp.where(episode[:, -1] == 0, jnp.power(jnp.asarray(keep, dtype), total[:, 0]), 0)
    written = rates.learning_rate * jnp.einsum("bt,btp,btq->bpq", last, y, key)
    return y, carried[:, None, None] * sigma + written


def sigma_update(
    sigma: jax.Array,
    post: jax.Array,
    pre: jax.Array,
    *,
    forget: jax.Array | float,
    learning_rate: jax.Array | float,
    clamp: jax.Array | float | None,
    threshold: jax.Array | float | None,
    row_norm: jax.Array | float | None = 1.0,
) -> jax.Array:
    """One Hebbian update of σ with forgetting, sparsification and a bound on every row (github.com/ZhukMax/tiny_bdh_xor).

    In the published order: σ ← (1 − forget)·σ + learning_rate · mean over the batch of post ⊗ pre; clamp each entry to
    ±``clamp``; zero the entries smaller than ``threshold``; divide each row by max(1, its L2 norm / ``row_norm``). None leaves a step out.

    Args:
      sigma: σ [P, Q], row i holds the synapses onto neuron i.
      post: activity [B, P] of the neurons written to.
      pre: activity [B, Q] of the neurons read from.
      forget: in [0, 1], the share of σ that is lost.
      learning_rate: size of a write.
      clamp: largest absolute entry.
      threshold: entries of smaller absolute value become zero.
      row_norm: largest L2 norm of a row; published is 1.

    Returns:
      The next σ [P, Q], in the dtype of ``sigma``.

    Raises:
      ValueError: for shapes that do not fit each other.
    """
    if post.ndim != 2 or pre.ndim != 2 or post.shape[0] != pre.shape[0] or sigma.shape != (post.shape[1], pre.shape[1]):
        raise ValueError(f"sigma {sigma.shape}, post {post.shape} and pre {pre.shape} must be [P, Q], [B, P] and [B, Q]")
    written = jnp.einsum("bp,bq->pq", post, pre, preferred_element_type=sigma.dtype) * (learning_rate / post.shape[0])
    sigma = (1 - forget) * sigma + written
    if clamp is not None:
        sigma = jnp.clip(sigma, -clamp, clamp)
    if threshold is not None:
        sigma = jnp.where(jnp.abs(sigma) < threshold, jnp.zeros((), sigma.dtype), sigma)
    if row_norm is None:
        return sigma
    square = jnp.sum(jnp.square(sigma / row_norm), axis=1, keepdims=True)
    # Not max(1, √square), whose gradient at an empty row is 0 · ∞.
    return sigma / jnp.sqrt(jnp.maximum(square, 1))
