"""Batches of linear systems, solved so that no CPU waits forever.

XLA's CPU runtime of jaxlib 0.10 hands the matrices of a batch to its threads and waits for them on one of those threads. When as many
such waits meet as there are threads, none goes on: a compiled program with three independent solutions of [2, 256, 256] stands still
on two cores. So on CPUs one matrix comes after another, under ``jax.vmap`` too; it takes no longer. Elsewhere they are one batch.

Axis letters: M rows of a system, R right-hand sides; ``...`` is the batch, the same for both arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy as jsp

Solve = Callable[[jax.Array, jax.Array], jax.Array]


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """u of matrix · u = right, by LU decomposition.

    Args:
      matrix: [..., M, M], invertible.
      right: [..., M, R], of the same floating dtype.

    Returns:
      [..., M, R]; not finite where a matrix has no inverse.
    """
    transposed = _one_by_one(lambda matrix, right: jnp.linalg.solve(matrix.mT, right))
    return _differentiable(jnp.matmul, _one_by_one(jnp.linalg.solve), transposed)(matrix, right)


def solve_positive(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """u of matrix · u = right, by Cholesky decomposition; as :func:`solve`, for ``matrix`` symmetric and positive definite."""
    solution = _one_by_one(lambda matrix, right: jsp.linalg.cho_solve(jsp.linalg.cho_factor(matrix), right))
    return _differentiable(jnp.matmul, solution, solution)(matrix, right)


def solve_unit_lower(lower: jax.Array, right: jax.Array) -> jax.Array:
    """u of (1 + lower) · u = right, by substitution; as :func:`solve`. Of ``lower`` only what is below the diagonal counts."""

    def product(lower, solution):
        return solution + jnp.tril(lower, -1) @ solution

    def substitution(transpose):
        return _one_by_one(
            lambda lower, right: jax.lax.linalg.triangular_solve(
                lower, right, left_side=True, lower=True, transpose_a=transpose, unit_diagonal=True
            )
        )

    return _differentiable(product, substitution(False), substitution(True))(lower, right)


def _differentiable(product: Solve, solution: Solve, transposed: Solve) -> Solve:
    """``solution`` with derivatives from the product that it undoes: those of the solution itself would look into ``_one_by_one``."""

    def differentiable(matrix, right):
        return jax.lax.custom_linear_solve(
            lambda vector: product(matrix, vector),
            right,
            solve=lambda _, vector: solution(matrix, vector),
            transpose_solve=lambda _, vector: transposed(matrix, vector),
        )

    return differentiable


def _one_by_one(solution: Solve) -> Solve:
    """``solution`` [..., M, M], [..., M, R] → [..., M, R] with the batch in turn on CPUs."""
    alone = jax.custom_batching.sequential_vmap(solution)

    def in_turn(matrix, right):
        over_batch = alone
        for _ in matrix.shape[:-2]:
            over_batch = jax.vmap(over_batch)
        return over_batch(matrix, right)

    return lambda matrix, right: jax.lax.platform_dependent(matrix, right, cpu=in_turn, default=solution)
