"""What the write-back costs: a training step and a forward pass with it against those without.

    python benchmarks/write_back.py

Claims at the published size (L 6, D 256, K 32,768), at T 128 and T 512, that the ratio of times is at most 1.05 times the ratio of
multiply-adds. Per layer and token these are

                   forward                          backward
    BDH            3·D·K + T·K                      6·D·K + T·K
    write-back     T·K                              T·K

for encoder, encoder_v and decoder, and the scores of codes among themselves: those of the attention and, with write-back, those of the
addresses. Scores are symmetric, so that their gradient is one product; written as two, it would be 2·T·K. The ratio is (3·D + 2·T) /
(3·D + T) forward and (9·D + 4·T) / (9·D + 2·T) in training. Products of scores with x are H·T·D and T·D, a few per cent of this at large
K, and are left out on both sides. The published loop over tokens took 6.1 times as long with write-back as without. Both sides give the
same logits where nothing is read: that is asserted first, with η = 0. Three minutes on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import optax

from bdh_jax import BDH, BDHConfig, FastWeightConfig

LIMIT = 1.05
PUBLISHED = 6.1
TOKENS = 512
"""B·T."""
CLOSE = 1e-4
"""Largest difference of logits, relative to the largest of them."""


def calls_of(config: BDHConfig, batch_size: int, length: int) -> dict[str, Callable[[], Any]]:
    """An AdamW step on all positions of fixed random tokens, which returns the loss; and a forward pass, which returns logits."""
    model, optimizer = BDH(config), optax.adamw(1e-3)
    tokens = jax.random.randint(jax.random.key(1), (batch_size, length + 1), 0, config.vocab_size)
    slow = jax.jit(model.init_slow)(jax.random.key(0))

    def logits(slow: Any) -> jax.Array:
        return model.apply({"params": slow}, tokens[:, :-1], state="none").logits

    def loss(slow: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(slow), tokens[:, 1:]).mean()

    @jax.jit
    def step(slow: Any, optimizer_state: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(slow)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, slow)
        return optax.apply_updates(slow, updates), optimizer_state, value

    state, forward = jax.jit(optimizer.init)(slow), jax.jit(logits)
    return {"training": lambda: step(slow, state), "forward": lambda: forward(slow)}


def multiply_adds(fast: bool, which: str, width: int, length: int) -> int:
    """Per layer, token and neuron."""
    scores = (2 if fast else 1) * length
    return 3 * width + scores if which == "forward" else 9 * width + 2 * scores


def main() -> None:
    parser = measure.arguments(__doc__.splitlines()[0], rounds=9)
    parser.add_argument("--widths", type=int, nargs="+", default=[256], help="D")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="T")
    parser.add_argument("--neurons", type=int, default=32768, help="K, over all heads")
    parser.add_argument("--heads", type=int, default=4, help="H")
    parser.add_argument("--layers", type=int, default=6, help="L")
    options = parser.parse_args()
    rows, results = [], {}
    for width in options.widths:
        config = BDHConfig(
            vocab_size=256,
            n_layer=options.layers,
            d_model=width,
            n_head=options.heads,
            n_neurons=options.neurons,
            dropout=0.0,  # dropout would make both sides slower and the ratio smaller
        )
        without = dataclasses.replace(config, fast=FastWeightConfig(enabled=False))
        for length in options.lengths:
            batch = max(1, TOKENS // length)
            sides = {"without": calls_of(without, batch, length), "with": calls_of(config, batch, length)}
            silent = dataclasses.replace(config, fast=FastWeightConfig(learning_rate=0.0))
            found, wanted = calls_of(silent, batch, length)["forward"](), sides["without"]["forward"]()
            difference = float(jnp.max(jnp.abs(found - wanted)) / jnp.max(jnp.abs(wanted)))
            if not difference <= CLOSE:
                sys.exit(f"error: logits differ by {difference:.1e} where nothing is written; no ratio is printed")
            for which in ("training", "forward"):
                calls = {name: side[which] for name, side in sides.items()}
                seconds = measure.interleave(calls, options.rounds, f"{which}, D {width}, T {length}")
                work = {name: multiply_adds(name == "with", which, width, length) for name in calls}
                counted = work["with"] / work["without"]
                ratio = measure.ratios(seconds["with"], seconds["without"])
                times = {name: measure.summary(values) for name, values in seconds.items()}
                limit = LIMIT * counted
                flops = {name: 2 * options.layers * batch * length * options.neurons * work[name] for name in calls}
                rows.append(
                    [
                        f"{which}, D {width}, T {length}",
                        times["without"].format(1e3, 0),
                        times["with"].format(1e3, 0),
                        " / ".join(f"{flops[name] / times[name].median / 1e9:.0f}" for name in calls),
                        f"{counted:.3f}",
                        ratio.format(digits=3),
                        f"≤ {limit:.3f}  {'holds' if ratio.median <= limit else 'MISSED'}",
                    ]
                )
                results[f"{which}, D {width}, T {length}"] = {
                    "seconds": {name: time._asdict() for name, time in times.items()},
                    "counted_ratio": counted,
                    "ratio": ratio._asdict(),
                    "limit": limit,
                    "flops": flops,
                    "largest_difference": difference,
                }
    measure.report(
        f"Write-back, K {options.neurons}, H {options.heads}, L {options.layers}, B·T {TOKENS}, float32, "
        f"{jax.devices()[0].device_kind}",
        ["", "ms without", "ms with", "GFLOP/s", "counted", "with ÷ without", "claim"],
        rows,
        "Median (min–max). Ratios are medians over rounds in which both sides ran one after the other. "
        f"The published loop over tokens: {PUBLISHED:g}.",
    )
    measure.write_json(
        options.json, {"config": vars(options) | {"json": None}, "published_ratio": PUBLISHED, "results": results}
    )


if __name__ == "__main__":
    main()
