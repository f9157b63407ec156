"""Local learning during training: Hebb's failure reproduced and explained, and every rule against backpropagation.

    python benchmarks/local_rules_table.py --workdir=runs/local_rules --path=FILE --json benchmarks/results/local_rules_cpu.json

Trains a small BDH-SLIM (D 64, 2 layers, T 32, bytes, batches of 8, 200 steps) once for every row and seed, in one process, by the library's own
training step; finished rows are only read, so the command can be interrupted and given again, and parts of it can run side by side. Rates of the rules are chosen on seed 100.
Then BDH and a GPT of that width: three rules on BDH's encoder and decoder, pruning, and homeostasis. About twenty minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from bdh_jax import BDHConfig, FastWeightConfig
from bdh_jax.analysis.local_learning import attention_entropy, measure_maps
from bdh_jax.data.config import DataConfig
from bdh_jax.experiment import ExperimentConfig, setup_of
from bdh_jax.generation.sampling import Sampling, generate, prefill
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.models.local_maps import matrix_of, weight_of, with_weight
from bdh_jax.models.slim import SlimConfig
from bdh_jax.parallel.mesh import make_mesh
from bdh_jax.tasks.text import TextConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.hooks import Hooks, make_hooks
from bdh_jax.training.local_rules import homeostasis, local_learning, pruning
from bdh_jax.training.local_rules.upkeep import prune_fraction
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state, state_from
from bdh_jax.training.step import ForwardPass, gradients, make_keys, make_train_step, put_batch

MODELS: dict[str, Any] = {
    "slim": SlimConfig(n_layer=2, d_model=64, n_head=4, d_ff=128, max_length=32),
    "bdh": BDHConfig(
        n_layer=2, d_model=64, n_head=2, n_neurons=256, dropout=0.0, init_std=0.02, fast=FastWeightConfig(enabled=False)
    ),
    "gpt": GPTConfig(n_layer=2, d_model=64, n_head=4, width_factor=2, dropout=0.0),
}
STEPS, CHUNK, RECOVERY = 200, 50, 100
WINDOWS = 512
"""Of the validation text, that losses are measured on."""
RATES = (1e-4, 1e-3, 1e-2)
"""η of the failure."""
GRID = (1e-4, 3e-4, 1e-3)
"""η that the rules are tried with, on seed 100."""
TUNING = 100
SEEDS = (0, 1, 2, 3, 4)
FEW = SEEDS[:3]
HARMLESS = 0.02
"""Nats: a rule whose upper bound is at most so much does no harm."""
SHARE = 0.1
"""Share of the change that a rule must have for that."""
TOLERATED = 0.01
"""Nats above backpropagation that a rate may cost on the tuning seed."""
RULES: dict[str, dict[str, Any]] = {
    "hebb": {"rule": "hebb"},
    "hebb, first 50 steps": {"rule": "hebb", "until_step": 50},
    "hebb, attention": {"rule": "hebb", "where": "attention"},
    "hebb, ffn": {"rule": "hebb", "where": "ffn"},
    "oja": {"rule": "oja"},
    "sanger": {"rule": "sanger"},
    "bcm": {"rule": "bcm"},
    "covariance": {"rule": "covariance"},
    "contrastive": {"rule": "contrastive"},
    "predictive": {"rule": "predictive"},
    "three_factor": {"rule": "three_factor"},
}
CAUSES: dict[str, dict[str, Any]] = {
    "top direction removed": {"remove_top": 1},
    "x centred": {"centre": True},
    "renormalised": {"renormalise": True},
}
ON_BDH = ("hebb", "oja", "covariance")
PRUNED = (0.0, 0.5, 0.8, 0.9, 0.95)
SCALED = {"published 0.5": 0.5, "as initialised": 0.016}


def main() -> None:
    """Train what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the finished rows")
    parser.add_argument("--path", type=Path, required=True, help="the text")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of every row")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts of the page")
    parser.add_argument("--finished", action="store_true", help="train nothing: report the rows that there are")
    parser.add_argument("--page", type=Path, help="a page whose tables, between comments with their names, are written anew")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    bench = Bench(options.workdir, options.path, options.steps, trains=not options.finished)
    found = {name: PARTS[name](bench) for name in options.parts}
    tables = {f"{name} {number}": text for name, part in found.items() for number, text in enumerate(TABLES[name](part))}
    print("\n\n".join(f"{name}\n{text}" for name, text in tables.items()))
    if options.page:
        options.page.write_text(with_tables(options.page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    if options.json:
        measure.write_json(options.json, {"steps": options.steps, "parts": found})


class Bench:
    """Rows that are there already, and how the others are made."""

    def __init__(self, workdir: Path, path: Path, steps: int, *, trains: bool = True):
        self.folder, self.path, self.steps, self.trains = workdir, path, steps, trains
        workdir.mkdir(parents=True, exist_ok=True)
        Probed.folder = workdir
        self.file = workdir / "rows.jsonl"
        self.rows: dict[str, Any] = {}
        self.trainers: dict[str, Trainer] = {}

    def read(self) -> None:
        """Rows that were finished since, by this or another process."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.rows |= {line["row"]: line for line in map(json.loads, lines)}

    def row(self, model: str, seed: int, local: Mapping[str, Any] | None = None, rate: float = 0.0, **how: Any) -> Any:
        """What a training gave: read, or made now."""
        options = dict(sorted((local or {}).items()))
        name = json.dumps([model, seed, options, rate, how, self.steps])
        if name not in self.rows:
            self.read()
        if name not in self.rows and not self.trains:
            return None
        if name not in self.rows:
            began = time.process_time()
            row = {"row": name, "seed": seed, **self.trainer(model, options).train(seed, rate, **how)}
            row["cpu_seconds"] = round(time.process_time() - began, 2)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.rows[name] = row
            print(f"{row['cpu_seconds']:7.1f} s  {name}  loss {row['loss'][-1]:.4f}", flush=True)
        return self.rows[name]

    def trainer(self, model: str, options: Mapping[str, Any]) -> Trainer:
        """One compiled program for each structure; rates and seeds are its arguments."""
        name = json.dumps([model, options])
        if name not in self.trainers:
            self.trainers[name] = Trainer(model, options, self.path, self.steps)
        return self.trainers[name]

    def several(self, model: str, seeds: tuple[int, ...], local: Any = None, rate: float = 0.0, **how: Any) -> list[Any]:
        """The rows of some seeds, of those that there are."""
        rows = [self.row(model, seed, local, rate, **how) for seed in seeds]
        return [{**row, "seed": seed} for seed, row in zip(seeds, rows, strict=True) if row is not None]


class Trainer:
    """Trains one model with one kind of hook, at any rate and from any seed."""

    tasks: dict[int, Any] = {}  # noqa: RUF012 - shared on purpose: a text is read once a seed
    probes: dict[str, Any] = {}  # noqa: RUF012 - likewise
    stacked: dict[tuple[int, int, int], Any] = {}  # noqa: RUF012 - likewise

    def __init__(self, model: str, options: Mapping[str, Any], path: Path, steps: int):
        self.name, self.options, self.path, self.steps = model, dict(options), path, steps
        self.config = ExperimentConfig(
            task=TextConfig(length=32),
            data=DataConfig(path=str(path)),
            model=MODELS[model],
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20, weight_decay=0.01),
            train=TrainConfig(steps=steps + RECOVERY, batch_size=8, loss="weights"),
        )
        self.setup, self.mesh = setup_of(self.config), make_mesh(self.config.mesh)
        self.model = self.config.model.build()
        # The cosine ends with the training; recovery goes on at the rate that its own cosine begins with.
        self.optimizer = make_optimizer(self.config.optimizer, steps)
        self.chunk = jax.jit(self._chunk)
        self.start = jax.jit(lambda key: init_state(self.model, self.optimizer, self.mesh, key, self.hooks(0.0)))

    def hooks(self, rate: Any) -> Hooks:
        """Those of the row."""
        kind = self.options.get("kind", "local")
        rest = {name: value for name, value in self.options.items() if name != "kind"}
        if kind == "local":
            return make_hooks([functools.partial(local_learning, rate=rate, **rest)] if rest else [], self.model)
        return make_hooks([functools.partial({"pruning": pruning, "homeostasis": homeostasis}[kind], **rest)], self.model)

    def _chunk(self, state: Any, batches: Any, key: jax.Array, rate: jax.Array) -> tuple[Any, Any]:
        task = self.task(0)
        step = make_train_step(self.model, self.optimizer, self.setup, self.mesh, hooks=self.hooks(rate), losses=task.losses)
        return jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)

    def task(self, seed: int) -> Any:
        """The text, in the order of a seed."""
        if seed not in self.tasks:
            self.tasks[seed] = self.config.task.make(seed=seed, batch_size=8, data=self.config.data)
        return self.tasks[seed]

    def batches(self, seed: int, first: int, last: int) -> Any:
        """The batches of some steps, one after another; none of their masks masks anything."""
        if (seed, first, last) not in self.stacked:
            task = self.task(seed)
            every = [task.batch(step)._replace(valid=None, reset=None) for step in range(first, last)]
            self.stacked[seed, first, last] = jax.tree.map(lambda *leaves: np.stack(leaves), *every)
        return self.stacked[seed, first, last]

    def train(self, seed: int, rate: float, *, probe: bool = False, prune: float | None = None) -> dict[str, Any]:
        """Losses over the steps, and what else is asked for."""
        task, hooks = self.task(seed), self.hooks(rate)
        init_key, step_key = make_keys(seed, self.mesh)
        if prune is None:
            state, first, last = self.start(init_key), 0, self.steps
        else:
            slow = pruned(self.model, trained(self, seed), prune)
            state, first, last = (
                state_from(self.model, self.optimizer, self.mesh, slow, hooks),
                self.steps,
                self.steps + RECOVERY,
            )
        loss = scorer(self)
        rows: dict[str, Any] = {"step": [first], "loss": [score(loss, state.slow)], "train_loss": [], "seconds": []}
        measured = [self.probe(state.slow, task)] if probe else []
        for start in range(first, last, CHUNK):
            batches = self.batches(seed, start, min(start + CHUNK, last))
            began = time.process_time()
            state, metrics = jax.block_until_ready(self.chunk(state, batches, step_key, jnp.float32(rate)))
            rows["seconds"].append(round(time.process_time() - began, 4))
            rows["step"].append(min(start + CHUNK, last))
            rows["loss"].append(score(loss, state.slow))
            rows["train_loss"].append(float(jnp.mean(metrics["loss"])))
            if not math.isfinite(rows["loss"][-1]):
                break
            if probe:
                measured.append(self.probe(state.slow, task))
        rows |= {name: float(values[-1]) for name, values in metrics["hooks"].items()}
        if probe:
            rows["probe"] = measured
            rows["end"] = self.at_the_end(state.slow, task, rate)
        if not self.options and prune is None:
            np.savez(
                self.path_of(seed),
                **{jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(state.slow)},
            )
        return rows

    def path_of(self, seed: int) -> Path:
        """Where the weights of a training by gradient alone are kept."""
        return Path(Probed.folder) / f"{self.name}{seed}-{self.steps}.npz"

    def probe(self, slow: Any, task: Any) -> dict[str, Any]:
        """Measures of every linear map, and of attention."""
        if self.name not in self.probes:
            self.probes[self.name] = jax.jit(functools.partial(probed, self.model, self.setup.train.loss, task.losses))
        found = jax.device_get(self.probes[self.name](slow, put_batch(task.batch(10**6), self.mesh)))
        return jax.tree.map(lambda value: float(f"{float(value):.4g}"), found)

    def at_the_end(self, slow: Any, task: Any, rate: float) -> dict[str, Any]:
        """Sparsity, the histogram of Hebb's change, and a text."""
        maps = self.model.architecture.local_maps()
        names = tuple(dict.fromkeys(tap for one in maps.values() for tap in (one.x, one.y)))
        batch = task.batch(10**6)
        collected = jax.jit(
            lambda slow, tokens: self.model.apply({"params": slow}, tokens, state="none", collect=names).collected
        )(slow, batch.tokens)
        entries = np.concatenate([np.abs(matrix_of(slow, one)).ravel() for one in maps.values()])
        changes = np.concatenate(
            [
                np.einsum("bti,bto->io", collected[one.x][one.layer], collected[one.y][one.layer]).ravel()
                / batch.tokens.size
                for one in maps.values()
            ]
        )
        counts, _ = np.histogram(np.log10(np.abs(changes) + 1e-12), bins=HISTOGRAM)
        hidden = np.asarray(collected["ffn_in.y"])
        return {
            "weights_below_0.01": round(float(np.mean(entries < 0.01)), 4),
            "hidden_inactive": round(float(np.mean(hidden <= 0)), 4),
            "change_clamped": round(float(np.mean(np.abs(changes) >= 1)), 4),
            "histogram": (counts / counts.sum()).round(4).tolist(),
            "text": sample_text(self.model, slow),
        }


HISTOGRAM = np.arange(-6.0, 4.1, 0.5)
"""log10 |Δ|."""


class Probed:
    """Where weights are kept between parts."""

    folder: Path = Path()


def scorer(trainer: Trainer) -> Callable[[Any], jax.Array]:
    """slow → the mean loss of a model on windows of the validation text, made once."""
    key = f"score {trainer.name}"
    if key not in Trainer.probes:
        corpus, length, count = trainer.task(0).validation.tokens, trainer.config.task.length, WINDOWS
        first = np.linspace(0, len(corpus) - length - 1, count).astype(int)
        text = np.stack([corpus[start : start + length + 1] for start in first]).astype(np.int32)

        def loss(slow: Any) -> jax.Array:
            logits = trainer.model.apply({"params": slow}, text[:, :-1], state="none").logits
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]))

        Trainer.probes[key] = jax.jit(loss)
    return Trainer.probes[key]


