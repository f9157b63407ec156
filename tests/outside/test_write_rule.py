"""A write rule from outside the package, as docs/how-to/write_rule.md shows it: held to the whole contract, trained, interrupted, gone on
with, and refused by the forms it does not have."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig, load
from tests.compiled import apply, init
from tests.pages import ROOT, commands, import_module, write_files
from tests.processes import run_text

PAGE = "docs/how-to/write_rule.md"
import_module(PAGE, "usage")
_checked = import_module(PAGE, "test_usage")

test_contract = _checked.test_usage
test_refusals_of_the_contract = _checked.test_usage_is_refused_where_it_has_no_form


def config(**settings):
    fast = FastWeightConfig(rule="usage:RULE", options={"forget": 2.0})
    return BDHConfig(vocab_size=11, n_layer=2, d_model=8, n_head=2, n_neurons=16, dropout=0.0, fast=fast, **settings)


@pytest.mark.parametrize(
    "setting",
    [
        {"implementation": "chunked"},
        {"implementation": "parallel"},
        {"kernel": "pallas_interpret"},
        {"kernel": "pallas"},
    ],
    ids=lambda setting: "".join(setting.values()),
)
def test_what_it_has_no_form_for_names_it(setting):
    with pytest.raises(ConfigError, match=r"fast\.rule='usage:RULE'.*token by token"):
        jax.eval_shape(BDH(config(**setting)).init_slow, jax.random.key(0))


def test_rows_that_were_read_lately_forget_more():
    """One row is read and another is not: only what the first holds gets less, and only from the next token on."""
    model = BDH(config())
    slow = init(model, 0)
    tokens = np.arange(6, dtype=np.int32)[None]
    final = apply(model, slow, tokens).fast.layers[0].memory.written
    assert type(final).__name__ == "UsageState"
    assert final.usage.shape == (1, 2, 8)
    assert final.usage.max() > 0.5
    hebbian = dataclasses.replace(config(), fast=FastWeightConfig())
    plain = apply(BDH(hebbian), slow, tokens).fast.layers[0].memory.written
    assert np.linalg.norm(final.S) < 0.8 * np.linalg.norm(plain.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the files of the page, and the configurations of a checkout."""
    folder = tmp_path_factory.mktemp("usage")
    assert write_files(PAGE, folder) == ["usage.py", "test_usage.py"]
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """The folder after the page's command."""
    (command,) = commands(PAGE)
    status, _, errors = run_text(*command, folder=folder)
    assert status == 0, errors
    return folder, command


def test_it_is_trained_with_and_its_option_counts(trained):
    folder, command = trained
    config = json.loads((folder / "runs" / "usage" / "results.json").read_text())["config"]
    assert config["model"]["fast"]["rule"] == "usage:RULE"
    assert config["model"]["fast"]["options"] == {"forget": 0.5}
    encoder = np.asarray(load(folder / "runs" / "usage", "last")[1]["encoder"])
    status, _, errors = run_text(*command[:-1], "--workdir=runs/other", folder=folder)
    assert status == 0, errors
    assert np.any(np.asarray(load(folder / "runs" / "other", "last")[1]["encoder"]) != encoder)


def test_a_run_that_was_interrupted_ends_with_the_same_bits(trained, monkeypatch):
    folder, command = trained
    monkeypatch.syspath_prepend(folder)  # the record of the run names a module that lies there
    # A module that tells the process to stop once it has saved, and is the page's own when it is started again.
    (folder / "usage_again.py").write_text(
        "import signal\n"
        "from bdh_jax.runs.checkpoint import Checkpoints\n"
        "from usage import RULE\n"
        "save = Checkpoints.save\n"
        "def save_and_stop(*arguments, **how):\n"
        "    save(*arguments, **how)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "Checkpoints.save = save_and_stop\n"
    )
    command = [argument.replace("usage:RULE", "usage_again:RULE") for argument in command]
    status, _, errors = run_text(*command, "--workdir=cut", folder=folder)
    assert status == 143, errors
    assert "saved step 10 of 20" in errors
    (folder / "usage_again.py").write_text("from usage import RULE\n")
    status, _, errors = run_text(*command, "--workdir=cut", folder=folder)
    assert status == 0, errors
    assert "resuming cut at step 10" in errors
    whole, cut = (load(folder / name, "last")[1] for name in ("runs/usage", "cut"))
    assert whole.keys() == cut.keys()
    for name in whole:
        np.testing.assert_array_equal(np.asarray(whole[name]), np.asarray(cut[name]), err_msg=name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fast.options.forgte=0.5", "fast.rule='usage:RULE' has no option 'forgte'. Its options: forget, fade"),
        ("fast.options.fade=1.5", "fast.options: fade=1.5 must lie in [0, 1)"),
        ("implementation=chunked", "implementation='chunked' cannot run fast.rule='usage:RULE'"),
        ("fast.rule=usage:write", "is no write rule: make a bdh_jax.fast_weights.rules.base.Rule of it"),
        ("fast.rule=usage:RULES", "fast.rule='usage:RULES': module 'usage' has no 'RULES'"),
    ],
)
def test_mistakes_are_one_line(folder, override, message):
    (command,) = commands(PAGE)
    status, output, errors = run_text(*command, "--workdir=wrong", f"--config.model.{override}", folder=folder)
    assert (status, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
    assert not (folder / "wrong").exists()
