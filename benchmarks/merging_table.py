"""Models that share a base are specialised on different texts and merged; and a model that meets one text after another, fixed or growing.

    python benchmarks/merging_table.py --workdir=runs/merging --data=FOLDER --json benchmarks/results/merging_cpu.json

FOLDER holds a file NAME.jsonl.gz for each of ``--texts``, with a page a row: its name in ``page``, its text in ``text``. The first text makes the
base; docs/how-to/merge.md says how to get such texts. Pages are held out by name, the same ones in all texts, for many are translations of
each other. Trains what is missing, scores every model on the held-out pages of every text, prints the tables, and writes all numbers.
Finished runs are only read, so that the command can be interrupted and given again; about 20 minutes on one quiet CPU core.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measure
import numpy as np

from bdh_jax.analysis.merging import Along, Mode, grow, merge
from bdh_jax.config.convert import change
from bdh_jax.config.seeds import key_of
from bdh_jax.data.config import DataConfig
from bdh_jax.experiment import ExperimentConfig, load, train, write_made
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.base import ModelConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.folder import CHECKPOINTS, RESULTS
from bdh_jax.tasks.text import Text, TextConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.step import make_predict
from bdh_jax.types import Slow

TRAIN_BYTES, HELD_OUT_BYTES = 1_500_000, 20_000
"""Of each text, at most."""
HELD_OUT_SHARE = 0.1
MODES: tuple[Mode, ...] = ("neurons", "heads", "average")
MARKS = ("<!-- made by benchmarks/merging_table.py -->", "<!-- end -->")
COURSES = ("fixed", "large, fixed", "grown", "grown, new alone", "merged heads")
HEADS, HEAD_NEURONS = 4, 64
"""Of the base."""
Scores = dict[str, float]


class Sizes(NamedTuple):
    """Optimiser steps."""

    base: int = 400
    special: int = 150
    healing: int = 40


def sized(heads: int) -> BDHConfig:
    """The model of the table with so many heads of 64 neurons each."""
    return BDHConfig(
        n_layer=2,
        d_model=64,
        n_head=heads,
        n_neurons=heads * HEAD_NEURONS,
        dropout=0.0,
        fast=FastWeightConfig(enabled=False),
    )


class Lab:
    """The runs of one seed, in one folder."""

    def __init__(self, folder: Path, texts: Sequence[str], files: Path, seed: int, sizes: Sizes, *, may_train: bool = True):
        self.folder, self.texts, self.seed, self.sizes, self._may_train = folder, list(texts), seed, sizes, may_train
        self._files = files
        self._tasks: dict[str, Text] = {}

    def experiment(self, texts: Sequence[str], steps: int, **parts: Any) -> ExperimentConfig:
        """Training on some texts."""
        paths = ",".join(str(self._files / f"{text}.train.jsonl") for text in texts)
        held_out = ",".join(str(self._files / f"{text}.held_out.jsonl") for text in texts)
        config = ExperimentConfig(
            task=TextConfig(length=128, evaluation_windows=8),
            data=DataConfig(path=paths, validation_path=held_out),
            model=sized(HEADS),
            optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=max(1, steps // 10)),
            train=TrainConfig(
                steps=steps, batch_size=8, loss="weights", evaluate_every=steps, checkpoint_every=steps, log_every=50
            ),
            seed=self.seed,
        )
        return dataclasses.replace(config, **parts)

    def trained(self, name: str, texts: Sequence[str], steps: int, start: str | None = None, **parts: Any) -> str:
        """Train, from random weights or those of another run of this seed; gives its name back."""
        if start == "" or not (self._may_train or (self.folder / name / RESULTS).exists()):
            raise NotTrained(name)
        config = self.experiment(texts, steps, **parts)
        if start is not None:
            config = change(config, "train", init_from=str(self.folder / start))
            config = change(config, model=load(self.folder / start, "last")[0])
        train(config, self.folder / name)
        return name

    def made(self, name: str, make: Callable[[], tuple[ModelConfig, Slow]], like: str, texts: Sequence[str]) -> str:
        """Weights that no training made, as a run."""
        if not (self.folder / name / CHECKPOINTS).exists():
            config, slow = make()
            experiment = change(self.experiment(texts, self.sizes.special), model=config)
            write_made(experiment, slow, self.folder / name, {"benchmark": name}, like=self.folder / like)
        return name

    def merged(self, name: str, parts: Sequence[str], mode: Mode) -> str:
        """Runs of this seed, merged."""
        if "" in parts:
            raise NotTrained(name)
        models = [(self.folder / part, "last") for part in parts]
        return self.made(name, lambda: merge([load(*model) for model in models], mode), parts[0], self.texts[1:])

    def grown(self, name: str, start: str, heads: int, along: Along = "heads") -> str:
        """A run of this seed with more heads."""

        def make() -> tuple[ModelConfig, Slow]:
            config, slow = load(self.folder / start, "last")
            assert isinstance(config, BDHConfig)
            width = config.n_neurons + heads * config.neurons_per_head
            return grow(config, slow, width, key_of(self.seed), along)

        return self.made(name, make, start, self.texts[1:])

    def scores(self, name: str) -> Scores:
        """Bits per byte of the held-out pages of every text."""

        def make() -> dict[str, Any]:
            config, slow = load(self.folder / name, "last")
            predict = make_predict(config.build(), make_mesh(MeshConfig(data=1)))(slow)
            found = {text: self._task(text).score(predict).bits_per_byte for text in self.texts}
            return {"scores": found, "n_neurons": config.n_neurons}  # pyright: ignore[reportAttributeAccessIssue]

        return measure.kept(self.folder / name / "scores.json", make)["scores"]

    def exact(self, name: str, start: str) -> bool:
        """Whether a grown model has the logits of what it grew from, to the bit, on held-out windows."""
        tokens = self._task(self.texts[0]).batch(0).tokens
        of = []
        for folder in (name, start):
            config, slow = load(self.folder / folder, "last")
            of.append(np.asarray(jax.jit(config.build().apply)({"params": slow}, tokens).logits))
        return bool(np.array_equal(*of))

    def _task(self, text: str) -> Text:
        if text not in self._tasks:
            experiment = self.experiment([text], 1)
            whole = TextConfig(length=experiment.task.length)  # pyright: ignore[reportAttributeAccessIssue]
            self._tasks[text] = whole.make(seed=0, batch_size=16, data=experiment.data)
        return self._tasks[text]


class NotTrained(Exception):
    """A run that is not there, and is not to be made now."""


def main() -> None:
    """Train what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument(
        "--texts", default="man_en,man_de,man_fr,man_es", help="names of the texts; the first makes the base"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds, in this order")
    parser.add_argument("--steps", type=int, nargs=3, default=list(Sizes()), help="of base, specialists and healing")
    parser.add_argument("--json", type=Path, help="write all numbers there, after each seed")
    parser.add_argument("--write", type=Path, help="put the tables into this page, between its marks")
    parser.add_argument("--no_training", action="store_true", help="score what is finished, and train nothing")
    options = parser.parse_args()
    texts = options.texts.split(",")
    files, sizes = options.workdir / "texts", Sizes(*options.steps)
    counts = prepare(options.data, texts, files)
    record: dict[str, Any] = {"texts": texts, "bytes": counts, "steps": sizes._asdict(), "runs": {}}
    record["frequencies"] = {text: frequencies(files, text) for text in texts}
    for seed in options.seeds:
        folder = options.workdir / f"seed{seed}"
        lab = Lab(folder, texts, files, seed, sizes, may_train=not options.no_training)
        record["runs"][str(seed)] = of_seed(lab)
        if options.json:
            measure.write_json(options.json, record)
    lines = "\n".join(tables(record))
    print(lines)
    if options.write:
        measure.write_between(options.write, MARKS, lines)


def prepare(data: Path, texts: Sequence[str], out: Path) -> dict[str, dict[str, int]]:
    """Pages of each text for training and held out, by their names alone. Returns the bytes of each."""
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for text in texts:
        with gzip.open(data / f"{text}.jsonl.gz", "rt", encoding="utf-8") as file:
            pages = sorted((json.loads(line) for line in file), key=lambda page: _place(page["page"]))
        counts[text] = {}
        for part, most in (("held_out", HELD_OUT_BYTES), ("train", TRAIN_BYTES)):
            size, rows = 0, []
            for page in pages:
                length = len(page["text"].encode())
                if (_place(page["page"]) < HELD_OUT_SHARE) == (part == "held_out") and size + length <= most:
                    rows.append(json.dumps({"text": page["text"]}, ensure_ascii=False))
                    size += length
            content = "\n".join(rows) + "\n"
            path = out / f"{text}.{part}.jsonl"
            if not path.exists() or path.read_text(encoding="utf-8") != content:
                path.write_text(content, encoding="utf-8")
            counts[text][part] = size
    return counts


def _place(page: str) -> float:
    """Where a name stands in [0, 1), the same in all texts."""
    return int(hashlib.sha256(page.encode()).hexdigest()[:12], 16) / 16**12


def frequencies(files: Path, text: str) -> float:
    """Bits per byte of the held-out pages by the frequencies of bytes in the others, each counted once more."""
    train, held_out = (
        np.frombuffer("".join(json.loads(line)["text"] for line in path.open(encoding="utf-8")).encode(), np.uint8)
        for path in (files / f"{text}.{part}.jsonl" for part in ("train", "held_out"))
    )
    counts = np.bincount(train, minlength=256) + 1
    return float(-np.log2(counts / counts.sum())[held_out].mean())


def of_seed(lab: Lab) -> dict[str, Any]:
    """All runs of a seed, scored: row → text → bits per byte; and the courses. What is not trained is left out."""
    sizes, (first, *rest) = lab.sizes, lab.texts
    rows: dict[str, Scores] = {}

    def row(name: str, make: Callable[[], str]) -> str:
        """Make a run and score it."""
        try:
            run = make()
            rows[name] = lab.scores(run)
        except NotTrained:
            return ""
        return run

    base = row("base", lambda: lab.trained("base", [first], sizes.base))
    special = [row(f"specialist {t}", lambda t=t: lab.trained(f"special_{t}", [t], sizes.special, "base")) for t in rest]
    merged = {"base": base}
    for mode in MODES:
        merged[f"merged {mode}"] = row(f"merged {mode}", lambda mode=mode: lab.merged(f"merged_{mode}", special, mode))
        merged[f"pair {mode}"] = row(f"pair {mode}", lambda mode=mode: lab.merged(f"pair_{mode}", special[:2], mode))
    row("joint short", lambda: lab.trained("joint_short", rest, sizes.special, "base"))
    row("joint long", lambda: lab.trained("joint_long", rest, sizes.special * len(rest), "base"))
    # As large as what is merged along neurons or heads, and as many steps as base and specialists have together.
    large, all_steps = sized(HEADS * len(rest)), sizes.base + sizes.special * len(rest)
    row("large joint", lambda: lab.trained("large_joint", lab.texts, all_steps, model=large))
    for name in ("base", *(f"merged {mode}" for mode in MODES)):
        run = merged[name]
        row(f"{name} healed", lambda run=run: lab.trained(f"healed_{run}", rest, sizes.healing, run))
    courses = of_sequence(lab, special)
    whole = sizes.base + sizes.special
    alone = [
        row(
            f"alone {t}",
            lambda t=t, seed=1000 * number + lab.seed: lab.trained(f"alone_{t}", [t], whole, seed=seed),
        )
        for number, t in enumerate(rest[:2], 1)
    ]
    for mode in MODES:
        name = f"alone merged {mode}"
        merged[name] = row(name, lambda mode=mode: lab.merged(f"alone_merged_{mode}", alone, mode))
    for name in ("pair neurons", "pair heads", "alone merged neurons", "alone merged heads"):
        run = merged[name]
        row(f"{name} healed", lambda run=run: lab.trained(f"healed_{run}", rest[:2], sizes.healing, run))
    return {"scores": rows, **courses}


def of_sequence(lab: Lab, special: Sequence[str]) -> dict[str, Any]:
    """One text after another: the same model, one as large from the start as the grown one at its end, one that grows a head before each,
    and specialists that are merged."""
    exact: list[bool] = []
    rest, steps = lab.texts[1:], lab.sizes.special

    def merged(before: str, number: int) -> str:
        del before
        parts, every = special[: number + 1], number + 1 == len(rest)
        if number == 0:
            return special[0]
        return lab.merged("merged_heads" if every else f"merged_heads_{number + 1}", parts, "heads")

    def fixed(before: str, number: int) -> str:
        # The first of them is the specialist of that text.
        text = rest[number]
        return special[0] if number == 0 else lab.trained(f"fixed_{text}", [text], steps, before)

    def large(before: str, number: int) -> str:
        return lab.trained(f"large_{rest[number]}", [rest[number]], steps, before)

    def large_base() -> str:
        return lab.trained("large_base", lab.texts[:1], lab.sizes.base, model=sized(HEADS + len(rest)))

    def grown(before: str, number: int, short: str = "grown") -> str:
        text = rest[number]
        wider = lab.grown(f"{short}_before_{text}", before, 1)
        exact.append(lab.exact(wider, before))
        parts = {}
        if short == "new":
            config = load(lab.folder / before, "last")[0]
            assert isinstance(config, BDHConfig)
            hooks, options = ("bdh_jax.training.growth_hooks:new_heads",), {"old_heads": config.n_head}
            train = lab.experiment([text], steps).train
            parts["train"] = dataclasses.replace(train, hooks=hooks, hook_options=options)  # pyright: ignore[reportArgumentType]
        return lab.trained(f"{short}_{text}", [text], steps, wider, **parts)

    made = {
        "merged heads": merged,
        "fixed": fixed,
        "large, fixed": large,
        "grown": grown,
        "grown, new alone": functools.partial(grown, short="new"),
    }
    courses: dict[str, list[str]] = {}
    for name, stage in made.items():
        courses[name] = []
        try:
            courses[name].append(large_base() if name == "large, fixed" else "base")
            for number in range(len(rest)):
                courses[name].append(stage(courses[name][-1], number))
        except NotTrained:
            continue
    return {
        "courses": {name: [lab.scores(run) for run in courses[name]] for name in COURSES},
        "neurons": {name: [_neurons(lab, run) for run in courses[name]] for name in COURSES},
        "grown_exact": exact,
    }


def _neurons(lab: Lab, run: str) -> int:
    return json.loads((lab.folder / run / "scores.json").read_text())["n_neurons"]


def tables(record: dict[str, Any]) -> list[str]:
    """The tables of the page, as Markdown: mean and standard deviation over the seeds that have a row."""
    texts, runs = record["texts"], list(record["runs"].values())
    heads = [text.removeprefix("man_") for text in texts]
    names = list(dict.fromkeys(name for run in runs for name in run["scores"]))
    lines: list[str] = []
    for title, kind in (("All three texts", "all"), ("Two texts, with and without a common base", "two")):
        lines += [f"| {title} | {' | '.join(heads)} | seeds |", "|---" * (len(heads) + 2) + "|"]
        for name in names:
            if name.startswith(("alone", "pair")) == (kind == "two"):
                have = [run["scores"][name] for run in runs if name in run["scores"]]
                cells = [measure.spread([one[text] for one in have]) for text in texts]
                lines.append(" | ".join([f"| {_label(name)}", *cells, f"{len(have)} |"]))
        if kind == "all":
            chance = [f"{record['frequencies'][text]:.3f}" for text in texts]
            lines.append(" | ".join(["| frequencies of bytes", *chance, " |"]))
        lines.append("")
    lines += [f"| model, and the text it has met last | neurons | {' | '.join(heads)} | seeds |"]
    lines += ["|---" * (len(heads) + 3) + "|"]
    for name in COURSES:
        for stage, text in enumerate(texts):
            have = [run for run in runs if len(run["courses"][name]) > stage]
            if have:
                cells = [measure.spread([run["courses"][name][stage][t] for run in have]) for t in texts]
                label = f"| {name}: {text.removeprefix('man_')}"
                lines.append(" | ".join([label, str(have[0]["neurons"][name][stage]), *cells, f"{len(have)} |"]))
    exact = [one for run in runs for one in run["grown_exact"]]
    return [*lines, "", f"Grown models whose logits were those of the old one to the bit: {sum(exact)} of {len(exact)}."]


def _label(name: str) -> str:
    """A row's name in the page."""
    healed = ", healed" if name.endswith(" healed") else ""
    plain = name.removesuffix(" healed").replace("man_", "")
    for short, long in (
        ("alone merged", "no common base, merged along"),
        ("pair average", "mean of the weights of two"),
        ("pair", "two merged along"),
        ("alone", "no common base,"),
        ("merged average", "mean of weights"),
        ("merged", "merged along"),
        ("large joint", "of the merged size, all four texts from the start"),
        ("joint short", "trained on all, as long as one specialist"),
        ("joint long", "trained on all, as long as all specialists"),
    ):
        if plain.startswith(short):
            plain = long + plain.removeprefix(short)
            break
    return plain.replace("merged along average", "mean of weights") + healed


if __name__ == "__main__":
    main()
