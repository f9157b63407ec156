"""Training on text: states that are carried, models that are not BDH, and text that changed."""

from __future__ import annotations

import dataclasses
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.data.config import DataConfig
from bdh_jax.experiment import load, load_as, run, setup_of
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.folder import CheckpointError
from bdh_jax.runs.reporter import read_rows
from bdh_jax.tasks import TextConfig
from bdh_jax.training.loop import Interrupted
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state
from bdh_jax.training.step import make_keys, make_train_step, put_batch
from tests.compiled import apply


@pytest.fixture(scope="module", autouse=True)
def donation():
    """Looking for NaN switches donation off, and with it what a save could get wrong."""
    with jax.debug_nans(False):
        yield


@pytest.fixture
def experiment(tiny, tmp_path):
    """``experiment(model=..., **train)`` trains on a file of 600 bytes."""
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(np.random.default_rng(0).integers(97, 109, 600, dtype=np.uint8)))

    def make(order="shuffled", model=None, carry_state=False, **train):
        config = tiny(**train)
        return dataclasses.replace(
            config,
            task=TextConfig(length=8, order=order),
            data=DataConfig(str(path)),
            model=model or dataclasses.replace(config.model, vocab_size=256),
            train=dataclasses.replace(config.train, carry_state=carry_state),
        )

    return make


def _task(config):
    return config.task.make(seed=config.seed, batch_size=config.train.batch_size, data=config.data)


def _same(a, b):
    chex.assert_trees_all_equal(a, b)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, neurons=2)])
def test_a_carried_state_is_what_the_tokens_before_left(experiment, mesh):
    config = experiment("consecutive", carry_state=True, batch_size=2, model=None)
    # A rate so small that no weight changes: what differs from step to step is the state alone.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0), mesh=mesh)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-30, warmup_steps=0)
    )
    devices, task = make_mesh(config.mesh), _task(config)
    model = config.model.build(devices if devices.size > 1 else None)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    step = make_train_step(model, optimizer, setup_of(config), devices)
    key, step_key = make_keys(0, devices)
    state = init_state(model, optimizer, devices, key, carried_rows=2)
    slow = jax.device_get(state.slow)
    losses = []
    for number in range(3):
        state, metrics = step(state, put_batch(task.batch(number), devices, may_reset=True), step_key)
        losses.append(float(metrics["loss"]))
    tokens, targets, reset, weights = (
        np.concatenate([getattr(task.batch(n), name) for n in range(3)], axis=1)
        for name in ("tokens", "targets", "reset", "loss_weights")
    )
    assert not reset[:, 1:].any(), "the rows of this seed should not jump within three windows"
    out = apply(config.model.build(), slow, tokens)
    picked = np.take_along_axis(np.asarray(jax.nn.log_softmax(out.logits)), targets[..., None], axis=-1)[..., 0]
    expected = -(picked * weights).reshape(2, 3, 8).mean(axis=(0, 2))
    # The same sums in other chunks, in float32.
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(state.fast.memory, out.fast.memory, rtol=1e-4, atol=1e-6)
    assert abs(losses[2] - _loss_without_state(config, slow, task.batch(2))) > 1e-5


def test_a_carried_state_that_overflows_is_noticed(experiment):
    """Before it is saved: each resume would diverge from it."""
    config = experiment("consecutive", carry_state=True, batch_size=2)
    task, mesh = _task(config), make_mesh(config.mesh)
    model, optimizer = config.model.build(), make_optimizer(config.optimizer, config.train.steps)
    key, step_key = make_keys(0, mesh)
    state = init_state(model, optimizer, mesh, key, carried_rows=2)
    # The strength is written and never read, so neither loss nor gradient knows of it.
    first, *others = state.fast.layers
    first = first.replace(use=first.use.replace(strength=jnp.full_like(first.use.strength, jnp.inf)))
    batches = [put_batch(task.batch(number), mesh, may_reset=True) for number in range(20)]
    batch = next(batch for batch in batches if not bool(batch.reset.any()))
    _, metrics = make_train_step(model, optimizer, setup_of(config), mesh)(
        state.replace(fast=state.fast.replace(layers=(first, *others))), batch, step_key
    )
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert [name for name, finite in metrics["finite"].items() if not finite] == ["fast.layers[0].use.strength"]


def _loss_without_state(config, slow, batch):
    out = apply(config.model.build(), slow, batch.tokens)
    return -np.take_along_axis(np.asarray(jax.nn.log_softmax(out.logits)), batch.targets[..., None], axis=-1).mean()


def test_a_carried_state_is_saved_and_resumed_bit_by_bit(experiment, tmp_path, monkeypatch):
    config = experiment("consecutive", carry_state=True)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config, whole)

    class Killed(type(_task(config))):
        def batches(self, start, end):
            for step, batch in zip(range(start, end), super().batches(start, end), strict=True):
                if step == 2:
                    signal.raise_signal(signal.SIGTERM)
                yield batch

    def make(task, *, data, **more):
        return Killed(task, real(task, data=data, **more).data, **more)

    real = type(config.task).make
    with monkeypatch.context() as patch:
        patch.setattr(type(config.task), "make", make)
        with pytest.raises(Interrupted, match="saved step 3"):
            run(config, cut)
    run(config, cut)
    _same(load(whole, "last")[1], load(cut, "last")[1])


