"""Does a prediction move when only later tokens change? The published order of layers and tokens, and every path of this model.

    python benchmarks/causality.py

Untrained models of width 64, with the published initial scale, read 20 tokens. Then the tokens from position 15 on are replaced,
and the largest change of any logit before them is printed, over several draws of weights and tokens. Zero means bit for bit the
same. About a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import rich.box
import rich.table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.console import Progress, show
from tests.contract import leaky_toy

LENGTH, CHANGED, VOCAB, WIDTH, HEADS, NEURONS = 20, 15, 130, 64, 4, 512
LAYERS = (1, 2, 6)
PATHS = ("recurrent", "chunked", "parallel", "pallas_interpret")


def published(layers: int):
    """Weights and tokens to logits, one layer over all tokens before the next one starts, one buffer for all layers."""
    return jax.jit(lambda slow, tokens: leaky_toy.logits(slow, tokens, layers=layers, learning_rate=1e-2)[0])


def ours(layers: int, path: str, scope: str):
    """Weights and tokens to logits of this model, with the same write."""
    interpreted = path == "pallas_interpret"
    config = BDHConfig(
        vocab_size=VOCAB,
        n_layer=layers,
        d_model=WIDTH,
        n_head=HEADS,
        n_neurons=NEURONS,
        dropout=0.0,
        chunk_size=8,
        implementation="auto" if interpreted else path,
        kernel=path if interpreted else "xla",
        fast=FastWeightConfig(learning_rate=1e-2, decay=1.0, address_norm="none", scope=scope),
    )
    return jax.jit(lambda slow, tokens: BDH(config).apply({"params": slow}, tokens, state="none").logits)


def earlier_change(logits, seed: int) -> float:
    """Largest change of a logit before position ``CHANGED`` when the tokens from there on are replaced."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embed": (VOCAB, WIDTH),
        "encoder": (WIDTH, HEADS, NEURONS // HEADS),
        "encoder_v": (HEADS, WIDTH, NEURONS // HEADS),
        "decoder": (HEADS, NEURONS // HEADS, WIDTH),
        "lm_head": (WIDTH, VOCAB),
    }
    slow = {name: rng.normal(size=shape).astype(np.float32) * np.float32(0.02) for name, shape in shapes.items()}
    tokens = rng.integers(0, VOCAB, (4, LENGTH)).astype(np.int32)
    other = tokens.copy()
    other[:, CHANGED:] = (other[:, CHANGED:] + rng.integers(1, VOCAB, (4, LENGTH - CHANGED))) % VOCAB
    before, after = (np.asarray(logits(slow, ids)) for ids in (tokens, other))
    assert (before[:, CHANGED:] != after[:, CHANGED:]).any()
    return float(np.abs(before - after)[:, :CHANGED].max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="draws of weights and tokens")
    options = parser.parse_args()
    rows = {"published order, one buffer": published}
    rows |= {f"ours, {path}": functools.partial(ours, path=path, scope="layer") for path in PATHS}
    rows |= {"ours, one S for all layers": functools.partial(ours, path="recurrent", scope="shared")}
    table = rich.table.Table(
        title="largest change of an earlier logit when later tokens change, smallest to largest over seeds",
        box=rich.box.SIMPLE_HEAD,
    )
    table.add_column("")
    for layers in LAYERS:
        table.add_column(f"{layers} layer{'s' * (layers > 1)}", justify="right")
    with Progress("models", len(rows)) as progress:
        for label, make in rows.items():
            cells = []
            for layers in LAYERS:
                function = make(layers)
                changes = [earlier_change(function, seed) for seed in range(options.seeds)]
                cells.append("0" if max(changes) == 0 else f"{min(changes):.3f} – {max(changes):.3f}")
            table.add_row(label, *cells)
            progress.advance()
    show(table)


if __name__ == "__main__":
    main()
