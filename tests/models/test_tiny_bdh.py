"""tiny-BDH: the published program in NumPy, the forms of σ, and σ as something that consolidation writes."""

from __future__ import annotations

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import ConfigError, consolidation
from bdh_jax.experiment import ExperimentConfig, setup_of
from bdh_jax.models.gru import GRUConfig
from bdh_jax.models.tiny_bdh import NEVER, TinyBDHConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.tasks.xor import XORConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state
from bdh_jax.training.step import make_train_step, put_batch
from tests.compiled import apply, init
from tests.models.test_small_memories import NO_LIMITS, RESET, TOKENS, VALID, VOCAB, WRITE, tiny

BITS = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], np.float64)
ADAM = OptimizerConfig(learning_rate=5e-3, warmup_steps=0, schedule="constant", weight_decay=0.0, clip_norm=None)


def experiment(steps=3, hooks=("bdh_jax.training.sigma:after_step",), data=1, **model):
    return ExperimentConfig(
        task=XORConfig(),
        model=TinyBDHConfig(**{"n_neurons": 12, "d_model": 4, "init_std": 0.5, "learning_rate": 0.5, **model}),
        optimizer=ADAM,
        train=TrainConfig(steps=steps, batch_size=8, hooks=hooks),
        mesh=MeshConfig(data=data),
    )


def stepped(config):
    """States after each step, and the metrics of the last."""
    setup, mesh = setup_of(config), make_mesh(config.mesh)
    model = config.model.build(mesh if mesh.size > 1 else None)
    optimizer, hooks = make_optimizer(config.optimizer, config.train.steps), make_hooks(setup.hooks, model)
    step = make_train_step(model, optimizer, setup, mesh, hooks=hooks)
    state = init_state(model, optimizer, mesh, jax.random.key(0), hooks)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    batch, slows, metrics = config.task.make(seed=0, batch_size=8).batch(0), [jax.tree.map(np.asarray, state.slow)], {}
    for _ in range(config.train.steps):
        state, metrics = step(state, put_batch(batch, mesh), key)
        slows.append(jax.tree.map(np.asarray, state.slow))
    return slows, jax.device_get(metrics)


def published(slow, sigma, x=BITS):
    """x_neu, y2 and the logit, as the published program has them."""
    e, d_x, d_y = (np.asarray(slow["field0"][name], np.float64) for name in ("e", "d_x", "d_y"))
    x_neu = x @ np.asarray(slow["r_in"], np.float64)
    y2 = np.maximum(x_neu @ e @ d_x.T, 0) + x_neu @ sigma.T
    return x_neu, y2, np.maximum(y2 @ e @ d_y.T, 0) @ np.asarray(slow["w_read"], np.float64)


def sigma_of(slow):
    return np.asarray(slow["synapse"][0, 0], np.float64).T


def test_three_steps_of_the_published_program():
    """Its forward pass, and its σ after each step: of the weights before the optimiser changed them."""
    config = experiment()
    slows, metrics = stepped(config)
    rates = config.model
    for before, after in itertools.pairwise(slows):
        sigma = sigma_of(before)
        x_neu, y2, logit = published(before, sigma)
        out = apply(config.model.build(), before, np.arange(4, dtype=np.int32)[:, None], state="none").logits[:, 0]
        np.testing.assert_allclose(out[:, 1] - out[:, 0], logit[:, 0], rtol=1e-4, atol=1e-5)
        assert (np.asarray(out[:, 2:]) == NEVER).all()
        sigma = np.clip((1 - rates.forget) * sigma + rates.learning_rate / 4 * y2.T @ x_neu, -rates.clamp, rates.clamp)
        sigma[np.abs(sigma) < rates.threshold] = 0
        sigma /= np.maximum(np.linalg.norm(sigma, axis=1, keepdims=True), 1)
        np.testing.assert_allclose(sigma_of(after), sigma, rtol=1e-4, atol=1e-6)
    assert np.abs(sigma_of(slows[-1])).max() > 0.01
    # What is logged is of σ as the step found it.
    before = sigma_of(slows[-2])
    assert metrics["model"]["synapse_nonzero"] == pytest.approx(np.mean(before != 0))
    assert metrics["model"]["synapse_norm"] == pytest.approx(np.linalg.norm(before), rel=1e-4)
    assert metrics["model"]["synapse_largest"] == pytest.approx(np.abs(before).max(), rel=1e-4)


def test_sigma_gets_no_gradient_and_is_not_decayed():
    slows, _ = stepped(dataclasses.replace(experiment(steps=1, hooks=()), optimizer=OptimizerConfig(warmup_steps=0)))
    np.testing.assert_array_equal(slows[1]["synapse"], slows[0]["synapse"])
    assert np.abs(slows[1]["field0"]["e"] - slows[0]["field0"]["e"]).max() > 1e-4


def test_a_mesh_of_eight_devices_trains_the_same():
    one, eight = (stepped(experiment(data=n))[0][-1] for n in (1, 8))
    # Adam divides by the gradient's size; σ and what it is made of are sums of eight terms.
    chex.assert_trees_all_close(eight, one, rtol=1e-3, atol=1e-5)
    with pytest.raises(ConfigError, match=r"mesh.neurons=2: a 'tiny_bdh' model has no rows to spread"):
        dataclasses.replace(experiment(), mesh=MeshConfig(neurons=2))


