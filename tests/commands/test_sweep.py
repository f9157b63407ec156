"""The command that sweeps: how its flags are read, what it refuses, and how it ends."""

from __future__ import annotations

import signal
import time

import pytest

from bdh_jax.commands._flags import ConfigFlag, read_config, read_values
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.experiment import load_experiment
from tests.processes import Command, run_text

RATE = "optimizer.learning_rate"


@pytest.fixture(scope="module")
def smoke():
    return load_experiment("nback:smoke")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer.learning_rate=1e-3,2,4E-3", (1e-3, 2.0, 4e-3)),
        ("optimizer.clip_norm=None,1", (None, 1.0)),
        ("model.fast.rule=hebbian,delta", ("hebbian", "delta")),
        ("model.n_layer=1,2", (1, 2)),
        ("model.remat=True,False", (True, False)),
        ("task.train_pairs=(4,8),(16,),32", ((4, 8), (16,), (32,))),
        ("task.evaluation_sets=(n2,n8),n4,('n2',)", (("n2", "n8"), ("n4",), ("n2",))),
        ("consolidation.options.rate=0.1,2", (0.1, 2)),
        ("consolidation.options.layers=(0,1),None", ((0, 1), None)),
    ],
)
def test_values_are_those_of_an_override(smoke, text, values):
    key, _, written = text.partition("=")
    ((read, found),) = read_values(smoke, "grid", [text]).items()
    assert read == key
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]
    if "(" not in written and "options" not in key:
        for one, value in zip(written.split(","), found, strict=True):
            config, _ = read_config(["bdh", "--config=nback:smoke", f"--config.{key}={one}"])
            path, _, name = key.rpartition(".")
            assert config == change(smoke, path, **{name: value})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ["optimizer.learning_rat=1"],
            r"--grid=optimizer\.learning_rat: config\.optimizer has no key.*Did you mean.*learning_rate",
        ),
        (["optimizer.learning_rate=1e-3,fast"], r"--grid=optimizer\.learning_rate=fast: .*'fast'"),
        (["optimizer=1"], r"--grid=optimizer: config\.optimizer has keys of its own"),
        (["consolidation.options=1"], r"--grid=consolidation\.options: config\.consolidation\.options has keys of its own"),
        (["optimizer.learning_rate.x=1"], r"config\.optimizer\.learning_rate is a single value"),
        (["optimizer.learning_rate"], r"--grid=optimizer\.learning_rate must be KEY=VALUE,VALUE,…, such as"),
        (["optimizer.learning_rate="], "must be KEY=VALUE,VALUE,…, such as"),
        (["optimizer.learning_rate=1,,2"], "a value is empty"),
        (["task.train_pairs=(4,8"], "a parenthesis is not closed"),
        (["model.n_layer=1", "model.n_layer=2"], r"--grid names model\.n_layer twice"),
    ],
)
def test_what_is_no_list_of_values_is_named(smoke, texts, message):
    with pytest.raises(ConfigError, match=message):
        read_values(smoke, "grid", texts)


@pytest.mark.parametrize("named", [["--config=nback:smoke"], ["--config", "nback:smoke"]])
def test_variants_come_beside_those_of_the_experiment_and_keep_its_overrides(named):
    flag = ConfigFlag(None, ("bdh", *named, "--config.model.d_model=8", "--workdir=x"))
    expected = change(load_experiment("nback:smoke,stop_gradient"), "model", d_model=8)
    assert flag.with_variants("stop_gradient") == expected
    assert flag.with_variants("") == change(load_experiment("nback:smoke"), "model", d_model=8)
    assert flag.keys == ("model.d_model",)
    with pytest.raises(ConfigError, match="--config=nback:smoke,baselin: unknown variant 'baselin'"):
        flag.with_variants("baselin")
    with pytest.raises(ConfigError, match="--config is missing"):
        ConfigFlag(None, ("bdh", "--workdir=x")).with_variants("baseline")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["nback:smoke"], "--workdir is missing"),
        (["nback:smoke", "--workdir=OUT", "--variants=:;"], "--variants=:; names : twice"),
        (
            ["nback:smoke", "--workdir=OUT", f"--grid={RATE}=1e-3", f"--config.{RATE}=2e-3"],
            f"--config.{RATE} and --grid={RATE} both set {RATE}; leave out one of them",
        ),
        (["nback:smoke", "--workdir=OUT", "--seeds=1,x"], "--seeds=1,x must be numbers with commas between them"),
        (["nback:smoke", "--workdir=OUT", "--rows=model.n_head=1,3"], "row n_head=3: config.model"),
    ],
)
def test_mistakes_are_one_message(tmp_path, arguments, message):
    status, output, errors = run_text("bdh_jax", "sweep", *(a.replace("OUT", str(tmp_path / "new")) for a in arguments))
    assert (status, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_signal_saves_the_run_and_the_same_command_goes_on(tmp_path):
    arguments = ["nback:smoke", f"--workdir={tmp_path / 'sweep'}", f"--grid={RATE}=1e-3,2e-3", "--config.train.log_every=1"]
    arguments += [f"--config.train.{key}=1000000" for key in ("steps", "evaluate_every", "checkpoint_every")]
    command = Command("bdh_jax", "sweep", *arguments)
    while not command.ended() and b" step 2/" not in command.errors():
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    status, output, errors = command.wait()
    assert (status, output) == (143, b""), errors.decode()
    assert b"1 row \xc3\x97 2 grid points, then 1 row \xc3\x97 3 seeds = 5 runs; finished already: 0" in errors
    assert b"run 1 of 5: default, learning_rate=0.001, seed 100" in errors
    last = errors.decode().strip().split("\n")[-1]
    assert last.startswith("error: SIGTERM: saved step ")
    assert last.endswith("default/learning_rate=0.001; the same command goes on there")
