"""Checkpoints on disk: what is read is what was saved, and what is damaged is said and costs one checkpoint at most."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bdh_jax.config.records import digest_of
from bdh_jax.runs.checkpoint import Checkpoints, RunProgress, load_slow, read_slow
from bdh_jax.runs.fingerprint import different, digests, merged
from bdh_jax.runs.folder import CheckpointError, Record

RECORD = Record({"model": {"name": "small"}})


@pytest.fixture(autouse=True)
def logged():
    """A command's own log does not reach the one that tests look at."""
    logging.getLogger("bdh_jax").propagate = True


def trees(step: int) -> dict:
    slow = {"embed": jnp.sin(jnp.arange(3000.0)) + step, "head": jnp.full((4, 5), step, jnp.bfloat16)}
    return {"slow": slow, "optimizer": {"step": jnp.int32(step), "state": (jnp.ones(7) * step,)}}


def target() -> dict:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), trees(0))


def step_of(restored) -> int:
    return restored["optimizer"]["step"]


def progress(step: int) -> RunProgress:
    return RunProgress(step=step, seconds=1.5, training_seconds=1.0, tokens=10, evaluated=False)


@contextmanager
def opened(workdir: Path):
    checkpoints = Checkpoints(workdir, RECORD)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def save(workdir: Path, *steps: int, primary: dict | None = None) -> None:
    with opened(workdir) as checkpoints:
        for step in steps:
            checkpoints.save(trees(step), progress(step), (primary or {}).get(step))


def same(a, b) -> bool:
    equal = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    return all(jax.tree.leaves(equal))


def kept(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def array_file(checkpoint: Path, item: str = "slow") -> Path:
    """The largest file of an item, which is that of its arrays if it has some."""
    found = [path for path in (checkpoint / item).rglob("d/*" if item != "info" else "*") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_size)


def test_the_last_two_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, primary={1: 0.25, 2: 0.75, 3: 0.5})
    assert kept(tmp_path) == ["2", "3", "4"]
    with opened(tmp_path) as checkpoints:
        assert (checkpoints.last_step, checkpoints.best) == (4, (2, 0.75))
        restored, where = checkpoints.restore(target(), step_of)
    assert same(restored, trees(4))
    assert where == progress(4)
    assert same(load_slow(tmp_path)[1], trees(2)["slow"])
    assert same(load_slow(tmp_path, "last")[1], trees(4)["slow"])


def test_digests_do_not_depend_on_the_mesh():
    mesh = Mesh(np.array(jax.devices()[:4]), "x")
    one = {"a": jnp.arange(8.0), "b": (jnp.zeros((4, 2), jnp.bfloat16), jnp.int32(3))}
    spread = {
        "a": jax.device_put(one["a"], NamedSharding(mesh, PartitionSpec("x"))),
        "b": jax.device_put(one["b"], NamedSharding(mesh, PartitionSpec())),
    }
    assert digests(one) == digests(spread) == digests(jax.tree.map(np.asarray, one))
    for name, other in {"dtype": one["a"].astype(jnp.int32), "shape": one["a"].reshape(2, 4), "bits": one["a"] + 1}.items():
        assert digests(one)["['a']"] != digests({**one, "a": other})["['a']"], name


def test_parts_of_several_hosts_together_say_what_an_array_is():
    """As processes of one run save it, each its own part of "a"; "b" is whole in one of them."""
    tree = {"a": np.arange(24, dtype=np.float32).reshape(4, 6), "b": np.arange(3, dtype=np.int32)}
    halves = [digests({"a": half})["['a']"] for half in (tree["a"][:, :2], tree["a"][:, 2:])]
    first = {"['a']": {"0:4,0:2": halves[0]}, "['b']": digests(tree)["['b']"]}
    saved = merged([first, {"['a']": {"0:4,2:6": halves[1]}}])
    assert saved["['a']"] == {"0:4,0:2": halves[0], "0:4,2:6": halves[1]}
    assert different(tree, saved) == []
    assert different(jax.tree.map(jnp.asarray, tree), saved) == []
    for row, column in ((0, 0), (3, 1), (0, 2), (3, 5)):
        other = tree["a"].copy()
        other[row, column] += 1
        assert different({**tree, "a": other}, saved) == ["['a']"], (row, column)
    assert different({"a": tree["a"]}, saved) == ["['b']"]
    assert different({**tree, "c": tree["b"]}, saved) == ["['c']"]
    assert different(tree, {**saved, "['a']": {}}) == ["['a']"]


