"""Tables of n-back models, each trained from scratch over several seeds: variants, write rules, addresses, consolidation in training, or text.

    python benchmarks/nback_table.py --workdir=runs/table
    python benchmarks/nback_table.py --table=rules --workdir=runs/rules
    python benchmarks/nback_table.py --table=addresses --workdir=runs/addresses
    python benchmarks/nback_table.py --table=consolidation --workdir=runs/consolidation
    python benchmarks/nback_table.py --table=text --workdir=runs/nback_text

runs ``python -m bdh_jax.main`` for each row and seed (finished runs are only read, so the command can be interrupted and given
again), prints the table, and writes ``table.json`` and ``table.md`` beside the runs. The table of consolidation scores each model on
the counter-benchmarks too. The learning rates in the configs were chosen by

    python benchmarks/nback_table.py --workdir=runs/rates --seeds=100 --rates=1e-3,2e-3,4e-3,8e-3

on a seed that the tables do not use.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
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
    """Of the table's configuration."""
    overrides: tuple[str, ...] = ()
    """``key=value`` of the configuration."""

    @property
    def name(self) -> str:
        """Of its folder, and for ``--rows``."""
        changes = [re.sub(r"^.*\.(?=\w+=)", "", override) for override in self.overrides]
        return "-".join([self.variant.replace(",", "-") or "default", *changes])


NBACK = ("n2", "n4", "n8")
COUNTER = ("vargap1", "vargap2", "repeated8", "n16")


FUNCTIONS = {"dense": 0.1, "row_topk": 0.2, "row_random": 0.4, "row_bottom": 0.01}
"""Consolidation functions, each with the rate that the lifelong benchmark chose for it (docs/results/lifelong.md)."""


class Table(NamedTuple):
    """The rows of a table, and what they have in common."""

    rows: tuple[Row, ...]
    config: str = "configs/nback.py"
    seeds: str = "0,1,2"
    rate: str = "optimizer.learning_rate"
    """The key that ``--rates`` changes and the column "rate" shows."""
    counter: bool = False
    """Whether models are scored on the counter-benchmarks too."""


TABLES = {
    "variants": Table(
        (
            Row("write-back (default)"),
            Row("no write-back", "baseline"),
            Row("shift attention", "shift_attention"),
            Row("shift attention that forgets", "shift_decay"),
            Row("stopped gradient", "stop_gradient"),
            Row("loss on all positions", "all_positions"),
            Row("stopped gradient, loss on all positions", "stop_gradient,all_positions"),
        )
    ),
    "rules": Table(
        (
            Row("Hebbian (default)"),
            Row("gated Hebbian", overrides=("model.fast.rule=gated_hebbian",)),
            Row("delta", overrides=("model.fast.rule=delta",)),
            Row("gated delta", overrides=("model.fast.rule=gated_delta",)),
            Row("Longhorn", overrides=("model.fast.rule=longhorn",)),
            Row("Oja", overrides=("model.fast.rule=oja",)),
        )
    ),
    "addresses": Table(
        (
            Row("code (default)"),
            Row("gated code", overrides=("model.fast.address_source=gated",)),
            Row("gate", overrides=("model.fast.address_source=gate",)),
            Row("code, the largest 32 (kwta)", overrides=("model.fast.address_norm=kwta",)),
            Row("code, centred", overrides=("model.fast.address_norm=centred",)),
        )
    ),
    "consolidation": Table(
        (
            Row("control"),
            *(Row(name, name) for name in FUNCTIONS),
            *(Row(f"{name}, own rate", name, (f"consolidation.options.rate={rate}",)) for name, rate in FUNCTIONS.items()),
            *(Row(f"{name}, equal norm", f"{name},equal_norm") for name in FUNCTIONS),
        ),
        config="configs/consolidation.py",
        seeds="1337,2026,2027",
        rate="consolidation.options.rate",
        counter=True,
    ),
    "text": Table(
        (
            Row("write-back", "text"),
            Row(
                "no write-back, attention that learns to forget",
                "text",
                (
                    "model.fast.enabled=False",
                    "model.attention_decay=0.8,0.95,0.99,0.998",
                    "model.learn_attention_decay=True",
                ),
            ),
        ),
        seeds="0",
    ),
}


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, default="variants", help="which table")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", default="", help="seeds of every row instead of the table's own")
    parser.add_argument("--rates", default="", help="rates to try instead of each row's own")
    parser.add_argument("--rows", default="", help="rows to run, joined by semicolons; all by default")
    parser.add_argument("--steps", type=int, default=None, help="training steps instead of each config's own")
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    chosen = table.rows
    if arguments.rows:
        names = arguments.rows.split(";")
        unknown = set(names) - {row.name for row in chosen}
        if unknown:
            parser.error(f"--rows: no row {sorted(unknown)}; there are {', '.join(row.name for row in chosen)}")
        chosen = [row for row in chosen if row.name in names]
    rows = []
    for row in chosen:
        for rate in arguments.rates.split(","):
            rows.append(_run(table, row, rate, arguments))
    for sets in (NBACK, COUNTER)[: 1 + table.counter]:
        _print(rows, sets)
    _write(rows, NBACK + COUNTER * table.counter, arguments.workdir)


