"""A run that starts from the weights of another one: of which, once, as they were saved, and only if they fit."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import signal

import jax
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.data.config import DataConfig
from bdh_jax.experiment import load, run, setup_of
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.parallel.axes import shardings
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.checkpoint import read_slow
from bdh_jax.runs.fingerprint import slow_hash
from bdh_jax.runs.folder import CheckpointError
from bdh_jax.runs.reporter import read_rows
from bdh_jax.tasks import TextConfig
from bdh_jax.training import loop
from bdh_jax.training.hooks import Hooks, Update
from bdh_jax.training.init_from import find_source, started_with
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import state_from


@pytest.fixture(scope="module", autouse=True)
def donation():
    """Looking for NaN switches donation off, and with it what a save could get wrong."""
    with jax.debug_nans(False):
        yield


@pytest.fixture(scope="module")
def source(tiny, successor, tmp_path_factory):
    """The folder of a run of 6 steps."""
    folder = tmp_path_factory.mktemp("source") / "run"
    loop.train(setup_of(tiny()), successor(tiny()), folder)
    return folder


@pytest.fixture(scope="module")
def seeds(tiny, tmp_path_factory):
    """The folder of a run over the seeds 3 and 5."""
    folder = tmp_path_factory.mktemp("seeds") / "run"
    run(dataclasses.replace(tiny(steps=3), seeds=(3, 5)), folder)
    return folder


def from_run(config, named):
    return change(config, "train", init_from=str(named))


def still(config):
    """Rates so small that no weight changes."""
    return change(config, "optimizer", learning_rate=1e-30)


def origin(workdir):
    return json.loads((workdir / "run.json").read_text())["init_from"]


def rows(workdir):
    found = read_rows(workdir / "metrics.jsonl", until=10**9)
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in found]


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_newest_weights_are_what_is_trained(tiny, successor, source, tmp_path):
    config = still(from_run(tiny(seed=1), source))
    before = files(source)
    loop.train(setup_of(config), successor(config), tmp_path)
    same(load(tmp_path, "last")[1], load(source, "last")[1])
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert origin(tmp_path) == {"folder": str(source), "step": 6, "slow": slow_hash(load(source, "last")[1])}
    assert files(source) == before


def test_what_a_run_started_with_is_found_as_long_as_it_is_there(tiny, successor, source, tmp_path):
    assert started_with(source) is None, "its own random weights"
    there = tmp_path / "there"
    shutil.copytree(source, there)
    config = from_run(tiny(seed=1), f"{there}@4")
    loop.train(setup_of(config), successor(config), tmp_path / "run")
    same(started_with(tmp_path / "run"), read_slow(source, 4).slow)
    # Other weights at its place are not those.
    shutil.rmtree(there / "checkpoints" / "4")
    shutil.copytree(there / "checkpoints" / "6", there / "checkpoints" / "4")
    assert started_with(tmp_path / "run") is None
    shutil.rmtree(there)
    assert started_with(tmp_path / "run") is None


def test_a_step_can_be_named(tiny, successor, source, tmp_path):
    config = still(from_run(tiny(), f"{source}@4"))
    loop.train(setup_of(config), successor(config), tmp_path)
    same(load(tmp_path, "last")[1], read_slow(source, 4).slow)
    assert origin(tmp_path)["step"] == 4
    config = from_run(tiny(), f"{source}@3")
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 3, but of 4, 6; name one of them"):
        loop.train(setup_of(config), successor(config), tmp_path / "other")
    assert not (tmp_path / "other").exists() or not files(tmp_path / "other")


def test_a_name_with_an_at_is_a_folder_if_there_is_one(source, tmp_path):
    shutil.copytree(source, tmp_path / "run@6")
    assert find_source(str(tmp_path / "run@6"), 0) == (tmp_path / "run@6", None)
    assert find_source(str(tmp_path / "run@6@4"), 0) == (tmp_path / "run@6", 4)


def test_optimiser_and_histories_begin_anew_on_a_mesh(tiny, source):
    """What an update remembers may be made of the weights there are."""
    config = tiny()
    mesh = make_mesh(MeshConfig(data=2, neurons=2))
    model, optimizer = config.model.build(mesh), make_optimizer(config.optimizer, 6)
    update = Update("anchor", lambda slow: slow["embed"] * 2, lambda slow, taps, batch, history: (slow, history))
    slow = read_slow(source, "last", on_host=True).slow
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(slow))
    state = state_from(model, optimizer, mesh, slow, Hooks(updates=(update,)))
    same(state.slow, slow)
    assert int(state.step) == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    same(state.history["anchor"], slow["embed"] * 2)
    wanted = shardings(model.declared_slow(), mesh)
    assert all(leaf.sharding.is_equivalent_to(wanted[name], leaf.ndim) for name, leaf in state.slow.items())


def test_it_is_read_once_and_the_run_goes_on_without_it(tiny, successor, kill_at, source, tmp_path):
    """On another mesh, too."""
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    config = from_run(tiny(batch_size=8), copied)
    loop.train(setup_of(config), successor(config), tmp_path / "one")
    with pytest.raises(loop.Interrupted, match="saved step 2 of 6"):
        loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 1)), tmp_path / "two")
    several = dataclasses.replace(config, mesh=MeshConfig(data=2, neurons=2))
    loop.train(setup_of(several), successor(several), tmp_path / "mesh")
    first = origin(tmp_path / "two")
    shutil.rmtree(copied)
    loop.train(setup_of(config), successor(config), tmp_path / "two")
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    same(load(tmp_path / "one", "last")[1], load(tmp_path / "two", "last")[1])
    assert first == origin(tmp_path / "two") == origin(tmp_path / "one")
    on_mesh, alone = ([row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("mesh", "one"))
    np.testing.assert_allclose(on_mesh, alone, rtol=1e-5)


def test_a_run_that_was_stopped_before_its_first_step_keeps_its_origin(tiny, successor, source, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    config = from_run(tiny(), copied)

    class Stopped(type(successor(config))):
        def batches(self, start, end):
            signal.raise_signal(signal.SIGTERM)
            return super().batches(start, end)

    with pytest.raises(loop.Interrupted, match="saved step 0 of 6"):
        loop.train(setup_of(config), Stopped(config.seed, config.train.batch_size), tmp_path / "run")
    first = origin(tmp_path / "run")
    shutil.rmtree(copied)
    loop.train(setup_of(config), successor(config), tmp_path / "run")
    assert origin(tmp_path / "run") == first


def test_damaged_weights_are_never_started_from(tiny, successor, source, tmp_path, caplog):
    logging.getLogger("bdh_jax").propagate = True
    damaged = tmp_path / "damaged"
    shutil.copytree(source, damaged)
    found = [path for path in (damaged / "checkpoints" / "6" / "slow").rglob("d/*") if path.is_file()]
    path = max(found, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    config = from_run(tiny(), damaged)
    loop.train(setup_of(config), successor(config), tmp_path / "run")
    assert origin(tmp_path / "run")["step"] == 4
    assert "checkpoints/6 is damaged" in caplog.text
    config = from_run(tiny(), f"{damaged}@6")
    with pytest.raises(CheckpointError, match=r"checkpoints/6 cannot be read"):
        loop.train(setup_of(config), successor(config), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"d_model": 16, "n_neurons": 32},
            r"decoder is \[1, 16, 8\] there and \[1, 32, 16\] here; embed is .*; and 1 more\. Give config\.model the",
        ),
        (
            {"consolidation": ConsolidationConfig("dense")},
            r"do not fit config.model: synapse \[1, 1, 16, 8\] is missing there\. Give",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tiny, successor, source, tmp_path, changes, message):
    config = from_run(tiny(**({"model": changes} if "consolidation" not in changes else changes)), source)
    with pytest.raises(ConfigError, match=message) as refused:
        loop.train(setup_of(config), successor(config), tmp_path)
    assert "\n" not in str(refused.value)
    assert not files(tmp_path)


def test_weights_that_have_more_are_named(tiny, successor, tmp_path):
    config = tiny(consolidation=ConsolidationConfig("dense"))
    loop.train(setup_of(config), successor(config), tmp_path / "source")
    config = from_run(tiny(), tmp_path / "source")
    with pytest.raises(ConfigError, match=r"synapse \[1, 1, 16, 8\] is unknown here"):
        loop.train(setup_of(config), successor(config), tmp_path / "run")


def test_another_architecture_is_named(tiny, successor, source, tmp_path):
    config = from_run(dataclasses.replace(tiny(), model=GPTConfig(vocab_size=12, n_layer=1, d_model=8, n_head=2)), source)
    with pytest.raises(ConfigError, match=r"holds a model of the architecture 'bdh', and config.model is one of 'gpt'"):
        loop.train(setup_of(config), successor(config), tmp_path)


def test_other_tokens_are_refused_and_text_starts_from_text(tiny, successor, tmp_path):
    config = change(tiny(), "model", vocab_size=256)
    (tmp_path / "text.txt").write_bytes(bytes(np.random.default_rng(0).integers(97, 109, 600, dtype=np.uint8)))
    text = dataclasses.replace(config, task=TextConfig(length=8), data=DataConfig(str(tmp_path / "text.txt")))
    run(text, tmp_path / "text")
    other = from_run(config, tmp_path / "text")
    with pytest.raises(
        ConfigError, match=r"'text', whose token ids are bytes, and those of the task 'successor' are peculiar"
    ):
        loop.train(setup_of(other), successor(other), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    carried = change(change(text, "task", order="consecutive"), "train", carry_state=True)
    run(from_run(still(carried), tmp_path / "text"), tmp_path / "carried")
    same(load(tmp_path / "carried", "last")[1], load(tmp_path / "text", "last")[1])


def test_each_seed_starts_from_its_own(tiny, seeds, tmp_path):
    config = still(from_run(dataclasses.replace(tiny(steps=3), seeds=(3, 5)), seeds))
    run(config, tmp_path / "both")
    for seed in (3, 5):
        same(load(tmp_path / "both" / f"seed{seed}", "last")[1], load(seeds / f"seed{seed}", "last")[1])
    one = still(from_run(tiny(steps=3, seed=5), f"{seeds}@3"))
    run(one, tmp_path / "one")
    assert origin(tmp_path / "one")["folder"] == str(seeds / "seed5")


def test_a_seed_without_a_source_is_refused_before_any_has_trained(tiny, seeds, tmp_path):
    config = from_run(dataclasses.replace(tiny(steps=3), seeds=(3, 7)), seeds)
    with pytest.raises(ConfigError, match=rf"{seeds} has the seeds 3, 5 and not 7; name the folder of one of them, such as"):
        run(config, tmp_path)
    assert not files(tmp_path)
    with pytest.raises(ConfigError, match="has the seeds 3, 5 and not 0"):
        run(from_run(tiny(steps=3), seeds), tmp_path)


def test_all_seeds_start_from_the_only_one(tiny, seeds, source, tmp_path):
    only = tmp_path / "only"
    shutil.copytree(seeds / "seed3", only / "seed3")
    config = still(from_run(dataclasses.replace(tiny(steps=3), seeds=(1, 2)), only))
    run(config, tmp_path / "run")
    assert {origin(tmp_path / "run" / f"seed{seed}")["folder"] for seed in (1, 2)} == {str(only / "seed3")}
    assert find_source(str(source), 77) == (source, None)


def test_seeds_do_not_start_from_different_weights_of_one_run(tiny, source, tmp_path):
    moving = tmp_path / "moving"
    shutil.copytree(source, moving)
    config = from_run(dataclasses.replace(tiny(steps=3), seeds=(1,)), moving)
    shutil.move(moving / "checkpoints" / "6", tmp_path / "later")
    run(config, tmp_path / "run")
    shutil.move(tmp_path / "later", moving / "checkpoints" / "6")
    with pytest.raises(
        CheckpointError, match=r"seed1 started from .*moving at step 4, which is at step 6 now: .*init_from=.*moving@6"
    ):
        run(dataclasses.replace(config, seeds=(1, 2)), tmp_path / "run")


def test_what_is_no_run_is_named(tiny, tmp_path):
    with pytest.raises(ConfigError, match="train.init_from='' is empty"):
        tiny(init_from="")
    for named, message in (
        ("nowhere", r"there is no folder .*nowhere; name that of a run, or FOLDER@STEP"),
        ("nowhere@best", r"there is no folder .*nowhere@best; name"),
        (".", r"holds no checkpoints; name the --workdir of a run"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(from_run(tiny(), tmp_path / named), tmp_path / "run")
    assert not files(tmp_path)
