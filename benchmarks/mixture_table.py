"""A mixture of experts that learn by different rules, against each of them alone: text and recall, who reads what, and shuffled routes.

    python benchmarks/mixture_table.py --workdir=runs/mixture --path=FILE --json benchmarks/results/mixture_cpu.json

Trains ``configs/mixture.py`` and its variants over the seeds; finished runs are only read, so that the command can be interrupted and given
again. Then scores all of them on the same held-out rows of both jobs:
windows of the validation text, and n-back sequences that no training reaches. Losses are nats per predicted token of text, nats per answer
of n-back, and their mean, which is what is trained. Differences are paired by seed, with 95 % intervals by Student's t.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measure
import numpy as np
import optax

from bdh_jax import sweep
from bdh_jax.analysis.routing import routed, shares, shuffled, weights_used
from bdh_jax.config.convert import change
from bdh_jax.data.corpus import window
from bdh_jax.experiment import ExperimentConfig, load, load_experiment
from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.models.mixture import MixtureConfig
from bdh_jax.tasks.base import Batch
from bdh_jax.tasks.mixed import Mixed
from bdh_jax.tasks.nback import FIRST_VALUE, SEPARATOR
from bdh_jax.tasks.text import Text
from bdh_jax.types import Slow

MIXTURES = ("mixture", "routed")
ALONE = ("bdh", "gpt", "slim")
"""Rows, by the names of variants; the first is the default."""
BEYOND = 10**6
"""A step that no run reaches: its n-back sequences were not trained on."""
ROWS = 16
"""Of each job in a held-out batch."""
SHUFFLES = 2
GROUPS = ("key", "value", "question", "text")
"""Of tokens: keys and values that n-back shows, keys that it asks for, and text."""


class Losses(NamedTuple):
    """Means over held-out rows, in nats."""

    nback: float
    text: float

    @property
    def both(self) -> float:
        """Of the two jobs."""
        return (self.nback + self.text) / 2


def main() -> None:
    """Train what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--path", type=Path, required=True, help="the text that is trained on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds that are reported")
    parser.add_argument("--steps", type=int, default=None, help="training steps instead of the configuration's")
    parser.add_argument("--variant", default="", help="a variant of every row, such as smoke")
    parser.add_argument("--batches", type=int, default=8, help="held-out batches of 16 rows a job")
    parser.add_argument(
        "--rows", nargs="+", choices=(*ALONE, *MIXTURES), default=[*ALONE, MIXTURES[0]], help="rows to train"
    )
    parser.add_argument("--train_only", action="store_true", help="train what is missing and end")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    experiments = {name: experiment(name, options) for name in options.rows}
    planned = sweep.plan(experiments, seeds=options.seeds)
    print(planned.describe(), flush=True)
    result = sweep.run(planned, options.workdir)
    if options.train_only:
        return
    first = next(iter(experiments.values()))
    task = first.task.make(seed=0, batch_size=2 * ROWS, data=first.data)
    assert isinstance(task, Mixed)
    batches = list(held_out(task, options.batches))
    rows = {row.row.name: measured(row, options, batches) for row in result.rows}
    best = min(
        (name for name in ALONE if name in rows),
        key=lambda name: statistics.fmean(loss["both"] for loss in rows[name]["losses"]),
    )
    for name, row in rows.items():
        row["to_best_alone"] = None if name == best else difference(row["losses"], rows[best]["losses"])
    mixtures = [row for row in result.rows if row.row.name in MIXTURES]
    routing = {r.row.name: of_router(r, options, task, batches, rows[r.row.name]["losses"]) for r in mixtures}
    report(rows, best, options)
    for name, found in routing.items():
        report_routing(name, found)
    if options.json:
        record = {"seeds": options.seeds, "steps": first.train.steps, "best_alone": best}
        measure.write_json(options.json, {**record, "rows": rows, "routing": routing})


def experiment(name: str, options: argparse.Namespace) -> ExperimentConfig:
    """The experiment of a row."""
    variants = ",".join(variant for variant in ("" if name == MIXTURES[0] else name, options.variant) if variant)
    config = load_experiment(f"mixture:{variants}" if variants else "mixture")
    config = change(config, "data", path=str(options.path))
    return config if options.steps is None else change(config, "train", steps=options.steps, evaluate_every=options.steps)


