"""A command of the package in a process that something is wrong with: ``python -m tests.faults.child WRONG COMMAND ...``.

nothing     nothing
readonly    its folder cannot be written to
clock       the clock jumps by up to three days, back and forth
full        what it writes is too large, from its first checkpoint on
impatient   it does not wait for a folder that another process holds
"""

from __future__ import annotations

import os
import random
import resource
import runpy
import stat
import sys
import threading
import time
from pathlib import Path

from bdh_jax.runs import lock

NOBODY = 65534


def _workdir(arguments: list[str]) -> Path:
    return Path(next(argument for argument in arguments if argument.startswith("--workdir=")).partition("=")[2])


def _readonly(arguments: list[str]) -> None:
    folder = _workdir(arguments)
    if os.geteuid() == 0:  # who may write anything: somebody else then, to whom it does not belong
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    else:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)


def _clock(arguments: list[str]) -> None:
    right = time.time
    time.time = lambda: right() + random.Random(int(time.monotonic())).uniform(-3, 3) * 86400


def _impatient(arguments: list[str]) -> None:
    lock.WAIT = 0.5


def _full(arguments: list[str]) -> None:
    checkpoints = _workdir(arguments) / "checkpoints"

    def limit() -> None:
        while not any(path.name.isdecimal() for path in checkpoints.glob("*")):
            time.sleep(0.01)
        # Less than what a checkpoint is made of, more than what a process says: what it says goes into a file, too.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))

    # A process of several forks, and works in its child.
    os.register_at_fork(after_in_child=threading.Thread(target=limit, daemon=True).start)


WRONG = {
    "nothing": lambda arguments: None,
    "readonly": _readonly,
    "clock": _clock,
    "full": _full,
    "impatient": _impatient,
}

if __name__ == "__main__":
    wrong, *arguments = sys.argv[1:]
    WRONG[wrong](arguments)
    sys.argv = ["bdh_jax", *arguments]
    runpy.run_module("bdh_jax", run_name="__main__", alter_sys=True)
