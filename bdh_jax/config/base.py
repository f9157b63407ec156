"""What configurations are checked with: the error, and the checks that every part's dataclass uses.

A value out of range, or two that contradict each other, are a :class:`ConfigError` that names the key, the value and what would be
accepted.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import typing
from typing import Any

import numpy as np


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


_NUMBERS = ("int", "float", "bool", "int | None", "float | None", "tuple[int, ...]", "tuple[float, ...]")


def check_types(config: Any) -> None:
    """Refuse what is no number where one belongs, and what is not finite. A whole number where a float belongs becomes one, and a
    number of NumPy one of Python: 1 and 1.0 are the same setting, also to what hashes, traces or stores it.

    Raises:
      ConfigError: names the field and its value.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type not in _NUMBERS or value is None and field.type.endswith("None"):
            continue
        kind = field.type.removeprefix("tuple[").split(",")[0].split(" ")[0]
        if field.type.startswith("tuple["):
            items = value if isinstance(value, list | tuple) else (value,)
            number: Any = tuple(_number(item, kind, field.name, value) for item in items)
        else:
            number = _number(value, kind, field.name, value)
        object.__setattr__(config, field.name, number)


def _number(item: Any, kind: str, name: str, value: Any) -> bool | int | float:
    is_bool = isinstance(item, bool | np.bool_)
    if kind == "bool":
        require(is_bool, f"{name}={value!r} must be True or False")
        return bool(item)
    if kind == "int":
        require(isinstance(item, numbers.Integral) and not is_bool, f"{name}={value!r} must be a whole number")
        return int(item)
    require(isinstance(item, numbers.Real) and not is_bool, f"{name}={value!r} must be a number")
    require(math.isfinite(item), f"{name}={value!r} must be finite")
    return float(item)
