"""What tiny-BDH's σ is good for: XOR, copying, recall, brackets, new rules, ablations, and what consolidation keeps.

    python benchmarks/tiny_bdh_table.py --workdir=runs/tiny_bdh --json benchmarks/results/tiny_bdh_cpu.json

Trains ``configs/tiny_bdh.py`` in all its variants over the seeds (finished runs are only read, so the command can be interrupted and given
again, and several processes may train different parts with ``--parts`` and ``--train_only``), scores every model with σ on and off, writes
what episodes wrote into slow weights, prints all tables as Markdown and writes all numbers. About 20 minutes on one
quiet CPU core.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np

from bdh_jax import consolidation
from bdh_jax.config.convert import change
from bdh_jax.consolidation.base import Function, as_consolidation
from bdh_jax.experiment import ExperimentConfig, load, load_experiment, read_experiment, train
from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.tasks.new_rule import NewRule
from bdh_jax.training.step import make_predict
from bdh_jax.types import Slow


class Row(NamedTuple):
    """A model that is trained."""

    label: str
    variant: str
    """Of ``configs/tiny_bdh.py``."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Of the model's configuration, by key."""
    seeds: int | None = None
    """How many of the seeds; None for all."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join([self.variant.replace(",", "-") or "xor", *(f"{key}={value}" for key, value in self.changes)])


WRITES: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = (
    ("written under the token's own x, as published", (("address", "current"),)),
    ("forgetting .05", (("forget", 0.05),)),
    ("forgetting .2, as published", (("forget", 0.2),)),
)
"""Other ways to write, to train with."""
LIMITS: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = (
    ("clamp 1", (("clamp", 1.0),)),
    ("threshold .005", (("threshold", 5e-3),)),
    ("rows of norm 1", (("row_norm", 1.0),)),
    ("all three", (("clamp", 1.0), ("threshold", 5e-3), ("row_norm", 1.0))),
)
"""Published limits on σ."""
NONE_OF = (
    ("no forgetting", (("forget", 0.0),)),
    ("no clamp", (("clamp", None),)),
    ("no threshold", (("threshold", None),)),
    ("no norm of rows", (("row_norm", None),)),
)


def beside(task: str, seeds: int | None = None) -> tuple[Row, ...]:
    """The models that every task of sequences has; the neighbours with so many of the seeds."""
    return (
        Row("tiny-BDH", task),
        Row("without σ", f"{task},no_sigma", seeds=seeds),
        Row("GRU", f"{task},gru", seeds=seeds),
        Row("BDH", f"{task},bdh", seeds=seeds),
    )


PARTS: dict[str, tuple[Row, ...]] = {
    "xor": (
        Row("tiny-BDH", ""),
        Row("without σ", "no_sigma"),
        *(Row(label, "", changes, seeds=1) for label, changes in NONE_OF),
    ),
    "copy": beside("copy", 1),
    "recall": beside("recall", 1),
    "brackets": beside("brackets", 1),
    "new_rule": (*beside("new_rule"), *(Row(label, "new_rule", changes, seeds=1) for label, changes in WRITES)),
    "limits": tuple(Row(label, "new_rule", changes, seeds=1) for label, changes in LIMITS),
    "sizes": (Row("tiny-BDH, 128 neurons", "brackets,neurons128", seeds=1),),
}
DEFAULT = ("xor", "copy", "recall", "brackets", "new_rule", "sizes")
"""Of the page; "limits" are new rules trained with limits, token by token, which takes longer than all others."""
SCORES: dict[str, tuple[str, ...]] = {
    "xor": ("xor",),
    "copy": ("distinct4", "distinct8", "distinct12", "any8"),
    "recall": ("n2", "n4", "n8"),
    "brackets": tuple(f"{question}{length}" for question in ("balanced", "closing") for length in (20, 40, 60, 80, 100)),
    "new_rule": ("shown1", "shown2", "shown4", "shown8", "known1"),
}
SCORES |= {"limits": SCORES["new_rule"], "sizes": SCORES["brackets"]}
"""Sets of each part, in the order of the columns."""
CONVERGED = 1e-2, 0.95
"""Loss of XOR that counts as converged, and ``primary`` of an evaluation of the others."""
FUNCTIONS: dict[str, Function] = {
    "none": consolidation.none(),
    "dense": consolidation.dense(),
    "row_topk": consolidation.row_topk(0.1),
    "row_random": consolidation.row_random(0.1),
    "row_bottom": consolidation.row_bottom(0.1),
    "threshold": consolidation.threshold(0.5),
}
"""With rate 1."""
RATES = (0.1, 0.25, 0.5, 1.0, 2.0)
FACTS = (1, 4, 16)
WORLDS, CHOOSING = 32, 8
"""Streams of episodes that consolidation is scored on, and others that its rates are chosen on."""


def main() -> None:
    """Train what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of every row")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT, help="tasks")
    parser.add_argument("--rows", nargs="+", help="names of folders, for these rows alone")
    parser.add_argument("--train_only", action="store_true", help="train what is missing and end")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    chosen = {
        part: [row for row in PARTS[part] if options.rows is None or row.name in options.rows] for part in options.parts
    }
    for rows in chosen.values():
        for row in rows:
            for seed in seeds[: row.seeds]:
                train(experiment(row, seed), folder(options.workdir, row, seed))
    if options.train_only:
        return
    found: dict[str, Any] = {"seeds": seeds, "parts": {}}
    for part in options.parts:
        found["parts"][part] = {
            row.label: measured(part, row, [folder(options.workdir, row, seed) for seed in seeds[: row.seeds]])
            for row in chosen[part]
        }
    if "new_rule" in options.parts:
        folders = [folder(options.workdir, PARTS["new_rule"][0], seed) for seed in seeds]
        found["consolidation"] = measure.kept(options.workdir / "consolidation.json", lambda: consolidated(folders))
        found["limits"] = measure.kept(folders[0] / "limits.json", lambda: limited(folders[0]))
        found["episode"] = {}
        for label, changes in (("no limits", ()), ("published limits", LIMITS[-1][1])):
            make = functools.partial(over_an_episode, folders[0], changes)
            found["episode"][label] = measure.kept(folders[0] / f"episode{len(changes)}.json", make)
    print("\n\n".join(tables(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def experiment(row: Row, seed: int) -> ExperimentConfig:
    """What is trained."""
    config = load_experiment(f"tiny_bdh:{row.variant}" if row.variant else "tiny_bdh")
    return dataclasses.replace(change(config, "model", **dict(row.changes)), seed=seed)


def folder(workdir: Path, row: Row, seed: int) -> Path:
    """Of one run."""
    return workdir / row.name / f"seed{seed}"


def measured(part: str, row: Row, folders: Sequence[Path]) -> dict[str, Any]:
    """Scores of all seeds, with σ as trained and the other way round, parameters, steps, and the courses of training."""
    first = read_experiment(folders[0])
    declared = first.model.build().declared_slow()
    declared.pop("synapse", None)
    seeds = []
    for where in folders:
        results = json.loads((where / "results.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        scores = {name: {**score["extra"], "accuracy": score["ratio"]} for name, score in results["evaluation"].items()}
        seeds.append({"scores": scores, "converged": converged(part, lines), **courses(part, lines)})
        if first.model.architecture == "tiny_bdh" and not row.changes:
            seeds[-1]["other"] = measure.kept(where / "other.json", functools.partial(scored_otherwise, where))
    return {
        "variant": row.variant,
        "changes": dict(row.changes),
        "parameters": count_parameters(declared),
        "state": state_numbers(first.model),
        "steps": first.train.steps,
        "runs": seeds,
    }


def state_numbers(config: ModelConfig) -> int:
    """Numbers that one example carries from token to token."""
    if not config.has_state:
        return 0
    fast = jax.eval_shape(lambda: config.build().init_fast(1))
    kept = [layer.replace(use=None) if hasattr(layer, "use") else layer for layer in fast.layers]
    return sum(leaf.size for leaf in jax.tree.leaves(kept))


def converged(part: str, lines: Sequence[dict[str, Any]]) -> int | None:
    """The step from which on the loss of XOR stays below its bound, or the first evaluation that reaches its own."""
    if part == "xor":
        steps = [line["step"] for line in lines if line.get("loss", 0) >= CONVERGED[0]]
        last = max((line["step"] for line in lines), default=0)
        return None if steps and steps[-1] == last else max(steps, default=0) + 10
    reached = [line["step"] for line in lines if line.get("evaluation", {}).get("primary", 0) >= CONVERGED[1]]
    return min(reached, default=None)


def courses(part: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Step → what was measured there."""
    evaluations = [(line["step"], line["evaluation"]) for line in lines if "evaluation" in line]
    every = dict(evaluations)
    out: dict[str, Any] = {"primary": {step: evaluation["primary"] for step, evaluation in every.items()}}
    if part == "xor":
        out["loss"] = {step: evaluation["xor"]["extra"]["loss"] for step, evaluation in every.items()}
    logged = [line for line in lines if "loss" in line and line["step"] in every]
    for name in sorted({key for line in logged for key in line if key.startswith("model/")}):
        out[name.removeprefix("model/")] = {line["step"]: line[name] for line in logged}
    return out


def scored_otherwise(where: Path) -> dict[str, float]:
    """Scores of a trained tiny-BDH with σ off if it was on, on if it was off."""
    config, slow = read_experiment(where), load(where, "last")[1]
    model = change(config, "model", use_sigma=not config.model.use_sigma).model
    start = model.build().init_slow(jax.random.key(config.seed))
    task = task_of(config)
    if config.task.name == "brackets":  # of the lengths that are trained on
        task = task_of(dataclasses.replace(config, task=change(config, "task", evaluation_lengths=(20, 40)).task))
    evaluation = task.evaluate(make_predict(model.build(), one_device())(overlaid(start, slow)))
    return {row.name: row.ratio for row in evaluation.rows}


def overlaid(start: Slow, trained: Slow) -> Slow:
    """The trained weights where there are any, and those to start from elsewhere; nothing else."""
    return {
        name: overlaid(leaf, trained.get(name, {})) if isinstance(leaf, dict) else trained.get(name, leaf)
        for name, leaf in start.items()
    }


def one_device() -> Any:
    """A mesh of one device."""
    return make_mesh(MeshConfig(data=1))


def task_of(config: ExperimentConfig) -> Any:
    """The task of a run."""
    return config.task.make(seed=config.seed, batch_size=config.train.batch_size)


# Consolidation.


class Stream(NamedTuple):
    """Episodes of facts, W streams of F."""

    tokens: np.ndarray
    """[W, F, T], without a question."""
    questions: np.ndarray
    """[W, F, 2]."""
    answers: np.ndarray
    """[W, F]."""


def stream(task: NewRule, worlds: int, facts: int, seed: int) -> Stream:
    """Facts with held-out pairs, each shown once in an episode of its own among other pairs, whose inputs are those of no fact."""
    rng, config = np.random.default_rng([seed, facts]), task.config
    symbols, half = config.symbols, config.symbols // 2
    tokens = np.empty((worlds, facts, 2 * (1 + config.others) + config.fillers), np.int32)
    questions, answers = np.empty((worlds, facts, 2), np.int32), np.empty((worlds, facts), np.int32)
    for world in range(worlds):
        inputs = rng.permutation(symbols)
        for fact in range(facts):
            pairs = [(inputs[fact], rng.choice(np.flatnonzero(task.held_out[inputs[fact]])))]
            for other in rng.choice(inputs[half:], config.others, replace=False):
                pairs.append((other, rng.choice(np.flatnonzero(~task.held_out[other]))))
            parts = [[a, symbols + b] for a, b in pairs]
            parts += [[2 * symbols + rng.integers(symbols)] for _ in range(config.fillers)]
            tokens[world, fact] = np.concatenate([parts[i] for i in rng.permutation(len(parts))])
            questions[world, fact], answers[world, fact] = (config.ask, pairs[0][0]), symbols + pairs[0][1]
    return Stream(tokens, questions, answers)


def consolidated(folders: Sequence[Path]) -> dict[str, Any]:
    """What each function keeps of how many facts after a reset, and what that costs later episodes; rates chosen on other streams."""
    found: dict[str, Any] = {"rates": {}, "kept": {}, "in_episode": {}}
    trained = [(read_experiment(where), load(where, "last")[1]) for where in folders]
    tasks = [task_of(config) for config, _ in trained]
    found["before"] = [in_episode(config, slow, slow["synapse"][None]) for config, slow in trained]
    for name in FUNCTIONS:
        merit = {}
        for rate in RATES if name != "none" else (1.0,):
            (config, slow), data = trained[0], stream(tasks[0], CHOOSING, FACTS[1], seed=1)
            synapse = written(slow, jnp.asarray(data.tokens), rate, config=config.model, name=name)
            merit[rate] = recall(config, slow, synapse, data) + in_episode(config, slow, synapse)
        best = max(merit, key=lambda rate: merit[rate])
        found["rates"][name] = {"chosen": best, "merit": merit}
        for facts in FACTS:
            kept, later = [], []
            for (config, slow), task in zip(trained, tasks, strict=True):
                data = stream(task, WORLDS, facts, seed=2)
                synapse = written(slow, jnp.asarray(data.tokens), best, config=config.model, name=name)
                kept.append(recall(config, slow, synapse, data))
                later.append(in_episode(config, slow, synapse))
            found["kept"].setdefault(name, {})[facts] = kept
            found["in_episode"].setdefault(name, {})[facts] = later
    found["kept"]["never reset"] = {
        facts: [
            never_reset(config, slow, stream(task, WORLDS, facts, seed=2))
            for (config, slow), task in zip(trained, tasks, strict=True)
        ]
        for facts in FACTS
    }
    return found


@functools.partial(jax.jit, static_argnames=("config", "name"))
def written(slow: Slow, tokens: jax.Array, rate: float, *, config: ModelConfig, name: str) -> jax.Array:
    """The synapse of each stream [W, L, 1, N, N] after its episodes, tokens [W, F, T]: each begins with an empty σ, and is consolidated at
    its end."""
    model, rule = config.build(), as_consolidation(FUNCTIONS[name])

    def episode(carry: Any, tokens: jax.Array) -> tuple[Any, None]:
        synapse, history = carry
        now = {**slow, "synapse": synapse}
        fast = model.apply({"params": now}, tokens[None]).fast
        after, history = rule.update(now, fast, fast.activity, history)
        return (synapse + rate * (after["synapse"] - synapse), history), None

    return jax.lax.map(lambda tokens: jax.lax.scan(episode, (slow["synapse"], rule.init(slow)), tokens)[0][0], tokens)


@functools.partial(jax.jit, static_argnames=("config",))
def answers(slow: Slow, synapse: jax.Array, tokens: jax.Array, *, config: ModelConfig) -> jax.Array:
    """The answer at the end of each of tokens [W, E, T], each an episode, with the synapse of its stream."""
    model = config.build()

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        synapse, tokens = pair
        logits = model.apply({"params": {**slow, "synapse": synapse}}, tokens, state="none").logits
        return logits[:, -1].argmax(axis=-1)

    return jax.lax.map(one, (synapse, tokens))


def recall(config: ExperimentConfig, slow: Slow, synapse: jax.Array, data: Stream) -> float:
    """Share of facts that are answered in new episodes of nothing but the question."""
    said = answers(slow, synapse, jnp.asarray(data.questions), config=config.model)
    return float((np.asarray(said) == data.answers).mean())


def in_episode(config: ExperimentConfig, slow: Slow, synapse: jax.Array) -> float:
    """Accuracy on episodes of other held-out rules shown once, with the synapses [W, ...]: eight episodes for each, at least 256."""
    task = task_of(config)
    tokens, right = task.evaluation_sets["shown1"]
    each = max(8, 256 // len(synapse))
    index = (np.arange(len(synapse) * each) % len(tokens)).reshape(len(synapse), each)
    length = int((tokens[0] != task.padding).sum())
    said = answers(slow, synapse, jnp.asarray(tokens[index][..., :length]), config=config.model)
    return float((np.asarray(said) == right[index]).mean())


def never_reset(config: ExperimentConfig, slow: Slow, data: Stream) -> float:
    """Share of facts that are answered where σ is carried through all episodes, and no question writes."""
    carried = np.concatenate(
        [data.tokens.reshape(len(data.tokens), 1, -1).repeat(data.questions.shape[1], 1), data.questions], axis=2
    )
    synapse = jnp.broadcast_to(slow["synapse"], (len(data.tokens), *slow["synapse"].shape))
    said = answers(slow, synapse, jnp.asarray(carried), config=config.model)
    return float((np.asarray(said) == data.answers).mean())


# σ over an episode.


def limited(where: Path) -> dict[str, dict[str, float]]:
    """Scores of a model of new rules, trained without limits and forgetting, with each of them in test."""
    found, (config, slow) = {}, (read_experiment(where), load(where, "last")[1])
    task = task_of(dataclasses.replace(config, task=change(config, "task", evaluation_sequences=256).task))
    for label, changes in (("none", ()), *WRITES[1:], *LIMITS):
        model = change(config, "model", **dict(changes)).model
        evaluation = task.evaluate(make_predict(model.build(), one_device())(slow))
        found[label] = {row.name: row.ratio for row in evaluation.rows}
    return found


def over_an_episode(where: Path, changes: tuple[tuple[str, Any], ...] = (), strongest: int = 8) -> dict[str, Any]:
    """σ after each token of an episode that shows its rule 8 times, the model changed so in test: share of entries that are not zero, and of those above a hundredth of
    the largest, its norm (means over 64 episodes); and of one episode the synapses that are strongest at its end."""
    config, slow = read_experiment(where), load(where, "last")[1]
    task, model = task_of(config), change(config, "model", **dict(changes)).model.build()
    tokens = task.evaluation_sets[f"shown{max(task.config.shown)}"][0][:64]
    step = jax.jit(lambda token, fast: model.apply({"params": slow}, token, fast).fast)
    fast, matrices = model.init_fast(len(tokens)), []
    for t in range(tokens.shape[1]):
        fast = step(tokens[:, t : t + 1], fast)
        matrices.append(np.asarray(fast.layers[0].memory.written.S[:, 0]).swapaxes(1, 2))
    sigma = np.abs(np.stack(matrices))  # [T, E, post, pre]
    largest = sigma.max(axis=(2, 3), keepdims=True)
    last = sigma[-1, 0].ravel()
    which = np.argsort(last)[::-1][:strongest]
    signed = np.stack([matrix[0].ravel()[which] for matrix in matrices])
    return {
        "nonzero": (sigma != 0).mean(axis=(1, 2, 3)).tolist(),
        "above": (sigma > 0.01 * np.maximum(largest, 1e-30)).mean(axis=(1, 2, 3)).tolist(),
        "norm": np.sqrt(np.square(sigma).sum(axis=(2, 3))).mean(axis=1).tolist(),
        "strongest": signed.T.tolist(),
        "synapses": [[int(i) for i in np.unravel_index(flat, sigma.shape[2:])] for flat in which],
    }


# Tables.


def tables(found: dict[str, Any]) -> list[str]:
    """All tables, as Markdown."""
    parts, out = found["parts"], []
    for part, rows in parts.items():
        if part == "xor":
            out.append(xor_table(rows))
            out.append(sigma_table(rows["tiny-BDH"]))
            continue
        names = [name for name in SCORES[part] if name in next(iter(rows.values()))["runs"][0]["scores"]]
        head = ["", "parameters", "state", *names, "steps to .95"]
        body = [
            [
                label,
                f"{row['parameters']:,}",
                f"{row['state']:,}",
                *(measure.spread(values(row, name)) for name in names),
                reached(row),
            ]
            for label, row in rows.items()
        ]
        out.append(measure.markdown(head, [*body, nulls(rows, names)]))
        if "without σ" in rows:
            out.append(on_off(rows, names))
    if "consolidation" in found:
        names = SCORES["new_rule"]
        body = [[label, *(f"{scores[name]:.3f}" for name in names)] for label, scores in found["limits"].items()]
        out.append(measure.markdown(["in test alone", *names], body))
        out.append(consolidation_table(found["consolidation"]))
    return out


def values(row: dict[str, Any], name: str, what: str = "accuracy") -> list[float]:
    """A score of all seeds."""
    return [run["scores"][name][what] for run in row["runs"]]


def reached(row: dict[str, Any]) -> str:
    """Steps to convergence of all seeds."""
    steps = [run["converged"] for run in row["runs"]]
    return " ".join("never" if step is None else str(step) for step in steps)


def nulls(rows: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Chance, and what a memory that is too small for the task can reach, of each set."""
    scores = next(iter(rows.values()))["runs"][0]["scores"]
    cells = []
    for name in names:
        extra = scores[name]
        known = [f"{key} {extra[key]:.3f}" for key in ("chance", "by counts", "by last", "pairs suffice") if key in extra]
        cells.append("; ".join(known))
    return ["*null*", "", "", *cells, ""]


def on_off(rows: dict[str, Any], names: Sequence[str]) -> str:
    """σ on or off in training × on or off in test."""
    names = [name for name in names if name in rows["tiny-BDH"]["runs"][0]["other"]]
    body = []
    for label, trained in (("tiny-BDH", "on"), ("without σ", "off")):
        row = rows[label]
        other = "off" if trained == "on" else "on"
        body.append([trained, trained, *(measure.spread(values(row, name)) for name in names)])
        body.append([trained, other, *(measure.spread([run["other"][name] for run in row["runs"]]) for name in names)])
    return measure.markdown(["σ in training", "σ in test", *names], body)


def xor_table(rows: dict[str, Any]) -> str:
    """Loss and accuracy of each row over the steps, and what came out."""
    steps = list(rows["tiny-BDH"]["runs"][0]["loss"])
    head = [
        "",
        *(f"step {step}" for step in (steps[0], steps[-1])),
        "loss < .01 from step",
        "p(00) p(01) p(10) p(11)",
        "σ the other way",
    ]
    body = []
    for label, row in rows.items():
        runs = row["runs"]
        cells = [
            f"{measure.spread([run['primary'][step] for run in runs])}; {geometric([run['loss'][step] for run in runs])}"
            for step in (steps[0], steps[-1])
        ]
        p = " ".join(f"{statistics.fmean(values(row, 'xor', f'p{b}')):.1g}" for b in ("00", "01", "10", "11"))
        other = measure.spread([run["other"]["xor"] for run in runs]) if "other" in runs[0] else ""
        body.append([label, *cells, reached(row), p, other])
    return measure.markdown(head, body)


def geometric(numbers: Sequence[float]) -> str:
    """Geometric mean of losses."""
    return f"{math.exp(statistics.fmean(math.log(max(number, 1e-30)) for number in numbers)):.1e}"


def sigma_table(row: dict[str, Any]) -> str:
    """The σ of XOR over the steps."""
    head = ["step", "accuracy", "loss", "share of σ ≠ 0", "‖σ‖", "strongest synapse"]
    body = []
    for step in row["runs"][0]["loss"]:
        runs = row["runs"]
        numbers = [[run[name][step] for run in runs] for name in ("synapse_nonzero", "synapse_norm", "synapse_largest")]
        accuracy = measure.spread([run["primary"][step] for run in runs], 2)
        body.append(
            [str(step), accuracy, geometric([run["loss"][step] for run in runs]), *(measure.spread(n) for n in numbers)]
        )
    return measure.markdown(head, body)


def consolidation_table(found: dict[str, Any]) -> str:
    """What is kept of how many facts, and accuracy in later episodes."""
    head = [
        "function",
        "rate",
        *(f"{facts} fact{'s' * (facts > 1)}" for facts in FACTS),
        f"in later episodes, after {FACTS[-1]}",
    ]
    body = []
    for name, kept in found["kept"].items():
        rate = f"{found['rates'][name]['chosen']:g}" if name in found["rates"] and name != "none" else ""
        later = measure.spread(found["in_episode"][name][str(FACTS[-1])]) if name in found["in_episode"] else ""
        body.append([name, rate, *(measure.spread(kept[str(facts)]) for facts in FACTS), later])
    return measure.markdown(head, body)


if __name__ == "__main__":
    main()
