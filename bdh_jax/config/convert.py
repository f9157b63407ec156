"""Between frozen dataclasses and nested mappings: the keys of the command line, and JSON.

``configs/*.py`` return a dataclass. For the command line it becomes a locked ``ConfigDict`` (:func:`to_config_dict`), whose keys are
overridden, and which :func:`rebuild` turns back into a dataclass of the same classes; what was read from JSON becomes one by
:func:`from_config_dict`. An unknown key or a value of the wrong type is a :class:`bdh_jax.config.base.ConfigError` that names the key,
the value and what would be accepted.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import ml_collections
from ml_collections import config_dict

from bdh_jax.config.base import ConfigError, annotations_of, as_float, require, require_choice, shown
from bdh_jax.config.options import Options

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Values = Mapping[str, Any] | ml_collections.ConfigDict
Kinds = Mapping[Any, Callable[[Mapping[str, Any], str], type[Any]]]
"""Annotation of a field that holds one of several classes → (values, path) → the class."""


def change(config: T, path: str = "", /, **values: Any) -> T:
    """A frozen configuration with other values: ``change(config, "model.fast", decay=0.9)``.

    Args:
      config: the dataclass.
      path: which part of it, by the names of fields with dots between; empty for the whole.
      values: field → value.

    Raises:
      ConfigError: for a value out of range.
    """
    name, _, rest = path.partition(".")
    if name:
        values = {name: change(getattr(config, name), rest, **values)}
    return dataclasses.replace(config, **values)


def apply_variants(config: T, arg: str, variants: Mapping[str, Callable[[T], T]]) -> T:
    """A configuration changed by the variants that ``--config=FILE.py:a,b`` names, in the order of ``variants``.

    Raises:
      ConfigError: for an unknown or repeated variant.
    """
    names = parse_variants(arg, variants)
    for name, variant in variants.items():
        if name in names:
            config = variant(config)
    return config


def parse_variants(arg: str, valid: Iterable[str]) -> list[str]:
    """The variants that a ``--config=FILE.py:a,b`` names.

    Args:
      arg: names joined by commas; empty for none.
      valid: the names that exist.

    Raises:
      ConfigError: for an unknown or repeated one.
    """
    valid = list(valid)
    names = arg.split(",") if arg else []
    for name in names:
        if name not in valid:
            raise ConfigError(f"unknown variant {name!r}. Valid variants: {', '.join(valid)}")
        if names.count(name) > 1:
            raise ConfigError(f"variant {name!r} is named twice")
    return names


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """Turn a dataclass into a locked ``ConfigDict`` whose keys can be overridden from the command line.

    Args:
      config: a dataclass instance, nested as deep as needed.

    Returns:
      A locked ``ConfigDict``. Optional fields that are None become typed placeholders, so that they can be set. An :class:`Options`
      becomes a ``ConfigDict`` whose values may be of any type.
    """
    result = ml_collections.ConfigDict()
    hints = annotations_of(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = to_config_dict(value)
        elif isinstance(value, Options):
            result[field.name] = _options_dict(value)
        elif value is None:
            (kind,) = (a for a in typing.get_args(hints[field.name]) if a is not type(None))
            result[field.name] = config_dict.placeholder(kind)
        elif _is_optional(hints[field.name]):
            result[field.name] = config_dict.FieldReference(value, field_type=type(value))
        else:
            result[field.name] = value
    return result.lock()


def _options_dict(options: Options) -> ml_collections.ConfigDict:
    result = ml_collections.ConfigDict()
    for name, option in options.items():
        result[name] = _options_dict(option) if isinstance(option, Options) else any_value(option)
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a configuration, for JSON."""
    return dataclasses.asdict(config)


def any_value(value: Any = None) -> ml_collections.FieldReference:
    """A value of a ``ConfigDict`` that may be overridden by one of any type."""
    return ml_collections.FieldReference(value, field_type=object)


def rebuild(template: T, values: Values, path: str = "config") -> T:
    """A frozen dataclass of the template's classes with other values, strictly.

    Args:
      template: the dataclass, nested. A field that holds a dataclass is converted to that very class, whatever the annotation says, so a
        class of a user's own needs no table.
      values: as :func:`to_config_dict` made of the template, with values changed. Missing keys keep the template's.
      path: how messages name the mapping.

    Raises:
      ConfigError: for an unknown key, an ill-typed value, or a value out of range.
    """
    return _build(type(template), values, path, {}, template)


def from_config_dict(cls: type[T], values: Values, path: str = "config", *, kinds: Kinds | None = None) -> T:
    """Build a frozen dataclass from a mapping, strictly.

    Args:
      cls: the dataclass to build.
      values: a ``ConfigDict`` or dict (from JSON, say), nested like ``cls``. Missing keys keep their defaults.
      path: how messages name the mapping.
      kinds: for fields that hold one of several classes, such as a task's configuration: how to tell which.

    Returns:
      An instance of ``cls``.

    Raises:
      ConfigError: for an unknown key, an ill-typed value, or a value out of range.
    """
    return _build(cls, values, path, kinds or {}, None)


def _build(cls: type[T], values: Values, path: str, kinds: Kinds, template: T | None) -> T:
    hints = annotations_of(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    arguments = {} if template is None else {name: getattr(template, name) for name in names}
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f" Did you mean {path}.{close[0]}?" if close else ""
            raise ConfigError(f"{path}.{key} does not exist.{hint} Valid keys of {path}: {', '.join(names)}")
        arguments[key] = _convert(hints[key], values[key], f"{path}.{key}", kinds, arguments.get(key))
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _is_optional(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType) and type(None) in typing.get_args(annotation)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping | ml_collections.ConfigDict)


def _convert(annotation: Any, value: Any, path: str, kinds: Kinds, template: Any = None) -> Any:
    if dataclasses.is_dataclass(template) and not isinstance(template, type):
        require(_is_mapping(value), f"{path}={shown(value)} should be a mapping")
        return _build(type(template), value, path, kinds, template)
    if _is_optional(annotation):
        if value is None:
            return None
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    if annotation is Options:
        require(_is_mapping(value), f"{path}={shown(value)} should be a mapping")
        return Options(value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value)
    if annotation in kinds or dataclasses.is_dataclass(annotation):
        require(_is_mapping(value), f"{path}={shown(value)} should be a mapping")
        kind: Any = kinds[annotation](value, path) if annotation in kinds else annotation
        return from_config_dict(kind, value, path, kinds=kinds)
    if typing.get_origin(annotation) is Literal:
        require_choice(path, value, annotation)
        return value
    if typing.get_origin(annotation) is tuple:
        (item, *_) = typing.get_args(annotation)
        if isinstance(value, str) or not isinstance(value, list | tuple):
            value = (value,)
        return tuple(_convert(item, v, f"{path}[{i}]", kinds) for i, v in enumerate(value))
    # bool is an int in Python, and an int is a fine float: be exact about the first, lenient about the second.
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return as_float(value)
    if annotation is int and isinstance(value, bool) or not isinstance(value, annotation):
        raise ConfigError(f"{path}={shown(value)} is a {type(value).__name__}, expected {annotation.__name__}")
    return value
