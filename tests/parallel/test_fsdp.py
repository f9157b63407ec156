"""Parameters and optimiser state split over ``data`` as well: training is that of one device, and no device holds what it need not.

Runs on the 8 CPU devices that ``tests/conftest.py`` asks for.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bdh_jax import BDH
from bdh_jax.experiment import ExperimentConfig, setup_of
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.parallel.axes import shardings, split_weight
from bdh_jax.parallel.mesh import MESH_AXES, MeshConfig, make_mesh, replicated
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state, state_from
from bdh_jax.training.step import make_train_step, put_batch
from tests.parallel.test_mesh import STEPS, batch, experiment, trained


def _trained(config: ExperimentConfig):
    """Losses of the steps, the state before and after them."""
    mesh, optimizer = make_mesh(config.mesh), make_optimizer(config.optimizer, STEPS)
    model = BDH(config.model, mesh)
    step = make_train_step(model, optimizer, setup_of(config), mesh)
    state = init_state(model, optimizer, mesh, jax.random.key(0), fsdp=True)
    start = jax.tree.map(np.asarray, state)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, put_batch(batch(number), mesh), key)
        losses.append(float(metrics["loss"]))
    return np.array(losses), start, state


@pytest.mark.parametrize("mesh", [MeshConfig(data=4, heads=2, fsdp=True), pytest.param(MeshConfig(data=8, fsdp=True), marks=pytest.mark.full)], ids=str)  # fmt: skip
def test_training_is_that_of_one_device(mesh):
    """With dropout, learned rates and a synapse that is not trained; tolerances as in tests/parallel/test_mesh.py."""
    losses, start, state = _trained(dataclasses.replace(experiment(), mesh=mesh))
    expected, expected_start, expected_state, _ = trained(1, 1, 1)
    chex.assert_trees_all_equal(start, expected_start)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    rate = "fast_logit_decay"
    moved = np.abs(expected_state.slow[rate] - expected_start.slow[rate]).max()
    np.testing.assert_allclose(state.slow[rate], expected_state.slow[rate], atol=1e-3 * moved)
    # Every weight but the rates of the heads is there once only, after the steps as before, and so is all that Adam knows of it.
    (adam,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(part))
    for tree in (state.slow, adam.mu, adam.nu):
        for name, leaf in tree.items():
            parts = {str(shard.index) for shard in leaf.addressable_shards}
            assert len(parts) == (mesh.heads if leaf.ndim == 1 else mesh.data if name in ("embed", "lm_head") else 8), name


def _is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def test_weights_of_another_run_are_split_as_they_are_read():
    config = dataclasses.replace(experiment(), mesh=MeshConfig(data=4, fsdp=True))
    mesh, optimizer = make_mesh(config.mesh), make_optimizer(config.optimizer, STEPS)
    model = BDH(config.model, mesh)
    slow = jax.device_get(model.init_slow(jax.random.key(3)))
    state = state_from(model, optimizer, mesh, slow, fsdp=True)
    assert state.slow["encoder"].sharding.spec == P(None, None, "data")
    chex.assert_trees_all_equal(jax.device_get(state.slow), slow)


@pytest.mark.parametrize(
    ("axes", "shape", "over"),
    [
        (("model", "head", "neuron"), (6, 4, 16), [(), ("heads",), ("neurons", "data")]),
        (("vocab", "model"), (12, 6), [("data",), ()]),
        (("vocab", "model"), (13, 8), [(), ("data",)]),  # the first that divides
        (("model", "head", "neuron"), (8, 4, 10), [("data",), ("heads",), ("neurons",)]),
        (("model", "model"), (8, 8), [("data",), ()]),  # not twice
        (("head",), (4,), [("heads",)]),
        (("vocab", "model"), (13, 7), [(), ()]),
    ],
    ids=str,
)
def test_which_axis_is_split(axes, shape, over):
    assert split_weight(axes, shape, dict(zip(MESH_AXES, (4, 1, 2, 2), strict=True))) == over
    assert all("data" not in names for names in split_weight(axes, shape, dict(zip(MESH_AXES, (1, 1, 2, 2), strict=True))))


def test_a_gpt_is_split_too():
    model, mesh = GPTConfig(d_model=16, n_head=2, n_layer=1).build(), make_mesh(MeshConfig(data=8))
    placed = shardings(model.declared_slow(), mesh, fsdp=True)
    assert all("data" in leaf.spec for leaf in jax.tree.leaves(placed))
    assert placed["layer0"]["mlp_in"]["kernel"].spec == P(None, "data")
