"""Matrix-product forms of the scan, in plain JAX.

Unrolling S_{t+1} = λ S_t + η k_t ⊗ x_t over a stretch of tokens that starts from S_0 gives

    read_t = λ^{n_t} q_t @ S_0 + Σ_{s<t} λ^{n_t − n_s − 1} η (q_t · k_s) x_s
    S_T    = λ^{n_T} S_0       + Σ_s     λ^{n_T − n_s − 1} η k_s ⊗ x_s

with n_t the number of valid tokens before t. ``parallel`` is that with the whole sequence as one stretch; ``chunked`` is
a ``jax.lax.scan`` over stretches with S as its carry. No array of shape [T, N, D] is ever formed.
"""

from __future__ import annotations

from typing import Literal

import math

import jax
import jax.numpy as jnp

Final = Literal["full", "mean", "none"]


def exclusive_count(valid: jax.Array) -> jax.Array:
    """Number of valid tokens before each token, [B, T] int32, from ``valid`` [B, T] bool."""
    return jnp.cumsum(valid, axis=1, dtype=jnp.int32) - valid.astype(jnp.int32)


def swap(array: jax.Array, first: int, second: int) -> jax.Array:
    """Exchange two axes. If one has length 1 this is a reshape, which XLA knows to be free; a transpose may cost a copy."""
    if 1 not in (array.shape[first], array.shape[second]):
        return jnp.swapaxes(array, first, second)
    shape = list(array.shape)
    shape[first], shape[second] = shape[second], shape[first]
    return array.reshape(shape)


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

    Returns:
      read [B, H, T, D] in the accumulation dtype and S_T [B, H, N, D], [1, H, N, D] or None.
    """
    query, key, value = _heads_first(query, key, value)
    read, state = _stretch(query, key, value, _inside(state), decay=decay, valid=valid, reset=reset, final=final)
    return swap(read, 0, 1), _outside(state)


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
    chunk_size: int,
) -> tuple[jax.Array, jax.Array | None]:
    """The scan over chunks of ``chunk_size`` tokens; arguments and results as in :func:`parallel`."""
    query, key, value = _heads_first(query, key, value)
    state = _inside(state)
    options = dict(decay=decay)
    length = query.shape[2]
    count = length // chunk_size
    end = count * chunk_size
    if count < 2:
        # TODO
        count = end = 0
    reads = []
    if count:
        if state is None:
            dtype = jnp.promote_types(jnp.float32, query.dtype)
            state = jnp.zeros((*query.shape[:2], value.shape[-1], query.shape[-1]), dtype)

        def split(array: jax.Array | None) -> jax.Array | None:
            """[..., T, N] → [chunks, ...·C, N]. Axes of length 1 are kept out of the scan's arrays: they can cost a copy."""
            if array is None:
                return None
            lead, after = array.shape[:-2], array.shape[-1]
            array = jax.lax.slice_in_dim(array, 0, end, axis=-2)
            if math.prod(lead) > 1:
                array = jnp.moveaxis(array.reshape(*lead, count, chunk_size, after), -3, 0)
            return array.reshape(count, math.prod(lead) * chunk_size, after)

        def step(state, chunk):
            q, k, v = (a.reshape(*query.shape[:2], chunk_size, -1) for a in chunk[:3])
            masks = [None if m is None else m.reshape(query.shape[1], chunk_size) for m in chunk[3:]]
            read, state = _stretch(q, k, v, state, decay=decay, valid=masks[0], reset=masks[1], final="full")
            return state, read.reshape(-1, read.shape[-1])

        masks = [None if m is None else m[..., None] for m in (valid, reset)]
        state, read = jax.lax.scan(step, state, tuple(split(a) for a in (query, key, value, *masks)))
        read = read.reshape(count, *query.shape[:2], chunk_size, -1)
        reads.append(jnp.moveaxis(read, 0, 2).reshape(*query.shape[:2], end, -1))
    if end < length:
        q, k, v = (a[:, :, end:] for a in (query, key, value))
        masks = [None if mask is None else mask[:, end:] for mask in (valid, reset)]
        read, state = _stretch(q, k, v, state, decay=decay, valid=masks[0], reset=masks[1], final=final)
        reads.append(read)
    elif final == "mean":
        state = jnp.mean(state, axis=1, keepdims=True)
    read = reads[0] if len(reads) == 1 else jnp.concatenate(reads, axis=2)
    return swap(read, 0, 1), None if final == "none" else _outside(state)


