"""Prints how many buffers as large as one S a token needs beside its donated state, as JSON: for some write rules, or for writes that
wait in slots, as the argument says."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.models.token_step import TokenStepConfig

SIZES = {"vocab_size": 19, "n_layer": 2, "d_model": 64, "n_head": 2, "dropout": 0.0}
WAITING = {
    "slots": TokenStepConfig(slots=8),
    "slots and budgets": TokenStepConfig(slots=8, attention=40, encoder_v=40, decoder=40, memory=40),
}


def buffers(config: BDHConfig) -> float:
    """Temporary memory of a step, in units of one S."""
    model = BDH(config)
    slow, fast = (jax.eval_shape(make) for make in (lambda: model.init_slow(jax.random.key(0)), lambda: model.init_fast(1)))
    views = jax.eval_shape(model.architecture.views, slow)

    def step(weights, fast, token):
        out = model.apply(weights, token, fast)
        return out.logits, out.fast

    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    lowered = jax.jit(step, donate_argnums=1).lower({"params": slow, "views": views}, fast, token)
    return lowered.compile().memory_analysis().temp_size_in_bytes / (4 * fast.layers[0].attention.size)


def of_rules() -> dict[str, float]:
    """By write rule."""
    return {
        rule: buffers(BDHConfig(**SIZES, n_neurons=1024, fast=FastWeightConfig(rule=rule)))
        for rule in ("hebbian", "gated_hebbian")
    }


def of_waiting() -> dict[str, float]:
    """By what waits in slots."""
    return {name: buffers(BDHConfig(**SIZES, n_neurons=32768, token_step=settings)) for name, settings in WAITING.items()}


if __name__ == "__main__":
    print(json.dumps({"rules": of_rules, "waiting": of_waiting}[sys.argv[1]]()))
