"""A command as a process: its flags, its log lines, its exit status.

A mistake of the user is one message on standard error and status 2, never a traceback.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import jax
from absl import app, flags
from absl import logging as absl_logging

from bdh_jax.commands._allocator import keep_freed_memory
from bdh_jax.commands._compiling import told_of_compilation
from bdh_jax.commands._flags import joins_others, parse
from bdh_jax.commands._help import help_of
from bdh_jax.commands._programs import keep_programs
from bdh_jax.config import ConfigError
from bdh_jax.console import as_far_as_read, show_error, show_messages
from bdh_jax.data.documents import DataError
from bdh_jax.generation.state_files import StateError
from bdh_jax.parallel.devices import check_devices
from bdh_jax.runs import signals
from bdh_jax.runs.folder import CheckpointError, newest_checkpoint
from bdh_jax.training.loop import Interrupted, NonFiniteError

USAGE_ERROR = 2
GONE = 75
"""Another process of the run is gone: EX_TEMPFAIL of sysexits.h, for it may be tried again."""
_HELP = {f"{dashes}{name}" for dashes in ("-", "--") for name in ("h", "help", "helpshort", "helpfull")}


def run(command: ModuleType, argv: Sequence[str]) -> None:
    """Run a command and exit: 0 finished, 1 diverged, 2 a mistake in what was asked, 75 another process of the run is gone, 128 + n stopped
    by signal n, also 141 if nobody reads what it prints.

    Args:
      command: module with ``main(argv)``, which has defined its flags. What it takes besides flags, paths, it calls ``ARGUMENTS``.
      argv: the program and its flags. ``--help`` among them shows the command's docstring and flags, and exits with 0.
    """
    signals.listen()
    keep_freed_memory()
    with as_far_as_read():
        app.run(
            lambda rest: _status(command, rest), argv=list(argv), flags_parser=lambda given: _parse_flags(command, given)
        )


def _parse_flags(command: ModuleType, argv: Sequence[str]) -> list[str]:
    if _HELP.intersection(argv[1:]):
        print(help_of(command))
        sys.exit(0)
    try:
        rest = parse(list(argv), getattr(command, "ARGUMENTS", ""))
    except (flags.Error, ConfigError, CheckpointError) as error:
        sys.exit(_fail(error, USAGE_ERROR))
    return rest


def _status(command: ModuleType, argv: Sequence[str]) -> int | None:
    _set_up_logging(quiet=getattr(command, "QUIET", False))
    keep_programs()
    if joins_others():
        # JAX aborts a process that loses the first of them: another one has to be there to say so.
        ended = signals.stand_by()
        if ended is not None:
            return _ended(ended)
    status = _worked(command, argv)
    signals.say_status(status or 0)
    return status


def _worked(command: ModuleType, argv: Sequence[str]) -> int | None:
    try:
        with signals.raising(), told_of_compilation():
            if not joins_others():
                check_devices()
            return command.main(argv)
    except (ConfigError, CheckpointError, DataError, StateError) as error:
        return _fail(error, USAGE_ERROR)
    except NonFiniteError as error:
        return _fail(error, 1)
    except Interrupted as error:
        return _stopped(error, error.signal_number)
    except KeyboardInterrupt as error:
        return _stopped(error, signals.number_of(error))


def _ended(status: int) -> int:
    """What the parent of a process that joined others says of its end."""
    if status == -signal.SIGABRT:
        return _fail(gone("process 0, or this one (see above),"), GONE)
    if status < 0:
        return _fail(f"{signals.name_of(-status)} killed this process; what was not yet saved is lost", 128 - status)
    return status


def gone(who: str) -> str:
    """What is said when a process of the run is gone."""
    workdir = Path(flags.FLAGS["workdir"].value or ".")
    return f"{who} is gone; {newest_checkpoint(workdir)}; the same command on all processes goes on from there"


def _stopped(error: BaseException, number: int) -> int:
    status = _fail(str(error) or "aborted; what was not yet saved is lost", 128 + number)
    # Of several processes each tells the others at exit that it goes.
    return status if jax.distributed.is_initialized() else signals.leave(status)


def _set_up_logging(*, quiet: bool) -> None:
    """Our own lines; of the libraries, which share absl's logger, warnings only unless --verbosity asks for more."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    show_messages(quiet=quiet)


def _fail(error: Exception | str, status: int) -> int:
    show_error(error)
    return status
