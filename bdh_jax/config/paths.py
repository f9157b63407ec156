"""Paths that a user gives, as a flag, a key of a configuration or a variable of the environment: all are read here.

A path is one of this machine. What is none (an object store, a name that no file can have) is refused before any work, since Python
would take ``gs://bucket/run`` for a folder ``gs:`` here, and a name that is too long fails only once something is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from pathlib import Path

from bdh_jax.config.base import one_line, require

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one slash: Path("gs://bucket") has lost the other
_TOO_LONG = os.strerror(errno.ENAMETOOLONG)


def read_path(name: str, where: str) -> str:
    """The path that a name stands for, absolute or from the current folder.

    Args:
      name: as it was given. ``~`` at its beginning is the home folder, which no shell makes of ``--flag=~/x``, unless there is a file of
        that very name here.
      where: what names it, such as ``--workdir``, for messages.

    Returns:
      The path. Nothing need be there.

    Raises:
      ConfigError: if it cannot be a path here.
    """
    check_local(name, where)
    path = expand_home(name, f"{where}: ")
    check_path(Path(path), where)
    return path


def check_path(path: Path, where: str) -> None:
    """Refuse what cannot be a path here.

    Raises:
      ConfigError: names it and the reason.
    """
    check_local(path, where)
    reason = _impossible(path)
    require(not reason, f"{where}={_shown(str(path))}: {reason}; name another place")


def expand_home(name: str, prefix: str = "") -> str:
    """A name with the home folder for ``~`` at its beginning, unless there is a file of that very name.

    Raises:
      ConfigError: for ``~`` with the name of nobody, in a message that begins with ``prefix``.
    """
    if not name.startswith("~") or os.path.lexists(name):
        return name
    path = os.path.expanduser(name)
    require(
        not path.startswith("~"),
        f"{prefix}{name!r} names no file in {os.getcwd()}, and ~ no user's home; write ./{name} for a file of that name",
    )
    return path


def check_local(names: str | os.PathLike[str], where: str) -> None:
    """Refuse what is no path of this machine. Of a list with commas all parts are looked at.

    Raises:
      ConfigError: names the part and the remedy.
    """
    for name in os.fspath(names).split(","):
        require("\0" not in name, f"{where}={_shown(name)}: a path cannot hold a null byte; name another place")
        found = _SCHEME.match(name.strip())
        require(
            found is None,
            f"{where}={_shown(name.strip())} is no path of this machine: only local files are read and written, no {found and found[1]}://; name a "
            "local path (copy the files, or mount the store)",
        )


def check_writable(path: Path, below: int = 0) -> None:
    """Ask whether a file can be written later, so that hours of work do not end in one that cannot. Nothing is left there.

    Args:
      path: the file. Folders that are missing can still be made.
      below: bytes that the longest path beside it, from its folder on, takes.

    Raises:
      ConfigError: if its folder, or the nearest one that exists, is no folder or cannot be written to, or the name is impossible.
    """
    try:
        reason = _impossible(path, below)
        folder = path.parent if not reason else Path()
        while not os.path.lexists(folder):
            folder = folder.parent
        if not folder.is_dir():
            reason = f"{folder} is a file"
        if not reason:
            # Rights do not say all: some file systems take no files at all.
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        reason = str(error.strerror)
    require(not reason, f"{_shown(str(path))} cannot be written: {reason}; name another place")


def _impossible(path: Path, below: int = 0) -> str:
    """Why no file can be called so; empty if one can."""
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.lstat()
        absolute = Path(os.path.abspath(path))
        folder = next(folder for folder in (absolute, *absolute.parents) if os.path.isdir(folder))
        longest = max(len(os.fsencode(part)) for part in absolute.parts)
        if longest > os.pathconf(folder, "PC_NAME_MAX"):
            return _TOO_LONG
        # The system counts the zero at the end.
        if len(os.fsencode(absolute)) + below >= os.pathconf("/", "PC_PATH_MAX"):
            return _TOO_LONG
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:
        return str(error)
    return ""


def _shown(name: str) -> str:
    """A name in a message of one line."""
    return one_line(name if name.isprintable() else repr(name), 200)
