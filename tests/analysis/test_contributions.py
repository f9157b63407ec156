"""Contributions are sizes of the parts whose sum a layer normalises."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.analysis.contributions import make_contributions
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDH, BDHConfig
from tests.compiled import apply, init

CONFIG = BDHConfig(
    vocab_size=7,
    n_layer=2,
    d_model=8,
    n_head=2,
    n_neurons=16,
    dropout=0.0,
    init_std=0.3,
    fast=FastWeightConfig(learning_rate=0.5, synapse=True),
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 9)), jnp.int32)


def _slow(config=CONFIG, synapse=0.1):
    slow = init(BDH(config), 0)
    return {**slow, "synapse": synapse * jax.random.normal(jax.random.key(1), slow["synapse"].shape)}


def _rms(array):
    return np.sqrt(np.mean(np.square(array), axis=(1, 2, 3)))


def test_sources_are_told_apart():
    slow = _slow()
    sizes = make_contributions(BDH(CONFIG))(slow, TOKENS)
    seen = apply(BDH(CONFIG), slow, TOKENS, collect=("decoded", "read", "address")).collected
    # Root mean squares of a hundred numbers, in float32.
    np.testing.assert_allclose(sizes["decoder"], _rms(seen["decoded"]), rtol=1e-5)
    known = np.einsum("lbhtn,lhnd->lbtd", seen["address"], slow["synapse"])
    np.testing.assert_allclose(sizes["synapse"], _rms(known), rtol=1e-5)
    np.testing.assert_allclose(sizes["fast"], _rms(seen["read"] - known), rtol=1e-4)
    assert (sizes["fast"] > 0.01).all()


def test_without_writes_only_the_synapse_is_read():
    config = dataclasses.replace(CONFIG, fast=dataclasses.replace(CONFIG.fast, learning_rate=0.0))
    sizes = make_contributions(BDH(config))(_slow(config), TOKENS)
    assert (np.asarray(sizes["fast"]) < 1e-6 * np.asarray(sizes["synapse"])).all()
    assert (np.asarray(sizes["synapse"]) > 0.01).all()


def test_a_shared_synapse_is_read_by_every_layer_and_padding_does_not_count():
    config = dataclasses.replace(CONFIG, fast=dataclasses.replace(CONFIG.fast, scope="shared"))
    slow = _slow(config)
    measure = make_contributions(BDH(config))
    sizes = measure(slow, TOKENS)
    assert sizes["synapse"].shape == (2,)
    padded = jnp.pad(TOKENS, ((0, 0), (0, 4)))
    again = measure(slow, padded, jnp.arange(13)[None].repeat(2, axis=0) < 9)
    for name, size in sizes.items():
        np.testing.assert_allclose(again[name], size, rtol=1e-4)


def test_what_is_not_written_is_not_read():
    measure = make_contributions(BDH(CONFIG))
    nothing, everything = (measure(_slow(), TOKENS, write=np.full(TOKENS.shape, write)) for write in (False, True))
    assert (np.asarray(nothing["fast"]) < 1e-6 * np.asarray(everything["fast"])).all()
    np.testing.assert_array_equal(everything["fast"], measure(_slow(), TOKENS)["fast"])


def test_a_model_without_fast_weights_is_refused():
    config = dataclasses.replace(CONFIG, fast=FastWeightConfig(enabled=False))
    with pytest.raises(ValueError, match="the model has no fast weights"):
        make_contributions(BDH(config))
