"""What a save costs the steps around it, when it waits and in the background, at a state of 1 GB.

    python benchmarks/saving.py
    python benchmarks/saving.py --json benchmarks/results/saving_cpu.json

A GPT whose slow weights and Adam's moments are 1 GB makes steps of training, of which one saves. "Stalled" is that step's time beyond a plain
one's; "written after" the time until the checkpoint is on disk and was read back; "steps meanwhile" how much slower steps are while it is
written, ÷ plain. Both ways in turn, in one process. The checkpoint of either is read and compared with the state of its step, to the bit.
About five minutes on two CPU cores, and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from bdh_jax.models.gpt import GPT, GPTConfig
from bdh_jax.runs.checkpoint import Checkpoints, RunProgress, read_slow
from bdh_jax.runs.folder import Record
from bdh_jax.training.config import OptimizerConfig
from bdh_jax.training.optimizer import make_optimizer

CONFIG = GPTConfig(vocab_size=50304, n_layer=4, d_model=704, n_head=11, dropout=0.0)
STEPS = 6
"""Plain steps of a round, before the one that saves."""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="saves of each kind")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    model, optimizer = GPT(CONFIG), make_optimizer(OptimizerConfig(), 1000)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (1, 64)), jnp.int32)
    slow = jax.jit(model.init_slow)(jax.random.key(0))
    state = {"slow": slow, "optimizer": jax.jit(optimizer.init)(slow)}
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    @jax.jit
    def loss(slow: Any) -> jax.Array:
        logits = model.apply({"params": slow}, tokens).logits[:, :-1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
        return -jnp.mean(chosen)

    def update(state: Any) -> Any:
        updates, moments = optimizer.update(jax.grad(loss)(state["slow"]), state["optimizer"], state["slow"])
        return {"slow": jax.tree.map(jnp.add, state["slow"], updates), "optimizer": moments}

    step = jax.jit(update, donate_argnums=0)
    state = jax.block_until_ready(step(state))
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        number = 0
        for round_ in range(options.rounds):
            for way in ("blocking", "background"):
                number += 1
                workdir = Path(folder) / f"{way}{round_}"
                state, times = _one(state, step, workdir, number, background=way == "background")
                for name, seconds in times.items():
                    found.setdefault(way, {}).setdefault(name, []).append(seconds)
                shutil.rmtree(workdir)
    rows = []
    for way, times in found.items():
        texts = [measure.summary(times[name]).format() for name in ("plain", "stalled", "written", "meanwhile")]
        rows.append([way, *texts])
    measure.report(
        f"A save of {size / 1e9:.2f} GB",
        ["save", "plain step, s", "stalled, s", "written after, s", "steps meanwhile"],
        rows,
        f"Median (min–max) of {options.rounds} saves of each kind, in turn.",
    )
    if options.json:
        measure.write_json(options.json, {"bytes": size, "rounds": options.rounds, "results": found})


def _one(state: Any, step: Any, workdir: Path, number: int, *, background: bool) -> tuple[Any, dict[str, float]]:
    """A round: plain steps, one that saves, and steps until it is written."""

    def timed(state: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        state = jax.block_until_ready(step(state))
        return state, time.perf_counter() - began

    plain = []
    for _ in range(STEPS):
        state, seconds = timed(state)
        plain.append(seconds)
    checkpoints = Checkpoints(workdir, Record({"model": {}}))
    before = np.array(state["slow"]["lm_head"]["kernel"], copy=True)
    began = time.perf_counter()
    progress = RunProgress(step=number, seconds=0.0, training_seconds=0.0, tokens=0, evaluated=False)
    checkpoints.save(state, progress, background=background)
    stalled, meanwhile = time.perf_counter() - began, []
    while checkpoints.saving:
        state, seconds = timed(state)
        meanwhile.append(seconds)
    checkpoints.close()
    written = time.perf_counter() - began
    saved = read_slow(workdir, number, on_host=True).slow["lm_head"]["kernel"]
    assert np.array_equal(before.view(np.uint32), np.asarray(saved).view(np.uint32)), "what was saved is another state"
    usual = statistics.median(plain)
    slower = statistics.mean(meanwhile) / usual if meanwhile else 1.0
    return state, {"plain": usual, "stalled": stalled, "written": written, "meanwhile": slower}


if __name__ == "__main__":
    main()