@pytest.mark.parametrize("item", ["slow", "optimizer", "info"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(item, tmp_path, caplog):
    save(tmp_path, 3, 4)
    flip(array_file(tmp_path / "checkpoints" / "4", item))
    with opened(tmp_path) as checkpoints:
        restored, where = checkpoints.restore(target(), step_of)
        assert where.step == checkpoints.last_step == 3
        assert same(restored, trees(3))
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"{tmp_path}/checkpoints/4" in line
        assert line.endswith(f"the run goes on from {tmp_path}/checkpoints/3")
        assert "damaged-4" in line
        # It comes to that step once more.
        checkpoints.save(trees(4), progress(4))
    assert kept(tmp_path) == ["3", "4", "damaged-4"]
    assert same(load_slow(tmp_path, "last")[1], trees(4)["slow"])


def test_the_only_checkpoint_is_named_and_left_as_it_is(tmp_path):
    save(tmp_path, 3)
    flip(array_file(tmp_path / "checkpoints" / "3"))
    before = files(tmp_path)
    with opened(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=r"checkpoints/3 cannot be read"):
        checkpoints.restore(target(), step_of)
    with pytest.raises(CheckpointError, match=r"checkpoints/3 cannot be read"):
        load_slow(tmp_path)
    assert files(tmp_path) == before


def test_a_damaged_best_checkpoint_is_said_and_no_longer_the_best(tmp_path, caplog):
    save(tmp_path, 1, 2, 3, 4, primary={1: 0.75, 2: 0.5, 3: 0.25})
    flip(array_file(tmp_path / "checkpoints" / "1"))
    assert same(load_slow(tmp_path)[1], trees(3)["slow"])
    assert "checkpoints/1 is damaged" in caplog.text
    assert "checkpoints/3 is read instead" in caplog.text
    with opened(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(target(), step_of)
        assert same(restored, trees(4))
        assert checkpoints.best == (3, 0.25)
    assert kept(tmp_path) == ["3", "4", "damaged-1"]


def edit(path: Path, **changes) -> None:
    """Change a record and give it the digest of what it says now."""
    values = json.loads(path.read_text())
    values["progress"].update(changes)
    values["digest"] = digest_of(values)
    path.write_text(json.dumps(values))


def test_name_state_and_record_must_be_of_one_step(tmp_path):
    save(tmp_path / "record", 3)
    edit(tmp_path / "record" / "checkpoints" / "3" / "info" / "metadata", step=2)
    with pytest.raises(CheckpointError, match=r"its record is that of step 2"):
        Checkpoints(tmp_path / "record", RECORD)
    with pytest.raises(CheckpointError, match=r"its record is that of step 2"):
        load_slow(tmp_path / "record")
    save(tmp_path / "name", 3)
    (tmp_path / "name" / "checkpoints" / "3").rename(tmp_path / "name" / "checkpoints" / "5")
    with pytest.raises(CheckpointError, match=r"checkpoints/5 .*its record is that of step 3"):
        load_slow(tmp_path / "name")
    with opened(tmp_path / "state") as checkpoints:
        checkpoints.save(trees(2), progress(3))
        with pytest.raises(CheckpointError, match="its arrays are those of step 2"):
            checkpoints.restore(target(), step_of)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "dictionary"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "config: Field required"),
        ('{"config": {}, "progress": {"step": 3.0}}', r"progress.step: .* and is 3.0"),
        ('{"config": [], "progress": 1}', r"config: .* and is \[\]"),
        ("\xff", "no JSON"),
    ],
)
def test_a_malformed_record_is_one_line(content, reason, tmp_path):
    save(tmp_path, 3)
    (tmp_path / "checkpoints" / "3" / "info" / "metadata").write_bytes(content.encode("latin-1"))
    for read in (lambda: Checkpoints(tmp_path, RECORD), lambda: load_slow(tmp_path)):
        with pytest.raises(CheckpointError, match=rf"metadata cannot be read \(.*{reason}") as refused:
            read()
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 600