def _run(table: Table, row: Row, rate: str, arguments: argparse.Namespace) -> dict:
    folder = arguments.workdir / "-".join(filter(None, [row.name, rate and f"rate{rate}"]))
    command = [
        sys.executable,
        "-m",
        "bdh_jax",
        "train",
        f"--config={table.config}{':' * bool(row.variant)}{row.variant}",
        f"--workdir={folder}",
        f"--config.seeds={arguments.seeds or table.seeds}",
        *(f"--config.{override}" for override in row.overrides),
    ]
    if rate:
        command.append(f"--config.{table.rate}={rate}")
    if arguments.steps:
        command.append(f"--config.train.steps={arguments.steps}")
    _call(command, row)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    ratios = {seed: {name: run["evaluation"][name]["ratio"] for name in NBACK} for seed, run in results["runs"].items()}
    if table.counter:
        for seed in ratios:
            ratios[seed].update(_counter(folder / f"seed{seed}", row))
    section, key = table.rate.split(".")
    return {
        "label": row.label,
        "variant": row.variant,
        "overrides": list(row.overrides),
        "rate": results["config"][section][key],
        "steps": results["steps"],
        "seconds": results["seconds"] / len(results["seeds"]),
        "ratios": ratios,
    }


def _counter(folder: Path, row: Row) -> dict[str, float]:
    """Credit ÷ ceiling of a trained model on the counter-benchmarks, by set."""
    out = folder / "counter.json"
    if not out.exists():
        flags = [f"--workdir={folder}", "--config=configs/counter.py", f"--out={out}"]
        _call([sys.executable, "-m", "bdh_jax", "evaluate", *flags], row)
    return {score["name"]: score["ratio"] for score in json.loads(out.read_text(encoding="utf-8"))["rows"]}


def _call(command: list[str], row: Row) -> None:
    print("$", " ".join(["python", *command[1:]]), flush=True)
    status = subprocess.run(command).returncode
    if status:
        sys.exit(f"{command[3]} of {row.label!r} ended with exit status {status}; what it printed above says why")


def _cell(row: dict, name: str) -> str:
    ratios = [ratios[name] for ratios in row["ratios"].values()]
    spread = f" ±{statistics.stdev(ratios):.3f}" if len(ratios) > 1 else ""
    return f"{statistics.mean(ratios):.3f}{spread}"


def _rate(row: dict) -> str:
    return "" if row["rate"] is None else f"{row['rate']:g}"


def _print(rows: list[dict], sets: tuple[str, ...]) -> None:
    title = "credit ÷ ceiling, mean ± standard deviation over seeds"
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in ("rate", "steps", *sets):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["label"], _rate(row), str(row["steps"]), *(_cell(row, name) for name in sets))
    rich.console.Console().print(table)


def _write(rows: list[dict], sets: tuple[str, ...], workdir: Path) -> None:
    (workdir / "table.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    lines = ["| | variant | rate | steps | " + " | ".join(sets) + " |", "|---" * (4 + len(sets)) + "|"]
    for row in rows:
        changes = [f"`:{row['variant']}`"] * bool(row["variant"]) + [f"`{override}`" for override in row["overrides"]]
        variant = " ".join(changes) or "default"
        cells = " | ".join(_cell(row, name) for name in sets)
        lines.append(f"| {row['label']} | {variant} | {_rate(row)} | {row['steps']} | {cells} |")
    (workdir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
