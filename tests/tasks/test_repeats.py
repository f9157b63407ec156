"""Repeats: what a sequence holds, what can be predicted of it, and what shuffled repeats keep."""

from __future__ import annotations

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.tasks import TASKS, TextConfig, repeats
from bdh_jax.tasks.repeats import RepeatsConfig, reading_of, sequences

SMALL = RepeatsConfig(warm_up=5, word=4, length=30, evaluation_sequences=40)


def whole(batch):
    return np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)


def test_a_sequence_is_a_warm_up_and_one_word_again_and_again():
    task = RepeatsConfig().make(seed=0, batch_size=6)
    batch = task.batch(3)
    assert batch.tokens.shape == (6, 154)
    np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    letters = whole(batch)
    np.testing.assert_array_equal(letters[:, 21:], letters[:, 13:-8])
    assert {*letters.ravel().tolist()} <= set(b"abcdefghijklmnopqrstuvwxyz")
    assert len({*letters[:, :21].ravel().tolist()}) > 20
    # Letters of the word are drawn anew in every sequence, and in every step and seed.
    assert len({row.tobytes() for row in letters[:, 13:21]}) == 6
    assert (task.batch(4).tokens != batch.tokens).any()
    assert (RepeatsConfig().make(seed=1, batch_size=6).batch(3).tokens != batch.tokens).any()
    np.testing.assert_array_equal(task.batch(3).tokens, batch.tokens)
    assert batch.valid.all()
    assert not batch.reset.any()


def test_what_counts_is_the_second_reading_and_all_after_it():
    batch = SMALL.make(seed=0, batch_size=2).batch(0)
    # The word stands at 5 … 8; what is predicted at 8 is the first letter of its second reading.
    np.testing.assert_array_equal(batch.answer[0], np.arange(30) >= 8)
    np.testing.assert_array_equal(reading_of(SMALL)[:14], [0] * 5 + [1] * 4 + [2] * 4 + [3])
    assert SMALL.readings == 6


def test_shuffled_repeats_have_the_same_letters_and_no_word():
    plain, shuffled = (sequences(SMALL, np.random.default_rng(7), 60, shuffled=order) for order in (False, True))
    np.testing.assert_array_equal(plain[:, :9], shuffled[:, :9])
    for first in range(9, 26, 4):
        here, before = shuffled[:, first : first + 4], plain[:, 5:9]
        np.testing.assert_array_equal(np.sort(here, axis=1), np.sort(before, axis=1))
        # One order of 24 is the word's own, and some words have a letter twice.
        assert 0.5 < (here != before).any(axis=1).mean() <= 1
    assert (shuffled[:, 9:13] != shuffled[:, 13:17]).any()


def test_who_remembers_the_word_is_at_the_ceiling_and_nobody_is_above_it():
    task = SMALL.make(seed=0, batch_size=2)

    def remembers(tokens, valid):
        said = np.full(tokens.shape, repeats.FIRST_LETTER)
        said[:, 8:] = tokens[:, 5:27]
        return np.eye(task.vocab_size, dtype=np.float32)[said]

    def guesses(tokens, valid):
        return np.eye(task.vocab_size, dtype=np.float32)[np.full(tokens.shape, repeats.FIRST_LETTER)]

    known, guessed = task.evaluate(remembers), task.evaluate(guesses)
    assert [row.name for row in known.rows] == ["reading1", "reading2", "reading3", "reading6"]
    assert known.primary == 1
    assert [row.ceiling for row in known.rows] == [1 / 26, 1, 1, 1]
    assert [row.ratio for row in known.rows] == [1, 1, 1, 1]
    assert guessed.primary == pytest.approx(1 / 26, abs=0.05)
    first = guessed.rows[0]
    assert first.credit == first.ceiling
    assert first.accuracy != first.credit  # luck

    # A byte that is no letter earns nothing, also where nothing can be known.
    nothing = task.evaluate(lambda tokens, valid: np.zeros((*tokens.shape, task.vocab_size), np.float32))
    assert [row.credit for row in nothing.rows] == [0, 0, 0, 0]


def test_its_tokens_are_the_bytes_of_a_text():
    assert RepeatsConfig().token_meaning() == TextConfig().token_meaning()
    assert RepeatsConfig().reads_text
    assert TASKS.get("repeats", "task.name") is RepeatsConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 36}, "task.length=36 must be at least 37: the warm-up and three readings"),
        ({"word": 0}, "task.word=0 must be at least 1"),
        ({"warm_up": -1}, "task.warm_up=-1 must be ≥ 0"),
        ({"evaluation_sequences": 0}, "task.evaluation_sequences=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        RepeatsConfig(**values)
