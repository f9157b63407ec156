"""The command: what it prints and how it exits, for good input and bad."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bdh_jax.commands._flags import read_config, with_flag
from bdh_jax.commands._output import save_figure
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.experiment import load_experiment
from bdh_jax.parallel.devices import check_devices
from tests.processes import ROOT, Command, run_text

SMOKE = "--config=configs/nback.py:smoke"
# Many steps of a tiny model, without pauses.
LONG = ["--config.train.steps=1000000", "--config.train.evaluate_every=1000000", "--config.train.checkpoint_every=1000000"]


def _run(*arguments: str, command: str = "train") -> tuple[int, str, str]:
    return run_text("bdh_jax", command, *arguments)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run with overrides of every kind: (workdir, arguments, its exit status, output, errors)."""
    workdir = tmp_path_factory.mktemp("smoke")
    arguments = [
        SMOKE,
        f"--workdir={workdir}",
        "--config.seeds=0,1",
        "--config.model.d_model=12",
        "--config.model.remat",
        "--config.optimizer.clip_norm=None",
        "--config.task.evaluation_sets=n2",
        "--config.train.steps=8",
        "--config.train.evaluate_every=4",
    ]
    return workdir, arguments, *_run(*arguments)


def test_a_run_prints_progress_and_a_table(smoke):
    workdir, _, status, output, errors = smoke
    assert status == 0, errors
    assert re.search(r"seed 1 step 5/8  loss \d+\.\d+  recall \d\.\d+  [\d,]+ tokens/s", errors)
    for expected in ("mean ± standard deviation", "n2", "accuracy", "credit", "credit ÷ ceiling", "seed 1:"):
        assert expected in output
    assert "orbax" not in errors.lower()
    results = json.loads((workdir / "results.json").read_text())
    assert results["config"]["model"]["d_model"] == 12
    assert results["config"]["model"]["remat"] is True
    assert results["config"]["optimizer"]["clip_norm"] is None
    assert results["config"]["task"]["evaluation_sets"] == ["n2"]
    assert results["seeds"] == [0, 1]
    assert set(results["runs"]["1"]["evaluation"]) == {"n2"}


def test_a_finished_run_prints_its_table_again(smoke):
    _, arguments, _, output, _ = smoke
    before = time.monotonic()
    status, again, _ = _run(*arguments)
    assert status == 0
    assert again == output
    assert time.monotonic() - before < 60


def test_a_folder_knows_its_experiment(smoke, tmp_path):
    """Also what is changed with it: nothing else of a finished run can be."""
    workdir, _, _, output, _ = smoke
    assert _run(f"--workdir={workdir}")[:2] == (0, output)
    status, printed, errors = _run(f"--workdir={workdir}", "--config.model.d_model=16")
    assert (status, printed) == (2, "")
    assert "model.d_model: there 12, now 16" in errors
    status, printed, errors = _run(f"--workdir={workdir / 'seed1'}", "--config.task.evaluation_sets=n4", command="evaluate")
    assert status == 0, errors
    assert "n4" in printed
    assert "n2" not in printed
    # Of seeds that are not finished nobody knows how many there are.
    shutil.copytree(workdir / "seed0", tmp_path / "seed0")
    status, printed, errors = _run(f"--workdir={tmp_path}")
    assert (status, printed) == (2, "")
    assert "holds a run over several seeds; give --config.seeds or another --workdir" in errors
    status, printed, errors = _run(f"--workdir={tmp_path}", "--config.seeds=0")
    assert status == 0, errors
    status, printed, errors = _run(f"--workdir={tmp_path / 'new'}")
    assert (status, printed) == (2, "")
    assert "--config is missing, and" in errors


def test_keys_of_an_experiment_are_shown():
    status, output, errors = _run("nback:smoke", "--config.model.d_model=12", command="config")
    assert status == 0, errors
    assert "  model.d_model = 12\n      int: at least 1, below 2**31\n      D, width" in output
    status, output, errors = _run("nback:smoke", "--json", command="config")
    assert status == 0, errors
    keys = {key["name"]: key for key in json.loads(output)}
    assert keys["task.encoding"]["value"] == "integer"
    assert keys["task.encoding"]["range"] == "'integer', 'text'"
    assert _run(command="config")[0] == 2


