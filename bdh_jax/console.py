"""What a terminal shows: results on standard output, messages and progress on standard error, all of it in 80 columns.

Messages of every room go to the logger "bdh_jax". A program of your own sees them once it sets up logging; commands show them with
:func:`show_messages`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import os
import select
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import rich.box
import rich.progress
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80
"""Columns that everything fits."""
_KEY_WIDTH = 30
"""Columns of a table's first column, beyond which a name goes on in the next line."""
_BETWEEN = 2
"""Columns between those of a table."""
_LOGGER = logging.getLogger("bdh_jax")


NOT_READ = 128 + 13
"""Exit status of a command whose output was closed before its end: that of a program that SIGPIPE ends."""


@contextlib.contextmanager
def as_far_as_read() -> Iterator[None]:
    """Write to standard output in the block what its encoding has, with "?" for the rest, and as much as is read.

    Raises:
      SystemExit: with ``NOT_READ`` once nobody reads any more, as of ``bdh config nback | head``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not leave_unread():
            raise
        sys.exit(NOT_READ)


def leave_unread() -> bool:
    """Let what was not read of standard output go nowhere: Python writes what is left when it ends, and would say so.

    Returns:
      Whether it is standard output that nobody reads.
    """
    file = sys.stdout.fileno()
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), file)
    return True


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise  # to who may know what is lost, :func:`as_far_as_read`


def output() -> Console:
    """Where results go: standard output, at least ``WIDTH`` wide. What is printed is taken as it is, not for markup."""
    console = _Output(markup=False, highlight=False, emoji=False)
    console.width = max(WIDTH, console.width)
    return console


@functools.cache
def messages() -> Console:
    """Where messages and progress go: standard error. There is one, so that a message does not run into a bar."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def _is_watched() -> bool:
    return messages().is_terminal or messages().is_jupyter


