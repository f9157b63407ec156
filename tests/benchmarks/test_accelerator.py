"""``make accelerator``: what becomes of parts that fail, hang or have no time; and that it runs where little is installed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.experiment import load_experiment, setup_of
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.tasks.base import Batch
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import state_from
from bdh_jax.training.step import make_train_step
from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import run, sizes, steps, timing
from benchmarks.accelerator.part import Part, Settings, Work

ROOT = Path(__file__).parents[2]
NEEDED = ("numpy", "jax", "flax", "optax", "orbax.checkpoint", "chex", "absl", "rich", "safetensors", "scipy")


def _settings(folder: Path, **changes: Any) -> Settings:
    return Settings(folder / "out", folder / "scratch", **changes)


def _here(parts: dict[str, Part]) -> run.Start:
    """Parts run in this process."""

    def start(name: str, settings: Settings, seconds: float) -> str:
        work = Work(name, settings, seconds, {"device": {"kind": "none"}})
        with work.going_on():
            parts[name].run(work)
        return ""

    return start


def _fine(work: Work) -> None:
    work.note(rate=1.0)
    work.attempt("a row", 0, lambda: {"faster": 2.0})


def _raises(work: Work) -> None:
    work.attempt("a row", 0, lambda: {"faster": 2.0})
    raise RuntimeError("no device")


def _has_a_bad_row(work: Work) -> None:
    def bad() -> dict[str, Any]:
        raise AssertionError("the sides differ")

    work.attempt("bad", 0, bad)
    work.attempt("good", 0, lambda: {"faster": 3.0})


def _has_no_time(work: Work) -> None:
    work.attempt("long", 1e9, lambda: {"faster": 4.0})
    work.attempt("short", 0, lambda: {"faster": 5.0})


def test_a_part_that_fails_says_why_and_the_others_go_on(tmp_path, capsys):
    functions = {"raises": _raises, "bad_row": _has_a_bad_row, "fine": _fine, "no_time": _has_no_time}
    parts = {name: Part(place, 1.0, 0.0, function) for place, (name, function) in enumerate(functions.items())}
    parts["late"] = Part(9, 1.0, 1e9, _fine)
    settings = _settings(tmp_path)
    summary = run.run(parts, settings, 5.0, _here(parts))
    found = {name: json.loads((settings.out / f"{name}.json").read_text()) for name in parts}
    assert {name: part["status"] for name, part in summary["parts"].items()} == {
        "raises": "failed",
        "bad_row": "failed",
        "fine": "done",
        "no_time": "done",
        "late": "left out",
    }
    assert found["raises"]["error"] == "RuntimeError: no device"
    assert found["raises"]["rows"][0]["faster"] == 2.0
    assert [row.get("error") for row in found["bad_row"]["rows"]] == ["AssertionError: the sides differ", None]
    assert found["fine"]["notes"] == {"rate": 1.0}
    assert found["fine"]["device"] == {"kind": "none"}
    assert [row["name"] for row in found["no_time"]["rows"]] == ["short"]
    assert found["no_time"]["left_out"][0]["name"] == "long"
    assert "about 1000000000 s needed" in found["no_time"]["left_out"][0]["why"]
    assert "at least 1000000000 s needed" in found["late"]["why"]
    assert json.loads((settings.out / "summary.json").read_text()) == summary
    assert run.status(summary) == 1
    said = "\n".join(run.lines(summary))
    assert "left out: long" in said
    assert "RuntimeError: no device" in said
    assert not list(settings.out.glob(".*"))


def test_all_done_is_status_0_even_with_rows_that_are_left_out(tmp_path):
    parts = {"no_time": Part(0, 1.0, 0.0, _has_no_time)}
    assert run.status(run.run(parts, _settings(tmp_path), 1.0, _here(parts))) == 0


def test_a_part_that_was_ended_has_failed_and_keeps_its_rows(tmp_path):
    def ended(name: str, settings: Settings, seconds: float) -> str:
        Work(name, settings, seconds, {}).attempt("a row", 0, lambda: {"faster": 2.0})
        return "stopped after 7 s"

    parts, settings = {"hangs": Part(0, 1.0, 0.0, _fine), "dies": Part(1, 1.0, 0.0, _fine)}, _settings(tmp_path)
    starts = {"hangs": ended, "dies": lambda *_: "its process ended with status -9"}
    summary = run.run(parts, settings, 1.0, lambda name, *rest: starts[name](name, *rest))
    assert summary["parts"]["hangs"] | {"seconds": 0} == {
        "status": "failed",
        "error": "stopped after 7 s",
        "seconds": 0,
        "rows": 1,
        "left_out": [],
    }
    assert summary["parts"]["dies"]["error"] == "its process ended with status -9"


def test_what_a_part_leaves_of_its_time_goes_to_those_after_it(tmp_path):
    given: dict[str, float] = {}

    def quick(name: str, settings: Settings, seconds: float) -> str:
        given[name] = seconds
        return _here(parts)(name, settings, seconds)

    parts = {name: Part(place, share, 0.0, _fine) for place, (name, share) in enumerate((("a", 1.0), ("b", 3.0)))}
    run.run(parts, _settings(tmp_path), 10.0, quick)
    assert given["a"] == pytest.approx((600 - run._END) / 4, abs=1)
    assert given["b"] == pytest.approx(600 - run._END, abs=5)


def test_a_process_that_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch):
    child = tmp_path / "child"
    program = f"import os, subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    ended, real = [], subprocess.Popen

    def popen(command: list[str], **given: Any) -> subprocess.Popen[bytes]:
        process = real([sys.executable, "-c", program], **given)
        while not (child.exists() and child.read_text()):
            time.sleep(0.01)
        ended.append(process)
        return process

    monkeypatch.setattr(run.subprocess, "Popen", popen)
    assert run.in_a_process("row_add", _settings(tmp_path), 0.1 - run._GRACE) == "stopped after 0 s"
    assert ended[0].returncode == -9
    state = Path(f"/proc/{child.read_text()}/stat")
    # It was told to end, and the system takes its time.
    late = time.monotonic() + 30
    while _runs(state) and time.monotonic() < late:
        time.sleep(0.01)
    assert not _runs(state)


def _runs(state: Path) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return state.read_text().split()[2] != "Z"
    except OSError:
        return False


def test_parts_come_by_value_and_fill_the_time():
    parts = run.all_parts()
    assert list(parts)[:2] == ["contract", "token_step"]
    assert len({part.place for part in parts.values()}) == len(parts)
    assert sum(part.minutes for part in parts.values()) == pytest.approx(9)
    assert all(part.least <= part.minutes * 60 for part in parts.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts=contract,speed"], "--parts=speed is none of contract, "),
        (["--official=nowhere"], "--official=nowhere holds no bdh.py"),
        (["--text=nowhere"], "--text=nowhere is no file"),
        (["--minutes=0"], "--minutes=0.0 must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main([f"--out={tmp_path}", *flags])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_settings_survive_the_way_to_another_process(tmp_path):
    settings = _settings(tmp_path, tiny=True, text=tmp_path / "text")
    assert Settings.from_json(json.loads(json.dumps(settings.as_json()))) == settings


def test_it_needs_no_package_that_a_machine_for_measuring_may_not_have():
    program = f"""
