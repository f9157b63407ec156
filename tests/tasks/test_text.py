"""Text as a task: what is scored is what an arithmetic coder would pay, and rows go on where they stopped."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.data.config import DataConfig
from bdh_jax.data.corpus import Corpus, consecutive_windows
from bdh_jax.data.documents import DataError
from bdh_jax.tasks import TextConfig, TextScore
from bdh_jax.tasks import text as text_task
from bdh_jax.tasks.scores import read_score
from bdh_jax.tasks.text import score_windows

TEXT = bytes(np.random.default_rng(0).integers(97, 123, 5000, dtype=np.uint8))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)

    def make(batch_size=4, seed=0, **config):
        return TextConfig(**{"length": 16, **config}).make(seed=seed, batch_size=batch_size, data=DataConfig(str(path)))

    return make


def _bigrams(vocab_size=256, seed=0):
    """A model: logits [V,V] of the next token, given this one."""
    return np.random.default_rng(seed).normal(size=(vocab_size, vocab_size)).astype(np.float32)


def test_bits_per_byte_are_the_mean_cost_of_every_byte_but_the_first_of_a_document():
    tokens = np.frombuffer(TEXT[:100], np.uint8)
    corpus = Corpus(tokens, np.array([0, 37]))
    table = _bigrams()
    score = score_windows(lambda tokens, valid, reset: table[tokens], corpus, np.ones(256, np.int64), 16)
    logp = table.astype(np.float64) - np.log(np.exp(table.astype(np.float64)).sum(axis=-1, keepdims=True))
    pairs = [i for i in range(99) if i + 1 != 37]
    costs = [-logp[tokens[i], tokens[i + 1]] for i in pairs]
    assert score.count == 98
    # Sums of a hundred numbers in float64.
    np.testing.assert_allclose(score.bits_per_byte, np.mean(costs) / np.log(2), rtol=1e-12)
    np.testing.assert_allclose(score.loss, np.mean(costs), rtol=1e-12)
    assert score.accuracy == np.mean([table[tokens[i]].argmax() == tokens[i + 1] for i in pairs])


def test_a_token_of_several_bytes_counts_them():
    corpus = Corpus(np.array([0, 1, 2, 1], np.uint16), np.array([0]))
    score = score_windows(lambda tokens, *_: np.zeros((*tokens.shape, 3)), corpus, np.array([1, 3, 5]), 8)
    assert score.count == 3 + 5 + 3
    np.testing.assert_allclose(score.bits_per_byte, 3 * np.log2(3) / 11, rtol=1e-12)


def test_windows_that_are_evaluated_may_be_fewer_and_are_spread():
    seen = []

    def predict(tokens, valid, reset):
        seen.append(tokens[:, 0])
        assert tokens.shape[0] % 8 == 0
        return np.zeros((*tokens.shape, 256))

    corpus = Corpus(np.arange(81, dtype=np.uint8), np.array([0]))
    assert score_windows(predict, corpus, np.ones(256, np.int64), 4, windows=5).count == 20
    assert seen[0][:5].tolist() == [0, 16, 32, 48, 64]
    # More windows than there are is all of them.
    assert score_windows(predict, corpus, np.ones(256, np.int64), 4, windows=50).count == 80


def test_a_batch_depends_on_seed_and_step_alone_and_is_made_ahead(text):
    one, two = text(), text()
    for step in (7, 0, 100):
        for a, b in zip(one.batch(step)[:6], two.batch(step)[:6], strict=True):
            np.testing.assert_array_equal(a, b)
    ahead = list(one.batches(3, 6))
    assert len(ahead) == 3
    for step, batch in zip(range(3, 6), ahead, strict=True):
        np.testing.assert_array_equal(batch.tokens, two.batch(step).tokens)
    batch = one.batch(0)
    assert batch.tokens.shape == (4, 16)
    assert batch.tokens.dtype == np.int32
    np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert not np.array_equal(batch.tokens, text(seed=1).batch(0).tokens)


def test_training_and_validation_share_nothing(text):
    task = text()
    assert bytes(task.data.train.tokens) + bytes(task.data.validation.tokens) == TEXT
    assert len(task.data.validation.tokens) == 500


def test_rows_go_on_where_they_stopped():
    corpus = Corpus(np.arange(2000, dtype=np.uint16), np.array([0]))
    windows = consecutive_windows(corpus, 10, rows=3, seed=4)
    rows = [[windows[step * 3 + row] for step in range(80)] for row in range(3)]
    read = []
    for row in rows:
        for before, after in itertools.pairwise(row):
            goes_on = after.tokens[0] == before.targets[-1]
            assert goes_on != after.reset[0], "a row that jumps must start anew, and only then"
        assert row[0].reset[0]
        read.append({int(w.tokens[0]) for w in row[:66]})
    # One pass: three rows read 66 of 199 windows each, none twice; what is over is at the start.
    assert [len(starts) for starts in read] == [66] * 3
    assert len(set.union(*read)) == 198
    assert {int(consecutive_windows(corpus, 10, 3, seed)[0].tokens[0]) for seed in range(8)} != {int(rows[0][0].tokens[0])}


def test_documents_start_anew_or_run_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{"abcdefgh" * 4}{i}"}}\n' for i in range(40)))
    data = DataConfig(str(path))
    apart, together = (
        TextConfig(length=64, document_resets=resets).make(seed=0, batch_size=8, data=data) for resets in (True, False)
    )
    one, other = apart.batch(0), together.batch(0)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert one.reset.any()
    assert (one.loss_weights == 0).any()
    assert not other.reset.any()
    assert (other.loss_weights == 1).all()


def test_a_score_survives_json():
    score = TextScore("validation", 10, 2.0, 1.4, 0.5, {"x": 1.0})
    assert read_score(score.to_dict()) == score


def test_what_cannot_be_trained_on_is_refused(text, tmp_path):
    with pytest.raises(DataError, match="4500 tokens are fewer than a window needs: 5001"):
        text(length=5000)
    assert text(length=1000, batch_size=4, order="consecutive").batch(0).tokens.shape == (4, 1000)
    with pytest.raises(DataError, match="4500 tokens are fewer than a window for each of 5 rows needs: 5001"):
        text(length=1000, batch_size=5, order="consecutive")
    with pytest.raises(ConfigError, match=r"task.order='random' is not one of 'shuffled', 'consecutive'"):
        TextConfig(order="random")
    with pytest.raises(ConfigError, match="task.length=0 must be at least 1"):
        TextConfig(length=0)
    with pytest.raises(ConfigError, match="task.evaluation_windows=0 must be at least 1, or None for all"):
        TextConfig(evaluation_windows=0)


def test_logits_of_a_large_vocabulary_are_held_in_parts(monkeypatch):
    """The limit holds where one window of eight rows would break it, and the score is the same to the bit."""
    vocab_size, length = 4000, 16
    rng = np.random.default_rng(0)
    corpus = Corpus(rng.integers(0, vocab_size, 200).astype(np.uint16), np.array([0, 50]))
    table = rng.normal(size=(vocab_size, vocab_size)).astype(np.float32)
    ones = np.ones(vocab_size, np.int64)
    whole = score_windows(lambda tokens, *_: table[tokens], corpus, ones, length)
    limit, held = 2**20, []
    monkeypatch.setattr(text_task, "LOGITS_BYTES", limit)

    def predict(tokens, valid, reset, size):
        for first in range(0, length, size):
            held.append(table[tokens[:, first : first + size]])
            assert held[-1].nbytes <= limit
            yield held[-1]

    assert score_windows(predict, corpus, ones, length) == whole
    assert len(held) == 2 * length // 8  # 13 windows in calls of eight, eight tokens at a time


def test_documents_of_one_token_are_refused_before_training(tmp_path):
    path = tmp_path / "ones.jsonl"
    path.write_text('{"text": "x"}\n' * 90)
    data = DataConfig(str(path))
    with pytest.raises(
        DataError, match=r"the training text \(81 tokens in 81 documents\) has no token to predict.*document_resets"
    ):
        TextConfig(length=4).make(seed=0, batch_size=2, data=data)
    assert TextConfig(length=4, document_resets=False).make(seed=0, batch_size=2, data=data).batch(0).loss_weights.all()
    # Long documents first: what is validated on is of one token each.
    path.write_text(f'{{"text": "{"abc" * 30}"}}\n' * 9 + '{"text": "x"}\n' * 90)
    with pytest.raises(DataError, match=r"the validation text \(90 tokens in 90 documents\) has no token to predict"):
        TextConfig(length=4).make(seed=0, batch_size=2, data=data)
    # Or at least in the windows that are evaluated.
    path.write_text('{"text": "x"}\n' * 91 + f'{{"text": "{"abc" * 30}"}}\n')
    task = {"length": 4, "document_resets": True}
    data = DataConfig(str(path), validation_share=0.9)
    with pytest.raises(DataError, match="the training text"):
        TextConfig(**task).make(seed=0, batch_size=2, data=data)
    path.write_text('{"text": "abcdefgh"}\n' + '{"text": "x"}\n' * 81 + f'{{"text": "{"abc" * 30}"}}\n')
    with pytest.raises(
        DataError, match=r"the validation text that task.evaluation_windows=1 chooses \(161 tokens in 72 documents\)"
    ):
        TextConfig(**task, evaluation_windows=1).make(seed=0, batch_size=2, data=data)
    TextConfig(**task).make(seed=0, batch_size=2, data=data)