def score(loss: Callable[[Any], jax.Array], slow: Any) -> float:
    """Validation loss in nats a byte."""
    return round(float(loss(slow)), 5)


def probed(model: Any, loss: str, losses: Any, slow: Any, batch: Any) -> dict[str, Any]:
    """Measures of all maps, and the entropy of each layer's attention."""
    found = gradients(model, slow, batch, ForwardPass(loss=loss, losses=losses))
    maps = measure_maps(model, slow, found.gradient, batch)
    seen = model.apply({"params": slow}, batch.tokens, state="none", collect=("query.y", "key.y")).collected
    entropy = [attention_entropy(q, k, model.config.n_head) for q, k in zip(seen["query.y"], seen["key.y"], strict=True)]
    return {"maps": {name: m._asdict() for name, m in maps.items()}, "entropy": entropy}


def sample_text(model: Any, slow: Any) -> str:
    """Eighty bytes after a name."""
    state = prefill(model, slow, [np.frombuffer(b"ROMEO:\n", np.uint8).astype(np.int32)])
    tokens = [row[0] for row in generate(model, slow, state, max_tokens=80, sampling=Sampling(temperature=0.8), seeds=0)]
    return bytes(token for token in tokens if token is not None).decode("latin-1")


def trained(trainer: Trainer, seed: int) -> Any:
    """The weights that training by gradient alone made."""
    with np.load(trainer.path_of(seed)) as file:
        flat = dict(file)
    shape = trainer.model.declared_slow()
    return jax.tree_util.tree_map_with_path(
        lambda path, _: flat[jax.tree_util.keystr(path)], shape, is_leaf=lambda w: hasattr(w, "init")
    )


