"""Trainings that a table needs: each in a process of its own, once, and read from then on. One that diverged is a result, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import measure

from bdh_jax.console import Progress
from bdh_jax.experiment import ExperimentConfig, record_of, train
from bdh_jax.runs.folder import finished
from bdh_jax.training.loop import NonFiniteError

DIVERGED = "diverged.txt"
_Run = TypeVar("_Run")


def result(config: ExperimentConfig, folder: Path) -> dict[str, Any] | None:
    """The results of a training that came to its end; None of any other.

    Raises:
      CheckpointError: if the folder holds something else.
    """
    return finished(folder, record_of(config)) if folder.is_dir() else None


def is_over(config: ExperimentConfig, folder: Path) -> bool:
    """Whether there is nothing left to train: it came to its end, or its loss was not finite."""
    return (folder / DIVERGED).exists() or result(config, folder) is not None


def train_here(config: ExperimentConfig, folder: Path) -> bool:
    """Train in this process. A loss that is not finite ends it, is written into the folder, and gives False."""
    try:
        train(config, folder)
    except NonFiniteError as error:
        (folder / DIVERGED).write_text(str(error), encoding="utf-8")
        return False
    return True


def do_all(
    runs: Sequence[_Run],
    is_done: Callable[[_Run], bool],
    apart: Callable[[_Run], None],
    label: Callable[[_Run], str],
    jobs: int,
    title: str = "runs",
) -> None:
    """Do what is missing of some runs, so many at a time, under a progress bar.

    Args:
      runs: all that are needed.
      is_done: whether there is nothing left to do for one.
      apart: does one in a process of its own (``measure.apart``).
      label: what the bar says of one.
      jobs: how many at a time.
      title: of the bar.
    """
    missing = [run for run in runs if not is_done(run)]
    with Progress(title, len(runs), done=len(runs) - len(missing)) as progress, measure.pool(jobs) as pool:
        for run, _ in zip(missing, pool.map(apart, missing), strict=True):
            progress.advance(1, label(run))
