"""Preparation: nothing is lost, an interruption costs a shard at most, and other text is not mixed in."""

from __future__ import annotations

import json

import pytest

from bdh_jax.data import preparation
from bdh_jax.data import shards as prepared
from bdh_jax.data.config import DataConfig
from bdh_jax.data.documents import DataError
from bdh_jax.data.load import load_text

TEXTS = [f"Story {i}: once upon a time there were {i * i} mice." for i in range(200)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    names = ("dataset", "name", "split", "files", "column", "documents", "train_tokenizer")
    return {**dict.fromkeys(names), "files": str(path), "column": "text", "validation_share": 0.2}


def _documents(corpus, tokenizer):
    return [tokenizer.decode(corpus.document(index)).decode() for index in range(corpus.documents)]


def _read(folder):
    data = load_text(DataConfig(str(folder)))
    return [_documents(corpus, data.tokenizer) for corpus in (data.train, data.validation)]


def test_every_document_is_on_one_side_in_its_order(source, tmp_path):
    manifest = preparation.prepare(tmp_path / "out", source, shard_tokens=1000)
    train, validation = _read(tmp_path / "out")
    assert sorted(train + validation) == sorted(TEXTS)
    assert [TEXTS.index(text) for text in train] == sorted(TEXTS.index(text) for text in train)
    assert 20 < len(validation) < 60
    assert len(manifest["shards"]) > 10
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]["files"] == source["files"]


@pytest.mark.parametrize("kind", ["files", "dataset"])
def test_an_interrupted_preparation_goes_on(source, kind, tmp_path, monkeypatch):
    if kind == "dataset":
        folder = tmp_path / "local"
        folder.mkdir()
        (tmp_path / "stories.jsonl").rename(folder / "stories.jsonl")
        source = {**source, "files": None, "dataset": str(folder), "split": "train"}
    whole = preparation.prepare(tmp_path / "whole", source, shard_tokens=1000)
    real, read = preparation._documents, []

    def breaking(source, files, skip):
        read.append(skip)
        for number, document in enumerate(real(source, files, skip)):
            if number == 70:
                raise KeyboardInterrupt
            yield document

    monkeypatch.setattr(preparation, "_documents", breaking)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            preparation.prepare(tmp_path / "cut", source, shard_tokens=1000)
        with pytest.raises(DataError, match="the preparation was interrupted"):
            _read(tmp_path / "cut")
    monkeypatch.setattr(preparation, "_documents", real)
    assert preparation.prepare(tmp_path / "cut", source, shard_tokens=1000) == whole
    assert read[0] == 0 < read[1] <= 70
    assert _read(tmp_path / "cut") == _read(tmp_path / "whole")
    # Once complete, nothing is read again.
    monkeypatch.setattr(preparation, "_documents", None)
    assert preparation.prepare(tmp_path / "cut", source, shard_tokens=1000) == whole


@pytest.mark.parametrize("kind", ["files", "dataset"])
def test_null_rows_are_left_out(source, kind, tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    rows = [{"text": text if number % 5 else None} for number, text in enumerate(TEXTS)]
    (folder / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {**source, "files": str(folder)}
    if kind == "dataset":
        source = {**source, "files": None, "dataset": str(folder), "split": "train"}
    preparation.prepare(tmp_path / "out", source, shard_tokens=1000)
    train, validation = _read(tmp_path / "out")
    assert sorted(train + validation) == sorted(text for number, text in enumerate(TEXTS) if number % 5)


def test_a_tokenizer_is_trained_first_and_kept(source, tmp_path):
    source = {**source, "train_tokenizer": 300, "documents": 150}
    manifest = preparation.prepare(tmp_path / "out", source, shard_tokens=10**6, tokenizer_documents=50)
    train, validation = _read(tmp_path / "out")
    assert sorted(train + validation) == sorted(TEXTS[:150])
    assert manifest["tokenizer"] != "bytes"
    assert sum(shard.tokens for shard in manifest["shards"]) < sum(map(len, TEXTS[:150])) / 2


def test_other_text_is_not_mixed_in(source, tmp_path):
    preparation.prepare(tmp_path / "out", source, shard_tokens=1000)
    with pytest.raises(DataError, match=r"holds other text \(documents: there None, now 7\)"):
        preparation.prepare(tmp_path / "out", {**source, "documents": 7}, shard_tokens=1000)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and holds no prepared text"):
        preparation.prepare(tmp_path / "full", source, shard_tokens=1000)


def test_what_is_prepared_is_not_read_as_text(tmp_path, monkeypatch):
    """Where it lies among the text, an interrupted preparation finds its own shards."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:03}.txt").write_text(text)
    names = ("dataset", "name", "split", "documents", "train_tokenizer")
    source = {**dict.fromkeys(names), "files": str(folder), "column": "text", "validation_share": 0.2}
    real = preparation._documents

    def breaking(source, files, skip):
        yield from list(real(source, files, skip))[:70]
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_documents", breaking)
    with pytest.raises(KeyboardInterrupt):
        preparation.prepare(folder / "out", source, shard_tokens=1000)
    monkeypatch.setattr(preparation, "_documents", real)
    (folder / "000a.txt").write_text("a story that came later")
    with pytest.raises(DataError, match=r"begun with other files: there \['.*001.txt', \d+\], now \['.*000a.txt', 23\]"):
        preparation.prepare(folder / "out", source, shard_tokens=1000)
    (folder / "000a.txt").unlink()
    away = tmp_path / "away"
    away.mkdir()
    for path in folder.glob("*.txt"):
        path.rename(away / path.name)
    with pytest.raises(DataError, match="names nothing but what lies in --out"):
        preparation.prepare(folder / "out", source, shard_tokens=1000)
    for path in away.iterdir():
        path.rename(folder / path.name)
    assert preparation.prepare(folder / "out", source, shard_tokens=1000)["documents_read"] == len(TEXTS)
    train, validation = _read(folder / "out")
    assert sorted(train + validation) == sorted(TEXTS)


def test_what_cannot_be_prepared_is_named(source, tmp_path):
    with pytest.raises(DataError, match=r"1 documents with --validation_share=0.2 left none for \w+; read more"):
        preparation.prepare(tmp_path / "one", {**source, "documents": 1}, shard_tokens=1000)
    missing = {**source, "files": None, "dataset": str(tmp_path / "nothing"), "split": "train"}
    with pytest.raises(DataError, match=r"nothing cannot be read \(.*the same command goes on"):
        preparation.prepare(tmp_path / "two", missing, shard_tokens=1000)
    assert prepared.read_manifest(tmp_path / "two")["documents_read"] == 0
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match=r"no text in column 'text' \(there is body\)"):
        preparation.prepare(tmp_path / "three", {**missing, "dataset": str(folder)}, shard_tokens=1000)
