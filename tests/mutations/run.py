"""Break the code on purpose and see whether the tests notice: ``make mutate``.

Every ``*.patch`` beside this file is one fault, as a unified diff under two lines of its own:

    Fault: what is broken
    Tests: arguments for pytest that select tests which should notice

Each is applied to a temporary copy of the working tree, where the selected tests must then fail. The same tests must pass in
an unchanged copy, so that a red suite cannot count as noticing. Exit status 1 if a fault survives, does not apply, or its tests
cannot be run or do not pass without it.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
NOT_COPIED = (".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")
NOT_COPIED_FROM_ROOT = ("runs", "build")  # what was trained and built; packages and tests may have folders of the same name
TESTS_FAILED = 1  # pytest's exit statuses: 0 all passed, 1 some failed, 2 to 5 nothing was found out


class Fault(NamedTuple):
    """One patch."""

    path: Path
    description: str
    tests: tuple[str, ...]


class Outcome(NamedTuple):
    """What became of one patch: whether it was noticed, by which test or why not, and in how many seconds."""

    noticed: bool
    by: str
    seconds: float


def read(path: Path) -> Fault:
    """Read a patch.

    Raises:
      ValueError: if one of its two lines is missing.
    """
    header = path.read_text(encoding="utf-8").partition("\n--- ")[0]
    fields = dict(re.findall(r"^(Fault|Tests): (.+)$", header, flags=re.MULTILINE))
    if fields.keys() != {"Fault", "Tests"}:
        raise ValueError(f"{path.name} must begin with a line 'Fault: ...' and a line 'Tests: ...'")
    return Fault(path, fields["Fault"], tuple(shlex.split(fields["Tests"])))


def all_faults() -> list[Fault]:
    """All patches, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def apply(patch: Path, tree: Path, *, check_only: bool = False) -> str:
    """Apply a patch to a tree. Returns what went wrong, or nothing."""
    command = ["git", "apply", *(["--check"] if check_only else []), str(patch)]
    # A tree inside some other repository would have its paths looked up there.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False).stderr.strip()


def run_tests(source: Path, tests: tuple[str, ...], patch: Path | None) -> tuple[int, str]:
    """Run tests in a copy of ``source``, with a patch or as it is. Returns pytest's exit status and output."""
    with tempfile.TemporaryDirectory(prefix="bdh_jax-mutation-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(source, tree)
        if patch is not None:
            problem = apply(patch, tree)
            if problem:
                return -1, f"does not apply: {problem}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(tree),  # before the installed package, which is the working tree itself
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-c", "import bdh_jax; print(bdh_jax.__file__)"]
        imported = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if imported.returncode == 0 and not Path(imported.stdout.strip()).is_relative_to(tree.resolve()):
            return -1, f"the tests would import {imported.stdout.strip()}, not the copy"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


def try_fault(source: Path, fault: Fault, whole: bool) -> Outcome:
    """Apply one fault and run its tests, or all of them."""
    start = time.monotonic()
    status, output = run_tests(source, () if whole else fault.tests, fault.path)
    failed = re.search(r"^FAILED (\S.*?)(?: - .*)?$", output, flags=re.MULTILINE)
    if status == TESTS_FAILED and failed:
        by, noticed = failed[1], True
    elif status == 0:
        by, noticed = "SURVIVED", False
    else:
        by, noticed = f"NOT TESTED: {_last_line(output)} (status {status})", False
    return Outcome(noticed, by, time.monotonic() - start)


def left_out(folder: str, names: list[str]) -> set[str]:
    """What of a folder does not belong to the copy, as ``shutil.copytree`` asks for it."""
    patterns = (*NOT_COPIED, *NOT_COPIED_FROM_ROOT) if Path(folder) == ROOT else NOT_COPIED
    return set(shutil.ignore_patterns(*patterns)(folder, names))


def passes_unchanged(source: Path, tests: tuple[str, ...]) -> str:
    """Whether tests pass without a fault. Returns what went wrong, or nothing."""
    status, output = run_tests(source, tests, None)
    if status == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (.*)$", output, flags=re.MULTILINE)
    return failed[1] if failed else _last_line(output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="patches to try, without .patch; all by default")
    parser.add_argument("--whole", action="store_true", help="run the whole suite on each instead of the selected tests")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="how many to run side by side")
    arguments = parser.parse_args()
    faults = all_faults()
    unknown = set(arguments.names) - {fault.path.stem for fault in faults}
    if unknown:
        parser.error(f"no such patch: {', '.join(sorted(unknown))}; there are {', '.join(f.path.stem for f in faults)}")
    faults = [fault for fault in faults if not arguments.names or fault.path.stem in arguments.names]

    console, start = Console(), time.monotonic()
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    selections = [()] if arguments.whole else list(dict.fromkeys(fault.tests for fault in faults))
    red, outcomes = {}, {}
    with tempfile.TemporaryDirectory(prefix="bdh_jax-mutation-") as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        source = Path(folder) / "source"  # what is edited meanwhile stays out
        shutil.copytree(ROOT, source, ignore=left_out)
        say(f"{len(faults)} faults; first their tests without them, {len(selections)} selections")
        running = {pool.submit(passes_unchanged, source, tests): tests for tests in selections}
        for number, future in enumerate(as_completed(running), start=1):
            tests, problem = running[future], future.result()
            if problem:
                red[tests] = problem
            say(f"  {number}/{len(selections)} {'RED' if problem else 'green'}: {shlex.join(tests)} {problem}")
        running = {pool.submit(try_fault, source, fault, arguments.whole): fault for fault in faults}
        for number, future in enumerate(as_completed(running), start=1):
            fault, outcome = running[future], future.result()
            outcomes[fault] = outcome
            say(f"  {number}/{len(faults)} {fault.path.stem}: {outcome.by} ({outcome.seconds:.0f} s)")

    table = Table(box=box.SIMPLE_HEAD, title=f"{time.monotonic() - start:.0f} s in all")
    table.add_column("fault", overflow="fold", ratio=2)
    table.add_column("noticed by", overflow="fold", ratio=3)
    table.add_column("seconds", justify="right")
    for fault in faults:
        outcome = outcomes[fault]
        table.add_row(fault.description, escape(outcome.by), f"{outcome.seconds:.0f}")
    console.print(table)
    missed = [fault.path.stem for fault in faults if not outcomes[fault].noticed]
    for tests, problem in red.items():
        say(f"red without any fault: {shlex.join(tests)}: {problem}")
    if missed:
        say(f"not noticed: {', '.join(missed)}")
    return 1 if missed or red else 0


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else "no output"


if __name__ == "__main__":
    sys.exit(main())
