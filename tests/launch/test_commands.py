"""The command of every file in launch/, as it stands there, in local processes: only what is not here is replaced.

The cluster's own programs (srun, gcloud) are small ones that start the processes as theirs do; the experiment is one that ends within
seconds, and the folder one of the test's.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
STEPS = 4
SMALL = [f"--config.train.{key}={STEPS}" for key in ("steps", "evaluate_every", "checkpoint_every")] + [
    "--config.model.n_layer=1"
]
FIRST_PORT = 61440  # JAX takes the port of the first process from the number of the Slurm job
FOUR_DEVICES = "--xla_force_host_platform_device_count=4"

STARTER = """\
#!{python}
# Starts a command in two processes that find each other as under Slurm, and ends as the first that fails.
import os, subprocess, sys
arguments = sys.argv[1:]
{find}
common = {{**os.environ, "SLURM_JOB_ID": {job!r}, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}}
started = [subprocess.Popen(command, env={{**common, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}}) for i in range(2)]
sys.exit(max(process.wait() for process in started))
"""
FIND = {
    "srun": "command = [a for a in arguments if not a.startswith('--k') and not a.startswith('--container') and a != '--no-container-entrypoint']",
    "gcloud": "command = ['bash', '-c', arguments[arguments.index('--command') + 1]]",
}


def _port() -> int:
    """One that is free, and that a Slurm job's number can name."""
    for number in np.random.default_rng().permutation(4096):
        with socket.socket() as free:
            try:
                free.bind(("localhost", FIRST_PORT + int(number)))
            except OSError:
                continue
            return FIRST_PORT + int(number)
    raise RuntimeError("no port is free")


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Of a machine that has the package and the cluster's programs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, find in FIND.items():
        text = STARTER.format(python=sys.executable, find=find, job=str(_port() - FIRST_PORT))
        (tools / name).write_text(text)
    for name in ("python", "python3"):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for path in tools.iterdir():
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SKYPILOT_"))}
    kept |= {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return kept | {"PYTHONPATH": str(ROOT)}


def _local(arguments: list[str], folder: Path, port: int | None = None) -> list[str]:
    """The arguments with what is not here replaced: the experiment by a small one, the folder, and the host of process 0."""
    assert any("seed25m" in argument for argument in arguments), arguments
    found = [argument.replace("nback:seed25m", "nback:smoke").replace("/runs/", f"{folder}/") for argument in arguments]
    if port is not None:
        found = [re.sub(r"(--coordinator=).*", rf"\1localhost:{port}", argument) for argument in found]
    return found + SMALL


def _together(commands: list[list[str]], environment: dict[str, str]) -> None:
    """Run commands at once; all of them end well."""
    started = [
        subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    ends = [(process.communicate(timeout=300)[0], process.returncode) for process in started]
    assert [status for _, status in ends] == [0] * len(ends), ends


def _finished(folder: Path, processes: int) -> None:
    """A run ended there, at its last step, of so many processes."""
    assert (folder / "results.json").exists()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(STEPS)]
    (start,) = json.loads((folder / "run.json").read_text())["starts"]
    assert start["processes"] == processes


@pytest.mark.parametrize("kind", [pytest.param("tpu", marks=pytest.mark.full), "gpu"])
def test_the_hosts_of_a_jobset_find_each_other_and_train(kind, tmp_path, environment):
    (job,) = yaml.safe_load((LAUNCH / f"jobset_{kind}.yaml").read_text())["spec"]["replicatedJobs"]
    hosts = job["template"]["spec"]["completions"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    arguments = _local(container["args"], tmp_path, _port())
    commands = [
        [sys.executable, "-m", "bdh_jax", *(argument.replace("$(PROCESS_ID)", str(rank)) for argument in arguments)]
        for rank in range(hosts)
    ]
    _together(commands, environment)
    _finished(tmp_path / "nback", hosts)


def test_a_container_of_one_machine_trains(tmp_path, environment):
    command = yaml.safe_load((LAUNCH / "compose.yaml").read_text())["services"]["train"]["command"]
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)[1])
    _together([[*entry, *_local(command, tmp_path)]], {**environment, "XLA_FLAGS": FOUR_DEVICES})
    _finished(tmp_path / "nback", 1)


def test_an_image_without_a_command_lists_experiments(environment):
    text = (LAUNCH / "Dockerfile").read_text()
    entry, command = (json.loads(re.search(rf"^{word} (.*)$", text, re.MULTILINE)[1]) for word in ("ENTRYPOINT", "CMD"))
    found = subprocess.run([*entry, *command], env=environment, cwd=ROOT, text=True, capture_output=True)
    assert found.returncode == 0, found.stderr
    assert "nback" in found.stdout


@pytest.mark.parametrize(
    "image",
    [pytest.param("", id="environment"), pytest.param("registry#bdh_jax:cuda", id="container", marks=pytest.mark.full)],
)
def test_a_slurm_job_trains(image, tmp_path, environment):
    arguments = _local(["nback:seed25m", "--workdir=/runs/nback"], tmp_path)
    _together([["bash", str(LAUNCH / "slurm.sbatch"), *arguments]], {**environment, "IMAGE": image})
    _finished(tmp_path / "nback", 2)


@pytest.mark.full
def test_every_host_of_a_tpu_slice_trains(tmp_path, environment):
    arguments = _local(["nback:seed25m", "--workdir=/runs/nback"], tmp_path)
    named = {**environment, "TPU": "slice", "ZONE": "zone"}
    _together([["bash", str(LAUNCH / "cloud_tpu.sh"), "train", *arguments]], named)
    _finished(tmp_path / "nback", 2)


def test_what_a_tpu_slice_cannot_do_is_refused(environment):
    script = str(LAUNCH / "cloud_tpu.sh")
    for named, arguments, said in (
        ({}, ["train"], "name of the TPU slice"),
        ({"TPU": "s", "ZONE": "z"}, ["fly"], "fly: unknown"),
    ):
        found = subprocess.run(["bash", script, *arguments], env={**environment, **named}, text=True, capture_output=True)
        assert found.returncode != 0
        assert said in found.stderr


@pytest.mark.full
def test_the_machines_of_skypilot_train(tmp_path, environment):
    nodes = 2
    script = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"]
    port = _port()
    assert script.count("8476") == 1
    script = " ".join(_local([script.rstrip().replace("8476", str(port))], tmp_path))
    of_each = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_NUM_NODES": str(nodes)}
    started = [
        subprocess.Popen(
            ["bash", "-c", script],
            env={**environment, **of_each, "SKYPILOT_NODE_RANK": str(rank)},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(nodes)
    ]
    ends = [(process.communicate(timeout=300)[0], process.returncode) for process in started]
    assert [status for _, status in ends] == [0] * nodes, ends
    _finished(tmp_path / "nback", nodes)
