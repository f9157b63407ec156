"""The code of a page of the documentation, so that a test runs what the page shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def write_files(page: str, folder: Path) -> list[str]:
    """Write every Python block of a page that begins with ``# NAME.py`` into that file of a folder. Returns their names."""
    names = []
    for block in _blocks(page, "python"):
        match = re.match(r"# (\w+\.py)\n", block)
        if match is not None:
            (folder / match.group(1)).write_text(block, encoding="utf-8")
            names.append(match.group(1))
    return names


def import_module(page: str, name: str) -> ModuleType:
    """The module ``name`` that a page shows as ``# NAME.py``, found by its name from now on."""
    (code,) = (block for block in _blocks(page, "python") if block.startswith(f"# {name}.py\n"))
    module = ModuleType(name)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    exec(compile(code, f"{page}:{name}.py", "exec"), module.__dict__)
    return module


def commands(page: str) -> list[list[str]]:
    """The arguments of every ``python -m MODULE …`` of a page, the module first."""
    lines = [line for block in _blocks(page, "bash") for line in block.splitlines() if line.startswith("python -m ")]
    return [line.split()[2:] for line in lines]


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