def older(workdir: Path, step: int, primary: float) -> None:
    """A checkpoint as it was before there were digests."""
    manager = ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["primary"], enable_async_checkpointing=False),
    )
    info = {"config": RECORD.config, "progress": progress(step).model_dump()}
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in trees(step).items()}
    manager.save(step, args=ocp.args.Composite(info=ocp.args.JsonSave(info), **arrays), metrics={"primary": primary})
    manager.close()


def test_a_checkpoint_without_digests_is_read_with_a_warning(tmp_path, caplog):
    older(tmp_path, 2, 0.5)
    older(tmp_path, 3, -1.0)
    assert same(load_slow(tmp_path)[1], trees(2)["slow"])
    assert "checkpoints/2 was saved by an older version, without digests" in caplog.text
    with opened(tmp_path) as checkpoints:
        assert checkpoints.best == (2, 0.5)
        assert same(checkpoints.restore(target(), step_of)[0], trees(3))
        checkpoints.save(trees(4), progress(4), 0.75)
    assert kept(tmp_path) == ["3", "4"]


@pytest.mark.parametrize("name", ["r[lr=0.1]", "a*b", "what?", "back\\slash"])
def test_a_folder_whose_name_is_a_pattern_is_refused_before_anything_is_written(name, tmp_path):
    for use in (lambda folder: Checkpoints(folder, RECORD), load_slow):
        with pytest.raises(CheckpointError, match="cannot hold checkpoints: there is a .* in the path.*rename the folder"):
            use(tmp_path / name / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a b", "50%", "ü#&'\"", "{x}", "-x", "a\nb", "5", "$HOME", "~", "a:b,c;d=e!"])
def test_a_folder_may_be_called_anything_else(name, tmp_path):
    save(tmp_path / name, 3)
    assert same(load_slow(tmp_path / name)[1], trees(3)["slow"])
    with opened(tmp_path / name) as checkpoints:
        assert same(checkpoints.restore(target(), step_of)[0], trees(3))


def test_what_cannot_be_read_back_does_not_supersede_what_can(tmp_path, monkeypatch):
    """The library says that it has saved, and what lies on the disk is something else."""
    save(tmp_path, 2, 3, primary={3: 0.5})
    before, real = files(tmp_path), ocp.Checkpointer.save

    def save_wrong(self, path, *arguments, **more):
        real(self, path, *arguments, **more)
        flip(array_file(Path(path)))

    monkeypatch.setattr(ocp.Checkpointer, "save", save_wrong)
    with opened(tmp_path) as checkpoints:
        for step, primary in ((4, None), (3, 0.75)):
            with pytest.raises(CheckpointError, match="no checkpoint can be written .*read"):
                checkpoints.save(trees(step), progress(step), primary)
        assert (checkpoints.last_step, checkpoints.best) == (3, (3, 0.5))
    assert files(tmp_path) == before


@contextmanager
def small_files(nbytes: int):
    """What a full disk is to a process: no file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    save(tmp_path, 2, 3)
    before = files(tmp_path)
    with opened(tmp_path) as checkpoints:
        with small_files(600), pytest.raises(CheckpointError, match="no checkpoint can be written"):
            checkpoints.save(trees(4), progress(4))
        assert files(tmp_path) == before
        checkpoints.save(trees(4), progress(4))
    assert kept(tmp_path) == ["3", "4"]


_FAILS = """
import shutil, sys, pathlib, jax
from bdh_jax.runs.checkpoint import Checkpoints
from bdh_jax.runs.folder import CheckpointError
from tests.runs import test_checkpoint as small
workdir = pathlib.Path(sys.argv[1])
checkpoints = Checkpoints(workdir, small.RECORD)
checkpoints.save(small.trees(1), small.progress(1))
shutil.rmtree(workdir / "checkpoints")
(workdir / "checkpoints").write_text("")
try:
    checkpoints.save(small.trees(2), small.progress(2))
except CheckpointError as error:
    print("said:", error, flush=True)
checkpoints.close()
"""


def test_a_process_whose_save_failed_ends(tmp_path):
    """Orbax' threads would keep it for ever."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", _FAILS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "said: no checkpoint can be written into" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_folder_may_be_named_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("run"), 2, 3)
    assert same(load_slow("run")[1], trees(3)["slow"])
    with opened(Path("run")) as checkpoints:
        assert same(checkpoints.restore(target(), step_of)[0], trees(3))


def test_a_run_that_trains_can_be_loaded_all_the_while(tmp_path, monkeypatch, caplog):
    """Between the list of checkpoints and the reading of one, others have taken their place."""
    from bdh_jax.runs import checkpoint

    save(tmp_path, 1, 2, primary={1: 0.5})
    real, times = checkpoint._read_infos, []

    def late(folder, listed=None):
        found = real(folder, listed)
        if listed is not None and len(times) < 3:
            times.append(None)
            step = 2 * len(times) + 1
            save(tmp_path, step, step + 1, primary={step: 0.5 + step})
        return found

    monkeypatch.setattr(checkpoint, "_read_infos", late)
    assert same(load_slow(tmp_path)[1], trees(7)["slow"])
    assert len(times) == 3
    assert not caplog.text


def test_a_checkpoint_that_is_being_replaced_is_waited_for(tmp_path, monkeypatch):
    """For a moment the only one lies among those to be deleted."""
    save(tmp_path, 3)
    folder = tmp_path / "checkpoints"
    (folder / "deleted").mkdir()
    (folder / "3").rename(folder / "deleted" / "3")
    monkeypatch.setattr(time, "sleep", lambda seconds: (folder / "deleted" / "3").rename(folder / "3"))
    assert same(load_slow(tmp_path)[1], trees(3)["slow"])


def test_the_configuration_is_compared(tmp_path):
    save(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"(?s)another configuration:.*model.name: there \"small\", now \"large\""):
        Checkpoints(tmp_path, dataclasses.replace(RECORD, config={"model": {"name": "large"}}))


@pytest.mark.parametrize("background", [False, True])
def test_what_is_saved_is_what_was_there_then(background, tmp_path):
    with opened(tmp_path) as checkpoints:
        given = jax.tree.map(np.array, trees(1))
        checkpoints.save(given, progress(1), background=background)
        # The next step writes into the same memory.
        jax.tree.map(lambda leaf: leaf.fill(0), given)
        checkpoints.save(trees(2), progress(2), background=background)
        assert checkpoints.last_step == 2
    assert same(read_slow(tmp_path, 1).slow, trees(1)["slow"])


def test_a_save_in_the_background_that_fails_says_so_at_the_next(tmp_path, monkeypatch, caplog):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(trees(1), progress(1))
        monkeypatch.setattr(checkpoints, "_put_in_place", lambda new, step: new.rename(tmp_path / "nowhere" / "at" / "all"))
        checkpoints.save(trees(2), progress(2), background=True)
        with pytest.raises(CheckpointError, match="no checkpoint can be written"):
            checkpoints.save(trees(3), progress(3), background=True)
        assert checkpoints.last_step == 1
        checkpoints.save(trees(3), progress(3), background=True)
    assert "no checkpoint can be written" in caplog.text


def test_some_are_kept_for_good(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path, RECORD, keep_every=3)) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(trees(step), progress(step))
    assert kept(tmp_path) == ["3", "6", "7", "8"]
