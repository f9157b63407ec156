"""What benchmarks here share: interleaved timing, ratios of pairs, what is said of several seeds, runs in processes of their own, tables, JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import platform
import queue
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import scipy.stats
from rich.console import Console
from rich.table import Table

from bdh_jax.commands._allocator import keep_freed_memory
from bdh_jax.config.whole_files import write_whole
from bdh_jax.console import Progress

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A script finds what lies beside it, and configs/ lies here.
sys.path.insert(1, str(ROOT))
console = Console() if sys.stdout.isatty() else Console(width=132)


class Summary(NamedTuple):
    """Median and extremes of repeated measurements."""

    median: float
    low: float
    high: float

    def format(self, scale: float = 1.0, digits: int = 1) -> str:
        """``median (low–high)``, each multiplied by ``scale``."""
        return f"{self.median * scale:.{digits}f} ({self.low * scale:.{digits}f}–{self.high * scale:.{digits}f})"


def summary(values: list[float]) -> Summary:
    """Median, smallest and largest of ``values``."""
    return Summary(statistics.median(values), min(values), max(values))


def ratios(numerator: list[float], denominator: list[float]) -> Summary:
    """Summary of the ratios of measurements taken in the same round."""
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])


def interleave(calls: dict[str, Callable[[], Any]], rounds: int, title: str) -> dict[str, list[float]]:
    """Time several calls in turn, so that whatever else the machine does falls on all of them alike.

    Args:
      calls: name → function without arguments that returns arrays. Each runs once before anything is timed.
      rounds: how often each is timed; the order is reversed every other round.
      title: what the progress bar says.

    Returns:
      name → seconds of each round.
    """
    keep_freed_memory()  # as every command does; otherwise what a large buffer costs hangs on what was freed before it
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    if not console.is_terminal:
        console.print(f"{title}: {rounds} rounds of {', '.join(calls)}")
    with Progress(title, (rounds + 1) * len(calls)) as progress:
        for name, call in calls.items():
            jax.block_until_ready(call())
            progress.advance(1, f"{name} compiled" if progress.is_bar else "")
        for number in range(rounds):
            for name in list(calls) if number % 2 == 0 else list(reversed(calls)):
                start = time.perf_counter()
                jax.block_until_ready(calls[name]())
                seconds[name].append(time.perf_counter() - start)
                progress.advance()
    return seconds


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """Parser with the options all benchmarks have: ``--rounds`` and ``--json``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds; medians are taken over them")
    parser.add_argument("--json", type=pathlib.Path, metavar="PATH", help="also write the results to this file")
    return parser


def report(title: str, columns: list[str], rows: list[list[str]], note: str) -> None:
    """Print one table and a line under it."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(note)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation, which is left out of one value; nothing of none."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences and half the width of its 95 % interval, by Student's t; infinite of one difference."""
    if len(differences) < 2:
        return differences[0], math.inf
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), float(half)


def pool(jobs: int) -> ThreadPoolExecutor:
    """Threads that start processes, each on a core of its own: two on the same cores hinder each other. Where there are fewer cores than jobs,
    or only one job, and where the system cannot say, every process has all cores.

    Args:
      jobs: threads.
    """
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for core in there:
        cores.put(core)
    # The affinity is that of a thread, and a process has that of the thread that starts it.
    pin = (lambda: os.sched_setaffinity(0, {cores.get()})) if 1 < jobs <= len(there) else None
    return ThreadPoolExecutor(max(1, jobs), initializer=pin)


def apart(script: str, arguments: Sequence[str], log: pathlib.Path) -> None:
    """Run a benchmark with these arguments in a process of its own, whose messages go to a file.

    Raises:
      SystemExit: if it fails; names the file.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("w", encoding="utf-8") as file:
        command, environment = [sys.executable, script, *arguments], {**os.environ, "PYTHONPATH": path}
        status = subprocess.run(command, stdout=file, stderr=file, env=environment).returncode
    if status:
        sys.exit(f"error: a run ended with exit status {status}; {log} says why")


def kept(path: pathlib.Path, make: Callable[[], Any]) -> Any:
    """What a file beside a run holds; made and written where there is none, whole or not at all. Either way as JSON gives it.

    Args:
      path: the file. What decides its content has to be in its name or its folder's.
      make: makes the content.
    """
    if not path.exists():
        write_whole(path, json.dumps(make()) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def numbers(path: pathlib.Path | None) -> dict[str, Any]:
    """What a file of numbers has; nothing where there is none, or no path."""
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}


def command() -> str:
    """The command that runs, as it is kept beside numbers."""
    return shlex.join(["python", f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]])


def added(known: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """Rows that are known, and others, or other seeds of the same.

    Args:
      known: label → what a file of numbers says of a row: among others its "rate", its "runs" by seed and the "command" that measured it.
      rows: what is measured now. Its runs come to those that are known if they were trained at the same rate; otherwise they take their place.

    Returns:
      ``known`` with ``rows``.
    """
    both = dict(known)
    for label, row in rows.items():
        before = known.get(label)
        if row and before and "runs" in row and before["rate"] == row["rate"]:
            commands = dict.fromkeys([*before["command"].split("; "), row["command"]])
            row = {**row, "runs": dict(sorted((before["runs"] | row["runs"]).items())), "command": "; ".join(commands)}
        both[label] = row
    return both


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def write_between(path: pathlib.Path, marks: tuple[str, str], text: str) -> None:
    """Put a text between two marks of a page, in place of what stands there.

    Raises:
      SystemExit: if the page does not have both marks in this order, so that nothing else of it is lost.
    """
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        sys.exit(f"{path} has no {marks[0]!r} with {marks[1]!r} behind it, between which the tables go; add both lines")
    write_whole(path, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def write_json(path: pathlib.Path | None, results: dict[str, Any]) -> None:
    """Write results, with what they were measured on, if a path was given."""
    if path is None:
        return
    machine = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
    write_whole(path, json.dumps({"machine": machine, **results}, indent=2) + "\n")
    console.print(f"written to {path}")
