"""The training step: loss masks, accumulation, the optimiser, sharded state."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bdh_jax.config import ConfigError
from bdh_jax.experiment import setup_of
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDH
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.tasks.base import Batch
from bdh_jax.training import optimizer as optimizers
from bdh_jax.training.config import OptimizerConfig
from bdh_jax.training.state import init_state
from bdh_jax.training.step import (
    ForwardPass,
    gradients,
    loss_fn,
    loss_weights,
    make_predict,
    make_train_step,
    put_batch,
)

_jitted = jax.jit(gradients, static_argnums=(0, 3))


def _gradients(model, slow, batch, loss, accumulation, key):
    return _jitted(model, slow, batch, ForwardPass(loss, accumulation=accumulation), key)


@pytest.fixture(scope="module")
def ragged(tiny, successor):
    """A batch whose rows differ in length and whose slices differ in weight."""
    config = tiny(batch_size=8)
    batch = successor(config).batch(0)
    lengths = np.array([6, 1, 4, 6, 2, 5, 6, 3])[:, None]
    valid = np.arange(6)[None] < lengths
    answer = (np.arange(6)[None] == lengths - 1).astype(np.float32)
    return batch._replace(valid=valid, answer=answer, loss_weights=batch.loss_weights * valid)


def _setup(config):
    mesh = make_mesh(config.mesh)
    model = BDH(config.model, mesh if mesh.size > 1 else None)
    optimizer = optimizers.make_optimizer(config.optimizer, config.train.steps)
    return mesh, model, optimizer, init_state(model, optimizer, mesh, jax.random.key(0))


def test_loss_weights_select_the_positions_they_name(ragged):
    np.testing.assert_array_equal(loss_weights(ragged, "answer"), ragged.answer)
    np.testing.assert_array_equal(loss_weights(ragged, "weights"), ragged.loss_weights)
    np.testing.assert_array_equal(loss_weights(ragged, "all"), ragged.valid.astype(np.float32))
    np.testing.assert_array_equal(loss_weights(ragged._replace(valid=None), "all"), np.ones((8, 6), np.float32))


@pytest.mark.parametrize(("name", "count"), [("answer", 8), ("all", 2)])
def test_loss_is_the_weighted_mean_cross_entropy_however_the_batch_is_cut(tiny, ragged, name, count):
    """Slices hold between 1 and 6 valid tokens a row: a mean over slices would be another number."""
    with jax.enable_x64(True):
        mesh, model, _, state = _setup(tiny(model={"dropout": 0.0, "dtype": "float64"}))
        batch = ragged._replace(reset=None)
        whole = _gradients(model, state.slow, batch, name, 1, None)
        logits = make_predict(model, mesh)(state.slow)(ragged.tokens, ragged.valid)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = -np.take_along_axis(logp, ragged.targets[..., None], axis=-1)[..., 0]
        weights = np.asarray(loss_weights(ragged, name))
        np.testing.assert_allclose(whole[0], (picked * weights).sum() / weights.sum(), rtol=1e-6)
        right = (logits.argmax(-1) == ragged.targets) * ragged.answer
        np.testing.assert_allclose(whole[1], right.sum() / ragged.answer.sum(), rtol=1e-6)
        sliced = _gradients(model, state.slow, batch, name, count, None)
        chex.assert_trees_all_close(whole, sliced, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_logits_of_the_answers_alone_are_the_same_step(tiny, ragged, accumulation):
    """Rows have one answer or two, so that for some a token that does not count fills the place."""
    with jax.enable_x64(True):
        _, model, _, state = _setup(tiny(model={"dropout": 0.0, "dtype": "float64"}))
        answer = ragged.answer.copy()
        answer[::2, 0] = 1
        batch = ragged._replace(reset=None, answer=answer)
        seen = []

        def losses(logits, batch):
            seen.append(logits.shape)
            return ForwardPass().losses(logits, batch)

        def run(answers, loss="answer"):
            ask = ForwardPass(loss, losses, accumulation, answers=answers)
            return jax.jit(gradients, static_argnums=(0, 3))(model, state.slow, batch, ask)

        chex.assert_trees_all_close(run(2), run(None), rtol=1e-12, atol=1e-15)
        chex.assert_trees_all_equal(run(2, "all"), run(None, "all"))
        assert {shape[1] for shape in seen[: len(seen) // 4]} == {2}
        assert {shape[1] for shape in seen[len(seen) // 4 :]} == {6}


def test_what_a_batch_does_not_write_is_not_written(tiny, ragged):
    """Loss, gradients and logits of a batch with ``write`` are those of calls with that mask, and not of calls without."""
    mesh, model, _, state = _setup(tiny(model={"dropout": 0.0}))
    write = np.broadcast_to(np.arange(6) != 1, ragged.tokens.shape)
    batch = ragged._replace(valid=None, reset=None, write=write)
    logits = make_predict(model, mesh)(state.slow)(batch.tokens, np.ones_like(write), write=write)
    # Operation by operation each would be compiled alone.
    apply = jax.jit(functools.partial(model.apply, state="none"))
    direct = apply({"params": state.slow}, batch.tokens, write=write).logits
    np.testing.assert_allclose(logits, direct, rtol=1e-5, atol=1e-6)
    ask = ForwardPass("answer")
    total, _ = loss_fn(model, state.slow, batch, batch.answer, ask=ask)
    expected = jnp.sum(ask.losses(direct, batch) * batch.answer)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    other, _ = loss_fn(model, state.slow, batch._replace(write=None), batch.answer, ask=ask)
    assert abs(other - total) > 1e-4 * abs(total)


def test_positions_without_weight_do_not_train(tiny, ragged):
    _, model, _, state = _setup(tiny(model={"dropout": 0.0}))
    other = ragged._replace(targets=np.where(ragged.answer > 0, ragged.targets, (ragged.targets + 3) % 12))
    for batch in (ragged, other):
        batch = batch._replace(reset=None)
        loss, _, gradient, _ = _gradients(model, state.slow, batch, "answer", 1, None)
        if batch.targets is ragged.targets:
            first = loss, gradient
    chex.assert_trees_all_equal(first, (loss, gradient))


def test_a_batch_without_any_weight_has_a_finite_loss(tiny, ragged):
    _, model, _, state = _setup(tiny(model={"dropout": 0.0}))
    nothing = ragged._replace(answer=np.zeros_like(ragged.answer), reset=None)
    loss, accuracy, gradient, _ = _gradients(model, state.slow, nothing, "answer", 2, None)
    assert loss == accuracy == 0
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


def test_every_slice_draws_its_own_dropout(tiny, successor):
    """Two equal halves: with one mask for both, the slices would have the gradient of one half."""
    config = tiny(model={"dropout": 0.5}, batch_size=2)
    _, model, _, state = _setup(config)
    half = successor(config).batch(0)
    twice = Batch(*(np.repeat(x, 2, axis=0) for x in half[:6]))._replace(valid=None, reset=None)
    key = jax.random.key(1)
    sliced, _, _, _ = _gradients(model, state.slow, twice, "all", 2, key)
    first = half._replace(valid=None, reset=None)
    total, _ = jax.jit(loss_fn, static_argnums=0)(
        model, state.slow, first, loss_weights(first, "all"), jax.random.fold_in(key, 0)
    )
    assert abs(float(sliced) - float(total) / first.tokens.size) > 1e-6


def test_dropout_differs_from_step_to_step_and_repeats_for_the_same_step(tiny, successor):
    config = tiny(model={"dropout": 0.5}, optimizer={"learning_rate": 1e-30})
    mesh, model, optimizer, _ = _setup(config)
    step = make_train_step(model, optimizer, setup_of(config), mesh)
    batch, key = put_batch(successor(config).batch(0), mesh), jax.device_put(jax.random.key(1), replicated(mesh))

    def losses():
        state = init_state(model, optimizer, mesh, jax.random.key(0))
        result = []
        for _ in range(2):
            state, metrics = step(state, batch, key)
            result.append(float(metrics["loss"]))
        return result

    first = losses()
    assert first[0] != first[1]
    assert losses() == first


def test_the_step_reports_what_it_did(tiny, ragged):
    config = tiny(batch_size=8)
    mesh, model, optimizer, state = _setup(config)
    step = make_train_step(model, optimizer, setup_of(config), mesh)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    before = jax.tree.map(np.asarray, state.slow)
    state, metrics = step(state, put_batch(ragged, mesh), key)
    assert state.step == 1
    assert metrics["tokens"] == ragged.valid.sum()
    assert all(metrics["finite"].values())
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2 / 3, rtol=1e-6)
    assert all(np.any(before[name] != np.asarray(state.slow[name])) for name in before)


def test_the_state_is_donated(tiny, successor):
    config = tiny()
    mesh, model, optimizer, state = _setup(config)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    with jax.debug_nans(False):  # looking for NaN switches donation off
        step = make_train_step(model, optimizer, setup_of(config), mesh)
        with jax.transfer_guard("disallow"):
            step(state, put_batch(successor(config).batch(0), mesh), key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.slow))


def test_only_matrices_are_decayed_and_an_untrained_synapse_is_left_alone(tiny, successor):
    fast = FastWeightConfig(synapse=True, learn_learning_rate=True, learn_decay=True)
    config = tiny(model={"fast": fast}, optimizer={"weight_decay": 0.5, "schedule": "constant"}, loss="answer")
    mesh, model, optimizer, state = _setup(config)
    assert not any("synapse" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.opt_state))
    mask = optimizers.decay_mask(state.slow)
    assert {name for name, decayed in mask.items() if not decayed} == {"fast_log_learning_rate", "fast_logit_decay"}

    # No position has weight: gradients are zero, so what moves is moved by weight decay alone.
    state = state.replace(slow={**state.slow, "synapse": state.slow["synapse"] + 1})
    before = jax.tree.map(np.asarray, state.slow)
    batch = successor(config).batch(0)
    step = make_train_step(model, optimizer, setup_of(config), mesh)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    state, _ = step(state, put_batch(batch._replace(answer=np.zeros_like(batch.answer)), mesh), key)
    for name, old in before.items():
        factor = 1 if name in ("synapse", "fast_log_learning_rate", "fast_logit_decay") else 1 - 0.5 * 1e-2 / 3
        np.testing.assert_allclose(state.slow[name], old * factor, rtol=1e-5, err_msg=name)


def test_a_trained_synapse_is_trained(tiny, successor):
    config = tiny(model={"fast": FastWeightConfig(synapse=True, train_synapse=True)})
    mesh, model, optimizer, state = _setup(config)
    step = make_train_step(model, optimizer, setup_of(config), mesh)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    state, _ = step(state, put_batch(successor(config).batch(0), mesh), key)
    assert np.any(np.asarray(state.slow["synapse"]) != 0)


@pytest.mark.parametrize("clip_norm", [None, 0.25])
def test_clipping(clip_norm):
    """Adam hides the scale of one gradient, not the ratio of two."""
    config = OptimizerConfig(clip_norm=clip_norm, weight_decay=0.0, warmup_steps=0, schedule="constant", learning_rate=1.0)
    optimizer = optimizers.make_optimizer(config, 10)
    slow = {"w": jnp.zeros((1, 1))}
    state = optimizer.init(slow)
    for gradient in (1.0, 2.0):
        update, state = optimizer.update({"w": jnp.full((1, 1), gradient)}, state, slow)
    first, second = (1.0, 2.0) if clip_norm is None else (clip_norm, clip_norm)
    m = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
    v = (0.999 * 0.001 * first**2 + 0.001 * second**2) / (1 - 0.999**2)
    np.testing.assert_allclose(update["w"], -m / np.sqrt(v), rtol=1e-4)


def test_schedule():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.25)
    rates = np.array([optimizers.make_schedule(config, 24)(step) for step in range(25)])
    np.testing.assert_allclose(rates[:5], np.array([0.4, 0.8, 1.2, 1.6, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(rates[14], (2.0 + 0.5) / 2, rtol=1e-6)
    np.testing.assert_allclose(rates[24], 0.5, rtol=1e-6)
    assert np.all(np.diff(rates[4:]) < 0)
    flat = optimizers.make_schedule(dataclasses.replace(config, schedule="constant", warmup_steps=0), 24)
    np.testing.assert_allclose([flat(0), flat(24)], 2.0)
    with pytest.raises(ConfigError, match=r"optimizer\.warmup_steps=4 must be less than train\.steps=4"):
        optimizers.make_schedule(config, 4)


def test_a_mesh_splits_the_state_and_changes_no_gradient(tiny, ragged):
    """Accumulation on a mesh: slices keep the rows where they are and the sum is the same."""
    single = tiny(model={"dropout": 0.1}, batch_size=8, accumulation=2, optimizer={"eps": 1e-3})
    spread = dataclasses.replace(single, mesh=MeshConfig(data=2, neurons=4))
    losses = {}
    for config in (single, spread):
        mesh, model, optimizer, state = _setup(config)
        step = make_train_step(model, optimizer, setup_of(config), mesh)
        key = jax.device_put(jax.random.key(1), replicated(mesh))
        losses[mesh.size] = []
        for _ in range(3):
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, put_batch(ragged, mesh), key)
            losses[mesh.size].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[1], losses[8], rtol=1e-5)
    assert state.slow["encoder"].sharding.spec == P(None, None, "neurons")
    moments = [
        leaf for path, leaf in jax.tree.leaves_with_path(state.opt_state) if "'encoder'" in jax.tree_util.keystr(path)
    ]
    assert len(moments) == 2
    assert all(leaf.addressable_shards[0].data.shape == (8, 1, 4) for leaf in moments)


def test_predict_takes_any_number_of_rows(tiny):
    config = tiny(mesh=MeshConfig(data=4))
    mesh, model, _, state = _setup(config)
    tokens = np.arange(15, dtype=np.int32).reshape(3, 5) % 12
    valid = np.arange(5)[None] < np.array([5, 2, 3])[:, None]
    plain = make_predict(BDH(config.model), make_mesh(MeshConfig()))(jax.device_get(state.slow))(tokens, valid)
    logits = make_predict(model, mesh)(state.slow)(tokens, valid)
    parts = list(make_predict(model, mesh)(state.slow)(tokens, valid, None, 4))
    assert [part.shape[1] for part in parts[:-1]] == [4] * (len(parts) - 1)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), logits, rtol=1e-6, atol=1e-6)
    assert isinstance(logits, np.ndarray)
    np.testing.assert_allclose(logits[valid], plain[valid], rtol=1e-4, atol=1e-6)
