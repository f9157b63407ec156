"""Hooks of the training step: what they are given, that gradients flow through them, and that their history is kept."""

from __future__ import annotations

import dataclasses
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.experiment import load, setup_of
from bdh_jax.models.bdh import BDH
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.training import loop
from bdh_jax.training.config import TrainConfig
from bdh_jax.training.hooks import Hooks, Prepare, Update, make_hooks, named_hooks
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state, restored_state, saved_trees
from bdh_jax.training.step import ForwardPass, gradients, loss_fn, loss_weights, make_train_step, put_batch
from tests.compiled import apply, init


def remember(model, *, rate=1.0, every=1):
    """Adds to a bias-like row of the embedding what the codes of the batch say, and remembers how often."""

    def update(slow, taps, batch, history):
        used = rate * taps.collected["code"].mean()
        return {**slow, "embed": slow["embed"].at[0, 0].add(used)}, {"seen": history["seen"] + 1, "tokens": batch.tokens}

    def init(slow):
        return {"seen": jnp.zeros((), jnp.int32), "tokens": jnp.zeros((4, 6), jnp.int32)}

    return Hooks(updates=(Update("remember", init, update, collect=("code",), every=every),))


def grow(model):
    """Adds to a number of the embedding more from step to step: what it remembers decides what it does."""

    def update(slow, taps, batch, history):
        return {**slow, "embed": slow["embed"].at[0, 0].add(history)}, history + 0.1

    return Hooks(updates=(Update("grow", lambda slow: jnp.zeros(()), update),))


def damp(model, *, factor=0.5):
    """Reads with a smaller decoder."""
    return Hooks(prepare=(Prepare(lambda slow, batch: {**slow, "decoder": factor * slow["decoder"]}),))


def run_steps(config, task, count):
    """State and metrics after so many steps."""
    setup, mesh = setup_of(config), make_mesh(config.mesh)
    model = BDH(config.model, mesh if mesh.size > 1 else None)
    hooks, optimizer = make_hooks(setup.hooks, model), make_optimizer(config.optimizer, config.train.steps)
    step = make_train_step(model, optimizer, setup, mesh, hooks=hooks)
    state = init_state(model, optimizer, mesh, jax.random.key(0), hooks)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    for number in range(count):
        state, metrics = step(state, put_batch(task.batch(number), mesh), key)
    return state, metrics


def named(*names):
    return {"hooks": tuple(f"{__name__}:{name}" for name in names)}


def test_an_update_sees_the_step_s_own_forward_pass(tiny, successor):
    """And works on what the optimiser made: the same step without it differs by what it added."""
    plain = tiny(model={"dropout": 0.0})
    config = tiny(model={"dropout": 0.0}, **named("remember"), hook_options={"rate": 2.0})
    task, model = successor(config), BDH(config.model)
    slow = init_state(model, make_optimizer(config.optimizer, 6), make_mesh(config.mesh), jax.random.key(0)).slow
    codes = apply(model, slow, task.batch(0).tokens, collect=("code",)).collected["code"]
    with_hook, without = (run_steps(c, task, 1)[0].slow for c in (config, plain))
    added = np.asarray(with_hook["embed"]) - np.asarray(without["embed"])
    np.testing.assert_allclose(added[0, 0], 2 * np.mean(codes), rtol=1e-4)
    assert np.count_nonzero(added) == 1


def test_an_update_runs_every_so_many_steps_and_remembers(tiny, successor):
    config = tiny(**named("remember"), hook_options={"every": 3})
    task = successor(config)
    state, metrics = run_steps(config, task, 5)
    assert state.history["remember"]["seen"] == 1
    np.testing.assert_array_equal(state.history["remember"]["tokens"], task.batch(2).tokens)
    assert "remember:slow['embed']" in metrics["finite"]


@pytest.mark.parametrize("count", [2, 4])
def test_taps_of_slices_are_those_of_the_whole_batch(tiny, successor, count):
    """What is collected has its rows in order, and the state is the mean over all of them."""
    config = tiny(model={"dropout": 0.0, "n_layer": 2})
    model, batch = BDH(config.model), successor(config).batch(0)._replace(valid=None, reset=None)
    slow = model.init_slow(jax.random.key(0))
    whole, sliced = (
        jax.jit(gradients, static_argnums=(0, 3))(
            model, slow, batch, ForwardPass("all", accumulation=slices, state="mean", collect=("code", "read"))
        ).taps
        for slices in (1, count)
    )
    assert whole.collected["code"].shape[1] == 4
    chex.assert_trees_all_close(whole, sliced, rtol=1e-5, atol=1e-7)
    assert np.abs(whole.collected["read"]).max() > 1e-3


