"""Documents from files of every kind, and files that cannot be read."""

from __future__ import annotations

import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from bdh_jax.data.content import zstd_library
from bdh_jax.data.documents import DataError, find_files, read_documents

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
