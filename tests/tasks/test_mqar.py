"""MQAR draws the published sequences, trains on each of them once an epoch, and scores what was asked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import rebuild, to_dict
from bdh_jax.tasks import mqar
from bdh_jax.tasks.mqar import IGNORED, MQARConfig, Segment, sequences, set_seeds
from configs.mqar import VARIANTS, get_config
from tests.models.test_golden import load

CONFIG = MQARConfig(vocab_size=20, train=((12, 2, 10), (16, 3, 9)), test=((12, 2, 11), (16, 4, 5)))


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (128, 8), (256, 16), (256, 64)])
def test_sequences_are_the_published_ones(length, pairs):
    golden, name = load("mqar_published"), f"T{length}_P{pairs}"
    inputs, labels = sequences(8192, Segment(length, pairs, 6), int(golden[f"{name}_seed"]))
    np.testing.assert_array_equal(inputs, golden[f"{name}_inputs"])
    np.testing.assert_array_equal(labels, golden[f"{name}_labels"])


def test_seeds_of_the_sets_are_the_published_ones():
    """What the published program draws after ``np.random.seed(123)``: one number for each training set, then one for each test set."""
    train, test = set_seeds(123, 5, 7)
    assert train == [843828734, 914636141, 1228959102, 1840268610, 974319580]
    assert test == [2967327842, 2367878886, 3088727057, 3090095699, 4256823402, 3964712059, 3350193721]


def test_fillers_stand_where_nothing_else_does():
    plain, labels = sequences(64, Segment(16, 2, 50), 3)
    filled, same = sequences(64, Segment(16, 2, 50), 3, fillers=True)
    np.testing.assert_array_equal(labels, same)
    np.testing.assert_array_equal(filled[plain > 0], plain[plain > 0])
    assert set(filled[plain == 0]) == set(range(64))
    assert ((labels != IGNORED) <= (plain > 0)).all()


def test_an_epoch_has_every_whole_batch_of_every_set_once():
    task = CONFIG.make(seed=5, batch_size=4)
    epochs = [[task.batch(step) for step in range(4 * epoch, 4 * epoch + 4)] for epoch in range(2)]
    for batches in epochs:
        assert sorted(batch.tokens.shape for batch in batches) == [(4, 12)] * 2 + [(4, 16)] * 2
        for length, number in ((12, 0), (16, 1)):
            rows = [row for batch in batches if batch.tokens.shape[1] == length for row in batch.tokens.tolist()]
            there = task.training_sets[number][0].tolist()
            assert len(rows) == len({tuple(row) for row in rows}) == 8
            assert all(row in there for row in rows)
    shown = [np.concatenate([batch.tokens.ravel() for batch in batches]).tolist() for batches in epochs]
    assert shown[0] != shown[1]


def test_a_batch_is_a_function_of_seed_and_step():
    one, other = (CONFIG.make(seed=5, batch_size=4) for _ in range(2))
    other.batch(9)  # of a later epoch
    for array, again in zip(one.batch(2)[:6], other.batch(2)[:6], strict=True):
        np.testing.assert_array_equal(array, again)
    assert not np.array_equal(one.training_sets[0][0], CONFIG.make(seed=6, batch_size=4).training_sets[0][0])
    np.testing.assert_array_equal(one.test_sets[1][0], CONFIG.make(seed=6, batch_size=4).test_sets[1][0])


def test_what_is_trained_is_what_was_asked():
    batch = CONFIG.make(seed=0, batch_size=4).batch(0)
    for tokens, targets, answer in zip(batch.tokens, batch.targets, batch.answer, strict=True):
        pairs = int(answer.sum())
        values = dict(zip(tokens[: 2 * pairs : 2].tolist(), tokens[1 : 2 * pairs : 2].tolist(), strict=True))
        asked = np.flatnonzero(answer)
        assert asked.min() >= 2 * pairs
        assert {int(tokens[place]): int(targets[place]) for place in asked} == values
    assert batch.valid.all()
    task = CONFIG.make(seed=0, batch_size=4)
    assert task.most_answers == max(task.batch(step).answer.sum(axis=1).max() for step in range(4)) == 3


def test_shapes_are_those_of_the_longest_batch_and_draw_nothing(monkeypatch):
    monkeypatch.setattr(mqar, "sequences", None)
    shapes = CONFIG.shapes(4)
    assert shapes.tokens.shape == shapes.answer.shape == (4, 16)
    assert shapes.valid is None


def test_the_ceiling_and_chance_are_what_they_are_called():
    task = CONFIG.make(seed=0, batch_size=4)

    def knows(tokens, valid):
        """Reads the value behind the first place of the token."""
        first = (tokens[:, None, :] == tokens[:, :, None]).argmax(axis=-1)
        said = np.take_along_axis(np.roll(tokens, -1, axis=1), first, axis=1)
        return np.eye(20)[said]

    def guesses(tokens, valid):
        """Says the first value of the sequence, whatever is asked."""
        return np.eye(20)[np.broadcast_to(tokens[:, 1:2], tokens.shape)]

    best, luck = task.evaluate(knows), task.evaluate(guesses)
    assert best.primary == 1
    assert [row.ceiling for row in best.rows] == [1, 1]
    assert [(row.name, row.count) for row in best.rows] == [("T12P2", 11), ("T16P4", 5)]
    for row, pairs in zip(luck.rows, (2, 4), strict=True):
        assert row.accuracy == row.extra["chance"] == 1 / pairs
        assert row.extra["whole"] == 0


def test_long_sets_are_scored_in_parts(monkeypatch):
    monkeypatch.setattr(mqar, "_NUMBERS", 8 * 12 * 20)
    seen = []

    def predict(tokens, valid):
        seen.append(tokens.shape)
        return np.eye(20)[np.roll(tokens, 1, axis=1)]

    task = dataclasses.replace(CONFIG, test=((12, 2, 11),)).make(seed=0, batch_size=4)
    (parts,) = task.evaluate(predict).rows
    assert seen == [(8, 12)] * 2
    monkeypatch.setattr(mqar, "_NUMBERS", 2**27)
    (whole,) = task.evaluate(predict).rows
    assert seen[2:] == [(16, 12)]
    assert parts == whole


def test_sets_survive_the_way_into_a_file_and_back():
    config = get_config("published")
    assert config.task.train[0] == (64, 4, 100_000)
    assert rebuild(get_config(), to_dict(config)).task == config.task


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ()}, r"task.train=\(\) names no set"),
        ({"test": ((64, 4),)}, "must be three numbers"),
        ({"train": ((15, 2, 8),)}, "T=15 must be even"),
        ({"train": ((16, 5, 8),)}, "5 pairs and their queries need T ≥ 20"),
        ({"test": ((64, 9, 8),)}, "task.vocab_size=18 has 8 keys for 9 pairs"),
        ({"power": 0.0}, "task.power=0.0 must be positive"),
        ({"test": ((16, 2, 8), (12, 2, 8), (16, 2, 9))}, r"task.test=.* names T16P2 twice"),
    ],
)
def test_what_cannot_be_is_said(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **{"vocab_size": 18} | changes)


@pytest.mark.parametrize(
    ("vocabulary", "segment"), [(20, Segment(12, 4, 2)), (20, Segment(4, 2, 2)), (8, Segment(64, 4, 2))]
)
def test_what_has_no_room_is_said(vocabulary, segment):
    """Of sequences that no configuration checked."""
    with pytest.raises(ConfigError, match=rf"{segment.pairs} different ones of \d are too many"):
        sequences(vocabulary, segment, 0)


def test_a_set_holds_a_batch_at_least():
    with pytest.raises(ConfigError, match="train.batch_size=12 is more than the 10 sequences of T12P2"):
        CONFIG.make(seed=0, batch_size=12)


@pytest.mark.parametrize("name", ["", *VARIANTS])
def test_every_variant_is_an_experiment_whose_model_knows_the_tokens(name):
    config = get_config(name)
    config.model.build().declared_slow()
    assert config.model.vocab_size == config.task.vocab_size
    for longest in (config.task.train, config.task.test):
        window = getattr(config.model, "window", 10**9)
        assert max(length for length, _, _ in longest) <= window
