"""A run that is killed, stopped, starved and damaged again and again ends as if nothing had been: ``make test-faults``.

    python -m tests.faults.kills --kills=52 --write docs/reliability.md

One small run on text, with fast weights, consolidation and an optimiser, is started; after a random while something happens to it; the same
command is given again; and so on. After each: it ended with the status that it should, went on from a step at most one interval between
checkpoints before the last that it had reached, and metrics.jsonl has every step once. At the end: the slow weights are those of a run that
nobody disturbed, to the bit, and so are its metrics.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bdh_jax.experiment import load
from bdh_jax.runs.reporter import read_rows
from tests.processes import Command

INTERVAL = 10
STEPS_A_FAULT = 120
UNTIL_END = 10**9
START, END = "<!-- made by tests.faults.kills -->", "<!-- end of kills -->"


class Found(NamedTuple):
    """What one fault did."""

    kind: str
    status: int
    repeated: int
    """Steps that were computed again after it."""


class Fault(NamedTuple):
    """Something that happens to a run."""

    what: str
    happen: Callable[[Command, Path, random.Random], None]
    """(command, workdir, random numbers): it is done to a run that is under way, which then ends."""
    statuses: tuple[int, ...]
    """With one of which it ends."""
    wrong: str = "nothing"
    """What is wrong with the process from its start (tests.faults.child)."""
    most: int = INTERVAL
    """Steps that may be computed again."""
    said: str = ""
    """What is in its last line."""
    flags: tuple[str, ...] = ()
    """Given to the command as well."""


def _kill(command: Command, workdir: Path, moments: random.Random) -> None:
    time.sleep(moments.random() * 0.2)
    command.send_signal(signal.SIGKILL)


def _until_ended(command: Command) -> None:
    while not command.ended():
        time.sleep(0.01)


def _kill_in_save(command: Command, workdir: Path, moments: random.Random) -> None:
    """As soon as there is something among the checkpoints that is none yet."""
    while not command.ended() and all(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*")):
        time.sleep(0.0005)
    time.sleep(moments.random() * 0.02)
    command.send_signal(signal.SIGKILL)


def _tell(number: int) -> Callable[[Command, Path, random.Random], None]:
    return lambda command, workdir, moments: command.send_signal(number)


def _pause_and_tell(command: Command, workdir: Path, moments: random.Random) -> None:
    command.send_signal(signal.SIGSTOP)
    time.sleep(1)
    command.send_signal(signal.SIGCONT)
    time.sleep(moments.random() * 0.2)
    command.send_signal(signal.SIGTERM)


def _fill_disk(command: Command, workdir: Path, moments: random.Random) -> None:
    """No file may become larger than so many bytes: to who writes it that is a disk that is full. Messages have room for a few more."""
    limit = len(command.errors()) + 4000
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (limit, limit))


def _second_writer(command: Command, workdir: Path, moments: random.Random) -> None:
    status, _, errors = _start(workdir, workdir.parent / "text.txt", "impatient", command.steps).wait()
    assert status == 2, errors.decode()
    assert b"is in use" in errors, errors.decode()
    _kill(command, workdir, moments)


def _flip(command: Command, workdir: Path, moments: random.Random) -> None:
    """Killed, and of its newest checkpoint a bit is another one."""
    _kill(command, workdir, moments)
    _until_ended(command)
    files = _files_of_newest(workdir)
    path = moments.choice([path for path in files if "slow" in path.parts and path.stat().st_size > 100])
    content = bytearray(path.read_bytes())
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    path.write_bytes(content)


def _cut(command: Command, workdir: Path, moments: random.Random) -> None:
    """Killed, and of its newest checkpoint a file is too short."""
    _kill(command, workdir, moments)
    _until_ended(command)
    path = moments.choice([path for path in _files_of_newest(workdir) if path.stat().st_size > 1])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _files_of_newest(workdir: Path) -> list[Path]:
    newest = max(
        (path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()), key=lambda path: int(path.name)
    )
    return [path for path in newest.rglob("*") if path.is_file()]


def _wait(command: Command, workdir: Path, moments: random.Random) -> None:
    """It ends by itself."""


KILLED = (-signal.SIGKILL,)
FAULTS = {
    "kill": Fault("SIGKILL at a random moment", _kill, KILLED),
    "kill in a save": Fault("SIGKILL while a checkpoint is written", _kill_in_save, KILLED),
    "kill in the background": Fault(
        "SIGKILL while one is written in the background",
        _kill_in_save,
        KILLED,
        most=2 * INTERVAL,
        flags=("--config.train.save=background",),
    ),
    "SIGTERM": Fault("told to end", _tell(signal.SIGTERM), (143,), most=0),
    "Ctrl-C": Fault("SIGINT", _tell(signal.SIGINT), (130,), most=0),
    "SIGUSR1": Fault("a notice before the time is over", _tell(signal.SIGUSR1), (138,), most=0),
    "paused": Fault("SIGSTOP, SIGCONT after a second, then SIGTERM", _pause_and_tell, (143,), most=0),
    "full disk": Fault("no file may grow any more", _fill_disk, (2,), said="error: "),
    "read-only": Fault("a folder that may not be written to", _wait, (2,), wrong="readonly", said="error: "),
    "clock": Fault("a clock that jumps by days, then SIGKILL", _kill, KILLED, wrong="clock"),
    "two writers": Fault("a second process on the same folder, then SIGKILL", _second_writer, KILLED),
    "flipped bit": Fault("SIGKILL, and a bit of the newest checkpoint is flipped", _flip, KILLED, most=2 * INTERVAL),
    "cut file": Fault("SIGKILL, and a file of the newest checkpoint is cut in half", _cut, KILLED, most=2 * INTERVAL),
}


class _Run(Command):
    steps: int


def _start(workdir: Path, text: Path, wrong: str, steps: int, flags: Sequence[str] = ()) -> Command:
    command = _Run(
        "tests.faults.child",
        wrong,
        "train",
        "text:fast_topk,smoke",
        f"--workdir={workdir}",
        f"--config.data.path={text}",
        f"--config.train.steps={steps}",
        f"--config.train.checkpoint_every={INTERVAL}",
        f"--config.train.evaluate_every={3 * INTERVAL}",
        "--config.train.log_every=1",
        "--config.consolidation.every=7",
        *flags,
    )
    command.steps = steps
    return command


def _reached(workdir: Path) -> int:
    rows = read_rows(workdir / "metrics.jsonl", until=UNTIL_END) if (workdir / "metrics.jsonl").exists() else []
    return rows[-1]["step"] if rows else 0


def _starts(workdir: Path) -> list[int]:
    run = workdir / "run.json"
    return [start["step"] for start in json.loads(run.read_text())["starts"]] if run.exists() else []


def _finish(workdir: Path, text: Path, steps: int) -> None:
    status, _, errors = _start(workdir, text, "nothing", steps).wait()
    assert status == 0, errors.decode()


def disturb(kinds: list[str], folder: Path, seed: int = 0) -> list[Found]:
    """Let these faults happen to one run, in this order, and compare it with one that nothing happened to.

    Args:
      kinds: names of ``FAULTS``.
      folder: a new one, which others may look into.
      seed: of the moments.

    Raises:
      AssertionError: if anything was lost.
    """
    moments, text, workdir = random.Random(seed), folder / "text.txt", folder / "disturbed"
    text.write_bytes(bytes(np.random.default_rng(0).integers(97, 123, 3000, dtype=np.uint8)))
    steps = STEPS_A_FAULT * (len(kinds) + 2)
    statuses, reached = [], []
    for number, kind in enumerate(kinds):
        fault, before, earlier = FAULTS[kind], _reached(workdir), _starts(workdir)
        command = _start(workdir, text, fault.wrong, steps, fault.flags)
        if fault.wrong == "readonly":
            assert number, "a folder has to be there"
        else:
            # Somewhere in its share of the steps, which cannot run out before it is told.
            target = moments.randint(before + 1, max(before + 1, STEPS_A_FAULT * (number + 1) - 2 * INTERVAL))
            while not command.ended() and (_reached(workdir) < target or len(_starts(workdir)) == len(earlier)):
                time.sleep(0.02)
            if not command.ended():
                fault.happen(command, workdir, moments)
        status, _, errors = command.wait()
        assert status in fault.statuses, (kind, status, errors.decode())
        assert b"Traceback" not in errors, (kind, errors.decode())
        assert fault.said in (errors.decode().splitlines() or [""])[-1], (kind, errors.decode())
        assert len(_starts(workdir)) == len(earlier) + (fault.wrong != "readonly"), (kind, errors.decode())
        statuses.append(status)
        reached.append(_reached(workdir))
    _finish(workdir, text, steps)
    whole = folder / "whole"
    _finish(whole, text, steps)
    _check_same(whole, workdir)
    # What could not write did not start either.
    went_on = iter(_starts(workdir)[1:])
    repeated = [
        0 if FAULTS[kind].wrong == "readonly" else at - next(went_on) for kind, at in zip(kinds, reached, strict=True)
    ]
    for kind, again in zip(kinds, repeated, strict=True):
        assert 0 <= again <= FAULTS[kind].most, (kind, again)
    return [Found(*each) for each in zip(kinds, statuses, repeated, strict=True)]


def _check_same(whole: Path, disturbed: Path) -> None:
    """That two runs have the same weights, to the bit, and the same metrics, each step once."""
    slow = [load(folder, "last")[1] for folder in (whole, disturbed)]
    assert sorted(slow[0]) == sorted(slow[1])
    for name in slow[0]:
        bits = [np.asarray(each[name]).view(np.uint32) for each in slow]
        np.testing.assert_array_equal(*bits, name)
    rows = [read_rows(folder / "metrics.jsonl", until=UNTIL_END) for folder in (whole, disturbed)]
    for row in [*rows[0], *rows[1]]:
        row.pop("tokens_per_second", None)
    assert rows[0] == rows[1]


def chosen(count: int, seed: int) -> list[str]:
    """So many faults: every kind in turn, in a random order that does not begin with what needs a folder."""
    order, moments = list(FAULTS), random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        moments.shuffle(order)
        found += order
    found = found[:count]
    first = next(number for number, kind in enumerate(found) if FAULTS[kind].wrong == "nothing")
    return [found[first], *found[:first], *found[first + 1 :]]


def table(results: list[Found]) -> str:
    """Markdown: a row for each kind, how often it happened, how it ended, and how many steps were computed again."""
    rows: dict[str, list[Found]] = collections.defaultdict(list)
    for found in results:
        rows[found.kind].append(found)
    lines = ["| fault | times | exit status | steps computed again, at most | lost |", "|---|---:|---:|---:|---:|"]
    for kind, fault in FAULTS.items():
        if kind in rows:
            of_kind = rows[kind]
            statuses = ", ".join(sorted({str(found.status) for found in of_kind}))
            again = max(found.repeated for found in of_kind)
            lines.append(f"| {fault.what} | {len(of_kind)} | {statuses} | {again} of {fault.most} | 0 |")
    lines.append(f"| all | {len(results)} | | | 0 |")
    return "\n".join(lines)


def main() -> int:
    """Disturb runs, print the table; an assertion that does not hold ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    kinds, a_run = chosen(arguments.kills, arguments.seed), len(FAULTS)
    results: list[Found] = []
    for first in range(0, len(kinds), a_run):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            of_run = kinds[first : first + a_run]
            if FAULTS[of_run[0]].wrong == "readonly":
                of_run = [*of_run[1:], of_run[0]]
            results += disturb(of_run, Path(folder), arguments.seed + first)
        print(f"{len(results)} faults so far", file=sys.stderr, flush=True)
    text = table(results)
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        arguments.write.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
