"""What keeping freed memory saves: training steps with ``bdh_jax.commands._allocator.keep_freed_memory`` and without.

    python benchmarks/allocator.py

Each side is a process of its own, since the setting belongs to a process; they take turns. About three minutes on two CPU cores.
"""

from __future__ import annotations

import subprocess
import sys
import time

import jax
import measure

from bdh_jax import BDH
from bdh_jax.commands import _allocator as allocator
from bdh_jax.experiment import load_experiment, setup_of
from bdh_jax.parallel.axes import make_mesh
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state
from bdh_jax.training.step import make_keys, make_train_step, put_batch

SIDES = ("default", "kept")
CONFIGURATIONS = ["configs/nback.py", "configs/nback.py:baseline", "configs/nback.py:text", "configs/lifelong.py"]


def work(side: str, config: str, steps: int) -> None:
    """Run so many steps for every line of standard input, and print their seconds."""
    if side == "kept" and not allocator.keep_freed_memory():
        sys.exit("this C library has no mallopt: there is nothing to compare")
    config = load_experiment(config, "--configs")
    mesh = make_mesh(config.mesh)
    model, optimizer = BDH(config.model), make_optimizer(config.optimizer, config.train.steps)
    first, key = make_keys(0, mesh)
    state, step = init_state(model, optimizer, mesh, first), make_train_step(model, optimizer, setup_of(config), mesh)
    # Late in training: a curriculum is over.
    last = config.train.steps - 1
    batch = put_batch(config.task.make(seed=0, batch_size=config.train.batch_size).batch(last), mesh)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    parser = measure.arguments(__doc__.splitlines()[0], rounds=15)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    parser.add_argument("--configs", nargs="+", default=CONFIGURATIONS, help="what to train")
    parser.add_argument(
        "--side", choices=SIDES, help="run one side of the first configuration, as this program does for both"
    )
    options = parser.parse_args()
    if options.side:
        work(options.side, options.configs[0], options.steps)
        return
    rows, results = [], {}
    for config in options.configs:
        seconds = _measure(config, options.steps, options.rounds)
        ratio = measure.ratios(seconds["default"], seconds["kept"])
        times = {side: measure.summary([value / options.steps for value in seconds[side]]) for side in SIDES}
        rows.append([config, times["default"].format(1e3), times["kept"].format(1e3), ratio.format(digits=2)])
        results[config] = {"seconds": {side: time._asdict() for side, time in times.items()}, "ratio": ratio._asdict()}
    measure.report(
        "A training step, with the allocator as it is and with freed memory kept",
        ["", "ms as it is", "ms kept", "as it is ÷ kept"],
        rows,
        "Median (min–max). Ratios are medians over rounds in which both sides ran one after the other.",
    )
    measure.write_json(options.json, {"config": {"steps": options.steps, "rounds": options.rounds}, "results": results})


def _measure(config: str, steps: int, rounds: int) -> dict[str, list[float]]:
    command = [sys.executable, __file__, "--steps", str(steps), "--configs", config, "--side"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes = {side: subprocess.Popen([*command, side], **pipes) for side in SIDES}

    def run(side):
        print(file=processes[side].stdin, flush=True)
        if not processes[side].stdout.readline():
            sys.exit(f"the side {side!r} ended; what it printed above says why")

    seconds = measure.interleave({side: lambda side=side: run(side) for side in SIDES}, rounds, config)
    for process in processes.values():
        process.communicate()
    return seconds


if __name__ == "__main__":
    main()
