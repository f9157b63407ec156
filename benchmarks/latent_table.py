"""Does thinking longer help? Questions on a frozen memory, answered after R = 1, 2, 4, 8, 16 passes, beside plain and deeper BDH.

    python benchmarks/latent_table.py --workdir=runs/latent --json benchmarks/results/latent_cpu.json

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
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measure
import numpy as np

from bdh_jax.config.convert import change
from bdh_jax.console import Progress
from bdh_jax.experiment import ExperimentConfig, load, record_of, train
from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.models.latent import LatentConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.folder import finished
from bdh_jax.tasks.ladder import MARK, LadderConfig, Ladders, most_frequent, said
from bdh_jax.tasks.scoring import Predict
from bdh_jax.training.step import make_predict

LADDERS = ("binding", "ordering", "copy")
MODELS = {"fixed": "", "drawn": "drawn", "plain": "plain", "deep": "deep"}
"""Name → variant of ``configs/latent.py``."""
BINDING = {
    "fixed, half the rungs": "shallow",
    "deep, half the rungs": "shallow,deep",
    "deep, three times the steps": "deep,longer",
}
"""Rows of binding alone: two see the easier half of the rungs in training, one learns for longer."""
PASSES = (1, 2, 4, 8, 16)
"""R at test."""
CONTROL_SEED = 7
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
        return change(config, seed=self.seed)

    def folder(self, workdir: Path) -> Path:
        """Where it is."""
        return workdir / self.ladder / self.model.replace(", ", "-").replace(" ", "_") / f"seed{self.seed}"


def main() -> None:
    """Train what is missing, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--ladders", nargs="+", choices=LADDERS, default=LADDERS, help="ladders")
    parser.add_argument("--models", nargs="+", choices=(*MODELS, *BINDING), default=(*MODELS, *BINDING), help="models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and a few steps: does it run?")
    parser.add_argument("--finished", action="store_true", help="report what is there, and train nothing")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    # Seed by seed, so that what an interruption leaves is whole rows of fewer seeds.
    runs = [
        Run(ladder, model, seed)
        for seed in options.seeds
        for ladder in options.ladders
        for model in options.models
        if model in MODELS or ladder == "binding"
    ]
    found: dict[Run, dict[str, Any]] = {}
    with Progress("runs", len(runs)) as progress:
        for run in runs:
            if (scores := scored(run, options)) is not None:
                found[run] = scores
            progress.advance(1, f"{run.ladder}, {run.model}, seed {run.seed}")
    rows = {ladder: described(ladder, found, options.smoke) for ladder in options.ladders}
    for ladder, models in rows.items():
        report(ladder, models)
    if options.json:
        command = " ".join(["python", "benchmarks/latent_table.py", *sys.argv[1:]])
        measure.write_json(options.json, {"command": command, "seeds": options.seeds, "ladders": rows})


def scored(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """What a run's model answers, trained if it is missing; None of one that is missing and not to be trained."""
    config, folder = run.config(options.smoke), run.folder(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    results = finished(folder, record_of(config))
    if results is None and options.finished:
        return None
    if results is None:
        results, _ = train(config, folder)
    found = measure.kept(folder / "passes.json", lambda: asked(config, folder))
    if run.ladder == "ordering" and isinstance(config.model, LatentConfig):
        found["walked"] = measure.kept(folder / "walked.json", lambda: walked(config, folder))
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


def report(ladder: str, rows: dict[str, Any]) -> None:
    """Print a ladder as a table in Markdown: the mean over the seeds, and the largest standard deviation of a row."""
    if not rows:
        return
    chance = next(iter(rows.values()))["chance"]
    rungs = len(next(iter(next(iter(rows.values()))["runs"].values()))["emptied"])
    print(f"\n{ladder}: share of questions that are answered right (ceiling 1, chance {chance:.3f})\n")
    head = ["model", "R", *map(str, range(1, rungs + 1)), "± at most", "seeds"]
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
    if common := next(iter(rows.values())).get("most_frequent"):
        cells.append(["most frequent letter", "", *(f"{share:.2f}" for share in common), "", ""])
    print(measure.markdown(head, cells))
    walks = {model: [run["walked"] for run in row["runs"].values() if "walked" in run] for model, row in rows.items()}
    walked = [
        [
            model,
            passes,
            *(f"{statistics.fmean(shares):.2f}" for shares in zip(*(seed[passes] for seed in seeds), strict=True)),
            str(len(seeds)),
        ]
        for model, seeds in walks.items()
        for passes in (seeds[0] if seeds else ())
    ]
    if walked:
        head = ["model", "R", f"the k-th, of k ≤ {WALKED}", "the next", "the one after", "seeds"]
        print(f"\n{measure.markdown(head, walked)}")
    sizes = []
    for model, row in rows.items():
        runs = list(row["runs"].values())
        numbers = [row["parameters"], row["state_bytes"], row["multiply_adds_per_sequence"], runs[0]["steps"]]
        seconds = statistics.fmean(run["seconds"] for run in runs)
        sizes.append([model, *(f"{number:,}" for number in numbers), f"{seconds:.0f}"])
    head = ["model", "weights", "bytes of state", "multiply-adds a sequence", "steps", "seconds"]
    print(f"\n{measure.markdown(head, sizes)}")


if __name__ == "__main__":
    main()
