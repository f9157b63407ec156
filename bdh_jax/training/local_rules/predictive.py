"""The delta rule, towards a target that needs no gradient from above."""

from __future__ import annotations

import jax

from bdh_jax.training.local_rules.base import Context, LocalRule, clamped, correlation


def predictive(
    weight: jax.Array, x: jax.Array, y: jax.Array, context: Context, memory: tuple[()], *, clamp: float | None = 1.0
) -> tuple[jax.Array, tuple[()]]:
    """Δ = clamp(E[x ⊗ (target − y)]), whose fixed point is least squares (Widrow, Hoff 1960). The hook says what the target is."""
    del weight
    if context.target is None:
        raise ValueError("predictive needs context.target")
    return clamped(correlation(x, context.target - y, context.share), clamp), memory


RULES = {"predictive": LocalRule(predictive, needs=("target",))}
"""Name → rule."""
