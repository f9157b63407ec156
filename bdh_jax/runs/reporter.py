"""What a run tells: metrics as JSON lines and TensorBoard events, and live progress."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import rich.console

from bdh_jax.runs.events import EventFile
from bdh_jax.runs.folder import METRICS, CheckpointError
from bdh_jax.runs.progress import make_bar

_LOGGER = logging.getLogger("bdh_jax")


class SetScore(Protocol):
    """The score of one evaluation set, as far as it is written down."""

    COLUMNS: ClassVar[Mapping[str, str]]
    """Its numbers, as names of attributes, and their headings."""
    LOGGED: ClassVar[str]
    """The one that a line of the log shows."""
    name: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        ...


class Scores(Protocol):
    """An evaluation, as far as it is written down."""

    rows: Sequence[SetScore]
    primary: float


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
            self._progress = make_bar(console)
            self._bar = self._progress.add_task(title, total=steps, completed=start, status="")
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
        status = f"loss {row['loss']:.4f}  {self._accuracy_name} {row[self._accuracy_name]:.3f}  {rate}"
        if self._progress is not None:
            self._progress.update(self._bar, completed=step, status=status)
        else:
            _LOGGER.info("%s step %d/%d  %s", self._title, step, self._steps, status)

    def evaluation(self, step: int, evaluation: Scores, contributions: Mapping[str, Sequence[float]] | None = None) -> None:
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
