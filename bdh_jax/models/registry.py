"""The models that a configuration can name."""

from __future__ import annotations

from bdh_jax.config import ConfigError
from bdh_jax.config.table import Table
from bdh_jax.models.base import ModelConfig


def _check(config: object) -> None:
    if not (isinstance(config, type) and issubclass(config, ModelConfig)):
        raise ConfigError(f"{config!r} is no model's configuration: name a subclass of bdh_jax.models.base.ModelConfig")


MODELS: Table[type[ModelConfig]] = Table("model", package="bdh_jax.models", attribute="CONFIG", check=_check)
"""Name → configuration class, which builds its model. A file of this package that has a ``CONFIG`` is an entry."""
