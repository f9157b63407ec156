"""Small files: read by a schema, written whole or not at all. A room that keeps a file of JSON declares its schema and uses these."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
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


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file to write, which takes the place of ``path`` once the block is done, and is gone if it is not.

    Its name cannot be foretold, and what lies there is never written through: not a link either.

    Args:
      path: the file; its folder is made if it is not there.

    Yields:
      The new file, which is empty.

    Raises:
      OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, whatever the file is called: a name has 255 bytes at most.
    part = path.parent / f".{secrets.token_hex(8)}.part"
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield part
        # What is renamed before it is on disk can be empty after a power cut.
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_whole(path: Path, content: str) -> None:
    """Write a text with :func:`whole_file`, as UTF-8.

    Raises:
      OSError: if it cannot be written.
    """
    with whole_file(path) as part:
        part.write_text(content, encoding="utf-8")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
