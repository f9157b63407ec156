"""Compile cases, remember what compiled, print a table."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import pkgutil
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from benchmarks.compilers import kernels, steps, targets
from benchmarks.compilers.cases import Case
from benchmarks.compilers.targets import Target

CACHE = Path(__file__).resolve().parents[2] / ".compiled"
console = Console() if sys.stdout.isatty() else Console(width=160)
_MEMORY = ("argument", "output", "alias", "temp")
_SAYS = 300


class Outcome(NamedTuple):
    """What a compiler said of one case."""

    problem: str
    """What is wrong; empty if it did what it should."""
    figures: dict[str, float]
    """Bytes of arguments, outputs, aliases and temporaries; of a TPU flops and bytes that move."""
    cached: bool
    seconds: float


def all_cases(platform: str, *, quick: bool) -> list[Case]:
    """The cases of every module of ``benchmarks.compilers.kernels`` and, unless quick, the training steps."""
    names = sorted(module.name for module in pkgutil.iter_modules(kernels.__path__))
    found = [case for name in names for case in importlib.import_module(f"{kernels.__name__}.{name}").cases(platform)]
    return found if quick else found + steps.cases(platform)


def attempt(case: Case, lower: Callable[[], Any], versions: dict[str, Any], cache: Path | None) -> Outcome:
    """Lower and compile one case.

    Args:
      case: says what is expected.
      lower: gives what has ``as_text`` and ``compile``.
      versions: of all that the result depends on, beside the lowered text.
      cache: folder of what has compiled already, or None.
    """
    start = time.perf_counter()

    def outcome(problem: str, figures: dict[str, float] | None = None, cached: bool = False) -> Outcome:
        return Outcome(problem, figures or {}, cached, time.perf_counter() - start)

    try:
        lowered = lower()
        key = hashlib.sha256(json.dumps([versions, lowered.as_text()], sort_keys=True).encode()).hexdigest()
        entry = None if cache is None else cache / f"{key}.json"
        if entry is not None and entry.exists():
            figures, cached = json.loads(entry.read_text(encoding="utf-8")), True
        else:
            figures, cached = _figures(lowered.compile()), False
    except Exception as error:  # a compiler refuses in many ways
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return outcome("" if case.refused and re.search(case.refused, said) else said[:_SAYS])
    if entry is not None and not cached:
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(json.dumps(figures), encoding="utf-8")
    if case.refused:
        return outcome("was taken, though it exceeds the chip's memory on purpose: this compiler checks nothing")
    return outcome("", figures, cached)


def _figures(compiled: jax.stages.Compiled) -> dict[str, float]:
    memory = compiled.memory_analysis()
    figures = {name: getattr(memory, f"{name}_size_in_bytes") for name in _MEMORY}
    costs = compiled.cost_analysis() or {}
    return figures | {name: costs[key] for name, key in (("flops", "flops"), ("bytes", "bytes accessed")) if key in costs}


def mesh_of(target: Target) -> jax.sharding.Mesh:
    """One device of a target."""
    return make_mesh(MeshConfig(), list(np.ravel(targets.devices(target))))


def run(options: argparse.Namespace) -> int:
    """Compile what was asked for and print it. Returns the exit status: 1 if something is not as it should be."""
    versions = targets.versions(options.platform)
    chosen = [
        target for target in targets.TARGETS if target.platform == options.platform and (target.quick or not options.quick)
    ]
    meshes = {target: mesh_of(target) for target in chosen}
    work = [
        (target, case)
        for target in chosen
        for case in all_cases(options.platform, quick=options.quick)
        if options.only in f"{target.name} {case.name} {case.size}"
    ]
    console.print(f"{len(work)} programs, {', '.join(f'{name} {version}' for name, version in versions.items())}")
    rows = []
    for number, (target, case) in enumerate(work, start=1):

        def lower(case: Case = case, mesh: jax.sharding.Mesh = meshes[target]) -> jax.stages.Lowered:
            return case.lower(mesh)

        described = [versions, target.name, *_chip(target)]
        outcome = attempt(case, lower, described, None if options.no_cache else CACHE)
        rows.append((target, case, outcome))
        state = outcome.problem or (
            "refused, as it should be" if case.refused else "cached" if outcome.cached else "compiles"
        )
        console.print(
            f"  {number}/{len(work)} {target.name} {case.name} ({case.size}): {state} ({outcome.seconds:.0f} s)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(table(rows))
    if options.json is not None:
        write(options.json, versions, rows)
    failed = [row for row in rows if row[2].problem]
    console.print(f"{len(rows) - len(failed)} of {len(rows)} as they should be")
    return 1 if failed or not rows else 0


def _chip(target: Target) -> list[str]:
    """What a result hangs on beside versions and program: the description of a GPU."""
    return [targets.description("gpu")] if target.platform == "gpu" else [target.topology]


def table(rows: Iterable[tuple[Target, Case, Outcome]]) -> Table:
    """What compiled, in megabytes (and, of a TPU, billions of operations)."""
    found = Table(title="MB (10⁶ bytes) as compiled", title_justify="left")
    for name in ("chip", "program", "size"):
        found.add_column(name, overflow="fold")
    for name in ("arguments", "outputs", "in place", "temporaries", "GFLOP", "MB moved"):
        found.add_column(name, justify="right")
    for target, case, outcome in rows:
        if outcome.figures:
            numbers = [outcome.figures[name] / 1e6 for name in _MEMORY]
            costs = [
                f"{outcome.figures[name] / scale:.1f}" if name in outcome.figures else ""
                for name, scale in (("flops", 1e9), ("bytes", 1e6))
            ]
            found.add_row(target.name, case.name, case.size, *(f"{number:.1f}" for number in numbers), *costs)
    return found


def write(path: Path, versions: dict[str, Any], rows: Iterable[tuple[Target, Case, Outcome]]) -> None:
    """Write what compiled as JSON."""
    compiled = [
        {"chip": target.name, "program": case.name, "size": case.size, **outcome.figures}
        for target, case, outcome in rows
        if outcome.figures
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": versions, "compiled": compiled}, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {path}")
