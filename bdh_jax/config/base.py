"""What configurations are checked with: the error, and the checks that every part's dataclass uses.

A value out of range, or two that contradict each other, are a :class:`ConfigError` that names the key, the value and what would be
accepted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Iterable
from typing import Any

import numpy as np


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the key, the value and the remedy, on one line whatever they hold."""

    def __init__(self, message: str):
        super().__init__(one_line(message, 2000))


def one_line(text: str, length: int) -> str:
    """A text without what a terminal would take for a command or a new line, and with its middle left out if it is longer."""
    text = "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-(length // 2) :]}"


def require(condition: bool, message: str) -> None:
    """Raise a :class:`ConfigError` with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_sizes(config: Any, names: Iterable[str], prefix: str = "") -> None:
    """Raise a :class:`ConfigError` unless these whole numbers can be lengths of an array's axis: 1 to 2³¹ − 1."""
    for name in names:
        size = getattr(config, name)
        require(size >= 1, f"{prefix}{name}={shown(size)} must be at least 1")
        require(size < 2**31, f"{prefix}{name}={shown(size)} must be below 2**31: no array is as long")


def require_choice(name: str, value: Any, annotation: Any) -> None:
    """Raise a :class:`ConfigError` that lists the choices unless the value is one of those of a ``Literal``."""
    choices = typing.get_args(annotation)
    # Compared by type first: an array is equal to nothing and to everything.
    found = any(type(value) is type(choice) and value == choice for choice in choices)
    require(found, f"{name}={shown(value)} is not one of {', '.join(map(repr, choices))}")


def shown(value: Any) -> str:
    """A value in a message: on one line, not longer than a line, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # of a user's class, or of a number with more digits than Python writes
        text = f"a {type(value).__name__} that cannot be shown"
    return one_line(text, 200)


def check_types(config: Any) -> None:
    """Refuse values that are not of the type that a field is annotated with, and numbers that are not finite.

    A whole number where a float belongs becomes one, a number of NumPy one of Python, and a single item where a tuple belongs a tuple of
    it: 1 and 1.0 are the same setting, also to what hashes, traces or stores it. What is annotated with none of numbers, str, ``Literal``
    (by type; the class says which of its choices, :func:`require_choice`), tuples and dataclasses is not looked at.

    Raises:
      ConfigError: names the field and its value.
    """
    for name, annotation in annotations_of(type(config)).items():
        object.__setattr__(config, name, _checked(getattr(config, name), annotation, name))


@functools.cache
def annotations_of(cls: type) -> dict[str, Any]:
    """The annotation of each field of a dataclass.

    Raises:
      ConfigError: if one names what is not there when the program runs.
    """
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise ConfigError(
            f"{cls.__name__}: an annotation cannot be resolved ({error}); import what it names at run time as well"
        ) from None
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _checked(value: Any, annotation: Any, name: str, whole: Any = None) -> Any:
    """The value as its field keeps it. ``whole`` is the tuple that it is an item of, for messages."""
    given = value if whole is None else whole
    origin, kinds = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in kinds:
            return None
        kinds = tuple(kind for kind in kinds if kind is not type(None))
        return _checked(value, kinds[0], name, whole) if len(kinds) == 1 else value
    if origin is typing.Literal:
        # Which of them, the class says, which knows more about each.
        require(
            type(value) in {type(kind) for kind in kinds},
            f"{name}={shown(given)} must be one of {', '.join(map(repr, kinds))}",
        )
    elif origin is tuple and kinds[1:] == (...,):
        items = value if isinstance(value, list | tuple) else (value,)
        return tuple(_checked(item, kinds[0], name, value) for item in items)
    elif annotation in (bool, int, float):
        return _number(value, annotation, name, given)
    elif annotation is str:
        require(isinstance(value, str), f"{name}={shown(given)} must be a text")
        return str(value)
    elif isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        kind = annotation.__name__
        require(isinstance(value, annotation), f"{name}={shown(given)} must be a {kind}, such as {kind}(…)")
    return value


def _number(item: Any, kind: type, name: str, value: Any) -> bool | int | float:
    if isinstance(item, np.ndarray) and item.ndim == 0:
        item = item[()]
    is_bool = isinstance(item, bool | np.bool_)
    if kind is bool:
        require(is_bool, f"{name}={shown(value)} must be True or False")
        return bool(item)
    if kind is int:
        require(isinstance(item, numbers.Integral) and not is_bool, f"{name}={shown(value)} must be a whole number")
        return int(item)
    require(isinstance(item, numbers.Real) and not is_bool, f"{name}={shown(value)} must be a number")
    number = as_float(item)
    require(math.isfinite(number), f"{name}={shown(value)} must be finite")
    return number


def as_float(number: Any) -> float:
    """A number as a float; one that is larger than any is infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
