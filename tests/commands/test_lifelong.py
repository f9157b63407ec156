"""The command of the lifelong benchmark: what it prints and writes, and how it exits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bdh_jax.lifelong.contestants import WRITE_RATES
from tests.processes import run_text

CONFIG = "--config=configs/lifelong.py:smoke"


def unchanged(slow, fast, activity):
    """A consolidation function of one's own, by module and name."""
    return slow


def narrower(slow, fast, activity):
    return {**slow, "synapse": slow["synapse"][..., 1:]}


def branches(slow, fast, activity):
    return slow if fast.memory.sum() > 0 else dict(slow)


def explodes(slow, fast, activity):
    return {**slow, "synapse": slow["synapse"] / 0}


def interrupts(slow, fast, activity):
    """Ctrl-C, once a row is done."""
    if Path(os.environ["UNFINISHED"]).exists():
        raise KeyboardInterrupt
    return slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("smoke")
    status, output, errors = run_text("bdh_jax", "train", CONFIG, f"--workdir={workdir}", "--config.train.steps=4")
    assert status == 0, errors
    for name in ("seen", "held_out", "new_ids", "known"):
        assert name in output
    return workdir


def test_it_prints_tables_writes_files_and_never_replaces_them(trained):
    arguments = (
        CONFIG,
        f"--workdir={trained}",
        "--facts=32",
        "--streams=1",
        "--functions=none,dense_untrained,ridge_untrained",
    )
    status, _, errors = run_text("bdh_jax", "lifelong", *arguments)
    assert status == 2
    assert "error: contestant 'dense_untrained' takes the rate of 'dense': name that one before it" in errors
    arguments = (
        *arguments[:-1],
        "--functions=none,kalman=2.5,tests.commands.test_lifelong:explodes",
        "--reference=none",
        "--ridge=0.5",
        "--layers=1",
    )
    status, output, errors = run_text("bdh_jax", "lifelong", *arguments)
    assert status == 0, errors
    for expected in (
        "kalman",
        "along the stream, at 4 checkpoints",
        "32 facts",
        "1 model × 1 stream",
        "PRECONDITION NOT MET, model 0",
        "dead",
        "Δ recall",
    ):
        assert expected in output
    assert "none: recall" in errors
    folder = trained / "lifelong"
    record = json.loads((folder / "results.json").read_text())
    assert [row["rate"] for row in record["rows"]] == [None, 2.5, min(WRITE_RATES)]  # all are equally bad
    assert record["config"]["known"] == 8
    assert record["rows"][1]["mean"]["new_value"] + record["rows"][1]["mean"]["neither_value"] <= 1
    assert record["rows"][1]["mean"]["kilobytes"] > record["rows"][0]["mean"]["kilobytes"]
    assert "WEIGHTS NaN OR INFINITE at the end of a stream: tests.commands.test_lifelong:explodes" in " ".join(
        output.split()
    )
    assert record["least_squares"] == {"ridge": 0.5, "layers": [1]}
    assert np.shape(record["rows"][0]["course"]["harm_known"]) == (1, 1, record["config"]["stream"]["checkpoints"])
    for figure in ("figure.png", "course.png"):
        assert (folder / figure).stat().st_size > 1000
    status, output, errors = run_text("bdh_jax", "lifelong", *arguments, f"--out={trained}", "--overwrite")
    assert (status, output) == (2, "")
    assert f"--out={trained} holds a training run, whose results.json is another one" in errors
    status, output, errors = run_text("bdh_jax", "lifelong", *arguments)
    assert (status, output) == (2, "")
    assert "results.json exists; name another folder with --out, or pass --overwrite" in errors
    assert "Traceback" not in errors


@pytest.mark.full
def test_several_numbers_of_facts_are_compared(trained, tmp_path):
    arguments = [CONFIG, f"--workdir={trained}", f"--out={tmp_path}", "--facts=48,32", "--streams=1"]
    functions = "--functions=none,tests.commands.test_lifelong:unchanged"
    status, output, errors = run_text("bdh_jax", "lifelong", *arguments, functions)
    assert status == 0, errors
    for expected in ("recall after the last reset", "bits recalled per byte", "harm in other episodes", "harm to known"):
        assert expected in output
    columns = [line.split() for line in output.splitlines() if line.startswith("function")]
    assert columns == [["function", "32", "48"]] * 4
    record = json.loads((tmp_path / "results.json").read_text())
    assert [result["config"]["stream"]["facts"] for result in record["results"]] == [32, 48]
    none, own = record["results"][0]["rows"]
    assert own["name"] == "tests.commands.test_lifelong:unchanged"
    assert own["scores"]["recall"] == none["scores"]["recall"]
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert not (tmp_path / "course.png").exists()


