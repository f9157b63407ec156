"""A task from outside the package, as docs/how-to/task.md shows it: trained, interrupted, gone on with, and scored."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from tests.pages import commands, write_files
from tests.processes import Command, run_text

PAGE = "docs/how-to/task.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the files of the page."""
    folder = tmp_path_factory.mktemp("parity")
    assert write_files(PAGE, folder) == ["parity.py", "parity_config.py"]
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """The folder after the page's first command, and the page's second one."""
    train, evaluate = commands(PAGE)
    status, output, errors = run_text(*train, folder=folder)
    assert status == 0, errors
    assert re.search(r"parity +64 +\d\.\d{4}", output)
    assert re.search(r"step 20/20 .*right \d\.\d+", errors)
    return folder, evaluate


def test_it_is_trained_and_scored(trained):
    folder, evaluate = trained
    results = json.loads((folder / "runs" / "parity" / "results.json").read_text())
    assert results["config"]["task"] == {"name": "parity:ParityConfig", "length": 8}
    assert results["evaluation"]["parity"]["ceiling"] == 1
    status, output, errors = run_text(*evaluate, "--out=scores.json", folder=folder)
    assert status == 0, errors
    assert re.search(r"parity +64 +\d\.\d{4}", output)
    assert json.loads((folder / "scores.json").read_text())["task"]["length"] == 12


def test_a_model_of_other_tokens_is_refused(trained):
    folder, evaluate = trained
    (folder / "others.py").write_text(
        "import dataclasses\nimport parity_config\nfrom parity import ParityConfig\n"
        "@dataclasses.dataclass(frozen=True)\nclass Others(ParityConfig):\n    name: str = 'others:Others'\n"
        "def get_config(): return dataclasses.replace(parity_config.get_config(), task=Others())\n"
    )
    command = [argument.replace("parity_config.py", "others.py") for argument in evaluate]
    status, output, errors = run_text(*command, folder=folder)
    assert (status, output) == (2, "")
    assert "the token ids of the task 'others:Others' are peculiar to 'others:Others', but" in errors


def test_it_goes_on_after_an_interruption(folder):
    train, _ = commands(PAGE)
    settings = ["--workdir=interrupted", "--config.train.steps=2000", "--config.train.log_every=1"]
    settings += ["--config.train.evaluate_every=2000", "--config.train.checkpoint_every=2000"]
    arguments = [*train[:-1], *settings]
    command, metrics = Command(*arguments, folder=folder), folder / "interrupted" / "metrics.jsonl"
    for _ in range(1200):
        if command.ended() or metrics.exists() and metrics.stat().st_size > 0:
            break
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    status, _, errors = command.wait()
    assert status == 143, errors.decode()
    saved = int(re.search(r"saved step (\d+) of 2000", errors.decode()).group(1))
    status, _, errors = run_text(*arguments, folder=folder)
    assert status == 0, errors
    assert f"resuming interrupted at step {saved}" in errors
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if "loss" in line]
    assert steps == list(range(1, 2001))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.task.length=0", "config.task: task.length=0 must be at least 1"),
        ("--config.task.lenth=3", "config.task has no key 'lenth'. Did you mean config.task.length?"),
    ],
)
def test_mistakes_are_one_line(folder, override, message):
    train, _ = commands(PAGE)
    status, output, errors = run_text(*train[:-1], "--workdir=wrong", override, folder=folder)
    assert (status, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
    assert not (folder / "wrong").exists()


def test_a_class_that_is_gone_is_named(trained):
    folder, _ = trained
    (folder / "elsewhere").mkdir(exist_ok=True)
    workdir = (folder / "runs" / "parity").absolute()
    command = ["bdh_jax", "ablate", f"--workdir={workdir}"]
    status, output, errors = run_text(*command, folder=folder / "elsewhere")
    assert (status, output) == (2, "")
    assert "config.task.name='parity:ParityConfig': there is no module 'parity' on the Python path" in errors
