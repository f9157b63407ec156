"""Which text a configuration names, and what is said if it cannot be read."""

from __future__ import annotations

import gzip
import json
import logging

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.data import load as loading
from bdh_jax.data import shards as prepared
from bdh_jax.data.config import DataConfig
from bdh_jax.data.corpus import build_corpus
from bdh_jax.data.documents import DataError
from bdh_jax.data.load import load_text, tiny_shakespeare
from bdh_jax.data.tokenizer import byte_tokenizer, load_tokenizer, train_tokenizer

SENTENCES = [f"The {a} {b} the {a}.".encode() for a in ("cat", "dög", "猫") for b in ("sees", "hears", "knows", "is")]


def _prepare(folder, tokenizer=None, per_shard=5, complete=True):
    """Prepared text of whole sentences, in several shards."""
    folder.mkdir()
    encode = (tokenizer or byte_tokenizer()).encode
    shards = []
    for split, sentences in (("train", SENTENCES), ("validation", SENTENCES[:2])):
        for number, first in enumerate(range(0, len(sentences), per_shard)):
            corpus = build_corpus(sentences[first : first + per_shard], encode)
            shards.append(prepared.write_shard(folder, split, number, corpus))
    manifest = {
        "format": prepared.FORMAT,
        "source": {},
        "documents_read": 0,
        "tokenizer": (tokenizer or byte_tokenizer()).name,
        "complete": complete,
        "shards": shards,
    }
    prepared.write_manifest(folder, manifest)
    return folder


def test_validation_is_kept_back_or_named(tmp_path):
    train, validation = tmp_path / "a.txt", tmp_path / "b.txt"
    train.write_bytes(b"x" * 90 + b"y" * 10)
    validation.write_bytes(b"z" * 7)
    data = load_text(DataConfig(str(train)))
    assert (bytes(data.train.tokens), bytes(data.validation.tokens)) == (b"x" * 90, b"y" * 10)
    data = load_text(DataConfig(str(train), validation_path=str(validation)))
    assert (len(data.train.tokens), bytes(data.validation.tokens)) == (100, b"z" * 7)
    with pytest.raises(DataError, match=r"b.txt is named by data.path=.* and by data.validation_path=.*would train on what"):
        load_text(DataConfig(str(tmp_path), validation_path=str(validation)))


def test_the_fingerprint_is_of_the_content(tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_bytes(b"abcdefghijklm")
    same.write_bytes(b"abcdefghijklm")
    other.write_bytes(b"abcdefghijklM")
    prints = [load_text(DataConfig(str(path), validation_share=0.5)).fingerprint for path in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_an_empty_file_and_a_missing_one_are_named(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(DataError, match=r"empty.txt: empty, there is no text to read"):
        load_text(DataConfig(str(empty)))
    with pytest.raises(DataError, match="names no file in"):
        load_text(DataConfig(str(tmp_path / "absent*.txt")))


def test_what_was_read_is_said_in_one_line(bpe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("bdh_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "bdh_jax")
    (tmp_path / "a.json").write_text('{"text": "zwölf\\nK\u00e4fer"}\n{"text": null}\n{"text": "' + "x" * 100 + '"}\n')
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"\xff" * 10))
    (tmp_path / "empty").touch()
    load_text(DataConfig(str(tmp_path)))
    said = "3 files, 3 documents, 123 bytes (1 × JSON lines, 1 × bytes in gzip, 1 × empty); 1 null rows left out; it begins 'zwölf\\nKäfer'"
    assert [record.getMessage() for record in caplog.records] == [f"text of {tmp_path}: {said}"]
    caplog.clear()
    (tmp_path / "b.txt.gz").unlink()
    load_text(DataConfig(str(tmp_path / "a.json"), tokenizer=str(bpe)))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"text of {tmp_path / 'a.json'}: 1 file, 2 documents, 113 bytes (1 × JSON lines)")
    caplog.clear()
    load_text(DataConfig(str(_prepare(tmp_path / "prepared"))))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"prepared text of {tmp_path / 'prepared'}: 14 documents, ")
    assert record.getMessage().endswith("it begins 'The cat sees the cat.The cat hears the cat.The cat knows the'")


@pytest.mark.parametrize("name", ["path", "validation_path", "tokenizer", "column"])
def test_an_empty_value_is_refused(name):
    with pytest.raises(ConfigError, match=rf"data.{name}='' is empty \(is a variable unset\?\)"):
        DataConfig(**{name: ""})


def test_any_bytes_are_text(tmp_path):
    path = tmp_path / "noise.gz"
    noise = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8).tobytes()
    path.write_bytes(gzip.compress(noise))
    data = load_text(DataConfig(str(path)))
    assert bytes(data.train.tokens) + bytes(data.validation.tokens) == noise
    assert data.tokenizer.decode(data.train.tokens) == noise[:900]


