"""Python files and modules that a configuration names: executed here, and what goes wrong in them is one line.

A configuration is a file with a function ``get_config(variant="")`` that returns a frozen dataclass, or a ``ConfigDict`` made of one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from bdh_jax.config.base import ConfigError
from bdh_jax.config.catalogue import find
from bdh_jax.config.paths import check_local


def load_config(named: str, where: str = "--config") -> Any:
    """What a configuration file returns. The file is executed once by every call.

    Args:
      named: an experiment of the package (:mod:`bdh_jax.config.catalogue`) or ``FILE.py``, either with ``:VARIANT`` after it; the file's own
        ``get_config`` says which variants there are.
      where: what names the file, for messages.

    Returns:
      What ``get_config`` returned.

    Raises:
      ConfigError: if there is no such file, it cannot be executed, has no ``get_config``, or that refuses the variant.
    """
    check_local(named, where)
    path, variant = find(named, where)
    function = getattr(import_file(path, f"{where}={named}"), "get_config", None)
    if not callable(function):
        raise ConfigError(f"{where}={named}: {str(path)!r} has no function get_config")
    if variant is not None and not inspect.signature(function).parameters:
        raise ConfigError(f"{where}={named}: get_config of {str(path)!r} takes no variant; leave out {':' + variant!r}")
    try:
        return function() if variant is None else function(variant)
    except ConfigError as error:
        raise ConfigError(f"{where}={named}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{where}={named}: get_config failed: {describe(error, path)}") from error


def import_file(path: str | Path, where: str = "") -> ModuleType:
    """Execute a Python file, such as a configuration beside the one that calls this.

    Its classes are found by their module's name like those of any other module, as resolving annotations needs.

    Args:
      path: of the file.
      where: what names the file, for messages.

    Raises:
      ConfigError: if the file cannot be read, does not parse, raises, or exits.
    """
    path = Path(path).resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{where or path}: {path.name} is no Python file; name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    put_folder_on_path()
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where or path}: {path.name} cannot be executed: {describe(error, path)}") from error
    return module


def import_attribute(named: str, where: str) -> Any:
    """What ``module:attribute`` names. The folder the program was started from lies on the path.

    Raises:
      ConfigError: if the module cannot be found, does not parse, raises or exits, or has no such attribute.
    """
    module, _, attribute = named.partition(":")
    if not module or not attribute.isidentifier():
        raise ConfigError(f"{where}={named!r} must be module:name, such as mine:name for what mine.py calls name")
    put_folder_on_path()
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and (module + ".").startswith(error.name + "."):
            raise ConfigError(
                f"{where}={named!r}: there is no module {error.name!r} on the Python path; the folder you start from is on it"
            ) from error
        raise ConfigError(f"{where}={named!r}: module {module!r} cannot be imported: {describe(error)}") from error
    if not hasattr(imported, attribute):
        raise ConfigError(f"{where}={named!r}: module {module!r} has no {attribute!r}")
    return getattr(imported, attribute)


def put_folder_on_path() -> None:
    """Let modules of the current folder be imported, also by a program that was not started with ``python -m``."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def describe(error: BaseException, path: Path | None = None) -> str:
    """The error's kind and first line, and the last line of the file (any file, without ``path``) that led to it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename or '?').name}, line {error.lineno})"
    lines = [
        line for line in traceback.extract_tb(error.__traceback__) if path is None or Path(line.filename) == path.resolve()
    ]
    place = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}{': ' * bool(first)}{first}{place}"
