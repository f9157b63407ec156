"""Consolidation-aware training: what fills the synapse for one batch, and that it is gone after it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.consolidation import least_squares
from bdh_jax.experiment import ExperimentConfig, setup_of
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.lifelong import aware
from bdh_jax.lifelong.aware import AwareFactsConfig, fill, fill_synapse
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.tasks.facts import VOCABULARY, combinations
from bdh_jax.training import optimizer as optimizers
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.state import init_state
from bdh_jax.training.step import ForwardPass, gradients, make_train_step, put_batch
from tests.compiled import apply, init

FACTS = AwareFactsConfig(pairs=4, queries=2, known=8, known_rows=1, fill_every=2, fill_episodes=6, fill_rows=2)


fill_by = jax.jit(fill_synapse, static_argnums=(0, 3, 4))
derivatives = jax.jit(gradients, static_argnums=(0, 3))


def experiment(*, data=1, n_layer=1, train=(), **fast):
    fast = FastWeightConfig(**{"learning_rate": 0.7, "decay": 0.9, "address_source": "gated", "synapse": True, **fast})
    return ExperimentConfig(
        task=FACTS,
        model=BDHConfig(
            vocab_size=VOCABULARY, n_layer=n_layer, d_model=16, n_head=2, n_neurons=32, dropout=0.0, init_std=0.1, fast=fast
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        train=TrainConfig(**{"steps": 6, "batch_size": 8, "hooks": ("bdh_jax.lifelong.aware:fill",), **dict(train)}),
        mesh=MeshConfig(data=data),
    )


def batch_of(config, step):
    return config.task.make(seed=config.seed, batch_size=config.train.batch_size).batch(step)


def start(config):
    """The step, and what the first one takes."""
    mesh, setup = make_mesh(config.mesh), setup_of(config)
    model = BDH(config.model, mesh if mesh.size > 1 else None)
    optimizer = optimizers.make_optimizer(config.optimizer, config.train.steps)
    step = make_train_step(model, optimizer, setup, mesh, hooks=make_hooks(setup.hooks, model))
    state = init_state(model, optimizer, mesh, jax.random.key(0))
    return step, state, put_batch(batch_of(config, 0), mesh), jax.device_put(jax.random.key(1), replicated(mesh))


@functools.cache
def run(config):
    """State after three steps, the first and the last of which fill the synapse, and the losses."""
    step, state, batch, key = start(config)
    losses = []
    for number in (1, 2, 3):
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, batch, key)
        losses.append(float(metrics["loss"]))
        batch = put_batch(batch_of(config, number), make_mesh(config.mesh))
    return state, losses


def test_some_batches_ask_for_what_fills_the_synapse():
    """In fresh episodes on their last rows; nothing of it stands in the batch. Others are those of the facts alone."""
    config = AwareFactsConfig(fill_every=3, fill_episodes=5, fill_rows=2, known=32, known_rows=1)
    task = config.make(seed=0, batch_size=8)
    seen = set(map(tuple, combinations().seen.tolist()))
    for step in range(7):
        batch = task.batch(step)
        if step % 3:
            assert batch.extra is None
            continue
        assert batch.extra.shape == (config.extra_rows, 48)
        said = {tuple(fact[:2]): fact[2] for fact in batch.extra.reshape(80, 3).tolist()}
        assert len(said) == 80
        assert said.keys() <= seen
        for row in (6, 7):
            keys = [tuple(key) for key in batch.tokens[row].reshape(-1, 2).tolist()]
            assert batch.targets[row, 1::2].tolist() == [said[key] for key in keys]
            assert batch.reset[row, 2::2].all()
        assert batch.answer[6:, 1::2].all()
        assert tuple(batch.tokens[5, :2].tolist()) not in said


def test_it_is_what_least_squares_leaves_of_the_episodes_one_by_one():
    """In one layer, where what the synapse holds changes no address and no value."""
    config = experiment()
    tokens = batch_of(config, 0).extra
    slow = init(BDH(config.model), 0)
    filled = fill_by(BDH(config.model), slow, tokens, 0.1)

    fast = dataclasses.replace(config.model.fast, learning_rate=1.0, decay=1.0, keep_gram=True)
    writer = BDH(dataclasses.replace(config.model, fast=fast))
    regression = least_squares(0.1)
    expected, memory = slow, regression.init(slow)
    update = jax.jit(regression.update)
    for episode in tokens:
        written = apply(writer, expected, episode[None]).fast
        # One after the other the ridge would be added six times; all of it counts at the first.
        expected, memory = update(expected, written, written.activity, memory)
    for name in slow:
        if name != "synapse":
            np.testing.assert_array_equal(filled[name], slow[name])
    assert np.abs(filled["synapse"]).max() > 0.1
    np.testing.assert_allclose(filled["synapse"], expected["synapse"], rtol=1e-3, atol=1e-4)


def test_what_the_synapse_held_before_is_left_out():
    config = experiment()
    tokens = batch_of(config, 0).extra
    slow = init(BDH(config.model), 0)
    other = {**slow, "synapse": jnp.ones_like(slow["synapse"])}
    one, two = (fill_by(BDH(config.model), start, tokens, 0.1)["synapse"] for start in (slow, other))
    np.testing.assert_array_equal(one, two)


def test_only_the_layers_that_are_named_are_filled():
    config = experiment(n_layer=2)
    tokens = batch_of(config, 0).extra
    slow = init(BDH(config.model), 0)
    both, second = (np.asarray(fill_by(BDH(config.model), slow, tokens, 0.1, layers)["synapse"]) for layers in ((), (1,)))
    assert np.abs(both[0]).max() > 0.1
    np.testing.assert_array_equal(second[0], 0)
    np.testing.assert_array_equal(second[1], both[1])


def test_a_batch_with_fill_is_trained_beside_it_and_leaves_the_synapse_alone():
    config = experiment()
    model, batch = BDH(config.model), batch_of(config, 0)
    state, losses = run(config)
    slow = start(config)[1].slow
    filled = fill_by(model, slow, batch.extra, 0.1)
    expected, without = (float(derivatives(model, slow, batch._replace(extra=None)).loss) for slow in (filled, slow))
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert abs(losses[0] - without) > 1e-3
    assert batch_of(config, 1).extra is None
    np.testing.assert_array_equal(state.slow["synapse"], 0)


def test_gradients_flow_through_what_fills():
    """Against finite differences, in double precision: how the episodes are written is trained, too."""
    with jax.enable_x64(True):
        config = experiment()
        model = BDH(dataclasses.replace(config.model, dtype="float64"))
        batch = batch_of(config, 0)
        slow = init(model, 0)
        gradient = derivatives(model, slow, batch, ForwardPass(prepare=fill(model).prepare)).gradient

        def loss(slow, filled_by):
            filled = fill_synapse(model, filled_by, batch.extra, 0.1)["synapse"]
            return gradients(model, {**slow, "synapse": filled}, batch._replace(extra=None)).loss

        loss = jax.jit(loss)
        for name in ("encoder", "embed"):
            direction = jax.random.normal(jax.random.key(1), slow[name].shape)
            up, down = ({**slow, name: slow[name] + step * direction} for step in (1e-6, -1e-6))
            whole = (loss(up, up) - loss(down, down)) / 2e-6
            np.testing.assert_allclose(jnp.vdot(gradient[name], direction), whole, rtol=1e-5)
            held = (loss(up, slow) - loss(down, slow)) / 2e-6
            assert abs(whole - held) > 1e-2 * abs(whole)


def test_slices_of_a_batch_are_filled_alike():
    np.testing.assert_allclose(run(experiment(train={"accumulation": 2}))[1], run(experiment())[1], rtol=1e-5)


def test_ridge_and_layers_are_those_of_the_configuration(monkeypatch):
    asked = []

    def ask(model, slow, tokens, *more):
        asked.append(more)
        return fill_synapse(model, slow, tokens, *more)

    monkeypatch.setattr(aware, "fill_synapse", ask)
    step, *arguments = start(experiment(train={"hook_options": {"ridge": 10.0, "layers": (0,)}}))
    step.lower(*arguments)
    assert asked == [(10.0, (0,))]


def test_a_mesh_changes_nothing():
    np.testing.assert_allclose(run(experiment(data=2))[1], run(experiment())[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("fast", "message"),
    [
        ({"synapse": False}, "the model has none; set model.fast.synapse=True"),
        ({"enabled": False}, "the model has none; set model.fast.synapse=True"),
        ({"train_synapse": True}, "set model.fast.train_synapse=False"),
        ({"learn_decay": True}, "set fast.learn_learning_rate and fast.learn_decay to False"),
    ],
)
def test_models_that_cannot_be_filled_are_refused(fast, message):
    with pytest.raises(ConfigError, match=message):
        run(experiment(**fast))


def test_neurons_on_several_devices_are_refused():
    config = dataclasses.replace(experiment(), mesh=MeshConfig(neurons=2))
    with pytest.raises(ConfigError, match=r"mesh\.neurons=2 splits the rows .* set it to 1"):
        run(config)
