"""Small files of JSON, read by a schema. A room that keeps one declares its schema and uses these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

SELF = "digest"
"""The key that holds :func:`digest_of` what stands beside it."""


class Schema(pydantic.BaseModel):
    """What a file of JSON must hold. Types are taken at their word (5.0 is no int); keys that are not named here are kept and not read."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="allow")


_Schema = TypeVar("_Schema", bound=Schema)


class RecordError(ValueError):
    """What is wrong with the content of a file, in one line. Whoever reads the file adds its name and the remedy."""


def parse(content: str | bytes, schema: type[_Schema]) -> _Schema:
    """What a file of JSON holds.

    Args:
      content: of the file, UTF-8.
      schema: what it must hold. With the key ``digest`` among its fields, and in the file, the content must be the one it was made of.

    Returns:
      An instance of ``schema``.

    Raises:
      RecordError: names the first thing that is wrong.
    """
    values = parse_json(content)
    try:
        record = schema.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        given = "" if first["type"] == "missing" else f", and is {_short(first['input'])}"
        raise RecordError(f"{where + ': ' if where else ''}{first['msg']}{given}") from None
    if SELF in schema.model_fields and values.get(SELF) is not None and values[SELF] != digest_of(values):
        raise RecordError("it is not what was written: its digest is another one")
    return record


def parse_json(content: str | bytes) -> Any:
    """JSON of any kind.

    Raises:
      RecordError: if it is none.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise RecordError("it is nested too deeply") from None
    except ValueError as error:
        raise RecordError(f"it is no JSON: {error}") from None


def digest_of(values: Mapping[str, Any]) -> str:
    """A hash of an object of JSON, its own key ``digest`` left out."""
    content = json.dumps({key: value for key, value in values.items() if key != SELF}, sort_keys=True)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
