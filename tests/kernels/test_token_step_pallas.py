"""One token's read, gate and decode in one kernel, interpreted, against the same with whole matrices."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.kernels.token_step import pallas_gpu, pallas_tpu
from bdh_jax.kernels.token_step.arguments import Active, Matrices
from bdh_jax.kernels.token_step.xla import active_rows
from bdh_jax.layers.norm import layer_norm

KERNELS = {"tpu": pallas_tpu, "gpu": pallas_gpu}


class Token(NamedTuple):
    """A token of every example, and what it reads."""

    query: jax.Array  # [B, H, N]
    code: jax.Array  # [B, H, N]
    address: jax.Array  # [B, H, N]
    before: jax.Array  # [B, H, D]
    matrices: Matrices


def token(batch: int, heads: int, neurons: int, width: int, share: float) -> Token:
    keys = iter(jax.random.split(jax.random.key(0), 20))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape)

    rows = heads * neurons
    shape = (batch, heads, neurons)
    code = jnp.abs(normal(*shape)) * jax.random.bernoulli(next(keys), share, shape)
    pairs = jnp.repeat(jnp.any(code.reshape(*shape[:2], -1, 2) != 0, axis=-1), 2, axis=-1)
    matrices = Matrices(normal(batch, rows, width), normal(rows, width), normal(rows, width), normal(batch, rows, width))
    return Token(normal(*shape) * pairs, code, 0.3 * code, normal(batch, heads, width), matrices)


def whole(token: Token) -> tuple[jax.Array, jax.Array, jax.Array]:
    """y, gate [B, H, N] where the code is not zero, and the read of S."""
    heads, neurons = token.code.shape[1:]
    width = token.before.shape[-1]
    of_heads = [matrix.reshape(*matrix.shape[:-2], heads, neurons, width) for matrix in token.matrices]
    attention, encoder_v, decoder, memory = of_heads
    attended = layer_norm(token.before + jnp.einsum("bhn,bhnd->bhd", token.query, attention))
    gate = jax.nn.relu(jnp.einsum("bhd,hnd->bhn", attended, encoder_v)) * (token.code != 0)
    y = jnp.einsum("bhn,hnd->bd", token.code * gate, decoder)
    return y, gate, jnp.einsum("bhn,bhnd->bd", token.address, memory)


def active(token: Token, budget: int, group: int) -> Active:
    """The rows of each example, in groups: those of the query where a group is of two, of the code otherwise."""
    values = token.query if group == 2 else token.code
    groups = values.reshape(len(values), -1, group)
    index = jnp.stack([active_rows(jnp.any(rows != 0, axis=1), budget).index for rows in groups])
    last = jnp.minimum(index, groups.shape[1] - 1)
    here = (index < groups.shape[1])[..., None]
    taken = jnp.where(here, jnp.take_along_axis(groups, last[..., None], axis=1), 0)
    address = jnp.take_along_axis(token.address.reshape(len(values), -1), last, axis=1) * here[..., 0]
    return Active(index, taken, address if group == 1 else None)


@pytest.mark.parametrize("platform", KERNELS)
@pytest.mark.parametrize("memory", [True, False], ids=["with S", "without S"])
@pytest.mark.parametrize(
    ("sizes", "share", "budgets"),
    [
        ((1, 2, 64, 128), 0.1, (40, 20)),
        ((2, 4, 100, 256), 0.3, (300, 200)),
        ((2, 1, 50, 128), 0.0, (1, 1)),
        ((1, 2, 32, 128), 1.0, (32, 64)),
    ],
    ids=["few rows", "several blocks", "no row", "all rows"],
)
def test_active_rows_are_enough(platform, memory, sizes, share, budgets):
    given = token(*sizes, share)
    if not memory:
        given = given._replace(matrices=given.matrices._replace(memory=None))
    pairs, code = active(given, budgets[0], 2), active(given, budgets[1], 1)
    assert int(jnp.sum(jnp.any(pairs.values != 0, axis=-1))) == int(
        jnp.sum(jnp.any(given.query.reshape(*given.query.shape[:2], -1, 2) != 0, axis=-1))
    )
    y, gate, read = KERNELS[platform].read_gate_decode(pairs, code, given.matrices, given.before, interpret=True)
    full = (
        given
        if memory
        else given._replace(matrices=given.matrices._replace(memory=jnp.zeros((sizes[0], sizes[1] * sizes[2], sizes[3]))))
    )
    expected, of_rows, of_memory = whole(full)
    # Sums of some hundred products of order one, in float32.
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)
    flat = of_rows.reshape(sizes[0], -1)
    here = code.index < flat.shape[1]
    chosen = jnp.take_along_axis(flat, jnp.minimum(code.index, flat.shape[1] - 1), axis=1)
    np.testing.assert_allclose(jnp.where(here, gate, 0), jnp.where(here, chosen, 0), rtol=1e-4, atol=1e-4)
    if memory:
        np.testing.assert_allclose(read, of_memory, rtol=1e-4, atol=1e-4)
    else:
        assert read is None
