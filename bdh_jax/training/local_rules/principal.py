"""Rules whose weights end as directions of the largest variance of their inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.training.local_rules.base import Context, LocalRule, clamped, correlation, mean


def oja(
    weight: jax.Array, x: jax.Array, y: jax.Array, context: Context, memory: tuple[()], *, clamp: float | None = 1.0
) -> tuple[jax.Array, tuple[()]]:
    """Δ = clamp(E[x ⊗ y] − W diag(E[y²])): each output for itself, and all of them end as the first component (Oja, J. Math. Biology 1982)."""
    own = mean(jnp.square(y), context.share)[None]
    return clamped(correlation(x, y, context.share) - weight * own, clamp), memory


def sanger(
    weight: jax.Array, x: jax.Array, y: jax.Array, context: Context, memory: tuple[()], *, clamp: float | None = 1.0
) -> tuple[jax.Array, tuple[()]]:
    """Δ = clamp(E[x ⊗ y] − W triu(E[y ⊗ y])): an output sees the inputs less what those before it explain, and output k ends as component k
    (Sanger, Neural Networks 1989)."""
    explained = weight @ jnp.triu(correlation(y, y, context.share))
    return clamped(correlation(x, y, context.share) - explained, clamp), memory


RULES = {"oja": LocalRule(oja), "sanger": LocalRule(sanger)}
"""Name → rule."""
