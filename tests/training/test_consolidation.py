"""Consolidation inside the training step: when, of what, and what survives a restart or a mesh."""

from __future__ import annotations

import dataclasses
import itertools
import signal

import chex
import jax
import numpy as np
import pytest

from bdh_jax import consolidation
from bdh_jax.config import ConfigError
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.experiment import load, setup_of
from bdh_jax.models.bdh import BDH
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.training import optimizer as optimizers
from bdh_jax.training.hooks import NO_HOOKS, make_hooks
from bdh_jax.training.loop import Interrupted, NonFiniteError, train
from bdh_jax.training.state import abstract_state, init_state
from bdh_jax.training.step import make_train_step, put_batch
from tests.compiled import apply

DENSE = ConsolidationConfig(function="dense", options={"rate": 0.5})


def steps(config, task, count):
    """States before the first and after every step, as NumPy, and the metrics."""
    mesh = make_mesh(config.mesh)
    model = BDH(config.model, mesh if mesh.size > 1 else None)
    optimizer = optimizers.make_optimizer(config.optimizer, config.train.steps)
    setup = setup_of(config)
    hooks = make_hooks(setup.hooks, model)
    step = make_train_step(model, optimizer, setup, mesh, hooks=hooks)
    state = init_state(model, optimizer, mesh, jax.random.key(0), hooks)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    states, metrics = [jax.tree.map(np.array, state)], []
    for number in range(count):
        with jax.transfer_guard("disallow"):
            state, seen = step(state, put_batch(task.batch(number), mesh), key)
        states.append(jax.tree.map(np.array, state))
        metrics.append(jax.device_get(seen))
    return states, metrics, state


def test_the_step_writes_what_its_episodes_left(tiny, successor):
    """The mean over the batch of the fast weights, formed with the weights that the step started from."""
    config = tiny(model={"dropout": 0.0}, consolidation=DENSE)
    task = successor(config)
    states, _, _ = steps(config, task, 2)
    for number in range(2):
        before, after = states[number].slow, states[number + 1].slow
        fast = apply(BDH(config.model), before, task.batch(number).tokens).fast
        expected = before["synapse"] + 0.5 * np.asarray(fast.memory).mean(axis=1)
        np.testing.assert_allclose(after["synapse"], expected, rtol=1e-5, atol=1e-6)
        assert np.abs(after["synapse"] - before["synapse"]).max() > 0.01


def test_every_k_steps(tiny, successor):
    config = tiny(consolidation=dataclasses.replace(DENSE, every=3))
    states, _, _ = steps(config, successor(config), 6)
    changed = [bool(np.any(a.slow["synapse"] != b.slow["synapse"])) for a, b in itertools.pairwise(states)]
    assert changed == [False, False, True, False, False, True]


def test_accumulation_consolidates_the_whole_batch(tiny, successor):
    whole, sliced = (
        tiny(model={"dropout": 0.0}, optimizer={"eps": 1e-3}, consolidation=DENSE, accumulation=count) for count in (1, 4)
    )
    (a, _, _), (b, _, _) = (steps(config, successor(config), 2) for config in (whole, sliced))
    np.testing.assert_allclose(a[2].slow["synapse"], b[2].slow["synapse"], rtol=1e-4, atol=1e-6)


def test_a_mesh_changes_nothing(tiny, successor):
    """With a function that has a memory; tests/consolidation has all functions on a mesh."""
    single = tiny(
        batch_size=8, optimizer={"eps": 1e-3}, consolidation=ConsolidationConfig(function="cascade", options={"rate": 0.5})
    )
    spread = dataclasses.replace(single, mesh=MeshConfig(data=2, neurons=4))
    (a, _, _), (b, _, state) = (steps(config, successor(config), 3) for config in (single, spread))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.slow["synapse"] != 0, other.slow["synapse"] != 0)
        np.testing.assert_allclose(one.slow["synapse"], other.slow["synapse"], rtol=1e-4, atol=1e-5)
    assert state.slow["synapse"].addressable_shards[0].data.shape == (1, 1, 4, 8)
    for leaf in jax.tree.leaves(state.history):
        if leaf.ndim:
            assert leaf.addressable_shards[0].data.size == leaf.size // 4


