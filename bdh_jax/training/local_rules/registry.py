"""The local rules that a configuration can name."""

from __future__ import annotations

from bdh_jax.config import ConfigError
from bdh_jax.config.table import Table
from bdh_jax.training.local_rules.base import LocalRule


def _check(rule: object) -> None:
    if not isinstance(rule, LocalRule):
        raise ConfigError(f"{rule!r} is no local rule: name a bdh_jax.training.local_rules.LocalRule")


LOCAL_RULES: Table[LocalRule] = Table("local rule", package="bdh_jax.training.local_rules", attribute="RULES", check=_check)
"""Name → rule. A file of this package that has ``RULES`` contributes its own."""
