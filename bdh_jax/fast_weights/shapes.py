"""How a state or a model's output is printed: shapes and dtypes, not numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 80


def shapes(tree: Any, /) -> str:
    """A tree with "float32[2, 16]" in place of every array, in 80 columns. Fields that are None or empty are left out, and neighbours that
    look the same are counted.

    Args:
      tree: of dataclasses, mappings, sequences, and anything with a shape and a dtype; what else is there is printed as Python does.
    """
    return _text(tree, 0, 0)


def _text(node: Any, indent: int | None, before: int) -> str:
    """The text of a node that begins ``before`` characters after the indentation of its line; None keeps all of it in one line."""
    if hasattr(node, "shape") and hasattr(node, "dtype"):
        return f"{node.dtype}[{', '.join(map(str, node.shape))}]"
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        named = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        parts = [
            (f"{name}=", value)
            for name, value in named.items()
            if not (value is None or isinstance(value, dict) and not value)
        ]
        return _group(f"{type(node).__name__}(", parts, ")", indent, before)
    if isinstance(node, Mapping):
        return _group("{", [(f"{name!r}: ", value) for name, value in node.items()], "}", indent, before)
    if isinstance(node, list | tuple):
        return _sequence(node, indent, before)
    return repr(node)


def _sequence(node: Sequence[Any], indent: int | None, before: int) -> str:
    groups = [list(group) for _, group in itertools.groupby(node, key=lambda item: _text(item, indent, before))]
    counted = [(f"{len(group)} × " if len(group) > 1 else "", group[0]) for group in groups]
    if len(counted) == 1 and len(node) > 1:
        ((count, item),) = counted
        return count + _text(item, indent, before + len(count))
    return _group("(", counted, ")", indent, before)


def _group(start: str, parts: Sequence[tuple[str, Any]], end: str, indent: int | None, before: int) -> str:
    line = start + ", ".join(name + _text(value, None, 0) for name, value in parts) + end
    if indent is None or indent + before + len(line) < _WIDTH:
        return line
    inner = indent + 2
    lines = [f"{' ' * inner}{name}{_text(value, inner, len(name))}" for name, value in parts]
    return "\n".join([start, ",\n".join(lines), f"{' ' * indent}{end}"])
