"""The same command in several processes, as on a pod: one run, stopped and resumed together.

The processes find each other as under Slurm, through variables of the environment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import jax
import numpy as np
import pytest

from bdh_jax import load
from tests.processes import Command, run_text

STEPS, SAVED = 120, 30
RUN = (
    "bdh_jax",
    "train",
    "--config=configs/nback.py:smoke",
    f"--config.train.steps={STEPS}",
    f"--config.train.evaluate_every={STEPS}",
    f"--config.train.checkpoint_every={STEPS}",
    "--config.train.log_every=1",
    "--config.model.n_layer=1",
)
IN_PARTS = ("--config.train.save=background", "--config.mesh.fsdp=True")
"""Checkpoints of which every process writes a part while it goes on."""
FIRST_PORT, PORTS = 61440, 4096
"""JAX takes the port of the first process from the number of the Slurm job."""


def _job() -> int:
    """The number of a Slurm job whose port is free."""
    for job in np.random.default_rng().permutation(PORTS):
        with socket.socket() as free:
            try:
                free.bind(("localhost", FIRST_PORT + int(job)))
            except OSError:
                continue
            return int(job)
    raise RuntimeError("no port is free")


def _start(monkeypatch, workdir, *of_each: str, run: tuple[str, ...] = RUN, wrong: str = "nothing") -> list[Command]:
    """Processes of one run with a device each, two, or as many as have an argument of their own. Something may be wrong with the last
    (tests.faults.child)."""
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    common = {
        "SLURM_JOB_ID": _job(),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": max(2, len(of_each)),
        "XLA_FLAGS": flags,
    }
    commands = []
    for rank in range(max(2, len(of_each))):
        for name, value in {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}.items():
            monkeypatch.setenv(name, str(value))
        more = of_each[rank : rank + 1]
        command = run if rank == 0 else ("tests.faults.child", wrong, *run[1:])
        commands.append(
            Command(*command, f"--workdir={workdir}", "--config.mesh.distributed=True", "--config.mesh.data=-1", *more)
        )
    return commands


def _losses(workdir) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_two_processes_stop_together_and_resume_to_the_losses_of_one(tmp_path, monkeypatch):
    workdir, metrics = tmp_path / "two", tmp_path / "two" / "metrics.jsonl"
    with monkeypatch.context() as environment:
        commands = _start(environment, workdir)
        while not metrics.exists() or metrics.read_text().count("\n") < 4:
            assert not any(command.ended() for command in commands), [command.wait() for command in commands]
            time.sleep(0.05)
        commands[1].send_signal(signal.SIGUSR1)  # one of the hosts is told to go, and tells the other by SIGTERM
        ends = [command.wait() for command in commands]
        assert [status for status, _, _ in ends] == [143, 138], ends
        assert all(
            told + b": saved step" in errors for told, (_, _, errors) in zip((b"SIGTERM", b"SIGUSR1"), ends, strict=True)
        )
        (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
        assert saved < STEPS
        ends = [command.wait() for command in _start(environment, workdir)]
        assert [status for status, _, _ in ends] == [0, 0], ends
        assert b"n8" in ends[0][1]
        assert b"n8" not in ends[1][1]  # one of them prints the table
    assert [start["step"] for start in json.loads((workdir / "run.json").read_text())["starts"]] == [0, saved]
    status, _, errors = run_text(*RUN, f"--workdir={tmp_path / 'one'}")
    assert status == 0, errors
    one, two = _losses(tmp_path / "one"), _losses(workdir)
    assert list(two) == list(range(1, STEPS + 1))
    # Gradients are sums over the processes, in another order: the bound is that between meshes, and 2e-7 was seen.
    steps = range(1, STEPS + 1)
    np.testing.assert_allclose([two[step] for step in steps], [one[step] for step in steps], rtol=1e-5)


@pytest.mark.parametrize(
    ("processes", "killed", "said", "after", "flags"),
    [
        (2, 1, "process 1 on host", 2, IN_PARTS),
        pytest.param(2, 0, "process 0, or this one (see above), is gone", 2, (), marks=pytest.mark.full),
        pytest.param(4, 2, "process 2 on host", 2, IN_PARTS, marks=pytest.mark.full),
        pytest.param(2, 1, "process 1 on host", 4, (), marks=pytest.mark.full),
    ],
)
def test_a_killed_process_is_named_by_the_others_which_stop_and_go_on(
    processes, killed, said, after, flags, tmp_path, monkeypatch
):
    """To the bit, if as many go on as before."""
    workdir = tmp_path / "run"
    every = f"--config.train.checkpoint_every={SAVED}"
    with monkeypatch.context() as environment:
        commands = _start(environment, workdir, *[every] * processes, run=(*RUN, *flags))
        while not (workdir / "checkpoints" / str(SAVED)).exists():
            assert not any(command.ended() for command in commands), [command.wait() for command in commands]
            time.sleep(0.05)
        commands[killed].send_signal(signal.SIGKILL)
        began = time.monotonic()
        ends = [command.wait() for command in commands]
        took = time.monotonic() - began
        rest = [end for rank, end in enumerate(ends) if rank != killed]
        assert [status for status, _, _ in rest] == [75] * (processes - 1), ends
        for _, _, errors in rest:
            assert said.encode() in errors, errors
            assert f"the last checkpoint of {workdir} is of step".encode() in errors
        # Not hanging is what is promised; it takes half a minute on a machine that does nothing else.
        assert took < 120
        ends = [command.wait() for command in _start(environment, workdir, *[every] * after, run=(*RUN, *flags))]
        assert [status for status, _, _ in ends] == [0] * after, ends
        ends = [
            command.wait() for command in _start(environment, tmp_path / "whole", *[every] * processes, run=(*RUN, *flags))
        ]
        assert [status for status, _, _ in ends] == [0] * processes, ends
    whole = tmp_path / "whole"
    losses, digests = zip(*((_losses(folder), _digests(folder)) for folder in (workdir, whole)), strict=True)
    assert list(losses[0]) == list(losses[1]) == list(range(1, STEPS + 1))
    # Sums over another number of processes are taken in another order.
    np.testing.assert_allclose(list(losses[0].values()), list(losses[1].values()), rtol=0 if after == processes else 1e-5)
    assert (digests[0] == digests[1]) == (after == processes)
    parts = {len(found) for found in digests[0]["slow"].values() if isinstance(found, dict)}
    assert max(parts) == (processes if flags else 1)
    # One process reads what several have written, and holds every part to its digest.
    assert jax.tree.leaves(load(workdir, "last")[1])


@pytest.mark.parametrize("save", ["background", pytest.param("blocking", marks=pytest.mark.full)])
def test_a_process_that_cannot_save_its_part_ends_all_of_them(save, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    run = (*RUN, f"--config.train.checkpoint_every={SAVED}", f"--config.train.save={save}", "--config.mesh.fsdp=True")
    with monkeypatch.context() as environment:
        commands = _start(environment, workdir, run=run, wrong="full")
        (first, _, said), (second, _, errors) = [command.wait() for command in commands]
        assert (first, second) == (75, 2), (said, errors)
        assert b"process 1 on host" in said, said
        assert b"no checkpoint can be written into" in errors, errors
        ends = [command.wait() for command in _start(environment, workdir, run=run)]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert list(_losses(workdir)) == list(range(1, STEPS + 1))


def _digests(workdir) -> dict[str, dict[str, str | dict[str, str]]]:
    return json.loads((workdir / "checkpoints" / str(STEPS) / "info" / "metadata").read_text())["digests"]


@pytest.mark.parametrize("variants", ["fast_topk,smoke", pytest.param("fast,tbptt,smoke", marks=pytest.mark.full)])
def test_consolidation_and_carried_states_of_text_in_two_processes_are_those_of_one(variants, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 3000, dtype=np.uint8)))
    steps = 12
    run = (
        "bdh_jax",
        "train",
        f"text:{variants}",
        f"--config.data.path={text}",
        f"--config.train.steps={steps}",
        f"--config.train.evaluate_every={steps}",
        "--config.train.log_every=1",
        *(["--config.consolidation.every=3"] if "topk" in variants else []),
    )
    with monkeypatch.context() as environment:
        ends = [command.wait() for command in _start(environment, tmp_path / "two", run=run)]
    assert [status for status, _, _ in ends] == [0, 0], ends
    status, _, errors = run_text(*run, f"--workdir={tmp_path / 'one'}")
    assert status == 0, errors
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, steps + 1))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    scores = [json.loads((tmp_path / name / "results.json").read_text())["primary"] for name in ("one", "two")]
    np.testing.assert_allclose(*scores, rtol=1e-5)


@pytest.mark.full
def test_two_processes_start_from_one_run_and_both_refuse_what_one_cannot_see(tmp_path, monkeypatch):
    source, steps = tmp_path / "source", "--config.train.steps=20"
    status, _, errors = run_text(*RUN, f"--workdir={source}", steps)
    assert status == 0, errors
    init = f"--config.train.init_from={source}"
    with monkeypatch.context() as environment:
        ends = [command.wait() for command in _start(environment, tmp_path / "two", init, init)]
        assert [status for status, _, _ in ends] == [0, 0], ends
        elsewhere = f"--config.train.init_from={tmp_path / 'nowhere'}"
        ends = [command.wait() for command in _start(environment, tmp_path / "torn", init, elsewhere)]
    assert [status for status, _, _ in ends] == [2, 2], ends
    assert b"this process reads step 20, and others read another one, or none" in ends[0][2]
    assert b"there is no folder" in ends[1][2]
    assert not (tmp_path / "torn").exists()
    status, _, errors = run_text(*RUN, f"--workdir={tmp_path / 'one'}", init)
    assert status == 0, errors
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
