"""Time split over 8 devices: the losses, the answers and the peak memory of one device, on windows of 131,072 tokens.

    python benchmarks/sequence_axis.py

Three claims, on 8 CPU devices of one machine (their memory is what XLA's compiler says of a device):

    training   20 steps of a small text model (D 16, K 64, 2 layers, write-back) on windows of 131,072 bytes of this repository's documents
               give the losses of one device within 1e-5, relatively
    recall     a model that learned on sequences of 64 tokens to recall a key's value is asked for keys that lie 100,000 tokens back, and has
               the same score on 8 devices as on one; beside it the same model whose S is emptied on the way, and chance
    memory     temporaries of the training step on a device fall with the axis

``--length 4096`` is a rehearsal. Half an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

DEVICES = 8
if "jax" not in sys.modules:  # it reads the environment when it is imported
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from bdh_jax.fast_weights.config import FastWeightConfig  # noqa: E402
from bdh_jax.models.bdh import BDHConfig  # noqa: E402
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated  # noqa: E402
from bdh_jax.tasks.base import Batch  # noqa: E402
from bdh_jax.training.config import OptimizerConfig, TrainConfig  # noqa: E402
from bdh_jax.training.optimizer import make_optimizer  # noqa: E402
from bdh_jax.training.setup import Setup  # noqa: E402
from bdh_jax.training.state import abstract_state, init_state  # noqa: E402
from bdh_jax.training.step import make_predict, make_train_step, put_batch  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOLERANCE = 1e-5
TEXT = BDHConfig(
    vocab_size=256,
    n_layer=2,
    d_model=16,
    n_head=2,
    n_neurons=64,
    dropout=0.0,
    chunk_size=64,
    fast=FastWeightConfig(learning_rate=0.1, decay=0.99, learn_learning_rate=True, learn_decay=True),
)
PAIRS, SYMBOLS = 4, 16
FILLER, ASK = 2 * SYMBOLS, 2 * SYMBOLS + 1
RECALL = BDHConfig(
    vocab_size=2 * SYMBOLS + 2,
    n_layer=1,
    d_model=32,
    n_head=1,
    n_neurons=256,
    dropout=0.0,
    attention_decay=(0.9,),
    fast=FastWeightConfig(learning_rate=1.0, decay=1.0, address_norm="kwta", address_active=8),
)
console = Console() if sys.stdout.isatty() else Console(width=132)


class Step:
    """A training step on a mesh, and how its batches are put there."""

    def __init__(self, model: BDHConfig, optimizer: OptimizerConfig, train: TrainConfig, mesh: MeshConfig):
        self.mesh = make_mesh(mesh)
        self.model = model.build(self.mesh if self.mesh.size > 1 else None)
        self.optimizer = make_optimizer(optimizer, train.steps)
        setup = Setup(model, optimizer, train, mesh)
        self.step = make_train_step(self.model, self.optimizer, setup, self.mesh)

    def losses(self, batches: list[Batch]) -> tuple[list[float], Any]:
        """Of the steps, and the slow weights after them."""
        state = init_state(self.model, self.optimizer, self.mesh, jax.random.key(0))
        key = jax.device_put(jax.random.key(1), replicated(self.mesh))
        found = []
        for batch in batches:
            state, metrics = self.step(state, put_batch(batch, self.mesh), key)
            found.append(float(metrics["loss"]))
        return found, state.slow

    def memory(self, batch: Batch) -> dict[str, int]:
        """Bytes on a device, as compiled."""
        state = abstract_state(self.model, self.optimizer, self.mesh)
        key = jax.device_put(jax.random.key(1), replicated(self.mesh))
        found = self.step.lower(state, put_batch(batch, self.mesh), key).compile().memory_analysis()
        return {"arguments": found.argument_size_in_bytes, "temporaries": found.temp_size_in_bytes}


def documents() -> np.ndarray:
    """The bytes of this repository's documents, in the order of their names."""
    files = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    return np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8).astype(np.int32)


def windows(length: int, steps: int) -> list[Batch]:
    """A window a step, from places that a seed draws."""
    text, rng = documents(), np.random.default_rng(0)
    if len(text) <= length:
        raise SystemExit(f"the documents have {len(text)} bytes, fewer than a window of {length}")
    found = []
    for _ in range(steps):
        start = rng.integers(0, len(text) - length)
        tokens = text[start : start + length + 1][None]
        ones = np.ones((1, length), np.float32)
        found.append(Batch(tokens[:, :-1], tokens[:, 1:], ones, ones, ones > 0, ones < 0))
    return found


def questions(rows: int, length: int, seed: int, steps_back: int | None = None) -> Batch:
    """Four keys, each with a value, then fillers, then one of the keys again: its value is to be predicted.

    Args:
      rows: B.
      length: T.
      seed: of what is drawn.
      steps_back: tokens between the keys and the question; None draws as many as there is room for.
    """
    rng = np.random.default_rng(seed)
    tokens = np.full((rows, length), FILLER, np.int32)
    targets, answer = tokens.copy(), np.zeros((rows, length), np.float32)
    for row in range(rows):
        keys, values = rng.permutation(SYMBOLS)[:PAIRS], SYMBOLS + rng.integers(0, SYMBOLS, PAIRS)
        tokens[row, : 2 * PAIRS] = np.stack([keys, values], axis=1).reshape(-1)
        gap = rng.integers(0, length - 2 * PAIRS - 1) if steps_back is None else steps_back
        at, asked = 2 * PAIRS + gap, rng.integers(PAIRS)
        tokens[row, at : at + 2] = ASK, keys[asked]
        targets[row, at + 1], answer[row, at + 1] = values[asked], 1
    return Batch(tokens, targets, answer, answer, np.ones_like(answer, bool), np.zeros_like(answer, bool))


