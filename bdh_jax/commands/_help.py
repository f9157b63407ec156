"""What ``--help`` shows of a command, and the list of all of them, in 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from absl import flags

from bdh_jax.console import WIDTH

_INDENT = 4


def help_of(command: ModuleType) -> str:
    """The docstring of a command, and its flags."""
    key_flags = flags.FLAGS.get_key_flags_for_module(command)
    shown = [filled(command.__doc__ or "")]
    if key_flags:
        shown.append("\n".join(["Flags:", "", *(_flag(flag) for flag in key_flags)]))
    return "\n\n".join(shown)


def list_of(commands: Mapping[str, str]) -> str:
    """The commands, each with its line.

    Args:
      commands: command → its line.
    """
    width = 2 + max(map(len, commands))
    lines = ["bdh COMMAND --flag=value …", ""]
    for name, line in commands.items():
        indent = " " * (width + 2)
        lines += textwrap.wrap(line.rstrip("."), WIDTH, initial_indent=f"  {name:<{width}}", subsequent_indent=indent)
    return "\n".join([*lines, "", "bdh COMMAND --help shows the flags of one, bdh list the experiments."])


def filled(text: str) -> str:
    """A docstring whose paragraphs are broken anew. Lines that are indented stay as they are."""
    paragraphs = re.split(r"\n\s*\n(?=.)", text.strip())
    return "\n\n".join(_paragraph(paragraph) for paragraph in paragraphs)


def _paragraph(paragraph: str) -> str:
    if paragraph.startswith(" "):
        return paragraph
    plain = re.sub(r":\w+:(?=`)", "", paragraph.replace("``", "`"))
    return textwrap.fill(" ".join(plain.split()), WIDTH, break_on_hyphens=False, break_long_words=False)


def _flag(flag: flags.Flag[Any]) -> str:
    name = f"[no]{flag.name}" if flag.boolean else flag.name
    notes = (
        []
        if flag.default in (None, False, []) or flag.boolean and not flag.default
        else [f"default: {str(flag.default_as_str).strip(chr(39))}"]
    )
    kind = flag.parser.syntactic_help
    if isinstance(flag.parser, flags.EnumParser):
        notes.insert(0, " or ".join(flag.parser.enum_values))
    elif kind and "int" in flag.flag_type() or kind and "float" in flag.flag_type():
        notes.insert(0, kind)
    if isinstance(flag, flags.MultiFlag):
        notes.append("may be given several times")
    # Absl puts the values of an enumeration before the text, and a remark of its own behind that of a list.
    said = re.sub(r"^<[^>]*>: ", "", flag.help or "").split(";\n    repeat this option")[0]
    text = " ".join([said, f"({'; '.join(notes)})" if notes else ""]).strip()
    indent = " " * (2 * _INDENT - 2)
    body = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return f"  --{name}:\n{body}"
