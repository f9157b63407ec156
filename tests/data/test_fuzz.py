"""Data files of every kind, as they are, mislabelled and damaged: what is read is what was written, or one line says why not."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import string
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings

from bdh_jax.data.content import zstd_library
from bdh_jax.data.documents import DataError, find_files, read_documents, read_pieces
from bdh_jax.data.tokenizer import load_tokenizer, train_tokenizer

QUICK, FULL = 20, 300


class Made(NamedTuple):
    """A file, and what it should give."""

    name: str
    content: bytes
    documents: list[bytes]
    checked: bool
    """Whether its format has checksums and its name says so: any damage is noticed or harmless."""


def _zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", content)
    return file.getvalue()


AROUND = {
    "": (lambda content: content, False),
    ".gz": (lambda content: gzip.compress(content, mtime=0), True),
    ".bz2": (bz2.compress, True),
    ".xz": (lzma.compress, True),
    ".zst": (
        lambda content: zstd_library("").compress(content, options={zstd_library("").CompressionParameter.checksum_flag: 1}),
        True,
    ),
    ".zip": (_zip, True),
}


def _parquet(texts: list[str | None], dictionary: bool) -> bytes:
    file = io.BytesIO()
    column = pyarrow.array(texts, pyarrow.string())
    table = pyarrow.table({"text": column.dictionary_encode() if dictionary else column})
    pyarrow.parquet.write_table(table, file, write_page_checksum=True, row_group_size=2)
    return file.getvalue()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
rows = st.lists(texts | st.none(), min_size=1, max_size=6)
names = st.text(string.ascii_letters + "~,.[]* -é", min_size=1, max_size=8).filter(
    lambda name: not name.startswith(".") and name.strip() == name and "." not in name[:-1]
)


@st.composite
def files(draw: st.DrawFn) -> Made:
    kind = draw(st.sampled_from(["text", "lines", "array", "parquet"]))
    values = draw(rows)
    if kind == "text":
        # What it starts with decides its kind: no magic, and no row.
        whole = b"Text: " + draw(st.binary(max_size=200))
        content, documents, ending = whole, [whole], draw(st.sampled_from(["", ".txt", ".md", ".json"]))
    else:
        documents = [value.encode() for value in values if value]
        objects = [{"id": 1, "text": value} for value in values]
        if kind == "lines":
            content = b"".join(json.dumps(o, ensure_ascii=draw(st.booleans())).encode() + b"\n" for o in objects)
            ending = draw(st.sampled_from(["", ".jsonl", ".json", ".txt"]))
        elif kind == "array":
            content = json.dumps(objects, indent=draw(st.sampled_from([None, 1]))).encode()
            ending = draw(st.sampled_from(["", ".json", ".txt"]))
        else:
            content = _parquet(values, draw(st.booleans()))
            ending = draw(st.sampled_from(["", ".parquet", ".bin"]))
    checked = False
    for around in draw(st.lists(st.sampled_from(list(AROUND)), max_size=2)):
        if around == ".zip" and ".zip" in ending:
            continue
        pack, checked = AROUND[around] if around else (AROUND[""][0], checked)
        content = pack(content)
        ending += around if draw(st.booleans()) or not ending.endswith(tuple(AROUND)[1:]) else ""
    # Where no name claims a compression, its damaged first bytes make it bytes like any others.
    return Made("file" + ending, content, documents, checked and ending.endswith(tuple(AROUND)[1:]))


def _check(error: DataError, name: str) -> None:
    """One line that names the thing."""
    assert name in str(error)
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 1500


def _read(made: Made, content: bytes) -> list[bytes] | None:
    """The documents; None if the file is refused, in one line that names it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, made.name)
        path.write_bytes(content)
        try:
            documents = list(read_documents(path))
        except DataError as error:
            _check(error, str(path))
            return None
        pieces = list(read_pieces(path))
        assert b"".join(piece.content for piece in pieces) == b"".join(documents)
        assert sum(piece.first for piece in pieces) == len(documents)
        return documents


def _whole(made: Made) -> None:
    assert _read(made, made.content) == made.documents


def _damaged(made: Made, data: st.DataObject) -> None:
    content = bytearray(made.content)
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    read = _read(made, bytes(content))
    if made.checked:
        assert read is None or read == made.documents


def _random(content: bytes, name: str) -> None:
    read = _read(Made(name, content, [], False), content)
    assert read is None or all(isinstance(document, bytes) and document for document in read)


def _named(name: str) -> None:
    """A file of any name is found by that name, or the message names it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path(name).write_text("x")
        try:
            assert [str(path) for path in find_files(name)] == [name]
            assert len(find_files(folder)) == 1
        except DataError as error:
            _check(error, repr(name))


SENTENCES = [b"one two three", "Käfer".encode()]
TOKENIZER = json.loads(train_tokenizer(SENTENCES, 262))


def _tokenizer(data: st.DataObject) -> None:
    """A tokenizer.json in which something is other than it was keeps every byte, or is refused."""
    kind = json.loads(json.dumps(TOKENIZER))
    odd = st.sampled_from(
        [
            None,
            0,
            -1,
            0.1,
            1e300,
            10**12,
            "",
            "x",
            [],
            {},
            True,
            {"type": "Sequence"},
            {"type": "ByteLevel"},
            [{}],
            {"type": 3},
        ]
    )
    for _ in range(data.draw(st.integers(1, 2))):
        at = kind if data.draw(st.booleans()) else kind["model"]
        if not isinstance(at, dict) or not at:
            continue
        key = data.draw(st.sampled_from(sorted(at)))
        if key == "vocab" and isinstance(at[key], dict) and at[key] and data.draw(st.booleans()):
            at[key] = {**at[key], data.draw(st.sampled_from(sorted(at[key]))): data.draw(st.integers(-1, 2**33))}
        elif data.draw(st.booleans()):
            at[key] = json.loads(json.dumps(data.draw(odd)))
        else:
            del at[key]
        if not isinstance(kind.get("model"), dict):
            break
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(json.dumps(kind))
        try:
            tokenizer = load_tokenizer(path)
            for document in (*SENTENCES, b"x\x00 y"):
                ids = tokenizer.encode(document)
                assert tokenizer.decode(ids) == document
                np.testing.assert_array_equal(ids, tokenizer.encode(document))
                assert not len(ids) or ids.max() < tokenizer.vocab_size
        except DataError as error:
            _check(error, str(path))


NAMES = st.sampled_from(
    ["a", "a.txt", "a.json", "a.jsonl", "a.gz", "a.zst", "a.bz2", "a.xz", "a.zip", "a.parquet", "a.jsonl.gz"]
)
STARTS = [
    b"",
    b"{",
    b'{"text": "',
    b"[{",
    b'[{"text":',
    b"PAR1",
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"BZh91AY&SY",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
]
RANDOM = st.builds(lambda start, rest: start + rest, st.sampled_from(STARTS), st.binary(max_size=300))

CHECKS = {
    "whole": (_whole, {"made": files()}),
    "damaged": (_damaged, {"made": files(), "data": st.data()}),
    "random": (_random, {"content": RANDOM, "name": NAMES}),
    "named": (_named, {"name": names}),
    "tokenizer": (_tokenizer, {"data": st.data()}),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("draws", [QUICK, pytest.param(FULL, marks=pytest.mark.full)])
def test_data_files(check, draws):
    function, strategies = CHECKS[check]
    seeded = settings(max_examples=draws, derandomize=True, deadline=None, database=None)
    seeded(given(**strategies)(function))()
