"""Corpora: nothing is lost or counted twice, splits are by document, windows depend on their number alone."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from bdh_jax.data import corpus as corpora
from bdh_jax.data.corpus import Corpus, build_corpus, join_pieces, split_corpus, training_windows, window
from bdh_jax.data.documents import DataError
from bdh_jax.data.tokenizer import byte_tokenizer

BYTES = byte_tokenizer().encode
DOCUMENTS = [b"one", b"", b"three", b"x"]


def _many(count=2000, seed=0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(1, 30), dtype=np.uint8).tobytes() for _ in range(count)]


def _documents(corpus: Corpus) -> list[bytes]:
    return [corpus.document(index).tobytes() for index in range(corpus.documents)]


def test_documents_stand_end_to_end():
    corpus = build_corpus(DOCUMENTS, BYTES)
    assert corpus.tokens.tobytes() == b"onethreex"
    assert corpus.tokens.dtype == np.uint8
    np.testing.assert_array_equal(corpus.starts, [0, 3, 8])
    assert _documents(corpus) == [b"one", b"three", b"x"]
    assert build_corpus([], BYTES).documents == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_large_corpus_lies_in_a_file_and_is_the_same(dtype, monkeypatch):
    pieces = [(np.frombuffer(d, np.uint8).astype(dtype), number % 3 == 0) for number, d in enumerate(_many(300))]
    small = join_pieces(pieces)
    assert small.documents == 100
    np.testing.assert_array_equal(small.document(1), np.concatenate([piece for piece, _ in pieces[3:6]]))
    monkeypatch.setattr(corpora, "MEMORY_BYTES", 1000)
    large = join_pieces(pieces)
    assert isinstance(large.tokens, np.memmap)
    assert large.tokens.dtype == dtype
    np.testing.assert_array_equal(large.tokens, small.tokens)
    np.testing.assert_array_equal(large.starts, small.starts)
    for one, other in zip(split_corpus(small, 0.1), split_corpus(large, 0.1), strict=True):
        assert _documents(one) == _documents(other)


def test_a_full_disk_is_named(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    class File:
        write = full

        def close(self):
            pass

    monkeypatch.setattr(corpora, "MEMORY_BYTES", 10)
    monkeypatch.setattr(corpora.tempfile, "TemporaryFile", File)
    with pytest.raises(
        DataError, match=r"the text is too large for .* \(No space left on device\).*let TMPDIR name a folder"
    ):
        join_pieces([(np.zeros(100, np.uint8), True)])


def test_a_split_of_many_documents_is_by_content():
    documents = _many()
    train, validation = split_corpus(build_corpus(documents, BYTES), 0.1)
    assert sorted(_documents(train) + _documents(validation)) == sorted(documents)
    assert not set(_documents(train)) & set(_documents(validation))
    # Five standard deviations of 2,000 draws.
    assert abs(validation.documents / len(documents) - 0.1) < 5 * np.sqrt(0.1 * 0.9 / len(documents))
    more = split_corpus(build_corpus([*_many(500, seed=1), *documents, *documents], BYTES), 0.1)
    assert set(_documents(validation)) <= set(_documents(more[1]))
    assert set(_documents(train)) <= set(_documents(more[0]))


def test_a_split_of_few_documents_is_by_place():
    corpus = build_corpus([b"abcdefghij", b"klmnopqrst"], BYTES)
    train, validation = split_corpus(corpus, 0.3)
    assert _documents(train) == [b"abcdefghij", b"klmn"]
    assert _documents(validation) == [b"opqrst"]
    train, validation = split_corpus(corpus, 0.5)
    assert (_documents(train), _documents(validation)) == ([b"abcdefghij"], [b"klmnopqrst"])
    train, validation = split_corpus(corpus, 0.7)
    assert (_documents(train), _documents(validation)) == ([b"abcdef"], [b"ghij", b"klmnopqrst"])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        split_corpus(build_corpus(DOCUMENTS, BYTES), share)


def test_too_little_text_is_refused():
    for documents in ([], [b"ab"]):
        with pytest.raises(DataError, match="cannot be split: with a share of 0.1 a part is empty. Give more text"):
            split_corpus(build_corpus(documents, BYTES), 0.1)
    with pytest.raises(DataError, match="9 tokens are fewer than a window needs: 10"):
        training_windows(build_corpus(DOCUMENTS, BYTES), 9, seed=0)


def test_a_window_knows_where_documents_start_and_trains_no_first_token():
    corpus = build_corpus(DOCUMENTS, BYTES)  # onethreex
    whole = window(corpus, 0, 8)
    assert bytes(whole.tokens.tolist()) == b"onethree"
    assert bytes(whole.targets.tolist()) == b"nethreex"
    np.testing.assert_array_equal(np.flatnonzero(whole.reset), [0, 3])
    np.testing.assert_array_equal(np.flatnonzero(whole.weight == 0), [2, 7])
    inside = window(corpus, 4, 3)
    assert bytes(inside.tokens.tolist()) == b"hre"
    assert not inside.reset.any()
    assert inside.weight.all()
    assert inside.tokens.dtype == inside.targets.dtype == np.int32


def test_an_epoch_sees_every_token_once_and_epochs_differ():
    corpus = Corpus(np.arange(1003, dtype=np.uint16), np.zeros(1, np.int64))
    windows = training_windows(corpus, 100, seed=5)
    epochs = [[windows[10 * epoch + i] for i in range(10)] for epoch in range(3)]
    firsts = [[int(w.tokens[0]) for w in epoch] for epoch in epochs]
    for epoch, starts in zip(epochs, firsts, strict=True):
        targets = np.sort(np.concatenate([w.targets for w in epoch]))
        np.testing.assert_array_equal(targets, np.arange(min(starts) + 1, min(starts) + 1001))
        assert starts != sorted(starts)
        assert 0 <= min(starts) <= 2
    assert len({tuple(starts) for starts in firsts}) == 3
    assert len({min(starts) for starts in [[int(windows[10 * e + i].tokens[0]) for i in range(10)] for e in range(20)]}) == 3


def test_a_window_depends_on_its_number_and_the_seed_alone():
    corpus = build_corpus(_many(), BYTES)
    one, two, other = (training_windows(corpus, 50, seed) for seed in (1, 1, 2))
    for number in (1234, 0, 77):
        np.testing.assert_array_equal(one[number].tokens, two[number].tokens)
    assert any(not np.array_equal(one[number].tokens, other[number].tokens) for number in range(3))