def pruned(model: Any, slow: Any, fraction: float) -> Any:
    """The same weights, of each linear map the smallest set to zero."""
    for one in model.architecture.local_maps().values():
        slow = with_weight(slow, one.path, np.asarray(prune_fraction(jnp.asarray(weight_of(slow, one)), fraction)))
    return slow


def differences(rows: list[Any], others: list[Any]) -> list[float]:
    """Of the last losses, over the seeds that both have."""
    there = {row["seed"]: row["loss"][-1] for row in others}
    return [row["loss"][-1] - there[row["seed"]] for row in rows if row["seed"] in there]


def paired(rows: list[Any], others: list[Any]) -> dict[str, float]:
    """Mean difference of the last losses, and its 95 % interval by Student's t over paired seeds; nothing for fewer than two."""
    found = differences(rows, others)
    if len(found) < 2:
        return {}
    mean, half = measure.paired(found)
    return {"difference": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "pairs": len(found)}


def summary(rows: list[Any]) -> dict[str, Any]:
    """Mean and standard deviation of the last losses, and shares of the local changes."""
    losses = [row["loss"][-1] for row in rows]
    found: dict[str, Any] = {
        "loss": round(statistics.fmean(losses), 4),
        "sd": round(statistics.stdev(losses), 4) if len(losses) > 1 else 0.0,
        "seeds": len(losses),
        "losses": losses,
    }
    for name in ("share", "path_share"):
        values = [row[f"local_learning_{name}"] for row in rows if f"local_learning_{name}" in row]
        if values:
            found[name] = [round(value, 4) for value in values]
    return found


