"""Documents from files: plain text, compressed text, JSON lines and Parquet, as bytes, one after another.

A plain file is one document. A JSON-lines or Parquet file holds one a row, in the column ``text``. ``.gz`` and ``.zst`` around any of
these are opened.
"""

from __future__ import annotations

import glob
import gzip
import importlib
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

COMPRESSED = (".gz", ".zst")
ROWS = (".jsonl", ".ndjson", ".parquet")
TEXT_COLUMN = "text"


class DataError(ValueError):
    """Data that cannot be used. The message names the file, what is wrong and the remedy."""


def find_files(pattern: str) -> list[Path]:
    """Files that a path, a folder or a glob names, in order of their names.

    Args:
      pattern: one or several, with commas between them. A folder stands for all files in it and below.

    Raises:
      DataError: if a part names no file.
    """
    found: dict[Path, None] = {}
    for part in pattern.split(","):
        path = Path(part.strip()).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        elif path.exists():
            files = [path]
        else:
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not files:
            raise DataError(f"{part.strip()!r} (of {pattern!r}) names no file in {Path.cwd()}")
        found |= dict.fromkeys(files)
    return list(found)


def read_documents(path: Path, column: str = TEXT_COLUMN) -> Iterator[bytes]:
    """The documents of a file, in order, empty ones left out.

    Args:
      path: the file. The ends of its name say how it is read; any other name is plain text.
      column: of JSON lines and Parquet.

    Yields:
      UTF-8, or whatever bytes a plain file holds: bytes are never refused.

    Raises:
      DataError: for a damaged file, a row that is no JSON, or a column that is absent or no text.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else None
    kind = suffixes[-1] if suffixes else ""
    unreadable = (OSError, EOFError, zlib.error)
    if compression == ".zst":
        unreadable += (_zstd(path).ZstdError,)
    try:
        with _open(path, compression) as file:
            if kind == ".parquet":
                documents = _parquet(path, file, column, compression)
            elif kind in ROWS:
                documents = _json_lines(path, file, column)
            else:
                documents = iter([file.read()])
            yield from (document for document in documents if document)
    except unreadable as error:
        raise DataError(f"{path} cannot be read ({error}); it may be truncated or damaged") from error


def _open(path: Path, compression: str | None) -> BinaryIO:
    if compression == ".gz":
        return gzip.open(path, "rb")
    if compression == ".zst":
        return _zstd(path).open(path, "rb")
    return path.open("rb")


def text_package(use: str, *modules: str) -> Any:
    """Import what the extra ``text`` installs.

    Args:
      use: what needs it, for the message.
      modules: names; the first is returned, the others are its submodules.

    Raises:
      DataError: if it is not installed.
    """
    try:
        package, *_ = map(importlib.import_module, modules)
    except ImportError as error:
        raise DataError(f'{use} needs a package that is not installed: pip install "bdh_jax[text]"') from error
    return package


def _zstd(path: Path) -> Any:
    """``compression.zstd`` of Python 3.14, or its backport. Unlike other packages it notices a file that ends too early."""
    if sys.version_info >= (3, 14):
        return importlib.import_module("compression.zstd")
    return text_package(f"{path} is compressed with zstd, which", "backports.zstd")


def _json_lines(path: Path, file: BinaryIO, column: str) -> Iterator[bytes]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: no JSON ({error}). The file may be truncated there") from error
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"{path}, line {number}: no text in column {column!r} (there is {has}); name the column that holds it"
            )
        yield text.encode(errors="surrogatepass")


def _parquet(path: Path, file: BinaryIO, column: str, compression: str | None) -> Iterator[bytes]:
    pyarrow = text_package(f"{path} is Parquet, which", "pyarrow", "pyarrow.parquet")
    source = io.BytesIO(file.read()) if compression else file  # Parquet is read from its end
    try:
        table = pyarrow.parquet.ParquetFile(source)
        names = table.schema_arrow.names
        if (
            column not in names
            or not pyarrow.types.is_string(table.schema_arrow.field(column).type)
            and not (pyarrow.types.is_large_string(table.schema_arrow.field(column).type))
        ):
            raise DataError(
                f"{path}: no text in column {column!r} (there is {', '.join(names)}); name the column that holds it"
            )
        for batch in table.iter_batches(columns=[column], batch_size=1024):
            yield from (text.encode() for text in batch.column(0).to_pylist() if text is not None)
    except pyarrow.ArrowInvalid as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{path} cannot be read ({reason}); it may be truncated or damaged") from error