@pytest.mark.full
def test_gradients_flow_through_what_prepares(tiny, successor):
    config = tiny(model={"dropout": 0.0})
    model, batch = BDH(config.model), successor(config).batch(0)._replace(valid=None, reset=None)
    slow = model.init_slow(jax.random.key(0))
    prepared = gradients(model, slow, batch, ForwardPass("all", prepare=damp(model).prepare))
    by_hand = gradients(model, {**slow, "decoder": 0.5 * slow["decoder"]}, batch, ForwardPass("all"))
    np.testing.assert_allclose(prepared.loss, by_hand.loss, rtol=1e-6)
    np.testing.assert_allclose(prepared.gradient["decoder"], 0.5 * by_hand.gradient["decoder"], rtol=1e-5, atol=1e-8)


@pytest.mark.full
def test_what_prepares_may_leave_a_batch_alone(tiny, successor):
    config = tiny(model={"dropout": 0.0})
    model, batch = BDH(config.model), successor(config).batch(0)._replace(valid=None, reset=None)
    slow = model.init_slow(jax.random.key(0))
    (hook,) = damp(model).prepare
    ask = ForwardPass("all", prepare=(dataclasses.replace(hook, when=lambda batch: batch.extra is not None),))
    losses = [gradients(model, slow, b, ask).loss for b in (batch, batch._replace(extra=np.zeros(4)))]
    assert losses[0] == gradients(model, slow, batch, ForwardPass("all")).loss
    assert losses[0] != losses[1]


def test_a_killed_run_resumes_with_the_history_of_its_hooks(tiny, successor, kill_at, tmp_path):
    setup = setup_of(tiny(**named("remember", "grow", "damp"), hook_options={"rate": 0.1, "factor": 0.7}))
    config = tiny()
    loop.train(setup, successor(config), tmp_path / "whole")
    with pytest.raises(loop.Interrupted):
        loop.train(setup, successor(config, kill_at(signal.SIGTERM, "batch", 2)), tmp_path / "cut")
    loop.train(setup, successor(config), tmp_path / "cut")
    a, b = (load(tmp_path / name, "last")[1] for name in ("whole", "cut"))
    chex.assert_trees_all_equal(a, b)


def test_what_is_saved_comes_back(tiny):
    """The consolidation's history lies where it always did, those of other hooks beside it."""
    config = tiny(**named("remember"))
    hooks = make_hooks(setup_of(config).hooks, BDH(config.model))
    target = init_state(
        BDH(config.model), make_optimizer(config.optimizer, 6), make_mesh(config.mesh), jax.random.key(0), hooks
    )
    target = target.replace(history=target.history | {"consolidation": jnp.ones(3), "nothing": ()})
    trees = saved_trees(target)
    assert trees["optimizer"].keys() == {"step", "state", "memory", "history"}
    np.testing.assert_array_equal(trees["optimizer"]["memory"], 1)
    assert trees["optimizer"]["history"].keys() == {"remember"}
    back = restored_state(trees, target)
    assert jax.tree.structure(back) == jax.tree.structure(target)
    chex.assert_trees_all_equal(back, target)


def test_a_history_is_spread_as_its_axes_say(tiny):
    config = tiny(batch_size=8)
    mesh = make_mesh(MeshConfig(data=2, neurons=4))
    updates = (
        Update(
            "rows",
            lambda slow: jnp.zeros((1, 1, 16)),
            lambda *given: given[::3],
            axes=lambda slow: ("layer", "head", "neuron"),
        ),
        Update("embed", lambda slow: jnp.zeros(slow["embed"].shape), lambda *given: given[::3]),
    )
    optimizer = make_optimizer(config.optimizer, 6)
    state = init_state(BDH(config.model, mesh), optimizer, mesh, jax.random.key(0), Hooks(updates=updates))
    assert state.history["rows"].addressable_shards[0].data.shape == (1, 1, 4)
    assert state.history["embed"].sharding.is_fully_replicated


class Doubled:
    """A model whose output names losses of its own."""

    def __init__(self, model, **losses):
        self.config, self.mesh, self._model, self._losses = model.config, model.mesh, model, losses
        self.declared_slow = model.declared_slow

    def apply(self, *arguments, **more):
        return self._model.apply(*arguments, **more).replace(losses=self._losses)


@pytest.mark.parametrize("slices", [1, 2])
def test_losses_that_a_model_names_are_added(tiny, successor, slices):
    config = tiny(model={"dropout": 0.0})
    model, batch = BDH(config.model), successor(config).batch(0)._replace(valid=None, reset=None)
    slow, ask = init(model, 0), ForwardPass("weights", accumulation=slices)
    plain, added = (
        jax.jit(lambda slow, asked=asked: gradients(asked, slow, batch, ask).loss)(slow)
        for asked in (model, Doubled(model, a=0.25, b=0.5))
    )
    np.testing.assert_allclose(added, plain + 0.75, rtol=1e-5)


