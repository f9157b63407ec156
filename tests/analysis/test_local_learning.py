"""Measures of linear maps, on maps whose measures are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.analysis.local_learning import attention_entropy, covariance_root, effective_rank, measure_maps
from bdh_jax.models.slim import SlimConfig
from bdh_jax.tasks.base import Batch

RNG = np.random.default_rng(0)


def test_effective_rank_counts_equal_directions():
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    for values, rank in (([1, 1, 1, 0, 0, 0], 3), ([5, 0, 0, 0, 0, 0], 1), ([1] * 6, 6)):
        np.testing.assert_allclose(
            effective_rank(jnp.asarray(turn * np.asarray(values)[None], jnp.float32)), rank, rtol=1e-3
        )
    assert effective_rank(jnp.zeros((3, 3))) == 0
    x = RNG.normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_allclose(effective_rank(covariance_root(jnp.asarray(x))), effective_rank(jnp.asarray(x)), rtol=1e-4)


def test_attention_that_sees_all_alike_has_the_most_entropy():
    query, key = jnp.zeros((2, 5, 4)), jnp.asarray(RNG.normal(size=(2, 5, 4)), jnp.float32)
    np.testing.assert_allclose(attention_entropy(query, key, 2), np.mean(np.log(np.arange(1, 6))), rtol=1e-5)
    assert attention_entropy(1e3 * key, key, 2) < 0.5


def test_measures_of_a_map_are_those_of_its_matrices():
    config = SlimConfig(vocab_size=11, n_layer=1, d_model=8, n_head=2, d_ff=12, max_length=6, init_std=0.4)
    model = config.build()
    slow = model.init_slow(jax.random.key(0))
    tokens = jnp.asarray(RNG.integers(0, 11, (4, 6)), jnp.int32)
    batch = Batch(tokens, tokens, None, None, None, None)  # pyright: ignore[reportArgumentType] - masks that are not looked at

    @jax.jit
    def both(slow):
        collected = model.apply({"params": slow}, tokens, state="none", collect=("ffn_in.x",)).collected["ffn_in.x"]
        changes = jax.tree.map(jnp.zeros_like, slow)
        x = collected[0].reshape(-1, 8)
        weight = slow["layer0"]["ffn_in"]["kernel"]
        changes["layer0"]["ffn_in"]["kernel"] = -(x.T @ x @ weight) / len(x)
        return measure_maps(model, slow, changes, batch)["layer0.ffn_in"], x

    found, x = both(slow)
    weight = np.asarray(slow["layer0"]["ffn_in"]["kernel"])
    covariance = np.asarray(x.T @ x / len(x))
    values = np.linalg.svd(covariance @ weight, compute_uv=False)
    # Biases are zero, so Hebb's change is C W, and the gradient above is its negative.
    assert found.to_gradient == pytest.approx(1, abs=1e-4)
    assert found.to_top == pytest.approx(values[0] / np.linalg.norm(values), rel=1e-3)
    assert found.top_share == pytest.approx(values[0] ** 2 / np.sum(values**2), rel=1e-3)
    assert found.norm == pytest.approx(np.linalg.norm(weight), rel=1e-5)
    assert found.rank == pytest.approx(float(effective_rank(jnp.asarray(weight))), rel=1e-4)
    mean = np.asarray(x).mean(axis=0)
    assert found.mean_share == pytest.approx(np.sum(mean**2) / np.trace(covariance), rel=1e-3)
    first = np.linalg.eigh(covariance)[1][:, -1]
    assert found.mean_is_top == pytest.approx(abs(first @ mean) / np.linalg.norm(mean), rel=1e-2)
