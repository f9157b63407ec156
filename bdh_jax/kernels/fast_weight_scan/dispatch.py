"""The public operation, its argument checks, and the choice between its forms."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.kernels.fast_weight_scan import pallas, reference, xla

Form = Literal["auto", "recurrent", "chunked", "parallel", "pallas", "pallas_interpret"]
Rule = Literal["hebbian", "delta", "gated_delta", "longhorn", "oja"]
FORMS = ("auto", "recurrent", "chunked", "parallel", "pallas", "pallas_interpret")


def choose_form(length: int, width: int, chunk_size: int) -> Form:
    """The form "auto" stands for, by multiply-adds per token and neuron.

    The parallel form spends T of them on scores (half of it masked away) and the chunked form 2·D + C, so the parallel
    form is cheaper up to about T = 2·D.

    Args:
      length: T.
      width: D.
      chunk_size: C.
    """
    if length == 1:
        return "recurrent"
    return "parallel" if length <= max(2 * width, chunk_size) else "chunked"


def fast_weight_scan(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: jax.Array | None = None,
    *,
    learning_rate: jax.Array | float = 1.0,
    decay: jax.Array | float = 1.0,
    valid: jax.Array | None = None,
    reset: jax.Array | None = None,
    implementation: Form = "auto",
    chunk_size: int = 128,
    final: xla.Final = "full",
    sum_heads: bool = False,
    rule: Rule = "hebbian",
    gate: jax.Array | None = None,
    limits: Mapping[str, float | None] | None = None,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Read from and write to a matrix S at every token: r_t = q_t @ S_t, then S_{t+1} = λ S_t + η k_t ⊗ x_t.

    Strictly causal: a token reads before it writes. Linear attention is this with λ = η = 1 and rotated codes as query
    and key; Hebbian fast weights use addresses. All forms compute the same function and differ in speed. Other write rules
    replace the second formula, see :mod:`bdh_jax.fast_weights.rules.tokenwise`.

    Args:
      query: [B, T, K], or [B, H, T, N] to keep a read per head.
      key: shape of ``query``.
      value: [B, T, D], shared by all heads.
      state: S_0, [B, K, D] (or [B, H, N, D]); None starts from zeros and skips the initial read.
      learning_rate: η ≥ 0, a scalar or one per head [H]; with [B, T, K] inputs the heads are H equal parts of K.
      decay: λ in (0, 1], likewise.
      valid: [B, T] bool. An invalid token neither writes nor decays. None: all valid.
      reset: [B, T] bool. S is zero when that token reads: a new episode. None: no resets.
      implementation: "recurrent" scans tokens (the reference), "chunked" scans chunks, "parallel" is one masked product,
        "pallas" is the compiled kernel (GPU or TPU), "pallas_interpret" the same kernel interpreted anywhere, "auto"
        chooses by length.
      chunk_size: tokens per chunk of the chunked and Pallas forms.
      final: "full" returns S_T, "mean" its mean over the batch [1, ...], "none" returns None in its place.
      sum_heads: sum the read over the heads, always so for [B, T, K] inputs. Cheaper than summing the result.
      rule: "hebbian", "delta", "gated_delta", "longhorn" or "oja". The Pallas kernel knows the first only.
      gate: β in [0, 1], [B, T], of "gated_delta" and of no other rule.
      limits: of :func:`bdh_jax.fast_weights.rules.tokenwise.bound`, on S after every write. Not linear, so only the recurrent form has them.
      axis: inside ``jax.shard_map``, the name of the mesh axis that the rows are split over. Rules that predict sum over it; the
        read is that of the rows at hand.

    Returns:
      read [B, T, D] (or [B, H, T, D] without ``sum_heads``) and S_T in the shape of ``state``, both float32 or wider.

    Raises:
      ValueError: for shapes that do not fit each other.
      ConfigError: for a form or rule that does not exist, or a form that cannot run on this machine or with this rule.
    """
    if rule not in typing.get_args(Rule):
        raise ConfigError(f"rule={rule!r} is not one of {', '.join(map(repr, typing.get_args(Rule)))}")
    if (gate is not None) != (rule == "gated_delta"):
        problem = "needs a gate [B, T]" if gate is None else "takes no gate"
        raise ValueError(f"rule={rule!r} {problem}")
    if implementation not in FORMS:
        raise ConfigError(f"implementation={implementation!r} is not one of {', '.join(map(repr, FORMS))}")
    if final not in ("full", "mean", "none"):
        raise ValueError(f"final={final!r} is not one of 'full', 'mean', 'none'")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    _check_shapes(query, key, value, state, valid, reset)
    if state is not None:
        state = state.astype(jnp.promote_types(jnp.float32, query.dtype))

    heads = max([1, *(jnp.size(rate) for rate in (learning_rate, decay) if jnp.ndim(rate))])
    shape = query.shape
    if query.ndim == 3:
        sum_heads = True
        query, key, state = _split_heads(query, key, state, heads)
    elif sum_heads and heads == 1:
        # Heads that share their rates and are summed are one head of K neurons.
        query, key, state = _merge_heads(query, key, state)
    for name, rate in (("learning_rate", learning_rate), ("decay", decay)):
        if jnp.ndim(rate) > 1 or (jnp.ndim(rate) == 1 and jnp.size(rate) not in (1, query.shape[1])):
            raise ValueError(
                f"{name} has shape {jnp.shape(rate)}; it must be a scalar or one rate per head [{query.shape[1]}]"
            )

    options = dict(decay=decay, valid=valid, reset=reset, final=final, sum_heads=sum_heads)
    other = dict(rule=rule, gate=gate, limits=limits, axis=axis)
    read, next_state = _run(query, key, value[:, None], state, learning_rate, implementation, chunk_size, options, **other)
    if next_state is not None:
        next_state = next_state.reshape(next_state.shape[0], *shape[1:-2], shape[-1], next_state.shape[-1])
    return read[:, 0] if sum_heads else read, next_state


