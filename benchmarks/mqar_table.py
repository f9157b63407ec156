"""Recall against bytes of state: multi-query associative recall (MQAR) by BDH and by the models it is compared with.

    python benchmarks/mqar_table.py --workdir=runs/mqar --jobs=2 --json benchmarks/results/mqar_cpu.json --figure build/mqar.png

Parts:

    smallest       every model in the smallest published setting (``configs/mqar.py``: 64 tokens, 4 pairs, 8,192 token ids) until it recalls
                   .99, one seed
    grid           each model with states of three sizes, two of four, on 64, 128 and 256 tokens with 4 to 32 pairs over 1,024 token ids
                   (``mqar:grid``): the rate is the best with the second size and a seed that is not reported, of three to begin with, and of more
                   where it is the smallest or the largest of those; then the first of the seeds, and the others too for the seven rows that
                   recall most
    longer         the second size of both BDHs that recall most and of gated DeltaNet, three times as long as in the grid: is what is missing
                   not learned yet?
    forgetting     keys that get a second value, at the grid's rates (``mqar:forgetting``)
    compositional  keys of two tokens, at the grid's rates (``mqar:compositional``)
    long           the largest rows of the grid on sequences of up to 16,384 tokens, whose places are drawn evenly; no training

Finished runs are only read, so that the command can be interrupted and given again. Bytes are those of the state that one example carries from token
to token, in float32, all layers and convolutions together. ``--smoke`` trains tiny models for a few steps: does it run?
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measure
import numpy as np
import trainings

from bdh_jax.analysis import figures
from bdh_jax.config.convert import change
from bdh_jax.experiment import ExperimentConfig, load
from bdh_jax.models.attention import AttentionConfig
from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.tasks.mqar import MQARConfig

VALIDATION_SEED = 100
"""Of the runs by which a rate is chosen."""
LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Rates from which the next is taken where the best of those tried is the smallest or the largest."""
MOST_SEEDS = 7
"""Rows of the grid that are trained with all seeds: those that recall most."""
LONGER = 3
"""Times the steps of the grid."""
LONG = (256, 1024, 4096, 16384)
"""Tokens of the sequences of part "long"."""
SHORT = {
    "window": "W",
    "d_key": "N",
    "d_state": "N",
    "n_neurons": "n",
    "attention_decay": "μ",
    "fast.decay": "λ",
    "fast.rule": "rule",
}
"""Of keys, in labels."""
CALL = 1024
"""Tokens of a call there, each of which goes on from the state of the one before."""


class Row(NamedTuple):
    """A model with a state of one size."""

    family: str
    """What its line in the figure is called."""
    variant: str
    """Of ``configs/mqar.py``; empty for the default."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Of the model's configuration, by key, such as "fast.decay"."""

    @property
    def label(self) -> str:
        """In the table."""
        changes = ((SHORT.get(key, key), value[0] if isinstance(value, tuple) else value) for key, value in self.changes)
        return ", ".join([self.family, *(f"{key} {value}" for key, value in changes)])

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
    "BDH, shifted": "shift",
    "BDH, write-back": "write_back",
}
"""Name → variant."""
SIZES: dict[str, tuple[str, tuple[int, ...]]] = {
    "attention": ("window", (16, 64, 256)),
    "GLA": ("d_key", (4, 16, 64, 208)),
    "gated DeltaNet": ("d_key", (8, 24, 64, 152)),
    "Mamba-2": ("d_state", (8, 32, 128)),
    "BDH": ("n_neurons", (32, 128, 512)),
    "BDH, shifted": ("n_neurons", (32, 128, 512)),
    "BDH, write-back": ("n_neurons", (32, 128, 512)),
}
"""What makes a state larger. Rates are chosen with the second. The fourth are as large as the second of BDH."""
FORGETFUL = (
    Row("BDH, shifted", "shift", (("attention_decay", (0.95,)),)),
    Row("BDH, write-back", "write_back", (("fast.rule", "hebbian"),)),
    Row("BDH, write-back", "write_back", (("fast.rule", "hebbian"), ("fast.decay", 0.95))),
)
"""Besides one row of each model, in the parts whose memory has to give something up, or to tell keys apart."""


def of_size(family: str, number: int) -> Row:
    """The row of a model with the state of a number in ``SIZES``, from the smallest (0) to the largest (−1)."""
    key, sizes = SIZES[family]
    return Row(family, MODELS[family], ((key, sizes[number]),))


