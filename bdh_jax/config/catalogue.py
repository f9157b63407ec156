"""The experiments that come with the package: the files of ``configs/``, by name. They are read here, not executed.

Adding an experiment is adding a file there. Its name is the experiment's, the first line of its docstring its line in the list. A
variant is described in the docstring, on a line that begins with four spaces, its name and at least two spaces; lines below that are
indented further belong to it.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from pathlib import Path

from bdh_jax.config.base import ConfigError

_PACKAGE = Path(__file__).parents[1]
_VARIANT = re.compile(r" {4}(\w+) {2,}(\S.*)")
_CONTINUED = re.compile(r" {6,}(\S.*)")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a file of ``configs/`` says of itself."""

    path: Path
    line: str
    """What it is, in a line."""
    variants: dict[str, str]
    """Variant → what it changes."""


def folder() -> Path:
    """Where the experiments lie: in an installed package within it, in a checkout (also of an editable installation) beside it.

    Raises:
      ConfigError: if they are in neither place.
    """
    for place in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if place.is_dir():
            return place
    raise ConfigError(
        f"the experiments of the package are missing: there is no {_PACKAGE / 'configs'}; install bdh_jax again"
    )


def experiments() -> dict[str, Experiment]:
    """Name → experiment, in alphabetical order."""
    files = sorted(path for path in folder().glob("*.py") if not path.name.startswith("_"))
    return {path.stem: _described(path) for path in files}


def find(named: str, where: str) -> tuple[Path, str | None]:
    """The file of an experiment, and the variants asked for.

    Args:
      named: ``NAME`` or ``FILE.py``, and after a colon variants, if any.
      where: what names it, for messages.

    Returns:
      The path, and what stands behind the colon; None without one.

    Raises:
      ConfigError: if there is no such file or experiment, or it is no Python file.
    """
    file, colon, variants = named.partition(":")
    path = Path(file)
    if "/" not in file and path.suffix != ".py" and not path.is_file():
        known = experiments()
        if file not in known:
            close = difflib.get_close_matches(file, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"{where}={named}: there is no experiment {file!r}.{hint} Experiments: {', '.join(known)}; or a file of your own, such as "
                "mine.py"
            )
        path = known[file].path
    elif not path.is_file():
        raise ConfigError(f"{where}={named}: there is no file {file!r} in {Path.cwd()}")
    if path.suffix != ".py":
        raise ConfigError(f"{where}={named}: {file!r} is not a Python file")
    return path, variants if colon else None


def _described(path: Path) -> Experiment:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""
    variants: dict[str, str] = {}
    current = None
    for line in text.splitlines():
        if found := _VARIANT.fullmatch(line):
            current, variants[found[1]] = found[1], found[2]
        elif current and (more := _CONTINUED.fullmatch(line)):
            variants[current] += f" {more[1]}"
        else:
            current = None
    return Experiment(path, text.partition("\n")[0], variants)
