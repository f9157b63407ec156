"""One process at a time writes to a folder, and the others say so before they touch it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import jax
import pytest

from bdh_jax.commands._output import result_files
from bdh_jax.config import ConfigError
from bdh_jax.experiment import ExperimentConfig, run, setup_of
from bdh_jax.runs import lock as folder_lock
from bdh_jax.runs.lock import LOCK, only_writer
from bdh_jax.tasks.nback import NBackConfig
from bdh_jax.training import loop

_HOLDER = """
import pathlib, sys, filelock
path = pathlib.Path(sys.argv[1])
lock = filelock.FileLock(path)
lock.acquire()
path.write_text("process 12 on there")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def _held_by_another(folder: Path) -> Iterator[subprocess.Popen]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _HOLDER, str(folder / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(folder_lock, "WAIT", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_folder_in_use_is_refused(tmp_path):
    with _held_by_another(tmp_path / "run"):
        refused = pytest.raises(ConfigError, match=r"run is in use: process 12 on there writes there.*another folder")
        with refused, only_writer(tmp_path / "run"):
            pytest.fail("two processes write")
        assert (tmp_path / "run" / LOCK).read_text() == "process 12 on there"


@pytest.mark.usefixtures("impatient")
def test_the_folder_of_a_killed_process_is_free(tmp_path):
    with _held_by_another(tmp_path / "run") as process:
        process.kill()
        process.wait()
    with only_writer(tmp_path / "run"):
        assert "process 12 on" not in (tmp_path / "run" / LOCK).read_text()


def test_a_process_that_ends_soon_is_waited_for(tmp_path, caplog):
    with _held_by_another(tmp_path / "run") as process:

        class EndIt(logging.Handler):
            def emit(self, record):
                process.kill()

        handler = EndIt()
        logging.getLogger("bdh_jax").addHandler(handler)
        try:
            with only_writer(tmp_path / "run"):
                (tmp_path / "run" / "file").write_text("")
        finally:
            logging.getLogger("bdh_jax").removeHandler(handler)
    assert "waiting up to 60 s" in caplog.text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_folder_left_empty_is_not_kept(tmp_path):
    (tmp_path / "there").mkdir()
    new = tmp_path / "there" / "new" / "run"
    with pytest.raises(FileNotFoundError), only_writer(new):
        (new / "file").read_text()
    assert not list((tmp_path / "there").iterdir())
    with only_writer(tmp_path / "there"):
        pass
    assert (tmp_path / "there").exists()
    with only_writer(tmp_path / "there" / "run"):
        (tmp_path / "there" / "run" / "file").write_text("")
    assert [path.name for path in (tmp_path / "there" / "run").iterdir()] == ["file"]


@pytest.mark.usefixtures("impatient")
def test_one_process_of_a_run_holds_the_folder_for_all(tmp_path, monkeypatch):
    with _held_by_another(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with only_writer(tmp_path):
            (tmp_path / "file").write_text("")
        assert (tmp_path / LOCK).read_text() == "process 12 on there"
    assert (tmp_path / "file").exists()


def test_where_nothing_can_be_locked_the_log_says_so(tmp_path, monkeypatch, caplog):
    def acquire(self, **_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with only_writer(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    assert "cannot be locked" in caplog.text


def test_a_file_in_the_way_is_left_to_whoever_writes(tmp_path, caplog):
    (tmp_path / "run").write_text("")
    with only_writer(tmp_path / "run"):
        pass
    assert not caplog.text


@pytest.mark.usefixtures("impatient")
def test_training_and_benchmarks_touch_no_folder_in_use(tmp_path):
    config = ExperimentConfig(task=NBackConfig())
    with _held_by_another(tmp_path):
        with pytest.raises(ConfigError, match="in use"):
            run(config, tmp_path)
        with pytest.raises(ConfigError, match="in use"):
            loop.train(setup_of(config), config.task.make(seed=0, batch_size=2), tmp_path)
        with pytest.raises(ConfigError, match="in use"), result_files(tmp_path, overwrite=True):
            pytest.fail("two benchmarks write")
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
