"""The Hebbian rule: S ← λ S + η k ⊗ x."""

from __future__ import annotations

import jax

from bdh_jax.fast_weights.rules.base import Context, Rule
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Token
from bdh_jax.kernels.fast_weight_scan.reference import HEBBIAN, hebbian

__all__ = ["RULE", "hebbian"]


def _write(state: jax.Array, token: Token, dynamics: Dynamics, context: Context) -> tuple[jax.Array, jax.Array]:
    del context
    return HEBBIAN.write(state, token, dynamics)


RULE = Rule(_write, linear=True)
