"""Training steps of configurations, at their own sizes, and a token of a model that pays for what is active, as cases for a compiler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bdh_jax.experiment import load_experiment, setup_of
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.models.token_step import TokenStepConfig
from bdh_jax.training.planning import lower_step
from benchmarks.compilers.cases import Case, lowering

CONFIGS = (
    "configs/text.py:official",
    "configs/text.py:official,fast",
    "configs/nback.py:seed25m",
    *(f"configs/mqar.py:{model}published" for model in ("", "gla,", "gated_deltanet,", "mamba2,", "shift,", "write_back,")),
)


TOKEN = BDHConfig(
    dropout=0.0,
    fast=FastWeightConfig(learning_rate=0.01, decay=0.95),
    token_step=TokenStepConfig(32, attention=1966, encoder_v=1966, decoder=1311, memory=1966),
)
"""The published size with write-back, and budgets of some per cent of its rows."""
BATCHES = (1, 16)


def cases(platform: str) -> list[Case]:
    """A case for each configuration, and for a token of each batch."""
    del platform
    return [_case(named) for named in CONFIGS] + [_token(batch) for batch in BATCHES]


def _token(batch: int) -> Case:
    """One token of every example, whose state is given up: what is no alias of an argument was copied."""
    model = BDH(TOKEN)

    def read(weights: Any, fast: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        out = model.apply(weights, tokens, fast)
        return out.logits, out.fast

    slow = jax.eval_shape(model.init_slow, jax.random.key(0))
    weights = {"params": slow, "views": jax.eval_shape(model.architecture.views, slow)}
    fast = jax.eval_shape(lambda: model.init_fast(batch))
    size = f"B {batch}, L {TOKEN.n_layer}, D {TOKEN.d_model}, K {TOKEN.n_neurons}, {TOKEN.token_step.slots} slots, {TOKEN.dtype}"
    tokens = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
    return Case("one token of a model, with write-back", size, lowering(read, (weights, fast, tokens), donate=(1,)))


def _case(named: str) -> Case:
    config = load_experiment(named)
    batch = config.task.shapes(config.train.batch_size)

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        return lower_step(setup_of(config), batch, list(mesh.devices.flat))[0]

    model, (rows, length) = config.model, batch.tokens.shape
    neurons = f", K {model.n_neurons}" if isinstance(model, BDHConfig) else ""
    size = f"B {rows}, T {length}, L {model.n_layer}, D {model.d_model}{neurons}, {model.dtype}"
    return Case(f"training step of {named}", size, lower)
