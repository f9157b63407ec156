"""What a run tells: metrics as JSON lines and TensorBoard events, live progress, and where it ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.progress

from bdh_jax.tasks.scores import Evaluation
from bdh_jax.runs.checkpoint import CheckpointError
from bdh_jax.runs.events import EventFile

METRICS = "metrics.jsonl"
_LOGGER = logging.getLogger("bdh_jax")
_PACKAGES = ("bdh_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def read_rows(path: Path, *, until: int) -> list[dict[str, Any]]:
    """The rows of a metrics file up to and including step ``until``.

    Rows of later steps, and a last line cut short when the process was killed, belong to work that will be done again.

    Raises:
      CheckpointError: if a line is JSON without a step: some other file lies there.
    """
    return _read_rows(path, until)[0]


def _read_rows(path: Path, until: int) -> tuple[list[dict[str, Any]], int]:
    """The rows of :func:`read_rows`, and how many bytes of the file they are."""
    rows, nbytes = [], 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise CheckpointError(
                f"{path}, line {number}, has no step: it is not of a training run. Move it, or use another --workdir"
            )
        if row["step"] > until or not line.endswith(b"\n"):
            break
        rows.append(row)
        nbytes += len(line)
    return rows, nbytes


class Reporter:
    """Writes metrics and shows progress: a live bar in a terminal or notebook, plain log lines anywhere else.

    Only process 0 of several writes and shows anything.

    Args:
      workdir: the run's folder, which exists.
      steps: length of the training.
      start: updates already made. What the metrics file says of later steps is cut off.
      title: shown before the bar.
      accuracy_name: what the rows of :meth:`training` call the share of right answers.

    Raises:
      CheckpointError: if a file cannot be written; so do all methods that write.
    """

    def __init__(self, workdir: Path, *, steps: int, start: int, title: str, accuracy_name: str):
        self._steps, self._title, self._accuracy_name = steps, title, accuracy_name
        self.evaluated: set[int] = set()
        self._active = jax.process_index() == 0
        self._progress = None
        rows, nbytes = _read_rows(workdir / METRICS, start)
        self.evaluated = {row["step"] for row in rows if "evaluation" in row}
        if not self._active:
            return
        self._workdir = workdir
        with self._writing():
            self._file = (workdir / METRICS).open("a", encoding="utf-8")
            # Rows that stay are not written again: a full disk takes none of them.
            self._file.truncate(nbytes)
            self._events = EventFile(workdir / "tensorboard", start=start + 1)
        console = rich.console.Console()
        if console.is_terminal or console.is_jupyter:
            self._progress = _progress_bar(console)
            self._bar = self._progress.add_task(title, total=steps, completed=start, loss="", accuracy="", rate="")
            self._progress.start()

    def training(self, step: int, row: Mapping[str, float | None]) -> None:
        """Record a step's loss, share of right answers, grad_norm, learning_rate and tokens_per_second (None while not known)."""
        if not self._active:
            return
        with self._writing():
            self._write({"step": step, **row})
            for name, value in row.items():
                if value is not None:
                    self._events.scalar(f"train/{name}", value, step)
        rate = "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f} tokens/s"
        loss, accuracy = f"loss {row['loss']:.4f}", f"{self._accuracy_name} {row[self._accuracy_name]:.3f}"
        if self._progress is not None:
            self._progress.update(self._bar, completed=step, loss=loss, accuracy=accuracy, rate=rate)
        else:
            _LOGGER.info("%s step %d/%d  %s  %s  %s", self._title, step, self._steps, loss, accuracy, rate)

    def evaluation(
        self, step: int, evaluation: Evaluation, contributions: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        """Record an evaluation, once a step, and what each source adds to each layer's output."""
        if not self._active or step in self.evaluated:
            return
        self.evaluated.add(step)
        scores = {row.name: row.to_dict() for row in evaluation.rows}
        numbers = {"evaluation/primary": evaluation.primary}
        numbers |= {f"evaluation/{row.name}/{name}": getattr(row, name) for row in evaluation.rows for name in row.COLUMNS}
        for name, sizes in (contributions or {}).items():
            numbers |= {f"contribution/{name}/layer{layer}": size for layer, size in enumerate(sizes)}
        with self._writing():
            self._write({"step": step, "evaluation": {"primary": evaluation.primary, **scores}})
            if contributions is not None:
                self._write({"step": step, "contributions": contributions})
            for name, number in numbers.items():
                self._events.scalar(name, number, step)
            self._events.flush()
        scores = "  ".join(f"{row.name} {getattr(row, row.LOGGED):.3f}" for row in evaluation.rows)
        self.say(f"{self._title} step {step}/{self._steps}  evaluation: {scores}")

    def say(self, line: str) -> None:
        """A line above the bar, or in the log."""
        if self._progress is not None:
            self._progress.console.print(line, highlight=False)
        elif self._active:
            _LOGGER.info("%s", line)

    def close(self) -> None:
        """Take the bar away and flush the files."""
        if not self._active:
            return
        if self._progress is not None:
            self._progress.stop()
        with self._writing():
            try:
                self._file.close()
            finally:
                self._events.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"the metrics in {self._workdir} cannot be written: {error.strerror}. The checkpoints that were saved are kept: make room, "
                "and the same command goes on from the last one"
            ) from error

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def describe_start(step: int, seed: int) -> dict[str, Any]:
    """Where and with what a run starts or resumes: time, versions, commit, device, command."""
    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "seed": seed,
        "command": sys.argv,
        "git": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "processes": jax.process_count(),
        "machine": platform.platform(),
    }


def _progress_bar(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[loss]}  {task.fields[accuracy]}  {task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> dict[str, Any] | None:
    """Commit of the checkout this package is in, and whether files differ from it; None outside a checkout."""
    package = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # A virtual environment may lie inside a checkout of something else.
        if Path(git("rev-parse", "--show-toplevel")) != package:
            return None
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
