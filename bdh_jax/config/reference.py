"""What can be configured: every key with its value, type, range and docstring, taken from the dataclasses themselves.

A docstring is the string that stands below a field. A range is what the class says when a value outside it is tried, so that there is
no second list of ranges.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from typing import Any, Literal

from bdh_jax.config.base import ConfigError
from bdh_jax.config.options import Options

_TRIED: dict[Any, tuple[Any, ...]] = {
    int: (-2, -1, 0, 1, 2**40),
    float: (-1.0, 0.0, 0.5, 1.0, 2.0),
    str: ("?",),
    Options: ({"?": 0},),
}
"""Type → values of which some are outside most ranges."""


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a configuration."""

    name: str
    """As it is overridden: "model.fast.decay"."""
    value: Any
    type: str
    """In words: "float", "int or None", "several int"."""
    range: str
    """What is accepted, where the type does not say it; empty if anything is."""
    text: str
    """The docstring of the field, in one line."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Section:
    """The keys of one part of a configuration."""

    name: str
    """As in ``--config.NAME``; empty for the whole."""
    kind: type
    """The dataclass."""
    text: str
    """The first paragraph of its docstring, in one line."""
    keys: tuple[Key, ...]


def sections(config: Any, name: str = "") -> list[Section]:
    """The parts of a configuration with their keys, in the order of the fields; its own keys come first.

    Args:
      config: a frozen dataclass, nested as deep as needed. Ranges that depend on other keys are those beside its values.
      name: of the part within the whole: "task" for a task's configuration alone.
    """
    prefix = f"{name}." if name else ""
    texts, hints = field_texts(type(config)), typing.get_type_hints(type(config))
    keys, parts = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            parts += sections(value, prefix + field.name)
            continue
        hint = hints[field.name]
        keys.append(
            Key(prefix + field.name, value, _type(hint), _range(config, field.name, hint), texts.get(field.name, ""))
        )
    return [Section(name, type(config), _paragraph(inspect.getdoc(type(config)) or ""), tuple(keys)), *parts]


@functools.cache
def field_texts(kind: type) -> dict[str, str]:
    """Field → the string that stands below it in the source, in one line. A class without source, as of a prompt, has none.

    Args:
      kind: a dataclass; fields of its bases are among them.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):
            continue
        body = typing.cast(ast.ClassDef, node).body
        for field, below in itertools.pairwise(body):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
                found[field.target.id] = " ".join(below.value.value.split())
    return found


def _paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(dict.fromkeys(type(choice).__name__ for choice in arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("None" if kind is type(None) else _type(kind) for kind in arguments)
    if origin is tuple:
        return f"several {_type(arguments[0])}"
    return "options" if hint is Options else getattr(hint, "__name__", str(hint))


def _range(config: Any, name: str, hint: Any) -> str:
    """What the annotation lists, or else what the class says of values that it refuses."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind not in (type(None), ...)]
    if typing.get_origin(hint) is Literal:
        kinds = [hint]
    (kind, *_) = kinds
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(repr, typing.get_args(kind)))
    said = []
    for value in _TRIED.get(kind, ()):
        given = (value,) if typing.get_origin(hint) is tuple else value
        try:
            dataclasses.replace(config, **{name: given})
        except ConfigError as error:
            options = re.search(r"Its options: .*", str(error))
            said.append((options[0].lower() if options else "") if hint is Options else _accepted(str(error), name))
        except Exception:
            # A class of a user's own may fail otherwise; it says nothing of its range then.
            continue
    return ", ".join(dict.fromkeys(filter(None, said)))


def _accepted(message: str, name: str) -> str:
    """The end of "NAME=VALUE must be …", or what is listed after it; empty if the message is about something else."""
    if not re.match(rf"(?:[\w.]+=\S+, )*(?:\w+\.)*{name}=", message):
        return ""
    if listed := re.search(r"Valid names: (.*)", message):
        return listed[1]
    if must := re.search(r" must (?:be |lie |(?P<no>not )be )?(?P<what>.*)", message):
        return (must["no"] or "") + re.split("[;:] ", must["what"])[0]
    return ""
