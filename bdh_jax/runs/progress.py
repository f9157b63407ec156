"""Progress of an evaluation that takes minutes."""

from __future__ import annotations

import logging

import rich.progress
from rich.console import Console

_LOGGER = logging.getLogger("bdh_jax")


class Progress:
    """A bar in a terminal or notebook, log lines anywhere else."""

    def __init__(self, name: str, total: int, console: Console | None):
        console = Console() if console is None else console
        self._name, self._total, self._done = name, total, 0
        live = console.is_terminal or console.is_jupyter
        self._progress = rich.progress.Progress(console=console) if live else None

    def __enter__(self) -> Progress:
        if self._progress is not None:
            self._progress.start()
            self._bar = self._progress.add_task(self._name, total=self._total)
        return self

    def __exit__(self, *error: object) -> None:
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
