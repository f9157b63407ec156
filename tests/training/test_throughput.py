"""Counted flops are those of the products that the model consists of; peaks are claimed only where they are known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.training import throughput

PLAIN = BDHConfig(n_layer=2, d_model=64, n_neurons=512, n_head=1, dropout=0.0, fast=FastWeightConfig(enabled=False))
GPT = GPTConfig(n_layer=2, d_model=64, n_head=2, dropout=0.0)


@pytest.mark.parametrize(
    "config", [PLAIN, dataclasses.replace(PLAIN, fast=FastWeightConfig()), GPT], ids=["bdh", "write-back", "gpt"]
)
def test_the_count_is_that_of_the_compiled_forward_pass(config):
    length = 64
    config = dataclasses.replace(config, implementation="parallel") if isinstance(config, BDHConfig) else config
    tokens = jnp.zeros((1, length), jnp.int32)
    slow = jax.eval_shape(config.build().init, jax.random.key(0), tokens)["params"]
    forward = jax.jit(lambda slow: config.build().apply({"params": slow}, tokens, state="none").logits)
    cost = forward.lower(slow).compile().cost_analysis()
    flops = (cost[0] if isinstance(cost, list) else cost)["flops"]
    # XLA also counts what is not a matrix product, and products of scores with x, which are left out here.
    assert 1.0 < flops / (throughput.training_flops_per_token(config, length) / 3 * length) < 1.35


class _Device:
    def __init__(self, kind):
        self.device_kind = kind


def test_a_peak_is_of_bfloat16_and_known_devices():
    config = dataclasses.replace(PLAIN, dtype="bfloat16")
    assert throughput.peak_flops(config, [_Device("NVIDIA H100 80GB HBM3")] * 4) == 4 * 989e12
    assert throughput.peak_flops(config, [_Device("TPU v5 lite")]) == 197e12
    assert throughput.peak_flops(PLAIN, [_Device("NVIDIA H100 80GB HBM3")]) is None
    assert throughput.peak_flops(config, [_Device("cpu")]) is None


def test_memory_is_what_was_taken_at_most():
    before = throughput.peak_memory()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert throughput.peak_memory() >= before > 2**20
