"""Options that depend on another key, such as those of a consolidation function: a mapping that is checked against what takes them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from bdh_jax.config.base import ConfigError


class Options(dict[str, Any]):
    """An immutable mapping, option → value, that hashes. Lists become tuples."""

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **more: Any):
        super().__init__({name: _frozen(value) for name, value in dict(values, **more).items()})

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("options cannot be changed: make new ones")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Options, (dict(self),)


def options_of(taker: Callable[..., Any], values: Mapping[str, Any], where: str, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """The options that were given, checked against the parameters of what takes them.

    Args:
      taker: a function or a dataclass.
      values: option → value.
      where: how messages name the mapping.
      leave_out: parameters that are no options.

    Raises:
      ConfigError: for an option that does not exist, or a value of another type than the parameter's; lists the valid ones.
    """
    parameters = inspect.signature(taker).parameters
    named = [
        name
        for name, parameter in parameters.items()
        if name not in leave_out and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _hints(taker)
    given = {}
    for name, value in values.items():
        if name not in named and not anything:
            raise ConfigError(f"{where} has no option {name!r}. Its options: {', '.join(named) or 'none'}")
        given[name] = _checked(hints.get(name, Any), value, f"{where}: option {name}")
    return given


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return Options(value) if isinstance(value, Mapping) else value


def _hints(taker: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(taker)
    except (NameError, TypeError):  # annotations of a user's own that name what is not there
        return {}


def _checked(annotation: Any, value: Any, what: str) -> Any:
    kinds = {float: "a number", int: "a whole number", bool: "True or False", str: "text"}
    if annotation is float and type(value) is int:
        return float(value)
    if annotation in kinds and (not isinstance(value, annotation) or annotation is int and isinstance(value, bool)):
        raise ConfigError(f"{what}={value!r} must be {kinds[annotation]}")
    return value
