"""Which settings identify a result, and which only say how it is computed or where what it is made of lies.

A run goes on with other values of the second kind. A field of it says so where it is declared, as its metadata: ``dataclasses.field(
default=10, metadata=HOW)``. One that says nothing identifies the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_KEY = "identity"
HOW: Mapping[str, str] = MappingProxyType({_KEY: "how"})
"""How a result is computed, shown or kept, up to rounding in another order. Of a field that is a dataclass: all of it."""
WHERE: Mapping[str, str] = MappingProxyType({_KEY: "where"})
"""Where something lies whose content has a fingerprint of its own, which identifies the result in the field's place."""


def keys_of(config: Any, kind: Mapping[str, str]) -> frozenset[str]:
    """The fields of a kind.

    Args:
      config: a dataclass, nested.
      kind: ``HOW`` or ``WHERE``.

    Returns:
      Names of fields, with dots between those of parts: "train.log_every".
    """
    found = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get(_KEY) == kind[_KEY]:
            found.add(field.name)
        elif dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}" for name in keys_of(value, kind)}
    return frozenset(found)