def test_a_killed_run_resumes_with_its_memory(tiny, successor, kill_at, tmp_path):
    """To the same bits; the memory decides which rows the later steps write."""
    config = tiny(steps=12, consolidation=ConsolidationConfig(function="tfidf_rows", options={"fraction": 0.2}))
    whole = train(setup_of(config), successor(config), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 7)), tmp_path / "cut")
    resumed = train(setup_of(config), successor(config), tmp_path / "cut")
    assert resumed["evaluation"] == whole["evaluation"]
    (_, a), (_, b) = (load(tmp_path / name, "last") for name in ("whole", "cut"))
    chex.assert_trees_all_equal(a, b)
    assert np.any(np.asarray(a["synapse"]) != 0)


def explode(slow, fast, activity):
    return {**slow, "synapse": slow["synapse"] + 1e38 * fast.memory.mean(axis=1) * 1e38}


def test_a_write_that_is_not_finite_stops_the_run(tiny, successor, tmp_path):
    config = tiny(consolidation=ConsolidationConfig(function=f"{__name__}:explode"))
    message = r"explode' left slow\['synapse'\] NaN or infinite at step 1\. .*Try a smaller consolidation\.options\.rate"
    with jax.debug_nans(False), pytest.raises(NonFiniteError, match=message):
        train(setup_of(config), successor(config), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))


def forget_a_leaf(slow, fast, activity):
    return {name: leaf for name, leaf in slow.items() if name != "embed"}


def looks_at_attention(slow, fast, activity):
    return {**slow, "synapse": slow["synapse"] + fast.attention.mean(axis=1)}


@pytest.mark.parametrize(
    ("function", "synapse", "message"),
    [
        (
            f"{__name__}:looks_at_attention",
            True,
            r"a part of the state that is None here.*Present are fast\.memory, fast\.activity",
        ),
        ("row_top", True, "'row_top' is not a consolidation function"),
        (f"{__name__}:forget_a_leaf", True, r"no slow\['embed'\]"),
        ("dense", False, "no 'synapse'.*synapse=True"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tiny, successor, tmp_path, function, synapse, message):
    config = tiny(consolidation=ConsolidationConfig(function=function))
    fast = dataclasses.replace(config.model.fast, synapse=synapse)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, fast=fast))
    with pytest.raises(ConfigError, match=message):
        train(setup_of(config), successor(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _remember(slow, fast, activity, memory):
    return slow, jax.tree.map(lambda leaf: leaf + 1, memory)


UNNAMED = consolidation.Consolidation(lambda slow: jax.numpy.zeros((3, *slow["synapse"].shape)), _remember)
NAMED = consolidation.Consolidation(lambda slow: {"count": jax.numpy.zeros(1), "embed": jax.numpy.zeros((3, 3))}, _remember)


@pytest.mark.parametrize("memory", ["UNNAMED", "NAMED"])
def test_a_mesh_holds_any_memory_whole(tiny, memory):
    """Called like an array of the state, or not at all, and of sizes that no mesh divides."""
    config = tiny(batch_size=8, consolidation=ConsolidationConfig(function=f"{__name__}:{memory}"))
    mesh = make_mesh(MeshConfig(data=2, neurons=4))
    optimizer = optimizers.make_optimizer(config.optimizer, config.train.steps)
    model = BDH(config.model, mesh)
    state = abstract_state(model, optimizer, mesh, make_hooks(setup_of(config).hooks, model))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.history))
    assert not state.slow["synapse"].sharding.is_fully_replicated


def test_none_costs_nothing(tiny):
    config = tiny()
    assert make_hooks(setup_of(config).hooks, BDH(config.model)) == NO_HOOKS
    assert consolidation.history_nbytes(()) == 0
