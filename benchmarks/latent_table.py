"""Does thinking longer help? Questions on a frozen memory, answered after R = 1, 2, 4, 8, 16 passes, beside plain and deeper BDH.

    python benchmarks/latent_table.py --workdir=runs/latent --jobs=2 --json benchmarks/results/latent_cpu.json --write docs/results/latent.md

Every ladder of ``configs/latent.py`` is trained with every model and seed: ``fixed`` thinks R = 4 passes in training, ``drawn`` draws R from 1 … 8,
``plain`` is BDH of one layer, ``deep`` BDH of four, as many as four passes through one. Each is then asked the same held-out questions with every R,
and, at the R that it was trained with, with two controls: nothing is written (``emptied``), and the tokens of each context stand in a random order
(``shuffled``). Finished runs and scores are only read, so that the command can be interrupted and given again.

``--smoke`` trains tiny models for a few steps: does it run?
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measure
import numpy as np
import trainings

from bdh_jax.config.convert import change
from bdh_jax.experiment import ExperimentConfig, load
from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.models.latent import LatentConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.tasks.ladder import MARK, LadderConfig, Ladders, most_frequent, said
from bdh_jax.tasks.scoring import Predict
from bdh_jax.training.step import make_predict

LADDERS = ("binding", "ordering", "copy")
MODELS = {"fixed": "", "drawn": "drawn", "plain": "plain", "deep": "deep"}
"""Name → variant of ``configs/latent.py``."""
BINDING = {
    "fixed, half": "shallow",
    "deep, half": "shallow,deep",
    "deep, rate/2": "deep",
    "deep, rate×2": "deep",
    "deep, longer": "deep,longer",
}
"""Rows of binding alone: two see the easier half of the rungs in training; the others ask whether four layers only lack a rate or steps."""
RATES = {"deep, rate/2": 0.5, "deep, rate×2": 2.0}
"""Times the learning rate of the experiment."""
PASSES = (1, 2, 4, 8, 16)
"""R at test."""
CONTROL_SEED = 7
ASKED, WALKED_FILE = "passes.json", "walked.json"
"""Beside a run: what it answers."""
WALKED = 3
"""Places of an order, of which is said whether an answer walked beyond."""


class Run(NamedTuple):
    """One training."""

    ladder: str
    model: str
    seed: int

    def config(self, smoke: bool) -> ExperimentConfig:
        """What is trained."""
        ladder = "" if self.ladder == "binding" else self.ladder
        variants = [ladder, {**MODELS, **BINDING}[self.model], "smoke" if smoke else ""]
        config = importlib.import_module("configs.latent").get_config(",".join(filter(None, variants)))
        config = change(config, "optimizer", learning_rate=RATES.get(self.model, 1.0) * config.optimizer.learning_rate)
        return change(config, seed=self.seed)

    def folder(self, workdir: Path) -> Path:
        """Where it is."""
        name = self.model.replace(", ", "-").replace("/", "_over_").replace("×", "_times_")
        return workdir / self.ladder / name / f"seed{self.seed}"


def main() -> None:
    """Train what is missing, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--ladders", nargs="+", choices=LADDERS, default=LADDERS, help="ladders")
    parser.add_argument("--models", nargs="+", choices=(*MODELS, *BINDING), default=(*MODELS, *BINDING), help="models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process and on a core of its own")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and a few steps: does it run?")
    parser.add_argument("--finished", action="store_true", help="report what is there, and train nothing")
    parser.add_argument("--json", type=Path, help="write all numbers there; other rows and seeds that are there stay")
    parser.add_argument("--write", type=Path, help="put the tables into this page, each between its marks")
    parser.add_argument("--one", nargs=3, metavar=("LADDER", "MODEL", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        ladder, model, seed = options.one
        train_one(Run(ladder, model, int(seed)), options)
        return
    # Seed by seed, so that what an interruption leaves is whole rows of fewer seeds.
    runs = [
        Run(ladder, model, seed)
        for seed in options.seeds
        for ladder in options.ladders
        for model in options.models
        if model in MODELS or ladder == "binding"
    ]
    if not options.finished:
        trainings.do_all(
            runs,
            lambda run: is_done(run, options),
            lambda run: apart(run, options),
            lambda run: f"{run.ladder}, {run.model}, seed {run.seed}",
            options.jobs,
        )
    found = {run: scores for run in runs if (scores := scored(run, options)) is not None}
    command = measure.command()
    known = measure.numbers(options.json).get("ladders", {})
    ladders = {}
    for ladder in LADDERS:
        rows = {model: {**row, "command": command} for model, row in described(ladder, found, options.smoke).items()}
        ladders[ladder] = in_order(measure.added(known.get(ladder, {}), rows))
    for name, table in tables(ladders).items():
        print(f"\n{name}\n\n{table}")
        if options.write:
            marks = f"<!-- {name}: made by benchmarks/latent_table.py -->", f"<!-- end of {name} -->"
            measure.write_between(options.write, marks, table)
    measure.write_json(options.json, {"ladders": ladders})


def in_order(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows as they stand in the tables."""
    return {model: rows[model] for model in (*MODELS, *BINDING) if model in rows}


def apart(run: Run, options: argparse.Namespace) -> None:
    """Train and ask in a process of its own, whose messages go to a file beside the run."""
    folder = run.folder(options.workdir)
    arguments = ["--workdir", str(options.workdir), *(["--smoke"] if options.smoke else [])]
    log = folder.with_name(f"{folder.name}.log")
    measure.apart(__file__, [*arguments, "--one", run.ladder, run.model, str(run.seed)], log)


def train_one(run: Run, options: argparse.Namespace) -> None:
    """Train here, and ask."""
    if trainings.train_here(run.config(options.smoke), run.folder(options.workdir)):
        scored(run, options)


def is_done(run: Run, options: argparse.Namespace) -> bool:
    """Whether a run is trained and asked."""
    config, folder = run.config(options.smoke), run.folder(options.workdir)
    files = [ASKED, *([WALKED_FILE] if walks(config) else [])]
    asked = (folder / trainings.DIVERGED).exists() or all((folder / file).exists() for file in files)
    return trainings.is_over(config, folder) and asked


def walks(config: ExperimentConfig) -> bool:
    """Whether it is counted which item an answer names."""
    task = config.task
    return isinstance(task, LadderConfig) and task.ladder == "ordering" and isinstance(config.model, LatentConfig)


def scored(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """What a run's model answers; None of one that is not trained, or diverged."""
    config, folder = run.config(options.smoke), run.folder(options.workdir)
    results = trainings.result(config, folder)
    if results is None:
        return None
    found = measure.kept(folder / ASKED, lambda: asked(config, folder))
    if walks(config):
        found["walked"] = measure.kept(folder / WALKED_FILE, lambda: walked(config, folder))
    return {"steps": results["steps"], "seconds": results["seconds"], **found}


def asked(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Accuracy by rung with every R, and of the controls."""
    model, slow = load(folder, "last")
    task = config.task.make(seed=config.seed, batch_size=config.train.batch_size)
    assert isinstance(task, Ladders)
    most = task.config.context + task.config.questions(task.config.rungs)
    mesh = make_mesh(MeshConfig())

    def accuracy(model: ModelConfig, emptied: bool = False, shuffled: bool = False) -> list[float]:
        if emptied and isinstance(model, LatentConfig):
            model = dataclasses.replace(model, most_thinking=most)
        predict = make_predict(model.build(), mesh)(slow)
        controlled = control(predict, emptied=emptied, shuffled=shuffled)
        return [score.accuracy for score in task.evaluate(controlled).rows]

    at_test = {0: model}
    if isinstance(model, LatentConfig):
        at_test = {passes: dataclasses.replace(model, thinking=passes, thinking_drawn=False) for passes in PASSES}
        model = dataclasses.replace(model, thinking_drawn=False)
    return {
        "accuracy": {str(passes): accuracy(there) for passes, there in at_test.items()},
        "emptied": accuracy(model, emptied=True),
        "shuffled": accuracy(model, shuffled=True),
    }


def walked(config: ExperimentConfig, folder: Path) -> dict[str, list[float]]:
    """R → share of the answers about the first ``WALKED`` places that name the item that is asked for, the next one, and the one after that."""
    model, slow = load(folder, "last")
    task = config.task.make(seed=config.seed, batch_size=config.train.batch_size)
    assert isinstance(task, Ladders)
    assert isinstance(model, LatentConfig)
    drawn = task.evaluation_set(np.arange(1, task.config.rungs + 1))
    places = (drawn.rung > 0) & (drawn.rung <= WALKED)
    items = np.array([order(row[write]) for row, write in zip(drawn.tokens, drawn.write, strict=True)])
    asked_for = np.nonzero(places)[0], drawn.rung[places] - 1
    found = {}
    for passes in (4, 6, 8):
        config_there = dataclasses.replace(model, thinking=passes, thinking_drawn=False)
        answers = said(make_predict(config_there.build(), make_mesh(MeshConfig()))(slow), drawn)[places]
        shares = [answers == items[asked_for[0], np.minimum(asked_for[1] + on, items.shape[1] - 1)] for on in range(3)]
        found[str(passes)] = [float(share.mean()) for share in shares]
    return found


def order(context: np.ndarray) -> list[int]:
    """The items of a context of ordering, from the first on."""
    links = {int(left): int(right) for left, right, _ in context.reshape(-1, 3)}
    items = [links[MARK]]
    while items[-1] in links:
        items.append(links[items[-1]])
    return items


def control(predict: Predict, *, emptied: bool, shuffled: bool) -> Predict:
    """The same model, asked on a memory in which nothing was written, or on a context whose tokens were shuffled."""

    def controlled(tokens: np.ndarray, valid: np.ndarray, *, write: np.ndarray) -> np.ndarray:
        if shuffled:
            rng = np.random.default_rng(CONTROL_SEED)
            # Random numbers in the context, larger ones behind it: sorted by them, only the context changes its order.
            places = np.where(write & valid, rng.random(tokens.shape), 1 + np.arange(tokens.shape[1])[None])
            tokens = np.take_along_axis(tokens, np.argsort(places, axis=1), axis=1)
        return predict(tokens, valid, write=np.zeros_like(write) if emptied else write)

    return controlled


def described(ladder: str, found: dict[Run, dict[str, Any]], smoke: bool) -> dict[str, Any]:
    """Model → what the table says of it, of those that have a run."""
    rows: dict[str, Any] = {}
    for model in dict.fromkeys(run.model for run in found if run.ladder == ladder):
        config = Run(ladder, model, 0).config(smoke)
        task = config.task
        assert isinstance(task, LadderConfig)
        length = task.context + task.questions(task.rungs)
        per_token = config.model.multiply_adds_per_token(length)
        assert per_token is not None
        rows[model] = {
            "parameters": count_parameters(config.model.build().declared_slow()),
            "state_bytes": jax.eval_shape(lambda model=config.model: model.build().init_fast(1)).nbytes,
            "multiply_adds_per_sequence": per_token * length,
            "rate": config.optimizer.learning_rate,
            "thinking": getattr(config.model, "thinking", None),
            "chance": task.chance,
            **({"most_frequent": by_letters(task)} if ladder == "copy" else {}),
            "trained": task.hardest,
            "runs": {str(run.seed): scores for run, scores in found.items() if run[:2] == (ladder, model)},
        }
    return rows


def by_letters(config: LadderConfig) -> list[float]:
    """Rung by rung of copy, what the most frequent letter of each context is right at: a reference that takes no model."""
    task = config.make(seed=0, batch_size=8)
    return [most_frequent(task.evaluation_set(np.array([rung]))) for rung in range(1, config.rungs + 1)]


def tables(ladders: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name → table in Markdown."""
    found = {ladder: of_ladder(rows) for ladder, rows in ladders.items() if rows}
    walked = of_walks(ladders.get("ordering", {}))
    return found | ({"walked": walked} if walked else {}) | {"sizes": of_sizes(ladders)}


def of_ladder(rows: dict[str, Any]) -> str:
    """Share of the questions that are answered right (ceiling 1): the mean over the seeds, and the largest standard deviation of a row."""
    rungs = len(next(iter(next(iter(rows.values()))["runs"].values()))["emptied"])
    cells = []
    for model, row in rows.items():
        runs = list(row["runs"].values())
        lines = {
            ("" if passes == "0" else passes): [run["accuracy"][passes] for run in runs] for passes in runs[0]["accuracy"]
        }
        lines |= {name: [run[name] for run in runs] for name in ("emptied", "shuffled")}
        for name, values in lines.items():
            by_rung = list(zip(*values, strict=True))
            means = [f"{statistics.fmean(of_seeds):.2f}" for of_seeds in by_rung]
            deviation = f"{max(map(statistics.stdev, by_rung)):.2f}" if len(runs) > 1 else ""
            cells.append([model, name, *means, deviation, str(len(runs))])
    first = next(iter(rows.values()))
    if common := first.get("most_frequent"):
        cells.append(["most frequent letter", "", *(f"{share:.2f}" for share in common), "", ""])
    cells.append(["chance", "", *[f"{first['chance']:.2f}"] * rungs, "", ""])
    return measure.markdown(["model", "R", *map(str, range(1, rungs + 1)), "± at most", "seeds"], cells)


def of_walks(rows: dict[str, Any]) -> str:
    """What the answers about the first places of an order name; empty where nothing was counted."""
    walks = {model: [run["walked"] for run in row["runs"].values() if "walked" in run] for model, row in rows.items()}
    cells = [
        [
            model,
            passes,
            *(f"{statistics.fmean(shares):.2f}" for shares in zip(*(seed[passes] for seed in seeds), strict=True)),
            str(len(seeds)),
        ]
        for model, seeds in walks.items()
        for passes in (seeds[0] if seeds else ())
    ]
    head = ["model", "R", f"the k-th, of k ≤ {WALKED}", "the next", "the one after", "seeds"]
    return measure.markdown(head, cells) if cells else ""


def of_sizes(ladders: dict[str, dict[str, Any]]) -> str:
    """What each row takes."""
    cells = []
    for ladder, rows in ladders.items():
        for model, row in rows.items():
            steps = next(iter(row["runs"].values()))["steps"]
            numbers = [row["parameters"], row["state_bytes"], row["multiply_adds_per_sequence"], steps]
            cells.append([ladder, model, *(f"{number:,}" for number in numbers), f"{row['rate']:g}"])
    return measure.markdown(["ladder", "model", "weights", "bytes of state", "multiply-adds", "steps", "rate"], cells)


if __name__ == "__main__":
    main()