def test_tiny_shakespeare_comes_from_the_cache_and_without_it_the_flag_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BDH_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "TINY_SHAKESPEARE", "http://127.0.0.1:9/nothing")
    with pytest.raises(
        DataError, match=r"cannot be downloaded .*--config.data.path=FILE; or put the file at .*tinyshakespeare.txt"
    ):
        tiny_shakespeare()
    import hashlib

    (tmp_path / "tinyshakespeare.txt").write_bytes(b"To be")
    monkeypatch.setattr(loading, "TINY_SHAKESPEARE_SHA256", hashlib.sha256(b"To be").hexdigest())
    assert tiny_shakespeare().read_bytes() == b"To be"
    # Another file of that name is not taken for it.
    (tmp_path / "tinyshakespeare.txt").write_bytes(b"To bee")
    with pytest.raises(DataError, match="cannot be downloaded"):
        tiny_shakespeare()


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    path.write_text(train_tokenizer(SENTENCES, 300))
    return path


def test_a_bpe_keeps_every_byte_and_knows_how_many_a_token_has(bpe):
    tokenizer = load_tokenizer(bpe)
    assert 256 < tokenizer.vocab_size <= 300
    for sentence in [*SENTENCES, "ñ\t\n\x00 𝄞".encode()]:
        ids = tokenizer.encode(sentence)
        assert tokenizer.decode(ids) == sentence
        assert tokenizer.token_bytes[ids].sum() == len(sentence)
    assert sum(len(tokenizer.encode(s)) for s in SENTENCES) < sum(map(len, SENTENCES)) / 2


def test_text_under_a_bpe(bpe, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"body": s.decode()}) + "\n" for s in SENTENCES))
    data = load_text(DataConfig(str(path), column="body", tokenizer=str(bpe), validation_share=0.2))
    assert data.tokenizer.decode(data.train.tokens) + data.tokenizer.decode(data.validation.tokens) == b"".join(SENTENCES)


def test_tokenizers_that_lose_bytes_are_refused(bpe, tmp_path):
    kind = json.loads(bpe.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**kind, "decoder": None}))
    with pytest.raises(DataError, match="its decoder is None .* only byte-level tokenizers"):
        load_tokenizer(other)
    for pre_tokenizer in (None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}):
        other.write_text(json.dumps({**kind, "pre_tokenizer": pre_tokenizer}))
        with pytest.raises(DataError, match=r"other.json makes \d+ bytes of 11: it drops or adds some"):
            load_tokenizer(other)
    truncating = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    other.write_text(json.dumps({**kind, "truncation": truncating}))
    assert load_tokenizer(other).decode(load_tokenizer(other).encode(SENTENCES[0])) == SENTENCES[0]
    with pytest.raises(DataError, match="a document is no UTF-8 .* use bytes instead"):
        train_tokenizer([b"\xff"], 260)
    other.write_text("{")
    with pytest.raises(DataError, match="other.json is no tokenizer.json"):
        load_tokenizer(other)
    with pytest.raises(DataError, match="tokenizer .*absent.json does not exist"):
        load_tokenizer(tmp_path / "absent.json")
    with pytest.raises(DataError, match=r"a document is no UTF-8 \(byte 0xff at 2\)"):
        load_tokenizer(bpe).encode(b"ab\xff")


