"""What a run tells: metrics as JSON lines and TensorBoard events, and live progress."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import pydantic

from bdh_jax.config.records import RecordError, Schema, parse, parse_json
from bdh_jax.config.whole_files import whole_file
from bdh_jax.console import Progress
from bdh_jax.runs.events import EventFile
from bdh_jax.runs.folder import METRICS, CheckpointError

_LOGGER = logging.getLogger("bdh_jax")
_RISES = 3
"""Evaluations in a row that are worse than the one before: then a run overfits. One or two are chance."""


class SetScore(Protocol):
    """The score of one evaluation set, as far as it is written down."""

    COLUMNS: ClassVar[Mapping[str, str]]
    """Its numbers, as names of attributes, and their headings."""
    LOGGED: ClassVar[str]
    """The one that a line of the log shows."""
    OVERFITS: ClassVar[str | None]
    """The one that rises when what is trained on is learned by heart; None of a task whose sequences are always new."""

    @property
    def name(self) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        ...


class Scores(Protocol):
    """An evaluation, as far as it is written down."""

    @property
    def rows(self) -> Sequence[SetScore]: ...

    @property
    def primary(self) -> float: ...


class _Row(Schema):
    """A line of the metrics file, as far as it is read again."""

    step: pydantic.NonNegativeInt


class _Rows(NamedTuple):
    """A metrics file up to a step."""

    rows: list[dict[str, Any]]
    lines: list[bytes]
    """What stands in the file for them."""
    damaged: str
    """What is wrong with the first line that is none, or with the order of the lines; empty if nothing is."""


def read_rows(path: Path, *, until: int) -> list[dict[str, Any]]:
    """The rows of a metrics file up to and including step ``until``.

    Rows of later steps, and a last line cut short when the process was killed, belong to work that will be done again.

    Raises:
      CheckpointError: if a line is damaged, or is JSON without a step: some other file lies there.
    """
    found = _read_rows(path, until)
    if found.damaged:
        raise CheckpointError(f"{path}, {found.damaged}: the file is damaged. Restore it from a copy, or take the line out")
    return found.rows


def _read_rows(path: Path, until: int) -> _Rows:
    rows, kept, damaged, over = [], [], "", 0
    *lines, torn = (path.read_bytes() if path.exists() else b"").split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except RecordError as error:
            damaged = damaged or f"line {number}, {error}"
            continue
        try:
            step = parse(line, _Row).step
        except RecordError as error:
            raise CheckpointError(
                f"{path}, line {number}, has no step ({error}): it is not of a training run. Move it, or use another --workdir"
            ) from None
        if step > until:
            over = over or number
            continue
        if over and not damaged:
            damaged = f"line {over}, is of a later step than line {number}"
        rows.append(row)
        kept.append(line + b"\n")
    del torn
    return _Rows(rows, kept, damaged)


class Reporter:
    """Writes metrics, shows progress, and warns of a run that overfits.

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
        self._active, self._warned = jax.process_index() == 0, False
        found = _read_rows(workdir / METRICS, start)
        self._evaluations = [(row["step"], row["evaluation"]) for row in found.rows if "evaluation" in row]
        self.evaluated = {step for step, _ in self._evaluations}
        if not self._active:
            return
        self._workdir = workdir
        with self._writing():
            if found.damaged:
                _set_aside(workdir / METRICS, found)
            self._file = (workdir / METRICS).open("a", encoding="utf-8")
            # Rows that stay are not written again: a full disk takes none of them.
            self._file.truncate(sum(map(len, found.lines)))
            self._events = EventFile(workdir / "tensorboard", start=start + 1)
        self._progress = Progress(f"{title} step", steps, done=start)
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
        self._progress.to(step, status)

    def evaluation(self, step: int, evaluation: Scores, contributions: Mapping[str, Sequence[float]] | None = None) -> None:
        """Record an evaluation, once a step, and what each source adds to each layer's output."""
        if not self._active or step in self.evaluated:
            return
        self.evaluated.add(step)
        scores: dict[str, Any] = {row.name: row.to_dict() for row in evaluation.rows}
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
        said = "  ".join(f"{row.name} {getattr(row, row.LOGGED):.3f}" for row in evaluation.rows)
        self.say(f"{self._title} step {step}/{self._steps}  evaluation: {said}")
        self._evaluations.append((step, scores))
        for row in evaluation.rows:
            self._warn_of_overfitting(row)

    def say(self, line: str) -> None:
        """A line above the bar, or in the log."""
        if self._active:
            self._progress.say(line)

    def _warn_of_overfitting(self, row: SetScore) -> None:
        """Once, when the evaluations of a set have become worse and worse."""
        if row.OVERFITS is None:
            return
        last = self._evaluations[-_RISES - 1 :]
        numbers = [evaluation[row.name][row.OVERFITS] for _, evaluation in last if row.name in evaluation]
        rises = [after > before for before, after in itertools.pairwise(numbers)]
        if len(rises) == _RISES and all(rises) and not self._warned:
            self._warned = True
            _LOGGER.warning(
                "%s overfits: %s of the text that it is not trained on has risen %d times in a row, from %.4f at step %d to %.4f at step %d. "
                "The best evaluation is kept as a checkpoint (--which=best). More text, fewer train.steps, or a larger model.dropout or "
                "optimizer.weight_decay help",
                *(self._title, row.COLUMNS[row.OVERFITS], _RISES, numbers[0], last[0][0], numbers[-1], last[-1][0]),
            )

    def close(self) -> None:
        """Take the bar away and flush the files."""
        if not self._active:
            return
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


def _set_aside(path: Path, found: _Rows) -> None:
    """Keep a copy of a damaged file, and go on with the lines that are whole."""
    names = (f"{path.name}.damaged" + (f"-{number}" if number else "") for number in range(10**6))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    with whole_file(aside) as part:
        shutil.copyfile(path, part)
    with whole_file(path) as part:
        part.write_bytes(b"".join(found.lines))
    _LOGGER.warning(
        "%s, %s: the file is kept as %s, and the run goes on with the lines that are whole", path, found.damaged, aside
    )
