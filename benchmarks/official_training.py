"""Train the official PyTorch code as ``configs/text.py`` trains this library's, on the same batches, and compare the two.

    git clone https://github.com/pathwaycom/bdh OFFICIAL        # its bdh.py is imported, nothing of it is copied
    pip install torch
    python -m bdh_jax.main --config=configs/text.py --config.seeds=0,1,2 --workdir=runs/text
    python benchmarks/official_training.py --official=OFFICIAL --ours=runs/text --workdir=runs/official

Both sides get the same windows of the same text in the same order, the same schedule, clipping and decay; initial weights are each
side's own. Prints validation bits per byte by seed and the difference in pooled standard errors, and writes ``results.json`` and
``figure.png``. Finished seeds are only read, so the command can be interrupted and given again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import rich.box
import rich.table

from bdh_jax.analysis import figures
from bdh_jax.console import Progress, show
from bdh_jax.experiment import ExperimentConfig, experiment_from
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.runs.folder import METRICS, config_json
from bdh_jax.runs.provenance import describe_start
from bdh_jax.runs.reporter import read_rows
from bdh_jax.training.optimizer import make_schedule

SMOOTH = 50
"""Steps over which the figure averages training losses."""


def main() -> None:
    """Train what is not there yet, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--official", type=Path, required=True, help="folder with the official bdh.py")
    parser.add_argument("--ours", type=Path, required=True, help="--workdir of this library's run over several seeds")
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the other side's runs and the comparison")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("error: the official code needs PyTorch: pip install torch")
    official = _import_official(arguments.official)
    results = arguments.ours / "results.json"
    if not results.is_file():
        sys.exit(f"error: {results} does not exist; train this library's side first, with --config.seeds")
    ours = json.loads(results.read_text())
    if "runs" not in ours:
        sys.exit(f"error: {results} is of one seed; train several, with --config.seeds=0,1,2")
    config = experiment_from(ours["config"])
    _check_comparable(config, ours["seeds"])
    theirs = {}
    for seed in ours["seeds"]:
        path = arguments.workdir / f"seed{seed}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(train(official, torch, config, seed), indent=2) + "\n")
        theirs[seed] = json.loads(path.read_text())
        if theirs[seed]["config"] != config_json(config):
            sys.exit(f"error: {path} was trained with another configuration; name another --workdir")
    compare(ours, theirs, arguments)


def _check_comparable(config: ExperimentConfig, seeds: list[int]) -> None:
    """Exit unless the two sides would compute the same function of the same numbers."""
    model = config.model
    published = {"dropout": 0.0, "dtype": "float32", "attention": "rope", "attention_decay": (1.0,), "init_std": 0.02}
    for name, value in {**published, "rope_theta": 2.0**16}.items() if isinstance(model, BDHConfig) else ():
        if getattr(model, name) != value:
            sys.exit(f"error: model.{name}={getattr(model, name)!r}, and this comparison needs {value!r}")
    if not isinstance(model, BDHConfig) or model.fast.enabled or config.train.loss != "weights" or config.train.carry_state:
        sys.exit(
            "error: the official code has no fast weights, no other loss and no carried state; compare configs/text.py itself"
        )
    task = config.task.make(data=config.data, seed=0, batch_size=config.train.batch_size)
    if task.may_reset or task.validation.documents > 1:
        sys.exit("error: the official code knows no documents; compare on one, or with task.document_resets=False")
    if len(seeds) < 2 or config.train.log_every > SMOOTH:
        sys.exit(f"error: several seeds are needed for a spread, and train.log_every of at most {SMOOTH} for the figure")


