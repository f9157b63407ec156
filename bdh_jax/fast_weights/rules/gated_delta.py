"""The delta rule behind a learned write gate: S ← S' + η β k ⊗ (x − S'ᵀ k) with S' = λ S and β = σ(x·w + b)."""

from __future__ import annotations

from bdh_jax.fast_weights.rules import delta
from bdh_jax.fast_weights.rules.gated_hebbian import GATE_WEIGHTS, write_gate

RULE = delta.RULE._replace(weights=GATE_WEIGHTS, gate=write_gate)
