"""From ``bdh COMMAND …`` (or ``python -m bdh_jax COMMAND …``) to the command's module."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path

from bdh_jax.commands._help import list_of
from bdh_jax.commands._process import USAGE_ERROR, run
from bdh_jax.console import as_far_as_read, show_error


def commands() -> dict[str, str]:
    """Command → the first line of its help. No command is imported: each defines flags, and they share names."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))
    texts = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}
    return {name.replace("_", "-"): text.partition("\n")[0].partition(": ``")[0] for name, text in texts.items()}


def main(argv: Sequence[str]) -> int:
    """Run the command that ``argv[1]`` names with the flags after it, and exit; without one, list them.

    Returns:
      0 for a list that was asked for, else 2.
    """
    known = commands()
    name = argv[1] if len(argv) > 1 else ""
    if name in ("", "-h", "-help", "--help", "help"):
        with as_far_as_read():
            print(list_of(known))
        return 0 if name else USAGE_ERROR
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        show_error(f"there is no command {name!r}.{hint} Commands: {', '.join(known)}")
        return USAGE_ERROR
    run(importlib.import_module(f"bdh_jax.commands.{name.replace('-', '_')}"), [f"{argv[0]} {name}", *argv[2:]])
    return 0
