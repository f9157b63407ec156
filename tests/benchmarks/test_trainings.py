"""Trainings of tables: what is over, what diverged, and what is still to be done."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from bdh_jax.config.convert import change
from bdh_jax.runs.checkpoint import CheckpointError
from bdh_jax.training.loop import NonFiniteError
from configs.mqar import get_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import trainings


def test_only_what_is_missing_is_done_so_many_at_a_time(tmp_path):
    done, both = [0, 3], threading.Barrier(2)

    def apart(run: int) -> None:
        both.wait(60)  # each waits for the other
        done.append(run)

    trainings.do_all(range(4), lambda run: run in [0, 3], apart, str, 2)
    assert sorted(done) == [0, 1, 2, 3]
    with pytest.raises(SystemExit, match="why"):
        trainings.do_all([1], lambda run: False, lambda run: sys.exit("why"), str, 1)


def test_a_training_is_read_and_one_of_something_else_refused(tmp_path):
    config, folder = get_config("gla,smoke"), tmp_path / "run"
    assert trainings.result(config, folder) is None
    assert not trainings.is_over(config, folder)
    assert trainings.train_here(config, folder)
    assert trainings.is_over(config, folder)
    found = trainings.result(config, folder)
    assert found is not None
    assert 0 <= found["primary"] <= 1
    with pytest.raises(CheckpointError, match="learning_rate"):
        trainings.is_over(change(config, "optimizer", learning_rate=0.5), folder)


def test_one_that_diverged_is_over_and_has_no_result(tmp_path, monkeypatch):
    def train(config, folder):
        folder.mkdir()
        raise NonFiniteError("the loss is nan at step 3", 3)

    monkeypatch.setattr(trainings, "train", train)
    config, folder = get_config("gla,smoke"), tmp_path / "run"
    assert not trainings.train_here(config, folder)
    assert "step 3" in (folder / trainings.DIVERGED).read_text()
    assert trainings.is_over(config, folder)
    assert trainings.result(config, folder) is None
