"""Name the experiments and their variants: ``bdh list``.

An experiment is what ``bdh train NAME`` trains, with variants after a colon: ``bdh train nback:text,clean --workdir=runs/text``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bdh_jax.config.catalogue import experiments
from bdh_jax.console import WIDTH


def main(argv: Sequence[str]) -> None:
    """Print every experiment with a line, and its variants with theirs."""
    del argv
    found = experiments()
    width = 2 + max(len(name) for experiment in found.values() for name in experiment.variants)
    for name, experiment in found.items():
        print(f"{name}\n{textwrap.fill(experiment.line, WIDTH, initial_indent='  ', subsequent_indent='  ')}")
        for variant, line in experiment.variants.items():
            indent = " " * (width + 4)
            print(
                textwrap.fill(
                    line.replace("``", "`"), WIDTH, initial_indent=f"    {variant:<{width}}", subsequent_indent=indent
                )
            )
        print()
    print("bdh train NAME:VARIANT,VARIANT --workdir=runs/NAME    trains one")
    print("bdh config NAME:VARIANT                               shows its keys")
