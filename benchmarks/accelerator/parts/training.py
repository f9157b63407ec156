"""The training step of ``text:official`` against the official PyTorch code, compiled, with the share of the matrix products' rate.

Both sides start from the same weights. First they are held to each other without dropout in float32, by loss and gradients, and on the
batch that is timed, in their own precision, by loss. Then each is timed as it trains: bfloat16, dropout, AdamW, 32 windows of 512 bytes.
PyTorch runs in a process of its own, before this one takes memory; the sides share a device and follow each other.

Counted are the multiply-adds of the published form, two operations each, forward once and backward twice; what is computed again to save
memory is not.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import steps, timing
from benchmarks.accelerator.part import Part, Work
from benchmarks.accelerator.sizes import WRITE_BACK, official, official_batch

CLAIM = (1.5, 0.4)
"""Times as fast as the official code, and the share of the matrix rate."""
OF_LOSS, OF_GRADIENTS, OF_ROUNDED_LOSS = 1e-5, 2e-3, 1e-2
"""Relative differences that are allowed: in float32, and of a loss in bfloat16."""
ROUNDS, STEPS = 5, 4
_FOR_PYTORCH = 150.0
"""Seconds for the other side, most of which it compiles."""


def run(work: Work) -> None:
    """PyTorch's side, this library's, and variants of it."""
    theirs = _official(work)
    rate = timing.matrix_rate(work.tiny)
    batch, length = official_batch(work.tiny)
    work.note(matrix_rate=rate, batch=batch, length=length, claim=dict(zip(("faster", "matrix rate"), CLAIM, strict=True)))
    alike = theirs is not None and work.attempt("the same loss and gradients", 25, lambda: _alike(work, theirs))
    plain = official(work.tiny)
    variants = {
        "text:official": plain,
        "text:official, layers kept": dataclasses.replace(plain, remat=False),
        "text:official,fast": dataclasses.replace(plain, fast=WRITE_BACK),
        "text:official without dropout": dataclasses.replace(plain, dropout=0.0),
    }
    for name, config in variants.items():
        against = theirs if alike and name in ("text:official", "text:official, layers kept") else None
        work.attempt(name, 45, lambda config=config, against=against: _step(work, config, rate, against))


def _step(work: Work, config: Any, rate: float, theirs: dict[str, Any] | None) -> dict[str, Any]:
    batch, length = official_batch(work.tiny)
    slow, tokens = steps.random_weights(config), jnp.asarray(steps.random_tokens(batch, length))
    figures: dict[str, Any] = {}
    step, training, key = steps.train_step(config), [steps.begin(slow)], jax.random.key(0)
    begin = time.monotonic()
    program = step.lower(steps.abstract(training[0]), steps.abstract(tokens), key).compile()
    figures["compile_seconds"] = time.monotonic() - begin

    def several() -> Any:
        for _ in range(1 if work.tiny else STEPS):
            training[0], loss = program(training[0], tokens, key)
        return loss

    count = 1 if work.tiny else STEPS
    taken = timing.in_turn({"step": several}, ROUNDS, "training")["step"]["median"] / count
    operations = 6 * batch * length * config.multiply_adds_per_token(length)
    figures |= {
        "ms": 1e3 * taken,
        "tokens_per_second": batch * length / taken,
        "operations": operations,
        "share_of_matrix_rate": operations / taken / rate,
        "temporaries": program.memory_analysis().temp_size_in_bytes,
    }
    if theirs is not None:
        best = min(theirs["seconds"].values())
        figures |= {f"faster, PyTorch {name}": seconds / taken for name, seconds in theirs["seconds"].items()}
        figures["claim_holds"] = best / taken >= CLAIM[0] and figures["share_of_matrix_rate"] >= CLAIM[1]
    return figures


def _alike(work: Work, theirs: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradients in float32 on a few short windows, and the loss of the batch that is timed; without dropout."""
    published, (batch, length) = official(work.tiny), official_batch(work.tiny)
    config = dataclasses.replace(published, dtype="float32", remat=False, dropout=0.0)
    slow, tokens = steps.random_weights(config), steps.random_tokens(2, min(64, length), seed=2)
    with jax.default_matmul_precision("highest"):
        loss, gradient = jax.jit(jax.value_and_grad(steps.loss_of(config)))(slow, jnp.asarray(tokens))
    wanted = np.load(work.settings.scratch / "official_gradients.npz")
    errors = {
        name: timing.assert_alike(gradient[name], wanted[name], OF_GRADIENTS, f"gradient of {name}") for name in wanted
    }
    of_loss = timing.assert_alike(loss, theirs["loss_float32"], OF_LOSS, "loss in float32")
    rounded = jax.jit(steps.loss_of(published))(slow, jnp.asarray(steps.random_tokens(batch, length)))
    of_batch = timing.assert_alike(rounded, theirs["loss"], OF_ROUNDED_LOSS, "loss of the batch")
    return {
        "loss": float(loss),
        "difference_of_loss": of_loss,
        "difference_of_gradients": max(errors.values()),
        "difference_of_the_batch's_loss": of_batch,
        "differences": errors,
    }


def _official(work: Work) -> dict[str, Any] | None:
    """What the official code takes, or nothing where there is none."""
    name, settings = "the official code", work.settings
    if settings.official is None:
        work.leave_out(name, "no --official names a checkout of it")
        return None
    try:
        import torch  # noqa: F401
    except ImportError:
        work.leave_out(name, "PyTorch is not installed")
        return None
    config, (batch, length) = official(work.tiny), official_batch(work.tiny)
    slow = steps.random_weights(config)
    given = settings.scratch / "official.npz"
    small = steps.random_tokens(2, min(64, length), seed=2)
    np.savez(
        given,
        tokens=steps.random_tokens(batch, length),
        small=small,
        **{f"slow.{key}": value for key, value in slow.items()},
    )
    answer = settings.scratch / "official.json"
    seconds = _FOR_PYTORCH if work.tiny else max(30.0, min(_FOR_PYTORCH, work.left - 60))
    sizes = {
        "n_layer": config.n_layer,
        "n_embd": config.d_model,
        "n_head": config.n_head,
        "mlp_internal_dim_multiplier": config.n_neurons // config.d_model,
        "vocab_size": config.vocab_size,
        "dropout": config.dropout,
    }
    command = [sys.executable, "-m", "benchmarks.accelerator.official", str(settings.official), str(given), str(answer)]
    found: dict[str, Any] = {}

    def row() -> dict[str, Any]:
        try:
            done = subprocess.run(
                [*command, json.dumps(sizes), str(seconds)], timeout=seconds, stderr=subprocess.PIPE, text=True
            )
            said = done.stderr[-1000:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            said = f"stopped after {seconds:.0f} s"
        if answer.exists():
            found.update(json.loads(answer.read_text()))
        if not found.get("seconds"):
            raise RuntimeError(f"no figure of PyTorch's: {said}")
        return {f"ms, {how}": 1e3 * value for how, value in found["seconds"].items()} | {
            "problems": found["problems"],
            "said": said,
        }

    return found if work.attempt(name, 60, row) else None


PART = Part(place=3, minutes=2.8, least=50, run=run)
