"""Each hot path at the published size beside what it must cost: its floor in operations or bytes, and the share of that which is reached.

    python benchmarks/hot_paths.py --json benchmarks/results/hot_paths_cpu.json

The floor of a training step, a forward pass and of reading a prompt is their multiply-adds at the rate of a plain matrix product of the
decoder's shape; that of one token its bytes at the rate at which a large array is scaled in place. Both rates are measured in the same run, in turn
with the paths. L 6, D 256, K 32,768, float32, random weights; of one token, a code with 5 % active rows. About five minutes on two CPU
cores.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np
import token_step
import write_back

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.models.base import count_parameters

BATCH, LENGTH, PROMPT, ACTIVE = 4, 128, 2048, 0.05
"""Of training and forward; tokens of a prompt; share of a token's active rows."""
LARGE = 2**26
"""Numbers that are scaled to measure the rate of memory."""


class HotPath(NamedTuple):
    """What is timed, and what it must cost."""

    call: Callable[[], Any]
    flops: float = 0.0
    bytes: float = 0.0
    times: int = 1
    """How many units (tokens) a call has."""


def paths(config: BDHConfig) -> dict[str, HotPath]:
    """Name → path."""
    found = {}
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 4096).astype(np.int32)
    for fast in (False, True):
        here = dataclasses.replace(config, fast=FastWeightConfig(enabled=fast))
        name = "with write-back" if fast else "without"
        for which, call in write_back.calls_of(here, BATCH, LENGTH).items():
            adds = write_back.multiply_adds(fast, which, config.d_model, LENGTH)
            flops = 2.0 * config.n_layer * BATCH * LENGTH * config.n_neurons * adds
            found[f"{which}, {name}"] = HotPath(call, flops=flops)
        found[f"prompt, {name}"] = prompt(here, tokens[:PROMPT])
        slow = token_step.random_weights(here, 0.5)
        rows = round(ACTIVE * config.n_neurons)
        sparse = dataclasses.replace(here, code_top_k=rows)
        matrix = 4.0 * config.n_neurons * config.d_model
        state = 4.0 * config.d_model * config.n_layer
        # ρ, the gate's encoder, the decoder, and S: all of them, read and, of the states, written; or their active rows.
        dense = config.n_layer * matrix * (3 + (4 if fast else 2))
        active = config.n_layer * matrix + state * rows * (3 + (1 if fast else 0))
        steps = {"dense": (sparse, dense), "token step": (token_step.with_token_step(sparse, slow, tokens[:64]), active)}
        for kind, (settings, needed) in steps.items():
            read = token_step.by_model(settings, slow)
            (call,) = token_step.streams({kind: read}, tokens)[0].values()
            found[f"one token, {kind}, {name}"] = HotPath(call, bytes=needed, times=token_step.TOKENS)
    return found


def prompt(config: BDHConfig, tokens: np.ndarray) -> HotPath:
    """Reading a prompt in chunks into a state."""
    model = BDH(config)
    slow = jax.jit(model.init_slow)(jax.random.key(0))
    fast = model.init_fast(1)

    @jax.jit
    def read(slow: Any, fast: Any) -> Any:
        out = model.apply({"params": slow}, tokens[None], fast)
        return out.logits[:, -1], out.fast

    scans = 2 if config.fast.enabled else 1
    adds = 3 * config.d_model + scans * (2 * config.d_model + config.chunk_size)
    flops = 2.0 * config.n_layer * len(tokens) * config.n_neurons * adds
    return HotPath(functools.partial(read, slow, fast), flops=flops, times=len(tokens))


def rates() -> dict[str, HotPath]:
    """A matrix product of the decoder's shape, whose result is small; and a large array that is read and written in place."""
    left, right = jnp.ones((BATCH * LENGTH, 32768)), jnp.ones((32768, 256))
    product, large = jax.jit(jnp.matmul), [jnp.ones((LARGE,))]
    scaled = jax.jit(lambda array: array * 0.999, donate_argnums=0)

    def scale() -> jax.Array:
        large[0] = scaled(large[0])
        return large[0]

    return {
        "matrix product": HotPath(lambda: product(left, right), flops=2.0 * left.size * right.shape[1]),
        "memory": HotPath(scale, bytes=2 * 4.0 * LARGE),
    }


def main() -> None:
    """Measure, print, write."""
    parser = measure.arguments(__doc__.splitlines()[0], rounds=7)
    parser.add_argument("--neurons", type=int, default=32768, help="K")
    parser.add_argument("--layers", type=int, default=6, help="L")
    options = parser.parse_args()
    config = BDHConfig(dropout=0.0, n_neurons=options.neurons, n_layer=options.layers)
    measured = rates()
    of = measured | paths(config)
    seconds = measure.interleave({name: path.call for name, path in of.items()}, options.rounds, "hot paths")
    times = {name: measure.summary(values) for name, values in seconds.items()}
    flops = of["matrix product"].flops / times["matrix product"].median
    reading = of["memory"].bytes / times["memory"].median
    rows, results = [], {}
    for name, path in of.items():
        if name in measured:
            continue
        floor = (path.flops / flops if path.flops else path.times * path.bytes / reading) * 1e3
        milliseconds = measure.summary([1e3 * s for s in seconds[name]])
        results[name] = {
            "flops": path.flops,
            "bytes": path.bytes,
            "units": path.times,
            "milliseconds": milliseconds._asdict(),
            "floor_milliseconds": floor,
            "share": floor / milliseconds.median,
        }
        must = f"{path.flops / 1e9:,.0f} GFLOP" if path.flops else f"{path.times * path.bytes / 1e6:,.0f} MB"
        rows.append([name, must, f"{floor:,.0f}", milliseconds.format(), f"{floor / milliseconds.median:.0%}"])
    parameters = count_parameters(BDH(config).declared_slow())
    measure.report(
        f"Hot paths, {parameters / 1e6:.1f} M parameters: {flops / 1e9:,.0f} GFLOP/s of a matrix product, {reading / 1e9:.1f} GB/s of memory",
        ["path", "must", "floor, ms", "ms", "reached"],
        rows,
        f"Training and forward: B {BATCH}, T {LENGTH}. Prompt: {PROMPT} tokens. One token: {token_step.TOKENS} of them, {ACTIVE:.0%} active.",
    )
    rate = {"flops_per_second": flops, "bytes_per_second": reading}
    measure.write_json(options.json, {"rates": rate, "paths": results, "parameters": parameters})


if __name__ == "__main__":
    main()
