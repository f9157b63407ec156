"""The commands: one module each, which defines its flags and ``main(argv)``. A module whose name begins with "_" is none.

Adding a command is adding a file here: its name, with dashes, is the command, and the first line of its docstring its help.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def commands() -> dict[str, str]:
    """Command → the first line of its help. No command is imported: each defines flags, and they share names."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))
    texts = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}
    return {name.replace("_", "-"): text.partition("\n")[0].partition(": ``")[0] for name, text in texts.items()}


def main(argv: Sequence[str]) -> int:
    """Run the command that ``argv[1]`` names with the flags after it. Returns 2 for one that does not exist."""
    known = commands()
    name = argv[1] if len(argv) > 1 else ""
    if name in ("", "-h", "--help", "help"):
        print("python -m bdh_jax COMMAND --flag=value …  (COMMAND --help lists the flags of one)\n")
        print("\n".join(f"  {command:<12} {text.rstrip('.')}" for command, text in known.items()))
        return 0 if name else 2
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"error: there is no command {name!r}.{hint} Commands: {', '.join(known)}", file=sys.stderr)
        return 2
    from bdh_jax.commands import _shared

    module = importlib.import_module(f"bdh_jax.commands.{name.replace('-', '_')}")
    sys.argv = [f"{argv[0]} {name}", *argv[2:]]
    _shared.run(module.main, module)
    return 0
