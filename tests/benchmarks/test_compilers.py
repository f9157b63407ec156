"""What turns ``make compile-tpu`` and ``make compile-gpu`` red, without a compiler: each program lowers, and a refusal is noticed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from benchmarks.compilers import run, targets
from benchmarks.compilers.cases import Case

ROOT = Path(__file__).parents[2]
TARGET = targets.TARGETS[0]


class Program:
    """Something that was lowered, and what a compiler says of it."""

    def __init__(self, problem: str = "", text: str = "program"):
        self.problem, self.text, self.compiled = problem, text, 0

    def as_text(self) -> str:
        return self.text

    def compile(self) -> Any:
        self.compiled += 1
        if self.problem:
            raise RuntimeError(self.problem)
        memory = SimpleNamespace(**{f"{name}_size_in_bytes": number for number, name in enumerate(run._MEMORY)})
        return SimpleNamespace(memory_analysis=lambda: memory, cost_analysis=lambda: {"flops": 7.0, "bytes accessed": 8.0})


def _case(program: Program, refused: str = "") -> Case:
    return Case("kernel", "small", lambda mesh: program, refused)


def _attempt(case: Case, cache: Path | None = None, versions: dict[str, Any] | None = None) -> run.Outcome:
    return run.attempt(case, lambda: case.lower(None), versions or {}, cache)


def test_what_compiles_gives_its_figures():
    outcome = _attempt(_case(Program()))
    assert (outcome.problem, outcome.cached) == ("", False)
    assert outcome.figures == {"argument": 0, "output": 1, "alias": 2, "temp": 3, "flops": 7.0, "bytes": 8.0}


def test_a_refusal_is_a_problem_and_so_is_a_compiler_that_takes_what_exceeds_the_chip():
    assert "RESOURCE_EXHAUSTED: vmem" in _attempt(_case(Program("RESOURCE_EXHAUSTED: vmem"))).problem
    assert _attempt(_case(Program("RESOURCE_EXHAUSTED: vmem"), refused="vmem")).problem == ""
    assert "checks nothing" in _attempt(_case(Program(), refused="vmem")).problem
    assert "no such name" in _attempt(_case(Program("no such name"), refused="vmem")).problem


def test_what_has_compiled_is_not_compiled_again_until_program_or_version_change(tmp_path):
    program = Program()
    first = _attempt(_case(program), tmp_path)
    again = _attempt(_case(program), tmp_path)
    assert (first.cached, again.cached, program.compiled) == (False, True, 1)
    assert again.figures == first.figures
    assert not _attempt(_case(program), tmp_path, {"jax": "2"}).cached
    assert not _attempt(_case(Program(text="another")), tmp_path).cached


def test_refusals_are_not_remembered(tmp_path):
    _attempt(_case(Program("vmem")), tmp_path)
    assert "vmem" in _attempt(_case(Program("vmem")), tmp_path).problem
    assert _attempt(_case(Program()), tmp_path).problem == ""


@pytest.mark.parametrize(
    ("programs", "status"), [((Program(),), 0), ((Program(), Program("RESOURCE_EXHAUSTED: vmem")), 1), ((), 1)]
)
def test_the_exit_status(monkeypatch, tmp_path, programs, status):
    monkeypatch.setattr(run, "all_cases", lambda platform, quick: [_case(program) for program in programs])
    monkeypatch.setattr(run, "mesh_of", lambda target: None)
    options = argparse.Namespace(platform="tpu", quick=True, only="", json=tmp_path / "found.json", no_cache=True)
    assert run.run(options) == status
    compiled = json.loads((tmp_path / "found.json").read_text())["compiled"]
    assert len(compiled) == sum(not program.problem for program in programs)


@pytest.mark.parametrize(("platform", "imported"), [("tpu", "pallas import tpu"), ("gpu", "kernels.mosaic_gpu import")])
def test_every_kernel_of_the_package_is_compiled_in_odd_and_published_sizes(platform, imported):
    cases = run.all_cases(platform, quick=True)
    files = (ROOT / "bdh_jax" / "kernels").glob("*/*.py")
    names = {path.parent.name for path in files if imported in path.read_text(encoding="utf-8")}
    assert names
    for name in names:
        sizes = [case.size for case in cases if case.name.startswith(name) and not case.refused]
        assert any("odd" in size for size in sizes), name
        assert any("published" in size for size in sizes), name
    assert len({(case.name, case.size) for case in cases}) == len(cases)
    assert any(case.refused for case in cases)


def test_training_steps_of_every_named_configuration_lower():
    mesh = jax.sharding.Mesh([[[[jax.devices()[0]]]]], ("data", "sequence", "heads", "neurons"))
    case = next(case for case in run.steps.cases("tpu") if "nback" in case.name)
    assert "B 32, T 66" in case.size
    assert "stablehlo" in case.lower(mesh).as_text()


@pytest.mark.skipif(not targets.missing("tpu"), reason="this environment has libtpu")
def test_an_environment_without_the_compiler_says_how_to_get_one():
    command = [sys.executable, "-m", "benchmarks.compilers", "tpu"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "libtpu not installed; run make compile-tpu\n"
