"""Consolidation by least squares, on states of the mesa rule."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig, consolidation
from bdh_jax.consolidation import ConsolidationError
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.parallel.axes import shardings
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.compiled import apply, init

LAYERS, HEADS, ROWS, WIDTH, VOCAB = 2, 2, 32, 4, 40
RIDGE = 0.05


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def model_of(**fast) -> BDH:
    settings = {
        "synapse": True,
        "rule": "mesa",
        "keep_gram": True,
        "decay": 1.0,
        "address": "current",
    } | fast
    if settings["rule"] == "mesa":
        settings["options"] = {"ridge": RIDGE}
    config = BDHConfig(
        vocab_size=VOCAB,
        n_layer=LAYERS,
        d_model=WIDTH,
        n_head=HEADS,
        n_neurons=ROWS,
        dropout=0.0,
        dtype="float64",
        init_std=0.5,
        fast=FastWeightConfig(**settings),
    )
    return BDH(config)


@functools.cache
def compiled(model):
    return jax.jit(lambda slow, tokens: model.apply({"params": slow}, tokens, collect=("address",)))


def start(model):
    return init(model, 0)


def episodes(count, length=5):
    """Tokens [count, 1, length], all different: no episode repeats another's."""
    return np.random.default_rng(0).permutation(VOCAB)[: count * length].reshape(count, 1, length)


def stream(function, tokens, model):
    """Slow weights after each episode, and the pairs (address [T, K], value [T, D]) of the first layer in each."""
    slow, pairs, seen = start(model), [], []
    run, update = compiled(model), jax.jit(function.update)
    memory = function.init(slow)
    embed = np.asarray(slow["embed"])
    for episode in tokens:
        out = run(slow, episode)
        address = np.moveaxis(np.asarray(out.collected["address"][0, 0]), 0, 1).reshape(episode.shape[1], ROWS)
        x = embed[episode[0]]
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        pairs.append((address, x))
        slow, memory = update(slow, out.fast, out.activity, memory)
        seen.append(slow)
    return seen, pairs, memory


def holding(state, memory, gram):
    """The state with the same S [H, N, D] and G [K, K] in every layer."""
    return state.with_memories(
        own.replace(
            written=own.written.replace(S=np.broadcast_to(memory, own.written.S.shape)),
            gram=np.broadcast_to(gram, own.gram.shape),
        )
        for own in state.memories()
    )


def layer_one(slow):
    return np.asarray(slow["synapse"][0]).reshape(ROWS, WIDTH)


@pytest.mark.parametrize("rule", ["mesa", "hebbian"])
def test_least_squares_is_ridge_regression_on_all_episodes(rule):
    model = model_of(rule=rule)
    seen, pairs, memory = stream(consolidation.least_squares(RIDGE), episodes(4), model)
    keys, values = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    expected = np.linalg.solve(keys.T @ keys + RIDGE * np.eye(ROWS), keys.T @ values)
    np.testing.assert_allclose(layer_one(seen[-1]), expected, atol=1e-10)
    np.testing.assert_allclose(memory["background"][0], keys.T @ keys, atol=1e-12)
    if rule == "hebbian":
        return
    # One episode of it is what the fast weights themselves would have read.
    fast = compiled(model)(start(model), episodes(4)[0]).fast
    np.testing.assert_allclose(seen[0]["synapse"], fast.effective_memory()[:, 0], atol=1e-10)


def test_without_background_earlier_episodes_are_overwritten():
    errors = {}
    for background in (0.0, 1.0):
        seen, pairs, _ = stream(consolidation.least_squares(RIDGE, background), episodes(4), model_of())
        keys, values = pairs[0]
        errors[background] = np.linalg.norm(keys @ layer_one(seen[-1]) - values)
    assert errors[1.0] < 0.7 * errors[0.0]


def test_without_background_there_is_no_memory_and_the_mesa_rule_is_written():
    """Both layers; the episodes' own tokens come again, so that the synapse knows something of them."""
    tokens = np.concatenate([episodes(2), episodes(2)])
    alone, _, memory = stream(consolidation.least_squares(RIDGE, background=0.0), tokens, model_of())
    dense, _, _ = stream(consolidation.as_consolidation(consolidation.dense(1.0)), tokens, model_of())
    assert jax.tree.leaves(memory) == []
    for one, other in zip(alone, dense, strict=True):
        np.testing.assert_allclose(one["synapse"], other["synapse"], atol=1e-10)


