"""Progress of what takes minutes: one look for all bars."""

from __future__ import annotations

import importlib.util
import logging
from types import TracebackType

import rich.progress
from rich.console import Console

_LOGGER = logging.getLogger("bdh_jax")


def is_live(console: Console) -> bool:
    """Whether a bar can be drawn there again and again: in a terminal, and in a notebook that has ipywidgets."""
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


def make_bar(console: Console, *, transient: bool = False) -> rich.progress.Progress:
    """A bar with its name, how many of how many, what was said last, and the time that is left.

    Args:
      console: where it is drawn.
      transient: take it away at the end.

    Returns:
      A bar to start; ``add_task`` needs ``status``, a text, which may be empty.
    """
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[status]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


class Progress:
    """A bar where it can be drawn (:func:`is_live`), log lines anywhere else."""

    def __init__(self, name: str, total: int, console: Console | None):
        console = Console() if console is None else console
        self._name, self._total, self._done = name, total, 0
        self._progress = make_bar(console) if is_live(console) else None

    def __enter__(self) -> Progress:
        if self._progress is not None:
            self._progress.start()
            self._bar = self._progress.add_task(self._name, total=self._total, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, line: str) -> None:
        """One step is done, and this is what it said."""
        self._done += 1
        if self._progress is not None:
            self._progress.console.print(line, highlight=False)
            self._progress.advance(self._bar)
        else:
            _LOGGER.info("%d/%d  %s", self._done, self._total, line)
