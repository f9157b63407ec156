"""The public parts of a token step: reads of active rows, and writes that are kept beside a matrix until there are W of them.

    read      q @ M from the rows where q is not zero
    project   M @ x at the rows that are active
    step      read M and the slots, then take a slot for the token's key and value; nothing of M's size is touched
    flush     all slots go into M by one product

Each read has a budget of rows. An example with more of them reads all of M, so that the result is the same; that is reported, and
changes no other example, not by a rounding.

Axis letters: see :mod:`bdh_jax.types`; W slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Rate, Stretch
from bdh_jax.kernels.token_step import reference, xla
from bdh_jax.kernels.token_step.arguments import Recent, Write


def read(
    query: jax.Array, matrix: jax.Array, budget: int | None = None, *, group: int = 1, sum_heads: bool = False
) -> tuple[jax.Array, jax.Array]:
    """q @ M.

    Args:
      query: [B, H, N], mostly zeros.
      matrix: M, [B, H, N, D] of each example, or [H, N, D] of all.
      budget: groups of rows that are read at most; None reads all of M.
      group: neighbouring rows that are read together, a divisor of N: pairs that the rotary embedding turns are active together.
      sum_heads: sum over the heads.

    Returns:
      [B, H, D], or [B, D] summed, in the wider dtype of both, at least float32; and bool [B], where the budget was exceeded.

    Raises:
      ValueError: for shapes that do not fit each other.
    """
    matrix = matrix[None] if matrix.ndim == 3 else matrix
    _check(query, matrix, group)
    batch = query.shape[0]
    if budget is None:
        return reference.read(query, matrix, sum_heads), jnp.zeros((batch,), bool)
    budget = _at_most(budget, query[0].size // group)

    def one(query: jax.Array, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        if sum_heads and group == 1:
            return xla.read_summed(query, matrix, budget)
        found, count = xla.read(query, matrix, budget, group)
        return jnp.sum(found, axis=0) if sum_heads else found, count

    def dense(query: jax.Array, matrix: jax.Array) -> jax.Array:
        return reference.read(query, matrix, sum_heads)

    return _within_budget(one, dense, budget, (query, matrix), shared=(False, matrix.shape[0] < batch))


def project(x: jax.Array, rows: jax.Array, active: jax.Array, budget: int) -> tuple[jax.Array, jax.Array]:
    """Each head's M @ x at the rows that are active, zeros elsewhere.

    Args:
      x: [B, H, D].
      rows: M by rows, [H, N, D].
      active: [B, H, N] bool.
      budget: rows that are read at most.

    Returns:
      [B, H, N] in the dtype of x, and bool [B], where the budget was exceeded.

    Raises:
      ValueError: for shapes that do not fit each other.
    """
    heads, neurons, width = rows.shape
    if x.shape[1:] != (heads, width) or active.shape != (x.shape[0], heads, neurons):
        raise ValueError(
            f"x {x.shape}, rows {rows.shape} and active {active.shape} must be [B, H, D], [H, N, D] and [B, H, N]"
        )
    budget = _at_most(budget, heads * neurons)
    return _within_budget(
        lambda x, rows, active: xla.project(x, rows, active, budget),
        lambda x, rows, active: jnp.where(active, reference.project(x, rows[0]), jnp.zeros((), x.dtype)),
        budget,
        (x, rows[None], active),
        shared=(False, True, False),
    )


def step(
    token: Stretch,
    matrix: jax.Array,
    recent: Recent,
    dynamics: Dynamics,
    *,
    budget: int | None = None,
    group: int = 1,
    sum_heads: bool = False,
) -> tuple[jax.Array, Recent, jax.Array]:
    """``fast_weight_scan`` of one token, whose write takes a slot beside the matrix instead of going into it: r = q @ S, then
    S ← λ S + η β k ⊗ x.

    Args:
      token: a stretch of one token, with values for all heads.
      matrix: M, [B, H, N, D]. It is not changed.
      recent: earlier writes, with a slot that is free (``used`` < W).
      dynamics: η, of any kind that ``fast_weight_scan`` takes, and λ, any but one for each row.
      budget: of :func:`read`.
      group: of :func:`read`.
      sum_heads: sum the read over the heads.

    Returns:
      read [B, H, 1, D], or [B, 1, D] summed; the writes, with this one among them; and bool [B], where the budget was exceeded.

    Raises:
      ValueError: for shapes that do not fit each other, or more than one token.
      ConfigError: for a decay of each row, by which a matrix would have to be multiplied.
    """
    if token.query.shape[2] != 1 or token.value.shape[1] != 1:
        raise ValueError(f"query {token.query.shape} and value {token.value.shape} must be [B, H, 1, N] and [B, 1, 1, D]")
    query, dtype = token.query[:, :, 0], recent.scale.dtype
    write = _write(token, dynamics, dtype)
    found, exceeded = read(query, matrix, budget, group=group)
    if token.reset is not None:
        recent = _forgotten(recent, token.reset)
    found = _read_recent(query, found.astype(dtype), recent)
    recent = _take_slot(recent, write, found)
    return jnp.sum(found, axis=1)[:, None] if sum_heads else found[:, :, None], recent, exceeded


def _write(token: Stretch, dynamics: Dynamics, dtype: Any) -> Write:
    """What the token writes. η is in the key where each row has its own."""
    learning_rate, decay = (_of_token(rate, dtype) for rate in dynamics)
    if decay.shape[2] > 1:
        raise ConfigError(
            f"a token step has no decay for each row {decay.shape}; write to the matrix at once (token_step.slots=0)"
        )
    key, weight = token.key[:, :, 0], jnp.ones((1, 1), dtype)
    if learning_rate.shape[2] > 1:
        key = (key * learning_rate).astype(key.dtype)
    else:
        weight = learning_rate[..., 0]
    kept = decay[..., 0]
    if token.write_gate is not None:
        weight = weight * token.write_gate.astype(dtype)
    if token.valid is not None:
        kept = jnp.where(token.valid, kept, jnp.ones((), dtype))
        weight = jnp.where(token.valid, weight, jnp.zeros((), dtype))
    return Write(key, token.value[:, 0, 0], weight, kept)


def _of_token(rate: Rate, dtype: Any) -> jax.Array:
    """A rate as [B or 1, H or 1, N or 1]."""
    rate = jnp.asarray(rate, dtype)
    return rate[:, :, 0] if rate.ndim == 4 else rate.reshape(1, -1, 1)


def _read_recent(query: jax.Array, found: jax.Array, recent: Recent) -> jax.Array:
    """What is read of M and of the writes that have not reached it: ``found`` [B, H, D] is each head's part of q @ M."""
    dtype = found.dtype
    shares = recent.weight * jnp.einsum("bhwn,bhn->bhw", recent.key, query, preferred_element_type=dtype)
    return recent.scale[..., None] * found + jnp.einsum("bhw,bwd->bhd", shares, recent.value.astype(dtype))