def test_experiments_are_listed():
    status, output, errors = _run(command="list")
    assert status == 0, errors
    assert "\nnback\n  The n-back benchmark" in output
    assert re.search(r"^    stop_gradient +no gradient", output, re.MULTILINE)


def test_a_trained_model_is_scored_on_another_task(smoke):
    workdir, *_ = smoke
    out = workdir / "scores" / "counter.json"
    arguments = (
        f"--workdir={workdir / 'seed1'}",
        "--config=configs/counter.py:smoke",
        "--config.task.evaluation_sets=vargap2,repeated8,n16",
        f"--out={out}",
    )
    status, output, errors = _run(*arguments, command="evaluate")
    assert status == 0, errors
    written = out.read_text()
    for name in ("vargap2", "repeated8", "n16", "ceiling"):
        assert name in output
        assert name in written
    assert "vargap1" not in output
    assert [row["count"] for row in json.loads(written)["rows"]] == [16] * 3
    status, output, errors = _run(*arguments, command="evaluate")
    assert (status, output) == (2, "")
    assert f"--out={out} exists; name another file" in errors
    assert out.read_text() == written
    for more, message in (
        ([arguments[1], f"--out={out}/more.json"], "counter.json is a file"),
        (["--config=configs/lifelong.py:smoke"], "the task has token ids up to 384"),
    ):
        status, output, errors = _run(arguments[0], *more, command="evaluate")
        assert (status, output) == (2, "")
        assert message in errors


def test_a_trained_model_is_scored_with_other_settings(smoke, tmp_path):
    """Of which no weight knows; any other is refused, and so is what a score does not read."""
    workdir, *_ = smoke
    flag, ratios = f"--workdir={workdir / 'seed1'}", {}
    for name, more in {"as it is": (), "off": ("--config.model.fast.learning_rate=0.0",)}.items():
        out = tmp_path / f"{name}.json"
        status, _, errors = _run(flag, "--config.train.batch_size=8", f"--out={out}", *more, command="evaluate")
        assert status == 0, errors
        written = json.loads(out.read_text())
        assert written["model"]["fast"]["learning_rate"] == (0.0 if more else 1.0)
        ratios[name] = [row["credit"] for row in written["rows"]]
    assert ratios["as it is"] != ratios["off"]
    for given, message in {
        "model.d_model=64": "the weights in .* do not fit: .*embed.* there and .* here",
        "optimizer.learning_rate=1.0": "--config.optimizer.learning_rate changes nothing of a score",
        "model.n_head=3": "n_head=3",
        "data.path=/nowhere": "--config.data.path changes nothing of a score, as the task 'nback' reads no text",
    }.items():
        status, output, errors = _run(flag, f"--config.{given}", command="evaluate")
        assert (status, output) == (2, "")
        assert re.search(message, errors), errors
    # An option that the trained model's rule does not have, of a rule that has it.
    out, rule = tmp_path / "mesa.json", ("--config.model.fast.rule=mesa", "--config.model.fast.options.ridge=0.5")
    status, _, errors = _run(flag, f"--out={out}", "--config.task.evaluation_sequences=2", *rule, command="evaluate")
    assert status == 0, errors
    assert json.loads(out.read_text())["model"]["fast"]["options"] == {"ridge": 0.5}
    other = tmp_path / "other.py"
    other.write_text(
        "import dataclasses\nfrom bdh_jax.models.latent import LatentConfig\nfrom configs.nback import get_config as nback\n"
        "def get_config(arg=''):\n    return dataclasses.replace(nback('smoke'), model=LatentConfig(vocab_size=130))\n"
    )
    status, output, errors = _run(flag, f"--config={other}", "--config.model.thinking=8", command="evaluate")
    assert (status, output) == (2, "")
    assert "--config.model.thinking: the model in" in errors
    assert "is 'bdh', which has no such setting" in errors


