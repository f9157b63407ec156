"""A run goes on with settings that do not change its result, and is refused with those that do."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal

import jax
import numpy as np
import pytest

from bdh_jax.config.convert import change
from bdh_jax.config.identity import HOW, WHERE, keys_of
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.data.config import DataConfig
from bdh_jax.experiment import record_of, run, setup_of
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.parallel.mesh import MeshConfig
from bdh_jax.runs.folder import CheckpointError
from bdh_jax.runs.reporter import read_rows
from bdh_jax.tasks import TextConfig
from bdh_jax.training import loop


@pytest.fixture(scope="module", autouse=True)
def donation():
    """Looking for NaN switches donation off, and with it what a save could get wrong."""
    with jax.debug_nans(False):
        yield


def losses(workdir, every=1):
    rows = {row["step"]: row["loss"] for row in read_rows(workdir / "metrics.jsonl", until=10**9) if "loss" in row}
    return [rows[step] for step in sorted(rows) if step % every == 0]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def starts(workdir):
    return json.loads((workdir / "run.json").read_text())["starts"]


@pytest.mark.parametrize(
    ("consolidation", "meshes"),
    [
        (None, [MeshConfig(data=4), MeshConfig(data=2, fsdp=True), MeshConfig(data=-1)]),
        (
            ConsolidationConfig("running_average"),
            [MeshConfig(neurons=2), MeshConfig(data=2, sequence=2, fsdp=True), MeshConfig(data=2, neurons=2)],
        ),
    ],
    ids=["data", "consolidated"],
)
def test_a_run_goes_on_with_another_mesh_to_the_same_losses(tiny, successor, kill_at, tmp_path, consolidation, meshes):
    config = tiny(batch_size=8, consolidation=consolidation)
    loop.train(setup_of(config), successor(config), tmp_path / "one")
    for mesh, at in zip(meshes, (1, 3, None), strict=True):
        config = dataclasses.replace(config, mesh=mesh)
        if at is None:
            loop.train(setup_of(config), successor(config), tmp_path / "several")
            continue
        with pytest.raises(loop.Interrupted, match=f"saved step {at + 1} of 6"):
            loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", at)), tmp_path / "several")
    one, several = losses(tmp_path / "one"), losses(tmp_path / "several")
    assert len(one) == 6
    # Gradients are sums over shards in another order: the bound is that between meshes.
    np.testing.assert_allclose(several, one, rtol=1e-5)
    assert [start["step"] for start in starts(tmp_path / "several")] == [0, 2, 4]


def test_what_changes_nothing_is_accepted_logged_and_recorded(tiny, successor, kill_at, tmp_path, caplog):
    logging.getLogger("bdh_jax").propagate = True
    config = tiny()
    loop.train(setup_of(config), successor(config), tmp_path / "one")
    with pytest.raises(loop.Interrupted, match="saved step 2 of 6"):
        loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 1)), tmp_path / "two")
    other = change(change(config, "train", checkpoint_every=1, log_every=2), "model", remat=True, implementation="recurrent")
    caplog.set_level(logging.INFO)
    results = loop.train(setup_of(other), successor(other), tmp_path / "two")
    one, two = losses(tmp_path / "one", every=2), losses(tmp_path / "two", every=2)
    # Another form of the same sums, in float32.
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert f"resuming {tmp_path}/two at step 2, model.remat=true instead of false, " in caplog.text
    assert ', model.implementation="recurrent" instead of "auto", ' in caplog.text
    first, second = starts(tmp_path / "two")
    assert "changed" not in first
    assert second["changed"]["train.checkpoint_every"] == {"there": "3", "now": "1"}
    assert set(second["changed"]) == {"train.checkpoint_every", "train.log_every", "model.remat", "model.implementation"}
    assert results["config"] == json.loads((tmp_path / "two" / "run.json").read_text())["config"] == record_of(other).config
    # It is finished, whatever the settings that do not matter.
    before = files(tmp_path / "two")
    assert loop.train(setup_of(config), successor(config), tmp_path / "two") == results
    assert files(tmp_path / "two") == before


def test_which_settings_do_not_identify_the_result(tiny):
    """A field that is marked by mistake would let a run go on as another one: each is a decision."""
    config = tiny()
    assert isinstance(config.model, BDHConfig)
    assert keys_of(config, HOW) == {
        "mesh",
        "model.chunk_size",
        "model.implementation",
        "model.kernel",
        "model.remat",
        "model.token_step",
        "train.checkpoint_every",
        "train.keep_every",
        "train.save",
        "train.log_contributions",
        "train.log_every",
    }
    assert keys_of(config, WHERE) == {"data.path", "data.validation_path", "data.column", "data.tokenizer"}


def test_a_refusal_is_one_line_that_says_how_to_start_from_these_weights(tiny, successor, kill_at, tmp_path):
    config, workdir = tiny(), tmp_path / "my run"
    with pytest.raises(loop.Interrupted):
        loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 1)), workdir)
    other = tiny(steps=12, batch_size=8, log_every=3, mesh=MeshConfig(data=2))
    before = files(workdir)
    with pytest.raises(CheckpointError) as refused:
        loop.train(setup_of(other), successor(other), workdir)
    assert str(refused.value) == (
        f"{workdir} holds a run of another configuration: train.steps: there 6, now 12; train.batch_size: there 4, now 8. Use another "
        f"--workdir and --config.train.init_from='{workdir}' to start from its weights, or the configuration that made it to go on with it; "
        "nothing was changed"
    )
    assert files(workdir) == before


def test_of_several_seeds_the_run_is_named_to_start_from(tiny, tmp_path):
    config = dataclasses.replace(tiny(steps=3), seeds=(0, 1))
    run(config, tmp_path / "run")
    for done in (True, False):
        if not done:
            (tmp_path / "run" / "results.json").unlink()
        with pytest.raises(
            CheckpointError, match=rf"train.steps: there 3, now 4.*--config.train.init_from={tmp_path}/run to start"
        ):
            run(change(config, "train", steps=4), tmp_path / "run")
    results = run(dataclasses.replace(change(config, "train", log_every=2), mesh=MeshConfig(data=2)), tmp_path / "run")
    assert results["seeds"] == [0, 1]


@pytest.fixture
def text_experiment(tiny, tmp_path):
    """A run on a file of 600 bytes."""
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(np.random.default_rng(0).integers(97, 109, 600, dtype=np.uint8)))
    config = change(tiny(), "model", vocab_size=256)
    return dataclasses.replace(config, task=TextConfig(length=8), data=DataConfig(str(path)))


def moved(config, folder):
    """The same text in another place."""
    there = folder / "elsewhere" / "same.txt"
    there.parent.mkdir()
    (folder / "text.txt").rename(there)
    return change(config, "data", path=str(there)), there


def interrupt(config, workdir, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("bdh_jax.runs.reporter.Reporter.training", lambda *arguments: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(loop.Interrupted):
            run(config, workdir)


def test_a_text_that_was_moved_is_the_same_text(text_experiment, tmp_path, monkeypatch):
    interrupt(text_experiment, tmp_path / "run", monkeypatch)
    config, there = moved(text_experiment, tmp_path)
    text = there.read_bytes()
    there.write_bytes(text[:-1] + b"z")
    with pytest.raises(CheckpointError, match="holds a run on another text"):
        run(config, tmp_path / "run")
    there.write_bytes(text)
    results = run(config, tmp_path / "run")
    assert results["steps"] == 6
    assert starts(tmp_path / "run")[-1]["changed"]["data.path"]["now"] == json.dumps(str(there))
    # Now it is finished, and where its text lies is still not what it is.
    (tmp_path / "text.txt").write_bytes(text)
    assert run(text_experiment, tmp_path / "run") == results
    (tmp_path / "text.txt").write_bytes(text[:-1] + b"z")
    with pytest.raises(CheckpointError, match="holds a run on another text"):
        run(text_experiment, tmp_path / "run")


def test_of_several_seeds_a_text_may_have_moved(text_experiment, tmp_path):
    config = change(dataclasses.replace(text_experiment, seeds=(0,)), "train", steps=3)
    run(config, tmp_path / "run")
    config, there = moved(config, tmp_path)
    assert run(dataclasses.replace(config, seeds=(0, 1)), tmp_path / "run")["seeds"] == [0, 1]
    there.write_bytes(there.read_bytes()[:-1] + b"z")
    (tmp_path / "text.txt").write_bytes(there.read_bytes())
    with pytest.raises(CheckpointError, match="holds a run on another text"):
        run(change(dataclasses.replace(config, seeds=(0, 1)), "data", path=str(tmp_path / "text.txt")), tmp_path / "run")


def test_without_a_fingerprint_the_place_is_what_is_compared(text_experiment, tmp_path, monkeypatch):
    """Of a text whose fingerprint was lost with the record, and of a task that takes none."""
    interrupt(text_experiment, tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    config, _ = moved(text_experiment, tmp_path)
    with pytest.raises(CheckpointError, match="another configuration: data.path: there"):
        run(config, tmp_path / "run")


def test_a_run_killed_before_its_first_save_may_save_more_often(tiny, successor, tmp_path, caplog):
    logging.getLogger("bdh_jax").propagate = True
    config = tiny(steps=6, evaluate_every=6, checkpoint_every=6)

    def die(what, number):
        if (what, number) == ("batch", 4):
            raise MemoryError

    with pytest.raises(MemoryError):
        loop.train(setup_of(config), successor(config, die), tmp_path)
    config = change(config, "train", checkpoint_every=1)
    assert loop.train(setup_of(config), successor(config), tmp_path)["steps"] == 6
    assert "it begins anew" in caplog.text