def _changed(bpe, path, **changes):
    kind = json.loads(bpe.read_text())
    for name, value in changes.items():
        kind[name] = value(kind[name]) if callable(value) else value
    path.write_text(json.dumps(kind))
    return path


def test_ids_with_gaps_count_up_to_the_largest(bpe, tmp_path):
    plain = load_tokenizer(bpe)
    last = plain.vocab_size - 1

    def moved(model):
        vocabulary = {token: 1000 if number == last else number for token, number in model["vocab"].items()}
        return {**model, "vocab": vocabulary}

    tokenizer = load_tokenizer(_changed(bpe, tmp_path / "gaps.json", model=moved))
    assert tokenizer.vocab_size == 1001
    assert tokenizer.token_bytes[last:1000].sum() == 0
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence)
        assert ids.max() < tokenizer.vocab_size
        assert tokenizer.decode(ids) == sentence
        np.testing.assert_array_equal(np.where(ids == 1000, last, ids), plain.encode(sentence))
    assert any(1000 in tokenizer.encode(sentence) for sentence in SENTENCES)
    for token, number, message in (("far", 2**31, "ids below 2147483649"), ("two", 70, "two tokens have one id")):
        odd = lambda model, token=token, number=number: {**model, "vocab": {**model["vocab"], token: number}}  # noqa: E731
        with pytest.raises(DataError, match=message):
            load_tokenizer(_changed(bpe, tmp_path / "odd.json", model=odd))


def test_a_tokenizer_that_encodes_differently_each_time_or_changes_bytes_is_refused(bpe, tmp_path):
    with pytest.raises(
        DataError, match=r"a dropout of 0.1, with which one text has another encoding each time; set it to null"
    ):
        load_tokenizer(_changed(bpe, tmp_path / "a.json", model=lambda model: {**model, "dropout": 0.1}))
    assert load_tokenizer(_changed(bpe, tmp_path / "a.json", model=lambda model: {**model, "dropout": 0.0})).vocab_size > 256

    for name in ("continuing_subword_prefix", "end_of_word_suffix"):  # of one the library aborts the process
        with pytest.raises(DataError, match=f"its model has {name}='x', which no byte-level BPE has"):
            load_tokenizer(_changed(bpe, tmp_path / "a.json", model=lambda model, name=name: {**model, name: "x"}))
    with pytest.raises(
        DataError, match="is no tokenizer.json of a BPE, which alone keeps every byte: its model is 'WordLevel'"
    ):
        load_tokenizer(_changed(bpe, tmp_path / "a.json", model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}))

    def without_h(model):  # which becomes another token of one byte
        vocabulary = {("\u0100h" if token == "h" else token): number for token, number in model["vocab"].items()}
        return {**model, "vocab": vocabulary, "merges": [], "unk_token": "x"}

    tokenizer = load_tokenizer(_changed(bpe, tmp_path / "a.json", model=without_h))
    with pytest.raises(DataError, match="makes other bytes of a document than it holds"):
        tokenizer.encode(b"he")