def failure(bench: Bench) -> dict[str, Any]:
    """Three modes, three rates, updates every step and every eight."""
    rows = {"backprop": bench.several("slim", FEW, probe=True)}
    for mode in ("hybrid", "hebbian"):
        for every in (1, 8):
            local = {"rule": "hebb", "mode": mode, **({"every": 8} if every == 8 else {})}
            for rate in RATES:
                probe = {"probe": True} if every == 1 else {}
                rows[f"{mode} {rate:g} every {every}"] = bench.several("slim", FEW, local, rate, **probe)
    cost = {
        "backprop": cost_of(bench, {}),
        **{mode: cost_of(bench, {"rule": "hebb", "mode": mode}) for mode in ("hybrid", "hebbian")},
        **{
            f"{mode}, share not measured": cost_of(bench, {"rule": "hebb", "mode": mode, "measure": False})
            for mode in ("hybrid", "hebbian")
        },
    }
    table = {
        name: {
            **summary(found),
            "course": np.mean(
                [row["loss"] for row in found if len(row["loss"]) == max(len(r["loss"]) for r in found)], axis=0
            )
            .round(4)
            .tolist(),
        }
        for name, found in rows.items()
        if found
    }
    ends = {name: found[0]["end"] for name, found in rows.items() if found and "end" in found[0]}
    cost = {name: row for name, row in cost.items() if row}
    return {"table": table, "steps": rows["backprop"][0]["step"], "ends": ends, "cost": cost}


