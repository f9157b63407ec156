"""Write rules: one file each, whose ``RULE`` is the entry of the table ``RULES`` under the file's name.

| rule | write, with S' = λ S | |
|---|---|---|
| hebbian | S' + η k ⊗ x | |
| gated_hebbian | S' + η β k ⊗ x, β = σ(x·w + b) for each token | a learned write gate keeps junk out |
| delta | S' + η k ⊗ (x − S'ᵀ k) | Widrow and Hoff; arXiv 2102.11174, 2412.06464 with λ < 1 |
| gated_delta | the same with η β | |
| longhorn | the same with η ÷ (1 + η‖k‖²) | arXiv 2407.14207: the implicit step, which no η makes diverge |
| oja | S' + η (k − S' x ÷ D) ⊗ x | Oja (1982), linear: the address is predicted from the value |
| mesa | S' + η k ⊗ x and G' + η k ⊗ k, read (G + ridge)⁻¹ S | arXiv 2309.05858: ridge regression on all pairs so far |

A rule of your own is a file too, named as ``module:RULE`` (docs/how-to/write_rule.md).
"""

from __future__ import annotations

from bdh_jax.config import ConfigError
from bdh_jax.config.table import Table
from bdh_jax.fast_weights.rules.base import Rule


def _check(rule: object) -> None:
    if not isinstance(rule, Rule):
        raise ConfigError(f"{rule!r} is no write rule: make a bdh_jax.fast_weights.rules.base.Rule of it")


RULES: Table[Rule] = Table("write rule", package="bdh_jax.fast_weights.rules", attribute="RULE", check=_check)
"""Name → write rule."""
