"""Tables of n-back models, each trained from scratch over several seeds: that of the README, or one of the write rules.

    python benchmarks/nback_table.py --workdir=runs/table
    python benchmarks/nback_table.py --table=rules --workdir=runs/rules

runs ``python -m bdh_jax.main`` for each row and seed (finished runs are only read, so the command can be interrupted and given
again), prints the table, and writes ``table.json`` and ``table.md`` beside the runs. The rates in the configs were chosen by

    python benchmarks/nback_table.py --workdir=runs/rates --seeds=100 --rates=1e-3,2e-3,4e-3,8e-3

on a seed that the table does not use.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import rich.box
import rich.console
import rich.table


class Row(NamedTuple):
    """One row of a table."""

    label: str
    variant: str = ""
    """Of configs/nback.py."""
    overrides: tuple[str, ...] = ()
    """``key=value`` of the configuration."""

    @property
    def name(self) -> str:
        """Of its folder, and for ``--rows``."""
        return "-".join([self.variant.replace(",", "-") or "default", *(o.split(".")[-1] for o in self.overrides)])


TABLES = {
    "variants": (
        Row("write-back (default)"),
        Row("no write-back", "baseline"),
        Row("shift attention", "shift_attention"),
        Row("stopped gradient", "stop_gradient"),
        Row("loss on all positions", "all_positions"),
        Row("stopped gradient, loss on all positions", "stop_gradient,all_positions"),
    ),
    "rules": (
        Row("Hebbian (default)"),
        Row("delta", overrides=("model.fast.rule=delta",)),
        Row("gated delta", overrides=("model.fast.rule=gated_delta",)),
        Row("Longhorn", overrides=("model.fast.rule=longhorn",)),
        Row("Oja", overrides=("model.fast.rule=oja",)),
    ),
}

SETS = ("n2", "n4", "n8")


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, default="variants", help="which table")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of every row")
    parser.add_argument("--rates", default="", help="peak learning rates to try instead of each config's own")
    parser.add_argument("--rows", default="", help="rows to run, joined by semicolons; all by default")
    parser.add_argument("--steps", type=int, default=None, help="training steps instead of each config's own")
    arguments = parser.parse_args()
    chosen = TABLES[arguments.table]
    if arguments.rows:
        names = arguments.rows.split(";")
        unknown = set(names) - {row.name for row in chosen}
        if unknown:
            parser.error(f"--rows: no row {sorted(unknown)}; there are {', '.join(row.name for row in chosen)}")
        chosen = [row for row in chosen if row.name in names]
    rows = []
    for row in chosen:
        for rate in arguments.rates.split(","):
            rows.append(_run(row, rate, arguments))
    _print(rows)
    _write(rows, arguments.workdir)


def _run(row: Row, rate: str, arguments: argparse.Namespace) -> dict:
    folder = arguments.workdir / "-".join(filter(None, [row.name, rate and f"rate{rate}"]))
    command = [
        sys.executable,
        "-m",
        "bdh_jax.main",
        f"--config=configs/nback.py{':' * bool(row.variant)}{row.variant}",
        f"--workdir={folder}",
        f"--config.seeds={arguments.seeds}",
        *(f"--config.{override}" for override in row.overrides),
    ]
    if rate:
        command.append(f"--config.optimizer.learning_rate={rate}")
    if arguments.steps:
        command.append(f"--config.train.steps={arguments.steps}")
    print("$", " ".join(["python", *command[1:]]), flush=True)
    status = subprocess.run(command).returncode
    if status:
        sys.exit(f"the run of {row.label!r} ended with exit status {status}; what it printed above says why")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {
        "label": row.label,
        "variant": row.variant,
        "overrides": list(row.overrides),
        "rate": results["config"]["optimizer"]["learning_rate"],
        "steps": results["steps"],
        "seeds": results["seeds"],
        "seconds": results["seconds"] / len(results["seeds"]),
        "mean": results["mean"],
        "spread": results["spread"],
    }


def _cell(row: dict, name: str) -> str:
    spread = row["spread"][name]["ratio"]
    return f"{row['mean'][name]['ratio']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _print(rows: list[dict]) -> None:
    table = rich.table.Table(title="credit ÷ ceiling, mean ± standard deviation over seeds", box=rich.box.SIMPLE_HEAD)
    for name in ("", "rate", "steps", *SETS):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        table.add_row(row["label"], f"{row['rate']:g}", str(row["steps"]), *(_cell(row, name) for name in SETS))
    rich.console.Console().print(table)


def _write(rows: list[dict], workdir: Path) -> None:
    (workdir / "table.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    lines = ["| | variant | rate | steps | " + " | ".join(SETS) + " |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        changes = [f"`:{row['variant']}`"] * bool(row["variant"]) + [f"`{override}`" for override in row["overrides"]]
        variant = " ".join(changes) or "default"
        cells = " | ".join(_cell(row, name) for name in SETS)
        lines.append(f"| {row['label']} | {variant} | {row['rate']:g} | {row['steps']} | {cells} |")
    (workdir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
