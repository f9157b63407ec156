"""A local update from the taps of the step's own forward pass."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from bdh_jax.experiment import ExperimentConfig, load, run, setup_of
from bdh_jax.parallel.mesh import make_mesh, replicated
from bdh_jax.tasks.nback import INTEGER_VOCABULARY, NBackConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state
from bdh_jax.training.step import make_train_step, put_batch
from tests.stubs.local_transformer import LINEAR, LocalConfig

CONFIG = ExperimentConfig(
    task=NBackConfig(evaluation_sequences=8),
    model=LocalConfig(vocab_size=INTEGER_VOCABULARY, n_layer=2, d_model=8, n_head=1, dropout=0.0, init_std=0.2),
    optimizer=OptimizerConfig(warmup_steps=1),
    train=TrainConfig(
        steps=4,
        batch_size=4,
        hooks=("tests.stubs.local_transformer:hebbian",),
        hook_options={"rate": 0.5},
        evaluate_every=4,
        checkpoint_every=2,
    ),
)


def one_step(config):
    """Slow weights before and after a step, the batch, and the model."""
    setup, mesh = setup_of(config), make_mesh(config.mesh)
    model, optimizer = config.model.build(), make_optimizer(config.optimizer, config.train.steps)
    hooks = make_hooks(setup.hooks, model)
    task = config.task.make(seed=0, batch_size=config.train.batch_size)
    step = make_train_step(model, optimizer, setup, mesh, hooks=hooks)
    state = init_state(model, optimizer, mesh, jax.random.key(0), hooks)
    before = jax.tree.map(np.array, state.slow)  # a copy: the step gives its buffers up
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    state, _ = step(state, put_batch(task.batch(0), mesh), key)
    return before, jax.device_get(state.slow), task.batch(0), model


@pytest.mark.parametrize("slices", [1, pytest.param(2, marks=pytest.mark.full)])
def test_linear_layers_change_by_their_own_inputs_and_outputs(slices):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, accumulation=slices))
    before, after, batch, model = one_step(config)
    names = tuple(model.architecture.taps)
    masks = {"valid": batch.valid, "reset": batch.reset}
    seen = model.apply({"params": before}, batch.tokens, **masks, state="none", collect=names).collected
    assert seen["mlp_in.x"].shape == (2, *batch.tokens.shape, 8)
    assert seen["mlp_in.y"].shape == (2, *batch.tokens.shape, 32)
    count = np.sum(batch.valid)
    for index in range(2):
        for name in LINEAR:
            x, y = (np.asarray(seen[f"{name}.{side}"][index])[batch.valid] for side in "xy")
            old, new = (slow[f"layer{index}"][name]["kernel"] for slow in (before, after))
            np.testing.assert_allclose(new, 0.99 * old + 0.5 * x.T @ y / count, rtol=1e-3, atol=1e-5)
            assert np.abs(new - old).max() > 1e-3
        # The optimiser has the others.
        assert np.any(after[f"layer{index}"]["attention_in"]["kernel"] != before[f"layer{index}"]["attention_in"]["kernel"])


def test_without_the_hook_they_stay_as_they_are():
    before, after, _, _ = one_step(
        dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, hooks=(), hook_options={}))
    )
    for name in LINEAR:
        np.testing.assert_array_equal(before["layer1"][name]["kernel"], after["layer1"][name]["kernel"])


def test_it_is_trained_and_loaded(tmp_path):
    run(CONFIG, tmp_path / "run")
    config, slow = load(tmp_path / "run", "last")
    assert config == CONFIG.model
    assert np.isfinite(np.asarray(slow["layer1"]["mlp_out"]["kernel"])).all()
