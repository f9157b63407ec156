"""Forgetting and compositional MQAR draw the published sequences, and ask for what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.tasks import compositional_mqar, forgetting_mqar
from bdh_jax.tasks.compositional_mqar import CompositionalMQARConfig
from bdh_jax.tasks.forgetting_mqar import ForgettingMQARConfig
from bdh_jax.tasks.mqar import IGNORED, Segment
from tests.models.test_golden import load

FORGETTING = ForgettingMQARConfig(vocab_size=40, updates=2, train=((24, 4, 10),), test=((24, 4, 40), (32, 5, 40)))
COMPOSITIONAL = CompositionalMQARConfig(vocab_size=60, train=((24, 4, 10),), test=((24, 4, 40), (64, 9, 40)))


@pytest.mark.parametrize(
    ("length", "pairs", "updates", "vocabulary"), [(64, 4, 4, 8192), (64, 8, 4, 256), (128, 16, 8, 8192)]
)
def test_forgetting_sequences_are_the_published_ones(length, pairs, updates, vocabulary):
    golden, name = load("mqar_variants_published"), f"forgetting.T{length}_P{pairs}_U{updates}_V{vocabulary}"
    inputs, labels = forgetting_mqar.sequences(vocabulary, Segment(length, pairs, 6), updates, length + pairs)
    np.testing.assert_array_equal(inputs, golden[f"{name}.inputs"])
    np.testing.assert_array_equal(labels, golden[f"{name}.labels"])


@pytest.mark.parametrize(("length", "pairs", "vocabulary"), [(64, 4, 8192), (64, 9, 256), (128, 16, 8192)])
def test_compositional_sequences_are_the_published_ones(length, pairs, vocabulary):
    golden, name = load("mqar_variants_published"), f"compositional.T{length}_P{pairs}_V{vocabulary}"
    inputs, labels = compositional_mqar.sequences(vocabulary, Segment(length, pairs, 6), length + pairs)
    np.testing.assert_array_equal(inputs, golden[f"{name}.inputs"])
    np.testing.assert_array_equal(labels, golden[f"{name}.labels"])


def test_what_was_shown_last_is_right():
    inputs, labels = FORGETTING.make(seed=3, batch_size=4).test_sets[0]
    for tokens, wanted in zip(inputs, labels, strict=True):
        shown = dict(
            zip(tokens[:12:2].tolist(), tokens[1:12:2].tolist(), strict=True)
        )  # a later one replaces an earlier one
        asked = np.flatnonzero(wanted != IGNORED)
        assert {int(tokens[place]): int(wanted[place]) for place in asked} == shown
        assert len(shown) == 4


def test_both_tokens_of_a_key_are_needed():
    inputs, labels = COMPOSITIONAL.make(seed=3, batch_size=4).test_sets[1]
    for tokens, wanted in zip(inputs, labels, strict=True):
        shown = {(int(a), int(b)): int(value) for a, b, value in tokens[:27].reshape(9, 3)}
        asked = np.flatnonzero(wanted != IGNORED)
        assert {(int(tokens[place - 1]), int(tokens[place])): int(wanted[place]) for place in asked} == shown
        for part in range(2):
            assert [sum(key[part] == token for key in shown) for token in {key[part] for key in shown}] == [3, 3, 3]


def _says(value_of):
    """A predictor that knows a sequence's pairs: position → what it says."""

    def predict(tokens, valid):
        said = np.array([[value_of(row, place) for place in range(len(row))] for row in tokens.tolist()])
        return np.eye(max(FORGETTING.vocab_size, COMPOSITIONAL.vocab_size))[said]

    return predict


def test_who_remembers_the_first_value_scores_stale():
    def first(row, place):
        return row[row.index(row[place]) + 1] if row.index(row[place]) + 1 < len(row) else 0

    def last(row, place):
        pairs = (len(row) - 4) // 4 if len(row) == 24 else 5
        shown = row[: 2 * (pairs + 2) : 2]
        return row[2 * (len(shown) - 1 - shown[::-1].index(row[place])) + 1] if row[place] in shown else 0

    task = dataclasses.replace(FORGETTING, test=((32, 5, 40),)).make(seed=0, batch_size=4)
    (stale,), (best,) = (task.evaluate(_says(knows)).rows for knows in (first, last))
    assert best.accuracy == best.extra["updated"] == 1
    # Now and then a new value is the old one again.
    assert stale.extra["stale"] == 3 / 5 <= stale.accuracy < 0.65
    assert stale.extra["updated"] < 0.1
    assert stale.extra["chance"] == 1 / 5


def test_who_goes_by_one_token_of_the_key_scores_half():
    def by_second(row, place):
        places = [n for n in range(1, 12, 3) if row[n] == row[place]]
        return row[places[0] + 1] if places else 0

    task = dataclasses.replace(COMPOSITIONAL, test=((24, 4, 40),)).make(seed=0, batch_size=4)
    (row,) = task.evaluate(_says(by_second)).rows
    assert row.accuracy == row.extra["half"] == 1 / 2
    assert row.extra["chance"] == 1 / 4


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (FORGETTING, {"updates": 5}, r"task.train has \(24, 4, 10\): task.updates=5 must lie in 1 … 4, its number of pairs"),
        (FORGETTING, {"updates": 0}, "task.updates=0 must lie in 1 … 4"),
        (FORGETTING, {"test": ((24, 6, 10),)}, "6 pairs and their queries need T ≥ 28"),
        (FORGETTING, {"vocab_size": 8}, "task.vocab_size=8 has 3 keys for 4 pairs"),
        (COMPOSITIONAL, {"train": ((64, 6, 10),)}, "6 pairs are no square, such as 4 or 9"),
        (COMPOSITIONAL, {"train": ((22, 4, 10),)}, "4 pairs and their queries need T ≥ 24"),
        (COMPOSITIONAL, {"vocab_size": 5}, "task.vocab_size=5 must be at least 6"),
        (COMPOSITIONAL, {"vocab_size": 11}, "task.vocab_size=11 has 2 keys for 3 pairs"),
        (COMPOSITIONAL, {"vocab_size": 12}, "task.vocab_size=12 has 4 values for 9 pairs"),
    ],
)
def test_what_cannot_be_drawn_is_said(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **changes)
