"""Where commands write: results and figures, and whether there is room for them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bdh_jax.config import ConfigError
from bdh_jax.config.paths import check_writable
from bdh_jax.config.whole_files import whole_file, write_whole
from bdh_jax.runs.folder import CHECKPOINTS, RUN, seed_folders
from bdh_jax.runs.lock import only_writer

_LOGGER = logging.getLogger("bdh_jax")


def new_file(name: str | None, flag: str = "out") -> Path | None:
    """Where a flag lets a command write what it makes, asked before it makes anything; None without it.

    Raises:
      ConfigError: if the file exists, or cannot be written.
    """
    if not name:
        return None
    path = Path(name)
    check_writable(path)
    if os.path.lexists(path):
        raise ConfigError(f"--{flag}={path} exists; name another file, or delete it first")
    return path


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write scores as JSON, whole or not at all.

    Raises:
      ConfigError: if the file cannot be written.
    """
    write_output(path, json.dumps(record, indent=2) + "\n")


def write_output(path: Path, content: str) -> None:
    """Write a text, whole or not at all.

    Raises:
      ConfigError: if the file cannot be written.
    """
    with _writing(path):
        write_whole(path, content)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; make room, or name another file") from error
    _LOGGER.info("wrote %s", path)


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

    Raises:
      ConfigError: if the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        _LOGGER.warning('%s is not drawn: figures need matplotlib, pip install "bdh_jax[plot]"', path)
        return
    figure = plot()
    with _writing(path), whole_file(path) as part:
        figure.savefig(part, dpi=150, format=path.suffix[1:])