# Inside, heads come first, as in the model's own products, and S is kept as [H, B, D, N]: then the large arrays enter every
# forward product untransposed, which on CPU is worth a factor of two.


def _heads_first(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """query and key as [H, B, T, N], value as [H, B, T, D]."""
    batch, heads, length, _ = query.shape
    value = jnp.broadcast_to(swap(value, 0, 1), (heads, batch, length, value.shape[-1]))
    return swap(query, 0, 1), swap(key, 0, 1), value


def _inside(state: jax.Array | None) -> jax.Array | None:
    """[B, H, N, D] → [H, B, D, N]."""
    return None if state is None else swap(swap(state, 0, 1), 2, 3)


def _outside(state: jax.Array | None) -> jax.Array | None:
    """[H, B, D, N] → [B, H, N, D]."""
    return None if state is None else swap(swap(state, 0, 1), 2, 3)


def _stretch(query, key, value, state, *, decay, valid, reset, final):
    """One stretch of tokens. query, key [H, B, T, N]; value [H, B, T, D]; state [H, B, D, N] or None; read [H, B, T, D]."""
    batch, length = query.shape[1:3]
    dtype = jnp.promote_types(jnp.float32, query.dtype)
    decays = not (isinstance(decay, float) and decay == 1.0)
    time = jnp.arange(length, dtype=jnp.int32)

    # before [B or 1, T]: valid tokens before each token. total [B or 1, 1]: valid tokens in all.
    before = time[None, :] if valid is None else exclusive_count(valid)
    total = before[:, -1:] + (1 if valid is None else valid[:, -1:].astype(jnp.int32))
    reads = (time[:, None] > time[None, :])[None]
    if valid is not None:
        reads = reads & valid[:, None, :]
    if reset is not None:
        episode = jnp.cumsum(reset, axis=1)
        reads = reads & (episode[:, :, None] == episode[:, None, :])

    def weight(steps: jax.Array, where: jax.Array | None) -> jax.Array:
        """λ^steps where ``where`` holds, zero elsewhere: [B or 1, ...] → [H or 1, B or 1, ...]."""
        result = jnp.ones_like(steps[None], dtype)
        if decays:
            rates = jnp.log(jnp.asarray(decay, dtype)).reshape(-1, *[1] * steps.ndim)
            result = jnp.exp((steps if where is None else jnp.where(where, steps, 0))[None].astype(dtype) * rates)
        return result if where is None else jnp.where(where[None], result, jnp.zeros((), dtype))

    scores = jnp.einsum("hbtn,hbsn->hbts", query, key, preferred_element_type=dtype)
    if decays:
        scores = scores * weight(before[:, :, None] - before[:, None, :] - 1, reads)
    else:
        scores = jnp.where(reads[None], scores, jnp.zeros((), dtype))
    read = jnp.einsum("hbts,hbsd->hbtd", scores.astype(value.dtype), value, preferred_element_type=dtype)
    if state is not None:
        survives = weight(before, None if reset is None else episode == 0)
        read = read + survives[..., None] * jnp.einsum("hbtn,hbdn->hbtd", query.astype(dtype), state)
    if final == "none":
        return read, None

    written = valid
    if reset is not None:
        last = episode == episode[:, -1:]
        written = last if valid is None else valid & last
    weighted = (weight(total - before - 1, written)[..., None] * value.astype(dtype)).astype(key.dtype)
    output = "hdn" if final == "mean" else "hbdn"
    next_state = jnp.einsum(f"hbsd,hbsn->{output}", weighted, key, preferred_element_type=dtype)
    if final == "mean":
        next_state = next_state[:, None] / batch
    if state is not None:
        kept = weight(total, None if reset is None else episode[:, -1:] == 0)[..., None] * state
        next_state = next_state + (jnp.mean(kept, axis=1, keepdims=True) if final == "mean" else kept)
    return read, next_state
