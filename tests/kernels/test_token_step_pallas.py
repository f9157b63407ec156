"""One token's read, gate and decode in one kernel, interpreted, against the same with whole matrices."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from bdh_jax.kernels.token_step import pallas_gpu, pallas_tpu
from bdh_jax.kernels.token_step.arguments import Active, Matrices

# Compiled whole; everything else here is NumPy, which compiles nothing.
KERNELS = {
    platform: jax.jit(functools.partial(module.read_gate_decode, interpret=True))
    for platform, module in (("tpu", pallas_tpu), ("gpu", pallas_gpu))
}


class Token(NamedTuple):
    """A token of every example, and what it reads."""

    query: np.ndarray  # [B, H, N]
    code: np.ndarray  # [B, H, N]
    address: np.ndarray  # [B, H, N]
    before: np.ndarray  # [B, H, D]
    matrices: Matrices


def token(batch: int, heads: int, neurons: int, width: int, share: float) -> Token:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    rows = heads * neurons
    shape = (batch, heads, neurons)
    code = np.abs(normal(*shape)) * (rng.random(shape) < share)
    pairs = np.repeat(np.any(code.reshape(*shape[:2], -1, 2) != 0, axis=-1), 2, axis=-1)
    matrices = Matrices(normal(batch, rows, width), normal(rows, width), normal(rows, width), normal(batch, rows, width))
    return Token(normal(*shape) * pairs, code, np.float32(0.3) * code, normal(batch, heads, width), matrices)


def whole(token: Token) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, gate [B, H, N] where the code is not zero, and the read of S."""
    heads, neurons = token.code.shape[1:]
    width = token.before.shape[-1]
    of_heads = [matrix.reshape(*matrix.shape[:-2], heads, neurons, width) for matrix in token.matrices]
    attention, encoder_v, decoder, memory = of_heads
    read = token.before + np.einsum("bhn,bhnd->bhd", token.query, attention)
    attended = (read - read.mean(axis=-1, keepdims=True)) / np.sqrt(read.var(axis=-1, keepdims=True) + 1e-5)
    gate = np.maximum(np.einsum("bhd,hnd->bhn", attended, encoder_v), 0) * (token.code != 0)
    y = np.einsum("bhn,hnd->bd", token.code * gate, decoder)
    return y, gate, np.einsum("bhn,bhnd->bd", token.address, memory)


def active(token: Token, budget: int, group: int) -> Active:
    """The rows of each example, in groups: those of the query where a group is of two, of the code otherwise."""
    values = token.query if group == 2 else token.code
    groups = values.reshape(len(values), -1, group)
    count = groups.shape[1]
    index = np.full((len(groups), budget), count, np.int32)
    for example, rows in enumerate(groups):
        found = np.flatnonzero(np.any(rows != 0, axis=1))[:budget]
        index[example, : len(found)] = found
    last = np.minimum(index, count - 1)
    here = (index < count)[..., None]
    taken = np.where(here, np.take_along_axis(groups, last[..., None], axis=1), 0)
    address = np.take_along_axis(token.address.reshape(len(values), -1), last, axis=1) * here[..., 0] if group == 1 else None
    return Active(index, taken, address)


SIZES = {
    "few rows": ((1, 2, 64, 128), 0.1, (40, 20)),
    "several blocks": ((2, 4, 100, 256), 0.3, (300, 200)),
    "no row": ((2, 1, 50, 128), 0.0, (1, 1)),
    "all rows": ((1, 2, 32, 128), 1.0, (32, 64)),
}
"""Sizes of the matrices, the share of active rows, and budgets of pairs and rows."""


def _cases():
    """Without S the kernel leaves out a copy and a sum, whatever the sizes."""
    for title in SIZES:
        yield pytest.param(title, True, id=f"{title} with S")
        marks = [] if title == "several blocks" else [pytest.mark.full]
        yield pytest.param(title, False, marks=marks, id=f"{title} without S")


@pytest.mark.parametrize("platform", KERNELS)
@pytest.mark.parametrize(("title", "memory"), [*_cases()])
def test_active_rows_are_enough(platform, title, memory):
    sizes, share, budgets = SIZES[title]
    given = token(*sizes, share)
    pairs, code = active(given, budgets[0], 2), active(given, budgets[1], 1)
    of_query = given.query.reshape(*given.query.shape[:2], -1, 2)
    assert np.sum(np.any(pairs.values != 0, axis=-1)) == np.sum(np.any(of_query != 0, axis=-1))
    matrices = given.matrices if memory else given.matrices._replace(memory=None)
    y, gate, read = KERNELS[platform](pairs, code, matrices, given.before)
    expected, of_rows, of_memory = whole(given)
    # Sums of some hundred products of order one, in float32.
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)
    flat = of_rows.reshape(sizes[0], -1)
    here = code.index < flat.shape[1]
    chosen = np.take_along_axis(flat, np.minimum(code.index, flat.shape[1] - 1), axis=1)
    np.testing.assert_allclose(np.where(here, gate, 0), np.where(here, chosen, 0), rtol=1e-4, atol=1e-4)
    if memory:
        np.testing.assert_allclose(read, of_memory, rtol=1e-4, atol=1e-4)
    else:
        assert read is None
