"""What write-back costs at the published size, in training and forward, against the ratio of multiply-adds.

A layer and token multiply 3·D·K + T·K numbers, and T·K more with write-back; twice that backward. Without dropout, which would make both
sides slower and the ratio smaller. The sides compute different functions, so what is held first is that they are one where nothing is
written: with a learning rate of 10⁻²⁶ the very program that is timed has the loss of the one without.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import steps, timing
from benchmarks.accelerator.part import Part, Work
from benchmarks.accelerator.sizes import WRITE_BACK, official, official_batch

CLAIM = 1.1
"""Largest ratio of times over that of multiply-adds."""
NOTHING, OF_LOSS = -60.0, 2e-3
"""Logarithm of a learning rate that writes nothing, and the relative difference of losses in bfloat16."""
ROUNDS, STEPS = 7, 4


def run(work: Work) -> None:
    """Both lengths forward and in training; all programs are compiled side by side."""
    batch, longest = official_batch(work.tiny)
    work.note(batch=batch, claim=CLAIM)
    plain = dataclasses.replace(official(work.tiny), dropout=0.0)
    sides = {"without": plain, "with": dataclasses.replace(plain, fast=WRITE_BACK)}
    lowered = {}
    lengths = (longest,) if work.tiny else (128, longest)
    for length in lengths:
        for side, config in sides.items():
            slow = jax.eval_shape(lambda config=config: steps.begin(_weights(config)))
            tokens, key = jax.ShapeDtypeStruct((batch, length + 1), jnp.int32), jax.random.key(0)
            lowered[f"training, {length}, {side}"] = steps.train_step(config).lower(slow, tokens, key)
            lowered[f"forward, {length}, {side}"] = jax.jit(steps.loss_of(config)).lower(slow.slow, tokens)
    programs = timing.compile_all(lowered)
    for length in lengths:
        for kind in ("training", "forward"):
            work.attempt(f"{kind}, T {length}", 6, lambda k=kind, n=length: _compare(sides, k, batch, n, programs))


def _weights(config: Any) -> dict[str, jax.Array]:
    return {name: jnp.zeros(weight.shape, weight.dtype) for name, weight in steps.BDH(config).declared_slow().items()}


def _compare(sides: dict[str, Any], kind: str, batch: int, length: int, programs: dict[str, Any]) -> dict[str, Any]:
    tokens, key = jnp.asarray(steps.random_tokens(batch, length)), jax.random.key(0)
    weights = {side: steps.random_weights(config) for side, config in sides.items()}
    losses = {}
    for side, slow in weights.items():
        if side == "with":
            slow = {**slow, "fast_log_learning_rate": np.full_like(slow["fast_log_learning_rate"], NOTHING)}
        program = timing.compiled(programs[f"{kind}, {length}, {side}"])
        losses[side] = program(steps.begin(slow), tokens, key)[1] if kind == "training" else program(slow, tokens)
    error = timing.assert_alike(losses["with"], losses["without"], OF_LOSS, "loss where nothing is written")

    def calls_of(side: str) -> Any:
        program = timing.compiled(programs[f"{kind}, {length}, {side}"])
        training, slow = [steps.begin(weights[side])], jax.device_put(weights[side])

        def several() -> Any:
            for _ in range(STEPS):
                if kind == "training":
                    training[0], loss = program(training[0], tokens, key)
                else:
                    loss = program(slow, tokens)
            return loss

        return several

    calls = {side: calls_of(side) for side in sides}
    seconds, ratios = timing.ratio_in_turn(calls, ROUNDS, f"{kind}, T {length}", "without")
    width = sides["with"].d_model
    counted, ratio = (3 * width + 2 * length) / (3 * width + length), ratios["with"]["median"]
    return {
        "ratio": ratio,
        "counted": counted,
        "ratio_over_counted": ratio / counted,
        "claim_holds": ratio / counted <= CLAIM,
        **{f"ms_{side}": 1e3 * times["median"] / STEPS for side, times in seconds.items()},
        "difference": error,
        "spread": ratios["with"],
    }


PART = Part(place=4, minutes=1.1, least=40, run=run)
