"""Options whose names depend on another key, as those of a write rule or a consolidation function do."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from bdh_jax.config.base import ConfigError, as_float, require, shown


class Options(dict[str, Any]):
    """Option → value, which cannot be changed and can be hashed. Lists in it become tuples, mappings ``Options``.

    Equal to a dict of the same items, and JSON like one.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any):
        super().__init__({name: _frozen(value) for name, value in dict(values, **more).items()})

    @classmethod
    def of(cls, name: str, values: Any) -> Options:
        """The options that a configuration's key holds, which JSON can keep. Numbers of NumPy become those of Python.

        Raises:
          ConfigError: names the key and what is wrong with it.
        """
        require(isinstance(values, Mapping), f"{name}={shown(values)} should be a mapping of options to values")
        return _storable(values, name)

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a dict has none, and these cannot change
        return hash(frozenset(self.items()))

    def __or__(self, other: Any) -> Options:  # pyright: ignore[reportIncompatibleMethodOverride] - takes names only
        return Options(dict(self) | dict(other))

    def __reduce__(self) -> tuple[type[Options], tuple[dict[str, Any]]]:
        return Options, (dict(self),)

    def copy(self) -> Options:
        """Itself: nothing can change it."""
        return self

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("options cannot be changed; make new ones: options | {name: value}")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = _refuse
    setdefault = _refuse  # pyright: ignore[reportAssignmentType] - refuses whatever it is given
    update = _refuse  # pyright: ignore[reportAssignmentType] - likewise


def options_of(
    taker: Callable[..., Any] | None, values: Mapping[str, Any], where: str, leave_out: Iterable[str] = ()
) -> dict[str, Any]:
    """Options as they were given, checked against the fields of a dataclass or the parameters of a function.

    Args:
      taker: the dataclass or function that takes them; None takes no option.
      values: option → value.
      where: what has the options, for messages: "fast.rule='mesa'".
      leave_out: parameters that are no options.

    Returns:
      ``values``, with whole numbers where floats belong made floats and sequences made tuples.

    Raises:
      ConfigError: for an option that does not exist, which lists the valid ones; or a value of another type.
    """
    names, hints, anything = _taken(taker, tuple(leave_out))
    given = {}
    for name, value in values.items():
        if name not in names and not anything:
            raise ConfigError(f"{where} has no option {name!r}. Its options: {', '.join(names) or 'none'}")
        given[name] = _checked(hints.get(name, Any), _frozen(value), f"{where}, option {name}={value!r}")
    return given


def _storable(value: Any, name: str) -> Any:
    """As :func:`_frozen`, of what JSON can keep."""
    if isinstance(value, Mapping):
        for key in value:
            require(isinstance(key, str), f"{name}: the option {shown(key)} must be a name")
        return Options({str(key): _storable(item, f"{name}.{key}") for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_storable(item, name) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    require(
        value is None or isinstance(value, bool | int | float | str),
        f"{name}={shown(value)} must be a number, a text, or a list or mapping of them",
    )
    require(not isinstance(value, float) or math.isfinite(value), f"{name}={shown(value)} must be finite")
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return Options(value) if isinstance(value, Mapping) else value


def _taken(taker: Callable[..., Any] | None, leave_out: tuple[str, ...]) -> tuple[list[str], dict[str, Any], bool]:
    """Names of the options, their annotations, and whether any other name is taken as well."""
    if taker is None:
        return [], {}, False
    parameters = inspect.signature(taker).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in named and p.name not in leave_out]
    try:
        hints = typing.get_type_hints(taker if isinstance(taker, type) or inspect.isroutine(taker) else type(taker).__call__)
    except NameError:  # an annotation that is there for type checkers only says nothing here
        hints = {}
    return names, hints, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _checked(annotation: Any, value: Any, what: str) -> Any:
    """The value, where its annotation is one that can be checked; others accept anything."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = typing.get_args(annotation)
        if value is None and type(None) in kinds:
            return None
        kinds = [kind for kind in kinds if kind is not type(None)]
        return _checked(kinds[0], value, what) if len(kinds) == 1 else value
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        if value not in typing.get_args(annotation):
            raise ConfigError(f"{what} is not one of {', '.join(map(repr, typing.get_args(annotation)))}")
    elif annotation is float and type(value) is int:
        return as_float(value)
    elif annotation in (float, int, str, bool) and (
        not isinstance(value, annotation) or annotation is int and isinstance(value, bool)
    ):
        raise ConfigError(f"{what} is a {type(value).__name__}, expected {annotation.__name__}")
    elif origin is tuple or annotation is tuple:
        return value if isinstance(value, tuple) else (value,)
    elif dataclasses.is_dataclass(annotation) and not isinstance(value, annotation):
        raise ConfigError(f"{what} is a {type(value).__name__}, expected {annotation.__name__}")
    return value
