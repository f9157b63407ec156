"""A run that is killed without warning, again and again, ends like one that never was."""

from __future__ import annotations

import json
import random
import signal
import time

import numpy as np
import pytest

from bdh_jax.experiment import load
from bdh_jax.runs.reporter import read_rows
from tests.processes import Command

STEPS, INTERVAL = 180, 15
UNTIL_END = 10**9


def _start(workdir, text):
    return Command(
        "bdh_jax",
        "train",
        "--config=configs/text.py:fast_topk,smoke",
        f"--workdir={workdir}",
        f"--config.data.path={text}",
        f"--config.train.steps={STEPS}",
        f"--config.train.checkpoint_every={INTERVAL}",
        "--config.train.evaluate_every=40",
        "--config.train.log_every=1",
        "--config.consolidation.every=7",
    )


def _last_step(workdir):
    rows = read_rows(workdir / "metrics.jsonl", until=UNTIL_END)
    return rows[-1]["step"] if rows else 0


def _finish(command):
    status, _, errors = command.wait()
    assert status == 0, errors.decode()


def _starts(workdir):
    run = workdir / "run.json"
    return json.loads(run.read_text())["starts"] if run.exists() else []


def _check_start(starts, earlier, reached):
    """That a run went on from the last checkpoint before ``reached``, or from the one before it if the last was not yet whole."""
    # A run that was killed before it wrote that it starts has added nothing.
    if starts != earlier:
        assert 0 <= reached - starts[-1]["step"] <= 2 * INTERVAL, (reached, starts)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.full)])
def test_killed_and_restarted_it_ends_with_the_same_bits(kills, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 3000, dtype=np.uint8)))
    _finish(_start(tmp_path / "whole", text))
    workdir, moments = tmp_path / "killed", random.Random(kills)
    reached = 0
    for kill in range(kills):
        # Anywhere between here and the next of equal parts: in a step, an evaluation, a save or the start. The steps at the end are
        # those that it may still take before the signal is sent.
        target = moments.randint(reached, max(reached, (kill + 1) * (STEPS - 4 * INTERVAL) // kills))
        earlier, command = _starts(workdir), _start(workdir, text)
        while not command.ended() and (_last_step(workdir) < target or not (workdir / "run.json").exists()):
            time.sleep(0.002)
        time.sleep(moments.random() * 0.2)
        if not command.ended():
            command.send_signal(signal.SIGKILL)
        status, _, errors = command.wait()
        assert status == -signal.SIGKILL, errors.decode()
        _check_start(_starts(workdir), earlier, reached)
        reached = _last_step(workdir)
    earlier = _starts(workdir)
    _finish(_start(workdir, text))
    _check_start(_starts(workdir), earlier, reached)
    whole, killed = (load(folder, "last")[1] for folder in (tmp_path / "whole", workdir))
    for name in whole:
        np.testing.assert_array_equal(
            np.asarray(whole[name]).view(np.uint32), np.asarray(killed[name]).view(np.uint32), name
        )
    rows = [read_rows(folder / "metrics.jsonl", until=UNTIL_END) for folder in (tmp_path / "whole", workdir)]
    for row in [*rows[0], *rows[1]]:
        row.pop("tokens_per_second", None)
    assert rows[0] == rows[1]
