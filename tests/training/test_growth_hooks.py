"""Training new heads alone: everything else is what it was, to the bit."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.experiment import setup_of
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.base import named_weights
from bdh_jax.models.bdh import BDH
from bdh_jax.models.gru import GRUConfig
from bdh_jax.parallel.mesh import make_mesh, replicated
from bdh_jax.training.growth_hooks import new_heads
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state
from bdh_jax.training.step import make_train_step, put_batch

HEADS, OLD = 3, 2
MODEL = {"n_head": HEADS, "n_neurons": 24, "dropout": 0.0, "fast": FastWeightConfig(enabled=False)}


def test_after_steps_of_training_the_new_heads_alone_have_changed(tiny, successor):
    config = tiny(
        model=MODEL,
        optimizer={"weight_decay": 0.1},
        hooks=("bdh_jax.training.growth_hooks:new_heads",),
        hook_options={"old_heads": OLD},
    )
    setup, mesh, task, model = setup_of(config), make_mesh(config.mesh), successor(config), BDH(config.model)
    hooks, optimizer = make_hooks(setup.hooks, model), make_optimizer(config.optimizer, config.train.steps)
    step = make_train_step(model, optimizer, setup, mesh, hooks=hooks)
    state = init_state(model, optimizer, mesh, jax.random.key(0), hooks)
    before = jax.tree.map(np.asarray, jax.device_get(state.slow))
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    for number in range(3):
        state, _ = step(state, put_batch(task.batch(number), mesh), key)
    of_heads = []
    for path, weight in named_weights(model.declared_slow()):
        new, old = (np.asarray(_at(tree, path)) for tree in (state.slow, before))
        if "head" not in weight.axes:
            np.testing.assert_array_equal(new, old, err_msg=".".join(path))
            continue
        of_heads.append(path[-1])
        new, old = (np.moveaxis(array, weight.axes.index("head"), 0) for array in (new, old))
        assert len(new) == HEADS
        np.testing.assert_array_equal(new[:OLD], old[:OLD], err_msg=path[-1])
        assert (new[OLD:] != old[OLD:]).mean() > 0.9, path[-1]
    assert {"encoder", "encoder_v", "decoder"} <= set(of_heads)


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


@pytest.mark.parametrize("old_heads", [0, HEADS])
def test_there_must_be_old_heads_and_new_ones(tiny, old_heads):
    with pytest.raises(ConfigError, match=f"old_heads={old_heads} must be between 1 and the heads of the model less one"):
        new_heads(BDH(tiny(model=MODEL).model), old_heads=old_heads)


def test_a_model_without_heads_is_refused():
    with pytest.raises(ConfigError, match="its weights have no heads"):
        new_heads(GRUConfig(vocab_size=12, n_layer=1, d_model=8).build(), old_heads=1)