def test_models_are_scored_with_parts_switched_off(smoke, tmp_path):
    """Those of all seeds, with mean and spread; every score is in the file."""
    workdir, *_ = smoke
    arguments = (f"--workdir={workdir}", f"--out={tmp_path}/scores.json")
    status, output, errors = _run(*arguments, command="ablate")
    assert status == 0, errors
    assert "mean ± standard deviation of 2 models" in " ".join(output.split())
    models = json.loads((tmp_path / "scores.json").read_text())["models"]
    ratios = [models[seed]["scores"]["normal"]["n2"]["ratio"] for seed in ("seed0", "seed1")]
    assert f"{np.mean(ratios):.3f} ±{np.std(ratios, ddof=1):.3f}" in output
    own = [models[seed]["addresses"][0]["own"] for seed in ("seed0", "seed1")]
    assert f"{np.mean(own):.3f} ±{np.std(own, ddof=1):.3f}" in output
    status, output, errors = _run(*arguments, command="ablate")
    assert (status, output) == (2, "")
    assert "scores.json exists; name another file" in errors


@pytest.mark.full
def test_a_trained_model_is_scored_with_parts_switched_off(smoke):
    """On the task that it was trained on, which the folder names."""
    workdir, *_ = smoke
    status, output, errors = _run(f"--workdir={workdir / 'seed1'}", command="ablate")
    assert status == 0, errors
    for name in ("n2", "fast_read_off", "context_last_1", "its own"):
        assert name in output
    for name in ("n4", "n8"):
        assert name not in output
    assert re.search(r"1/\d+  normal n2 \d\.\d+", errors)


def test_a_folder_that_holds_no_model_exits_with_2(smoke):
    workdir, *_ = smoke
    status, output, errors = _run(f"--workdir={workdir}", "--config=configs/counter.py", command="evaluate")
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert "is a run over several seeds; load one of" in errors
    assert "Traceback" not in errors


def test_another_configuration_in_the_same_folder_exits_with_2(smoke):
    workdir, arguments, *_ = smoke
    status, _, errors = _run(*arguments, "--config.optimizer.clip_norm=0.5")
    assert status == 2
    assert "optimizer.clip_norm: there null, now 0.5" in errors
    assert "Traceback" not in errors
    assert json.loads((workdir / "results.json").read_text())["config"]["optimizer"]["clip_norm"] is None


@pytest.mark.parametrize(
    "expected",
    [
        {signal.SIGTERM: 143, signal.SIGINT: 130},
        pytest.param({signal.SIGHUP: 129, signal.SIGUSR1: 138}, marks=pytest.mark.full),
    ],
)
def test_signals_save_and_set_the_exit_status(tmp_path, expected):
    """Two of them, to two runs at once; each leaves the checkpoint it names."""
    runs = {
        number: (
            tmp_path / str(number),
            Command("bdh_jax", "train", SMOKE, f"--workdir={tmp_path / str(number)}", *LONG),
        )
        for number in expected
    }
    for number, (workdir, command) in runs.items():
        metrics = workdir / "metrics.jsonl"
        for _ in range(1200):
            if command.ended() or metrics.exists() and metrics.stat().st_size > 0:
                break
            time.sleep(0.1)
        command.send_signal(number)
    for number, (workdir, command) in runs.items():
        status, _, errors = command.wait()
        errors = errors.decode()
        assert status == expected[number], errors
        assert "Traceback" not in errors
        step = int(re.search(r"saved step (\d+) of 1000000", errors).group(1))
        assert (workdir / "checkpoints" / str(step)).is_dir()
        assert not (workdir / "results.json").exists()