def cost_of(bench: Bench, local: dict[str, Any]) -> dict[str, float]:
    """CPU time of a step and bytes of a program of one step."""
    name = json.dumps(["cost", local])
    if name not in bench.rows:
        bench.read()
    if name not in bench.rows and not bench.trains:
        return {}
    if name not in bench.rows:
        trainer = bench.trainer("slim", local)
        task, hooks = trainer.task(0), trainer.hooks(1e-4)
        init_key, key = make_keys(0, trainer.mesh)
        state = init_state(trainer.model, trainer.optimizer, trainer.mesh, init_key, hooks)
        step = make_train_step(
            trainer.model, trainer.optimizer, trainer.setup, trainer.mesh, hooks=hooks, losses=task.losses
        )
        batch = put_batch(task.batch(0), trainer.mesh)
        memory = step.lower(state, batch, key).compile().memory_analysis()
        seconds = []
        for _ in range(60):
            began = time.process_time()
            state, metrics = step(state, batch, key)
            jax.block_until_ready((state, metrics))
            seconds.append(time.process_time() - began)
        row = {
            "row": name,
            "milliseconds": round(1e3 * statistics.median(seconds[10:]), 3),
            "fastest": round(1e3 * min(seconds[10:]), 3),
            "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
            "temporary_bytes": int(memory.temp_size_in_bytes),
        }
        with bench.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        bench.rows[name] = row
    return {key: value for key, value in bench.rows[name].items() if key != "row"}