def held_out(task: Mixed, count: int) -> Iterator[Batch]:
    """Batches of rows of both jobs that no run was trained on, the same ones for all."""
    text = task.jobs["text"]
    assert isinstance(text, Text)
    length = text.config.length
    last = (len(text.validation.tokens) - 1) // length
    numbers = np.arange(count * ROWS) * last // (count * ROWS)
    for number in range(count):
        windows = [window(text.validation, int(n) * length, length) for n in numbers[number * ROWS : (number + 1) * ROWS]]
        tokens, targets, reset, weight = (np.stack(arrays) for arrays in zip(*windows, strict=True))
        reset[:, 0] = False
        of_text = Batch(tokens, targets, weight, weight, np.ones(tokens.shape, bool), reset)
        yield task.join([task.jobs["nback"].batch(BEYOND + number), of_text])


def measured(row: sweep.RowResult, options: argparse.Namespace, batches: list[Batch]) -> dict[str, Any]:
    """Losses of all seeds, the scores of their evaluations, and the size of the model."""
    losses, scores = [], []
    for seed in options.seeds:
        folder = folder_of(row, seed, options)
        losses.append(measure.kept(folder / f"held_out_{len(batches)}.json", functools.partial(losses_of, folder, batches)))
        scores.append(row.runs[seed].results["evaluation"])
    model = row.row.points[0].config.model
    parameters = count_parameters(model.build().declared_slow())
    used = weights_used(model) if isinstance(model, MixtureConfig) else (parameters, parameters)
    return {
        "learning_rate": row.row.points[0].config.optimizer.learning_rate,
        "losses": losses,
        "bits_per_byte": [each["text"]["bits_per_byte"] for each in scores],
        "unigram": scores[0]["text"]["extra"]["unigram"],
        "recall": [recall_of(each) for each in scores],
        "parameters": parameters,
        "used": used,
        "multiply_adds": model.multiply_adds_per_token(batches[0].tokens.shape[1]),
        "seconds": [row.runs[seed].results["seconds"] for seed in options.seeds],
    }


def losses_of(folder: Path, batches: list[Batch]) -> dict[str, float]:
    """The held-out losses of a run."""
    found = score(*load(folder, "last"), batches)
    return {**found._asdict(), "both": found.both}


def recall_of(evaluation: dict[str, Any]) -> float:
    """credit ÷ ceiling, in the mean over the sets of n-back."""
    return statistics.fmean(scores["ratio"] for name, scores in evaluation.items() if name.startswith("nback"))


def folder_of(row: sweep.RowResult, seed: int, options: argparse.Namespace) -> Path:
    """Of the run of a seed."""
    return options.workdir / row.row.name / "seeds" / f"seed{seed}"


def score(config: ModelConfig, slow: Slow, batches: list[Batch]) -> Losses:
    """Losses of both jobs."""
    totals = np.zeros((2, 2))
    for batch in batches:
        totals += np.asarray(_sums(config, slow, *batch[:6]))
    return Losses(*(totals[0] / totals[1]).tolist())


@functools.partial(jax.jit, static_argnums=0)
def _sums(config: ModelConfig, slow: Slow, tokens, targets, answer, weights, valid, reset) -> jax.Array:
    """[2, 2]: sums of the losses of what is asked, and how much that is, of the rows of each job."""
    out = config.build().apply({"params": slow}, tokens, valid=valid, reset=reset, state="none")
    loss = optax.softmax_cross_entropy_with_integer_labels(out.logits, targets)
    asked = (weights > 0).astype(loss.dtype)
    sums = [[jax.numpy.sum((array * asked)[job::2]) for job in range(2)] for array in (loss, asked)]
    return jax.numpy.array(sums)


