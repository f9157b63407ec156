"""What the write-back costs: a training step with it against one without.

    python benchmarks/write_back.py

Claims at T 192 that the ratio of step times is at most 1.05 times the ratio of multiply-adds, at D 256 and at D 768. Per
layer and token the forward pass multiplies

    BDH            3·D·K + T·K     encoder, encoder_v, decoder; scores of the attention, q kᵀ
    write-back     T·K             scores of the addresses

and the backward pass twice that, so the ratio is (3·D + 2·T) / (3·D + T): 1.20 at D 256, 1.08 at D 768. Products of scores
with x are H·T·D and T·D, a few per cent of this at large K, and are left out on both sides. The published loop over tokens
took 6.1 times as long with write-back as without. About a minute on two CPU cores.
"""

from __future__ import annotations

import dataclasses

import jax
import measure
import optax

from bdh_jax import BDH, BDHConfig, FastWeightConfig

LIMIT = 1.05
PUBLISHED = 6.1


def train_step(config: BDHConfig, batch_size: int, length: int):
    """A call that makes one AdamW step on all positions of fixed random tokens; returns the loss."""
    model, optimizer = BDH(config), optax.adamw(1e-3)
    tokens = jax.random.randint(jax.random.key(1), (batch_size, length + 1), 0, config.vocab_size)
    slow = jax.jit(model.init_slow)(jax.random.key(0))

    def loss(slow):
        logits = model.apply({"params": slow}, tokens[:, :-1], state="none").logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def step(slow, optimizer_state):
        value, gradient = jax.value_and_grad(loss)(slow)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, slow)
        return optax.apply_updates(slow, updates), optimizer_state, value

    state = jax.jit(optimizer.init)(slow)
    return lambda: step(slow, state)


def main() -> None:
    parser = measure.arguments(__doc__.splitlines()[0], rounds=25)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 768], help="D")
    parser.add_argument("--length", type=int, default=192, help="T")
    parser.add_argument("--neurons", type=int, default=8192, help="K, over all heads")
    parser.add_argument("--heads", type=int, default=4, help="H")
    parser.add_argument("--layers", type=int, default=1, help="L")
    parser.add_argument("--batch", type=int, default=2, help="B")
    options = parser.parse_args()
    length, neurons = options.length, options.neurons

    rows, results = [], {}
    for width in options.widths:
        config = BDHConfig(
            vocab_size=256,
            n_layer=options.layers,
            d_model=width,
            n_head=options.heads,
            n_neurons=neurons,
            dropout=0.0,  # dropout would make both sides slower and the ratio smaller
        )
        without = dataclasses.replace(config, fast=FastWeightConfig(enabled=False))
        calls = {
            "without": train_step(without, options.batch, length),
            "with": train_step(config, options.batch, length),
        }
        seconds = measure.interleave(calls, options.rounds, f"D {width}")
        counted = (3 * width + 2 * length) / (3 * width + length)
        ratio = measure.ratios(seconds["with"], seconds["without"])
        times = {name: measure.summary(values) for name, values in seconds.items()}
        # Forward and twice that backward, two operations a multiply-add.
        work = {
            "without": 6 * options.layers * options.batch * length * neurons * (3 * width + length),
            "with": 6 * options.layers * options.batch * length * neurons * (3 * width + 2 * length),
        }
        limit = LIMIT * counted
        rows.append(
            [
                str(width),
                times["without"].format(1e3, 0),
                times["with"].format(1e3, 0),
                " / ".join(f"{work[name] / times[name].median / 1e9:.0f}" for name in calls),
                f"{counted:.3f}",
                ratio.format(digits=3),
                f"≤ {limit:.3f}  {'holds' if ratio.median <= limit else 'MISSED'}",
                f"{PUBLISHED:g}",
            ]
        )
        results[str(width)] = {
            "seconds": {name: time._asdict() for name, time in times.items()},
            "counted_ratio": counted,
            "ratio": ratio._asdict(),
            "limit": limit,
            "published_ratio": PUBLISHED,
            "flops": work,
        }
    measure.report(
        f"Write-back in training, T {length}, K {neurons}, H {options.heads}, L {options.layers}, B {options.batch}, float32, "
        f"{jax.devices()[0].device_kind}",
        ["D", "ms without", "ms with", "GFLOP/s", "counted", "with ÷ without", "claim", "published"],
        rows,
        "Median (min–max). Ratios are medians over rounds in which both sides ran one after the other.",
    )
    measure.write_json(options.json, {"config": vars(options) | {"json": None}, "results": results})


if __name__ == "__main__":
    main()