def explanation(bench: Bench) -> dict[str, Any]:
    """What lies behind it: measures over training, and each cause taken away alone."""
    backprop = bench.several("slim", SEEDS, probe=True)
    local, rate = {"rule": "hebb", "mode": "hybrid"}, 1e-3
    plain = bench.several("slim", SEEDS, local, rate, probe=True)
    causes: dict[str, Any] = {"nothing changed": {**summary(plain), "to_backprop": paired(plain, backprop)}}
    probes = {"backprop": backprop, "hebb": plain}
    for name, change in CAUSES.items():
        rows = bench.several("slim", SEEDS, {**local, **change}, rate, probe=True)
        if not rows:
            continue
        seeds = {row["seed"] for row in rows} & {row["seed"] for row in plain}
        before = [row for row in plain if row["seed"] in seeds]
        gap, left = differences(before, backprop), differences([row for row in rows if row["seed"] in seeds], backprop)
        causes[name] = {
            **summary(rows),
            "to_hebb": paired(rows, plain),
            "to_backprop": paired(rows, backprop),
            "restored": [round(1 - b / g, 3) for b, g in zip(left, gap, strict=True)],
        }
        probes[name] = rows
    low = bench.several("slim", FEW, local, 1e-4, probe=True)
    high = bench.several("slim", FEW, local, 1e-2, probe=True)
    probes |= {"hebb 1e-4": low, "hebb 1e-2": high}
    course = {name: mean_probe([row["probe"] for row in rows]) for name, rows in probes.items() if rows}
    return {"table": causes, "course": course, "steps": backprop[0]["step"]}


def mean_probe(probes: list[Any]) -> Any:
    """Mean over seeds of every measure at every step, which lie in lists then."""
    steps = min(len(probe) for probe in probes)
    means = [jax.tree.map(lambda *values: statistics.fmean(values), *(probe[i] for probe in probes)) for i in range(steps)]
    return jax.tree.map(lambda *values: [float(f"{value:.4g}") for value in values], *means)


def rules(bench: Bench) -> dict[str, Any]:
    """All rules against backpropagation, at rates chosen on another seed."""
    return compare(bench, "slim", RULES, SEEDS, GRID)


def on_bdh(bench: Bench) -> dict[str, Any]:
    """Three rules on BDH's encoder and decoder."""
    return compare(bench, "bdh", {name: RULES[name] for name in ON_BDH}, FEW, GRID)


def compare(
    bench: Bench, model: str, entries: Mapping[str, Any], seeds: tuple[int, ...], grid: tuple[float, ...]
) -> dict[str, Any]:
    """Rules at the rate that moves the weights most of those that cost at most ``TOLERATED`` on the tuning seed; else at the least rate."""
    probe = {"probe": True} if model == "slim" else {}
    backprop, tuned = bench.several(model, seeds, **probe), bench.row(model, TUNING)
    table: dict[str, Any] = {"backprop": summary(backprop)}
    sweep: dict[str, Any] = {}
    for name, local in entries.items():
        tried = [(rate, bench.row(model, TUNING, local, rate)) for rate in grid]
        sweep[name] = [
            {
                "rate": rate,
                "cost": round(row["loss"][-1] - tuned["loss"][-1], 4),
                **{n: round(row[f"local_learning_{n}"], 4) for n in ("share", "path_share")},
            }
            for rate, row in tried
            if row is not None
        ]
        if len(sweep[name]) < len(grid):
            continue
        good = [entry for entry in sweep[name] if entry["cost"] <= TOLERATED]
        rate = (
            max(good, key=lambda entry: entry["share"])["rate"]
            if good
            else min(sweep[name], key=lambda e: e["cost"])["rate"]
        )
        rows = bench.several(model, seeds, local, rate)
        if not rows:
            continue
        table[name] = {"rate": rate, **summary(rows), **paired(rows, backprop)}
        enough = min(table[name]["share"]) >= SHARE
        table[name]["harmless"] = bool(table[name].get("high", math.inf) <= HARMLESS and enough)
    return {"table": table, "sweep": sweep, "tuning_loss": tuned["loss"][-1]}