import importlib.abc, importlib.util, sys
allowed = {{name.split(".")[0] for name in {NEEDED!r}}}
refused = {{"absl.testing"}} | set("ml_collections pydantic pydantic_core filelock tensorboardX hypothesis pytest grain datasets matplotlib".split())
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from benchmarks.accelerator import one
print(*one.all_parts())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(run.all_parts())


def test_the_command_writes_a_part_and_a_summary(tmp_path):
    flags = ["--tiny", "--parts=row_add", f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    program = [sys.executable, "-m", "benchmarks.accelerator", *flags]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "row_add.json").read_text())
    assert (found["status"], found["tiny"]) == ("done", True)
    assert found["device"]["platform"] == "cpu"
    assert found["versions"]["jax"] == jax.__version__
    assert len(found["code"]) == 64
    assert [row["share_of_bytes"] <= 0.6 for row in found["rows"]] == [True, True]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["row_add.json", "summary.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the scratch folder is gone


@pytest.mark.full
def test_every_part_runs_at_tiny_sizes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", "--minutes=60", f"--out={tmp_path}"]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: part["status"] for name, part in summary["parts"].items()} == dict.fromkeys(run.all_parts(), "done")
    assert summary["parts"]["training"]["left_out"] == [
        {"name": "the official code", "why": "no --official names a checkout of it"}
    ]
    assert all(part["rows"] for part in summary["parts"].values())


def test_sides_that_differ_give_no_ratio():
    assert timing.difference([np.ones(3), np.zeros(2)], [np.full(3, 2.0), np.zeros(2)]) == 0.5
    with pytest.raises(AssertionError, match="logits: they differ by 5.0e-01"):
        timing.assert_alike(np.ones(3), np.full(3, 2.0), 0.1, "logits")
    with pytest.raises(AssertionError, match="inf"):
        timing.assert_alike(np.full(3, np.nan), np.ones(3), 0.1, "logits")
    with pytest.raises(AssertionError, match="shapes"):
        timing.assert_alike(np.ones(2), np.ones(3), 0.1, "logits")


def test_the_sizes_are_those_of_the_configuration():
    for name, config in (
        ("official", sizes.official(False)),
        ("official,fast", dataclasses.replace(sizes.official(False), fast=sizes.WRITE_BACK)),
    ):
        published = load_experiment(f"configs/text.py:{name}")
        assert config == published.model
        assert published.optimizer == sizes.OPTIMIZER
        assert published.train.steps == sizes.STEPS
        assert sizes.official_batch(False) == (published.train.batch_size, published.task.length)


def test_the_training_step_is_that_of_the_library():
    experiment = load_experiment("configs/text.py:official")
    config = dataclasses.replace(sizes.official(True), n_layer=1, d_model=16, n_neurons=64, dtype="float32")
    setup = dataclasses.replace(setup_of(experiment), model=config)
    model, mesh, key = config.build(None), make_mesh(MeshConfig(), jax.devices()[:1]), jax.random.key(5)
    optimizer = make_optimizer(setup.optimizer, setup.train.steps)
    slow, tokens = steps.random_weights(config), steps.random_tokens(2, 9)
    state = state_from(model, optimizer, mesh, slow)
    ones = jnp.ones((2, 9), jnp.float32)
    batch = Batch(jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:]), ones, ones, None, None)
    theirs, ours, step = make_train_step(model, optimizer, setup, mesh), steps.begin(slow), steps.train_step(config)
    for _ in range(2):
        state, metrics = theirs(state, batch, key)
        ours, loss = step(ours, jnp.asarray(tokens), key)
        np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)
    # A step of Adam is the sign of a gradient nearly, which a rounding decides where it is all but zero.
    for name, leaf in state.slow.items():
        moved, wanted = np.asarray(ours.slow[name]) - slow[name], np.asarray(leaf) - slow[name]
        assert np.mean(np.abs(moved - wanted) < 2e-7) > 0.99, name
        assert np.mean(np.abs(wanted)) > 1e-4, name
