"""Where commands write: tables, results and figures, and whether there is room for them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console

from bdh_jax.config import ConfigError
from bdh_jax.runs.folder import CHECKPOINTS, RUN, seed_folders
from bdh_jax.runs.lock import only_writer


def table_console(width: int = 100) -> rich.console.Console:
    """A console for tables. A log or a file has no width of its own, and rich takes it for 80 columns, which the tables do not fit."""
    console = rich.console.Console()
    return console if console.is_terminal else rich.console.Console(width=width)


def new_file(name: str | None) -> Path | None:
    """Where ``--out`` lets a command write its scores, asked before it measures anything; None without it.

    Raises:
      ConfigError: if the file exists, or cannot be written.
    """
    if not name:
        return None
    path = Path(name)
    if path.exists():
        raise ConfigError(f"--out={path} exists; name another file, or delete it first")
    check_writable(path)
    return path


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write scores as JSON.

    Raises:
      ConfigError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror}; name another file") from error


@contextlib.contextmanager
def result_files(out: Path, figures: Sequence[str] = ("figure.png",), *, overwrite: bool) -> Iterator[dict[str, Path]]:
    """Where a benchmark's command writes ``results.json`` and its figures, asked before it measures anything in the block.

    Raises:
      ConfigError: if a file is there and ``overwrite`` is false, if ``out`` is the folder of a training run, which has a
        ``results.json`` of its own, or if another process writes there.
    """
    with only_writer(out):
        yield _result_files(out, figures, overwrite)


def _result_files(out: Path, figures: Sequence[str], overwrite: bool) -> dict[str, Path]:
    if any((out / name).exists() for name in (RUN, CHECKPOINTS)) or seed_folders(out):
        raise ConfigError(f"--out={out} holds a training run, whose results.json is another one; name another folder")
    files = {name: out / name for name in ("results.json", *figures)}
    for path in files.values():
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; name another folder with --out, or pass --overwrite")
    check_writable(files["results.json"])
    return files


def save_figure(plot: Callable[[], Any], path: Path) -> None:
    """Draw a figure and write it, or say in the log what is missing to draw it. Tables do not wait for it.

    Args:
      plot: makes a ``matplotlib.figure.Figure``.
      path: where it goes.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logging.getLogger("bdh_jax").warning('%s is not drawn: figures need matplotlib, pip install -e ".[plot]"', path)
        return
    plot().savefig(path, dpi=150)


def check_writable(path: Path) -> None:
    """Ask whether a file can be written later, so that hours of work do not end in one that cannot. Nothing is made.

    Raises:
      ConfigError: if its folder, or the nearest one that exists, is no folder or may not be written to.
    """
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "may not be written to" if folder.is_dir() else "is a file"
        raise ConfigError(f"{path} cannot be written: {folder} {reason}; name another place")
