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

import functools
from collections.abc import Mapping
from typing import Any

import jax

from bdh_jax.config import ConfigError
from bdh_jax.config.options import options_of
from bdh_jax.config.table import Table
from bdh_jax.fast_weights.limits import bound
from bdh_jax.fast_weights.rules.base import Context, Correct, Rule
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, ScanRule, Stretch, Token
from bdh_jax.parallel.collectives import WHOLE, ShardAxes


def _check(rule: object) -> None:
    if not isinstance(rule, Rule):
        raise ConfigError(f"{rule!r} is no write rule: make a bdh_jax.fast_weights.rules.base.Rule of it")


RULES: Table[Rule] = Table("write rule", package="bdh_jax.fast_weights.rules", attribute="RULE", check=_check)
"""Name → write rule."""


def rule_options(name: str, values: Mapping[str, Any]) -> Any:
    """The options of a rule, an instance of its own dataclass; None for a rule that has none.

    Raises:
      ConfigError: for a rule or an option that does not exist, or a value out of range.
    """
    rule = RULES.get(name, "fast.rule")
    given = options_of(rule.options, values, f"fast.rule={name!r}")
    if rule.options is None:
        return None
    try:
        return rule.options(**given)
    except ConfigError as error:
        raise ConfigError(f"fast.options: {error}") from None


def scan_rule(
    name: str,
    options: Mapping[str, Any] | None = None,
    limits: Mapping[str, float | None] | None = None,
    axes: ShardAxes = WHOLE,
) -> ScanRule:
    """A rule as :func:`bdh_jax.kernels.fast_weight_scan` takes it, with all that does not change closed over.

    Args:
      name: of ``RULES``, or ``module:RULE``.
      options: the rule's own.
      limits: on S after every write, arguments of :func:`bdh_jax.fast_weights.limits.bound`; None for none. They are not linear, so that
        only the form token by token is left.
      axes: mesh axes that the rows are split over, inside ``jax.shard_map``.

    Raises:
      ConfigError: as :func:`rule_options`.
    """
    rule = RULES.get(name, "fast.rule")
    context = Context(rule_options(name, options or {}), axes)
    bounds = limits or {}
    limited = any(limit is not None for limit in bounds.values())

    def write(state: Any, token: Token, dynamics: Dynamics) -> tuple[jax.Array, Any]:
        read, written = rule.write(state, token, dynamics, context)
        if not limited:
            return read, written
        if isinstance(written, jax.Array):
            return read, bound(written, **bounds)
        return read, written.replace(S=bound(written.S, **bounds))

    matrix_form = None if rule.correct is None or limited else functools.partial(_correct, rule.correct, context)
    return ScanRule(name, write, rule.linear and not limited, matrix_form, rule.gate is not None)


def _correct(
    of_rule: Correct, context: Context, stretch: Stretch, state: Any, found: Any, dynamics: Dynamics
) -> tuple[jax.Array, jax.Array]:
    return of_rule(stretch, state, found, dynamics, context)