def test_resuming_on_another_text_is_refused(experiment, tmp_path, kill_at, monkeypatch):
    config, workdir = experiment(), tmp_path / "run"

    def stop(*arguments):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("bdh_jax.runs.reporter.Reporter.training", stop)
    with pytest.raises(Interrupted):
        run(config, workdir)
    monkeypatch.undo()
    path = tmp_path / "text.txt"
    text = path.read_bytes()
    path.write_bytes(text[:-1] + b"z")
    with pytest.raises(
        CheckpointError, match=r"holds a run on another text: its fingerprint is \w+, and that of the files now is"
    ):
        run(config, workdir)
    path.write_bytes(text)
    assert run(config, workdir)["steps"] == 6


def test_seeds_on_different_texts_are_refused(experiment, tmp_path):
    config, workdir, path = experiment(steps=3), tmp_path / "run", tmp_path / "text.txt"
    text = path.read_bytes()
    run(dataclasses.replace(config, seeds=(0,)), workdir)
    path.write_bytes(text[:-1] + b"z")
    with pytest.raises(CheckpointError, match=r"seed0 holds a run on another text"):
        run(dataclasses.replace(config, seeds=(0, 1)), workdir)
    assert not (workdir / "seed1").exists()
    run(dataclasses.replace(config, seed=1), tmp_path / "alone")
    (tmp_path / "alone").rename(workdir / "seed1")
    with pytest.raises(CheckpointError, match=r"seed0 and .*seed1 were trained on different texts"):
        run(dataclasses.replace(config, seeds=(0, 1)), workdir)


def test_a_finished_run_is_read_though_its_text_is_gone(experiment, tmp_path):
    config = experiment(steps=3)
    results = run(config, tmp_path / "run")
    (tmp_path / "text.txt").unlink()
    assert run(config, tmp_path / "run") == results


def test_every_step_of_a_text_is_one_program(experiment):
    """Resets come and go from batch to batch, and a second program would be compiled in the middle of a run."""
    config = experiment("consecutive", carry_state=True, batch_size=2)
    task, devices = _task(config), make_mesh(config.mesh)
    batches = [put_batch(task.batch(step), devices, may_reset=task.may_reset) for step in range(40)]
    assert any(bool(batch.reset.any()) for batch in batches)
    assert not all(bool(batch.reset.any()) for batch in batches)
    one_document = _task(experiment())
    assert not one_document.may_reset
    assert not any(one_document.batch(step).reset.any() for step in range(40))


def test_a_gpt_is_trained_saved_and_loaded_like_a_bdh(experiment, tmp_path):
    gpt = GPTConfig(vocab_size=256, n_layer=1, d_model=8, n_head=2, dropout=0.1)
    config = experiment(model=gpt, accumulation=2)
    results = run(config, tmp_path / "run")
    score = results["evaluation"]["validation"]
    assert results["primary"] == pytest.approx(2 ** -score["bits_per_byte"])
    loaded, slow = load(tmp_path / "run", "last")
    assert loaded == gpt
    assert slow["layer0"]["mlp_in"]["kernel"].shape == (8, 32)
    with pytest.raises(CheckpointError, match="holds a GPT, and this needs a BDH"):
        load_as(BDHConfig, tmp_path / "run")


def test_contributions_are_logged_with_each_evaluation(experiment, tmp_path):
    config = experiment(log_contributions=True, evaluate_every=3)
    run(config, tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl", until=10**9) if "contributions" in row]
    assert [row["step"] for row in rows] == [3, 6]
    assert rows[0]["contributions"].keys() == {"decoder", "fast"}
    assert all(size > 0 for row in rows for sizes in row["contributions"].values() for size in sizes)


def test_several_seeds_of_text_have_a_table(experiment, tmp_path, capsys):
    run(dataclasses.replace(experiment(steps=3), seeds=(0, 1)), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "bits per byte" in printed
    assert "seed 1: validation" in printed
    assert "credit" not in printed


def test_what_cannot_carry_a_state_is_refused(experiment):
    with pytest.raises(ConfigError, match=r"train.carry_state=True with train.accumulation=2"):
        experiment("consecutive", carry_state=True, accumulation=2)
    with pytest.raises(ConfigError, match=r"rows of this task do not go on from batch to batch"):
        experiment(carry_state=True)
    with pytest.raises(ConfigError, match=r"a GPT has no state to carry"):
        experiment("consecutive", carry_state=True, model=GPTConfig(vocab_size=256))
    dense = ConsolidationConfig(function="dense")
    with pytest.raises(ConfigError, match=r"with consolidation.function='dense': episodes that go on"):
        dataclasses.replace(experiment("consecutive", carry_state=True), consolidation=dense)
    with pytest.raises(ConfigError, match=r"consolidation.function='dense': this GPT has no fast weights"):
        dataclasses.replace(experiment(model=GPTConfig(vocab_size=256)), consolidation=dense)
    with pytest.raises(ConfigError, match=r"mesh.neurons=2: a 'gpt' model has no rows to spread; set it to 1"):
        dataclasses.replace(experiment(model=GPTConfig(vocab_size=256)), mesh=MeshConfig(neurons=2))


def test_a_bdh_is_still_the_model_without_a_name(experiment):
    assert isinstance(experiment().model, BDHConfig)
