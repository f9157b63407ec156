"""Models that share a base are specialised on different texts and merged; and a model that meets one text after another, fixed or growing.

    python benchmarks/merging_table.py --workdir=runs/merging --data=FOLDER --json benchmarks/results/merging_cpu.json

FOLDER holds a file NAME.jsonl.gz for each of ``--texts``, with a page a row: its name in ``page``, its text in ``text``. The first text makes the
base; docs/how-to/merge.md says how to get such texts. Pages are held out by name, the same ones in all texts, for many are translations of
each other. Trains what is missing, scores every model on the held-out pages of every text, prints the tables, and writes all numbers.
Finished runs are only read, so that the command can be interrupted and given again; about 15 minutes on one quiet CPU core.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import json
import statistics
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
from bdh_jax.runs.folder import CHECKPOINTS
from bdh_jax.tasks.text import Text, TextConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.step import make_predict
from bdh_jax.types import Slow

TRAIN_BYTES, HELD_OUT_BYTES = 1_500_000, 20_000
"""Of each text, at most."""
HELD_OUT_SHARE = 0.1
MODES: tuple[Mode, ...] = ("neurons", "heads", "average")
Scores = dict[str, float]


class Sizes(NamedTuple):
    """Optimiser steps."""

    base: int = 400
    special: int = 150
    healing: int = 40


class Lab:
    """The runs of one seed, in one folder."""

    def __init__(self, folder: Path, texts: Sequence[str], files: Path, seed: int, sizes: Sizes):
        self.folder, self.texts, self.seed, self.sizes = folder, list(texts), seed, sizes
        self._files = files
        self._tasks: dict[str, Text] = {}

    def experiment(self, texts: Sequence[str], steps: int, **parts: Any) -> ExperimentConfig:
        """Training on some texts."""
        paths = ",".join(str(self._files / f"{text}.train.jsonl") for text in texts)
        held_out = ",".join(str(self._files / f"{text}.held_out.jsonl") for text in texts)
        config = ExperimentConfig(
            task=TextConfig(length=128, evaluation_windows=8),
            data=DataConfig(path=paths, validation_path=held_out),
            model=BDHConfig(
                n_layer=2, d_model=64, n_head=4, n_neurons=256, dropout=0.0, fast=FastWeightConfig(enabled=False)
            ),
            optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=max(1, steps // 10)),
            train=TrainConfig(
                steps=steps, batch_size=8, loss="weights", evaluate_every=steps, checkpoint_every=steps, log_every=50
            ),
            seed=self.seed,
        )
        return dataclasses.replace(config, **parts)

    def trained(self, name: str, texts: Sequence[str], steps: int, start: str | None = None, **parts: Any) -> str:
        """Train, from random weights or those of another run of this seed; gives its name back."""
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
        file = self.folder / name / "scores.json"
        if not file.exists():
            config, slow = load(self.folder / name, "last")
            predict = make_predict(config.build(), make_mesh(MeshConfig(data=1)))(slow)
            found = {text: self._task(text).score(predict).bits_per_byte for text in self.texts}
            file.write_text(json.dumps({"scores": found, "n_neurons": config.n_neurons}) + "\n")  # pyright: ignore[reportAttributeAccessIssue]
        return json.loads(file.read_text())["scores"]

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
    options = parser.parse_args()
    texts = options.texts.split(",")
    files, sizes = options.workdir / "texts", Sizes(*options.steps)
    counts = prepare(options.data, texts, files)
    found: dict[str, Any] = {}
    for seed in options.seeds:
        found[str(seed)] = of_seed(Lab(options.workdir / f"seed{seed}", texts, files, seed, sizes))
        record = {"texts": texts, "bytes": counts, "steps": sizes._asdict(), "seeds": [int(s) for s in found], "runs": found}
        if options.json:
            measure.write_json(options.json, record)
    report(found, texts)


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


def of_seed(lab: Lab) -> dict[str, Any]:
    """All runs of a seed, scored: row → text → bits per byte; and the courses."""
    sizes, (first, *rest) = lab.sizes, lab.texts
    names: dict[str, str] = {"base": lab.trained("base", [first], sizes.base)}
    special = [lab.trained(f"special_{text}", [text], sizes.special, "base") for text in rest]
    names |= {f"specialist {text}": run for text, run in zip(rest, special, strict=True)}
    for mode in MODES:
        names[f"merged {mode}"] = lab.merged(f"merged_{mode}", special, mode)
        names[f"pair {mode}"] = lab.merged(f"pair_{mode}", special[:2], mode)
    names["joint short"] = lab.trained("joint_short", rest, sizes.special, "base")
    names["joint long"] = lab.trained("joint_long", rest, sizes.special * len(rest), "base")
    for row in ("base", *(f"merged {mode}" for mode in MODES)):
        names[f"{row} healed"] = lab.trained(f"healed_{names[row]}", rest, sizes.healing, names[row])
    courses = of_sequence(lab, special)
    whole = sizes.base + sizes.special
    alone = [
        lab.trained(f"alone_{text}", [text], whole, seed=1000 * (number + 1) + lab.seed)
        for number, text in enumerate(rest[:2])
    ]
    names |= {f"alone {text}": run for text, run in zip(rest[:2], alone, strict=True)}
    for mode in MODES:
        names[f"alone merged {mode}"] = lab.merged(f"alone_merged_{mode}", alone, mode)
    for row in ("pair", "alone merged"):
        for mode in ("neurons", "heads"):
            run = names[f"{row} {mode}"]
            names[f"{row} {mode} healed"] = lab.trained(f"healed_{run}", rest[:2], sizes.healing, run)
    return {"scores": {row: lab.scores(run) for row, run in names.items()}, **courses}


def of_sequence(lab: Lab, special: Sequence[str]) -> dict[str, Any]:
    """One text after another: the same model, one that grows a head before each, and specialists that are merged."""
    rest, steps = lab.texts[1:], lab.sizes.special
    courses: dict[str, list[str]] = {name: ["base"] for name in ("fixed", "grown", "grown, new alone", "merged heads")}
    exact: list[bool] = []
    for number, text in enumerate(rest):
        before = courses["fixed"][-1]
        # The first of them is the specialist of that text.
        run = special[0] if number == 0 else lab.trained(f"fixed_{text}", [text], steps, before)
        courses["fixed"].append(run)
        for name, short in (("grown", "grown"), ("grown, new alone", "new")):
            before = courses[name][-1]
            wider = lab.grown(f"{short}_before_{text}", before, 1)
            exact.append(lab.exact(wider, before))
            parts = {}
            if short == "new":
                config = load(lab.folder / before, "last")[0]
                assert isinstance(config, BDHConfig)
                hook = {"hooks": ("bdh_jax.training.growth_hooks:new_heads",), "hook_options": {"old_heads": config.n_head}}
                parts["train"] = dataclasses.replace(lab.experiment([text], steps).train, **hook)
            courses[name].append(lab.trained(f"{short}_{text}", [text], steps, wider, **parts))
        parts = special[: number + 1]
        run = parts[0] if number == 0 else lab.merged(f"merged_heads_{number + 1}", parts, "heads")
        courses["merged heads"].append(run)
    return {
        "courses": {name: [lab.scores(run) for run in runs] for name, runs in courses.items()},
        "neurons": {name: [_neurons(lab, run) for run in runs] for name, runs in courses.items()},
        "grown_exact": exact,
    }


def _neurons(lab: Lab, run: str) -> int:
    return json.loads((lab.folder / run / "scores.json").read_text())["n_neurons"]


def report(found: dict[str, Any], texts: Sequence[str]) -> None:
    """Print mean and spread over seeds."""
    runs = list(found.values())
    for row in runs[0]["scores"]:
        cells = [_spread([run["scores"][row][text] for run in runs]) for text in texts]
        print(f"{row:28}" + "  ".join(cells))
    for name in runs[0]["courses"]:
        for stage in range(len(texts)):
            cells = [_spread([run["courses"][name][stage][text] for run in runs]) for text in texts]
            print(f"{name:18} after {texts[stage]:9}" + "  ".join(cells))
    print("grown models equal to the bit:", all(all(run["grown_exact"]) for run in runs))


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


if __name__ == "__main__":
    main()