def upkeep(bench: Bench) -> dict[str, Any]:
    """Pruning with and without recovery, and homeostasis, on BDH and a GPT."""
    table: dict[str, Any] = {}
    for model in ("bdh", "gpt"):
        backprop = bench.several(model, FEW)
        again = {"kind": "pruning", "threshold": None, "fraction": 0.0, "hold": True, "prune_every": 10**6}
        for fraction in PRUNED:
            rows = bench.several(model, FEW, again, prune=fraction)
            if not rows:
                continue
            before = [row["loss"][0] for row in rows]
            table[f"{model} pruned {fraction:g}"] = {
                "without": round(statistics.fmean(before), 4),
                "without_sd": round(statistics.stdev(before), 4) if len(before) > 1 else 0.0,
                **summary(rows),
            }
        for name, target in SCALED.items():
            rows = bench.several(model, FEW, {"kind": "homeostasis", "mean_weight": target, "scale_every": 50})
            if rows:
                table[f"{model} scaled, {name}"] = {**summary(rows), **paired(rows, backprop)}
        if backprop:
            table[model] = summary(backprop)
    return {"table": table}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "explanation": explanation,
    "rules": rules,
    "failure": failure,
    "on_bdh": on_bdh,
    "upkeep": upkeep,
}


# The tables of docs/results/hebbian_training.md.


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """In Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with these tables between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    for name, text in tables.items():
        head, found, rest = page.partition(f"<!-- table: {name} -->\n")
        if found:
            page = head + found + "\n" + text + "\n\n" + rest[rest.index("<!-- end -->") :]
    return page


def score_of(row: Mapping[str, Any]) -> str:
    """Mean and standard deviation."""
    return f"{row['loss']:.3f} ± {row['sd']:.3f}" if row["seeds"] > 1 else f"{row['loss']:.3f} (one seed)"


def interval(row: Mapping[str, Any]) -> str:
    """A paired difference with its 95 % interval."""
    if "difference" not in row:
        return ""
    return f"{row['difference']:+.3f} ({row['low']:+.3f} … {row['high']:+.3f})".replace("-", "−")


def shares(row: Mapping[str, Any], name: str) -> str:
    """The mean of a share, and its range."""
    return f"{statistics.fmean(row[name]):.2f} ({min(row[name]):.2f}–{max(row[name]):.2f})" if name in row else ""


def of_failure(part: Any) -> list[str]:
    """Losses; what the models end as; cost."""
    losses = table(
        ["mode", *(f"step {step}" for step in part["steps"][1:]), "mean ± sd"],
        ([name, *(f"{loss:.3f}" for loss in row["course"][1:]), score_of(row)] for name, row in part["table"].items()),
    )
    ends = table(
        ["mode", "weights below 0.01", "hidden units at rest", "entries of Δ at the clamp", "text after ROMEO:"],
        (
            [
                name,
                *(f"{100 * end[key]:.1f} %" for key in ("weights_below_0.01", "hidden_inactive", "change_clamped")),
                "`" + ascii(end["text"][:48])[1:57].replace("|", "/").replace("`", "'") + "`",
            ]
            for name, end in part["ends"].items()
        ),
    )
    cost = table(
        ["mode", "CPU ms a step, median (least)", "training state, KB", "temporary, KB"],
        (
            [
                name,
                f"{row['milliseconds']:.2f} ({row['fastest']:.2f})",
                f"{row['state_bytes'] / 1e3:,.0f}",
                f"{row['temporary_bytes'] / 1e3:,.0f}",
            ]
            for name, row in part["cost"].items()
        ),
    )
    return [losses, ends, cost]


def of_explanation(part: Any) -> list[str]:
    """Causes; and measures at the end, by kind of layer."""
    causes = table(
        ["change", "loss", "to Hebb as it is, 95 %", "to gradient alone, 95 %", "gap closed", "local share"],
        (
            [
                name,
                score_of(row),
                interval(row["to_hebb"]) if "to_hebb" in row else "",
                interval(row["to_backprop"]),
                f"{100 * statistics.fmean(row['restored']):.0f} %" if "restored" in row else "",
                shares(row, "share"),
            ]
            for name, row in part["table"].items()
        ),
    )
    names = ("norm", "rank", "input_rank", "output_rank", "to_top", "top_share", "mean_is_top", "mean_share", "to_gradient")
    rows = []
    for name, course in part["course"].items():
        for when, place in (("first", 0), ("last", -1)):
            if when == "first" and name != "backprop":
                continue
            values = [statistics.fmean(own[m][place] for own in course["maps"].values()) for m in names]
            entropy = statistics.fmean(layer[place] for layer in course["entropy"])
            label = "at the start" if when == "first" else name
            rows.append([label, *(f"{v:.1f}" for v in values[:4]), *(f"{v:.2f}" for v in values[4:]), f"{entropy:.2f}"])
    by_layer = []
    for name in ("backprop", "hebb"):
        for one, own in part["course"][name]["maps"].items():
            by_layer.append(
                [name, one, *(f"{own[m][-1]:.1f}" for m in names[:4]), *(f"{own[m][-1]:.2f}" for m in names[4:])]
            )
    heads = [
        "‖W‖",
        "rank W",
        "rank x",
        "rank y",
        "Δ to top pair",
        "top share of Δ",
        "mean x is top",
        "mean's share",
        "Δ to −gradient",
    ]
    return [
        causes,
        table(["at step 200", *heads, "attention entropy"], rows),
        table(["", "map", *heads], by_layer),
    ]


def of_rules(part: Any) -> list[str]:
    """Rules beside the gradient, and every rate tried."""
    chosen = table(
        ["rule", "η", "loss", "to gradient alone, 95 %", "local share", "of the way", "harmless"],
        (
            [
                name,
                f"{row['rate']:g}",
                score_of(row),
                interval(row),
                shares(row, "share"),
                shares(row, "path_share"),
                "yes" if row["harmless"] else "no",
            ]
            if "rate" in row
            else ["gradient alone", "", score_of(row), "", "", "", ""]
            for name, row in part["table"].items()
        ),
    )
    rates = [entry["rate"] for entry in max(part["sweep"].values(), key=len)]
    tried = table(
        ["rule", *(f"η {rate:g}" for rate in rates)],
        ([name, *(f"{e['cost']:+.3f} ({e['share']:.2f})" for e in entries)] for name, entries in part["sweep"].items()),
    )
    return [chosen, tried]


def of_upkeep(part: Any) -> list[str]:
    """Pruning, and homeostasis."""
    rows = part["table"]
    cut = table(
        ["model", "pruned", "loss", "after 100 more steps"],
        (
            [model.upper(), f"{100 * share:g} %", f"{row['without']:.3f} ± {row['without_sd']:.3f}", score_of(row)]
            for model in ("bdh", "gpt")
            for share in PRUNED
            for row in (rows.get(f"{model} pruned {share:g}"),)
            if row
        ),
    )
    scaled = table(
        ["model", "mean magnitude, every 50 steps", "loss", "to gradient alone, 95 %"],
        (
            [model.upper(), name, score_of(row), interval(row)]
            for model in ("bdh", "gpt")
            for name in SCALED
            for row in (rows.get(f"{model} scaled, {name}"),)
            if row
        ),
    )
    return [cut, scaled]


TABLES: dict[str, Callable[[Any], list[str]]] = {
    "explanation": of_explanation,
    "rules": of_rules,
    "failure": of_failure,
    "on_bdh": of_rules,
    "upkeep": of_upkeep,
}


if __name__ == "__main__":
    main()
