"""Rates of each channel, of writes and of what is kept: as in NumPy, in every form that the rule has, and refused by the others."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.compiled import apply, init

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9)).astype(np.int32)
VALID = np.random.default_rng(1).random((2, 9)) < 0.8
RESET = np.arange(9)[None] == np.array([[4], [6]])
NAMES = {"WRITTEN": ("recurrent", "chunked", "parallel", "pallas_interpret"), "KEPT": ("recurrent", "auto")}


def model(name, form="auto", mesh=None, scope="layer", layers=1):
    pallas = form == "pallas_interpret"
    config = BDHConfig(
        vocab_size=11,
        n_layer=layers,
        d_model=8,
        n_head=2,
        n_neurons=16,
        init_std=0.4,
        dropout=0.0,
        dtype="float64",
        chunk_size=4,
        implementation="chunked" if pallas else form,
        kernel=form if pallas else "auto",
        fast=FastWeightConfig(
            rule=f"tests.stubs.channel_rates:{name}", learning_rate=0.8, decay=0.9, address="current", scope=scope
        ),
    )
    return BDH(config, mesh)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def weights(name, **settings):
    slow = init(model(name, **settings), 0)
    rng = np.random.default_rng(2)
    return {n: w + 0.3 * rng.normal(size=w.shape) for n, w in slow.items()}


def run(model, slow):
    out = apply(model, slow, TOKENS, model.init_fast(2), valid=VALID, reset=RESET, collect=("address",))
    return jnp.where(VALID[..., None], out.logits, 0), out.fast, out.collected["address"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_it_should(name):
    """S of the only layer, from its addresses and inputs, one token after another."""
    slow = weights(name)
    _, fast, address = run(model(name, "recurrent"), slow)
    embedded = np.asarray(slow["embed"])[TOKENS]
    x = (embedded - embedded.mean(-1, keepdims=True)) / np.sqrt(embedded.var(-1, keepdims=True) + 1e-5)
    beta = sigmoid(x @ slow["fast_gate"] + slow["fast_gate_bias"])
    channel = sigmoid(np.asarray(slow["fast_channel"]))[..., None]
    for b in range(2):
        S = np.zeros((2, 8, 8))
        for t in range(9):
            S = np.zeros_like(S) if RESET[b, t] else S
            k = np.asarray(address[0, b, :, t])
            written = 0.8 * beta[b, t] * k[..., None] * x[b, t]
            decay, rate = (0.9, channel) if name == "WRITTEN" else (channel * sigmoid(x[b, t] @ slow["fast_token"]), 1)
            S = decay * S + rate * written if VALID[b, t] else S
        assert np.abs(S).max() > 0.1
        np.testing.assert_allclose(fast.memory[0, b], S, rtol=1e-9, atol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize(("name", "form"), [(name, form) for name in NAMES for form in NAMES[name][1:]])
def test_every_form_that_it_has_agrees(name, form):
    slow = weights(name, layers=2)

    def number(form):
        def of(slow):
            logits, fast, _ = run(model(name, form, layers=2), slow)
            return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.sin(fast.memory)), (logits, fast)

        return jax.jit(jax.grad(of, has_aux=True))(slow)

    expected, found = number("recurrent"), number(form)
    chex.assert_trees_all_close(found, expected, rtol=1e-8, atol=1e-8)
    assert np.abs(expected[0]["fast_channel"]).max() > 1e-3


@pytest.mark.parametrize("form", ["chunked", "parallel", "pallas_interpret"])
def test_a_form_without_a_decay_for_each_channel_refuses_it(form):
    with pytest.raises(ConfigError, match="channel_rates:KEPT"):
        weights("KEPT", form=form)


def test_a_shared_S_is_kept_once_a_token():
    """Two layers that share S: it decays with the first alone, by the rule's own rate too."""
    name = "KEPT"
    slow = weights(name, layers=2, scope="shared")
    shared = model(name, scope="shared", layers=2)
    silent = {**slow, "fast_gate": 0 * slow["fast_gate"], "fast_gate_bias": jnp.asarray(-100.0)}  # nothing is written
    start = shared.init_fast(2).map_memory(jnp.ones_like)
    final = apply(shared, silent, TOKENS[:, :1], start).fast.memory[0]
    embedded = np.asarray(slow["embed"])[TOKENS[:, 0]]
    x = (embedded - embedded.mean(-1, keepdims=True)) / np.sqrt(embedded.var(-1, keepdims=True) + 1e-5)
    once = sigmoid(x @ slow["fast_token"])[:, None, None] * sigmoid(np.asarray(slow["fast_channel"]))[None]
    np.testing.assert_allclose(final, np.broadcast_to(once[..., None], final.shape), rtol=1e-9)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_channels_are_spread_over_a_mesh_as_rows_are(name):
    slow, mesh = weights(name), make_mesh(MeshConfig(data=2, heads=2, neurons=2))
    whole = run(model(name), slow)
    found = run(model(name, mesh=mesh), slow)
    chex.assert_trees_all_close(found, whole, rtol=1e-9, atol=1e-9)
    declared = model(name).declared_slow()["fast_channel"]
    assert (declared.axes, declared.shape) == (("head", "neuron"), (2, 8))


def test_gradients_are_those_of_finite_differences():
    name = "KEPT"
    slow = weights(name)

    def number(weight):
        return jnp.sum(jnp.sin(run(model(name), {**slow, "fast_channel": weight})[0]))

    direction = np.random.default_rng(3).normal(size=(2, 8))
    weight, step = slow["fast_channel"], 1e-6
    slope = (number(weight + step * direction) - number(weight - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.jit(jax.grad(number))(weight) * direction), slope, rtol=1e-6)


def test_sums_of_products_are_refused():
    """keep_gram says what was written only where all rows have one rate."""
    with pytest.raises(ConfigError, match="keep_gram"):
        dataclasses.replace(model("WRITTEN").config.fast, keep_gram=True)
