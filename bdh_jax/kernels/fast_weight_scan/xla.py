"""Matrix-product forms of the scan, in plain JAX.

Unrolling S_{t+1} = λ S_t + η k_t ⊗ x_t over a stretch of tokens that starts from S_0 gives

    read_t = λ^{n_t} q_t @ S_0 + Σ_{s<t} λ^{n_t − n_s − 1} η (q_t · k_s) x_s
    S_T    = λ^{n_T} S_0       + Σ_s     λ^{n_T − n_s − 1} η k_s ⊗ x_s

with n_t the number of valid tokens before t. ``parallel`` is that with the whole sequence as one stretch; ``chunked`` is
a ``jax.lax.scan`` over stretches with S as its carry. No array of shape [T, N, D] is ever formed.

Inside, S is kept as [D, N], so that the N-wide arrays enter every forward product untransposed, and a single head of a single
example has no batch axes, because XLA on CPU simplifies products without them better. Each halves the time of a product.

Axis letters: see :mod:`bdh_jax.types`; "..." is [B, H], or nothing for one head of one example.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.kernels.fast_weight_scan.arguments import Correct, Dynamics, Rate, Stretch, Wanted
from bdh_jax.kernels.fast_weight_scan.stretch import Coefficients, coefficients_like, safe_log
from bdh_jax.parallel.collectives import vary_like

_FEW, _LARGE = 8, 2**22
"""Examples, and numbers of each of them, that are multiplied one after the other."""


def parallel(
    stretch: Stretch, state: jax.Array | None, dynamics: Dynamics, wanted: Wanted, correct: Correct | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """The scan as masked matrix products over the whole sequence.

    Args:
      stretch: all tokens. Without ``correct``, keys or values carry η and β already.
      state: [B, H, N, D], or None for zeros (skips the initial read).
      dynamics: λ: the Python number 1.0, a scalar, [H], or [B or 1, H or 1, T, 1]; η is ``correct``'s alone.
      wanted: what to return.
      correct: makes the keys and values of a stretch those that a rule which is not linear writes, or None.

    Returns:
      read [B, H, T, D], with H = 1 if summed, in the accumulation dtype; and S_T [B, H, N, D], [1, H, N, D] or None.
    """
    batch, heads = stretch.query.shape[:2]
    stretch, state, log_decay = _enter(stretch, state, dynamics, squeeze=correct is None)
    read, next_state = _one(stretch, state, log_decay, dynamics, wanted, correct)
    return _leave(read, batch), None if next_state is None else _leave_state(next_state, heads)


def chunked(
    stretch: Stretch,
    state: jax.Array | None,
    dynamics: Dynamics,
    wanted: Wanted,
    chunk_size: int,
    correct: Correct | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """The scan over chunks of ``chunk_size`` tokens; arguments and results as in :func:`parallel`."""
    batch, heads, length, neurons = stretch.query.shape
    dtype = jnp.promote_types(jnp.float32, stretch.query.dtype)
    width = stretch.value.shape[-1]
    query = stretch.query
    stretch, state, log_decay = _enter(stretch, state, dynamics, squeeze=correct is None)
    count = length // chunk_size
    end = count * chunk_size
    own_rates = {name: rate for name, rate in dynamics._asdict().items() if jnp.ndim(rate) == 4 and rate.shape[2] > 1}
    reads = []
    if count:
        # Every whole chunk is in the scan, also a first one without a state to read and a last one whose writes nobody needs:
        # cutting them off would copy the N-wide arrays.
        if state is None:
            state = jnp.zeros((*stretch.query.shape[:-2], width, neurons), dtype)
        state = vary_like(state, query)
        inner = Wanted("full", wanted.sum_heads)

        def step(state: Any, chunk: tuple[Stretch, jax.Array | None, dict[str, jax.Array]]) -> tuple[Any, jax.Array]:
            stretch, of_tokens, rates = chunk
            here = dynamics._replace(**rates)
            read, state = _one(stretch, state, log_decay if of_tokens is None else of_tokens, here, inner, correct)
            return state, read

        chunks = _by_token(lambda array, axis: _split(array, count, chunk_size, axis), stretch)
        of_tokens = None
        if log_decay is not None and log_decay.ndim == 3:
            of_tokens = _split(log_decay, count, chunk_size, -1)
        rates = {name: _split(rate, count, chunk_size, -2) for name, rate in own_rates.items()}
        state, read = jax.lax.scan(step, state, (chunks, of_tokens, rates))
        read = jnp.moveaxis(read, 0, -3)
        reads.append(read.reshape(*read.shape[:-3], end, read.shape[-1]))
    if end < length:
        rest = _by_token(lambda array, axis: jax.lax.slice_in_dim(array, end, length, axis=array.ndim + axis), stretch)
        if log_decay is not None and log_decay.ndim == 3:
            log_decay = log_decay[..., end:]
        dynamics = dynamics._replace(**{name: rate[:, :, end:] for name, rate in own_rates.items()})
        read, state = _one(rest, state, log_decay, dynamics, wanted, correct)
        reads.append(read)
    elif wanted.final == "mean" and state is not None and state.ndim == 4:
        state = jnp.mean(state, axis=0, keepdims=True)
    read = jnp.concatenate(reads, axis=-2) if len(reads) > 1 else reads[0]
    return _leave(read, batch), None if wanted.final == "none" or state is None else _leave_state(state, heads)


def mean_state(stretch: Stretch, state: jax.Array | None, dynamics: Dynamics) -> jax.Array:
    """The mean of S_T over the batch, [1, H, N, D], alone; arguments as in :func:`parallel`."""
    heads = stretch.key.shape[1]
    stretch, state, log_decay = _enter(stretch, state, dynamics)
    found = coefficients_like(stretch.key, log_decay, stretch.valid, stretch.reset)
    written = _write(found, stretch.key, stretch.value, state, mean=True)
    return _leave_state(written, heads)


@jax.custom_jvp
def own_scores(rows: jax.Array) -> jax.Array:
    """c_t · c_s, of rows [..., T, N] among themselves: [..., T, T], float32 or wider.

    They are symmetric, so that both factors' gradients are one product where two different ones take two.
    """
    return _scores(rows, rows)


@own_scores.defjvp
def _own_scores_jvp(rows: tuple[jax.Array], change: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    half = _scores(change[0], rows[0])
    return own_scores(rows[0]), half + jnp.swapaxes(half, -1, -2)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(jnp.float32, query.dtype)
    product = functools.partial(jnp.einsum, "...tn,...sn->...ts", preferred_element_type=dtype)
    known = all(isinstance(length, int) for length in query.shape)  # which those of an exported function need not be
    if known and query.ndim == 4 and 1 < query.shape[0] <= _FEW and query.size >= _LARGE * query.shape[0]:
        # One after the other what is made for each of them stays in a cache until it is multiplied.
        return jnp.stack([product(*rows) for rows in zip(query, key, strict=True)])
    return product(query, key)


def _one(
    stretch: Stretch,
    state: jax.Array | None,
    log_decay: jax.Array | None,
    dynamics: Dynamics,
    wanted: Wanted,
    correct: Correct | None,
) -> tuple[jax.Array, jax.Array | None]:
    """One stretch of tokens, with leading axes "..." before its last two.

    Args:
      stretch: query and key [..., T, N], value [..., T, D] with H = 1 or H, masks [T] or [B, T].
      state: [..., D, N], or None for zeros.
      log_decay: ln λ, as of :func:`bdh_jax.kernels.fast_weight_scan.stretch.coefficients`.
      dynamics: for ``correct``.
      wanted: what to return.
      correct: as in :func:`parallel`; needs the leading axes.

    Returns:
      read [..., T, D] and the last state [..., D, N] or None.
    """
    query, key, value = stretch.query, stretch.key, stretch.value
    dtype = jnp.promote_types(jnp.float32, query.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)
    found = coefficients_like(query, log_decay, stretch.valid, stretch.reset)
    sum_heads = wanted.sum_heads and query.ndim == 4
    if correct is not None:
        key, value = correct(stretch, state, found, dynamics)

    scores = _scores(query, key) if stretch.scores is None else stretch.scores
    scores = scores * found.scores
    # Heads that share the value are summed before they are multiplied with it.
    sum_scores = sum_heads and value.shape[1] == 1
    if sum_scores:
        scores = _head_sum(scores)
    read = product("...ts,...sd->...td", scores.astype(value.dtype), _like(value, scores))
    if sum_heads and not sum_scores:
        read = _head_sum(read)
    if state is not None:
        initial = found.initial[..., None] * product("...tn,...dn->...td", query.astype(dtype), state)
        read = read + (_head_sum(initial) if sum_heads else initial)
    return read, None if wanted.final == "none" else _write(found, key, value, state, mean=wanted.final == "mean")


def _write(found: Coefficients, key: jax.Array, value: jax.Array, state: jax.Array | None, *, mean: bool) -> jax.Array:
    """The last state of a stretch, [..., D, N]; arguments as in :func:`_one`."""
    mean = mean and key.ndim == 4
    weighted = _like((found.written[..., None] * value).astype(key.dtype), key)
    subscripts = "bhsd,bhsn->hdn" if mean else "...sd,...sn->...dn"
    written = jnp.einsum(subscripts, weighted, key, preferred_element_type=found.written.dtype)
    kept = None if state is None else found.kept[..., None, None] * state
    if mean:
        written = written[None] / key.shape[0]
        kept = None if kept is None else jnp.mean(kept, axis=0, keepdims=True)
    return written if kept is None else written + kept


def _like(value: jax.Array, array: jax.Array) -> jax.Array:
    """``value`` repeated over the leading axes of ``array``: XLA multiplies batches faster than shared operands."""
    return jnp.broadcast_to(value, (*array.shape[:-2], *value.shape[-2:]))


def _head_sum(array: jax.Array) -> jax.Array:
    """Sum of [B, H, ...] over the heads, keeping the axis. A chain of additions, where XLA on CPU would copy to reduce."""
    return functools.reduce(jnp.add, [array[:, head : head + 1] for head in range(array.shape[1])])


def _enter(
    stretch: Stretch, state: jax.Array | None, dynamics: Dynamics, *, squeeze: bool = True
) -> tuple[Stretch, jax.Array | None, jax.Array | None]:
    """The arguments of :func:`_one` for those of :func:`parallel`: stretch, state and ln λ."""
    logs = ln_decay(dynamics.decay, stretch.query)
    of_tokens = logs is not None and logs.ndim == 3
    state = None if state is None else jnp.swapaxes(state, 2, 3)
    if squeeze and stretch.query.shape[:2] == (1, 1) and not of_tokens:
        stretch = jax.tree.map(lambda a: a.reshape(a.shape[2:]) if a.ndim == 4 else a.reshape(a.shape[1:]), stretch)
        state = None if state is None else state.reshape(state.shape[2:])
    return stretch, state, logs


def ln_decay(decay: Rate, query: jax.Array) -> jax.Array | None:
    """ln λ as :func:`bdh_jax.kernels.fast_weight_scan.stretch.coefficients` takes it, beside a query [B, H, T, N]; None for λ = 1."""
    if isinstance(decay, float) and decay == 1.0:
        return None
    logs = safe_log(jnp.asarray(decay, jnp.promote_types(jnp.float32, query.dtype)))
    if logs.ndim == 4:
        return jnp.broadcast_to(logs[..., 0], (*logs.shape[:2], query.shape[2]))
    return logs.reshape(()) if logs.size == 1 else logs


def _leave(read: jax.Array, batch: int) -> jax.Array:
    return read.reshape(batch, -1, *read.shape[-2:])


def _leave_state(state: jax.Array, heads: int) -> jax.Array:
    """[..., D, N] → [B or 1, H, N, D]."""
    return jnp.swapaxes(state.reshape(-1, heads, *state.shape[-2:]), 2, 3)


def _by_token(function: Callable[[jax.Array, int], jax.Array], stretch: Stretch) -> Stretch:
    """``function(array, axis of time)`` of every array of a stretch."""
    rows = (function(array, -2) for array in (stretch.query, stretch.key, stretch.value))
    masks = (None if mask is None else function(mask, -1) for mask in (stretch.write_gate, stretch.valid, stretch.reset))
    return Stretch(*rows, *masks)


def _split(array: jax.Array, count: int, size: int, axis: int) -> jax.Array:
    """The first ``count`` chunks of ``size`` along ``axis``, on a new first axis."""
    axis += array.ndim
    array = jax.lax.slice_in_dim(array, 0, count * size, axis=axis)
    return jnp.moveaxis(array.reshape(*array.shape[:axis], count, size, *array.shape[axis + 1 :]), axis, 0)
