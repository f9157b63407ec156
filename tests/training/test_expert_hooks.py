"""Experts that learn by different rules in one step: the optimiser, fast weights, and a rule of one expert's own."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.options import Options
from bdh_jax.experiment import load, setup_of
from bdh_jax.models.base import Architecture, LayerOutput, ModelConfig, Weight
from bdh_jax.models.mixture import MixtureConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.runs.reporter import read_rows
from bdh_jax.training import loop
from bdh_jax.training.hooks import Hooks, Prepare, Update, make_hooks
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state
from bdh_jax.training.step import make_train_step, put_batch


@dataclasses.dataclass(frozen=True)
class LinearConfig(ModelConfig):
    """x + x W, of which no optimiser knows."""

    architecture: str = "tests.training.test_expert_hooks:LinearConfig"

    def make_architecture(self):
        return LinearArchitecture(self)


class LinearArchitecture(Architecture):
    taps: ClassVar = {"x": ("batch", "time", "model"), "y": ("batch", "time", "model")}

    def weights(self) -> dict[str, Any]:
        width = self.config.d_model
        weight = Weight(("model", "model"), (width, width), lambda *_: 0.5 * jnp.eye(width), jnp.float32, trained=False)
        return {f"layer{index}": {"w": weight} for index in range(self.config.n_layer)}

    def embed(self, slow, tokens):
        raise NotImplementedError

    readout = embed

    def layer_weights(self, slow, index):
        return slow[f"layer{index}"]["w"]

    def block(self, weights, x, state, call, draws, setup):
        y = x @ weights
        return LayerOutput(x + y, None, {"x": x, "y": y})


def hebb(model, *, rate: float = 0.1) -> Hooks:
    """W ← W + rate · the sum of x ⊗ y over tokens; the history counts its updates."""

    def update(slow, taps, batch, history):
        pairs = jnp.einsum("lbtn,lbtm->lnm", taps.collected["x"], taps.collected["y"])
        changed = {f"layer{i}": {"w": slow[f"layer{i}"]["w"] + rate * pairs[i]} for i in range(model.config.n_layer)}
        return {**slow, **changed}, history + 1

    return Hooks(updates=(Update("hebb", lambda slow: jnp.zeros((), jnp.int32), update, collect=("x", "y")),))


def damp(model) -> Hooks:
    return Hooks(prepare=(Prepare(lambda slow, batch: slow),))


HERE = "tests.training.test_expert_hooks"
MODEL = MixtureConfig(
    vocab_size=12,
    n_layer=2,
    d_model=8,
    experts=Options(
        bdh=Options(n_head=1, n_neurons=16, init_std=0.3),
        local=Options(architecture=f"{HERE}:LinearConfig"),
    ),
    init_std=0.3,
    router_noise=0.1,
)
RULE = {"hooks": ("bdh_jax.training.expert_hooks:of_experts",)}


def hooked(**options):
    return {**RULE, "hook_options": {"experts": {"local": {"hook": f"{HERE}:hebb", **options}}}}


@pytest.fixture
def mixed(tiny):
    """``mixed(**changes of TrainConfig)`` makes an experiment."""
    return lambda **train: dataclasses.replace(tiny(**train), model=MODEL)


def test_each_expert_learns_by_its_own_rule_from_its_own_tokens(mixed, successor):
    config = mixed(**hooked(rate=0.2))
    setup, mesh, model = setup_of(config), make_mesh(config.mesh), MODEL.build()
    hooks, optimizer = make_hooks(setup.hooks, model), make_optimizer(config.optimizer, 6)
    state = init_state(model, optimizer, mesh, jax.random.key(0), hooks)
    assert state.history.keys() == {"local_hebb"}
    before, batch = jax.tree.map(np.array, state.slow), successor(config).batch(0)
    step = make_train_step(model, optimizer, setup, mesh, hooks=hooks)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    after, _ = step(state, put_batch(batch, mesh), key)
    names = ("route", "local.x", "local.y")
    seen = model.apply(
        {"params": before},
        batch.tokens,
        state="none",
        collect=names,
        deterministic=False,
        rngs={"dropout": jax.random.fold_in(jax.random.key(1), 0)},
    ).collected
    counted = 0
    for layer in range(2):
        x, y, route = (np.asarray(seen[name][layer]) for name in ("local.x", "local.y", "route"))
        mine = route[..., 1] > 0
        counted += mine.sum()
        expected = before["local"][f"layer{layer}"]["w"] + 0.2 * x[mine].T @ y[mine]
        np.testing.assert_allclose(after.slow["local"][f"layer{layer}"]["w"], expected, rtol=1e-4, atol=1e-5)
    assert 0 < counted < 2 * batch.tokens.size
    for path in (("bdh", "encoder"), ("router",), ("embed",)):
        one, other = before, after.slow
        for part in path:
            one, other = one[part], other[part]
        assert np.any(one != other), path
    assert int(after.history["local_hebb"]) == 1


@pytest.mark.full
def test_a_killed_run_resumes_bit_for_bit_and_a_mesh_gives_the_same(mixed, successor, kill_at, tmp_path):
    config = mixed(**hooked(rate=0.01), batch_size=8)
    loop.train(setup_of(config), successor(config), tmp_path / "whole")
    with pytest.raises(loop.Interrupted):
        loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 2)), tmp_path / "cut")
    loop.train(setup_of(config), successor(config), tmp_path / "cut")
    whole, cut = (load(tmp_path / name, "last") for name in ("whole", "cut"))
    assert whole[0] == cut[0] == MODEL
    chex.assert_trees_all_equal(whole[1], cut[1])
    spread = dataclasses.replace(config, mesh=MeshConfig(data=8))
    loop.train(setup_of(spread), successor(spread), tmp_path / "spread")
    losses = [
        [row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl", until=10**9) if "loss" in row]
        for name in ("whole", "spread")
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"other": {"hook": f"{HERE}:hebb"}}, "there is no such expert; this mixture has bdh, local"),
        ({"local": {"rate": 0.1}}, "must be a mapping with the key hook"),
        ({"local": {"hook": f"{HERE}:hebb", "speed": 1}}, "has no option 'speed'. Its options: rate"),
        ({"local": {"hook": f"{HERE}:damp"}}, "needs more than an update after the optimiser"),
    ],
)
def test_what_is_no_rule_of_an_expert_is_refused(mixed, options, message):
    config = mixed(**RULE, hook_options={"experts": options})
    with pytest.raises(ConfigError, match=message):
        make_hooks(setup_of(config).hooks, MODEL.build())


def test_it_is_for_mixtures(tiny):
    config = tiny(**RULE, hook_options={"experts": {}})
    with pytest.raises(ConfigError, match="of_experts is for a mixture, and this model is a 'bdh'"):
        make_hooks(setup_of(config).hooks, config.model.build())
