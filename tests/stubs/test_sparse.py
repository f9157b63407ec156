"""Named losses, metrics and random arrays of a model whose layers run on shards, or token by token."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest

from bdh_jax import FastWeightConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.compiled import init
from tests.stubs.sparse import SparseConfig

TOKENS = np.random.default_rng(0).integers(0, 11, (4, 6)).astype(np.int32)


def run(mesh=None, form="parallel", dropout=0.0):
    with jax.enable_x64(True):
        config = SparseConfig(
            vocab_size=11,
            n_layer=2,
            d_model=8,
            n_head=2,
            n_neurons=16,
            init_std=0.4,
            dropout=dropout,
            dtype="float64",
            implementation=form,
            fast=FastWeightConfig(),
        )
        model = config.build(mesh)

        @jax.jit
        def apply(slow):
            rngs = {"dropout": jax.random.key(1)}
            return model.apply({"params": slow}, TOKENS, deterministic=False, rngs=rngs, collect=("code",))

        return apply(init(config.build(), 0))


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.full), 0.3])
@pytest.mark.parametrize("shape", [{"data": 4}, {"data": 2, "heads": 2, "neurons": 2}], ids=str)
def test_a_mesh_changes_nothing(shape, dropout):
    whole, found = run(dropout=dropout), run(make_mesh(MeshConfig(**shape)), dropout=dropout)
    chex.assert_trees_all_close(found, whole, rtol=1e-9, atol=1e-9)


def test_token_by_token_is_all_at_once():
    whole, found = (run(form=form, dropout=0.3) for form in ("parallel", "recurrent"))
    chex.assert_trees_all_close(found, whole, rtol=1e-8, atol=1e-9)
    assert np.abs(whole.logits - run().logits).max() > 1e-3


def test_a_loss_is_the_sum_over_layers_and_a_metric_their_mean():
    out = run()
    out = jax.device_get(out)
    share = np.mean(out.collected["code"], axis=(2, 4))
    np.testing.assert_allclose(out.losses["sparsity"], share.mean(axis=(1, 2)).sum(), rtol=1e-12)
    np.testing.assert_allclose(out.metrics["largest"], (share**2).mean(), rtol=1e-12)
    assert out.losses["sparsity"] > 0.01