def difference(losses: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean of the paired differences and half the width of its 95 % interval, of each loss."""
    return {
        name: list(measure.paired([a[name] - b[name] for a, b in zip(losses, others, strict=True)])) for name in losses[0]
    }


def of_router(
    row: sweep.RowResult, options: argparse.Namespace, task: Mixed, batches: list[Batch], plain: list[dict[str, float]]
) -> dict[str, Any]:
    """Who reads what, and what shuffled routes cost: among the tokens of both jobs, and among those of one."""
    runs = []
    for seed, losses in zip(options.seeds, plain, strict=True):
        folder = folder_of(row, seed, options)
        make = functools.partial(routes_of, folder, task, batches, losses)
        runs.append(measure.kept(folder / f"routes_{len(batches)}.json", make))
    same = {name: runs[0].pop(name) for name in ("experts", "groups")}
    return {**same, **{name: [run[name] for run in runs] for name in runs[0]}}


def routes_of(folder: Path, task: Mixed, batches: list[Batch], losses: dict[str, float]) -> dict[str, Any]:
    """The routes of a run."""
    config, slow = load(folder, "last")
    assert isinstance(config, MixtureConfig)
    found: dict[str, Any] = {"experts": list(config.parts), "groups": GROUPS}
    chosen = np.concatenate([np.asarray(routed(config, slow, b.tokens, b.valid, b.reset)) for b in batches], axis=1)
    valid = np.concatenate([b.valid for b in batches])
    group = np.concatenate([groups_of(batch, task) for batch in batches])
    found["shares"] = shares(chosen, group, len(GROUPS)).round(4).tolist()
    found["of_all"] = chosen[:, valid].mean(axis=(0, 1)).round(4).tolist()
    for name, sets in (("shuffled", [batches]), ("shuffled_within_jobs", [alone(batches, job) for job in range(2)])):
        costs = []
        for number in range(SHUFFLES):
            scored = [score(shuffled(config, number), slow, part) for part in sets]
            nback, text = scored[0].nback, scored[-1].text
            costs.append([nback - losses["nback"], text - losses["text"], (nback + text) / 2 - losses["both"]])
        found[name] = np.mean(costs, axis=0).round(5).tolist()
    return found


def groups_of(batch: Batch, task: Mixed) -> np.ndarray:
    """The group of each token; -1 for padding, and for the two ids of n-back that mean two things."""
    ids = batch.tokens - task.first_id["nback"]
    of_nback = (task.job_of_row(len(ids)) == list(task.jobs).index("nback"))[:, None] & batch.valid
    group = np.where(of_nback & (ids < FIRST_VALUE), 0, -1)
    group[of_nback & (ids > FIRST_VALUE) & (ids < SEPARATOR)] = 1
    group[of_nback & (batch.answer > 0)] = 2
    group[batch.valid & ~of_nback] = 3
    return group


def alone(batches: list[Batch], job: int) -> list[Batch]:
    """The rows of one job, in the places of both: with the other one's rows invalid, so that only its own tokens trade their routes."""
    kept = []
    for batch in batches:
        mine = (np.arange(len(batch.tokens)) % 2 == job)[:, None]
        kept.append(batch._replace(valid=batch.valid & mine))
    return kept


def report(rows: dict[str, Any], best: str, options: argparse.Namespace) -> None:
    """Print the losses."""
    table = []
    for name, row in rows.items():
        cells = [measure.spread([loss[part] for loss in row["losses"]], digits=4) for part in ("text", "nback", "both")]
        to_best = "" if row["to_best_alone"] is None else "{:+.4f} ± {:.4f}".format(*row["to_best_alone"]["both"])
        sizes = [
            f"{row['parameters']:,}",
            "–".join(f"{n:,}" for n in dict.fromkeys(row["used"])),
            f"{row['multiply_adds']:,}",
        ]
        recall = [measure.spread(row["bits_per_byte"], digits=4), measure.spread(row["recall"], digits=4)]
        table.append([name, f"{row['learning_rate']:g}", *cells, to_best, *recall, *sizes])
    measure.report(
        f"Held-out losses in nats: seeds {options.seeds}, best alone: {best}",
        [
            "",
            "rate",
            "text",
            "n-back",
            "both",
            f"both, to {best}",
            "bits per byte",
            "credit ÷ ceiling",
            "weights",
            "used",
            "mult-adds",
        ],
        table,
        f"Text by the frequencies of its bytes alone: {rows[best]['unigram']:.4f} bits; n-back by chance: {math.log(65):.4f} nats.",
    )


def report_routing(name: str, routing: dict[str, Any]) -> None:
    """Print who reads what, and what that is worth."""
    lines = []
    for layer in range(len(routing["shares"][0])):
        for number, job in enumerate(routing["groups"]):
            of_seeds = np.array(routing["shares"])[:, layer, number]
            lines.append([f"layer {layer}, {job}", *(measure.spread(list(share), digits=4) for share in of_seeds.T)])
    lines.append(["all", *(measure.spread(list(share), digits=4) for share in np.array(routing["of_all"]).T)])
    measure.report(
        f"{name}: share of the tokens that each expert reads", ["", *routing["experts"]], lines, "Mean ± sd over seeds."
    )
    lines = []
    for what in ("shuffled", "shuffled_within_jobs"):
        costs = np.array(routing[what])
        lines.append([what.replace("_", " "), *("{:+.4f} ± {:.4f}".format(*measure.paired(list(cost))) for cost in costs.T)])
    measure.report(
        f"{name}: nats lost where tokens trade their routes",
        ["", "n-back", "text", "both"],
        lines,
        "95 % intervals over seeds.",
    )


if __name__ == "__main__":
    main()