def _run(query, key, value, state, learning_rate, implementation, chunk_size, options, *, rule, gate, limits, axis):
    if implementation == "auto":
        implementation = "recurrent" if limits else choose_form(query.shape[2], value.shape[-1], chunk_size)
    if limits and implementation != "recurrent":
        raise ConfigError(
            f"implementation={implementation!r} cannot keep the limits {dict(limits)}: they are not linear in S, so only "
            'implementation="recurrent" (or "auto") has them'
        )
    if rule != "hebbian" and implementation in ("pallas", "pallas_interpret"):
        raise ConfigError(
            f'implementation={implementation!r} has no rule={rule!r}: the kernel writes "hebbian" only; use "chunked"'
        )
    if implementation == "recurrent":
        dtype = jnp.promote_types(jnp.float32, query.dtype)
        shape = (*query.shape[:2], query.shape[-1], value.shape[-1])
        state = jnp.zeros(shape, dtype) if state is None else state.astype(dtype)
        masks = {name: options[name] for name in ("decay", "valid", "reset")}
        other = dict(rule=rule, gate=gate, limits=limits, axis=axis)
        read, state = reference.recurrent(query, key, value, state, learning_rate=learning_rate, **masks, **other)
        if options["sum_heads"]:
            read = jnp.sum(read, axis=1, keepdims=True)
        if options["final"] == "full":
            return read, state
        return read, jnp.mean(state, axis=0, keepdims=True) if options["final"] == "mean" else None

    if rule != "hebbian":
        from bdh_jax.fast_weights.rules import corrections

        rates = dict(learning_rate=learning_rate, decay=options["decay"])
        options["correct"] = functools.partial(corrections.correct, rule, **rates, axis=axis)
        options["gate"] = gate
    elif not (isinstance(learning_rate, float) and learning_rate == 1.0):
        rate = jnp.asarray(learning_rate, jnp.promote_types(jnp.float32, key.dtype)).reshape(1, -1, 1, 1)
        if rate.size == 1:
            value = (value * rate).astype(value.dtype)
        else:
            key = (key * rate).astype(key.dtype)
    if implementation == "parallel":
        return xla.parallel(query, key, value, state, **options)
    if implementation == "chunked":
        return xla.chunked(query, key, value, state, chunk_size=chunk_size, **options)
    interpret = implementation == "pallas_interpret"
    return pallas.chunked(query, key, value, state, chunk_size=chunk_size, interpret=interpret, **options)


def _split_heads(query: jax.Array, key: jax.Array, state: jax.Array | None, heads: int):
    """[B, T, K] → [B, H, T, N] for query and key; [B, K, D] → [B, H, N, D] for the state."""
    batch, length, neurons = query.shape
    if neurons % heads:
        raise ValueError(f"the K={neurons} rows do not divide into the {heads} heads of the rates")
    if heads == 1:  # no transpose, which could cost a copy
        return query[:, None], key[:, None], None if state is None else state[:, None]
    shape = (batch, length, heads, neurons // heads)
    query, key = (jnp.swapaxes(a.reshape(shape), 1, 2) for a in (query, key))
    return query, key, None if state is None else state.reshape(batch, heads, neurons // heads, -1)


def _merge_heads(query: jax.Array, key: jax.Array, state: jax.Array | None):
    """[B, H, T, N] → [B, 1, T, K] for query and key; [B, H, N, D] → [B, 1, K, D] for the state."""
    batch, heads, length, neurons = query.shape
    query, key = (jnp.swapaxes(a, 1, 2).reshape(batch, 1, length, heads * neurons) for a in (query, key))
    return query, key, None if state is None else state.reshape(batch, 1, heads * neurons, -1)


def _check_shapes(query, key, value, state, valid, reset) -> None:
    if query.ndim not in (3, 4) or query.shape != key.shape:
        raise ValueError(f"query {query.shape} and key {key.shape} must both be [B, T, K] or both [B, H, T, N]")
    batch, length = query.shape[0], query.shape[-2]
    if value.ndim != 3 or value.shape[:2] != (batch, length):
        raise ValueError(f"value has shape {value.shape}; with query {query.shape} it must be [{batch}, {length}, D]")
    if length < 1:
        raise ValueError("the sequence is empty: T must be at least 1")
    rows = (*query.shape[:-2], query.shape[-1], value.shape[-1])
    if state is not None and state.shape != rows:
        raise ValueError(
            f"state has shape {state.shape}; with query {query.shape} and value {value.shape} it must be {rows}"
        )
    for name, mask in (("valid", valid), ("reset", reset)):
        if mask is not None and (mask.shape != (batch, length) or mask.dtype != bool):
            raise ValueError(f"{name} has shape {mask.shape} and dtype {mask.dtype}; it must be bool [{batch}, {length}]")
