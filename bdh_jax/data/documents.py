"""Documents from files: text, compressed text, JSON lines, Parquet and zip archives, as bytes, one after another.

A plain file is one document. JSON lines, a JSON array and Parquet hold one a row, in the column ``text``. Which of them a file is, its
content tells (:mod:`bdh_jax.data.content`); gzip, zstd, bzip2 and xz around any of them are opened. Files are read in blocks, so that
one that unpacks to gigabytes needs no more memory than its longest row.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from bdh_jax.config.base import ConfigError
from bdh_jax.config.paths import expand_home
from bdh_jax.data import content
from bdh_jax.data.errors import DataError, first_line, text_package

__all__ = ["DataError", "Piece", "Tally", "find_files", "read_documents", "read_pieces", "text_package"]

TEXT_COLUMN = "text"
DOCUMENT_BYTES = 2**31
"""The longest row; and the longest document, where one has to be in memory as a whole."""


class Piece(NamedTuple):
    """Part of a document."""

    content: bytes
    """Not empty."""
    first: bool
    """Whether a document starts here."""


@dataclasses.dataclass
class Tally:
    """What was read."""

    files: int = 0
    documents: int = 0
    """Without empty ones."""
    bytes: int = 0
    """Of the documents."""
    null_rows: int = 0
    """Rows without a text, which are left out."""
    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """How many files, and members of archives, are of which kind."""
    beginning: bytes = b""
    """The first bytes of the first document."""

    def add(self, piece: Piece) -> None:
        """Count a piece."""
        self.documents += piece.first
        self.bytes += len(piece.content)
        if self.documents == 1 and len(self.beginning) < 240:
            self.beginning += piece.content[:240]

    def __str__(self) -> str:
        """One line: files, documents, bytes, kinds and the first 60 characters."""
        kinds = ", ".join(f"{count:,} × {kind}" for kind, count in self.kinds.items())
        left_out = f"; {self.null_rows:,} null rows left out" if self.null_rows else ""
        return (
            f"{_counted(self.files, 'file')}, {_counted(self.documents, 'document')}, {_counted(self.bytes, 'byte')} "
            f"({kinds}){left_out}; it begins {beginning_of(self.beginning)}"
        )


def beginning_of(start: bytes) -> str:
    """The first 60 characters of a text, on one line."""
    return repr(start[:240].decode(errors="backslashreplace")[:60])


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def expanded(name: str) -> Path:
    """The path that a name stands for: ~ is the home folder, unless there is a file of that very name.

    Raises:
      DataError: for ~ with the name of nobody.
    """
    try:
        return Path(expand_home(name))
    except ConfigError as error:
        raise DataError(str(error)) from None


def find_files(pattern: str) -> list[Path]:
    """Files that a path, a folder or a glob names, in order of their names, each once.

    Args:
      pattern: one or several, with commas between them; a file whose name has a comma may stand alone. A folder stands for all files in
        it and below, without those whose name, or whose folder's name, starts with a dot.

    Raises:
      DataError: if a part is empty or names no file, or a folder cannot be read.
    """
    parts = [part.strip() for part in pattern.split(",")]
    if len(parts) > 1 and os.path.exists(pattern):
        if all(part and os.path.exists(os.path.expanduser(part)) for part in parts):
            raise DataError(
                f"{pattern!r} is the name of a file, and of {len(parts)} files with commas between; write ? for a comma of a name"
            )
        parts = [pattern]
    found: dict[str, Path] = {}
    for part in parts:
        if not part:
            raise DataError(
                f"{pattern!r} has an empty part: name a file, a folder or a glob, without a comma too many (is a variable unset?)"
            )
        path = expanded(part)
        if os.path.isdir(path):
            files = sorted(_below(path))
        elif os.path.exists(path):
            files = [path]
        else:
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
        if not files:
            comma = "; for a comma of a name write ?" if len(parts) > 1 else ""
            raise DataError(f"{part!r} (of {pattern!r}) names no file in {Path.cwd()}{comma}")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    """Files in a folder and below, also where links lead, but each folder once."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}); make it readable, or name other folders"
        ) from error

    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in seen
        )
        yield from (path for name in files if not name.startswith(".") and os.path.isfile(path := Path(place, name)))


