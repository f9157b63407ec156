"""Matrix-product forms of the scan, in plain JAX.

Unrolling S_{t+1} = λ S_t + η k_t ⊗ x_t over a stretch of tokens that starts from S_0 gives

    read_t = λ^{n_t} q_t @ S_0 + Σ_{s<t} λ^{n_t − n_s − 1} η (q_t · k_s) x_s
    S_T    = λ^{n_T} S_0       + Σ_s     λ^{n_T − n_s − 1} η k_s ⊗ x_s

with n_t the number of valid tokens before t. ``parallel`` is that with the whole sequence as one stretch; ``chunked`` is
a ``jax.lax.scan`` over stretches with S as its carry. No array of shape [T, N, D] is ever formed.

Inside, S is kept as [D, N], so that the N-wide arrays enter every forward product untransposed, and a single head of a single
example has no batch axes, because XLA on CPU simplifies products without them better. Each halves the time of a product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.parallel.axes import vary_like

Final = Literal["full", "mean", "none"]
Correct = Callable[..., tuple[jax.Array, jax.Array]]
"""(key, value, state, gate, weights) of a stretch → its key and value."""


def exclusive_count(valid: jax.Array) -> jax.Array:
    """Number of valid tokens before each token, [..., T] int32, from ``valid`` [..., T] bool."""
    return jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - valid.astype(jnp.int32)


class Weights(NamedTuple):
    """How much every token of a stretch counts. The leading axes [B or 1, H or 1] are absent where nothing depends on them.

    Attributes:
      scores: [..., T, T], of the write at s (last axis) in the read at t.
      initial: [..., T], of the stretch's first state in the read at t.
      written: [..., T], of the write at s in the last state.
      kept: [...], of the first state in the last one.
    """

    scores: jax.Array
    initial: jax.Array
    written: jax.Array
    kept: jax.Array


def weights(
    length: int, dtype: Any, log_decay: jax.Array | None, valid: jax.Array | None, reset: jax.Array | None
) -> Weights:
    """Weights of a stretch of T tokens.

    Args:
      length: T.
      dtype: dtype of the weights.
      log_decay: ln λ, a scalar or [H]; None for λ = 1.
      valid: [T] or [B, T] bool, or None.
      reset: [T] or [B, T] bool, or None.
    """
    if any(mask is not None and mask.ndim == 2 for mask in (valid, reset)):
        of_example = jax.vmap(lambda *masks: weights(length, dtype, log_decay, *masks))(valid, reset)
        if log_decay is None or log_decay.ndim == 0:
            of_example = jax.tree.map(lambda a: a[:, None], of_example)
        return of_example
    if log_decay is not None and log_decay.ndim == 1:
        return jax.vmap(lambda rate: weights(length, dtype, rate, valid, reset))(log_decay)

    time = jnp.arange(length, dtype=jnp.int32)
    valid = jnp.ones((length,), bool) if valid is None else valid
    episode = jnp.zeros((length,), jnp.int32) if reset is None else jnp.cumsum(reset, dtype=jnp.int32)
    before = exclusive_count(valid)
    total = before[-1] + valid[-1]

    def power(steps: jax.Array, where: jax.Array) -> jax.Array:
        """λ^steps where ``where`` holds, zero elsewhere."""
        if log_decay is None:
            return where.astype(dtype)
        # Masked steps may be negative, and their powers too large to be multiplied by a zero gradient.
        return jnp.where(where, jnp.exp(jnp.where(where, steps, 0).astype(dtype) * log_decay), jnp.zeros((), dtype))

    earlier = (time[:, None] > time[None, :]) & (episode[:, None] == episode[None, :]) & valid[None, :]
    return Weights(
        scores=power(before[:, None] - before[None, :] - 1, earlier),
        initial=power(before, episode == 0),
        written=power(total - before - 1, valid & (episode == episode[-1])),
        kept=power(total, episode[-1] == 0),
    )


def safe_log(decay: jax.Array) -> jax.Array:
    """ln λ, finite also for a learned λ that underflows to zero: zero to the power of zero steps is still one."""
    return jnp.log(jnp.maximum(decay, jnp.finfo(decay.dtype).tiny))


def parallel(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: jax.Array | None,
    *,
    decay: jax.Array | float,
    valid: jax.Array | None,
    reset: jax.Array | None,
    final: Final,
    sum_heads: bool,
    correct: Correct | None = None,
    gate: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """The scan as masked matrix products over the whole sequence. Keys already carry η.

    Args:
      query: [B, H, T, N].
      key: [B, H, T, N].
      value: [B, 1, T, D], shared by the heads.
      state: [B, H, N, D], or None for zeros (skips the initial read).
      decay: λ; the Python number 1.0, a scalar, or [H].
      valid: [B, T] bool or None.
      reset: [B, T] bool or None.
      final: "full" forms S_T, "mean" its mean over the batch without forming it per example, "none" nothing.
      sum_heads: sum the read over the heads, which saves most of the products with the values.
      correct: makes the keys and values of a stretch those that another rule than the Hebbian writes, or None.
      gate: [B, T], handed to ``correct``, or None.

    Returns:
      read [B, H, T, D], with H = 1 if summed, in the accumulation dtype; and S_T [B, H, N, D], [1, H, N, D] or None.
    """
    batch, heads = query.shape[:2]
    *inner, log_decay, valid, reset = _enter(query, key, value, state, decay, valid, reset, squeeze=correct is None)
    options = dict(final=final, sum_heads=sum_heads, correct=correct)
    read, next_state = _stretch(*inner, log_decay, valid, reset, gate, **options)
    return _leave(read, batch), _leave_state(next_state, heads)


def chunked(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: jax.Array | None,
    *,
    decay: jax.Array | float,
    valid: jax.Array | None,
    reset: jax.Array | None,
    final: Final,
    sum_heads: bool,
    chunk_size: int,
    correct: Correct | None = None,
    gate: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """The scan over chunks of ``chunk_size`` tokens; arguments and results as in :func:`parallel`."""
    batch, heads, length, _ = query.shape
    dtype = jnp.promote_types(jnp.float32, query.dtype)
    squeeze = correct is None
    *arrays, state, log_decay, valid, reset = _enter(query, key, value, state, decay, valid, reset, squeeze=squeeze)
    count = length // chunk_size
    end = count * chunk_size
    reads = []
    if count:
        # Every whole chunk is in the scan, also a first one without a state to read and a last one whose writes nobody needs:
        # cutting them off would copy the N-wide arrays.
        if state is None:
            state = jnp.zeros((*arrays[0].shape[:-2], value.shape[-1], query.shape[-1]), dtype)
        state = vary_like(state, query)

        def step(state, chunk):
            read, state = _stretch(
                *chunk[:3], state, log_decay, *chunk[3:], final="full", sum_heads=sum_heads, correct=correct
            )
            return state, read

        chunks = (_split(array, count, chunk_size, -2) for array in arrays)
        state, read = jax.lax.scan(
            step, state, (*chunks, *(_split(mask, count, chunk_size, -1) for mask in (valid, reset, gate)))
        )
        read = jnp.moveaxis(read, 0, -3)
        reads.append(read.reshape(*read.shape[:-3], end, read.shape[-1]))
    if end < length:
        arrays = [array[..., end:, :] for array in arrays]
        masks = (None if mask is None else mask[..., end:] for mask in (valid, reset, gate))
        read, state = _stretch(*arrays, state, log_decay, *masks, final=final, sum_heads=sum_heads, correct=correct)
        reads.append(read)
    elif final == "mean" and state.ndim == 4:
        state = jnp.mean(state, axis=0, keepdims=True)
    read = jnp.concatenate(reads, axis=-2) if len(reads) > 1 else reads[0]
    return _leave(read, batch), None if final == "none" else _leave_state(state, heads)


def mean_state(
    key: jax.Array,
    value: jax.Array,
    state: jax.Array | None,
    *,
    decay: jax.Array | float,
    valid: jax.Array | None,
    reset: jax.Array | None,
) -> jax.Array:
    """The mean of S_T over the batch, [1, H, N, D], alone; arguments as in :func:`parallel`."""
    heads = key.shape[1]
    _, key, value, state, log_decay, valid, reset = _enter(key, key, value, state, decay, valid, reset)
    written = _write(_weights_like(key, log_decay, valid, reset), key, value, state, mean=True)
    return _leave_state(written, heads)


def _stretch(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: jax.Array | None,
    log_decay: jax.Array | None,
    valid: jax.Array | None,
    reset: jax.Array | None,
    gate: jax.Array | None,
    *,
    final: Final,
    sum_heads: bool,
    correct: Correct | None,
) -> tuple[jax.Array, jax.Array | None]:
    """One stretch of tokens, with the leading axes "..." either [B, H] or, for one head of one example, absent.

    Args:
      query: [..., T, N].
      key: [..., T, N].
      value: [..., T, D], with H = 1.
      state: [..., D, N], or None for zeros.
      log_decay: ln λ, a scalar or [H]; None for λ = 1.
      valid: [T] or [B, T] bool, or None.
      reset: [T] or [B, T] bool, or None.
      gate: [B, T], or None.
      final: whether the last state is wanted, or its mean over the batch.
      sum_heads: whether to sum the read over the heads.
      correct: as in :func:`parallel`; needs the leading axes.

    Returns:
      read [..., T, D] and the last state [..., D, N] or None.
    """
    dtype = jnp.promote_types(jnp.float32, query.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)
    weight = _weights_like(query, log_decay, valid, reset)
    sum_heads = sum_heads and query.ndim == 4
    if correct is not None:
        key, value = correct(key, value, state, gate, weight)

    scores = product("...tn,...sn->...ts", query, key) * weight.scores
    if sum_heads:
        scores = _head_sum(scores)
    read = product("...ts,...sd->...td", scores.astype(value.dtype), _like(value, scores))
    if state is not None:
        initial = weight.initial[..., None] * product("...tn,...dn->...td", query.astype(dtype), state)
        read = read + (_head_sum(initial) if sum_heads else initial)
    return read, None if final == "none" else _write(weight, key, value, state, mean=final == "mean")


def _write(weight: Weights, key: jax.Array, value: jax.Array, state: jax.Array | None, *, mean: bool) -> jax.Array:
    """The last state of a stretch, [..., D, N]; arguments as in :func:`_stretch`."""
    mean = mean and key.ndim == 4
    weighted = _like((weight.written[..., None] * value).astype(key.dtype), key)
    subscripts = "bhsd,bhsn->hdn" if mean else "...sd,...sn->...dn"
    written = jnp.einsum(subscripts, weighted, key, preferred_element_type=weight.written.dtype)
    kept = None if state is None else weight.kept[..., None, None] * state
    if mean:
        written = written[None] / key.shape[0]
        kept = None if kept is None else jnp.mean(kept, axis=0, keepdims=True)
    return written if kept is None else written + kept


def _weights_like(rows: jax.Array, log_decay: jax.Array | None, valid: jax.Array | None, reset: jax.Array | None) -> Weights:
    """:func:`weights` for rows [..., T, N], with as many leading axes as they have."""
    weight = weights(rows.shape[-2], jnp.promote_types(jnp.float32, rows.dtype), log_decay, valid, reset)
    missing = (1,) * (rows.ndim - 2 - weight.kept.ndim)
    return jax.tree.map(lambda a: a.reshape(missing + a.shape), weight)


def _like(value: jax.Array, array: jax.Array) -> jax.Array:
    """``value`` repeated over the leading axes of ``array``: XLA multiplies batches faster than shared operands."""
    return jnp.broadcast_to(value, (*array.shape[:-2], *value.shape[-2:]))


def _head_sum(array: jax.Array) -> jax.Array:
    """Sum of [B, H, ...] over the heads, keeping the axis. A chain of additions, where XLA on CPU would copy to reduce."""
    return functools.reduce(jnp.add, [array[:, head : head + 1] for head in range(array.shape[1])])


def _enter(query, key, value, state, decay, valid, reset, *, squeeze=True):
    """The arguments of :func:`_stretch` for those of :func:`parallel`."""
    log_decay = None
    if not (isinstance(decay, float) and decay == 1.0):
        log_decay = safe_log(jnp.asarray(decay, jnp.promote_types(jnp.float32, query.dtype)))
        log_decay = log_decay.reshape(()) if log_decay.size == 1 else log_decay
    state = None if state is None else jnp.swapaxes(state, 2, 3)
    if squeeze and query.shape[:2] == (1, 1):
        query, key, value, state = (None if a is None else a.reshape(a.shape[2:]) for a in (query, key, value, state))
        valid, reset = (None if mask is None else mask.reshape(mask.shape[1:]) for mask in (valid, reset))
    return query, key, value, state, log_decay, valid, reset


def _leave(read: jax.Array, batch: int) -> jax.Array:
    return read.reshape(batch, -1, *read.shape[-2:])


def _leave_state(state: jax.Array | None, heads: int) -> jax.Array | None:
    """[..., D, N] → [B or 1, H, N, D]."""
    if state is None:
        return None
    return jnp.swapaxes(state.reshape(-1, heads, *state.shape[-2:]), 2, 3)


def _split(array: jax.Array | None, count: int, size: int, axis: int) -> jax.Array | None:
    """The first ``count`` chunks of ``size`` along ``axis``, on a new first axis."""
    if array is None:
        return None
    axis += array.ndim
    array = jax.lax.slice_in_dim(array, 0, count * size, axis=axis)
    return jnp.moveaxis(array.reshape(*array.shape[:axis], count, size, *array.shape[axis + 1 :]), axis, 0)
