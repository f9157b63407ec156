"""The Hebbian rule behind a learned write gate: S ← λ S + η β k ⊗ x with β = σ(x·w + b). The gate learns to keep junk out."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax

from bdh_jax.fast_weights.rules import hebbian
from bdh_jax.fast_weights.rules.base import RuleWeight

GATE_WEIGHTS = {
    "gate": RuleWeight(("model",), nn.initializers.zeros),
    # σ(2) = 0.88: open at first, so that there is something to learn from.
    "gate_bias": RuleWeight((), nn.initializers.constant(2.0)),
}


def write_gate(weights: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """β [B, T], how much of each token is written, from x [B, T, D]."""
    return jax.nn.sigmoid(x.astype(weights["gate"].dtype) @ weights["gate"] + weights["gate_bias"])


RULE = hebbian.RULE._replace(weights=GATE_WEIGHTS, gate=write_gate)
