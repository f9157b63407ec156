"""What configurations are checked with: the error, and the checks that every part's dataclass uses.

A value out of range, or two that contradict each other, are a :class:`ConfigError` that names the key, the value and what would be
accepted.
"""

from __future__ import annotations

import dataclasses
import numbers
import typing
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the key, the value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise a :class:`ConfigError` with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: Any, annotation: Any) -> None:
    """Raise a :class:`ConfigError` that lists the choices unless the value is one of those of a ``Literal``."""
    choices = typing.get_args(annotation)
    require(value in choices, f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def check_types(config: Any) -> None:
    """Refuse what is no whole number, or no part of a configuration, where one belongs. A whole number where a float belongs becomes
    one: 1 and 1.0 are the same setting, also to what hashes or traces it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in ("float", "float | None") and type(value) is int:
            object.__setattr__(config, field.name, float(value))
        elif field.type == "int" and not isinstance(value, numbers.Integral):
            raise ConfigError(f"{field.name}={value!r} must be a whole number")
