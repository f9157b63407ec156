"""Parts of a token step against the same read and written whole, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.kernels import token_step
from bdh_jax.kernels.fast_weight_scan import fast_weight_scan
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Stretch
from bdh_jax.kernels.fast_weight_scan.reference import HEBBIAN
from bdh_jax.kernels.token_step import xla
from bdh_jax.kernels.token_step.arguments import Recent

# Compiled whole, as models do.
read = jax.jit(token_step.read, static_argnums=2, static_argnames=("group", "sum_heads"))
project = jax.jit(token_step.project, static_argnums=3)
step = jax.jit(token_step.step, static_argnames=("budget", "group", "sum_heads"))
flush = jax.jit(token_step.flush)
active_rows = jax.jit(xla.active_rows, static_argnums=1)
BATCH, HEADS, NEURONS, WIDTH = 3, 2, 20, 4
EXACT = 1e-12


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def sparse(rng, share, group=1):
    """Queries [B, H, N], each example with other rows that are not zero."""
    active = rng.random((BATCH, HEADS, NEURONS // group)) < share
    return np.where(np.repeat(active, group, axis=2), rng.normal(size=(BATCH, HEADS, NEURONS)), 0)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_active_rows_are_found_in_order(size, share):
    active = np.random.default_rng(size).random(size) < share
    expected = np.flatnonzero(active)
    for budget in {1, size, max(1, len(expected)), max(1, len(expected) - 1)}:
        rows = active_rows(jnp.asarray(active), budget)
        assert rows.count == len(expected)
        filled = np.full(budget, size)
        filled[: len(expected)] = expected[:budget]
        np.testing.assert_array_equal(rows.index, filled)


@pytest.mark.parametrize("sum_heads", [False, True])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_reading_active_rows_is_reading_all(batch, shared, group, sum_heads):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(HEADS, NEURONS, WIDTH) if shared else (batch, HEADS, NEURONS, WIDTH))
    # Few budgets: each is a program.
    every, some = HEADS * NEURONS, 8
    for share, budget in ((0.3, every), (1.0, every), (0.0, some), (0.3, some), (1.0, some), (0.3, None)):
        query = sparse(rng, share, group)[:batch]
        found, exceeded = read(query, matrix, budget, group=group, sum_heads=sum_heads)
        expected = np.einsum("bhn,hnd->bhd" if shared else "bhn,bhnd->bhd", query, matrix)
        np.testing.assert_allclose(found, expected.sum(axis=1) if sum_heads else expected, rtol=EXACT, atol=EXACT)
        count = np.sum(np.any(query.reshape(batch, -1, group) != 0, axis=2), axis=1)
        np.testing.assert_array_equal(exceeded, count > (np.inf if budget is None else budget))


@pytest.mark.parametrize("batch", [1, BATCH])
def test_projecting_to_active_rows_is_projecting_to_all_and_choosing(batch):
    rng = np.random.default_rng(1)
    matrix, x = rng.normal(size=(HEADS, NEURONS, WIDTH)), rng.normal(size=(batch, HEADS, WIDTH))
    for share, budget in ((0.3, HEADS * NEURONS), (1.0, HEADS * NEURONS), (0.3, 8), (0.0, 8), (1.0, 1)):
        active = sparse(rng, share)[:batch] != 0
        found, exceeded = project(x, matrix, active, budget)
        np.testing.assert_allclose(found, np.where(active, np.einsum("bhd,hnd->bhn", x, matrix), 0), rtol=EXACT, atol=EXACT)
        np.testing.assert_array_equal(exceeded, np.sum(active, axis=(1, 2)) > budget)


def test_an_example_within_its_budget_does_not_see_that_another_is_not():
    """Bit for bit, with rows enough that reading them by themselves and reading all of them round differently."""
    rng, neurons, budget = np.random.default_rng(2), 600, 400
    matrix, rows = rng.normal(size=(BATCH, HEADS, neurons, 64)), rng.normal(size=(HEADS, neurons, 64))
    active = rng.random((BATCH, HEADS, neurons)) < 0.2
    query, x = np.where(active, rng.normal(size=active.shape), 0), rng.normal(size=(BATCH, HEADS, 64))
    crowded = query.copy()
    crowded[1] = 1
    others, differ = np.array([0, 2]), []
    for here in (lambda q, b: read(q, matrix, b), lambda q, b: project(x, rows, q != 0, b)):
        (found, none), (other, some), (whole, _) = here(query, budget), here(crowded, budget), here(query, 1)
        assert not none.any()
        np.testing.assert_array_equal(some, [False, True, False])
        np.testing.assert_array_equal(found[others], other[others])
        differ.append(np.any(np.asarray(found) != np.asarray(whole)))
    assert any(differ)


RATES = {
    "numbers": (0.7, 0.8),
    "one": (1.0, 1.0),
    "heads": (np.array([0.7, 0.2]), np.array([0.9, 0.5])),
    "tokens": (np.full((BATCH, 1, 1, 1), 0.3), np.linspace(0.5, 0.9, BATCH).reshape(-1, 1, 1, 1)),
    "rows": (np.linspace(0.1, 1, NEURONS).reshape(1, 1, 1, -1), 0.8),
}


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("budget", [None, 12])
def test_steps_and_flushes_are_the_scan(rates, gated, budget):
    """Seven tokens, three slots, invalid tokens and resets: whatever is in slots and whatever in the matrix."""
    rng, length, slots = np.random.default_rng(3), 7, 3
    query, key = (np.stack([sparse(rng, 0.3) for _ in range(length)], axis=2) for _ in range(2))
    value, gate = rng.normal(size=(BATCH, 1, length, WIDTH)), rng.random((BATCH, length)) if gated else None
    valid, reset = rng.random((BATCH, length)) < 0.7, rng.random((BATCH, length)) < 0.2
    matrix, dynamics = rng.normal(size=(BATCH, HEADS, NEURONS, WIDTH)), Dynamics(*RATES[rates])
    recent = Recent(
        key=jnp.full((BATCH, HEADS, slots, NEURONS), 7.0),
        value=jnp.full((BATCH, slots, WIDTH), 7.0),
        weight=jnp.zeros((BATCH, HEADS, slots)),
        scale=jnp.ones((BATCH, HEADS)),
        used=jnp.int32(0),
    )
    expected, final = fast_weight_scan(
        query,
        key,
        value[:, 0],
        jnp.asarray(matrix),
        learning_rate=dynamics.learning_rate,
        decay=dynamics.decay,
        valid=valid,
        reset=reset,
        implementation="recurrent",
        rule=HEBBIAN._replace(gated=gated),
        write_gate=gate,
    )
    now = jnp.asarray(matrix)
    for t in range(length):
        if recent.used == slots:
            now, recent = flush(now, recent)
            assert recent.used == 0
        part = [a[:, :, t : t + 1] for a in (query, key, value)]
        masks = [None if a is None else a[:, t : t + 1] for a in (gate, valid, reset)]
        found, recent, _ = step(Stretch(*part, *masks), now, recent, dynamics, budget=budget)
        np.testing.assert_allclose(found, expected[:, :, t : t + 1], rtol=EXACT, atol=EXACT)
    assert recent.used == 1
    np.testing.assert_allclose(flush(now, recent)[0], final, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("neurons", [1, 5, xla.FLUSH_ROWS, xla.FLUSH_ROWS + 3])
def test_a_flush_reaches_every_row(neurons):
    rng = np.random.default_rng(4)
    arrays = [rng.normal(size=size) for size in ((1, 1, 2, neurons), (1, 2, 3), (1, 1, 2), (1, 1), (1, 1, neurons, 3))]
    key, value, weight, scale, matrix = map(jnp.asarray, arrays)
    flushed, free = flush(matrix, Recent(key, value, weight, scale, jnp.int32(2)))
    expected = scale[..., None, None] * matrix + np.einsum("bhw,bhwn,bwd->bhnd", weight, key, value)
    np.testing.assert_allclose(flushed, expected, rtol=EXACT, atol=EXACT)
    np.testing.assert_array_equal(free.weight, 0)
    np.testing.assert_array_equal(free.scale, 1)


@pytest.mark.parametrize("neurons", [5, xla.FLUSH_ROWS, xla.FLUSH_ROWS + 3])
@pytest.mark.parametrize("where", [True, False])
def test_a_flush_where_it_is_wanted_is_a_flush_in_values_and_gradients(neurons, where):
    rng = np.random.default_rng(4)
    sizes = {"key": (1, 1, 2, neurons), "value": (1, 2, 3), "weight": (1, 1, 2), "scale": (1, 1)}
    arrays = {name: jnp.asarray(rng.normal(size=size)) for name, size in sizes.items()}
    matrix, used = jnp.asarray(rng.normal(size=(1, 1, neurons, 3))), jnp.int32(2)

    def asked(matrix, arrays, where):
        return token_step.flush(matrix, Recent(**arrays, used=used), where)

    def expected(matrix, arrays):
        return token_step.flush(matrix, Recent(**arrays, used=used)) if where else (matrix, Recent(**arrays, used=used))

    def number(found):
        return jnp.sum(jnp.sin(found[0])) + jnp.sum(found[1].weight * found[1].scale[..., None])

    found = jax.jit(asked)(matrix, arrays, where)
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(expected)(matrix, arrays))
    gradient = jax.jit(jax.grad(lambda *a: number(asked(*a, jnp.asarray(where))), (0, 1)))(matrix, arrays)
    wanted = jax.jit(jax.grad(lambda *a: number(expected(*a)), (0, 1)))(matrix, arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT), gradient, wanted)


def test_a_flush_that_may_not_be_wanted_is_no_condition():
    """XLA for GPUs copies the matrix into the branches of a condition, and out of them."""
    shapes = [(1, 1, 2, 5), (1, 2, 3), (1, 1, 2), (1, 1)]
    recent = Recent(*map(jnp.zeros, shapes), jnp.int32(0))
    program = jax.jit(token_step.flush).lower(jnp.zeros((1, 1, 5, 3)), recent, jnp.asarray(True)).as_text()
    assert "stablehlo.while" in program
    assert "stablehlo.case" not in program
    assert "stablehlo.if" not in program


def test_what_does_not_fit_is_refused():
    query, matrix = np.ones((BATCH, HEADS, NEURONS)), np.ones((HEADS, NEURONS, WIDTH))
    for arguments, message in (
        ((query[0], matrix), r"query \(2, 20\) and matrix \(1, 2, 20, 4\) must be \[B, H, N\]"),
        ((query, matrix[:, 1:]), "must be"),
        ((query, np.ones((2, HEADS, NEURONS, WIDTH))), "must be"),
        ((query, matrix, 0), "budget=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            token_step.read(*arguments)
    with pytest.raises(ValueError, match="group=3 does not divide the N=20 rows"):
        token_step.read(query, matrix, 4, group=3)
    with pytest.raises(ValueError, match=r"x \(3, 2, 4\), rows \(2, 20, 4\) and active \(3, 2, 19\) must be"):
        token_step.project(np.ones((BATCH, HEADS, WIDTH)), matrix, query[..., 1:] != 0, 4)
    recent = Recent(
        jnp.zeros((BATCH, HEADS, 2, NEURONS)),
        jnp.zeros((BATCH, 2, WIDTH)),
        jnp.zeros((BATCH, HEADS, 2)),
        jnp.ones((BATCH, HEADS)),
        jnp.int32(0),
    )
    whole, rows = np.ones((BATCH, HEADS, NEURONS, WIDTH)), query[:, :, None]
    token = Stretch(rows, rows, np.ones((BATCH, 1, 1, WIDTH)))
    with pytest.raises(ConfigError, match="a token step has no decay for each row"):
        token_step.step(token, whole, recent, Dynamics(1.0, np.full((1, 1, 1, NEURONS), 0.5)))
    with pytest.raises(ValueError, match="must be"):
        token_step.step(token._replace(value=np.ones((BATCH, HEADS, 1, WIDTH))), whole, recent, Dynamics(1.0, 1.0))
    with pytest.raises(ValueError, match="are of another matrix"):
        token_step.flush(whole[:, :, 1:], recent)
