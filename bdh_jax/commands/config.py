"""Show every key of an experiment with its value, type, range and meaning: ``bdh config nback``.

    bdh config nback:text --config.model.n_layer=4    with a key changed
    bdh config --workdir=runs/nback                   of a run
    bdh config mine.py --json                         for a program

A key is changed with ``--config.KEY=VALUE`` wherever an experiment is named.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from absl import flags

from bdh_jax.commands._flags import define_config, define_path
from bdh_jax.config import ConfigError
from bdh_jax.config.reference import Key, sections
from bdh_jax.console import WIDTH

_CONFIG = define_config()
_WORKDIR = define_path("workdir", "Folder of a training run, whose keys are shown if no experiment is named.")
_JSON = flags.DEFINE_bool("json", False, "Print a list of JSON objects instead: name, value, type, range, text.")


def main(argv: Sequence[str]) -> None:
    """Print the keys of the experiment that the flags name.

    Raises:
      ConfigError: if none is named.
    """
    del argv
    if _CONFIG.value is None:
        raise ConfigError(
            "name an experiment, such as `bdh config nback`, or a run with --workdir; `bdh list` has all experiments"
        )
    parts = sections(_CONFIG.value)
    if _JSON.value:
        print(json.dumps([key.to_dict() for part in parts for key in part.keys], indent=2))
        return
    for part in parts:
        print(_filled(f"{part.name}: {part.text}" if part.name else part.text, 0), end="\n\n")
        for key in part.keys:
            print(_shown(key))
        print()


def _shown(key: Key) -> str:
    accepts = f"{key.type}: {key.range}" if key.range else key.type
    lines = [_filled(f"{key.name} = {key.value!r}", 2, hang=4)]
    return "\n".join([*lines, *(_filled(text, 6) for text in (accepts, key.text) if text)])


def _filled(text: str, indent: int, hang: int = 0) -> str:
    return textwrap.fill(
        text.replace("``", "`"),
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang),
        break_on_hyphens=False,
    )
