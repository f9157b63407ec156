"""Documents from files of every kind, and files that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import sys
import tracemalloc
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from bdh_jax.data import corpus as corpora
from bdh_jax.data import documents
from bdh_jax.data.config import DataConfig
from bdh_jax.data.content import zstd_library
from bdh_jax.data.documents import DataError, Tally, find_files, read_documents, read_pieces
from bdh_jax.data.load import load_text

TEXTS = ["Ein Käfer.", "zwei\nZeilen", "x" * 300_000]


def _lines(texts) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in texts)


def _write(path, content: bytes) -> None:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        # Two frames, as concatenated files have.
        compress = zstd_library(str(path)).compress
        content = compress(content[:100]) + compress(content[100:])
    path.write_bytes(content)


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "made.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3, 4], "text": [*TEXTS, None]}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_every_kind_of_file_gives_its_documents(tmp_path, parquet, ending):
    expected = [text.encode() for text in TEXTS]
    for name, content in (("a.jsonl", _lines(TEXTS)), ("b.ndjson", _lines(TEXTS)), ("c.parquet", parquet.read_bytes())):
        _write(tmp_path / (name + ending), content)
        assert list(read_documents(tmp_path / (name + ending))) == expected
    for name in ("d.txt", "e.md", "f"):
        whole = b"\xff\xfe not UTF-8 \x00" + expected[2]
        _write(tmp_path / (name + ending), whole)
        assert list(read_documents(tmp_path / (name + ending))) == [whole]


def test_another_column_and_empty_documents(tmp_path):
    rows = [{"body": "one"}, {"body": ""}, {"body": "two"}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    assert list(read_documents(tmp_path / "a.jsonl", "body")) == [b"one", b"two"]
    (tmp_path / "empty.txt").write_bytes(b"")
    assert list(read_documents(tmp_path / "empty.txt")) == []


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.parquet.zst"])
def test_a_truncated_file_is_refused_by_name(tmp_path, parquet, name):
    content = _lines(TEXTS) if "jsonl" in name else parquet.read_bytes()
    _write(tmp_path / name, content)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) - 20])
    with pytest.raises(DataError, match=rf"{name}.* truncated"):
        list(read_documents(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "y', r"a.jsonl, line 2: no JSON .*truncated"),
        ("a.jsonl", b'{"body": "x"}\n', r"a.jsonl, line 1: no text in column 'text' \(there is body\); name the column"),
        ("a.jsonl", b"[1]\n", r"a.jsonl, line 1: no text in column 'text' \(there is list\)"),
        ("a.jsonl", b'{"text": 7}\n', r"no text in column 'text' \(there is text\)"),
        ("a.txt.gz", b"plain", r"a.txt.gz cannot be read"),
        ("a.txt.zst", b"plain", r"a.txt.zst cannot be read"),
        ("a.parquet", b"plain", r"a.parquet cannot be read"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_a_parquet_column_that_is_absent_or_no_text_is_refused(parquet):
    for column in ("body", "id"):
        with pytest.raises(DataError, match=rf"no text in column '{column}' \(there is id, text\)"):
            list(read_documents(parquet, column))


def test_files_are_found_by_path_folder_and_glob_each_once_and_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/.hidden", "odd[1].txt"):
        (tmp_path / name).write_text("x")
    names = lambda pattern: [str(path.relative_to(tmp_path) if path.is_absolute() else path) for path in find_files(pattern)]  # noqa: E731
    assert names("*.txt") == ["a.txt", "b.txt", "odd[1].txt"]
    assert names("b.txt,*.txt") == ["b.txt", "a.txt", "odd[1].txt"]
    assert names(str(tmp_path)) == ["a.txt", "b.txt", "deep/c.txt", "odd[1].txt"]
    assert names("**/c.txt") == ["deep/c.txt"]
    assert names("odd[1].txt") == ["odd[1].txt"]
    with pytest.raises(DataError, match=r"'no\*' \(of 'a.txt,no\*'\) names no file in"):
        find_files("a.txt,no*")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="'none' .* names no file"):
        find_files("none")


def test_a_package_that_is_absent_is_named_with_what_installs_it(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        DataError, match=r'x\.parquet is Parquet, which needs a package .* not installed: pip install "bdh_jax\[text\]"'
    ):
        list(read_documents(tmp_path / "x.parquet", "text"))


def _zip(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


OPENED = {
    "gzip": gzip.compress,
    "zstd": lambda content: zstd_library("test").compress(content),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip archive": lambda content: _zip(member=content),
    "two bzip2": lambda content: bz2.compress(content[:50]) + bz2.compress(content[50:]),
    "two xz and padding": lambda content: lzma.compress(content[:50]) + bytes(8) + lzma.compress(content[50:]),
    "gzip in xz": lambda content: lzma.compress(gzip.compress(content)),
}


@pytest.mark.parametrize("around", OPENED)
@pytest.mark.parametrize("name", ["a", "a.json", "a.txt", "a.json.gz"])
def test_the_content_tells_what_a_file_is_whatever_its_name(tmp_path, parquet, around, name):
    expected = [text.encode() for text in TEXTS]
    path = tmp_path / name
    for content in (_lines(TEXTS), json.dumps([{"text": text} for text in TEXTS], indent=1).encode(), parquet.read_bytes()):
        path.write_bytes(OPENED[around](content))
        assert list(read_documents(path)) == expected
    path.write_bytes(OPENED[around](b"plain {text}"))
    assert list(read_documents(path)) == [b"plain {text}"]


@pytest.mark.parametrize("name", ["a", "a.json", "a.txt"])
def test_rows_are_known_by_their_first_lines(tmp_path, name):
    path = tmp_path / name
    for content in (
        b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}',
        b'\n\n  {"text": "one"}\r\n{"text": "two"}\r\n',
        b'{"n": ' + b"9" * 5000 + b', "text": "one"}\n{"text": "two"}',
        b'{"other": "' + b"x" * 100_000 + b'", "text": "one"}\n{"text": "two"}',
    ):
        path.write_bytes(content)
        assert list(read_documents(path)) == [b"one", b"two"]
    for content in (
        b"{\\rtf1 text}\n",
        b"{x}: a set\n",
        b"[Music]\n[1]",
        b'"quoted"\n',
        b'["a", "b"]',
        b'{\n  "name": "x"\n}\n',
    ):
        path.write_bytes(content)
        assert list(read_documents(path)) == [content]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "one"}\nand then\n', "line 2: no JSON .* one JSON object a line"),
        (b'{"text": "one\n{"text": "two"}\n', "line 1: no JSON"),
        (b'{\n  "text": "one"\n}\n', "is JSON with a 'text', and not one object a line; write it as JSON lines"),
        (b'[{"text": "one"},', r"starts as a JSON array and is none .*truncated"),
        (b'[{"text": "one"}, {"body": "two"}]', r"row 2: no text in column 'text' \(there is body\)"),
        (b'{"text": "one", "text": "two"}\n', "line 1: two columns are named 'text'"),
        (b'{"text": ["one"]}\n', r"line 1: no text in column 'text' \(there is text\), but a list"),
        (b'{"text": {"a": 1}}\n', r"\(there is text\), but an object"),
        (b'{"a\\nb": 1}\n', r"\(there is 'a\\nb'\)"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text": ""}\n', "line 1: nested too deeply"),
        (b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "nested too deeply"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, content, message):
    for name in ("a.json", "a.jsonl") if not content.startswith((b"[", b"{\n")) else ("a.json", "a"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            list(read_documents(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%PDF-1.7\n", "is a PDF, which is not read as text; unpack or convert it"),
        (b"\x89PNG\r\n\x1a\n", "is a picture"),
        (b"7z\xbc\xaf\x27\x1c\0", "is a 7-Zip archive"),
        (bytes(257) + b"ustar\x0000", "is a tar archive"),
        (gzip.compress(bytes(257) + b"ustar  \0"), "is a tar archive"),
        (b"\x04\x22\x4d\x18", "is compressed with LZ4"),
        (b"\x93NUMPY\x01\0", "is a NumPy array"),
        (_zip(**{"arr_0.npy": b"\x93NUMPY\x01\0"}), r"member 'arr_0.npy', is a NumPy array"),
        (pickle.dumps([1, 2]), "is a pickle"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Office document"),
        (_zip(**{"[Content_Types].xml": b"", "word/document.xml": b""}), "is an Office document, which is not read"),
        (_zip(mimetype=b"application/epub+zip"), "is an e-book"),
        (_zip(**{".hidden": b"x", "__MACOSX/y": b"y"}), "a zip archive without a file"),
        (_zip(inner=_zip(text=b"x")), "member 'inner', is a zip archive in another one"),
        (b"SQLite format 3\0", "is an SQLite database"),
        (b"\x7fELF\x02", "is a program"),
    ],
)
def test_other_formats_are_refused_by_their_own_name(tmp_path, content, message):
    for name in ("a.txt", "a"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.*{message}"):
            list(read_documents(tmp_path / name))


@pytest.mark.parametrize("name", ["a.7z", "a.tar", "a.txt.br", "a.LZMA", "a.tgz"])
def test_a_format_that_is_known_by_its_name_only_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x21\x0f\x00\x80something\x03" if name != "a.tgz" else gzip.compress(b"no tar"))
    with pytest.raises(DataError, match="is, by its name, .*, which is not read as text"):
        list(read_documents(tmp_path / name))


def test_a_damaged_second_part_is_noticed(tmp_path):
    """Libraries of bzip2 and xz take it for the end of the file."""
    for name, compress in (
        ("a.bz2", bz2.compress),
        ("a.xz", lzma.compress),
        ("a.gz", gzip.compress),
        ("a.zst", OPENED["zstd"]),
    ):
        (tmp_path / name).write_bytes(compress(b"one") + b"\x01" + compress(b"two")[1:])
        with pytest.raises(DataError, match=f"{name} cannot be read .*damaged"):
            list(read_documents(tmp_path / name))


def test_members_of_an_archive_are_files_in_order_of_their_names(tmp_path):
    members = {"b.jsonl": _lines(["two", "three"]), "a/x.txt": b"one", ".git/HEAD": b"no", "c.gz": gzip.compress(b"four")}
    (tmp_path / "a.zip").write_bytes(_zip(**members))
    tally = Tally()
    assert list(read_documents(tmp_path / "a.zip", tally=tally)) == [b"one", b"two", b"three", b"four"]
    assert tally.kinds == {"text in zip archive": 1, "JSON lines in zip archive": 1, "text in gzip in zip archive": 1}


def test_null_rows_are_left_out_and_counted_whatever_the_format(tmp_path):
    rows = [{"text": "one"}, {"text": None}, {"text": "two"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.parquet", "a.jsonl", "a.json"):
        tally = Tally()
        assert list(read_documents(tmp_path / name, tally=tally)) == [b"one", b"two"]
        assert (tally.null_rows, tally.documents) == (1, 2)
        assert "1 null rows left out" in str(tally)


def test_columns_of_text_in_every_encoding(tmp_path):
    texts = ["one", None, "zwölf", "one", ""]
    expected = [b"one", "zwölf".encode(), b"one"]
    plain = pyarrow.array(texts)
    for column in (
        plain,
        plain.cast(pyarrow.large_string()),
        plain.cast(pyarrow.string_view()),
        plain.dictionary_encode(),
        plain.cast(pyarrow.large_string()).dictionary_encode(),
    ):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        assert list(read_documents(tmp_path / "a.parquet")) == expected
    # A writer that never looked puts what is no UTF-8 into a column of text; bytes are never refused.
    data = pyarrow.array([b"ab\xff", b"c"])
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, data.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert list(read_documents(tmp_path / "a.parquet")) == [b"ab\xff", b"c"]
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: two columns are named 'text'; rename one"):
        list(read_documents(tmp_path / "a.parquet"))


@pytest.mark.parametrize("pattern", ["", " ", "a.txt,", ",a.txt", "a.txt,,b.txt", ","])
def test_an_empty_part_is_never_the_current_folder(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"has an empty part: name a file.*is a variable unset"):
        find_files(pattern)


def test_hidden_folders_are_left_out_unless_they_are_named(tmp_path):
    for name in (".git/config", "deep/.cache/x", "deep/y.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_files(str(tmp_path)) == [tmp_path / "deep" / "y.txt"]
    assert find_files(str(tmp_path / ".git")) == [tmp_path / ".git" / "config"]
    (tmp_path / "twice.txt").symlink_to(tmp_path / "deep" / "y.txt")
    assert len(find_files(f"{tmp_path},{tmp_path}/deep/../deep/*.txt")) == 1


def test_odd_names_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~name.txt", "a,b.txt", "c.txt"):
        (tmp_path / name).write_text("x")
    assert [str(file) for file in find_files("~name.txt")] == ["~name.txt"]
    assert [str(file) for file in find_files("a,b.txt")] == ["a,b.txt"]
    assert [str(file) for file in find_files("a?b.txt,c.txt")] == ["a,b.txt", "c.txt"]
    with pytest.raises(DataError, match=r"'a' \(of 'a,b.txt,c.txt'\) names no file in .*for a comma of a name write \?"):
        find_files("a,b.txt,c.txt")
    (tmp_path / "a").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(DataError, match="'a,b.txt' is the name of a file, and of 2 files with commas between"):
        find_files("a,b.txt")
    with pytest.raises(DataError, match=r"'~nobody-of-that-name/x' names no file .*no user's home"):
        find_files("~nobody-of-that-name/x")
    with pytest.raises(DataError, match="names no file"):
        find_files("x" * 300)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a pipe or device, which cannot be read twice"):
        list(read_documents(find_files("pipe")[0]))


@pytest.mark.parametrize(
    "ending", [".gz", ".zip", *(pytest.param(e, marks=pytest.mark.full) for e in (".zst", ".bz2", ".xz"))]
)
def test_what_unpacks_to_gigabytes_needs_little_memory(tmp_path, monkeypatch, ending):
    """128 MiB of spaces stand for it: more than everything that is held at one time."""
    size, limit = 2**27, 2**24
    kinds = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip archive"}
    path = tmp_path / f"spaces.txt{ending}"
    path.write_bytes(OPENED[kinds[ending]](b" " * size))
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(corpora, "MEMORY_BYTES", limit)
    tracemalloc.start()
    try:
        data = load_text(DataConfig(str(path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.train.tokens) + len(data.validation.tokens) == size
    assert peak < 4 * limit
    assert bytes(data.train.tokens[-3:]) == b"   "


def test_a_document_that_has_to_be_held_whole_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 2**21)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(2**22)))
    assert sum(len(piece.content) for piece in read_pieces(tmp_path / "a.gz")) == 2**22
    with pytest.raises(DataError, match=r"a.gz holds a document of more than 2,097,152 bytes.*cut it into several"):
        list(read_documents(tmp_path / "a.gz"))
    (tmp_path / "a.jsonl").write_bytes(_lines(["x" * 2**21]))
    with pytest.raises(DataError, match=r"a.jsonl, line 1: longer than 2,097,152 bytes"):
        list(read_pieces(tmp_path / "a.jsonl"))