@pytest.mark.parametrize("address", [pytest.param("current", marks=pytest.mark.full), "previous", "mapped"])
def test_all_at_once_is_token_by_token(address):
    """Values, states and gradients, with masks and from a state."""

    def of(form):
        model = tiny(address=address, implementation=form, **NO_LIMITS).build()
        slow = init(model, 1)
        slow["synapse"] = 0.3 * jax.random.normal(jax.random.key(5), slow["synapse"].shape)
        start = jax.tree.map(
            lambda leaf: (
                jnp.ones_like(leaf) if leaf.dtype == jnp.int32 else jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape)
            ),
            model.init_fast(len(TOKENS)),
        )

        def loss(slow, start):
            out = model.apply({"params": slow}, TOKENS, start, valid=VALID, reset=RESET, write=WRITE)
            return jnp.sum(jnp.sin(jnp.where(VALID[..., None], out.logits, 0))), out.fast

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True))(slow, start)

    with jax.enable_x64(True):
        (values, fast), gradients = of("recurrent")
        (again, same), others = of("parallel")
        chex.assert_trees_all_close((again, same), (values, fast), rtol=1e-10, atol=1e-10)
        floats = [[leaf for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.float64] for tree in (gradients, others)]
        chex.assert_trees_all_close(*floats, rtol=1e-9, atol=1e-9)
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients[0]["field0"]))


@pytest.mark.parametrize("limits", [{}, pytest.param(NO_LIMITS, marks=pytest.mark.full)])
def test_what_was_consolidated_is_read_as_sigma_was(limits):
    """With rate 1 a new episode's first token reads from the synapse what it read from σ, whatever the form."""
    model = tiny(address="previous", dtype="float32", n_layer=1, **limits).build()
    slow = init(model, 0)
    fast = apply(model, slow, TOKENS[:1]).fast
    written = consolidation.dense()(slow, fast, fast.activity)
    from_state = apply(model, slow, TOKENS[:1, :1], fast)
    np.testing.assert_allclose(apply(model, written, TOKENS[:1, :1]).logits, from_state.logits, rtol=1e-5, atol=1e-6)
    assert np.abs(from_state.logits - apply(model, slow, TOKENS[:1, :1]).logits).max() > 1e-3
    mean = apply(model, slow, TOKENS, state="mean").fast
    whole = apply(model, slow, TOKENS).fast
    np.testing.assert_allclose(mean.memory, whole.memory.mean(axis=1, keepdims=True), rtol=1e-5, atol=1e-7)
    few = consolidation.row_topk(fraction=0.25)(slow, mean, mean.activity)["synapse"]
    assert np.count_nonzero(np.any(few[0, 0] != 0, axis=-1)) == 2


def test_activity_counts_what_was_read_and_written():
    model = tiny(address="previous", n_layer=1, residual=False, **NO_LIMITS).build()
    with jax.enable_x64(True):
        slow = init(model, 0)
        out = apply(model, slow, TOKENS, valid=VALID, write=WRITE, collect=("pre", "post", "key"))
        pre, post, key = (np.asarray(out.collected[name][0]) for name in ("pre", "post", "key"))
        query = pre / np.linalg.norm(pre, axis=-1, keepdims=True)
        assert np.abs(key).max() > 0.1
        strength = np.einsum("btn,bt->bn", np.abs(query), VALID)
        energy = 0.7**2 * np.einsum("btn,btm,bt->bn", key**2, post**2, VALID & WRITE)
        np.testing.assert_allclose(out.activity.strength[0, :, 0], strength, rtol=1e-9)
        np.testing.assert_allclose(out.activity.energy[0, :, 0], energy, rtol=1e-9)
        np.testing.assert_array_equal(out.activity.count, VALID.sum(axis=1))


def test_without_sigma_nothing_is_kept():
    model = TinyBDHConfig(vocab_size=VOCAB, use_sigma=False, interface="tokens").build()
    slow = init(model, 0)
    assert "synapse" not in slow
    out = apply(model, slow, TOKENS)
    assert out.fast is None
    np.testing.assert_allclose(out.logits[:, 3:], apply(model, slow, TOKENS[:, 3:]).logits, rtol=1e-5, atol=1e-6)
    # The same weights with σ off are those of a model with σ, without what it adds.
    with_sigma = TinyBDHConfig(vocab_size=VOCAB, interface="tokens").build()
    np.testing.assert_allclose(apply(with_sigma, init(with_sigma, 0), TOKENS[:, :1]).logits, out.logits[:, :1], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 0.1}, "dropout=0.1: tiny-BDH has no dropout; set it to 0"),
        ({"forget": 1.5}, r"forget=1.5 must lie in \[0, 1\]"),
        ({"clamp": 0.0}, "clamp=0.0 must be positive, or None for no limit"),
        ({"clamp": 0.1, "threshold": 0.2}, "threshold=0.2 above clamp=0.1 would leave nothing of σ"),
        ({"implementation": "parallel"}, "implementation='parallel' cannot put limits on σ"),
        ({"address": "next"}, "address='next'"),
        ({"vocab_size": 1}, "vocab_size=1 must be at least 2"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TinyBDHConfig(**settings)


def test_the_hook_wants_a_sigma():
    for model in (TinyBDHConfig(use_sigma=False), GRUConfig(vocab_size=4)):
        with pytest.raises(ConfigError, match="writes the σ of a tiny-BDH, and this model has none"):
            make_hooks(setup_of(dataclasses.replace(experiment(), model=model)).hooks, model.build())