def _forgotten(recent: Recent, reset: jax.Array) -> Recent:
    """Nothing of what was written before is left where ``reset`` [B, 1] holds. Neither M nor keys are looked at."""
    scale = jnp.where(reset, jnp.zeros((), recent.scale.dtype), recent.scale)
    weight = jnp.where(reset[..., None], jnp.zeros((), recent.weight.dtype), recent.weight)
    return recent._replace(weight=weight, scale=scale)


def _take_slot(recent: Recent, token: Write, found: jax.Array) -> Recent:
    """The writes with one more. As far as the compiler can tell it depends on what was read, ``found`` [B, H, D], so that it cannot come
    before the read, and XLA overwrites keys and values that were given up. Otherwise it copies all of them first."""
    zero = jax.lax.stop_gradient(jnp.minimum(jnp.max(jnp.abs(found), axis=(1, 2)), 0))
    slot = recent.used

    def put(slots: jax.Array, row: jax.Array, axis: int) -> jax.Array:
        row = (row + zero.reshape(-1, *[1] * (row.ndim - 1))).astype(slots.dtype)
        return jax.lax.dynamic_update_index_in_dim(slots, row, slot, axis=axis)

    kept, weight = (jnp.broadcast_to(a, recent.scale.shape) for a in (token.kept, token.weight))
    return Recent(
        key=put(recent.key, token.key, 2),
        value=put(recent.value, token.value, 1),
        weight=put(recent.weight * kept[..., None], weight, 2),
        scale=recent.scale * kept,
        used=slot + 1,
    )


def flush(matrix: jax.Array, recent: Recent, where: jax.Array | None = None) -> tuple[jax.Array, Recent]:
    """M [B, H, N, D] with all recent writes in it, and slots that are free again.

    Args:
      matrix: M. It is written in place where it is given up, and not touched where nothing is written.
      recent: the writes.
      where: bool scalar; False leaves both as they are. None: True.

    Raises:
      ValueError: for shapes that do not fit each other.
    """
    batch, heads, neurons, width = matrix.shape
    if recent.key.shape[:2] != (batch, heads) or recent.key.shape[3] != neurons or recent.value.shape[2] != width:
        raise ValueError(
            f"keys {recent.key.shape} and values {recent.value.shape} are of another matrix than {matrix.shape}"
        )
    free = recent._replace(
        weight=jnp.zeros_like(recent.weight), scale=jnp.ones_like(recent.scale), used=jnp.zeros_like(recent.used)
    )
    if where is None:
        return xla.flush(matrix, recent), free
    chosen = {name: jnp.where(where, getattr(free, name), getattr(recent, name)) for name in ("weight", "scale", "used")}
    return xla.flush_where(matrix, recent, where), recent._replace(**chosen)


def _within_budget(
    one: Callable[..., tuple[jax.Array, jax.Array]],
    dense: Callable[..., jax.Array],
    budget: int,
    arrays: tuple[jax.Array, ...],
    shared: tuple[bool, ...],
) -> tuple[jax.Array, jax.Array]:
    """``one`` of each example, and ``dense`` of all where some example exceeds the budget; those within it keep what they have."""
    if arrays[0].shape[0] == 1:
        # Products without a batch, which XLA on CPUs runs faster.
        found, count = jax.tree.map(lambda a: a[None], one(*(array[0] for array in arrays)))
    else:
        given = [array[0] if of_all else array for array, of_all in zip(arrays, shared, strict=True)]
        found, count = jax.vmap(one, in_axes=[None if of_all else 0 for of_all in shared])(*given)
    exceeded = count > budget
    where = exceeded.reshape(-1, *[1] * (found.ndim - 1))
    return (
        jax.lax.cond(jnp.any(exceeded), lambda: jnp.where(where, dense(*arrays).astype(found.dtype), found), lambda: found),
        exceeded,
    )


def _at_most(budget: int, size: int) -> int:
    if budget < 1:
        raise ValueError(f"budget={budget} must be at least 1, or None to read everything")
    return min(budget, size)


def _check(query: jax.Array, matrix: jax.Array, group: int) -> None:
    if (
        query.ndim != 3
        or matrix.ndim != 4
        or query.shape[1:] != matrix.shape[1:3]
        or matrix.shape[0] not in (1, query.shape[0])
    ):
        raise ValueError(f"query {query.shape} and matrix {matrix.shape} must be [B, H, N] and [B, H, N, D] or [H, N, D]")
    if group < 1 or query.shape[2] % group:
        raise ValueError(f"group={group} does not divide the N={query.shape[2]} rows of a head")
