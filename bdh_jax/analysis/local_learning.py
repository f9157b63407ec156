"""What a local rule does to the linear maps of a model: ranks, directions, and how they lie to the gradient.

Axis letters: I inputs, O outputs of a linear map y = x @ W (+ bias); M activities; see also :mod:`bdh_jax.types`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.models.base import Model
from bdh_jax.models.local_maps import activities, matrix_of
from bdh_jax.tasks.base import Batch
from bdh_jax.types import Slow


class MapMeasures(NamedTuple):
    """Of one linear map. All are scalars.

    Attributes:
      norm: Frobenius norm of the weight.
      rank: effective rank of the weight: the exponential of the entropy of its singular values as shares.
      input_rank: the same of the inputs [M, I].
      output_rank: the same of the outputs [M, O].
      to_top: |cosine| of Hebb's change E[x ⊗ y] with the outer product of the top singular pair of C W, C = E[x ⊗ x]: 1 where Hebb's rule is power
        iteration on the covariance of the inputs.
      to_mean: the same with E[x] ⊗ E[y].
      mean_share: share of E|x|² that is |E x|².
      mean_is_top: |cosine| of E[x] with the first eigenvector of C.
      to_gradient: cosine of Hebb's change with the negative gradient: 1 where both do the same.
      top_share: share of |E[x ⊗ y]|² that is its largest singular direction.
    """

    norm: jax.Array
    rank: jax.Array
    input_rank: jax.Array
    output_rank: jax.Array
    to_top: jax.Array
    to_mean: jax.Array
    mean_share: jax.Array
    mean_is_top: jax.Array
    to_gradient: jax.Array
    top_share: jax.Array


def effective_rank(matrix: jax.Array) -> jax.Array:
    """exp(−Σ p log p), p the singular values of a matrix as shares of their sum (Roy, Vetterli 2007). 0 for zeros."""
    values = jnp.linalg.svd(matrix, compute_uv=False)
    shares = values / jnp.maximum(jnp.sum(values), jnp.finfo(values.dtype).tiny)
    return jnp.exp(_entropy(shares)) * (jnp.sum(values) > 0)


def attention_entropy(query: jax.Array, key: jax.Array, n_head: int) -> jax.Array:
    """Mean entropy of causal softmax attention, in nats, over rows, heads and tokens; the most that it can be is the mean of log t.

    Args:
      query: [B, T, D].
      key: [B, T, D].
      n_head: H.
    """
    batch, length, width = query.shape
    query, key = (part.reshape(batch, length, n_head, width // n_head) for part in (query, key))
    scores = jnp.einsum("bqhn,bkhn->bhqk", query, key) / (width // n_head) ** 0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool))[None, None], scores, -jnp.inf)
    share = jax.nn.softmax(scores, axis=-1)
    return jnp.mean(_entropy(share))


def measure_maps(model: Model, slow: Slow, gradient: Slow, batch: Batch) -> dict[str, MapMeasures]:
    """Name of a linear map → its measures on a batch whose tokens are all valid.

    Args:
      model: declares its linear maps.
      slow: its weights.
      gradient: of the loss at these weights, a tree like them.
      batch: arrays [B, T].
    """
    architecture = model.architecture
    maps = architecture.local_maps()
    names = tuple(dict.fromkeys(tap for one in maps.values() for tap in (one.x, one.y)))
    collected = model.apply({"params": slow}, batch.tokens, state="none", collect=names).collected
    found = {}
    for name, one in maps.items():
        x, y = (activities(collected, architecture.taps, one, side) for side in "xy")
        found[name] = _measures(x, y, matrix_of(slow, one), matrix_of(gradient, one))
    return found


def _measures(x: jax.Array, y: jax.Array, weight: jax.Array, gradient: jax.Array) -> MapMeasures:
    change = x.T @ y / len(x)
    covariance = x.T @ x / len(x)
    values = jnp.linalg.svd(change, compute_uv=False)
    first, _, last = jnp.linalg.svd(covariance @ weight, full_matrices=False)
    mean_x, mean_y = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
    directions = jnp.linalg.eigh(covariance)[1][:, -1]
    return MapMeasures(
        norm=jnp.linalg.norm(weight),
        rank=effective_rank(weight),
        input_rank=effective_rank(covariance_root(x)),
        output_rank=effective_rank(covariance_root(y)),
        to_top=jnp.abs(_cosine(change, jnp.outer(first[:, 0], last[0]))),
        to_mean=jnp.abs(_cosine(change, jnp.outer(mean_x, mean_y))),
        mean_share=jnp.sum(jnp.square(mean_x)) / jnp.maximum(jnp.trace(covariance), 1e-30),
        mean_is_top=jnp.abs(_cosine(mean_x, directions)),
        to_gradient=-_cosine(change, gradient),
        top_share=jnp.square(values[0]) / jnp.maximum(jnp.sum(jnp.square(values)), 1e-30),
    )


def covariance_root(x: jax.Array) -> jax.Array:
    """A matrix [N, N] with the singular values of x [M, N] / √M."""
    values, vectors = jnp.linalg.eigh(x.T @ x / len(x))
    return vectors * jnp.sqrt(jnp.maximum(values, 0))[None]


def _entropy(shares: jax.Array) -> jax.Array:
    """−Σ p log p over the last axis, in nats."""
    return -jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), axis=-1)


def _cosine(a: Any, b: Any) -> jax.Array:
    return jnp.sum(a * b) / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-30)
