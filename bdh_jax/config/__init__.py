"""Configurations: frozen dataclasses beside what they configure, checked when they are made, and the way from files and flags to them."""

from bdh_jax.config.base import ConfigError, check_types, require, require_choice, require_sizes

__all__ = ["ConfigError", "check_types", "require", "require_choice", "require_sizes"]
