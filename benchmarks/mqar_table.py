"""Recall against bytes of state: multi-query associative recall (MQAR) by BDH and by the models it is compared with.

    python benchmarks/mqar_table.py --workdir=runs/mqar --jobs=2 --json benchmarks/results/mqar_cpu.json --figure build/mqar.png

Two parts. ``smallest`` trains every model in the smallest published setting (``configs/mqar.py``: 64 tokens, 4 pairs, 8,192 token ids) until it
recalls .99, with one seed. ``grid`` trains each model with states of several sizes on sequences of 64, 128 and 256 tokens with 4 to 32 pairs over
1,024 token ids (``mqar:grid``): at every rate with a seed that is not reported, then at the best of them with the first of the seeds; the five rows
that recall most also with the others. Finished runs are only read, so that the command can be interrupted and given again.

Bytes are those of the state that one example carries from token to token, in float32, all layers and convolutions together. ``--smoke`` trains
tiny models for a few steps: does it run?
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measure

from bdh_jax.analysis import figures
from bdh_jax.config.convert import change
from bdh_jax.console import Progress
from bdh_jax.experiment import ExperimentConfig, record_of, train
from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.runs.folder import finished
from bdh_jax.training.loop import NonFiniteError

ROOT = Path(__file__).parents[1]
VALIDATION_SEED = 100
"""Of the runs by which a rate is chosen."""
MOST_SEEDS = 5
"""Rows that are trained with all seeds: those that recall most."""


class Row(NamedTuple):
    """A model with a state of one size."""

    family: str
    """What its line in the figure is called."""
    variant: str
    """Of ``configs/mqar.py``; empty for the default."""
    changes: tuple[tuple[str, int], ...] = ()
    """Of the model's configuration, by key."""

    @property
    def label(self) -> str:
        """In the table."""
        return ", ".join([self.family, *(f"{key} {value}" for key, value in self.changes)])

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join([self.variant or "attention", *(f"{key}={value}" for key, value in self.changes)])


MODELS = {
    "attention": "",
    "GLA": "gla",
    "gated DeltaNet": "gated_deltanet",
    "Mamba-2": "mamba2",
    "BDH": "bdh",
    "BDH, write-back": "write_back",
}
"""Name → variant."""
SIZES: dict[str, tuple[tuple[tuple[str, int], ...], ...]] = {
    "attention": tuple((("window", size),) for size in (16, 64, 256)),
    "GLA": tuple((("d_key", size),) for size in (8, 32, 64)),
    "gated DeltaNet": tuple((("d_key", size),) for size in (8, 24, 64)),
    "Mamba-2": tuple((("d_state", size),) for size in (8, 32, 128)),
    "BDH": tuple((("n_neurons", size),) for size in (32, 128, 512)),
    "BDH, write-back": tuple((("n_neurons", size),) for size in (32, 128, 512)),
}
"""What makes a state larger."""
PARTS = {
    "smallest": tuple(Row(family, variant) for family, variant in MODELS.items()),
    "grid": tuple(Row(family, MODELS[family], changes) for family, sizes in SIZES.items() for changes in sizes),
}


