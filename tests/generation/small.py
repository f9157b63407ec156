"""Small models to generate with."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.generation.sampling import Sampling, generate

VOCAB = 23
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [7], [2, 7, 1, 8, 2]]
FAST = FastWeightConfig(learning_rate=0.7, decay=0.8, rule="delta", synapse=True)
CONFIG = BDHConfig(vocab_size=VOCAB, n_layer=1, d_model=8, n_head=2, n_neurons=32, dropout=0.0, fast=FAST)
CASES = {
    "fast weights": CONFIG,
    "plain": dataclasses.replace(CONFIG, fast=FastWeightConfig(enabled=False)),
    "shift": dataclasses.replace(CONFIG, n_layer=2, attention="shift", attention_decay=(0.7, 1.0)),
    "mesa": dataclasses.replace(CONFIG, fast=FastWeightConfig(rule="mesa", options={"ridge": 0.5})),
}
GREEDY = Sampling(temperature=0)


def make(config: BDHConfig):
    model = BDH(dataclasses.replace(config, dtype="float64"))
    shapes = jax.eval_shape(model.init_slow, jax.random.key(0))
    rng = np.random.default_rng(0)
    return model, {name: jnp.asarray(rng.normal(size=leaf.shape)) for name, leaf in shapes.items()}


def text_from(model, slow, state, count=12) -> list[list[int]]:
    return [list(row) for row in zip(*generate(model, slow, state, max_tokens=count, sampling=GREEDY), strict=True)]
