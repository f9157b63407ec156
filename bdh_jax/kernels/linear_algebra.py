"""Batches of matrices, solved and decomposed so that no CPU waits forever.

XLA's CPU runtime of jaxlib 0.10 hands the matrices of a batch to its threads and waits for them on one of those threads. When as many
such waits meet as there are threads, none goes on: a compiled program with three independent solutions of [2, 256, 256] stands still
on two cores. So on CPUs one matrix comes after another, under ``jax.vmap`` too, which takes no longer for the batches of this package.
Elsewhere they are one batch.

Axis letters: M rows of a system, R right-hand sides; ``...`` is the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy as jsp

from bdh_jax.parallel.collectives import vary_like

Solve = Callable[[jax.Array, jax.Array], jax.Array]

# As the derivatives of JAX's own solutions do: a product in TF32 would undo what the solution is exact for.
_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """u of matrix · u = right, by LU decomposition.

    Args:
      matrix: [..., M, M], invertible; float32 or float64.
      right: [..., M, R]. Batch axes broadcast; of two dtypes the wider one counts.

    Returns:
      [..., M, R]. It means nothing where the matrix has no inverse.
    """
    transposed = _one_by_one(lambda matrix, right: jnp.linalg.solve(matrix.mT, right))
    return _solve(matrix, right, _multiply, _one_by_one(jnp.linalg.solve), transposed)


def solve_positive(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """u of matrix · u = right, by Cholesky decomposition; as :func:`solve`, for ``matrix`` symmetric and positive definite.

    NaN where it is not positive definite.
    """
    solution = _one_by_one(lambda matrix, right: jsp.linalg.cho_solve(jsp.linalg.cho_factor(matrix), right))
    return _solve(matrix, right, _multiply, solution, solution)


def solve_unit_lower(lower: jax.Array, right: jax.Array) -> jax.Array:
    """u of (1 + lower) · u = right, by substitution; as :func:`solve`. Of ``lower`` only what is below the diagonal counts."""

    def product(lower: jax.Array, solution: jax.Array) -> jax.Array:
        return solution + _multiply(jnp.tril(lower, -1), solution)

    def substitution(transpose: bool) -> Solve:
        return _one_by_one(
            lambda lower, right: jax.lax.linalg.triangular_solve(
                lower, right, left_side=True, lower=True, transpose_a=transpose, unit_diagonal=True
            )
        )

    return _solve(lower, right, product, substitution(False), substitution(True))


def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [..., M], ascending, and eigenvectors [..., M, M], in columns, of symmetric matrices [..., M, M]."""

    def in_turn(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, vectors = jax.lax.map(jnp.linalg.eigh, matrix.reshape(-1, *matrix.shape[-2:]))
        return values.reshape(matrix.shape[:-1]), vectors.reshape(matrix.shape)

    return jax.lax.platform_dependent(matrix, cpu=in_turn, default=lambda matrix: tuple(jnp.linalg.eigh(matrix)))


def _solve(matrix: jax.Array, right: jax.Array, product: Solve, solution: Solve, transposed: Solve) -> jax.Array:
    """``solution`` with derivatives from the product that it undoes: those of the solution itself would look into ``_one_by_one``."""
    dtype = jnp.result_type(matrix, right)
    batch = jnp.broadcast_shapes(matrix.shape[:-2], right.shape[:-2])
    matrix, right = (jnp.broadcast_to(array, (*batch, *array.shape[-2:])).astype(dtype) for array in (matrix, right))
    # Inside ``jax.shard_map`` either may be the same on shards where the other is not.
    matrix, right = vary_like(matrix, right), vary_like(right, matrix)
    return jax.lax.custom_linear_solve(
        functools.partial(product, matrix),
        right,
        solve=lambda _, vector: solution(matrix, vector),
        transpose_solve=lambda _, vector: transposed(matrix, vector),
    )


def _one_by_one(solution: Solve) -> Solve:
    """``solution`` [..., M, M], [..., M, R] → [..., M, R] with the batch in turn on CPUs."""
    alone = jax.custom_batching.sequential_vmap(solution)

    def in_turn(matrix: jax.Array, right: jax.Array) -> jax.Array:
        over_batch = alone
        for _ in matrix.shape[:-2]:
            over_batch = jax.vmap(over_batch)
        return over_batch(matrix, right)

    return lambda matrix, right: jax.lax.platform_dependent(matrix, right, cpu=in_turn, default=solution)
