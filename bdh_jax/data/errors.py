"""What is wrong with data, in one line, and packages that are not there."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


class DataError(ValueError):
    """Data that cannot be used. The message names the file, what is wrong and the remedy."""


def text_package(use: str, *modules: str) -> Any:
    """Import what the extra ``text`` installs.

    Args:
      use: what needs it, for the message.
      modules: names; the first is returned, the others are its submodules.

    Raises:
      DataError: if it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Some import tqdm, which misses ipywidgets in a notebook that has none; nothing here draws its bars.
            warnings.filterwarnings("ignore", message="IProgress not found")
            package, *_ = map(importlib.import_module, modules)
    except ImportError as error:
        raise DataError(f'{use} needs a package that is not installed: pip install "bdh_jax[text]"') from error
    return package


def first_line(error: object) -> str:
    """What an error of a library says, short enough for one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