BAD = {
    "misspelt key": ([SMOKE, "--config.model.d_modl=3"], ["config.model has no key 'd_modl'", "d_model", "n_neurons"]),
    "ill-typed value": ([SMOKE, "--config.model.d_model=wide"], ["config.model.d_model=wide"]),
    "indivisible width": ([SMOKE, "--config.model.n_head=3"], ["n_neurons=64", "n_head=3", "use n_neurons="]),
    "vocabulary": ([SMOKE, "--config.model.vocab_size=100"], ["model.vocab_size=100", "set model.vocab_size=130"]),
    "implementation": ([SMOKE, "--config.model.kernel=pallas"], ["pallas"]),
    "unwritable place": ([SMOKE, "--workdir=/proc/run"], ["/proc/run/run.json cannot be written: ", "; name another place"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_exits_with_2_and_one_message(tmp_path, name):
    arguments, expected = BAD[name]
    workdir = tmp_path / "run"
    status, output, errors = _run(f"--workdir={workdir}", *arguments)
    assert status == 2, errors
    assert output == ""
    assert "Traceback" not in errors
    assert errors.startswith("error: ")
    assert errors.count("error:") == 1
    for text in expected:
        assert text in errors
    assert not workdir.exists()


PATHS = {
    "train": ([SMOKE, "--workdir=gs://bucket/run"], "--workdir=gs://bucket/run is no path of this machine"),
    "sweep": ([SMOKE, "--workdir=s3://bucket/run"], "--workdir=s3://bucket/run is no path of this machine"),
    "prepare": (["--files=README.md,hdfs://name/x", "--out=new"], "--files=hdfs://name/x is no path of this machine"),
    "generate": (["--workdir=.", "--prompt=a", f"--save_state={'x' * 256}"], ": File name too long; name another place"),
    "evaluate": ([SMOKE, "--workdir=.", "--out=~nobody-of-that-name/x"], "~ no user's home"),
}


@pytest.mark.parametrize("command", PATHS)
def test_what_is_no_path_is_refused_before_the_work(command):
    arguments, message = PATHS[command]
    before = sorted(ROOT.iterdir())
    status, output, errors = _run(*arguments, command=command)
    assert (status, output) == (2, "")
    assert errors.startswith("error: --")
    assert errors.count("\n") == 1
    assert message in errors
    assert sorted(ROOT.iterdir()) == before


def test_a_string_flag_of_a_command_is_a_path_or_a_name():
    """Whoever adds one says which: names of files are read by `define_path` alone."""
    names = {"config", "prompt", "reference", "name", "split", "column", "variants", "coordinator", "mesh", "topology"}
    names |= {"licence"}
    for file in (ROOT / "bdh_jax" / "commands").glob("*.py"):
        found = set(re.findall(r'DEFINE_string\(\s*"(\w+)"', file.read_text()))
        assert found <= names, f"{file.name}: define_path, or a name that is no path"


@pytest.mark.parametrize("platform", ["nonsense", "cuda", "tpu"])
def test_devices_that_are_not_there_are_one_line(platform, monkeypatch):
    def missing():
        raise {"cuda": AssertionError()}.get(platform, RuntimeError(f"no {platform}\nmore (set JAX_PLATFORMS='')"))

    monkeypatch.setattr("jax.devices", missing)
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    reason = "its plugin or device is missing" if platform == "cuda" else f"no {platform}"
    with pytest.raises(
        ConfigError, match=rf"^JAX_PLATFORMS={platform}: .* \({reason}\); unset the variable.*=cpu"
    ) as refused:
        check_devices()
    assert "\n" not in str(refused.value)
    assert (f'".[{platform}]"' in str(refused.value)) == (platform != "nonsense")


def test_devices_are_asked_for_before_the_work(tmp_path):
    """In a process of its own: JAX reads the variable when it is imported."""
    ended = subprocess.run(
        [sys.executable, "-m", "bdh_jax", "train", SMOKE, f"--workdir={tmp_path / 'run'}"],
        env=os.environ | {"JAX_PLATFORMS": "nonsense"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: JAX_PLATFORMS=nonsense: ")
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nope.py"], "there is no file 'configs/nope.py'"),
        (["--config=configs/nback.py:foo"], "unknown variant 'foo'. Valid variants: seed25m"),
        (["--config=Makefile"], "is not a Python file"),
        (["--config.model.d_model=3"], "needs a configuration to change"),
        (["nback:smoke", SMOKE], "'nback:smoke' and --config=configs/nback.py:smoke name an experiment each"),
        (["nback:foo"], "--config=nback:foo: unknown variant 'foo'"),
        ([SMOKE, "--config.modle.d_model=3"], "config has no key 'modle'. Did you mean config.model?"),
        ([SMOKE, "--noconfig.model.rmat"], "Did you mean config.model.remat?"),
        ([SMOKE, "--config.model.d_model.x", "3"], "config.model.d_model is a single value"),
        (
            [SMOKE, "--config.task.name=counter"],
            "task.name='counter' is that of CounterConfig, and this task is a NBackConfig",
        ),
        (["-config", "configs/nback.py:bar"], "unknown variant 'bar'"),
    ],
)
def test_mistakes_on_the_command_line(monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as error:
        read_config(with_flag(["program", *arguments]))
    assert message in str(error.value)


def test_overrides_of_every_kind_reach_the_experiment(monkeypatch):
    """Before and after the file, with and without "="; the rest of the command line is left as it is."""
    monkeypatch.chdir(ROOT)
    overrides = [
        "--config.model.d_model=12",
        "--config.optimizer.clip_norm=None",
        "-config.task.mixture=n4,n2",
        "--config.seeds",
        "1,2",
    ]
    rest = ["program", "--workdir", "x", "-config", "configs/nback.py:smoke", "--overwrite"]
    arguments = [*rest[:3], "--config.model.remat", "--noconfig.model.fast.synapse", *rest[3:], *overrides]
    experiment, left = read_config(arguments)
    assert left == rest
    expected = load_experiment("configs/nback.py:smoke")
    expected = change(expected, "model", d_model=12, remat=True)
    expected = change(change(expected, "task", mixture=("n4", "n2")), "optimizer", clip_norm=None)
    assert experiment == change(expected, seeds=(1, 2))
    assert read_config(rest) == (load_experiment("configs/nback.py:smoke"), rest)


def test_the_configuration_file_is_executed_once(tmp_path):
    """Also with overrides, and what its overrides make is what is trained."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from bdh_jax.config.files import import_file\n"
        "with open('executed', 'a') as file:\n"
        "    file.write('.')\n"
        f"get_config = import_file({str(ROOT / 'configs' / 'nback.py')!r}).get_config\n"
    )
    arguments = ["--config=own.py:smoke", "--workdir=run", "--config.train.steps=3", "--config.task.evaluation_sets=n2"]
    status, _, errors = run_text("bdh_jax.main", *arguments, folder=folder)
    assert status == 0, errors
    assert (folder / "executed").read_text() == "."
    assert json.loads((folder / "run" / "results.json").read_text())["steps"] == 3


def test_help_is_of_one_command():
    status, output, errors = run_text("bdh_jax", "train", "--help")
    assert (status, errors) == (0, "")
    assert output.startswith("Train one experiment")
    assert re.findall(r"^  --(\S+):", output, re.MULTILINE) == [
        "config",
        "workdir",
        "coordinator",
        "num_processes",
        "process_id",
    ]
    status, output, errors = run_text("bdh_jax", "score-text", "--help")
    assert status == 0, errors
    assert "--context:" in output
    assert "--prompt" not in output


def test_commands_are_listed_and_misspelt_ones_named():
    status, output, _ = run_text("bdh_jax", "--help")
    assert status == 0
    files = {path.stem for path in (ROOT / "bdh_jax" / "commands").glob("[a-z]*.py")}
    assert set(re.findall(r"^  (\S+) ", output, re.MULTILINE)) == {name.replace("_", "-") for name in files}
    status, output, errors = run_text("bdh_jax", "tran")
    assert (status, output) == (2, "")
    assert "error: there is no command 'tran'. Did you mean train?" in errors


def test_a_figure_that_cannot_be_drawn_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(logging.getLogger("bdh_jax"), "propagate", True)
    save_figure(lambda: pytest.fail("it was drawn"), tmp_path / "figure.png")
    assert "figure.png is not drawn: figures need matplotlib" in caplog.text
    assert not list(tmp_path.iterdir())