def test_kalman_without_drift_is_least_squares():
    tokens = episodes(4)
    (a, _, _), (b, _, memory) = (
        stream(function, tokens, model_of())
        for function in (consolidation.least_squares(RIDGE), consolidation.kalman(RIDGE, drift=0.0))
    )
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one["synapse"], other["synapse"], atol=1e-9)
    assert np.all(np.linalg.eigvalsh(memory["covariance"]) > 0)


def test_drift_forgets_where_the_episode_writes_and_nowhere_else():
    """Closed form, for two keys at a right angle: the first is given three values, the second one."""
    slow = start(model_of())
    state = compiled(model_of(rule="hebbian"))(slow, episodes(1)[0]).fast
    first, second = (np.eye(ROWS)[i].reshape(HEADS, -1) for i in (3, 20))
    values = np.random.default_rng(1).normal(size=(4, WIDTH))

    def written(key, value):
        return holding(state, np.einsum("hn,d->hnd", key, value), np.outer(key, key))

    drift, ridge = 2.0, 0.1
    function = consolidation.kalman(ridge, drift)
    memory, information, expected = function.init(slow), ridge, np.zeros(WIDTH)
    for key, value in zip((first, first, second, first), values, strict=True):
        fast = written(key, value)
        slow, memory = function.update(slow, fast, fast.activity, memory)
        if key is first:
            information = information / (1 + drift / information)
            expected = (information * expected + value) / (information + 1)
            information += 1
    layer = np.asarray(slow["synapse"])[0]
    np.testing.assert_allclose(np.einsum("hn,hnd->d", first, layer), expected, atol=1e-10)
    np.testing.assert_allclose(
        np.einsum("hn,hnd->d", second, layer), values[2] / (1 + ridge / (1 + drift / ridge)), atol=1e-10
    )


def test_letting_go_of_one_key_changes_no_other_that_overlaps():
    """After a new value for one of many keys, which all overlap; against ordinary least squares, which keeps most of the old one."""
    slow = start(model_of())
    state = compiled(model_of(rule="hebbian"))(slow, episodes(1)[0]).fast
    rng = np.random.default_rng(2)
    keys = rng.normal(size=(20, ROWS)) + 1
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    values = rng.normal(size=(21, WIDTH))

    def after(function):
        updated, memory = slow, function.init(slow)
        for key, value in zip([*keys, keys[0]], values, strict=True):
            fast = holding(state, np.einsum("hn,d->hnd", key.reshape(HEADS, -1), value), np.outer(key, key))
            updated, memory = function.update(updated, fast, fast.activity, memory)
        return keys @ layer_one(updated)

    ridge = 1e-4
    read, ordinary = after(consolidation.kalman(ridge, drift=30.0)), after(consolidation.least_squares(ridge))
    np.testing.assert_allclose(read[1:], values[1:20], atol=0.02)
    np.testing.assert_allclose(read[0], values[20], atol=0.1)
    np.testing.assert_allclose(ordinary[0], (values[0] + values[20]) / 2, atol=0.02)


def test_null_space_leaves_what_earlier_addresses_read():
    seen, pairs, _ = stream(consolidation.null_space(RIDGE, tolerance=1e-9), episodes(4), model_of())
    for index, (keys, _values) in enumerate(pairs):
        for later in seen[index + 1 :]:
            np.testing.assert_allclose(keys @ layer_one(later), keys @ layer_one(seen[index]), atol=1e-6)
    keys, values = pairs[2]
    assert np.linalg.norm(keys @ layer_one(seen[2]) - values) < 0.5 * np.linalg.norm(values)


