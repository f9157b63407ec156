"""A run on text that overfits is told so, once; other tasks never are."""

from __future__ import annotations

import logging

import pytest

from bdh_jax.runs.reporter import Reporter
from bdh_jax.tasks.scores import Evaluation, Score, TextScore


def text(bits: float) -> Evaluation:
    return Evaluation(rows=(TextScore("validation", 100, bits, bits, 0.5),), primary=1 / (1 + bits))


def recall(share: float) -> Evaluation:
    return Evaluation(rows=(Score("n2", 100, share, share, 1.0),), primary=share)


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("bdh_jax"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def report(workdir, evaluations, *, first=1):
    reporter = Reporter(workdir, steps=100, start=first - 1, title="seed 0", accuracy_name="accuracy")
    for step, evaluation in enumerate(evaluations, first):
        reporter.evaluation(step, evaluation)
    reporter.close()


def test_bits_that_rise_three_times_in_a_row_are_told_once(tmp_path, warnings):
    report(tmp_path, [text(bits) for bits in (3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5)])
    (warning,) = warnings()
    assert warning.startswith(
        "seed 0 overfits: bits per byte of the text that it is not trained on has risen 3 times in a row"
    )
    assert "from 2.0000 at step 2 to 2.3000 at step 5" in warning
    assert "--which=best" in warning


@pytest.mark.parametrize("bits", [(3.0, 2.0, 2.1, 2.2, 2.2, 2.3, 2.4), (2.0, 2.1, 2.2), (3.0, 2.0, 2.1, 2.2, 2.1, 2.3, 2.4)])
def test_what_goes_up_and_down_is_chance(bits, tmp_path, warnings):
    report(tmp_path, [text(number) for number in bits])
    assert warnings() == []


def test_sequences_that_are_always_new_cannot_be_learned_by_heart(tmp_path, warnings):
    report(tmp_path, [recall(share) for share in (0.9, 0.8, 0.7, 0.6, 0.5)])
    assert warnings() == []


def test_evaluations_before_an_interruption_count(tmp_path, warnings):
    report(tmp_path, [text(bits) for bits in (2.0, 2.1, 2.2)])
    report(tmp_path, [text(2.3)], first=4)
    (warning,) = warnings()
    assert "from 2.0000 at step 1 to 2.3000 at step 4" in warning
