"""The first 300 steps of ``text:official``, on a text: bits per byte as they fall, and of its last tenth, which is not trained on.

Without ``--text`` the text is made up: words of random letters, drawn by Zipf's law, in sentences. Its bits per byte say that training
works, and compare with nothing.
"""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import steps
from benchmarks.accelerator.part import Part, Work
from benchmarks.accelerator.sizes import official, official_batch

TRAINED = "trained.npz"
"""Weights for other parts, in the scratch folder."""
_SHOWN = 10


def run(work: Work) -> None:
    """Train, look at the rest of the text, keep the weights."""
    work.attempt("text:official", 30, lambda: _train(work))


def _train(work: Work) -> dict[str, Any]:
    count, (batch, length) = 20 if work.tiny else 300, official_batch(work.tiny)
    config = official(work.tiny)
    path = work.settings.text
    data = np.frombuffer(made_up(1 << 20) if path is None else path.read_bytes(), np.uint8)
    border = len(data) * 9 // 10
    if len(data) - border <= length + 1:
        raise ValueError(f"{path} has {len(data)} bytes; at least {10 * (length + 2)} are needed")
    step, training, key = steps.train_step(config), steps.begin(steps.random_weights(config)), jax.random.key(0)
    curve, losses, begin, first = [], [], time.monotonic(), None
    for number in range(count):
        training, loss = step(training, jnp.asarray(_windows(data[:border], batch, length, number)), key)
        losses.append(loss)
        if number == 0:
            jax.block_until_ready(loss)
            first = time.monotonic() - begin
        if (number + 1) % _SHOWN == 0:
            # Waiting for it keeps the queue of steps short, and says what there is if the time ends here.
            curve.append([number + 1, float(np.mean(jax.device_get(losses))) / math.log(2)])
            losses = []
            work.note(bits_per_byte=curve, seconds=time.monotonic() - begin)
            if not work.tiny and work.left < 10:
                work.leave_out(f"steps after {number + 1}", "the time is up")
                break
    taken = time.monotonic() - begin - first
    measured = jax.jit(steps.loss_of(config))
    held = [_windows(data[border:], batch, length, number) for number in (10_000, 10_001)]
    bits = float(np.mean([float(measured(training.slow, jnp.asarray(tokens))) for tokens in held])) / math.log(2)
    np.savez(work.settings.scratch / TRAINED, **jax.device_get(training.slow))
    made = curve[-1][0]
    if not all(math.isfinite(bits) for _, bits in curve):
        raise FloatingPointError(f"the loss is not finite: {curve}")
    return {
        "steps": made,
        "bits_per_byte_first": curve[0][1],
        "bits_per_byte_last": curve[-1][1],
        "bits_per_byte_held_out": bits,
        "seconds_to_first_step": first,
        "ms_a_step": 1e3 * taken / max(1, made - 1),
        "text": "made up" if path is None else path.name,
        "bytes": len(data),
    }


def _windows(data: np.ndarray, batch: int, length: int, number: int) -> np.ndarray:
    """[B, T + 1] of a text, those of one number always alike."""
    starts = np.random.default_rng([0, number]).integers(0, len(data) - length, batch)
    return np.stack([data[start : start + length + 1] for start in starts]).astype(np.int32)


def made_up(size: int) -> bytes:
    """So many bytes of text, always the same."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgk", np.uint8)
    words = [bytes(rng.choice(letters, rng.integers(2, 9))) for _ in range(2000)]
    likely = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(len(words), size // 4, p=likely / likely.sum())
    ends = rng.random(len(drawn)) < 0.1
    return b"".join(words[index] + (b".\n" if end else b" ") for index, end in zip(drawn, ends, strict=True))[:size]


PART = Part(place=5, minutes=0.8, least=30, run=run)
