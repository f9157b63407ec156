"""Rules that strengthen what is active together: Hebb's, and what makes it stop at something."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.training.local_rules.base import Context, LocalRule, clamped, correlation, mean


def hebb(
    weight: jax.Array, x: jax.Array, y: jax.Array, context: Context, memory: tuple[()], *, clamp: float | None = 1.0
) -> tuple[jax.Array, tuple[()]]:
    """Δ = clamp(E[x ⊗ y]), as published in BDH-SLIM (github.com/jamclaug/llm-foundation)."""
    del weight
    return clamped(correlation(x, y, context.share), clamp), memory


def covariance(
    weight: jax.Array, x: jax.Array, y: jax.Array, context: Context, memory: tuple[()], *, clamp: float | None = 1.0
) -> tuple[jax.Array, tuple[()]]:
    """Δ = clamp(E[(x − E x) ⊗ (y − E y)]): what is always active is no news (Sejnowski, J. Math. Biology 1977)."""
    del weight
    x = x - mean(x, context.share)[None]
    return clamped(correlation(x, y - mean(y, context.share)[None], context.share), clamp), memory


def three_factor(
    weight: jax.Array,
    x: jax.Array,
    y: jax.Array,
    context: Context,
    memory: tuple[()],
    *,
    centre: bool = True,
    clamp: float | None = 1.0,
) -> tuple[jax.Array, tuple[()]]:
    """Δ = clamp(E[s x ⊗ y]) of the surprise s, or with ``centre`` of what it is above its mean (Frémaux, Gerstner, Frontiers in Neural Circuits
    2016)."""
    del weight
    if context.surprise is None:
        raise ValueError("three_factor needs context.surprise")
    surprise = context.surprise
    if centre:
        surprise = surprise - jnp.sum(context.share * surprise)
    return clamped(correlation(x, surprise[:, None] * y, context.share), clamp), memory


def contrastive(
    weight: jax.Array, x: jax.Array, y: jax.Array, context: Context, memory: tuple[()], *, clamp: float | None = 1.0
) -> tuple[jax.Array, tuple[()]]:
    """Δ = clamp(E[x ⊗ y] − E[x′ ⊗ y′]), x′ and y′ of the negative pass (Movellan 1991; Hinton's forward-forward, 2022, has such passes)."""
    del weight
    if context.negative is None:
        raise ValueError("contrastive needs context.negative")
    return clamped(correlation(x, y, context.share) - correlation(*context.negative, context.share), clamp), memory


def bcm(
    weight: jax.Array,
    x: jax.Array,
    y: jax.Array,
    context: Context,
    memory: jax.Array,
    *,
    threshold_rate: float = 0.1,
    clamp: float | None = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Δ = clamp(E[x ⊗ y (y − θ)]) of the sliding threshold θ ← θ + threshold_rate (E[y²] − θ), which is the memory, [O] (Bienenstock, Cooper, Munro,
    J. Neuroscience 1982; this form is Intrator's and Cooper's, 1992)."""
    del weight
    threshold = memory + threshold_rate * (mean(jnp.square(y), context.share) - memory)
    return clamped(correlation(x, y * (y - threshold[None]), context.share), clamp), threshold


RULES = {
    "hebb": LocalRule(hebb),
    "covariance": LocalRule(covariance),
    "three_factor": LocalRule(three_factor, needs=("surprise",)),
    "contrastive": LocalRule(contrastive, needs=("negative",)),
    "bcm": LocalRule(bcm, init=lambda weight: jnp.zeros(weight.shape[1], weight.dtype)),
}
"""Name → rule."""
