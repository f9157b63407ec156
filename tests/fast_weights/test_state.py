"""What can be done with a state between two calls of the model, and the write rule by itself."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.fast_weights.rules.hebbian import hebbian
from tests.compiled import apply, init

TOKENS = np.random.default_rng(0).integers(0, 19, (3, 6)).astype(np.int32)


def model_of(**changes) -> BDH:
    settings = {"vocab_size": 19, "n_layer": 2, "d_model": 8, "n_head": 2, "n_neurons": 16, "dropout": 0.0}
    return BDH(BDHConfig(**settings | changes))


@pytest.fixture(params=["rope", "shift"], scope="module")
def run(request):
    """A model, its weights, and its state after some tokens: other numbers in every leaf and example."""
    model = model_of(attention=request.param, n_layer=2 if request.param == "rope" else 1)
    slow = jax.tree.map(lambda leaf: 20 * leaf, jax.jit(model.init)(jax.random.key(0), TOKENS)["params"])
    valid = np.array([[1] * 6, [1] * 5 + [0], [1] * 4 + [0] * 2], bool)
    fast = jax.jit(lambda slow: model.apply({"params": slow}, TOKENS, valid=valid).fast)(slow)
    assert fast.position.tolist() == [6, 5, 4]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(fast))
    return model, slow, fast


@functools.cache
def call(model):
    """``(slow, tokens, fast) -> output``."""
    return jax.jit(lambda slow, tokens, fast: model.apply({"params": slow}, tokens, fast))


def test_a_fresh_state_is_zero_and_of_the_documented_shape():
    fast = model_of(attention="shift").init_fast(3)
    rows = (2, 3, 2, 8)
    assert fast.attention.shape == fast.memory.shape == fast.effective_memory().shape == (*rows, 8)
    assert fast.previous_address.shape == fast.previous_code.shape == rows
    assert fast.activity.strength.shape == fast.activity.energy.shape == rows
    assert fast.position.shape == fast.activity.count.shape == (3,)
    assert fast.position.dtype == jnp.int32
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fast))
    floats = 2 * np.prod((*rows, 8)) + 4 * np.prod(rows) + 3
    assert fast.nbytes == 4 * floats + 4 * 3


def test_leaves_exist_only_where_they_are_used():
    assert model_of().init_fast(1).previous_code is None
    current = model_of(fast=FastWeightConfig(address="current")).init_fast(1)
    assert current.previous_address is None
    shared = model_of(fast=FastWeightConfig(scope="shared")).init_fast(1)
    assert shared.memory.shape == (1, 1, 2, 8, 8)
    with pytest.raises(ValueError, match="batch_size=0"):
        model_of().init_fast(0)


def test_select_takes_examples_of_every_leaf(run):
    model, slow, fast = run
    chosen = np.array([2, 0, 2, 2])
    picked = fast.select(chosen)
    for leaf, whole in zip(jax.tree.leaves(picked), jax.tree.leaves(fast), strict=True):
        np.testing.assert_array_equal(leaf, np.take(np.asarray(whole), chosen, axis=0))
    logits = call(model)(slow, TOKENS[:, :1], fast).logits
    again = call(model)(slow, TOKENS[chosen, :1], picked).logits
    np.testing.assert_allclose(again, logits[chosen], rtol=1e-5, atol=1e-5)


def test_reset_starts_the_chosen_examples_anew(run):
    model, slow, fast = run
    where = np.array([False, True, False])
    after = fast.reset(where)
    for leaf, before in zip(jax.tree.leaves(after), jax.tree.leaves(fast), strict=True):
        leaf, before = np.asarray(leaf), np.asarray(before)
        assert not leaf[1].any()
        np.testing.assert_array_equal(leaf[[0, 2]], before[[0, 2]])
    logits = call(model)(slow, TOKENS, after).logits
    fresh = call(model)(slow, TOKENS, model.init_fast(3)).logits
    np.testing.assert_array_equal(logits[1], fresh[1])
    assert np.abs(logits[0] - fresh[0]).max() > 1e-3
    # In the call itself: the reset flag of the first token.
    reset = np.eye(1, 6, dtype=bool) & where[:, None]
    flagged = jax.jit(lambda slow, fast: model.apply({"params": slow}, TOKENS, fast, reset=reset).logits)(slow, fast)
    np.testing.assert_allclose(flagged, logits, rtol=1e-5, atol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fast.reset()))


def test_examples_that_do_not_exist_are_named(run):
    *_, fast = run
    for indices, message in (
        ([0, 3], "index 3 is outside the batch of 3 examples"),
        ([-1], "index -1 is outside"),
        ([True, False, True], "indices has dtype bool; name examples by number"),
    ):
        with pytest.raises(ValueError, match=message):
            fast.select(jnp.array(indices))
    with pytest.raises(ValueError, match=r"where has shape \(1,\); it must be one bool for each example, \[3\]"):
        fast.reset(jnp.array([True]))


def test_strength_has_no_sign_where_addresses_have():
    model = model_of(fast=FastWeightConfig(address_norm="centred"))
    slow = init(model, 0)
    out = apply(model, slow, TOKENS, collect=("address",))
    address = np.asarray(out.collected["address"])
    assert address.min() < 0
    np.testing.assert_allclose(out.activity.strength, np.abs(address).sum(axis=3), rtol=1e-5)


def test_detach_keeps_values_and_cuts_gradients(run):
    model, slow, fast = run
    chex.assert_trees_all_equal(fast.detach(), fast)

    def second_call(slow, first_slow):
        carried = model.apply({"params": first_slow}, TOKENS).fast
        return jnp.sum(model.apply({"params": slow}, TOKENS, carried).logits ** 2)

    def detached(slow):
        carried = model.apply({"params": slow}, TOKENS).fast.detach()
        return jnp.sum(model.apply({"params": slow}, TOKENS, carried).logits ** 2)

    cut = jax.jit(jax.grad(detached))(slow)
    alone, before = jax.jit(jax.grad(second_call, argnums=(0, 1)))(slow, slow)
    for name in slow:
        np.testing.assert_allclose(cut[name], alone[name], rtol=1e-4, atol=1e-4 * np.abs(alone[name]).max())
    assert np.abs(before["encoder"]).max() > 1e-3 * np.abs(cut["encoder"]).max()


def test_a_state_may_be_donated(run):
    model, slow, fast = run
    copy = jax.tree.map(jnp.copy, fast)
    expected = call(model)(slow, TOKENS[:, :1], fast)
    with jax.debug_nans(False):  # which keeps donated arrays alive
        out = jax.jit(lambda slow, token, fast: model.apply({"params": slow}, token, fast), donate_argnums=2)(
            slow, TOKENS[:, :1], copy
        )
    np.testing.assert_allclose(out.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert all(layer.memory.written.S.is_deleted() and layer.attention.is_deleted() for layer in copy.layers)


def test_hebbian_reads_before_it_writes():
    state = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    read, after = hebbian(
        state, jnp.array([1.0, 10.0]), jnp.array([0.0, 1.0]), jnp.array([5.0, 6.0]), learning_rate=2.0, decay=0.5
    )
    np.testing.assert_allclose(read, [31.0, 42.0])
    np.testing.assert_allclose(after, [[0.5, 1.0], [11.5, 14.0]])


def test_hebbian_takes_rates_along_the_batch_axes():
    rng = np.random.default_rng(0)
    state, query, key, value = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 4, 5), (3, 4), (3, 4), (3, 5)))
    rate, decay = np.array([0.1, 0.5, 2.0], np.float32), np.array([1.0, 0.9, 0.2], np.float32)
    read, after = hebbian(state, query, key, value, learning_rate=rate, decay=decay)
    for i in range(3):
        np.testing.assert_allclose(read[i], query[i] @ state[i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            after[i], decay[i] * state[i] + rate[i] * np.outer(key[i], value[i]), rtol=1e-5, atol=1e-6
        )