def _can_redraw() -> bool:
    """Whether a bar can be drawn there again and again: in a terminal, and in a notebook that has ipywidgets."""
    return messages().is_terminal or (messages().is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


# Messages.


class _Messages(logging.Handler):
    """In a terminal lines that break between words, elsewhere one line each, with the time."""

    def emit(self, record: logging.LogRecord) -> None:
        if _is_watched():
            messages().print(Text(record.getMessage()), overflow="fold")
        else:
            print(
                logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S").format(record), file=sys.stderr, flush=True
            )


def show_messages(*, quiet: bool = False) -> None:
    """Show the library's messages on standard error.

    Args:
      quiet: where nobody watches, only warnings.
    """
    _LOGGER.handlers, _LOGGER.propagate = [_Messages()], False
    _LOGGER.setLevel(logging.WARNING if quiet and not _is_watched() else logging.INFO)


def show_error(error: object) -> None:
    """One line that begins with "error:"; a terminal breaks it between words."""
    line = f"error: {error}"
    # Where nobody can read it any more, as on a full disk, the exit status still says it.
    with contextlib.suppress(OSError):
        if sys.stderr is not None and messages().is_terminal:
            messages().print(Text(line), overflow="fold")
        else:
            print(line, file=sys.stderr)


# Progress.


class _Bar(rich.progress.BarColumn):
    """As wide as the others leave."""

    def __init__(self) -> None:
        super().__init__(bar_width=None)


class _Count(rich.progress.ProgressColumn):
    """How many of how many."""

    def render(self, task: rich.progress.Task) -> Text:
        total = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{total}", no_wrap=True)


class _Time(rich.progress.ProgressColumn):
    """The time that is left; while that is not known, the time that has passed."""

    max_refresh = 0.5

    def render(self, task: rich.progress.Task) -> Text:
        seconds = task.time_remaining if task.time_remaining is not None else task.elapsed
        minutes, seconds = divmod(int(seconds or 0), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02}", no_wrap=True)


_bars: list[rich.progress.Progress] = []
"""The one place on the screen that is drawn again and again, while there is one."""


class Progress:
    """How far work has come that takes long: a bar in a terminal or notebook, which is gone at the end, and log lines anywhere else.

    One that begins while another is shown stands below it.

    Args:
      name: what is done.
      total: of how many pieces; None if nobody knows.
      done: pieces that are done already.
      shown: False shows nothing.
    """

    def __init__(self, name: str, total: int | None, *, done: int = 0, shown: bool = True):
        self._name, self._total, self._done, self._shown = name, total, done, shown
        self._bar: rich.progress.Progress | None = None
        self._drawn_here = False

    def __enter__(self) -> Progress:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Show the bar, where there is one."""
        if not self._shown or not _can_redraw():
            return
        self._drawn_here = not _bars
        if self._drawn_here:
            columns = (
                rich.progress.TextColumn("{task.description}", markup=False),
                _Bar(),
                _Count(),
                rich.progress.TextColumn("{task.fields[status]}", markup=False),
                _Time(),
            )
            _bars.append(rich.progress.Progress(*columns, console=messages(), transient=True, expand=True))
            _bars[0].start()
        self._bar = _bars[0]
        self._task = self._bar.add_task(self._name, total=self._total, completed=self._done, status="")

    def stop(self) -> None:
        """Take it away."""
        if self._bar is None:
            return
        if not self._drawn_here:
            self._bar.update(self._task, visible=False)
        elif self._bar in _bars:
            _bars.remove(self._bar)
            self._bar.stop()

    @property
    def is_bar(self) -> bool:
        """Whether there is a bar: what is said beside it may change from piece to piece."""
        return self._bar is not None

    def advance(self, count: int = 1, status: str = "", *, keep: bool = False) -> None:
        """So many more pieces are done.

        Args:
          count: how many.
          status: what to say of them, beside the bar or in the log; the log has no line without.
          keep: leave it on the screen, above the bar.
        """
        self._done += count
        if self._bar is not None:
            if keep:
                self.say(status)
            fields: dict[str, Any] = {"status": status} if status and not keep else {}
            self._bar.update(self._task, completed=self._done, **fields)
        elif self._shown and status:
            _LOGGER.info("%s %d%s  %s", self._name, self._done, "" if self._total is None else f"/{self._total}", status)

    def say(self, line: str) -> None:
        """A line above the bar, or in the log."""
        if self._bar is not None:
            messages().print(Text(line), overflow="fold")
        elif self._shown:
            _LOGGER.info("%s", line)

    def to(self, done: int, status: str = "") -> None:
        """As :meth:`advance`, of how many pieces are done in all."""
        self.advance(done - self._done, status)


# Tables.


def show(*tables: Table, keys: int = 1) -> None:
    """Print tables on standard output, with an empty line between. One that is too wide is split by columns, and nothing is cut off.

    Args:
      tables: with titles, captions, headers and cells that are plain strings.
      keys: how many columns at the left say what a row is; every part has them.
    """
    console = output()
    for number, table in enumerate(tables):
        if number:
            console.print()
        if table.title:
            console.print(Text(str(table.title), style="bold"), overflow="fold")
        for part_number, part in enumerate(_split(table, keys, console.width)):
            if part_number:
                console.print()
            console.print(part)
        if table.caption:
            console.print(Text(str(table.caption)), width=min(console.width, 100), overflow="fold")


def _split(table: Table, keys: int, width: int) -> list[Table]:
    """Tables of a table's columns that are each as wide as they may be."""
    names = range(min(keys, len(table.columns)))
    least = [_least(table, number, number in names) for number in range(len(table.columns))]
    rest = [number for number in range(len(least)) if number not in names]
    taken = sum(least[number] + _BETWEEN for number in names)
    parts: list[list[int]] = [[]]
    for number in rest:
        if parts[-1] and taken + sum(least[n] + _BETWEEN for n in (*parts[-1], number)) > width:
            parts.append([])
        parts[-1].append(number)
    return [_part(table, [*names, *part], least, width) for part in parts]


def _least(table: Table, number: int, is_key: bool) -> int:
    """Columns that a column of a table needs: its cells in one line each, its header in whole words."""
    column = table.columns[number]
    cells = max((cell_len(str(cell)) for cell in column.cells), default=0)
    words = max((cell_len(word) for word in str(column.header).split()), default=0)
    return max(min(cells, _KEY_WIDTH) if is_key else min(cells, WIDTH - _KEY_WIDTH), words)


def _part(table: Table, numbers: Sequence[int], least: Sequence[int], width: int) -> Table:
    part = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    room = width - sum(least[number] + _BETWEEN for number in numbers)
    for number in numbers:
        column = table.columns[number]
        wanted = min(max(0, cell_len(str(column.header)) - least[number]), max(0, room))
        # A header stays in one line where there is room for it.
        more = wanted if least[number] + wanted >= cell_len(str(column.header)) else 0
        room -= more
        part.add_column(
            Text(str(column.header)), justify=column.justify, width=least[number] + more, overflow="fold", vertical="bottom"
        )
    columns = [list(table.columns[number].cells) for number in numbers]
    for cells in zip(*columns, strict=True):
        part.add_row(*(Text(_broken(str(cell))) for cell in cells))
    return part


def _broken(cell: str) -> str:
    """A long name of the form ``module:function=1`` goes on in the next line after its colon."""
    return cell.replace(":", ":\n", 1) if cell_len(cell) > _KEY_WIDTH and " " not in cell else cell


def suggest(*commands: str) -> None:
    """Say what to run next, as messages."""
    _LOGGER.info("next:")
    for command in commands:
        _LOGGER.info("  %s", command)