_ONE_EACH = tuple(Row(family, variant) for family, variant in MODELS.items())
PARTS = {
    "smallest": _ONE_EACH,
    "grid": tuple(of_size(family, number) for family, (_, sizes) in SIZES.items() for number in range(len(sizes))),
    "longer": tuple(of_size(family, 1) for family in ("gated DeltaNet", "BDH, shifted", "BDH, write-back")),
    "forgetting": (*_ONE_EACH, *FORGETFUL),
    "compositional": _ONE_EACH,
    "long": tuple(of_size(family, -1) for family in SIZES),
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
        sets = {"smallest": "", "longer": "grid"}.get(self.part, self.part)
        variants = [self.row.variant, sets, "smoke" if options.smoke else ""]
        config = importlib.import_module("configs.mqar").get_config(",".join(filter(None, variants)))
        for key, value in self.row.changes:
            path, _, field = f"model.{key}".rpartition(".")
            config = change(config, path, **{field: value})
        if self.rate is not None:
            config = change(config, "optimizer", learning_rate=self.rate)
        if self.part == "longer":
            config = change(config, "train", steps=LONGER * config.train.steps)
        return change(config, seed=self.seed)


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS), help="what is trained")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=tuple(MODELS), help="models")
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help='single rows, such as "GLA, N 208", at the rates that the file of --json says',
    )
    parser.add_argument("--rates", default="3e-3,1e-2,3e-2", help="learning rates that the grid chooses from at first")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of what is reported")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process and on a core of its own")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and a few steps: does it run?")
    parser.add_argument("--json", type=Path, help="write all numbers there; what else is there already stays")
    parser.add_argument("--write", type=Path, help="put the tables into this page, each between its marks")
    parser.add_argument("--figure", type=Path, help="draw accuracy against bytes of state there")
    parser.add_argument("--one", nargs=4, metavar=("PART", "ROW", "SEED", "RATE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, name, seed, rate = options.one
        (row,) = (row for row in PARTS[part] if row.name == name)
        run = Run(part, row, int(seed), None if rate == "-" else float(rate))
        trainings.train_here(run.config(options), run.folder(options))
        return
    seeds, rates = (
        [kind(cell) for cell in cells.split(",")] for kind, cells in ((int, options.seeds), (float, options.rates))
    )
    known = measure.numbers(options.json)
    if options.rows:
        tried = given_rates(parser, known, options)
    else:
        tried = {} if set(options.parts) <= {"smallest"} else tried_rates(rates, options)
    chosen = {family: best(of_family) for family, of_family in tried.items()}
    command = measure.command()
    found = {part: measured(part, seeds, chosen, options) for part in options.parts}
    found = {
        part: {label: row and {**row, "command": command} for label, row in rows.items()} for part, rows in found.items()
    }
    if options.rows:
        found = {part: measure.added(known["parts"].get(part, {}), rows) for part, rows in found.items()}
    tables = {part: of_long(rows) if part == "long" else of_part(rows) for part, rows in found.items()}
    tables |= {"rates": of_rates(tried)} if tried and not options.rows else {}
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}")
        if options.write:
            marks = f"<!-- {name}: made by benchmarks/mqar_table.py -->", f"<!-- end of {name} -->"
            measure.write_between(options.write, marks, table)
    if options.json:
        measure.write_json(options.json, joined(known, {} if options.rows else tried, found))
    if options.figure and found.get("grid"):
        draw(found["grid"]).savefig(options.figure, dpi=150)


def given_rates(parser: argparse.ArgumentParser, known: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Model → rate → score as a file of numbers says, of the models whose rows are asked for."""
    rows = {row.label: row for part in options.parts for row in PARTS[part]}
    for label in options.rows:
        if label not in rows:
            parser.error(f"--rows names {label!r}, which is no row of {', '.join(options.parts)}: one of {'; '.join(rows)}")
        if rows[label].family not in known.get("rates", {}):
            parser.error(
                f"--rows needs the rates of {rows[label].family} in the file of --json; run the part without --rows first"
            )
    return {
        family: {float(rate): score for rate, score in of_family.items()}
        for family, of_family in known["rates"].items()
        if family in {rows[label].family for label in options.rows}
    }


def joined(known: dict[str, Any], rates: dict[str, Any], parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was measured now, and what a file of numbers has besides: rates and rows of other models, and other parts.

    Args:
      known: what the file says.
      rates: model → rate → score.
      parts: part → its "rows", each with the command that measured it.
    """
    before = known.get("parts", {})
    return {
        "rates": known.get("rates", {}) | rates,
        "parts": before | {part: before.get(part, {}) | rows for part, rows in parts.items()},
    }


def tried_rates(rates: Sequence[float], options: argparse.Namespace) -> dict[str, dict[float, float]]:
    """Model → rate → what its second size recalls in the grid with a seed that is not reported; zero of one that diverged.

    Where the best is the smallest or the largest of those tried, the next of ``LADDER`` is tried as well.
    """
    tried = {family: set(rates) for family in options.models}
    while True:
        runs = {
            (family, rate): Run("grid", of_size(family, 1), VALIDATION_SEED, rate)
            for family, of_family in tried.items()
            for rate in sorted(of_family)
        }
        of_runs = results(list(runs.values()), options)
        found = {
            family: {rate: primary(of_runs[runs[family, rate]]) for rate in sorted(of_family)}
            for family, of_family in tried.items()
        }
        wider = {family: tried[family] | beside(best(found[family]), tried[family]) for family in tried}
        if wider == tried:
            return found
        tried = wider


def best(tried: dict[float, float]) -> float:
    """The rate that recalls most; of equal ones the smallest."""
    return max(sorted(tried), key=tried.__getitem__)


def beside(chosen: float, tried: Collection[float]) -> set[float]:
    """What is to be tried beside the best of the rates tried: the next of ``LADDER``, if it is the smallest or the largest of them."""
    smaller, larger = ([rate for rate in LADDER if sign * rate > sign * chosen] for sign in (-1, 1))
    found = {max(smaller)} if smaller and chosen == min(tried) else set()
    return found | ({min(larger)} if larger and chosen == max(tried) else set())


def measured(part: str, seeds: Sequence[int], rates: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    """Label → what is known of each row of a part, trained if it is missing, each model with its rate; without one with the experiment's."""
    rows = [row for row in PARTS[part] if row.family in options.models and (not options.rows or row.label in options.rows)]
    chosen = {row: None if part == "smallest" else rates[row.family] for row in rows}
    if part == "long":
        runs = {row: Run("grid", row, seeds[0], chosen[row]) for row in rows}
        results(list(runs.values()), options)
        return {row.label: beyond(run, options) for row, run in runs.items()}
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
        # Of the layers alone: the readout is the same for all, and most of the whole.
        "multiply_adds_per_token": config.model.multiply_adds_per_token(length)
        - config.model.vocab_size * config.model.d_model,
        "rate": config.optimizer.learning_rate,
        "runs": {
            str(seed): result
            and {
                "steps": result["steps"],
                "seconds": result["seconds"],
                "accuracy": {name: score["accuracy"] for name, score in result["evaluation"].items()},
                "references": {
                    name: {key: value for key, value in score["extra"].items() if key != "whole"}
                    for name, score in result["evaluation"].items()
                },
            }
            for seed, result in runs.items()
        },
    }


def state_bytes(model: ModelConfig) -> int:
    """Bytes of the state that one example carries."""
    return jax.eval_shape(lambda: model.build().init_fast(1)).nbytes


def results(runs: Sequence[Run], options: argparse.Namespace) -> dict[Run, dict[str, Any] | None]:
    """The results of these runs, trained if they are missing; None of one that diverged."""
    trainings.do_all(
        runs,
        lambda run: trainings.is_over(run.config(options), run.folder(options)),
        lambda run: apart(run, options),
        lambda run: run.row.label,
        options.jobs,
        f"{runs[0].part}: runs" if runs else "runs",
    )
    return {run: of_run(run, options) for run in runs}


def of_run(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """The results of a run that came to its end."""
    return trainings.result(run.config(options), run.folder(options))


def apart(run: Run, options: argparse.Namespace) -> None:
    """Train in a process of its own, whose messages go to a file beside the run."""
    folder, rate = run.folder(options), "-" if run.rate is None else repr(run.rate)
    arguments = ["--workdir", str(options.workdir), *(["--smoke"] if options.smoke else [])]
    log = folder.with_name(f"{folder.name}.log")
    measure.apart(__file__, [*arguments, "--one", run.part, run.row.name, str(run.seed), rate], log)


def beyond(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """What a run of the grid recalls from longer sequences than it was trained on; None of one that diverged."""
    if of_run(run, options) is None:
        return None
    config = run.config(options)
    lengths, pairs, count = ((32, 64), 4, 8) if options.smoke else (LONG, 32, 64)
    task = MQARConfig(
        vocab_size=config.task.vocab_size,
        train=config.task.train,
        test=tuple((length, pairs, count) for length in lengths),
        power=1.0,
    )

    def make() -> dict[str, float]:
        model, slow = load(run.folder(options), "last")
        if isinstance(model, AttentionConfig):
            # Its weights fit any window. What it keeps then grows with the sequence.
            model = change(model, window=max(lengths))
        evaluation = task.make(seed=0, batch_size=config.train.batch_size).evaluate(in_calls(model, slow))
        return {row.name: row.accuracy for row in evaluation.rows}

    return {"accuracy": measure.kept(run.folder(options) / "long.json", make), "chance": 1 / pairs, "seed": run.seed}


def in_calls(config: ModelConfig, slow: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A predictor that reads a long sequence in calls of ``CALL`` tokens, and carries the state."""
    model = config.build()
    call = jax.jit(lambda fast, tokens: model.apply({"params": slow}, tokens, fast))

    def predict(tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
        del valid  # all are
        fast, logits = model.init_fast(len(tokens)), []
        for first in range(0, tokens.shape[1], CALL):
            output = call(fast, tokens[:, first : first + CALL])
            fast = output.fast
            logits.append(jax.device_get(output.logits))
        return np.concatenate(logits, axis=1)

    return predict


def of_rates(tried: dict[str, dict[float, float]]) -> str:
    """How the rates were chosen, as a table in Markdown: the mean over the sets of the second size."""
    rates = sorted({rate for of_family in tried.values() for rate in of_family})
    cells = [
        [family, *(f"{of_family[rate]:.3f}" if rate in of_family else "" for rate in rates)]
        for family, of_family in tried.items()
    ]
    return measure.markdown(["model", *(f"{rate:g}" for rate in rates)], cells)


def of_long(rows: dict[str, Any]) -> str:
    """Part "long" as a table in Markdown: the share of asked values that are right (ceiling 1)."""
    there = {label: row for label, row in rows.items() if row}
    if not there:
        return "every run diverged"
    first = next(iter(there.values()))
    cells = [[label, *(f"{accuracy:.3f}" for accuracy in row["accuracy"].values())] for label, row in there.items()]
    chance = ["chance", *(f"{first['chance']:.3f}" for _ in first["accuracy"])]
    return measure.markdown(["model", *first["accuracy"]], [*cells, chance])


def of_part(rows: dict[str, Any]) -> str:
    """A part as two tables in Markdown: what is recalled (ceiling 1), the last column's mean over the sets with the standard deviation of the
    seeds, and what it takes; multiply-adds are those of a token, without the readout."""
    known = [run for row in rows.values() for run in row["runs"].values() if run]
    sets = list(known[0]["accuracy"]) if known else []
    recall, cost = [], []
    for label, row in rows.items():
        runs = [run for run in row["runs"].values() if run]
        means = [statistics.fmean(run["accuracy"].values()) for run in runs]
        size = f"{row['state_bytes'] / 1024:,.1f}"
        each = [f"{statistics.fmean(run['accuracy'][name] for run in runs):.3f}" if runs else "" for name in sets]
        recall.append([label, size, *each, measure.spread(means), str(len(runs))])
        steps = f"{statistics.fmean(run['steps'] for run in runs):,.0f}" if runs else "diverged"
        cost.append([label, f"{row['parameters']:,}", f"{row['multiply_adds_per_token']:,}", f"{row['rate']:g}", steps])
    if known:
        recall += [
            [name, "", *(f"{known[0]['references'][where][name]:.3f}" for where in sets), "", ""]
            for name in known[0]["references"][sets[0]]
            if name != "updated"
        ]
    scores = measure.markdown(["model", "KiB", *sets, "mean", "seeds"], recall)
    return f"{scores}\n\n{measure.markdown(['model', 'weights', 'multiply-adds of the layers', 'rate', 'steps'], cost)}"


def draw(rows: dict[str, Any], title: str = "Recall by size of state") -> Any:
    """Accuracy against bytes of state, a panel for each of the two sets with most pairs: means over seeds, and each of several
    seeds as a bar."""
    sets = list(next(run for row in rows.values() for run in row["runs"].values() if run)["accuracy"])[-2:]
    figure, panels = figures.make(len(sets), width=4.2, height=3.6, sharey=True)
    for family, look in figures.lines(list(dict.fromkeys(row["family"] for row in rows.values()))).items():
        runs_of = {
            row["state_bytes"]: [run for run in row["runs"].values() if run]
            for row in rows.values()
            if row["family"] == family
        }
        sizes = sorted(size for size, runs in runs_of.items() if runs)
        for axes, name in zip(panels, sets, strict=True):
            each = [[run["accuracy"][name] for run in runs_of[size]] for size in sizes]
            axes.plot([size / 1024 for size in sizes], list(map(statistics.fmean, each)), **look)
            # A seed may learn nothing, so that a mean alone would mislead.
            seeds = [
                (size / 1024, value) for size, values in zip(sizes, each, strict=True) if len(values) > 1 for value in values
            ]
            if seeds:
                axes.plot(*zip(*seeds, strict=True), linestyle="none", marker="_", markersize=9, color=look["color"])
    any_run = next(run for row in rows.values() for run in row["runs"].values() if run)
    for axes, name in zip(panels, sets, strict=True):
        figures.reference(axes, any_run["references"][name]["chance"], "chance")
        figures.reference(axes, 1, "ceiling")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        length, pairs = name[1:].split("P")
        y = "share of asked values that are right\n(bars: single seeds)" if axes is panels[0] else ""
        figures.say(axes, title=f"{title},\n{pairs} pairs in {length} tokens", x="KiB of state", y=y)
    figures.legend(figure, panels[0])
    return figure


if __name__ == "__main__":
    main()
