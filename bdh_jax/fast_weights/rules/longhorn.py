"""Longhorn: the delta rule with the implicit step η ÷ (1 + η‖k‖²), which no η makes diverge (arXiv 2407.14207)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.rules import delta as delta_rule
from bdh_jax.fast_weights.rules.base import Context, Rule, over_rows
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Rate, Stretch, Token
from bdh_jax.kernels.fast_weight_scan.stretch import Coefficients
from bdh_jax.parallel.collectives import WHOLE, ShardAxes


def longhorn_gate(key: jax.Array, learning_rate: Rate, axes: ShardAxes = WHOLE) -> jax.Array:
    """β of Longhorn's step, 1 ÷ (1 + Σ_heads η ‖k‖²), which minimises ‖S − S'‖²/η + ‖x − Sᵀ k‖² exactly (arXiv 2407.14207).

    Args:
      key: k, [..., H, N].
      learning_rate: η, a scalar, [H], or anything that fits [..., H, N].
      axes: mesh axes that the rows are split over, inside ``jax.shard_map``.

    Returns:
      [...] float32 or wider.
    """
    wide = key.astype(jnp.promote_types(jnp.float32, key.dtype))
    size = jnp.sum(jnp.sum(over_rows(learning_rate, wide.dtype) * jnp.square(wide), axis=-1), axis=-1)
    return 1 / (1 + axes.sum_over_rows(size))


def _write(state: jax.Array, token: Token, dynamics: Dynamics, context: Context) -> tuple[jax.Array, jax.Array]:
    gate = longhorn_gate(token.key, dynamics.learning_rate, context.axes)
    return delta_rule.RULE.write(state, token._replace(write_gate=gate), dynamics, context)


def _correct(
    stretch: Stretch, state: jax.Array | None, found: Coefficients, dynamics: Dynamics, context: Context
) -> tuple[jax.Array, jax.Array]:
    dtype = jnp.promote_types(jnp.float32, stretch.key.dtype)
    rate = delta_rule.over_stretch(dynamics.learning_rate, dtype).swapaxes(1, 2)
    gate = longhorn_gate(jnp.swapaxes(stretch.key, 1, 2).astype(dtype), rate, context.axes)
    return delta_rule.correct(stretch, state, found, dynamics, context, gate)


RULE = Rule(_write, correct=_correct, predicts_values=True)
