"""How a process is told to stop, and what happens between a signal and its end. Signals are handled here and nowhere else.

A command listens from its first line on (:func:`listen`). What a signal does depends on what is at stake then:

- while it imports, and once it is done: the process ends;
- while it works (:func:`raising`): :class:`Stopped` closes what is open, and the process ends;
- while it trains (:func:`noting`): the training looks at the signal between two steps, saves, and ends.

A second Ctrl-C ends it at once, also while XLA compiles, where Python hears nothing. Each signal has the exit status 128 + its number.

This module imports nothing that takes long: it has to be there before what does.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import select
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

GRACE = 10.0
"""Seconds for which :class:`Stopped` may take to reach the end of a command. It can get lost on the way, as in a callback of a library."""
_ALWAYS = (signal.SIGINT, signal.SIGTERM)
_FREE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Handled unless they are ignored, as under nohup, or somebody else's."""
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl, on Linux."""
_LOST = "aborted; what was not yet saved is lost"
_SHOW_CURSOR = "\033[?25h"


class Stopped(KeyboardInterrupt):
    """A signal came while a command worked.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int, what: str = _LOST):
        super().__init__(f"{name_of(number)}: {what}")
        self.number = number


@dataclasses.dataclass
class Received:
    """The signal that came last, if any did."""

    number: int | None = None


@dataclasses.dataclass
class _Listener:
    """What the thread that listens knows of the process."""

    listens: bool = False
    notes: bool = False
    """A training saves, however long that takes."""
    mask: set[int] = dataclasses.field(default_factory=set)
    """The signals that were blocked before the process forked."""
    said: int | None = None
    """Where a process tells the one that stands by its status."""


_LISTENER = _Listener()


def name_of(number: int) -> str:
    """What a signal is called."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that an exception stands for: one that Python or a user raised is a Ctrl-C."""
    return error.number if isinstance(error, Stopped) else signal.SIGINT


def listen() -> None:
    """End the process when it is told to stop, unless :func:`raising` or :func:`noting` say otherwise. Main thread only."""
    if _LISTENER.listens:
        return
    _LISTENER.listens = True
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
    threading.Thread(target=_watch, args=(heard,), name="signals", daemon=True).start()
    for number in _handled():
        signal.signal(number, _end_now)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Let a signal raise :class:`Stopped` in the block. Main thread only."""
    received = Received()

    def handle(number: int, frame: FrameType | None) -> None:
        _leave_terminal(number)
        received.number = number
        raise Stopped(number)

    def lost(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped):
            _end(unraisable.exc_value.number)
        previous(unraisable)

    previous, sys.unraisablehook = sys.unraisablehook, lost
    try:
        with _handlers(handle):
            yield
    except Exception as error:
        # Whatever a library made of it.
        if received.number is None:
            raise
        raise Stopped(received.number) from error
    finally:
        sys.unraisablehook = previous


@contextlib.contextmanager
def noting(*, together: bool = False) -> Iterator[Received]:
    """Let a signal be a number to look at in the block; a second Ctrl-C aborts.

    Nothing is changed outside the main thread, where Python allows no handlers.

    Args:
      together: of several processes, which have to stop at one step: JAX hears SIGTERM and agrees on it, so that one is left to JAX, and the
        others are passed on as SIGTERM.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        _leave_terminal(number)
        if received.number is not None and number == signal.SIGINT and not _LISTENER.listens:
            raise KeyboardInterrupt
        received.number = number
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    _LISTENER.notes = True
    try:
        with _handlers(handle, leave=(signal.SIGTERM,) if together else ()):
            yield received
    finally:
        _LISTENER.notes = False


def stand_by() -> int | None:
    """Fork: the child goes on, and the parent waits for its end, which it can tell of even if the child was aborted.

    The parent passes on every signal, and the child dies with it. Both listen as before. Main thread only, before JAX has started.

    Returns:
      None in the child; in the parent the child's exit status, or minus the signal that ended it. What the child said its status would be
      (:func:`say_status`) counts more than an abort while it left, when JAX may lose the others a moment too early.
    """
    told, said = os.pipe()
    with warnings.catch_warnings():
        # Of threads that a fork does not copy: so far there is the one that listens, which the child starts anew.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(told)
        _LISTENER.said = said
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        # A terminal's Ctrl-C comes from the parent alone, once.
        os.setpgid(0, 0)
        listen()
        return None

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    os.close(said)
    os.set_blocking(told, False)
    _LISTENER.notes = True
    try:
        with _handlers(pass_on):
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BlockingIOError):
            heard = os.read(told, 1)
            return heard[0] if heard and status == -signal.SIGABRT else status
        return status
    finally:
        os.close(told)
        _LISTENER.notes = False


def say_status(status: int) -> None:
    """Tell the process that stands by, if there is one, what the exit status is: all work is done, and all files are closed."""
    if _LISTENER.said is not None:
        os.write(_LISTENER.said, bytes([status]))


def leave(status: int) -> NoReturn:
    """End the process without what libraries do at exit: a thread of XLA that still compiles crashes in it. All files must be closed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    logging.shutdown()
    os._exit(status)


def _handled() -> list[int]:
    """The signals that are ours to handle."""

    def free(number: int) -> bool:
        handler = signal.getsignal(number)
        return handler is signal.SIG_DFL or getattr(handler, "__module__", None) == __name__

    return [*_ALWAYS, *(number for number in _FREE if free(number))]


@contextlib.contextmanager
def _handlers(handle: Any, leave: tuple[int, ...] = ()) -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in _handled() if number not in leave}
    try:
        for number in previous:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_now(number: int, frame: FrameType | None) -> None:
    _leave_terminal(number)
    _end(number)


def _end(number: int, what: str = _LOST) -> NoReturn:
    # Not by way of Python's streams: another thread may be writing to them for ever.
    with contextlib.suppress(OSError):
        os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}error: {name_of(number)}: {what}\n".encode())
    os._exit(128 + number)


def _watch(heard: int) -> None:
    """Hear every signal at once, whatever the main thread is busy with, and end the process where nothing else does."""
    first, deadline = None, None
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([heard], [], [], wait)[0] and first is not None:
            _end(first)
        for number in os.read(heard, 64):
            if number not in (*_ALWAYS, *_FREE):
                continue
            if first is not None and number == signal.SIGINT:
                _end(number, "aborted at once; what was not yet saved is lost")
            first = first or number
            if not _LISTENER.notes and deadline is None:
                deadline = time.monotonic() + GRACE


def _hold() -> None:
    """No signal while the process forks: the child has the handlers until it forgets them."""
    _LISTENER.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _handled())


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _LISTENER.mask)


def _forget() -> None:
    """A forked process is another one: what it is told is not told to the one that made it."""
    _LISTENER.listens = False
    signal.set_wakeup_fd(-1)
    for number in _handled():
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _release()


def _leave_terminal(number: int) -> None:
    """Once the terminal is gone, what is written there fails: it goes nowhere instead."""
    if number not in _FREE:
        return
    for file in range(3):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(file).st_mode) and not os.isatty(file):
                os.dup2(os.open(os.devnull, os.O_RDWR), file)