class Run(NamedTuple):
    """One training."""

    part: str
    row: Row
    seed: int
    rate: float | None
    """None: that of the experiment."""

    def folder(self, options: argparse.Namespace) -> Path:
        """Where it is."""
        rate = "" if self.rate is None else f"rate{self.rate:g}"
        return options.workdir / self.part / self.row.name / rate / f"seed{self.seed}"

    def config(self, options: argparse.Namespace) -> ExperimentConfig:
        """What is trained."""
        variants = [self.row.variant, "grid" if self.part == "grid" else "", "smoke" if options.smoke else ""]
        config = importlib.import_module("configs.mqar").get_config(",".join(filter(None, variants)))
        config = change(config, "model", **dict(self.row.changes))
        if self.rate is not None:
            config = change(config, "optimizer", learning_rate=self.rate)
        return change(config, seed=self.seed)


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS), help="what is trained")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=tuple(MODELS), help="models")
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2", help="learning rates of the grid")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of what is reported")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process and on a core of its own")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and a few steps: does it run?")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--figure", type=Path, help="draw accuracy against bytes of state there")
    parser.add_argument("--one", nargs=4, metavar=("PART", "ROW", "SEED", "RATE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, name, seed, rate = options.one
        (row,) = (row for row in PARTS[part] if row.name == name)
        train_one(Run(part, row, int(seed), None if rate == "-" else float(rate)), options)
        return
    seeds, rates = (
        [kind(cell) for cell in cells.split(",")] for kind, cells in ((int, options.seeds), (float, options.rates))
    )
    found = {part: measured(part, seeds, rates, options) for part in options.parts}
    for part, rows in found.items():
        report(part, rows)
    if options.json:
        command = " ".join(["python", "benchmarks/mqar_table.py", *sys.argv[1:]])
        measure.write_json(options.json, {"command": command, "seeds": seeds, "rates": rates, "parts": found})
    if options.figure and found.get("grid"):
        draw(found["grid"]).savefig(options.figure, dpi=150)


def measured(part: str, seeds: Sequence[int], rates: Sequence[float], options: argparse.Namespace) -> dict[str, Any]:
    """Label → what is known of each row of a part, trained if it is missing."""
    rows = [row for row in PARTS[part] if row.family in options.models]
    chosen: dict[Row, float | None] = dict.fromkeys(rows)
    if part == "grid":
        tried = results([Run(part, row, VALIDATION_SEED, rate) for row in rows for rate in rates], options)
        for row in rows:
            # Of rates that diverged there is nothing to choose.
            scores = {rate: result["primary"] for rate in rates if (result := tried[Run(part, row, VALIDATION_SEED, rate)])}
            chosen[row] = max(scores, key=scores.__getitem__, default=rates[0])
    runs = results([Run(part, row, seeds[0], chosen[row]) for row in rows], options)
    if part == "grid":
        order = sorted(rows, key=lambda row: -primary(runs[Run(part, row, seeds[0], chosen[row])]))
        runs |= results([Run(part, row, seed, chosen[row]) for row in order[:MOST_SEEDS] for seed in seeds[1:]], options)
    return {
        row.label: described(
            row, chosen[row], {run.seed: result for run, result in runs.items() if run.row == row}, part, options
        )
        for row in rows
    }


def primary(result: dict[str, Any] | None) -> float:
    """A result's score; that of a run that diverged is zero."""
    return result["primary"] if result else 0.0


def described(
    row: Row, rate: float | None, runs: dict[int, dict[str, Any] | None], part: str, options: argparse.Namespace
) -> dict[str, Any]:
    """What the table says of a row."""
    config = Run(part, row, 0, rate).config(options)
    length = max(numbers[0] for numbers in config.task.train)
    return {
        "family": row.family,
        "state_bytes": state_bytes(config.model),
        "parameters": count_parameters(config.model.build().declared_slow()),
        "multiply_adds_per_token": config.model.multiply_adds_per_token(length),
        "rate": config.optimizer.learning_rate,
        "runs": {
            str(seed): result
            and {
                "steps": result["steps"],
                "seconds": result["seconds"],
                "accuracy": {name: score["accuracy"] for name, score in result["evaluation"].items()},
                "chance": {name: score["extra"]["chance"] for name, score in result["evaluation"].items()},
            }
            for seed, result in runs.items()
        },
    }


def state_bytes(model: ModelConfig) -> int:
    """Bytes of the state that one example carries."""
    return jax.eval_shape(lambda: model.build().init_fast(1)).nbytes


def results(runs: Sequence[Run], options: argparse.Namespace) -> dict[Run, dict[str, Any] | None]:
    """The results of these runs, trained if they are missing; None of one that diverged."""
    missing = [run for run in runs if not (diverged(run, options).exists() or of_run(run, options))]
    progress = Progress(f"{runs[0].part}: runs" if runs else "runs", len(runs), done=len(runs) - len(missing))
    with progress, ThreadPoolExecutor(max(1, options.jobs)) as pool:
        for run, _ in zip(missing, pool.map(lambda run: apart(run, options), missing), strict=True):
            progress.advance(1, run.row.label)
    return {run: of_run(run, options) for run in runs}


def diverged(run: Run, options: argparse.Namespace) -> Path:
    """The file that says that a run's loss was not finite."""
    return run.folder(options) / "diverged.txt"


def of_run(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """The results of a run that came to its end."""
    folder = run.folder(options)
    return finished(folder, record_of(run.config(options))) if folder.is_dir() else None


def apart(run: Run, options: argparse.Namespace) -> None:
    """Train in a process of its own, whose messages go to a file beside the run."""
    folder = run.folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    rate = "-" if run.rate is None else repr(run.rate)
    arguments = ["--workdir", str(options.workdir), *(["--smoke"] if options.smoke else [])]
    command = [sys.executable, __file__, *arguments, "--one", run.part, run.row.name, str(run.seed), rate]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (folder.parent / f"{folder.name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})


def train_one(run: Run, options: argparse.Namespace) -> None:
    """Train here."""
    try:
        train(run.config(options), run.folder(options))
    except NonFiniteError as error:
        diverged(run, options).write_text(str(error), encoding="utf-8")


def report(part: str, rows: dict[str, Any]) -> None:
    """Print a part as a table in Markdown: the mean over the seeds, ± their standard deviation."""
    sets = list(next(iter(next(iter(rows.values()))["runs"].values()))["accuracy"])
    print(f"\n{part}: share of asked values that are right (ceiling 1; chance 1 ÷ pairs)\n")
    head = ["model", "state", "weights", "rate", "steps", *sets, "seeds"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for label, row in rows.items():
        runs = [run for run in row["runs"].values() if run]
        steps = f"{statistics.fmean(run['steps'] for run in runs):,.0f}" if runs else "diverged"
        scores = [spread([run["accuracy"][name] for run in runs]) for name in sets]
        cells = [
            label,
            f"{row['state_bytes']:,}",
            f"{row['parameters']:,}",
            f"{row['rate']:g}",
            steps,
            *scores,
            str(len(runs)),
        ]
        print(f"| {' | '.join(cells)} |")


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return ""
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def draw(rows: dict[str, Any]) -> Any:
    """Accuracy on the longest sequences against bytes of state."""
    families = list(dict.fromkeys(row["family"] for row in rows.values()))
    figure, (axes,) = figures.make(1, width=5.2, height=3.8)
    name, chance = None, 0.0
    for family, look in figures.lines(families).items():
        points = []
        for row in (row for row in rows.values() if row["family"] == family):
            runs = [run for run in row["runs"].values() if run]
            if runs:
                name = list(runs[0]["accuracy"])[-1]
                chance = runs[0]["chance"][name]
                points.append((row["state_bytes"], statistics.fmean(run["accuracy"][name] for run in runs)))
        axes.plot(*zip(*sorted(points), strict=True), **look) if points else None
    figures.reference(axes, chance, "chance")
    figures.reference(axes, 1, "ceiling")
    axes.set_xscale("log", base=2)
    figures.say(axes, title=f"Recall by size of state, {name}", x="bytes of state", y="share of asked values that are right")
    figures.legend(figure, axes)
    return figure


if __name__ == "__main__":
    main()
