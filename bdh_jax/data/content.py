"""What a file holds, told by its content: compression, an archive, rows, text, or a format that is not read."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, BinaryIO

from bdh_jax.data.errors import DataError, text_package

HEAD = 2**16
"""Bytes at the start of a file by which its kind is told."""
BLOCK = 2**20
"""Bytes that are read at once."""
GZIP, ZSTD, BZIP2, XZ = COMPRESSED = ("gzip", "zstd", "bzip2", "xz")
ZIP, PARQUET, ROWS, ARRAY, TEXT, BYTES = "a zip archive", "Parquet", "JSON lines", "a JSON array", "text", "bytes"
BOM = codecs.BOM_UTF8

_OPENED = {
    GZIP: rb"\x1f\x8b\x08",
    ZSTD: rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    BZIP2: rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",
    XZ: rb"\xfd7zXZ\x00",
    ZIP: rb"PK(?:\x03\x04|\x05\x06|\x07\x08)",
    PARQUET: rb"PAR1",
}
_REFUSED = {
    "a tar archive": rb".{257}ustar",
    "a 7-Zip archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a\x07",
    "compressed with LZ4": rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18",
    "compressed with compress": rb"\x1f\x9d[\x80-\x9f]",
    "compressed with lzip": rb"LZIP\x01",
    "compressed with lzop": rb"\x89LZO\x00",
    "compressed with Snappy": rb"\xff\x06\x00\x00sNaPpY",
    "encrypted Parquet": rb"PARE",
    "an Arrow file": rb"ARROW1\x00|\xff{4}..\x00\x00\x10\x00\x00\x00",
    "an Avro file": rb"Obj\x01",
    "an HDF5 file": rb"\x89HDF\r\n\x1a\n",
    "a NumPy array": rb"\x93NUMPY",
    "a pickle": rb"\x80[\x04\x05]\x95.{6}\x00\x00|\x80\x02[\]\x7d(c]",
    "safetensors": rb".{6}\x00\x00\{\"",
    "GGUF": rb"GGUF[\x01-\x09]\x00",
    "an SQLite database": rb"SQLite format 3\x00",
    "a PDF": rb"%PDF-\d",
    "an Office document": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a picture": rb"\x89PNG\r\n|\xff\xd8\xff[\xc0-\xff]|GIF8[79]a|II\x2a\x00|MM\x00\x2a",
    "sound or a film": rb"RIFF.{4}(?:WAVE|AVI |WEBP)|OggS\x00|fLaC\x00|ID3[\x02-\x04]\x00|\x00\x00\x00.ftyp",
    "a program": rb"\x7fELF|\xca\xfe\xba\xbe|\x00asm",
    "a git pack": rb"PACK\x00",
}
_PATTERNS = {kind: re.compile(pattern, re.DOTALL) for kind, pattern in (_OPENED | _REFUSED).items()}

# What the end of a name claims. Where the content is nothing known, it must be what the name says.
_CLAIMS = {
    ".gz": GZIP,
    ".tgz": GZIP,
    ".zst": ZSTD,
    ".bz2": BZIP2,
    ".xz": XZ,
    ".zip": ZIP,
    ".parquet": PARQUET,
    ".jsonl": ROWS,
    ".ndjson": ROWS,
    ".tar": "a tar archive",
    ".7z": "a 7-Zip archive",
    ".rar": "a RAR archive",
    ".lz4": "compressed with LZ4",
    ".z": "compressed with compress",
    ".lz": "compressed with lzip",
    ".lzma": "compressed with LZMA",
    ".br": "compressed with Brotli",
}


def kind_of(head: bytes, name: str, place: str, column: str) -> str:
    """What kind of file it is.

    Args:
      head: its first ``HEAD`` bytes, or all of it.
      name: its name, without the endings of compressions that are opened already.
      place: how messages name it.
      column: that holds the text, of rows.

    Returns:
      One of ``COMPRESSED``, ``ZIP``, ``PARQUET``, ``ROWS``, ``ARRAY``, ``TEXT`` and ``BYTES``.

    Raises:
      DataError: if it is of a format that is not read, or damaged so that it is not what its name says.
    """
    found = next((kind for kind, pattern in _PATTERNS.items() if pattern.match(head)), None)
    claimed = _CLAIMS.get(PurePath(name).suffix.lower())
    if found in _OPENED:
        return found
    if found is not None or claimed is not None and claimed != ROWS and claimed not in _OPENED:
        said = "is" if found is not None else "is, by its name,"
        raise DataError(
            f"{place} {said} {found or claimed}, which is not read as text; unpack or convert it to text, JSON lines or Parquet, or name "
            "other files, as with a glob: 'FOLDER/**/*.txt'"
        )
    if claimed in _OPENED:
        empty = "it is empty" if not head else f"its content is not {claimed}"
        raise DataError(f"{place} cannot be read ({empty}); it may be truncated or damaged")
    if claimed == ROWS:
        return ROWS
    return _kind_of_text(head, place, column)


def without_ending(name: str) -> str:
    """The name of what a compressed file holds, also where its ending is that of another compression."""
    path = PurePath(name)
    if path.suffix.lower() == ".tgz":
        return path.with_suffix(".tar").name
    return path.stem if _CLAIMS.get(path.suffix.lower()) in COMPRESSED else name


def _kind_of_text(head: bytes, place: str, column: str) -> str:
    start = head.removeprefix(BOM).lstrip()
    if start.startswith(b"{"):
        if _starts_rows(start, cut=len(head) >= HEAD):
            return ROWS
        key = json.dumps(column).encode()
        if re.match(rb'\{\s*"', start) and re.search(re.escape(key) + rb"\s*:", start):
            raise DataError(
                f"{place} is JSON with a {column!r}, and not one object a line; write it as JSON lines, such as with: jq -c . FILE"
            )
    elif re.match(rb'\[\s*\{\s*"', start):
        return ARRAY
    return TEXT if _is_utf8(head) else BYTES


def _starts_rows(start: bytes, cut: bool) -> bool:
    """Whether the first line is a JSON object, or the second, so that damage of one line does not hide them."""
    lines = start.split(b"\n", 2)[:2]
    if cut and len(lines) == 1:  # a line longer than the head
        return re.match(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:', start, re.DOTALL) is not None
    return any(_is_object(line) for line in lines)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line, parse_int=float), dict)  # no number is too long for a float
    except RecursionError:
        return True
    except ValueError:
        return False


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def decompressed(file: BinaryIO, kind: str, place: str) -> BinaryIO:
    """What a compressed file holds, block by block.

    Args:
      file: from its start.
      kind: one of ``COMPRESSED``.
      place: how messages name it.

    Returns:
      A file that can be read once, from start to end. Reading raises OSError, EOFError or zlib.error if it is damaged or ends early.
    """
    if kind == GZIP:
        return gzip.GzipFile(fileobj=file)  # pyright: ignore[reportReturnType] - a binary file in all but its stub
    make: Callable[[], Any]
    if kind == ZSTD:
        zstd = zstd_library(place)
        # As `zstd --long=31` writes; by itself the library refuses more than 27.
        options = {zstd.DecompressionParameter.window_log_max: 31}
        make = lambda: zstd.ZstdDecompressor(options=options)  # noqa: E731
    elif kind == XZ:
        make = lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**30)  # noqa: E731
    else:
        make = bz2.BZ2Decompressor
    return io.BufferedReader(_Streams(file, make), HEAD)


def zstd_library(place: str) -> Any:
    """``compression.zstd`` of Python 3.14, or its backport.

    Raises:
      DataError: if it is not installed.
    """
    if sys.version_info >= (3, 14):
        return text_package(f"{place} is compressed with zstd, which", "compression.zstd")
    return text_package(f"{place} is compressed with zstd, which", "backports.zstd")


class _Streams(io.RawIOBase):
    """What compressed streams hold, one after another, as concatenated files have them.

    The classes of bz2 and lzma take anything that follows the first stream for its end, and would drop what a damaged second one holds.
    """

    def __init__(self, file: BinaryIO, make: Callable[[], Any]):
        self._file, self._make = file, make
        self._stream: Any = None
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream is None:
                block = self._waiting or self._file.read(BLOCK)
                if not block:
                    return 0
                self._waiting = block.lstrip(b"\0")  # padding between streams
                if not self._waiting:
                    continue
                self._stream = self._make()
            if self._stream.needs_input and not self._waiting:
                self._waiting = self._file.read(BLOCK)
                if not self._waiting:
                    raise EOFError("it ends before its compressed stream does")
            try:
                data = self._stream.decompress(self._waiting, len(buffer))
            except Exception as error:  # of three libraries
                raise OSError(str(error)) from error
            self._waiting = b""
            if self._stream.eof:
                self._waiting, self._stream = self._stream.unused_data, None
            if data:
                buffer[: len(data)] = data
                return len(data)


def peek(file: BinaryIO) -> tuple[bytes, BinaryIO]:
    """The first ``HEAD`` bytes of a file, and the same file from its start."""
    head = file.read(HEAD)
    return head, io.BufferedReader(_Again(head, file), HEAD)


class _Again(io.RawIOBase):
    """Bytes that were read already, and the rest of their file."""

    def __init__(self, head: bytes, file: BinaryIO):
        self._head, self._file = memoryview(head), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)]
        self._head = self._head[len(data) :]
        if not data:
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def on_disk(file: BinaryIO, place: str) -> BinaryIO:
    """A copy in a temporary file, for formats that are read from their end.

    Raises:
      DataError: if there is no room for it.
    """
    copy = tempfile.TemporaryFile()  # noqa: SIM115, whoever asked closes it
    try:
        while block := file.read(BLOCK):
            write_temporary(copy, block, place)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def write_temporary(file: BinaryIO, content: Any, what: str) -> None:
    """Write to a temporary file.

    Raises:
      DataError: if the disk is full.
    """
    try:
        file.write(content)
        file.flush()
    except OSError as error:
        raise DataError(
            f"{what} is too large for {tempfile.gettempdir()} ({error.strerror}), where it is unpacked; let TMPDIR name a folder with more room"
        ) from error