def read_documents(path: Path, column: str = TEXT_COLUMN, tally: Tally | None = None) -> Iterator[bytes]:
    """The documents of a file, in order, empty ones left out.

    Args:
      path: the file. Its content says how it is read.
      column: of JSON lines, JSON arrays and Parquet.
      tally: counts what is read.

    Yields:
      UTF-8, or whatever bytes a plain file holds: bytes are never refused.

    Raises:
      DataError: for a damaged file, one of a format that is not read, a row that is no JSON, a column that is absent or no text, or a
        document of more than ``DOCUMENT_BYTES``.
    """
    pieces: list[bytes] = []
    size = 0
    for piece in read_pieces(path, column, tally):
        if piece.first and pieces:
            yield b"".join(pieces)
            pieces, size = [], 0
        pieces.append(piece.content)
        size += len(piece.content)
        if size > DOCUMENT_BYTES:
            raise DataError(
                f"{path} holds a document of more than {DOCUMENT_BYTES:,} bytes, which has to be in memory as a whole here; cut it into "
                "several files or rows"
            )
    if pieces:
        yield pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_pieces(path: Path, column: str = TEXT_COLUMN, tally: Tally | None = None) -> Iterator[Piece]:
    """As :func:`read_documents`, but a plain file comes in pieces, and may be of any size."""
    tally = Tally() if tally is None else tally
    if not os.path.isfile(path):
        kind = (
            "is a pipe or device, which cannot be read twice; write it to a file"
            if os.path.exists(path)
            else "does not exist"
        )
        raise DataError(f"{path} {kind}")
    tally.files += 1
    try:
        with path.open("rb") as file:
            for piece in _Reader(str(path), path.name, column, tally).pieces(file):
                tally.add(piece)
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); it may be truncated or damaged") from error


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one file, or a member of an archive."""

    place: str
    """How messages name it."""
    name: str
    column: str
    tally: Tally
    around: str = ""
    """The compressions and archives that it lies in."""

    def pieces(self, file: BinaryIO) -> Iterator[Piece]:
        """Of the whole file."""
        head, again = content.peek(file)
        kind = content.kind_of(head, self.name, self.place, self.column)
        if kind in content.COMPRESSED:
            if self.around.count(" in ") > 3:
                raise DataError(f"{self.place} is compressed more than four times over; unpack it")
            inner = dataclasses.replace(
                self, name=content.without_ending(self.name), around=f" in {kind.removeprefix('a ')}{self.around}"
            )
            yield from inner.pieces(content.decompressed(again, kind, self.place))
            return
        if kind == content.ZIP:
            if content.ZIP.removeprefix("a ") in self.around:
                raise DataError(f"{self.place} is a zip archive in another one; unpack it, and name its folder")
        else:
            self.tally.kinds[(kind.removeprefix("a ") if head else "empty") + self.around] += 1
        if kind in (content.ZIP, content.PARQUET):
            if not self.around:
                file.seek(0)
                yield from self._archive_or_table(kind, file)
            else:
                with content.on_disk(again, self.place) as copy:
                    yield from self._archive_or_table(kind, copy)
        elif kind in (content.ROWS, content.ARRAY):
            rows = self._lines(again) if kind == content.ROWS else self._array(again)
            yield from (Piece(text, True) for text in rows if text)
        else:
            first = True
            while block := again.read(content.BLOCK):
                yield Piece(block, first)
                first = False

    def _archive_or_table(self, kind: str, file: BinaryIO) -> Iterator[Piece]:
        try:
            if kind == content.ZIP:
                yield from self._members(file)
            else:
                yield from (Piece(text, True) for text in self._parquet(file) if text)
        except DataError:
            raise
        except Exception as error:  # of several libraries, by the kind of damage
            raise DataError(f"{self.place} cannot be read ({first_line(error)}); it may be truncated or damaged") from error

    def _members(self, file: BinaryIO) -> Iterator[Piece]:
        with zipfile.ZipFile(file) as archive:
            members = sorted((m for m in archive.infolist() if not m.is_dir()), key=lambda member: member.filename)
            names = {member.filename for member in members}
            for inside, what in (
                ("[Content_Types].xml", "an Office document"),
                ("mimetype", "an e-book or an OpenDocument file"),
            ):
                if inside in names:
                    raise DataError(f"{self.place} is {what}, which is not read as text; convert it to text")
            members = [
                m for m in members if not any(p.startswith((".", "__MACOSX")) for p in PurePosixPath(m.filename).parts)
            ]
            if not members:
                raise DataError(f"{self.place} is a zip archive without a file; name other files")
            for member in members:
                place = f"{self.place}, member {member.filename!r},"
                if member.flag_bits & 1:
                    raise DataError(f"{place} is encrypted; unpack the archive, and name its folder")
                reader = _Reader(
                    place,
                    PurePosixPath(member.filename).name,
                    self.column,
                    self.tally,
                    f" in {content.ZIP.removeprefix('a ')}{self.around}",
                )
                with archive.open(member) as opened:
                    yield from reader.pieces(opened)

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        number = 0
        while line := file.readline(DOCUMENT_BYTES + 1):
            number += 1
            where = f"{self.place}, line {number}"
            if len(line) > DOCUMENT_BYTES:
                raise DataError(f"{where}: longer than {DOCUMENT_BYTES:,} bytes; cut the row into several")
            line = line.removeprefix(content.BOM) if number == 1 else line
            if not line.strip():
                continue
            try:
                row = _parse(line)
            except ValueError as error:
                raise DataError(
                    f"{where}: no JSON ({first_line(error)}), in a file of one JSON object a line. The file may be truncated there"
                ) from error
            except RecursionError as error:
                raise DataError(f"{where}: nested too deeply to be read; leave that out of the row") from error
            yield self._text(row, where)

    def _array(self, file: BinaryIO) -> Iterator[bytes]:
        whole = file.read(DOCUMENT_BYTES + 1)
        if len(whole) > DOCUMENT_BYTES:
            raise DataError(
                f"{self.place} is a JSON array of more than {DOCUMENT_BYTES:,} bytes; write it as JSON lines: jq -c '.[]' FILE"
            )
        try:
            rows = _parse(whole.removeprefix(content.BOM))
        except ValueError as error:
            raise DataError(
                f"{self.place} starts as a JSON array and is none ({first_line(error)}). It may be truncated there"
            ) from error
        except RecursionError as error:
            raise DataError(f"{self.place} is JSON nested too deeply to be read") from error
        for number, row in enumerate(rows, 1):
            yield self._text(row, f"{self.place}, row {number}")

    def _text(self, row: Any, where: str) -> bytes:
        if isinstance(row, _Twice) and self.column in row.names:
            raise DataError(f"{where}: two columns are named {self.column!r}; rename one of them")
        row = row.row if isinstance(row, _Twice) else row
        if not isinstance(row, dict) or self.column not in row:
            has = _listed(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{where}: no text in column {self.column!r} (there is {has}); name the column that holds it")
        text = row[self.column]
        if text is None:
            self.tally.null_rows += 1
            return b""
        if not isinstance(text, str):
            raise DataError(
                f"{where}: no text in column {self.column!r} (there is {_listed(row)}), but {_name_of(text)}; name the column that holds it"
            )
        return text.encode(errors="surrogatepass")

    def _parquet(self, file: BinaryIO) -> Iterator[bytes]:
        pyarrow = text_package(f"{self.place} is Parquet, which", "pyarrow", "pyarrow.parquet")
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if names.count(self.column) > 1:
            raise DataError(f"{self.place}: two columns are named {self.column!r}; rename one of them")
        kind = table.schema_arrow.field(self.column).type if self.column in names else pyarrow.null()
        if coded := pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        types = pyarrow.types
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise DataError(
                f"{self.place}: no text in column {self.column!r} (there is {_listed(names)}); name the column that holds it"
            )
        for batch in table.iter_batches(columns=[self.column], batch_size=1024):
            array = batch.column(0)
            array = array.dictionary_decode() if coded else array
            # As bytes, since a writer may have put anything into a column of text.
            array = array.cast(pyarrow.binary_view() if types.is_string_view(kind) else pyarrow.large_binary())
            self.tally.null_rows += array.null_count
            yield from (text for text in array.to_pylist() if text is not None)


class _Twice(NamedTuple):
    """A JSON object that has names twice."""

    row: dict[str, Any]
    names: frozenset[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Twice:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    counts = collections.Counter(name for name, _ in pairs)
    return _Twice(row, frozenset(name for name, count in counts.items() if count > 1))


# No number is too long for a float.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=float)


def _parse(line: bytes) -> Any:
    return _DECODER.decode(line.decode("utf-8", "surrogatepass"))


def _name_of(value: Any) -> str:
    return "an object" if isinstance(value, dict | _Twice) else "a list" if isinstance(value, list) else str(value)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = [name if name.isprintable() and len(name) <= 40 else ascii(name)[:40] for name in names[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "nothing"