def training(length: int, steps: int) -> dict[str, Any]:
    """Losses of one device and of eight."""
    batches = windows(length, steps)
    optimizer, train = (
        OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        TrainConfig(steps=steps, batch_size=1, loss="all"),
    )
    found = {}
    for parts in (1, DEVICES):
        start = time.perf_counter()
        found[parts], _ = Step(TEXT, optimizer, train, MeshConfig(sequence=parts)).losses(batches)
        console.print(f"{steps} steps of {length} tokens on {parts}: {time.perf_counter() - start:.0f} s")
    one, several = (np.array(losses) for losses in found.values())
    worst = float(np.max(np.abs(several - one) / one))
    return {"one": one.tolist(), "eight": several.tolist(), "largest_difference": worst, "holds": worst <= TOLERANCE}


def recall(back: int, rows: int, steps: int) -> dict[str, Any]:
    """Scores of questions that lie far back: on one device, on eight, with S emptied halfway, and by chance."""
    optimizer = OptimizerConfig(learning_rate=4e-3, warmup_steps=50)
    train = TrainConfig(steps=steps, batch_size=32, loss="answer")
    losses, slow = Step(RECALL, optimizer, train, MeshConfig()).losses(
        [questions(32, 64, 1 + step) for step in range(steps)]
    )
    slow = jax.device_get(slow)
    length = back + 2 * PAIRS + 2
    length += -length % DEVICES
    batch = questions(rows, length, 0, back)
    scores = {}
    for name, parts, reset in (("one device", 1, None), ("eight devices", DEVICES, None), ("S emptied", 1, True)):
        mesh = make_mesh(MeshConfig(sequence=parts))
        resets = batch.reset if reset is None else np.broadcast_to(np.arange(length) == length // 2, batch.reset.shape)
        predict = make_predict(RECALL.build(mesh if parts > 1 else None), mesh)(slow)
        right = []
        for row in range(rows):  # one by one: their logits are long
            logits = np.asarray(predict(batch.tokens[row : row + 1], batch.valid[row : row + 1], resets[row : row + 1]))
            at = batch.answer[row].argmax()
            right.append(bool(logits[0, at].argmax() == batch.targets[row, at]))
        scores[name] = right
        console.print(f"{name}: {sum(right)} of {rows}")
    return {
        "tokens_back": back,
        "questions": rows,
        "loss_of_training": losses[-1],
        "scores": {name: sum(right) / rows for name, right in scores.items()},
        "chance": 1 / SYMBOLS,
        "same_answers": scores["one device"] == scores["eight devices"],
    }


def memory(length: int) -> list[dict[str, Any]]:
    """Bytes on a device, with 1 … 8 parts."""
    (batch,) = windows(length, 1)
    optimizer, train = OptimizerConfig(warmup_steps=2), TrainConfig(steps=20, batch_size=1, loss="all")
    rows = []
    for parts in (1, 2, 4, 8):
        rows.append({"parts": parts, **Step(TEXT, optimizer, train, MeshConfig(sequence=parts)).memory(batch)})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=131_072, help="tokens of a window")
    parser.add_argument("--back", type=int, default=100_000, help="tokens between a key and its question")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--recall-steps", type=int, default=600)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--parts", default="memory,recall,training", help="what to measure")
    parser.add_argument("--json", type=pathlib.Path, help="also write what was measured to this file")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        found = json.loads(options.json.read_text())
    found |= {"jax": jax.__version__, "length": options.length}
    ok = True
    for part in options.parts.split(","):
        if part == "memory":
            found[part] = memory(options.length)
            table = Table(title="MB (10⁶ bytes) on a device")
            for name in ("parts", "arguments", "temporaries"):
                table.add_column(name, justify="right")
            for row in found[part]:
                table.add_row(str(row["parts"]), *(f"{row[name] / 1e6:.1f}" for name in ("arguments", "temporaries")))
            console.print(table)
            ok &= all(a["temporaries"] > b["temporaries"] for a, b in zip(found[part], found[part][1:], strict=False))
        elif part == "recall":
            found[part] = recall(options.back, options.questions, options.recall_steps)
            console.print(found[part])
            ok &= found[part]["same_answers"]
        elif part == "training":
            found[part] = training(options.length, options.steps)
            console.print(f"largest relative difference of a loss: {found[part]['largest_difference']:.1e}")
            ok &= found[part]["holds"]
        else:
            parser.error(f"--parts={options.parts} names {part!r}; there are memory, recall and training")
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=2) + "\n")
    console.print("all claims hold" if ok else "a claim does not hold")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
