"""Rows of several tasks in one batch: in turn, padded, with the same share of the loss, each scored by its own task."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import from_config_dict, to_dict
from bdh_jax.config.options import Options
from bdh_jax.data.config import DataConfig
from bdh_jax.tasks import NBackConfig, TextConfig
from bdh_jax.tasks.base import TaskBase
from bdh_jax.tasks.mixed import Mixed, MixedConfig, unigram_bits
from bdh_jax.tasks.scores import Evaluation, results_table

NBACK = Options(mixture=("n2",), evaluation_sequences=16, evaluation_sets=("n2",))
CONFIG = MixedConfig(jobs=Options(text=Options(length=12, evaluation_windows=8), nback=NBACK))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 60)
    return DataConfig(path=str(path))


@pytest.fixture(scope="module")
def task(data):
    return CONFIG.make(seed=3, batch_size=6, data=data)


def test_rows_are_of_the_jobs_in_turn(task, data):
    nback = NBackConfig(**NBACK).make(seed=3, batch_size=3)
    text = TextConfig(length=12, evaluation_windows=8).make(seed=3, batch_size=3, data=data)
    batch, parts = task.batch(5), (nback.batch(5), text.batch(5))
    assert batch.tokens.shape == (6, 18) == (6, task.sequence_length)
    assert task.job_of_row(6).tolist() == [0, 1, 0, 1, 0, 1]
    for job, part in enumerate(parts):
        length = part.tokens.shape[1]
        for name in ("tokens", "targets", "answer", "valid", "reset"):
            rows, expected = getattr(batch, name)[job::2], getattr(part, name)
            if job == 0 and name in ("tokens", "targets"):  # n-back's come after the bytes; padding is 0
                expected = np.where(part.valid, expected + 256, 0)
            np.testing.assert_array_equal(rows[:, :length], expected)
            assert not rows[:, length:].any()
            assert rows.dtype == getattr(part, name).dtype
        # As before within a job.
        weights = batch.loss_weights[job::2][:, :length]
        np.testing.assert_allclose(weights / weights.sum(), part.loss_weights / part.loss_weights.sum(), rtol=1e-6)
        np.testing.assert_allclose(weights.sum(), batch.valid.sum() / 2, rtol=1e-6)
    assert task.vocab_size == 256 + 130
    shared = dataclasses.replace(CONFIG, own_ids=False).make(seed=3, batch_size=6, data=data)
    assert shared.vocab_size == 256
    np.testing.assert_array_equal(shared.batch(5).tokens[0], nback.batch(5).tokens[0])
    (ahead,) = task.batches(5, 6)
    for one, other in zip(ahead[:6], batch[:6], strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_job_is_scored_by_its_own_task(task):
    """A model that always says the same: its text is scored as that, and it recalls what it guesses."""
    value = task.jobs["nback"].evaluation_sets["n2"].answers[0]

    def predict(tokens, valid, reset=None):
        logits = np.zeros((*tokens.shape, 386), np.float32)
        logits[..., 100] = 20  # the byte d
        logits[..., 256 + value] = 20
        return logits

    def nback_alone(tokens, valid, reset=None):
        return predict(tokens, valid)[..., 256:]

    found = task.evaluate(predict)
    text = task.jobs["text"]
    assert [row.name for row in found.rows] == ["nback", "text"]
    alone = [task.jobs["nback"].evaluate(nback_alone), text.evaluate(predict)]
    assert found.rows[0].accuracy > 0
    seen = []
    task.evaluate(
        lambda tokens, valid, reset=None: seen.append(np.where(valid, tokens, 256).min()) or predict(tokens, valid)
    )
    assert seen[0] >= 256
    assert found.rows[0].credit == alone[0].rows[0].credit
    assert found.rows[1].bits_per_byte == alone[1].rows[0].bits_per_byte
    assert found.primary == pytest.approx((alone[0].primary + alone[1].primary) / 2)
    counts = np.bincount(text.data.train.tokens, minlength=256) + 1
    share = counts / counts.sum()
    assert found.rows[1].extra["unigram"] == pytest.approx(-np.log2(share[text.validation.tokens[1:]]).mean())
    assert unigram_bits(text) < 8


def test_scores_of_two_kinds_are_one_table(task):
    def predict(tokens, valid, reset=None):
        return np.zeros((*tokens.shape, 386), np.float32)

    found = task.evaluate(predict)
    table = found.table()
    headings = [str(column.header) for column in table.columns]
    assert headings[:3] == ["set", "sequences or bytes", "accuracy"]
    assert {"bits per byte", "credit ÷ ceiling", "unigram"} <= set(headings)
    run = {"evaluation": {row.name: row.to_dict() for row in found.rows}}
    cells = list(table.columns[headings.index("ceiling")].cells)
    assert cells[0] == f"{found.rows[0].ceiling:.4f}"
    assert cells[1] == ""
    several = json.loads(
        json.dumps(
            {
                "runs": {"0": run, "1": run},
                "seeds": [0, 1],
                "mean": {r.name: {k: getattr(r, k) for k in r.COLUMNS} for r in found.rows},
                "spread": {r.name: dict.fromkeys(r.COLUMNS, 0.0) for r in found.rows},
            }
        )
    )
    seeds = results_table(several)
    assert "credit ÷ ceiling, bits per byte" in str(seeds.caption)
    assert "text 8.59" in str(seeds.caption)
    assert isinstance(found, Evaluation)


def test_it_says_what_its_jobs_say(task):
    assert CONFIG.token_meaning() == "integers or bytes, one after another"
    assert CONFIG.token_meaning() != dataclasses.replace(CONFIG, own_ids=False).token_meaning()
    assert CONFIG.reads_text
    assert not MixedConfig(jobs=Options(nback=NBACK, counter=Options())).reads_text
    assert task.fingerprint == task.jobs["text"].fingerprint
    assert task.tokenizer is task.jobs["text"].tokenizer
    assert from_config_dict(MixedConfig, to_dict(CONFIG)) == CONFIG


class OwnLoss(TaskBase):
    vocab_size, sequence_length, config = 2, 3, None

    def losses(self, logits, batch):
        return 0 * logits[..., 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixedConfig(jobs=Options(text=Options())), "names 1; give two or more"),
        (lambda: MixedConfig(jobs=Options(text=Options(), other=Options())), "task.jobs.other.name='other' is not a task"),
        (lambda: MixedConfig(jobs=Options(text=Options(length=0), nback=NBACK)), "task.jobs.text: task.length=0 must be"),
        (lambda: MixedConfig(jobs=Options(text=3, nback=NBACK)), "task.jobs.text=3 should be a mapping"),
        (lambda: MixedConfig(jobs=Options(nback=NBACK, more=Options(name="mixed"))), "a mixed task is no job of another"),
        (lambda: CONFIG.make(seed=0, batch_size=5), "train.batch_size=5 is not divisible by the 2 jobs"),
        (lambda: Mixed(CONFIG, {"own": OwnLoss(), "other": OwnLoss()}), "task.jobs.own: this task has a loss of its own"),
    ],
)
def test_what_cannot_be_mixed_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_job_that_does_not_write_all_tokens_keeps_its_mask():
    """Others write all of theirs, and the questions of the one are asked with its mask."""
    ladder = Options(rungs=2, variables=12, evaluation_sequences=8)
    task = MixedConfig(jobs=Options(ladder=ladder, nback=NBACK)).make(seed=3, batch_size=4)
    batch, part = task.batch(2), task.jobs["ladder"].batch(2)
    assert not part.write.all()
    np.testing.assert_array_equal(batch.write[::2, : part.write.shape[1]], part.write)
    assert batch.write[1::2, : task.jobs["nback"].sequence_length].all()
    asked = []

    def predict(tokens, valid, *, write=None):
        asked.append(write)
        return np.zeros((*tokens.shape, task.vocab_size))

    task.evaluate(predict)
    assert any(write is not None and not write.all() for write in asked)
