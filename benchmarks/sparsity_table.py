"""What a sparser code costs and what it saves: n-back credit and bits per byte, active neurons, and the time of a token.

    python benchmarks/sparsity_table.py --workdir=runs/sparsity --path=FILE --json benchmarks/results/sparsity_cpu.json
    python benchmarks/sparsity_table.py --workdir=runs/sparsity --path=FILE --train_only

Trains ``configs/nback.py`` and ``configs/text.py`` as they are, with a top-k code, and with a penalty on activity, from scratch over the
seeds (finished runs are only read, so the command can be interrupted and given again). All rows have the learning rate of the default.
Then measures what is active, and how long one token takes at the published size (L 6, D 256, K 32,768, write-back, random weights) with
a top-k code of as many active neurons as the row's models have in the mean, all rows in turn. The shares of a row are means over layers,
tokens and seeds. About two hours on two CPU cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure
import numpy as np
import token_step

from bdh_jax import BDHConfig
from bdh_jax.analysis.activity import active_shares
from bdh_jax.experiment import load_as, read_experiment

ROWS: dict[str, dict[str, float]] = {
    "default": {},
    "top 10 %": {"code_top_k": 0.1},
    "top 5 %": {"code_top_k": 0.05},
    "top 2 %": {"code_top_k": 0.02},
    "penalty 0.1": {"activity_penalty": 0.1},
    "penalty 1": {"activity_penalty": 1.0},
}
"""Label → what is changed; of ``code_top_k`` the share of K."""
TASKS = {"nback": ("n-back, credit ÷ ceiling", 512), "text": ("bits per byte", 1024)}
"""Experiment → what is scored, and its K."""
BEYOND = 10**6
"""A step that no run reaches: its batch was not trained on (n-back), or only in other windows (text)."""


def main() -> None:
    """Train what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--path", type=Path, required=True, help="the text that configs/text.py is trained on")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of every row")
    parser.add_argument("--steps", type=int, default=None, help="training steps instead of each config's own")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of timing")
    parser.add_argument("--neurons", type=int, default=32768, help="K of the model whose tokens are timed")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows, by their labels")
    parser.add_argument("--train_only", action="store_true", help="train what is missing and end")
    parser.add_argument("--finished", action="store_true", help="train nothing, and leave out rows without results")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    if options.finished:
        found_there = {(task, row): folder_of(task, row, options) for task in TASKS for row in options.rows}
        folders = {where: folder for where, folder in found_there.items() if (folder / "results.json").exists()}
    else:
        folders = {(task, row): train(task, row, options) for task in TASKS for row in options.rows}
    if options.train_only:
        return
    found = {where: measured(folder) for where, folder in folders.items()}
    times = token_times({where: each["share"]["code"] for where, each in found.items()}, options)
    rows, results = [], []
    for (task, row), each in found.items():
        milliseconds = measure.summary([1e3 * s / token_step.TOKENS for s in times[task, row]])
        sd = statistics.stdev(each["scores"]) if len(each["scores"]) > 1 else 0.0
        score = f"{statistics.mean(each['scores']):.4f} ± {sd:.4f}"
        shares = [f"{each['share'][name]:.1%}" for name in ("code", "gated")]
        rows.append([TASKS[task][0], row, score, *shares, milliseconds.format()])
        results.append({"task": task, "row": row, **each, "milliseconds": milliseconds._asdict()})
    measure.report(
        f"A sparser code: seeds {options.seeds}; time of a token at K {options.neurons}",
        ["scored", "code", "mean ± sd", "active", "gated, active", "ms a token"],
        rows,
        "Median (min–max) of rounds in turn. Both tasks at CPU size; learning rates of the default.",
    )
    if options.json:
        measure.write_json(options.json, {"seeds": options.seeds, "rows": results})


def folder_of(task: str, row: str, options: argparse.Namespace) -> Path:
    """Where a row is trained."""
    return options.workdir / f"{task}-{row.replace(' ', '').replace('%', '')}"


def train(task: str, row: str, options: argparse.Namespace) -> Path:
    """Train one row over the seeds, or find that it is there. Returns its folder."""
    folder = folder_of(task, row, options)
    changes = {
        name: max(1, round(value * TASKS[task][1])) if name == "code_top_k" else value for name, value in ROWS[row].items()
    }
    command = [sys.executable, "-m", "bdh_jax", "train", task, f"--workdir={folder}", f"--config.seeds={options.seeds}"]
    command += [f"--config.model.{name}={value}" for name, value in changes.items()]
    command += [f"--config.data.path={options.path}"] * (task == "text")
    command += [] if options.steps is None else [f"--config.train.steps={options.steps}"]
    print("$", " ".join(["python", *command[1:]]), flush=True)
    status = subprocess.run(command).returncode
    if status:
        sys.exit(f"error: {task} {row!r} ended with exit status {status}; what it printed above says why")
    return folder


def measured(folder: Path) -> dict[str, Any]:
    """Scores of all seeds, and their mean shares of active neurons."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    scores, shares = [], []
    for seed, run in results["runs"].items():
        evaluation = run["evaluation"]
        if "validation" in evaluation:
            scores.append(evaluation["validation"]["bits_per_byte"])
        else:
            scores.append(statistics.mean(sets["ratio"] for sets in evaluation.values()))
        workdir = folder / f"seed{seed}"
        workdir = workdir if workdir.is_dir() else folder
        config, slow = load_as(BDHConfig, workdir, "best")
        experiment = read_experiment(workdir)
        task = experiment.task.make(seed=int(seed), batch_size=32, data=experiment.data)
        batch = task.batch(BEYOND)
        shares.append(active_shares(dataclasses.replace(config, dropout=0.0), slow, batch.tokens, batch.valid))
    mean = {name: float(np.mean([share[name] for share in shares])) for name in shares[0]}
    by_layer = {name: np.mean([share[name] for share in shares], axis=0).round(4).tolist() for name in shares[0]}
    return {"scores": scores, "share": mean, "share_by_layer": by_layer}


def token_times(shares: dict[tuple[str, str], float], options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Seconds of so many tokens at the published size, of each row in every round."""
    plain = BDHConfig(n_neurons=options.neurons, dropout=0.0)
    slow = token_step.random_weights(plain, 0.5)
    tokens = np.random.default_rng(1).integers(0, plain.vocab_size, 4096).astype(np.int32)
    sides = {}
    for where, share in shares.items():
        k = round(share * plain.n_neurons)
        config = dataclasses.replace(plain, code_top_k=k)
        sides[" ".join(where)] = token_step.by_model(token_step.with_token_step(config, slow, tokens[:64]), slow)
    calls, _ = token_step.streams(sides, tokens)
    seconds = measure.interleave(calls, options.rounds, "tokens")
    return {where: seconds[" ".join(where)] for where in shares}


if __name__ == "__main__":
    main()
