"""The oldest version that pyproject.toml allows of every library, as constraints for pip: what ``make test-oldest`` installs.

python tests/oldest.py > constraints.txt
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("plot", "test", "text")
"""What the tests use."""
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?>=(?P<oldest>[\w.]+)(,<(?P<below>[\w.]+))?(?P<marker>; .+)?")


def requirements() -> dict[str, list[re.Match[str]]]:
    """Extra ("" for none) → its requirements.

    Raises:
      ValueError: for one that names no oldest version.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    found: dict[str, list[re.Match[str]]] = {}
    for extra, texts in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        found[extra] = []
        for text in texts:
            match = _REQUIREMENT.fullmatch(text)
            if match is None:
                raise ValueError(f"{text!r} must be written name>=oldest, or name>=oldest,<below")
            found[extra].append(match)
    return found


def constraints() -> list[str]:
    """``name==oldest`` of every library that the tests use, with its marker."""
    lines = {
        match["name"]: f"{match['name']}=={match['oldest']}{match['marker'] or ''}"
        for extra, matches in requirements().items()
        for match in matches
        if extra in ("", *EXTRAS)
    }
    return sorted(lines.values())


if __name__ == "__main__":
    print("\n".join(constraints()))
