"""What editors know in docstrings and the site's generator does not: roles (``:class:`X` ``) become code, and parameters that are described
together ("columns, rows: of panels") are described one by one."""

from __future__ import annotations

import re

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|obj):`~?([^`]*)`")
_QUOTE = re.compile(r"^( *\w+: )>", re.MULTILINE)
"""A description that begins with ">", which Markdown takes for a quotation."""
_GROUP = re.compile(r"^( *)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
_ARGUMENTS = re.compile(r"^( *)(?:Args|Attributes):\n(?:\1 +.*\n?|\n(?=\1 ))+", re.MULTILINE)


def plain(text: str) -> str:
    """A docstring as the generator reads it."""
    text = _ARGUMENTS.sub(lambda section: _GROUP.sub(_one_by_one, section[0]), text)
    text = _QUOTE.sub(r"\1\>", text)
    return _ROLE.sub(r"`\1`", text)


def _one_by_one(group: re.Match[str]) -> str:
    indent, names, said = group.groups()
    return "\n".join(f"{indent}{name}: {said}" for name in names.split(", "))
