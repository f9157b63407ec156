"""BDH, BDH with write-back, the same with consolidation, and a GPT: the same parameters, the same windows of the same text.

    python benchmarks/language_table.py --workdir=runs/language

Runs ``python -m bdh_jax.main --config=configs/text.py:VARIANT`` for each row and the seeds (finished runs are only read, so the command
can be interrupted and given again), prints validation bits per byte with the difference to the first row, paired by seed, and writes
``table.json`` beside the runs. About an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import rich.box
import rich.console
import rich.table

from bdh_jax.experiment import ExperimentConfig, experiment_from

ROWS = {
    "bdh": ("BDH", ""),
    "fast": ("BDH, write-back", "fast"),
    "fast_topk": ("BDH, write-back, top 10 %", "fast_topk"),
    "gpt": ("GPT", "gpt"),
}
"""Folder → label and variant."""


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs and table.json")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, with commas between")
    parser.add_argument("--size", default="", help="variant of another size, such as official")
    parser.add_argument("--override", nargs="*", default=[], help="key=value of the configuration, of every row")
    options = parser.parse_args()
    results = {name: _run(name, variant, options) for name, (_, variant) in ROWS.items()}
    table = rich.table.Table(title="validation bits per byte", box=rich.box.SIMPLE_HEAD, show_edge=False)
    for column in (
        "",
        "trained parameters",
        *(f"seed {seed}" for seed in options.seeds.split(",")),
        "mean ± sd",
        "to BDH, 95 % interval",
    ):
        table.add_column(column, justify="left" if column == "" else "right")
    record, first = {}, None
    for name, (label, _) in ROWS.items():
        config = experiment_from(results[name]["config"])
        bits = [run["evaluation"]["validation"]["bits_per_byte"] for run in results[name]["runs"].values()]
        first = bits if first is None else first
        parameters = _parameters(config)
        paired = None if bits is first else measure.paired([b - a for a, b in zip(first, bits, strict=True)])
        spread = statistics.stdev(bits) if len(bits) > 1 else 0.0
        table.add_row(
            label,
            f"{parameters:,}",
            *(f"{b:.4f}" for b in bits),
            f"{statistics.fmean(bits):.4f} ± {spread:.4f}",
            "" if paired is None else f"{paired[0]:+.4f} ± {paired[1]:.4f}",
        )
        record[name] = {
            "bits_per_byte": bits,
            "parameters": parameters,
            "difference": paired,
            "tokens": config.train.steps * config.train.batch_size * config.task.length,
            "tokens_per_second": [run["tokens_per_second"] for run in results[name]["runs"].values()],
        }
    rich.console.Console(width=120).print(table)
    (options.workdir / "table.json").write_text(json.dumps(record, indent=2) + "\n")


def _run(name: str, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    variants = ",".join(part for part in (options.size, variant) if part)
    workdir = options.workdir / name
    command = [
        sys.executable,
        "-m",
        "bdh_jax",
        "train",
        f"--config=configs/text.py{':' if variants else ''}{variants}",
        f"--config.seeds={options.seeds}",
        *(f"--config.{override}" for override in options.override),
        f"--workdir={workdir}",
    ]
    # A finished run is only printed, and one of another configuration refused.
    subprocess.run(command, check=True)
    return json.loads((workdir / "results.json").read_text())


def _parameters(config: ExperimentConfig) -> int:
    shapes = jax.eval_shape(config.model.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return sum(leaf.size for name, part in shapes.items() if name != "synapse" for leaf in jax.tree.leaves(part))


if __name__ == "__main__":
    main()
