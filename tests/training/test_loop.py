"""Training, interrupted and resumed, is the training never interrupted; what goes wrong is said and harms nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.experiment import load, record_of, run, setup_of
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.parallel.mesh import MeshConfig
from bdh_jax.runs.checkpoint import Checkpoints, RunProgress
from bdh_jax.runs.folder import CheckpointError
from bdh_jax.runs.reporter import Reporter, read_rows
from bdh_jax.training import loop
from tests.compiled import apply

UNTIL_END = 10**9


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _stored(path):
    """What a file says besides its digest."""
    values = json.loads(path.read_text())
    assert values.pop("digest")
    return values


def _rows(workdir):
    rows = read_rows(workdir / "metrics.jsonl", until=UNTIL_END)
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def _assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]).view(np.uint32), np.asarray(b[name]).view(np.uint32), err_msg=name)


@pytest.fixture(scope="module", autouse=True)
def donation():
    """Looking for NaN switches donation off, and with it what a save could get wrong."""
    with jax.debug_nans(False):
        yield


@pytest.fixture(scope="module")
def finished(tiny, successor, tmp_path_factory):
    """A run of 6 steps that nothing interrupted: (config, workdir, results)."""
    workdir = tmp_path_factory.mktemp("finished")
    config = tiny()
    return config, workdir, loop.train(setup_of(config), successor(config), workdir)


def test_a_finished_run_leaves_what_it_promises(finished):
    config, workdir, results = finished
    assert _stored(workdir / "results.json") == results
    assert results["seed"] == 0
    assert results["steps"] == 6
    assert results["seconds"] > 0
    assert results["tokens_per_second"] > 0
    assert results["evaluation"]["succ"]["ratio"] == results["primary"]
    rows = _rows(workdir)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "evaluation" in row] == [4, 6]
    assert rows[-1]["evaluation"]["succ"] == results["evaluation"]["succ"]
    assert {"loss", "recall", "grad_norm", "learning_rate"} < rows[0].keys()
    run = json.loads((workdir / "run.json").read_text())
    assert run["config"]["train"]["steps"] == config.train.steps
    (start,) = run["starts"]
    assert start["seed"] == 0
    assert start["device"]["platform"] == "cpu"
    assert start["versions"]["jax"] == jax.__version__
    assert list((workdir / "tensorboard").iterdir())


def test_a_finished_run_is_not_run_again(finished, successor):
    config, workdir, results = finished

    def never(what, number):
        raise AssertionError(what)

    before = _files(workdir)
    assert loop.train(setup_of(config), successor(config, never), workdir) == results
    assert _files(workdir) == before


@pytest.mark.parametrize(
    ("number", "what", "at", "saved"),
    [
        (signal.SIGTERM, "batch", 1, 2),
        (signal.SIGTERM, "batch", 2, 3),
        (signal.SIGINT, "batch", 4, 5),
        (signal.SIGHUP, "batch", 2, 3),
        (signal.SIGUSR1, "evaluate", 0, 4),
        (signal.SIGTERM, "evaluate", 0, 4),
        (signal.SIGTERM, "evaluate", 1, 6),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_bits(finished, successor, kill_at, tmp_path, number, what, at, saved):
    config, uninterrupted, results = finished
    handler = signal.getsignal(number)
    with pytest.raises(loop.Interrupted, match=f"saved step {saved} of 6") as stopped:
        loop.train(setup_of(config), successor(config, kill_at(number, what, at)), tmp_path)
    assert stopped.value.signal_number == number
    assert signal.getsignal(number) == handler
    assert not (tmp_path / "results.json").exists()
    assert Checkpoints(tmp_path, record_of(config)).last_step == saved

    resumed = loop.train(setup_of(config), successor(config), tmp_path)
    assert resumed["evaluation"] == results["evaluation"]
    assert resumed["best"] == results["best"]
    assert _rows(tmp_path) == _rows(uninterrupted)
    for which in ("last", "best"):
        _assert_same_bits(load(tmp_path, which)[1], load(uninterrupted, which)[1])
    assert [start["step"] for start in json.loads((tmp_path / "run.json").read_text())["starts"]] == [0, saved]


def test_a_killed_run_resumes_from_its_last_checkpoint(finished, successor, tmp_path):
    """Killed without warning at step 5: rows after the checkpoint of step 4, one of them cut short, are written anew."""
    config, uninterrupted, _ = finished

    def die(what, number):
        if (what, number) == ("batch", 5):
            raise MemoryError

    with pytest.raises(MemoryError):
        loop.train(setup_of(config), successor(config, die), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 123.0}\n{"step": 6, "lo')
    last = Checkpoints(tmp_path, record_of(config)).last_step
    assert last in (3, 4)
    loop.train(setup_of(config), successor(config), tmp_path)
    assert _rows(tmp_path) == _rows(uninterrupted)
    _assert_same_bits(load(tmp_path, "last")[1], load(uninterrupted, "last")[1])


def test_best_and_last_are_both_kept(tiny, successor, tmp_path, monkeypatch):
    """Evaluations whose score falls after step 2: the best checkpoint stays, the last one is another."""
    config = tiny(steps=8, evaluate_every=2, checkpoint_every=3)
    task = successor(config)
    evaluate, scores = task.evaluate, iter([0.5, 0.25, 0.375, 0.125])

    def falling(predict):
        return dataclasses.replace(evaluate(predict), primary=next(scores))

    task.evaluate = falling
    results = loop.train(setup_of(config), task, tmp_path)
    assert results["best"] == {"step": 2, "primary": 0.5}
    assert results["primary"] == 0.125
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 6, 8]
    best, last = load(tmp_path)[1], load(tmp_path, "last")[1]
    monkeypatch.chdir(tmp_path.parent)
    _assert_same_bits(load(tmp_path.name)[1], best)
    assert any(np.any(np.asarray(best[name]) != np.asarray(last[name])) for name in best)


def test_nan_stops_and_is_never_saved(tiny, successor, tmp_path):
    config = tiny(steps=9, evaluate_every=9, checkpoint_every=2, log_every=4)
    task = successor(config)
    batch = task.batch
    task.batch = lambda step: batch(step)._replace(loss_weights=batch(step).loss_weights * (np.nan if step == 4 else 1))
    with pytest.raises(loop.NonFiniteError, match="at step 5.*Last good checkpoint: step 4"):
        loop.train(setup_of(config), task, tmp_path)
    assert Checkpoints(tmp_path, record_of(config)).last_step == 4
    assert all(np.all(np.isfinite(leaf)) for leaf in load(tmp_path, "last")[1].values())


def test_another_configuration_is_refused(finished, tiny, successor, tmp_path, kill_at):
    config, workdir, _ = finished
    interrupted = tmp_path / "interrupted"
    with pytest.raises(loop.Interrupted):
        loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 2)), interrupted)
    other = tiny(steps=7, optimizer={"clip_norm": None})
    for folder in (workdir, interrupted):
        before = _files(folder)
        with pytest.raises(CheckpointError, match="another configuration") as refused:
            loop.train(setup_of(other), successor(other), folder)
        message = str(refused.value)
        assert "train.steps: there 6, now 7" in message
        assert "optimizer.clip_norm: there 1.0, now null" in message
        assert "batch_size" not in message
        assert _files(folder) == before


def test_a_damaged_checkpoint_is_named_and_kept(tiny, successor, kill_at, tmp_path):
    config = tiny()
    with pytest.raises(loop.Interrupted):
        loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 2)), tmp_path)
    folder = tmp_path / "checkpoints" / "3"
    damaged = ["info/metadata", "slow/_METADATA", "slow/d/*", "optimizer/manifest.ocdbt", "optimizer/d/*"]
    for pattern in damaged:
        (path,) = folder.glob(pattern)
        content = path.read_bytes()
        for shorter in (content[: len(content) // 2], b"", None):
            if shorter is None and pattern != "slow/_METADATA":  # Orbax does without it
                path.unlink()
            elif shorter is not None:
                path.write_bytes(shorter)
            before = _files(tmp_path)
            with pytest.raises(CheckpointError, match=r"checkpoints.*cannot be read"):
                loop.train(setup_of(config), successor(config), tmp_path)
            assert _files(tmp_path) == before
        path.write_bytes(content)
    loop.train(setup_of(config), successor(config), tmp_path)

    (tmp_path / "results.json").write_text('{"config": {"ta')
    with pytest.raises(CheckpointError, match=r"results\.json cannot be read"):
        loop.train(setup_of(config), successor(config), tmp_path)


def test_what_cannot_run_here_writes_nothing(tiny, successor, tmp_path):
    workdir = tmp_path / "new"
    small = tiny(model={"vocab_size": 10})
    with pytest.raises(ConfigError, match=r"model\.vocab_size=10 is too small.*vocab_size=12"):
        loop.train(setup_of(small), successor(small), workdir)
    pallas = tiny(model={"kernel": "pallas"})
    with pytest.raises(ConfigError, match="pallas"):
        loop.train(setup_of(pallas), successor(pallas), workdir)
    short = tiny(steps=2)
    with pytest.raises(ConfigError, match=r"optimizer\.warmup_steps=2 must be less than train\.steps=2"):
        loop.train(setup_of(short), successor(short), workdir)
    assert not workdir.exists()


def test_every_save_is_on_disk_before_training_goes_on(tiny, successor, tmp_path, monkeypatch):
    """A process that is killed later then loses at most a save interval."""
    saved, real = [], Checkpoints.save

    def save(self, trees, progress, primary=None, **how):
        real(self, trees, progress, primary, **how)
        saved.append((progress.step, sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())[-1]))

    monkeypatch.setattr(Checkpoints, "save", save)
    config = tiny()
    loop.train(setup_of(config), successor(config), tmp_path)
    assert saved == [(3, 3), (4, 4), (6, 6)]
    others = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    assert not others


def test_steps_go_on_while_a_checkpoint_is_written_in_the_background(tiny, successor, tmp_path, monkeypatch):
    """The save of step 2 ends only when step 3 was reported."""
    config = tiny(checkpoint_every=2, evaluate_every=6, save="background")
    reported, waited = threading.Event(), []
    save, training = Checkpoints._save, Reporter.training

    def slow(self, trees, progress, primary):
        if progress.step == 2:
            waited.append(reported.wait(30))
        save(self, trees, progress, primary)

    def note(self, step, row):
        if step == 3:
            reported.set()
        training(self, step, row)

    monkeypatch.setattr(Checkpoints, "_save", slow)
    monkeypatch.setattr(Reporter, "training", note)
    loop.train(setup_of(config), successor(config), tmp_path)
    assert waited == [True]


def test_a_checkpoint_that_was_being_replaced_is_put_back(finished, tmp_path):
    """Killed between taking the last checkpoint away and writing it again with its score."""
    config, workdir, _ = finished
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    last = Checkpoints(folder, record_of(config)).last_step
    (folder / "checkpoints" / "deleted").mkdir()
    (folder / "checkpoints" / str(last)).rename(folder / "checkpoints" / "deleted" / str(last))
    shutil.copytree(folder / "checkpoints" / "deleted" / str(last), folder / "checkpoints" / "deleted" / "1")
    checkpoints = Checkpoints(folder, record_of(config))
    assert checkpoints.last_step == last
    checkpoints.close()
    # One that is older than what is kept was to be deleted.
    assert not (folder / "checkpoints" / "deleted").exists()
    assert not (folder / "checkpoints" / "1").exists()


def test_a_checkpoint_that_could_not_be_replaced_is_kept(finished, tmp_path, monkeypatch):
    """The disk is full when the last checkpoint is written again with its score."""
    config, workdir, _ = finished
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    checkpoints = Checkpoints(folder, record_of(config))
    last = checkpoints.last_step
    kept = _files(folder / "checkpoints" / str(last))
    trees = {"slow": {"embed": np.zeros(2)}, "optimizer": {"step": np.int32(last)}}
    progress = RunProgress(step=last, seconds=0.0, training_seconds=0.0, tokens=0, evaluated=True)
    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.Checkpointer.save", _disk_is_full)
        with pytest.raises(CheckpointError, match="no checkpoint can be written"):
            checkpoints.save(trees, progress, 0.5)
    checkpoints.close()
    assert _files(folder / "checkpoints" / str(last)) == kept
    again = Checkpoints(folder, record_of(config))
    assert again.last_step == last
    again.close()


def _disk_is_full(*arguments, **more):
    raise OSError(28, "No space left on device")


def test_metrics_that_stay_are_not_written_again(finished, tmp_path, monkeypatch):
    """Where nothing can be written any more, the rows of the steps before are still there."""
    _, workdir, _ = finished
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    monkeypatch.setattr("bdh_jax.runs.reporter.EventFile", _disk_is_full)
    with pytest.raises(CheckpointError, match="No space left"):
        Reporter(folder, steps=9, start=3, title="", accuracy_name="recall")
    left = path.read_bytes()
    assert whole.startswith(left)
    assert [row["step"] for row in read_rows(path, until=UNTIL_END)][-1] == 3
    path.write_bytes(left + b'{"step": 4, "lo')
    assert [row["step"] for row in read_rows(path, until=UNTIL_END)][-1] == 3


def test_a_damaged_line_of_the_metrics_takes_no_other_with_it(finished, tmp_path, caplog):
    """Only a last line cut short goes without a word; of any other a copy is kept, and the log says so."""
    logging.getLogger("bdh_jax").propagate = True
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in range(1, 1001)]
    path = tmp_path / "metrics.jsonl"
    for number, (damaged, what) in enumerate(
        [('{"step": 6, "lo~', "line 6, it is no JSON"), ('{"step": 994}', "line 6, is of a later")]
    ):
        path.write_text("\n".join([*lines[:5], damaged, *lines[6:], '{"step": 1001, "lo']))
        content = path.read_bytes()
        with pytest.raises(CheckpointError, match=what):
            read_rows(path, until=990)
        caplog.clear()
        Reporter(tmp_path, steps=2000, start=990, title="", accuracy_name="recall").close()
        assert [row["step"] for row in read_rows(path, until=UNTIL_END)] == [*range(1, 6), *range(7, 991)]
        aside = tmp_path / f"metrics.jsonl.damaged{'-1' if number else ''}"
        assert aside.read_bytes() == content
        assert f"metrics.jsonl, {what}" in caplog.text
        assert str(aside) in caplog.text
    caplog.clear()
    path.write_text("\n".join([*lines[:20], '{"step": 21, "lo']))
    Reporter(tmp_path, steps=2000, start=20, title="", accuracy_name="recall").close()
    assert path.read_text() == "".join(line + "\n" for line in lines[:20])
    assert not caplog.text


def test_checkpoints_that_are_gone_are_said(tiny, successor, kill_at, tmp_path, caplog):
    """A run that had saved is not begun anew over its own metrics; one killed before its first save is, and the log says so."""
    logging.getLogger("bdh_jax").propagate = True
    config = tiny()
    with pytest.raises(loop.Interrupted):
        loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 4)), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = _files(tmp_path)
    with pytest.raises(CheckpointError, match=r"had come to step 5, and .*checkpoints holds no checkpoint of it: restore"):
        loop.train(setup_of(config), successor(config), tmp_path)
    assert _files(tmp_path) == before
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    loop.train(setup_of(config), successor(config), tmp_path)
    assert "ended before its first checkpoint, at step 1: it begins anew" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", {"starts": []}, r"run.json is not of a training run"),
        ("run.json", {"config": 3, "starts": []}, r"run.json is not of a training run"),
        ("run.json", {"config": "its own"}, r"run.json cannot be read \(starts: Field required\)"),
        ("run.json", {"config": "its own", "starts": 3}, r"run.json cannot be read \(starts: .*list, and is 3\)"),
        (
            "run.json",
            {"config": "its own", "starts": [], "files": [1]},
            r"run.json cannot be read \(files.0: .*string, and is 1\)",
        ),
        ("run.json", {"config": "its own", "starts": [], "text": ["[/red]"]}, r"run.json cannot be read \(text: .*string"),
        ("results.json", {"config": "its own"}, r"results.json cannot be read \(seed: Field required\)"),
        ("results.json", {"config": "its own", "evaluation": []}, r"results.json cannot be read \(seed: Field required\)"),
        ("results.json", "[" * 100_000, r"results.json cannot be read \(it is nested too deeply\)"),
        (
            "metrics.jsonl",
            '{"step": -1}\n',
            r"metrics.jsonl, line 1, has no step \(step: .*greater than or equal to 0, and is -1\)",
        ),
        ("metrics.jsonl", '{"step": 1.5}\n', r"metrics.jsonl, line 1, has no step \(step: .*integer, and is 1.5\)"),
    ],
)
def test_malformed_files_of_a_run_are_one_line_each(name, content, message, tiny, successor, tmp_path):
    config = tiny()
    own = record_of(config).config
    (tmp_path / "run.json").write_text(json.dumps({"config": own, "starts": []}))
    if isinstance(content, dict):
        content = json.dumps({**content, **({"config": own} if content.get("config") == "its own" else {})})
    (tmp_path / name).write_text(content)
    before = _files(tmp_path)
    with pytest.raises(CheckpointError, match=message) as refused:
        loop.train(setup_of(config), successor(config), tmp_path)
    assert "\n" not in str(refused.value)
    assert _files(tmp_path) == before


def test_results_with_a_malformed_score_are_one_line(finished, tmp_path, capsys):
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    results = _stored(path)

    def with_score(**changes):
        score = {key: value for key, value in {**results["evaluation"]["succ"], **changes}.items() if value != "gone"}
        path.write_text(json.dumps(results | {"evaluation": {"succ": score}}))
        return run(config, tmp_path / "run")

    for changes, message in (
        ({"credit": "high"}, "evaluation.succ.credit: .*number, and is 'high'"),
        ({"extra": 3}, "evaluation.succ.extra: .*dictionary, and is 3"),
        ({"name": ["[/red]"]}, "evaluation.succ.name: .*string"),
    ):
        with pytest.raises(CheckpointError, match=rf"results.json cannot be read \({message}"):
            with_score(**changes)
    with pytest.raises(ConfigError, match="a score of these results has no credit; restore results.json"):
        with_score(credit="gone")
    with_score(name="[/red]")
    assert "[/red]" in capsys.readouterr().out
    several = tmp_path / "several"
    several.mkdir()
    (several / "results.json").write_text(json.dumps({"config": {}, "seeds": ["a"]}))
    with pytest.raises(CheckpointError, match=r"results.json cannot be read \(seeds.0: .*integer, and is 'a'\)"):
        run(dataclasses.replace(config, seeds=(0,)), several)


def test_files_of_others_are_not_touched(finished, tiny, successor, tmp_path):
    config, _, _ = finished
    single, several = tmp_path / "single", tmp_path / "several"
    for folder, name in ((single, "metrics.jsonl"), (several, "results.json")):
        folder.mkdir()
        (folder / name).write_text('{"mine": 1}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is not of this run"):
        loop.train(setup_of(config), successor(config), single)
    with pytest.raises(CheckpointError, match=r"results\.json is not of a training run over several seeds"):
        run(dataclasses.replace(config, seeds=(0,)), several)
    assert [path.name for path in (*single.iterdir(), *several.iterdir())] == ["metrics.jsonl", "results.json"]
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 1, has no step"):
        read_rows(single / "metrics.jsonl", until=UNTIL_END)


def test_a_signal_in_the_last_save_of_a_seed_stops_before_the_next(tiny, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny(steps=4), seeds=(3, 5))
    save = Checkpoints.save

    def save_and_hear(self, state, progress, primary=None, **how):
        save(self, state, progress, primary, **how)
        if progress.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_hear)
        with pytest.raises(loop.Interrupted, match="SIGTERM: seed 3 is finished; the same command goes on") as caught:
            run(config, tmp_path)
    assert caught.value.signal_number == signal.SIGTERM
    assert (tmp_path / "seed3" / "results.json").exists()
    assert not (tmp_path / "seed5").exists()


def test_several_seeds(tiny, tmp_path, capsys):
    config = dataclasses.replace(tiny(steps=4), seeds=(3, 5))
    results = run(config, tmp_path)
    ratios = [results["runs"][seed]["evaluation"]["succ"]["ratio"] for seed in ("3", "5")]
    assert results["seeds"] == [3, 5]
    assert results["mean"]["succ"]["ratio"] == pytest.approx(np.mean(ratios))
    assert results["spread"]["succ"]["ratio"] == pytest.approx(np.std(ratios, ddof=1))
    assert _stored(tmp_path / "results.json") == results
    assert json.loads((tmp_path / "seed5" / "results.json").read_text())["seed"] == 5
    assert "seed 3: succ" in capsys.readouterr().out
    first = {name: np.asarray(leaf) for name, leaf in load(tmp_path / "seed3", "last")[1].items()}
    assert np.any(first["encoder"] != np.asarray(load(tmp_path / "seed5", "last")[1]["encoder"]))

    with pytest.raises(CheckpointError, match="several seeds.*seed3.*seed5"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="several seeds"):
        run(dataclasses.replace(config, seeds=()), tmp_path)
    before = _files(tmp_path)
    with pytest.raises(CheckpointError, match=r"train\.batch_size: there 4, now 2"):
        run(dataclasses.replace(tiny(steps=4, batch_size=2), seeds=(9,)), tmp_path)
    assert _files(tmp_path) == before
    with pytest.raises(CheckpointError, match=r"results of seeds \[3, 5\].*leave \[3\] out; give --config\.seeds=3,5,7"):
        run(dataclasses.replace(config, seeds=(5, 7)), tmp_path)
    assert _files(tmp_path) == before
    # One seed more: the others are not trained again.
    trained = (tmp_path / "seed3" / "metrics.jsonl").stat().st_mtime_ns
    assert run(dataclasses.replace(config, seeds=(3, 5, 7)), tmp_path)["runs"]["3"] == results["runs"]["3"]
    assert (tmp_path / "seed3" / "metrics.jsonl").stat().st_mtime_ns == trained


def test_one_seed_and_several_do_not_share_a_folder(finished, tiny):
    config, workdir, _ = finished
    with pytest.raises(CheckpointError, match="holds a run of one seed"):
        run(dataclasses.replace(config, seeds=(0, 1)), workdir)


def test_load_gives_what_a_model_takes(finished):
    config, workdir, _ = finished
    for which in ("best", "last"):
        loaded, slow = load(workdir, which)
        assert loaded == config.model
        assert isinstance(loaded, BDHConfig)
        assert set(slow) == {"embed", "encoder", "encoder_v", "decoder", "lm_head"}
        logits = apply(BDH(loaded), slow, np.zeros((1, 3), np.int32)).logits
        assert logits.shape == (1, 3, 12)


def test_load_names_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        load(tmp_path)
    with pytest.raises(ValueError, match="which='first' is not one of"):
        load(tmp_path, "first")


def test_the_start_of_another_configuration_is_not_written_over(tiny, successor, tmp_path):
    """Also where the run was killed before it had saved anything but what it had measured."""
    config, other = tiny(), tiny(evaluate_every=2)

    def killed(what, number):
        if (what, number) == ("batch", 2):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        loop.train(setup_of(config), successor(config, killed), tmp_path)
    before = _files(tmp_path)
    assert not [path for path in before if path.parts[0] == "checkpoints"]
    with pytest.raises(
        CheckpointError, match=r"another configuration: train.evaluate_every: there 4, now 2. Use another --workdir, or the"
    ):
        loop.train(setup_of(other), successor(other), tmp_path)
    assert _files(tmp_path) == before
    assert loop.train(setup_of(config), successor(config), tmp_path)["steps"] == 6


def test_results_of_something_else_are_named(tiny, successor, tmp_path):
    (tmp_path / "results.json").write_text('{"whole": {}}')
    with pytest.raises(CheckpointError, match=r"results.json is not of a training run; move it"):
        loop.train(setup_of(tiny()), successor(tiny()), tmp_path)


def test_a_mesh_that_does_not_divide_the_rows_is_named(tiny, successor, tmp_path):
    """Its size may come from the machine, where the configuration cannot know it."""
    config = tiny(mesh=MeshConfig(data=-1), batch_size=9)
    devices = jax.device_count()
    assert 9 % devices, "the tests run on several devices"
    with pytest.raises(ConfigError, match=rf"mesh.data={devices} does not divide the 9 sequences"):
        loop.train(setup_of(config), successor(config), tmp_path)
    assert not list(tmp_path.iterdir())


class _Improving:
    """A task whose every evaluation scores 0.25 more than the one before; it counts the batches that are asked for."""

    def __init__(self, task, evaluations=0):
        self._task, self.evaluations, self.batches_made = task, evaluations, 0

    def __getattr__(self, name):
        return getattr(self._task, name)

    def batches(self, start, end):
        for step in range(start, end):
            self.batches_made += 1
            yield self._task.batch(step)

    def evaluate(self, predict):
        self.evaluations += 1
        return dataclasses.replace(self._task.evaluate(predict), primary=0.25 * self.evaluations)


def test_training_ends_with_the_first_score_that_is_enough(tiny, successor, tmp_path):
    config = tiny(steps=8, evaluate_every=2, checkpoint_every=8, stop_at=0.5)
    task = _Improving(successor(config))
    results = loop.train(setup_of(config), task, tmp_path)
    assert (task.evaluations, task.batches_made) == (2, 4)
    assert (results["steps"], results["primary"], results["best"]) == (4, 0.5, {"step": 4, "primary": 0.5})
    assert Checkpoints(tmp_path, record_of(config)).last_step == 4
    assert loop.train(setup_of(config), _Improving(successor(config)), tmp_path) == results
    # As if it had been killed after the save and before its results were written.
    (tmp_path / "results.json").unlink()
    again = _Improving(successor(config), evaluations=1)
    assert loop.train(setup_of(config), again, tmp_path)["steps"] == 4
    assert again.batches_made == 0
    with pytest.raises(ConfigError, match=r"train.stop_at=1.5 must lie in \(0, 1\]"):
        tiny(stop_at=1.5)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_measured_is_told_what_is_written(tiny, successor, tmp_path, frozen):
    """Of a task that says so; a measure of any other is given what it always was."""
    config, given = tiny(steps=4), []
    task = successor(config)
    plain = task.batch
    write = np.array([[1, 1, 1, 1, 0, 0]] * 4, bool)
    task.batch = lambda step: plain(step)._replace(write=write if frozen else None)

    def measure(model):
        def sizes(slow, tokens, valid, reset, **more):
            given.append(jax.device_get(more))
            return {"rows": np.array([tokens.shape[0]])}

        return sizes

    loop.train(dataclasses.replace(setup_of(config), measure=measure), task, tmp_path)
    (more,) = given
    assert more.keys() == ({"write"} if frozen else set())
    np.testing.assert_array_equal(more.get("write", write[:4]), write)
