"""A consolidation function from outside the package, as docs/how-to/consolidation.md shows it: trained with, interrupted, gone on with."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bdh_jax import load
from tests.pages import ROOT, commands, write_files
from tests.processes import run_text

PAGE = "docs/how-to/consolidation.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the file of the page, and the configurations of a checkout."""
    folder = tmp_path_factory.mktemp("mine")
    assert write_files(PAGE, folder) == ["mine.py"]
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def succeed(command, folder):
    status, output, errors = run_text(*command, folder=folder)
    assert status == 0, errors
    return output, errors


@pytest.mark.parametrize(
    ("number", "name", "options"),
    [(0, "blend", {"gain": 0.5}), pytest.param(1, "waning", {"half_life": 3}, marks=pytest.mark.full)],
)
def test_it_is_trained_with_and_its_option_counts(folder, number, name, options):
    command = commands(PAGE)[number]
    succeed(command, folder)
    config = json.loads((folder / "runs" / name / "results.json").read_text())["config"]
    assert config["consolidation"]["function"] == f"mine:{name}"
    assert config["consolidation"]["options"] == options
    synapse = np.asarray(load(folder / "runs" / name, "last")[1]["synapse"])
    assert np.abs(synapse).max() > 1e-3
    other = [*command[:-1], f"--workdir=runs/plain_{name}"]
    succeed(other, folder)
    assert np.any(np.asarray(load(folder / "runs" / f"plain_{name}", "last")[1]["synapse"]) != synapse)


def test_a_history_of_ones_own_is_gone_on_with(folder):
    """Half of the training in one process and half in another, which ends with the same bits as one."""
    command = commands(PAGE)[1]
    succeed([*command, "--workdir=whole"], folder)
    # A module that tells the process to stop once it has saved, and is the page's own when it is started again.
    (folder / "mine_again.py").write_text(
        "import signal\n"
        "from bdh_jax.runs.checkpoint import Checkpoints\n"
        "from mine import waning\n"
        "save = Checkpoints.save\n"
        "def save_and_stop(*arguments, **how):\n"
        "    save(*arguments, **how)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "Checkpoints.save = save_and_stop\n"
    )
    first = [argument.replace("mine:waning", "mine_again:waning") for argument in command]
    status, _, errors = run_text(*first, "--workdir=cut", folder=folder)
    assert status == 143, errors
    assert "saved step 10 of 20" in errors
    (folder / "mine_again.py").write_text("from mine import waning\n")
    _, errors = succeed([*first, "--workdir=cut"], folder)
    assert "resuming cut at step 10" in errors
    whole, cut = (load(folder / name, "last")[1] for name in ("whole", "cut"))
    for name in whole:
        np.testing.assert_array_equal(np.asarray(whole[name]), np.asarray(cut[name]), err_msg=name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("options.gian=0.5", "consolidation 'mine:blend' has no option 'gian'. Its options: gain"),
        ("options.gain=much", "gain='much' is a str, expected float"),
        ("function=mine:blent", "consolidation.function='mine:blent': module 'mine' has no 'blent'"),
        ("function=nothing_here:f", "there is no module 'nothing_here' on the Python path"),
    ],
)
def test_mistakes_are_one_line(folder, override, message):
    command = [*commands(PAGE)[0], "--workdir=wrong", f"--config.consolidation.{override}"]
    status, output, errors = run_text(*command, folder=folder)
    assert (status, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "consolidation.function='broken:f': module 'broken' cannot be imported: SyntaxError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0 (broken.py, line 1)"),
        ("def f(rate=1.0):\n    raise SystemExit", "cannot be called with the options {}: SystemExit (broken.py, line 2)"),
        ("def f(rate=1.0):\n    return {}['a']", "cannot be called with the options {}: KeyError: 'a' (broken.py, line 2)"),
        (
            "def f(slow, fast, activity):\n    raise SystemExit(0)",
            "the consolidation function ended the program: SystemExit: 0 (broken.py, line 2)",
        ),
        (
            "def f(slow, fast, activity):\n    return {**slow, 'synapse': slow['synapse'] + 1}",
            "asks for 'synapse' (KeyError: 'synapse' (broken.py, line 2)), and the slow weights are decoder, embed, encoder, encoder_v, "
            "lm_head; build the model with FastWeightConfig(synapse=True)",
        ),
    ],
)
def test_a_function_that_cannot_be_used_here_is_one_line_and_nothing_is_trained(folder, text, message):
    (folder / "broken.py").write_text(text)
    command = [
        "bdh_jax",
        "train",
        "--config=configs/nback.py:smoke",
        "--config.consolidation.function=broken:f",
        "--workdir=broken",
    ]
    status, output, errors = run_text(*command, folder=folder)
    assert (status, output) == (2, ""), errors
    assert message in errors
    assert "Traceback" not in errors
    assert not list((folder / "broken").glob("checkpoints/*"))
