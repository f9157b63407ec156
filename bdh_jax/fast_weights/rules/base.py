"""What a write rule is, and what rules are made of.

A rule maps ``(state, token, dynamics)`` to ``(read, state)``, one token at a time: the reference that every faster form is held to. It
reads before it writes, so what a token writes is seen from the next token on. The state is S [B, H, N, D]; query and key are [B, H, N],
the value is [B, 1, D] and belongs to all heads: they are parts of one address of K = H·N rows.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.state import RuleState
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Rate, Stretch, Token
from bdh_jax.parallel.collectives import WHOLE, ShardAxes


class Context(NamedTuple):
    """What a rule is told once for a whole call."""

    options: Any = None
    """The rule's own options, an instance of ``Rule.options``."""
    axes: ShardAxes = WHOLE
    """Mesh axes that the rows are split over, inside ``jax.shard_map``."""


class RuleWeight(NamedTuple):
    """A slow weight of a rule's own. Its name in the slow weights is the rule's name for it behind ``fast_``."""

    axes: tuple[str, ...]
    """Logical names of its axes, which give its shape: "head", "neuron", "model"."""
    init: Callable[..., jax.Array]
    """(key, shape, dtype) → array."""


Write = Callable[[Any, Token, Dynamics, Context], tuple[jax.Array, Any]]
"""(state, token, dynamics, context) → (read [B, H, D], next state). The state is S, or of ``Rule.state`` where a rule keeps more."""

Correct = Callable[[Stretch, Any, Any, Dynamics, Context], tuple[jax.Array, jax.Array]]
"""(stretch, S at its start [B, H, D, N] or None, coefficients, dynamics, context) → key [B, H, T, N] and value [B, 1, T, D], float32 or
wider, whose plain write with η = 1 is what the rule writes in that stretch."""


class Rule(NamedTuple):
    """A write rule: how it writes a token, and what it can do. What it does not say it can, is refused."""

    write: Write
    """One token: the definition."""
    linear: bool = False
    """Whether it writes η β k ⊗ x whatever S is, so that all forms and the kernel have it."""
    correct: Correct | None = None
    """A stretch's keys and values, so that the matrix forms of the plain write write this rule. None, for a rule that is not linear:
    token by token only."""
    options: type | None = None
    """A frozen dataclass of its options; None: it has none."""
    weights: Mapping[str, RuleWeight] = {}
    """Slow weights of its own."""
    gate: Callable[[Mapping[str, jax.Array], jax.Array], jax.Array] | None = None
    """(its weights, x [B, T, D]) → the write gate β [B, T] in [0, 1]."""
    dynamics: Callable[[Mapping[str, jax.Array], jax.Array, Dynamics], Dynamics] | None = None
    """(its weights, x [B, T, D], dynamics) → dynamics with rates of its own: [B, 1, T, 1] for each token, [1, H, 1, N] for each row, or
    both."""
    state: type[RuleState] = RuleState
    """What it keeps: S, and in a subclass what else it needs."""
    static: Callable[[Any], dict[str, Any]] | None = None
    """Options → static fields of its state."""
    predicts_values: bool = False
    """Whether it writes what reading would get wrong, so that what the synapse knows already is not written."""
    sums_rows: bool = False
    """Whether it needs all K rows in one place."""
    limits: bool = True
    """Whether limits on S mean something."""


def over_matrix(rate: Rate, dtype: Any) -> jax.Array:
    """A rate as a factor of S [..., H, N, D]: a scalar, one a head [H], or one a row [..., H or 1, N or 1]."""
    rate = jnp.asarray(rate, dtype)
    if rate.ndim == 0:
        return rate
    return rate[..., None, None] if rate.ndim == 1 else rate[..., None]


def over_rows(rate: Rate, dtype: Any) -> jax.Array:
    """A rate as a factor of rows [..., H, N]: a scalar, one a head [H], or one a row [..., H or 1, N or 1]."""
    rate = jnp.asarray(rate, dtype)
    return rate[:, None] if rate.ndim == 1 else rate
