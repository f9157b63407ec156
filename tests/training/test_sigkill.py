"""A run that is killed without warning, again and again, ends like one that never was."""

from __future__ import annotations

import json
import random
import signal
import time

import numpy as np
import pytest

from bdh_jax.training.checkpoint import load
from bdh_jax.training.metrics import read_rows
from tests.commands import Command

STEPS, INTERVAL = 180, 15
UNTIL_END = 10**9


def _start(workdir, text):
    return Command(
        "bdh_jax.main",
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


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.full)])
def test_killed_and_restarted_it_ends_with_the_same_bits(kills, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 3000, dtype=np.uint8)))
    _finish(_start(tmp_path / "whole", text))
    workdir, moments = tmp_path / "killed", random.Random(kills)
    reached, recomputed = 0, []
    for kill in range(kills):
        # Anywhere between here and the next of equal parts: in a step, an evaluation, a save or the start.
        target = moments.randint(reached, (kill + 1) * (STEPS - INTERVAL) // kills)
        command = _start(workdir, text)
        while not command.ended() and (_last_step(workdir) < target or not (workdir / "run.json").exists()):
            time.sleep(0.002)
        time.sleep(moments.random() * 0.2)
        if not command.ended():
            command.send_signal(signal.SIGKILL)
        status, _, errors = command.wait()
        assert status == -signal.SIGKILL, errors.decode()
        reached = _last_step(workdir)
        recomputed.append(reached)
    _finish(_start(workdir, text))
    starts = [start["step"] for start in json.loads((workdir / "run.json").read_text())["starts"]]
    # A start that was killed before its first checkpoint begins again from nothing, and the list with it.
    resumed = starts[-len(recomputed) :] if len(starts) > kills else [0] * (kills - len(starts) + 1) + starts[1:]
    assert all(0 <= there - start <= INTERVAL for there, start in zip(recomputed, resumed, strict=True)), (
        recomputed,
        starts,
    )
    whole, killed = (load(folder, "last")[1] for folder in (tmp_path / "whole", workdir))
    for name in whole:
        np.testing.assert_array_equal(
            np.asarray(whole[name]).view(np.uint32), np.asarray(killed[name]).view(np.uint32), name
        )
    rows = [read_rows(folder / "metrics.jsonl", until=UNTIL_END) for folder in (tmp_path / "whole", workdir)]
    for row in [*rows[0], *rows[1]]:
        row.pop("tokens_per_second", None)
    assert rows[0] == rows[1]