def test_the_loss_is_the_task_s(tiny, successor, tmp_path):
    config = tiny(model={"dropout": 0.0})
    model, batch = BDH(config.model), successor(config).batch(0)._replace(valid=None, reset=None)
    slow, weights = init(model, 0), loss_weights(batch, "weights")
    squares = ForwardPass(losses=lambda logits, batch: jnp.square(logits).sum(axis=-1))
    total, _ = jax.jit(lambda slow: loss_fn(model, slow, batch, weights, ask=squares))(slow)
    logits = np.asarray(apply(model, slow, batch.tokens).logits)
    np.testing.assert_allclose(total, (np.square(logits).sum(-1) * weights).sum(), rtol=1e-4)

    asked = []
    task = successor(config)
    losses = task.losses
    task.losses = lambda logits, batch: asked.append(logits.shape) or losses(logits, batch)
    loop.train(setup_of(config), task, tmp_path)
    assert asked == [(4, 6, 12)]


def no_hooks(model):
    return None


def loses_a_leaf(model):
    return Hooks(
        updates=(Update("lose", lambda slow: (), lambda slow, taps, batch, history: ({"embed": slow["embed"]}, ())),)
    )


def returns_no_pair(model):
    return Hooks(updates=(Update("lone", lambda slow: (), lambda slow, taps, batch, history: slow),))


def explodes(model):
    return Hooks(
        updates=(
            Update("burst", lambda slow: (), lambda slow, taps, batch, history: ({**slow, "embed": slow["embed"] / 0}, ())),
        )
    )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"hooks": ("remember",)}, "must be module:factory"),
        ({"hooks": ("a:b", "a:b")}, "named once"),
        (named("nothing_here"), "has no 'nothing_here'"),
        ({"hooks": ("no_such_module:f",)}, "train.hooks='no_such_module:f': there is no module 'no_such_module'"),
        (
            named("remember") | {"hook_options": {"rat": 1.0}},
            r"train\.hook_options\.rat: none of train\.hooks=.* has this option",
        ),
        (named("remember") | {"hook_options": {"model": 1.0}}, r"train\.hook_options\.model: none of"),
        (named("remember") | {"hook_options": {"every": 0}}, "every=0 of hook 'remember' must be at least 1"),
        (named("no_hooks"), "no_hooks made a NoneType; a hook's factory returns"),
        (named("loses_a_leaf"), r"hook 'lose' returned no slow\['decoder'\]"),
        (named("returns_no_pair"), r"hook 'lone' returned a dict; it must return the pair"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tiny, successor, tmp_path, train, message):
    with pytest.raises(ConfigError, match=message):
        loop.train(setup_of(tiny(**train)), successor(tiny()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_option_of_two_hooks_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"hook_options\.every is an option of .*:remember and of .*:also"):
        named_hooks(TrainConfig(**named("remember", "also"), hook_options={"every": 2}))


def also(model, *, every=1):
    return Hooks()


def test_an_update_that_is_not_finite_is_named(tiny, successor, tmp_path):
    message = r"hook 'burst' left slow\['embed'\] NaN or infinite at step 1\. .*Try a smaller optimizer\.learning_rate"
    with jax.debug_nans(False), pytest.raises(loop.NonFiniteError, match=message):
        loop.train(setup_of(tiny(**named("explodes"))), successor(tiny()), tmp_path / "run")


def test_hooks_that_cannot_go_together_are_refused(tiny):
    update = Update("same", lambda slow: (), lambda slow, taps, batch, history: (slow, history))
    with pytest.raises(ConfigError, match="two hooks are called 'same'"):
        Hooks(updates=(update, update))
    reader = BDH(tiny().model)
    with pytest.raises(ConfigError, match="two hooks name a model to read with"):
        Hooks(prepare=(Prepare(lambda slow, batch: slow, reader),) * 2)
    with pytest.raises(ConfigError, match="state of hook 'same'='full' is not one of 'none', 'mean'"):
        dataclasses.replace(update, state="full")
    with pytest.raises(ConfigError, match="'two words' must be a word"):
        dataclasses.replace(update, name="two words")
    setup = dataclasses.replace(setup_of(tiny()), train=TrainConfig(carry_state=True, batch_size=4))
    hooks = Hooks(updates=(dataclasses.replace(update, state="mean"),))
    with pytest.raises(ConfigError, match=r"train\.carry_state=True with hook 'same'"):
        make_train_step(reader, make_optimizer(setup.optimizer, 10), setup, make_mesh(setup.mesh), hooks=hooks)
    with pytest.raises(ConfigError, match="2 slices returns no state to go on from"):
        ForwardPass(accumulation=2, state="full")


def test_rows_that_the_mesh_does_not_divide_are_named(successor, tiny):
    batch = successor(tiny()).batch(0)
    mesh = make_mesh(MeshConfig(data=2))
    with pytest.raises(ConfigError, match="mesh.data=2 does not divide the 3 rows of a batch's extra"):
        put_batch(batch._replace(extra={"more": np.zeros((3, 2))}), mesh)
    with pytest.raises(ConfigError, match="mesh.data=2 does not divide the 3 rows of a batch;"):
        put_batch(type(batch)(*(array[:3] for array in batch[:6])), mesh)
