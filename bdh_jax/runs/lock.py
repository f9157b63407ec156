"""One process at a time writes to a folder: two of them would delete each other's checkpoints and mix their metrics."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
import jax

from bdh_jax.config import ConfigError
from bdh_jax.config.paths import check_path

LOCK = ".lock"
"""The file, with the process and host that hold the folder. It is gone when they are done, and the system frees it of a killed one."""
WAIT = 60.0
"""Seconds to wait for another process: one that was told to stop is still saving, and a file server notices a lost host late."""
_LOGGER = logging.getLogger("bdh_jax")


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder until the block ends. Of several processes of one run the first holds it for all.

    A folder that is not there is made, and removed again if the block leaves it empty. Where nothing can be locked (a folder that is
    read only, a file system without locks) the block runs all the same, and the log says so.

    Args:
      folder: what the block writes to. One that the same process holds already counts as held by another.

    Raises:
      ConfigError: if no folder can be called so, or another process holds it, and does so for ``WAIT`` seconds more.
    """
    check_path(folder, "folder")
    if jax.process_index() != 0:
        yield
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(folder)
    except OSError as error:
        if folder.is_dir() and os.access(folder, os.W_OK):  # otherwise whoever writes there says it
            _LOGGER.warning("%s cannot be locked (%s): make sure that no other command writes there", folder, error)
    try:
        if lock is not None:
            with contextlib.suppress(OSError):
                (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        if lock is not None:
            # While it is held: a process that waits sees that its file is gone, and asks for the next one.
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            lock.release()
        _remove(missing)


def _acquire(folder: Path) -> filelock.BaseFileLock:
    # Without a fallback: the files that it leaves where the system has no locks outlive a killed process.
    lock = filelock.FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
        return lock
    except filelock.Timeout:
        holder = _holder(folder)
    _LOGGER.warning("%s: %s writes there; waiting up to %.0f s for it to end", folder, holder, WAIT)
    try:
        lock.acquire(timeout=WAIT, poll_interval=0.2)
    except filelock.Timeout:
        raise ConfigError(
            f"{folder} is in use: {holder} writes there. Let it end or stop it, or name another folder"
        ) from None
    return lock


def _holder(folder: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if name := (folder / LOCK).read_text(encoding="utf-8").strip():
            return name
    return "another process"


def _remove(folders: list[Path]) -> None:
    """Remove folders that are empty, the deepest first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
