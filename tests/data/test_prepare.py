"""Preparation: nothing is lost, an interruption costs a shard at most, and other text is not mixed in."""

from __future__ import annotations

import json
import random
import resource
import time

import numpy as np
import pytest

from bdh_jax.config.records import digest_of
from bdh_jax.data import preparation
from bdh_jax.data import shards as prepared
from bdh_jax.data.config import DataConfig
from bdh_jax.data.documents import DataError
from bdh_jax.data.load import load_text
from bdh_jax.runs.lock import only_writer
from tests.processes import Command

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


def _manifest(folder, **changes):
    """Change a manifest and give it the digest of what it says now."""
    values = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(values | {"digest": digest_of(values)}))


def _shard(folder, **arrays):
    """Change a shard's arrays together with its checksum."""
    values = json.loads((folder / "manifest.json").read_text())
    for name, array in arrays.items():
        np.save(folder / ("train-00000.npy" if name == "tokens" else "train-00000.starts.npy"), array, allow_pickle=True)
    (row,) = (row for row in values["shards"] if row["split"] == "train")
    row["sha256"] = prepared._sha256(folder, prepared.Shard(**row))
    _manifest(folder, shards=values["shards"])


@pytest.fixture
def ready(source, tmp_path):
    preparation.prepare(tmp_path / "out", source, shard_tokens=10**6)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": lambda ids: ids.astype(np.uint16) + 200}, r"token id \d+ is not below the vocabulary's size 256"),
        ({"tokens": lambda ids: ids.astype(np.float32)}, r"unsigned integers \[N\], and are float32"),
        ({"tokens": lambda ids: ids.astype(np.int16)}, "unsigned integers"),
        ({"tokens": lambda ids: ids[:-1]}, "the manifest says"),
        ({"tokens": lambda ids: np.array([{}])}, "is no array"),
        ({"starts": lambda starts: starts[::-1]}, "starts of documents must ascend from 0"),
        ({"starts": lambda starts: starts - 1}, "must ascend from 0"),
        ({"starts": lambda starts: starts * 10**6}, "must ascend from 0"),
        ({"starts": lambda starts: starts.astype(np.float64)}, "starts must be int64"),
    ],
)
def test_values_of_a_shard_are_looked_at(changes, message, ready):
    names = {"tokens": "train-00000.npy", "starts": "train-00000.starts.npy"}
    _shard(ready, **{name: change(np.load(ready / names[name])) for name, change in changes.items()})
    with pytest.raises(DataError, match=message) as refused:
        _read(ready)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"complete": "yes"}, "complete: .*boolean, and is 'yes'"),
        ({"documents_read": -3}, "documents_read: .*and is -3"),
        ({"source": []}, "source: .*dictionary"),
        ({"shards": [{"split": "trian"}]}, "shards.0.split: Input should be 'train' or 'validation', and is 'trian'"),
        ({"shards": [{"split": "train", "number": 0.5}]}, "shards.0.number: .*integer"),
        ({"shards": {}}, "shards: .*list"),
        ({"format": "bdh_jax.text.9"}, "has the format 'bdh_jax.text.9'"),
        ({"format": None}, "format: .*string, and is None"),
    ],
)
def test_a_malformed_manifest_is_one_line(changes, message, ready):
    _manifest(ready, **changes)
    with pytest.raises(DataError, match=message) as refused:
        _read(ready)
    assert "\n" not in str(refused.value)


def test_whatever_is_damaged_is_noticed_or_harmless(ready):
    """Every file of a prepared text in turn: bits flipped, its end cut off, and gone."""
    whole, draw, noticed = _read(ready), random.Random(0), 0
    for path in sorted(ready.iterdir()):
        content = path.read_bytes()
        flipped = []
        for _ in range(20):
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            flipped.append(bytes(changed))
        for damaged in (*flipped, content[: len(content) // 2], b"", None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            try:
                assert _read(ready) == whole
            except DataError:
                noticed += 1
        path.write_bytes(content)
    assert noticed > 100


def test_a_full_disk_costs_nothing_that_was_prepared(source, tmp_path):
    whole = preparation.prepare(tmp_path / "whole", source, shard_tokens=1000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 900, 1500, 3000):  # the manifest, a shard, the manifest as it grows
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(DataError, match="out cannot be written to: File too large.*the same command goes on"):
                preparation.prepare(tmp_path / "out", source, shard_tokens=1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert preparation.prepare(tmp_path / "out", source, shard_tokens=1000) == whole
    assert _read(tmp_path / "out") == _read(tmp_path / "whole")


def test_a_tokenizer_without_a_manifest_is_not_left_behind(source, tmp_path, monkeypatch):
    def full(folder, manifest):
        raise OSError(28, "No space left on device")

    source = {**source, "train_tokenizer": 300, "documents": 150}
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "write_manifest", full)
        with pytest.raises(DataError, match="No space left"):
            preparation.prepare(tmp_path / "out", source, shard_tokens=1000)
    assert preparation.prepare(tmp_path / "out", source, shard_tokens=1000)["complete"]


def test_nothing_is_written_through_a_link(source, tmp_path):
    """Whatever a temporary file would be called: what others have put there stays as it is."""
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    for name in (".manifest.json.part", ".train-00000.npy"):
        (folder / name).symlink_to(tmp_path / "mine")
    preparation.prepare(folder, source, shard_tokens=1000)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to(tmp_path / "mine")
    with pytest.raises(DataError, match="it is no JSON"):
        preparation.prepare(folder, source, shard_tokens=1000)
    assert (tmp_path / "mine").read_text() == "mine"


def test_two_commands_in_one_folder_prepare_one_after_the_other(source, tmp_path):
    """The second waits for the first, and finds its work done."""
    folder = tmp_path / "out"
    arguments = ["prepare", f"--files={source['files']}", f"--out={folder}", "--validation_share=0.2", "--shard_tokens=500"]
    with only_writer(folder):
        commands = [Command("bdh_jax", *arguments) for _ in range(2)]
        while not all(b"waiting up to" in command.errors() or command.ended() for command in commands):
            time.sleep(0.05)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    ended = [command.wait() for command in commands]
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert ended[0][1] == ended[1][1]
    train, validation = _read(folder)
    assert sorted(train + validation) == sorted(TEXTS)
    assert not (folder / ".lock").exists()