@pytest.mark.parametrize("name", ["least_squares", "kalman", "null_space"])
def test_only_chosen_layers_are_written_and_remembered(name):
    """With one episode, so that what one layer's synapse holds cannot change another layer's addresses."""
    factory = consolidation.FUNCTIONS.get(name, "function")
    [whole], _, remembered = stream(factory(RIDGE), episodes(1), model_of())
    for layer in range(LAYERS):
        [part], _, memory = stream(factory(RIDGE, layers=(layer,)), episodes(1), model_of())
        np.testing.assert_allclose(part["synapse"][layer], whole["synapse"][layer], atol=1e-12)
        np.testing.assert_array_equal(part["synapse"][1 - layer], 0)
        [(key, array)] = memory.items()
        np.testing.assert_allclose(array, np.asarray(remembered[key])[[layer]], atol=1e-9)
    assert np.abs(whole["synapse"]).max((1, 2, 3)).min() > 0.01
    for layers in ((), (2,), (-1,), (0, 0)):
        with pytest.raises(ConfigError, match=r"must name some of the synapse's parts, 0 … 1, each once; None for all"):
            factory(RIDGE, layers=layers).init(start(model_of()))


def test_batches_enter_as_their_mean():
    model = model_of()
    slow, tokens = start(model), episodes(2).reshape(2, 5)
    out = compiled(model)(slow, tokens)
    gram, written = np.asarray(out.fast.gram).mean(1), np.asarray(out.fast.memory).mean(1).reshape(LAYERS, ROWS, WIDTH)
    expected = np.stack([np.linalg.solve(g + RIDGE * np.eye(ROWS), w) for g, w in zip(gram, written, strict=True)])
    function = consolidation.least_squares(RIDGE)
    after, memory = function.update(slow, out.fast, out.activity, function.init(slow))
    np.testing.assert_allclose(np.reshape(after["synapse"], expected.shape), expected, atol=1e-10)
    np.testing.assert_allclose(memory["background"], gram, atol=1e-12)
    mean = apply(model, slow, tokens, state="mean").fast
    again, _ = function.update(slow, mean, mean.activity, function.init(slow))
    np.testing.assert_allclose(again["synapse"], after["synapse"], atol=1e-10)


@pytest.mark.parametrize("name", ["kalman", "least_squares", "null_space"])
def test_a_mesh_writes_the_same(name):
    model = model_of()
    slow = start(model)
    fast = compiled(model)(slow, episodes(2).reshape(2, 5)).fast
    function = consolidation.make_consolidator(consolidation.FUNCTIONS.get(name, "function")(), slow, fast)
    mesh = make_mesh(MeshConfig(data=2, neurons=4))
    there = (
        jax.device_put(slow, shardings(model.declared_slow(), mesh)),
        jax.device_put(fast, shardings(model.declared_fast(2), mesh)),
    )
    assert not there[0]["synapse"].sharding.is_fully_replicated
    results = []
    for where, state in ((slow, fast), there):
        memory = function.init(where)
        for _ in range(2):
            where, memory = function(where, state, state.activity, memory)
        results.append((where, memory))
    for here, there in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-9)


def test_what_it_cannot_do_is_refused():
    model = model_of(keep_gram=False, rule="hebbian")
    slow = start(model)
    fast = compiled(model)(slow, episodes(1)[0]).fast
    with pytest.raises(ConsolidationError, match="keep_gram=True"):
        consolidation.make_consolidator(consolidation.least_squares(), slow, fast)
    with pytest.raises(ConfigError, match="drift=-1 must be ≥ 0"):
        consolidation.kalman(drift=-1)
    for options, message in (({"ridge": 0}, "ridge=0 must"), ({"background": -1}, "background=-1 must")):
        with pytest.raises(ConfigError, match=message):
            consolidation.least_squares(**options)
    with pytest.raises(ConfigError, match="tolerance=0.0 must"):
        consolidation.from_config(ConsolidationConfig(function="null_space", options={"tolerance": 0.0}))
    assert consolidation.history_nbytes(consolidation.least_squares().init(slow)) == LAYERS * ROWS**2 * 8
    one_layer = consolidation.from_config(ConsolidationConfig(function="kalman", options={"layers": (0,)}))
    assert consolidation.history_nbytes(one_layer.init(slow)) == ROWS**2 * 8
    with pytest.raises(ConfigError, match="'dense' has no option 'layers'"):
        consolidation.from_config(ConsolidationConfig(function="dense", options={"layers": (0,)}))
    assert jnp.shape(slow["synapse"]) == (LAYERS, HEADS, ROWS // HEADS, WIDTH)