def test_parts_may_lie_in_sequences(bpe, tmp_path):
    nested = lambda name: lambda part: {"type": "Sequence", name: [{"type": "Sequence", name: [part]}]}  # noqa: E731
    path = _changed(
        bpe,
        tmp_path / "nested.json",
        decoder=nested("decoders"),
        pre_tokenizer=nested("pretokenizers"),
        normalizer={"type": "Sequence", "normalizers": []},
    )
    np.testing.assert_array_equal(load_tokenizer(path).encode(SENTENCES[0]), load_tokenizer(bpe).encode(SENTENCES[0]))
    for name, odd, message in (
        ("decoder", {"type": "Sequence", "decoders": []}, "its decoder is None"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "its normalizer NFC"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": []}, "it drops or adds some"),
    ):
        with pytest.raises(DataError, match=message):
            load_tokenizer(_changed(bpe, tmp_path / "odd.json", **{name: odd}))


@pytest.mark.parametrize("per_shard", [100, 5])
def test_prepared_text_is_what_was_written(bpe, tmp_path, per_shard):
    for name, tokenizer in (("bytes", None), ("bpe", load_tokenizer(bpe))):
        folder = _prepare(tmp_path / name, tokenizer, per_shard)
        if tokenizer is not None:
            (folder / prepared.TOKENIZER).write_text(bpe.read_text())
        data = load_text(DataConfig(str(folder)))
        decode = data.tokenizer.decode
        assert [decode(data.train.document(i)) for i in range(data.train.documents)] == SENTENCES
        assert [decode(data.validation.document(i)) for i in range(2)] == SENTENCES[:2]
        assert data.fingerprint == load_text(DataConfig(str(folder))).fingerprint


def test_joined_shards_are_read_like_one_array(tmp_path):
    arrays = [np.arange(5), np.arange(5, 6), np.arange(6, 13)]
    joined, whole = prepared.Joined(arrays), np.concatenate(arrays)
    assert len(joined) == 13
    for start in range(14):
        for stop in range(start, 16):
            np.testing.assert_array_equal(joined[start:stop], whole[start:stop])
    np.testing.assert_array_equal(np.asarray(joined), whole)


def test_damaged_and_unfinished_preparations_are_refused(tmp_path):
    with pytest.raises(DataError, match="the preparation was interrupted; give the same command again"):
        load_text(DataConfig(str(_prepare(tmp_path / "half", complete=False))))
    folder = _prepare(tmp_path / "damaged")
    content = bytearray((folder / "train-00001.npy").read_bytes())
    content[-1] ^= 1
    (folder / "train-00001.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001.npy or its starts file is damaged: the checksum"):
        load_text(DataConfig(str(folder)))
    (folder / "train-00001.npy").unlink()
    with pytest.raises(DataError, match=r"train-00001.npy cannot be read"):
        load_text(DataConfig(str(folder)))
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json cannot be read .* it may be damaged"):
        load_text(DataConfig(str(folder)))
    (folder / "manifest.json").write_text('{"format": "other", "shards": []}')
    with pytest.raises(DataError, match="has the format 'other'"):
        load_text(DataConfig(str(folder)))


def test_prepared_text_is_never_read_as_bytes(tmp_path, monkeypatch):
    _prepare(tmp_path / "one")
    _prepare(tmp_path / "two")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_text(DataConfig("~/one")).train.documents == len(SENTENCES)
    for path in (tmp_path, f"{tmp_path / 'one'},{tmp_path / 'two'}", tmp_path / "one" / "*.npy"):
        with pytest.raises(DataError, match="is part of prepared text, which is no text to read: name its folder alone"):
            load_text(DataConfig(str(path)))
    (tmp_path / "text.txt").write_text("To be")
    with pytest.raises(DataError, match="not as data.validation_path"):
        load_text(DataConfig(str(tmp_path / "text.txt"), validation_path=str(tmp_path / "one")))


def test_prepared_text_has_its_own_tokenizer(bpe, tmp_path):
    folder = _prepare(tmp_path / "bytes")
    with pytest.raises(DataError, match="was prepared with its own tokenizer; leave data.tokenizer out"):
        load_text(DataConfig(str(folder), tokenizer=str(bpe)))
    folder = _prepare(tmp_path / "bpe", load_tokenizer(bpe))
    (folder / prepared.TOKENIZER).write_text(train_tokenizer(SENTENCES, 280))
    with pytest.raises(DataError, match="is not the tokenizer that the text was prepared with"):
        load_text(DataConfig(str(folder)))
