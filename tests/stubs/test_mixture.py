"""Two registered blocks under a router."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.experiment import ExperimentConfig, load, run
from bdh_jax.fast_weights.masks import Masks
from bdh_jax.models.base import Inputs, Setup
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.tasks.base import Batch
from bdh_jax.tasks.nback import INTEGER_VOCABULARY, NBackConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.step import loss_fn
from tests.compiled import apply, init
from tests.stubs.mixture import EXPERTS, MixtureConfig

CONFIG = MixtureConfig(vocab_size=9, dtype="float64")
MODEL = CONFIG.build()
TOKENS = np.random.default_rng(0).integers(0, 9, (2, 6)).astype(np.int32)


@pytest.fixture
def slow():
    with jax.enable_x64(True):
        yield init(MODEL, 0)


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", EXPERTS)
def test_where_the_router_chooses_one_expert_its_block_is_what_counts(slow, name):
    """As the expert's own layers say, between the mixture's embedding and readout."""
    # Layer norms and relu leave no direction that every token has, so this router is a function that sees nothing.
    chosen = {**slow, "router": jnp.zeros_like(slow["router"])}
    model, architecture = MODEL, MODEL.architecture
    bias = jnp.where(jnp.arange(2) == EXPERTS.index(name), 0, -jnp.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "softmax", lambda scores: jnp.broadcast_to(jnp.exp(bias), scores.shape))
        out = jax.jit(lambda slow: model.apply({"params": slow}, TOKENS))(chosen)
    inputs = Inputs(architecture.embed(slow, jnp.asarray(TOKENS)), None, Masks())
    x, fast, _ = jax.jit(lambda w: architecture.experts[name].layers(w, inputs, Setup("full")))(slow[name])
    close(out.logits, architecture.readout(slow, x))
    if name == "bdh":
        close(tuple(layer.bdh for layer in out.fast.layers), fast.layers)


def test_both_count_by_their_share(slow):
    """One layer in full: x is the mean of both outputs, weighted by the route."""
    model = dataclasses.replace(CONFIG, n_layer=1).build()
    architecture = model.architecture
    slow = {**slow, "gpt": {name: weight for name, weight in slow["gpt"].items() if name != "layer1"}}
    x = architecture.embed(slow, jnp.asarray(TOKENS))
    parts = [architecture.experts[n].layers(slow[n], Inputs(x, None, Masks()), Setup("full"))[0] for n in EXPERTS]
    scores = np.exp(x @ slow["router"])
    route = scores / scores.sum(-1, keepdims=True)
    out = apply(model, slow, TOKENS, collect=("route",))
    close(out.collected["route"][0], route)
    close(out.logits, architecture.readout(slow, route[..., :1] * parts[0] + route[..., 1:] * parts[1]))
    used = route.mean((0, 1))
    close(out.losses, {"balance": 0.02 * np.sum(used**2)})
    close(out.metrics, {"used_bdh": used[0], "used_gpt": used[1]})


def test_each_expert_carries_its_own_state(slow):
    """A first call that none but BDH remembers: the next one starts from what it wrote."""
    first = apply(MODEL, slow, TOKENS)
    assert [layer.gpt for layer in first.fast.layers] == [None, None]
    again, anew = (apply(MODEL, slow, TOKENS, fast).logits for fast in (first.fast, None))
    assert np.abs(again - anew).max() > 1e-3
    zeros = apply(MODEL, slow, TOKENS, MODEL.init_fast(2))
    close(zeros.logits, anew)
    close(first.fast.select(jnp.array([1])).layers[0].bdh.attention, first.fast.layers[0].bdh.attention[1:])


def test_the_balance_is_part_of_the_loss(slow):
    """And its gradient reaches the router."""
    ones = jnp.ones(TOKENS.shape)
    batch = Batch(TOKENS, TOKENS, ones, ones, None, None)
    heavy = dataclasses.replace(CONFIG, balance=10.0).build()
    totals = [loss_fn(model, slow, batch, ones)[0] for model in (MODEL, heavy)]
    named = [apply(model, slow, TOKENS, state="none").losses["balance"] for model in (MODEL, heavy)]
    close(totals[1] - totals[0], (named[1] - named[0]) * ones.size)
    gradient = jax.grad(lambda slow: apply(heavy, slow, TOKENS, state="none").losses["balance"])(slow)
    assert np.abs(gradient["router"]).max() > 1e-3


def test_dropout_is_each_expert_s_own(slow):
    model = dataclasses.replace(CONFIG, dropout=0.5).build()
    arguments = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}
    forward = jax.jit(lambda slow: model.apply({"params": slow}, TOKENS, **arguments).logits)
    dropped = [forward(slow) for _ in range(2)]
    close(*dropped)
    assert np.abs(dropped[0] - apply(MODEL, slow, TOKENS).logits).max() > 1e-3


@pytest.mark.full
def test_it_is_trained_on_a_mesh_and_loaded(tmp_path):
    config = ExperimentConfig(
        task=NBackConfig(evaluation_sequences=8),
        model=MixtureConfig(vocab_size=INTEGER_VOCABULARY),
        optimizer=OptimizerConfig(warmup_steps=1),
        train=TrainConfig(steps=4, batch_size=4, evaluate_every=4, checkpoint_every=2),
        mesh=MeshConfig(data=2),
    )
    assert make_mesh(config.mesh).size == 2
    run(config, tmp_path / "run")
    loaded, slow = load(tmp_path / "run", "last")
    assert loaded == config.model
    assert slow["gpt"]["layer1"]["mlp_in"]["kernel"].shape == (8, 32)
    assert slow["router"].shape == (8, 2)
