"""What one token of one layer reads through its code, as three programs: matrices read whole, rows gathered by XLA, and the kernel.

attended = LN(before + q @ ρ),  gate = relu(encoder_v @ attended),  y = (code · gate) @ decoder,  read = address @ S
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.kernels.token_step.arguments import Active, Matrices
from bdh_jax.kernels.token_step.xla import active_rows
from bdh_jax.layers.norm import layer_norm


class Token(NamedTuple):
    """A token of every example, and what it reads.

    Attributes:
      query: [B, H, N], not zero at the pairs that are active.
      code: [B, H, N].
      address: [B, H, N], not zero where the code is not.
      before: [B, H, D].
      matrices: of K = H·N rows.
    """

    query: jax.Array
    code: jax.Array
    address: jax.Array
    before: jax.Array
    matrices: Matrices


class Budgets(NamedTuple):
    """Groups of two rows of ρ, and rows of the others, that are read at most."""

    pairs: int
    rows: int


def make(sizes: tuple[int, int, int, int], share: float, memory: bool, dtype: Any = jnp.float32) -> tuple[Token, Budgets]:
    """A token of random numbers.

    Args:
      sizes: B, H, N, D.
      share: of the rows that are active.
      memory: whether there is an S.
      dtype: of the weights.
    """
    batch, heads, neurons, width = sizes
    keys, rows = iter(jax.random.split(jax.random.key(0), 10)), heads * neurons

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape)

    shape = (batch, heads, neurons)
    code = jnp.abs(normal(*shape)) * jax.random.bernoulli(next(keys), share, shape)
    pairs = jnp.repeat(jnp.any(code.reshape(*shape[:2], -1, 2) != 0, axis=-1), 2, axis=-1)
    state, weights = (lambda: normal(batch, rows, width)), (lambda: (0.1 * normal(rows, width)).astype(dtype))
    matrices = Matrices(state(), weights(), weights(), state() if memory else None)
    token = Token(normal(*shape) * pairs, code, 0.3 * code, normal(batch, heads, width), matrices)
    at_most = (int(jnp.max(jnp.sum(active != 0, axis=(1, 2)))) for active in (pairs, code))
    of_pairs, of_rows = (max(1, number) for number in at_most)
    return token, Budgets(math.ceil(of_pairs / 2), of_rows)


def whole(token: Token) -> tuple[jax.Array, jax.Array | None]:
    """y and the read of S, [B, D] each, with every matrix read whole."""
    heads, neurons = token.code.shape[1:]
    dtype = token.query.dtype

    def of_heads(matrix: jax.Array) -> jax.Array:
        return matrix.astype(dtype).reshape(*matrix.shape[:-2], heads, neurons, matrix.shape[-1])

    attention, encoder_v, decoder = (of_heads(matrix) for matrix in token.matrices[:3])
    attended = layer_norm(token.before + jnp.einsum("bhn,bhnd->bhd", token.query, attention))
    gate = jax.nn.relu(jnp.einsum("bhd,hnd->bhn", attended, encoder_v))
    y = jnp.einsum("bhn,hnd->bd", token.code * gate, decoder)
    if token.matrices.memory is None:
        return y, None
    return y, jnp.einsum("bhn,bhnd->bd", token.address, of_heads(token.matrices.memory))


def gathered(budgets: Budgets) -> Callable[[Token], tuple[jax.Array, jax.Array | None]]:
    """The same from active rows, by gathers of XLA."""

    def rows_of(matrix: jax.Array, index: jax.Array) -> jax.Array:
        return matrix.at[index].get(mode="promise_in_bounds", indices_are_sorted=True).astype(jnp.float32)

    def run(token: Token) -> tuple[jax.Array, jax.Array | None]:
        pairs, code = _active(token.query, None, budgets.pairs, 2), _active(token.code, token.address, budgets.rows, 1)
        heads, neurons = token.code.shape[1:]

        def one(pairs: Active, code: Active, attention: jax.Array, memory: Any, before: jax.Array) -> tuple[Any, Any]:
            width, last = attention.shape[-1], jnp.minimum(pairs.index, heads * neurons // 2 - 1)
            picked = rows_of(attention.reshape(-1, 2, width), last)
            mine = (last // (neurons // 2))[None] == jnp.arange(heads)[:, None]
            read = jnp.einsum("hr,rg,rgd->hd", mine.astype(jnp.float32), pairs.values, picked)
            attended, here = layer_norm(before + read), jnp.minimum(code.index, heads * neurons - 1)
            seen = jnp.einsum("rd,hd->rh", rows_of(token.matrices.encoder_v, here), attended)
            gate = jax.nn.relu(jnp.take_along_axis(seen, (here // neurons)[:, None], axis=1)[:, 0])
            y = (code.values[:, 0] * gate) @ rows_of(token.matrices.decoder, here)
            return y, None if memory is None else code.address @ rows_of(memory, here)

        return jax.vmap(one)(pairs, code, token.matrices.attention, token.matrices.memory, token.before)

    return run


def by_kernel(budgets: Budgets, platform: str) -> Callable[[Token], tuple[jax.Array, jax.Array | None]]:
    """The same by the kernel of a platform, "gpu" or "tpu"; in Pallas' interpreter where the machine has another."""
    kernel = importlib.import_module(f"bdh_jax.kernels.token_step.pallas_{platform}")
    interpret = jax.default_backend() != platform

    def run(token: Token) -> tuple[jax.Array, jax.Array | None]:
        pairs, code = _active(token.query, None, budgets.pairs, 2), _active(token.code, token.address, budgets.rows, 1)
        if token.matrices.memory is None:
            code = code._replace(address=None)
        y, _, read = kernel.read_gate_decode(pairs, code, token.matrices, token.before, interpret=interpret)
        return y, read

    return run


def _active(values: jax.Array, address: jax.Array | None, budget: int, group: int) -> Active:
    """The rows of each example that are not zero, in groups."""
    groups = values.reshape(len(values), -1, group)

    def one(groups: jax.Array, address: jax.Array | None) -> Active:
        index = active_rows(jnp.any(groups != 0, axis=1), budget).index
        found, last = index < len(groups), jnp.minimum(index, len(groups) - 1)
        of_rows = None if address is None else jnp.where(found, address.reshape(-1)[last], 0)
        return Active(index, jnp.where(found[:, None], groups[last], 0), of_rows)

    return jax.vmap(one)(groups, address)
