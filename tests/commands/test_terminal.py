"""Every command in a terminal of 80 columns: no line is longer, and nothing is cropped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from bdh_jax.commands._dispatch import commands
from tests.processes import run_in_terminal

WIDTH = 80
# What moves the cursor begins a new line here: a bar is drawn again and again in its own.
_NEW_LINE = re.compile(r"\r|\n|\x1b\[\d*[ABK]")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_CROPPED = re.compile(r"\w…|…\w")

SMALL = ("--config.train.steps=4", "--config.train.evaluate_every=2", "--config.train.log_every=1")
RUNS: dict[str, list[list[str]]] = {
    "list": [[]],
    "config": [["nback:text"], ["--workdir=FOLDER/nback/seed1"]],
    "train": [["--workdir=FOLDER/nback"], ["--workdir=FOLDER/text"]],
    "evaluate": [["--workdir=FOLDER/nback/seed1"], ["--workdir=FOLDER/text"]],
    "ablate": [["--workdir=FOLDER/nback"]],
    "generate": [["--workdir=FOLDER/text", "--prompt=to be", "--max_tokens=4", "--temperature=0"]],
    "score-text": [["--workdir=FOLDER/text", "--context=64", "--rows=2"]],
    "lifelong": [
        ["--workdir=FOLDER/facts", "--facts=32", "--streams=1", "--functions=none,tests.commands.test_lifelong:unchanged"]
    ],
    "merge": [["FOLDER/text", "FOLDER/text", "--out=FOLDER/merged"]],
    "grow": [["--workdir=FOLDER/plain", "--n_neurons=96", "--out=FOLDER/grown"]],
    "export": [["--workdir=FOLDER/text", "--out=FOLDER/exported", "--licence=mit"]],
    "capacity": [["--out=FOLDER/capacity", "--rows=64", "--active=0.1", "--at_rows=64", "--trials=1", "--rules=hebbian"]],
    "sweep": [
        [
            "nback:smoke",
            "--workdir=FOLDER/sweep",
            "--rows=model.fast.rule=hebbian",
            "--grid=optimizer.learning_rate=1e-3,2e-3",
            "--seeds=0",
            "--config.task.evaluation_sets=n2,n8",
            *SMALL,
        ]
    ],
    "plan": [["text:official", "--topology=v5p:2x2x2", "--search", "--batch=64", "--nocompile"]],
    "report": [["--workdir=FOLDER/nback", "--only=activity", "--budget=0.05"]],
    "prepare": [["--files=FOLDER/stories.jsonl", "--out=FOLDER/prepared", "--validation_share=0.3"]],
}
"""Command → arguments of small runs in the folder of the fixture. A new command needs a row."""


def lines(output: str) -> list[str]:
    """What a terminal shows, and showed for a moment."""
    return [_CONTROL.sub("", line) for line in _NEW_LINE.split(output)]


def shown(*arguments: str) -> list[str]:
    status, output = run_in_terminal("bdh_jax", *arguments, columns=WIDTH)
    assert status == 0, output
    found = lines(output)
    assert [line for line in found if cell_len(line) > WIDTH] == []
    assert [line for line in found if _CROPPED.search(line)] == []
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where models were trained, each of them in a terminal too."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    (folder / "stories.jsonl").write_text("".join(f'{{"text": "to be or not to be {number}"}}\n' for number in range(60)))
    for experiment, name, *more in (
        ("nback:smoke", "nback", "--config.seeds=0,1", "--config.task.evaluation_sets=n2,n8"),
        ("text:fast,smoke", "text", f"--config.data.path={folder / 'text.txt'}"),
        ("text:smoke", "plain", f"--config.data.path={folder / 'text.txt'}"),
    ):
        train(folder, experiment, name, *more)
    return folder


def train(folder: Path, experiment: str, name: str, *more: str) -> None:
    printed = " ".join(" ".join(shown("train", experiment, f"--workdir={folder / name}", *SMALL, *more)).split())
    assert "step 0 to 4" in printed
    assert f"results, metrics and checkpoints are in {folder / name}"[:40] in printed
    assert "next: bdh " in printed


def test_every_command_is_run_here():
    assert set(RUNS) == set(commands())


def _rows():
    """The lifelong benchmark compiles a program for each of its rows; that its tables fit is asked by its own tests too. A text is
    evaluated when it has been trained, and shown in the same table."""
    for name, rows in RUNS.items():
        for number, row in enumerate(rows):
            marks = [pytest.mark.full] if name == "lifelong" or (name, number) == ("evaluate", 1) else []
            yield pytest.param(name, row, marks=marks, id=f"{name} {number}")


@pytest.mark.parametrize(("command", "arguments"), [*_rows()])
def test_a_command_fits(command: str, arguments: list[str], folder: Path):
    if command == "lifelong":
        train(folder, "lifelong:smoke", "facts")
    assert any(shown(command, *(argument.replace("FOLDER", str(folder)) for argument in arguments)))


@pytest.mark.parametrize("command", ["", *commands()])
def test_help_fits(command: str):
    assert any(shown(*filter(None, [command]), "--help"))


def test_an_error_breaks_between_words():
    status, output = run_in_terminal("bdh_jax", "train", "nbak", columns=WIDTH)
    assert status == 2
    assert max(cell_len(line) for line in lines(output)) <= WIDTH
    assert "there is no experiment 'nbak'. Did you mean nback?" in " ".join(" ".join(lines(output)).split())