def train(official: ModuleType, torch: Any, config: ExperimentConfig, seed: int) -> dict[str, Any]:
    """Train the official model for one seed. Returns what its file holds: losses by step and the final evaluation."""
    model_config = config.model
    task = config.task.make(data=config.data, seed=seed, batch_size=config.train.batch_size)
    torch.manual_seed(seed)
    model = official.BDH(
        official.BDHConfig(
            n_layer=model_config.n_layer,
            n_embd=model_config.d_model,
            n_head=model_config.n_head,
            dropout=0.0,
            mlp_internal_dim_multiplier=model_config.n_neurons // model_config.d_model,
            vocab_size=model_config.vocab_size,
        )
    )
    settings = config.optimizer
    schedule = jax.jit(make_schedule(settings, config.train.steps))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.b1, settings.b2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    losses, started = [], time.perf_counter()
    with Progress(f"official, seed {seed}", config.train.steps) as progress:
        for step in range(config.train.steps):
            batch = task.batch(step)
            for group in optimizer.param_groups:
                group["lr"] = float(schedule(step))
            _, loss = model(torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.targets).long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            losses.append(loss.item())
            progress.advance()
    seconds = time.perf_counter() - started
    model.eval()

    def predict(tokens: np.ndarray, valid: np.ndarray, reset: np.ndarray) -> np.ndarray:
        del valid, reset  # one document; padding comes last, where nothing that counts can see it
        with torch.no_grad():
            return model(torch.from_numpy(tokens).long())[0].numpy()

    evaluation = task.evaluate(predict)
    return {
        "config": config_json(config),
        "seed": seed,
        "losses": losses,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "bits_per_byte": evaluation.rows[0].bits_per_byte,
    }


def compare(ours: dict[str, Any], theirs: dict[int, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print the table and write ``results.json`` and ``figure.png``."""
    ours_bits = {seed: ours["runs"][str(seed)]["evaluation"]["validation"]["bits_per_byte"] for seed in theirs}
    sides = {"bdh_jax": list(ours_bits.values()), "official": [run["bits_per_byte"] for run in theirs.values()]}
    means = {side: statistics.fmean(bits) for side, bits in sides.items()}
    spreads = {side: statistics.stdev(bits) for side, bits in sides.items()}
    error = math.sqrt(sum(spread**2 for spread in spreads.values()) / len(theirs))
    difference = means["bdh_jax"] - means["official"]
    table = rich.table.Table(title="validation bits per byte", box=rich.box.SIMPLE_HEAD, show_edge=False)
    table.add_column("code")
    for seed in theirs:
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("mean ± standard deviation", justify="right")
    for side, bits in sides.items():
        table.add_row(side, *(f"{b:.4f}" for b in bits), f"{means[side]:.4f} ± {spreads[side]:.4f}")
    table.caption = f"difference {difference:+.4f} = {difference / error:+.2f} pooled standard errors"
    show(table)
    record = {
        "bits_per_byte": {side: dict(zip(map(str, theirs), bits, strict=True)) for side, bits in sides.items()},
        "difference": difference,
        "pooled_standard_error": error,
        "seconds": {"bdh_jax": {seed: run["seconds"] for seed, run in ours["runs"].items()}}
        | {"official": {str(seed): run["seconds"] for seed, run in theirs.items()}},
        "start": describe_start(0, 0),
    }
    (arguments.workdir / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    _plot(ours, theirs, arguments)


def _plot(ours: dict[str, Any], theirs: dict[int, dict[str, Any]], arguments: argparse.Namespace) -> None:
    figure, (axes,) = figures.make(width=7, height=4)
    for number, (seed, run) in enumerate(theirs.items()):
        rows = [row for row in read_rows(arguments.ours / f"seed{seed}" / METRICS, until=ours["steps"]) if "loss" in row]
        steps = [row["step"] for row in rows]
        width = SMOOTH // (steps[1] - steps[0])
        # This library logs every few steps; of the other side the same steps are shown.
        for side, losses, color, style in (
            ("official PyTorch code", [run["losses"][step - 1] for step in steps], "#e69f00", "-"),
            ("bdh_jax", [row["loss"] for row in rows], "#0072b2", "--"),
        ):
            mean = np.convolve(losses, np.ones(width) / width, mode="valid") / math.log(2)
            axes.plot(steps[-len(mean) :], mean, color=color, lw=1, ls=style, label=side if number == 0 else None)
    axes.set_xlabel("step")
    axes.set_ylabel(f"training bits per byte, mean over {SMOOTH} steps")
    axes.set_ylim(top=5)
    figures.legend(figure, axes)
    figure.savefig(arguments.workdir / "figure.png", dpi=150)


def _import_official(folder: Path) -> ModuleType:
    path = folder / "bdh.py"
    if not path.is_file():
        sys.exit(f"error: {path} does not exist; --official names a checkout of https://github.com/pathwaycom/bdh")
    spec = importlib.util.spec_from_file_location("bdh", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bdh"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
