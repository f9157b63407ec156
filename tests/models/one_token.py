"""Prints, for some write rules, how many buffers as large as one S a token needs beside its donated state, as JSON."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp

from bdh_jax import BDH, BDHConfig, FastWeightConfig


def buffers(rule: str) -> float:
    """Temporary memory of a step of two layers, in units of one S."""
    fast_config = FastWeightConfig(rule=rule)
    model = BDH(BDHConfig(vocab_size=19, n_layer=2, d_model=64, n_head=2, n_neurons=1024, dropout=0.0, fast=fast_config))
    slow, fast = (jax.eval_shape(make) for make in (lambda: model.init_slow(jax.random.key(0)), lambda: model.init_fast(1)))

    def step(slow, fast, token):
        out = model.apply({"params": slow}, token, fast)
        return out.logits, out.fast

    lowered = jax.jit(step, donate_argnums=1).lower(slow, fast, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    return lowered.compile().memory_analysis().temp_size_in_bytes / (4 * fast.layers[0].attention.size)


if __name__ == "__main__":
    print(json.dumps({rule: buffers(rule) for rule in ("hebbian", "gated_hebbian")}))
