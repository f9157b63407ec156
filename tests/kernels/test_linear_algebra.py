"""Batches of linear systems: solutions, derivatives, and that programs with several of them end."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bdh_jax.kernels import linear_algebra
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.processes import ROOT

BATCH, ROWS, RIGHT = (2, 3), 5, 4


def _substitution(lower, right):
    return jsp.linalg.solve_triangular(lower, right, lower=True, unit_diagonal=True)


SOLUTIONS = {
    "solve": (linear_algebra.solve, jnp.linalg.solve),
    "solve_positive": (linear_algebra.solve_positive, jnp.linalg.solve),
    "solve_unit_lower": (linear_algebra.solve_unit_lower, _substitution),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _systems(name: str) -> tuple[jax.Array, jax.Array]:
    one, two = jax.random.split(jax.random.key(0))
    # Eigenvalues near ROWS, so that no digit is lost to the condition.
    matrix = jax.random.normal(one, (*BATCH, ROWS, ROWS), jnp.float64) + ROWS * jnp.eye(ROWS)[None, None]
    if name == "solve_positive":
        matrix = matrix @ matrix.mT
    return matrix, jax.random.normal(two, (*BATCH, ROWS, RIGHT), jnp.float64)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solutions_are_those_of_one_matrix_at_a_time(name):
    solve, alone = SOLUTIONS[name]
    matrix, right = _systems(name)
    expected = np.stack([[alone(m, r) for m, r in zip(*pair, strict=True)] for pair in zip(matrix, right, strict=True)])
    for form in (solve, jax.vmap(solve), jax.vmap(jax.vmap(solve))):
        np.testing.assert_allclose(jax.jit(form)(matrix, right), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(solve(matrix[0, 0], right[0, 0]), expected[0, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_derivatives_are_those_of_one_matrix_at_a_time(name):
    solve, alone = SOLUTIONS[name]
    matrix, right = _systems(name)

    def derivatives(function):
        def cost(matrix, right):
            return jnp.sum(jnp.sin(function(matrix, right)))

        gradient = jax.grad(cost, argnums=(0, 1))
        return lambda matrix, right: (
            gradient(matrix, right),
            jax.jvp(gradient, (matrix, right), (jnp.cos(matrix), jnp.cos(right)))[1],
        )

    of_one = jax.jit(derivatives(alone))
    singly = [of_one(m, r) for m, r in zip(matrix.reshape(-1, ROWS, ROWS), right.reshape(-1, ROWS, RIGHT), strict=True)]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(*BATCH, *leaves[0].shape), *singly)
    found = jax.jit(derivatives(solve))(matrix, right)
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_batches_broadcast_and_the_wider_dtype_counts(name):
    solve, (matrix, right) = SOLUTIONS[name][0], _systems(name)
    both = solve(jnp.broadcast_to(matrix[0, 0], matrix.shape), right)
    np.testing.assert_array_equal(solve(matrix[0, 0], right), both)
    np.testing.assert_array_equal(solve(matrix[:1, :1], right), both)
    narrow = right.astype(jnp.bfloat16)
    np.testing.assert_array_equal(solve(matrix, narrow), solve(matrix, narrow.astype(jnp.float64)))


COLUMNS = P("data", None, None, "neurons")


@pytest.mark.parametrize(
    "split", [(P("data"), COLUMNS, COLUMNS), (P("data"), P(), P("data")), (P(), P("data"), P("data"))], ids=str
)
@pytest.mark.parametrize("name", SOLUTIONS)
def test_shards_may_differ_in_one_argument_alone(name, split):
    """Values and gradients inside ``jax.shard_map``."""
    solve, (matrix, right) = SOLUTIONS[name][0], _systems(name)
    *given, result = split
    # What all shards have is one matrix that broadcasts over those of a shard.
    matrix, right = (array if spec else array[:1] for array, spec in zip((matrix, right), given, strict=True))
    mesh = make_mesh(MeshConfig(data=2, neurons=2))
    sharded = jax.shard_map(solve, mesh=mesh, in_specs=tuple(given), out_specs=result)

    def value_and_gradients(function):
        return jax.jit(jax.value_and_grad(lambda m, r: jnp.sum(jnp.sin(function(m, r))), argnums=(0, 1)))(matrix, right)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        value_and_gradients(sharded),
        value_and_gradients(solve),
    )


@pytest.mark.parametrize("name", SOLUTIONS)
def test_derivatives_multiply_without_rounding_to_a_narrow_type(name):
    solve, (matrix, right) = SOLUTIONS[name][0], _systems(name)
    gradient = jax.jit(jax.grad(lambda m, r: jnp.sum(solve(m, r)), argnums=(0, 1)))
    lowered = (
        gradient.trace(matrix.astype(jnp.float32), right.astype(jnp.float32)).lower(lowering_platforms=("cuda",)).as_text()
    )
    assert set(re.findall(r"precision = \[(\w+), (\w+)\]", lowered)) == {("HIGHEST", "HIGHEST")}


def test_eigenvectors_are_those_of_one_matrix_at_a_time():
    matrix = _systems("solve_positive")[0]
    values, vectors = jax.jit(linear_algebra.eigh)(matrix)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=1e-12)
    np.testing.assert_allclose((vectors * values[..., None, :]) @ vectors.mT, matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_cpu_gets_one_matrix_at_a_time(name):
    # What the programs below need, whatever the version of jaxlib makes of batches.
    solve, matrix, right = SOLUTIONS[name][0], *_systems(name)

    def cost(matrix, right):
        return jnp.sum(jnp.sin(solve(matrix, right)))

    for function in (solve, jax.vmap(solve), jax.grad(cost), jax.vmap(jax.grad(cost, argnums=1))):
        lowered = jax.jit(function).trace(matrix, right).lower(lowering_platforms=("cpu",)).as_text()
        assert set(re.findall(r'num_batch_dims = "(\d+)"', lowered)) == {"0"}


_PROGRAM = """
import jax, jax.numpy as jnp
from bdh_jax.kernels import linear_algebra

solve = getattr(linear_algebra, "{name}")
matrix = 8.0 * jnp.eye({rows}) + jnp.ones(({batch}, {rows}, {rows})) / {rows}
right = jnp.ones(({batch}, {rows}, 64))

@jax.jit
def solutions(matrix, right):
    # Independent of each other, and more of them than threads.
    return [{form}(matrix * (1 + i), right) for i in range(2 * {threads} + 1)]

for _ in range(3):
    jax.block_until_ready(solutions(matrix, right))
print("ended")
"""


@pytest.mark.parametrize(
    ("name", "form", "batch", "rows"),
    [
        ("solve", "solve", 4, 256),
        pytest.param("solve_positive", "solve", 4, 512, marks=pytest.mark.full),
        pytest.param("solve_unit_lower", "solve", 64, 64, marks=pytest.mark.full),
        pytest.param("solve_unit_lower", "jax.vmap(solve)", 64, 64, marks=pytest.mark.full),
    ],
)
def test_a_program_with_many_batches_ends_on_all_threads(name, form, batch, rows):
    # Without the flags of tests, which leave one thread to each process: there nothing waits.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    program = _PROGRAM.format(name=name, batch=batch, rows=rows, form=form, threads=threads)
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "ended\n", run.stderr
