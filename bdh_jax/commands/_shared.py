"""What every command of the package shares: the ``--config`` flag, its overrides, and exit statuses.

A mistake of the user is one message on standard error and status 2, never a traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_collections
import rich.console
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from bdh_jax.commands._allocator import keep_freed_memory
from bdh_jax.config import ConfigError
from bdh_jax.data.documents import DataError
from bdh_jax.experiment import ExperimentConfig, experiment_from
from bdh_jax.generation.state_files import StateError
from bdh_jax.runs.checkpoint import FOLDER, RUN, CheckpointError, seed_folders
from bdh_jax.runs.lock import only_writer
from bdh_jax.training.loop import Interrupted, NonFiniteError

USAGE_ERROR = 2
_Number = TypeVar("_Number", int, float)


def table_console(width: int = 100) -> rich.console.Console:
    """A console for tables. A log or a file has no width of its own, and rich takes it for 80 columns, which the tables do not fit."""
    console = rich.console.Console()
    return console if console.is_terminal else rich.console.Console(width=width)


class _OptionalParser(flags.ArgumentParser):
    """Parses what ``parser`` parses, and ``None``; whether None is allowed there is decided by the dataclass."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument is None or argument in ("None", "none") else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


class _NamesParser(tuple_parser.TupleParser):
    """Parses ``0,1,2`` and also ``n2,n4``, names without quotes."""

    def parse(self, argument: Any) -> tuple:
        if isinstance(argument, str) and re.fullmatch(r"[A-Za-z_]\w*(,[A-Za-z_]\w*)*", argument):
            return tuple(argument.split(","))
        return super().parse(argument)


def define_config() -> flags.FlagHolder:
    """Define ``--config=FILE.py[:variant]``; its keys are overridden by ``--config.key=value``."""
    config_flags.register_flag_parser_for_type(float, _OptionalParser(flags.FloatParser()))
    config_flags.register_flag_parser_for_type(int, _OptionalParser(flags.IntegerParser()))
    config_flags.register_flag_parser_for_type(tuple, _NamesParser())
    return config_flags.DEFINE_config_file(
        "config", None, "Configuration file and variant, such as configs/nback.py:smoke; --config.KEY=VALUE changes a key."
    )


def experiment(config: ml_collections.ConfigDict) -> ExperimentConfig:
    """The typed configuration of an experiment.

    Raises:
      ConfigError: for a value that is ill-typed or out of range.
    """
    return experiment_from(config)


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
    if any((out / name).exists() for name in (RUN, FOLDER)) or seed_folders(out):
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


def numbers(flag: str, texts: Sequence[str], kind: type[_Number]) -> list[_Number]:
    """The numbers of a flag that is a list.

    Raises:
      ConfigError: if one of them is no number.
    """
    try:
        return [kind(text) for text in texts]
    except ValueError:
        raise ConfigError(f"--{flag}={','.join(texts)} must be numbers with commas between them") from None


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


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run an absl ``main`` and exit: 0 finished, 1 diverged, 2 a mistake in what was asked, 130 or 143 interrupted."""
    keep_freed_memory()
    app.run(lambda argv: _status(main, argv), flags_parser=_parse_flags)


def _status(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    _set_up_logging()
    try:
        return main(argv)
    except (ConfigError, CheckpointError, DataError, StateError) as error:
        return _fail(error, USAGE_ERROR)
    except NonFiniteError as error:
        return _fail(error, 1)
    except Interrupted as error:
        return _fail(error, 128 + error.signal_number)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "aborted; what was not yet saved is lost", 130)


def _set_up_logging() -> None:
    """Our own lines at INFO; of the libraries, which share absl's logger, warnings only unless --verbosity asks for more."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("bdh_jax")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _fail(error: Exception | str, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        check_config_flags(flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False))
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise ConfigError(f"{rest[1]!r} is not a flag; flags are written --name=value")
    except (flags.Error, ConfigError) as error:
        sys.exit(_fail(error, USAGE_ERROR))
    return rest


def check_config_flags(argv: Sequence[str]) -> None:
    """Find a missing file, an unknown variant or a misspelt key, which ``config_flags`` would report as tracebacks.

    Raises:
      ConfigError: names the mistake and what is valid.
    """
    path, overrides = None, []
    for index, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            path = match.group(1) if match.group(1) is not None else next(iter(argv[index + 1 :]), "")
        elif match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            overrides.append(match.group(1))
    if path is None and overrides:
        raise ConfigError(f"--config.{overrides[0]} needs a configuration to change: --config=configs/nback.py")
    if path is not None:
        config = _load_config(path)
        for key in overrides:
            _check_key(config, key)


def _load_config(flag: str) -> ml_collections.ConfigDict:
    path, *variant = flag.split(":", 1)
    if not Path(path).is_file():
        raise ConfigError(f"--config={flag}: there is no file {path!r} in {Path.cwd()}")
    if not path.endswith(".py"):
        raise ConfigError(f"--config={flag}: {path!r} is not a Python file")
    module = runpy.run_path(path)
    if "get_config" not in module:
        raise ConfigError(f"--config={flag}: {path!r} has no function get_config")
    try:
        return module["get_config"](*variant)
    except ConfigError as error:
        raise ConfigError(f"--config={flag}: {error}") from None


def _check_key(config: ml_collections.ConfigDict, key: str) -> None:
    node, parents = config, "config"
    for name in key.split("."):
        if not isinstance(node, ml_collections.ConfigDict):
            raise ConfigError(f"--config.{key}: {parents} is a single value and has no keys")
        if name not in node:
            close = difflib.get_close_matches(name, node.keys(), n=1)
            hint = f" Did you mean {parents}.{close[0]}?" if close else ""
            raise ConfigError(
                f"--config.{key}: {parents} has no key {name!r}.{hint} Valid keys of {parents}: {', '.join(node.keys())}"
            )
        node, parents = node[name], f"{parents}.{name}"