def test_an_interrupted_run_goes_on(trained, tmp_path, monkeypatch):
    unfinished = tmp_path / "unfinished.json"
    monkeypatch.setenv("UNFINISHED", str(unfinished))
    arguments = [CONFIG, f"--workdir={trained}", f"--out={tmp_path}", "--facts=32", "--streams=1"]
    status, _, errors = run_text(
        "bdh_jax", "lifelong", *arguments, "--functions=none,tests.commands.test_lifelong:interrupts"
    )
    assert status == 130
    assert f"aborted; rows that are done wait in {unfinished}" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unfinished.json"]
    status, _, errors = run_text("bdh_jax", "lifelong", *arguments, "--functions=none", "--layers=1")
    assert status == 2
    assert "interrupted run (1), which differs from this one in layers" in errors
    status, _, errors = run_text("bdh_jax", "lifelong", *arguments, "--functions=none")
    assert status == 0, errors
    assert "unfinished.json holds rows of an interrupted run (1); those that fit are taken" in errors
    assert "none: recall" in errors
    assert "measured before an interruption" in errors
    assert not unfinished.exists()
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("function", "message"), [("narrower", "returned slow['synapse'] with shape"), ("branches", "is not jittable")]
)
def test_functions_that_cannot_be_used_are_refused_before_anything_is_measured(trained, tmp_path, function, message):
    arguments = [CONFIG, f"--workdir={trained}", f"--out={tmp_path}/x", "--facts=32", "--streams=1"]
    status, output, errors = run_text(
        "bdh_jax", "lifelong", *arguments, f"--functions=none,tests.commands.test_lifelong:{function}"
    )
    assert (status, output) == (2, "")
    assert message in errors
    assert "preconditions" not in errors
    assert not (tmp_path / "x").exists()


def test_facts_that_were_not_taught_are_not_asked_for(trained):
    more = ["--config.task.known=0", "--config.task.known_rows=0"]
    status, output, errors = run_text("bdh_jax", "lifelong", CONFIG, f"--workdir={trained}", f"--out={trained}/x", *more)
    assert (status, output) == (2, "")
    assert "was trained with task.known=8, and --config has task.known=0" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nback.py:smoke", "--workdir=x"], "--config has the task 'nback'; the benchmark needs facts"),
        (
            [CONFIG, "--workdir=x", "--functions=nonsense"],
            "--functions names 'nonsense'; valid names: none, dense, row_topk",
        ),
        ([CONFIG, "--workdir=x", "--facts=64,many"], "--facts=64,many must be numbers with commas between them"),
        ([CONFIG, "--workdir=x", "--layers=0,2"], "--layers=0,2 must be numbers in 0 … 1, each once, with commas between"),
        (
            [CONFIG, "--workdir=x", "--functions=kalman=much"],
            "--functions=kalman=much: 'much' is no number; write NAME=RATE",
        ),
        ([CONFIG, "--workdir=x", "--functions=kalman=nan"], "--functions=kalman=nan: 'nan' is no number"),
        ([CONFIG, "--workdir=x", "--functions=none=5"], "--functions=none=5: 'none' has no rate"),
        ([CONFIG, "--workdir=x", "--functions=dense_shuffled=3"], "'dense_shuffled' takes the rate of 'dense'"),
        ([CONFIG, "--workdir=x", "--functions=none,dense,none"], "--functions names 'none' twice: a row stands there once"),
        ([CONFIG, "--workdir=x", "--functions=kalman,kalman=1,kalman=1"], "--functions names 'kalman=1' twice"),
        (
            [CONFIG, "--workdir=x", "--functions=tests.commands.test_lifelong:unchanged=half"],
            ":unchanged=half: 'half' is no number; write NAME=RATE",
        ),
        ([CONFIG, "--workdir=x", "--functions=none", "--reference=dnse"], "--reference=dnse is not among the rows: none;"),
    ],
)
def test_mistakes_are_one_message(arguments, message):
    status, output, errors = run_text("bdh_jax", "lifelong", *arguments)
    assert (status, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
