"""Who reads what, tokens that trade their routes, and how many weights a token can use."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from bdh_jax.analysis.routing import routed, shares, shuffled, weights_used
from bdh_jax.config.convert import from_config_dict, to_dict
from bdh_jax.config.options import Options
from bdh_jax.models.base import count_parameters
from bdh_jax.models.mixture import MixtureConfig
from bdh_jax.models.registry import MODELS
from tests.compiled import apply, init

CONFIG = MixtureConfig(
    vocab_size=11,
    n_layer=2,
    d_model=8,
    experts=Options(bdh=Options(n_head=1, n_neurons=16), gpt=Options(n_head=1)),
    init_std=0.5,
)
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 8)).astype(np.int32)
VALID = np.tile(np.arange(8) < 6, (4, 1))


@pytest.fixture(scope="module")
def slow():
    return init(CONFIG.build(), 0)


def test_shares_are_of_the_tokens_of_a_group(slow):
    chosen = np.asarray(routed(CONFIG, slow, TOKENS, VALID, np.zeros_like(VALID)))
    route = apply(CONFIG.build(), slow, TOKENS, valid=VALID, collect=("route",)).collected["route"]
    np.testing.assert_array_equal(chosen, np.asarray(route) > 0)
    group = np.where(VALID, (np.arange(4) % 2)[:, None], -1)
    found = shares(chosen, group, 3)
    np.testing.assert_allclose(found[:, 1], chosen[:, 1::2, :6].mean((1, 2)))
    np.testing.assert_allclose(found[:, :2].sum(-1), 1)
    assert np.isnan(found[:, 2]).all()


def test_shuffled_routes_are_those_of_other_tokens(slow):
    """Of the first layer, where the router sees the same: as many tokens for each expert, and other ones; padding is left where it is."""
    config = shuffled(CONFIG, 1)
    assert from_config_dict(type(config), to_dict(config)) == config
    assert MODELS.get(config.architecture, "model") is type(config)
    collect = {"valid": VALID, "collect": ("route",)}
    plain, traded = (np.asarray(apply(c.build(), slow, TOKENS, **collect).collected["route"])[0] for c in (CONFIG, config))
    np.testing.assert_array_equal(np.sort(traded[VALID], axis=0), np.sort(plain[VALID], axis=0))
    assert ((plain > 0) != (traded > 0))[VALID].any()
    np.testing.assert_array_equal(traded[~VALID], plain[~VALID])
    other = np.asarray(apply(shuffled(CONFIG, 2).build(), slow, TOKENS, **collect).collected["route"])[0]
    assert (other != traded).any()


def test_the_weights_of_a_route_are_counted_once():
    """BDH has the same in all layers, a GPT its own in each."""
    architecture = CONFIG.make_architecture()
    declared = architecture.weights()
    common = count_parameters({name: declared[name] for name in ("embed", "router", "lm_head")})
    bdh, layer = count_parameters(declared["bdh"]), count_parameters(declared["gpt"]["layer0"])
    assert bdh == 3 * 8 * 16
    assert layer == 12 * 8 * 8 + 2 * 8
    assert weights_used(CONFIG) == (common + bdh, common + 2 * layer)
    three = dataclasses.replace(CONFIG, top_k=2)
    assert weights_used(three) == (common + bdh + 2 * layer,) * 2
    assert jax.eval_shape(CONFIG.build().init_slow, jax.random.key(0)).keys() == declared.keys()
