"""Paths that a user gives: what is none on this machine is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.files import load_config
from bdh_jax.config.paths import check_writable, read_path
from bdh_jax.data.config import DataConfig
from bdh_jax.data.shards import is_prepared
from bdh_jax.experiment import load
from bdh_jax.runs.lock import only_writer


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))


NOT_HERE = [
    "gs://bucket/run",
    "hdfs://name/run",
    "s3://bucket/run",
    "https://host/run",
    "file:///run",
    "a+b-c.1://x",
    "gs:/bucket/run",
]
IMPOSSIBLE = {
    "x" * 256: "File name too long",
    f"new/{'x' * 256}/run": "File name too long",
    "/".join(["x" * 200] * 21): "File name too long",
    "é" * 128: "File name too long",
    "a\0b": "a path cannot hold a null byte",
    "~nobody-of-that-name/x": "~ no user's home; write ./~nobody-of-that-name/x",
}


def _refused(reading, name):
    with pytest.raises(ConfigError) as refused:
        reading(name)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("name", NOT_HERE)
def test_what_is_no_path_of_this_machine_is_refused_by_name(name):
    for where, reading in {
        "--workdir": lambda name: read_path(name, "--workdir"),
        "data.path": lambda name: DataConfig(path=f"here.txt, {name}"),
        "data.validation_path": lambda name: DataConfig(validation_path=name),
        "data.tokenizer": lambda name: DataConfig(tokenizer=name),
        "--config": load_config,
        "workdir": load,
    }.items():
        message = _refused(reading, name)
        assert f"{where}={name} is no path of this machine" in message
        assert "name a local path" in message
    # What trains or writes from Python takes the lock first.
    with pytest.raises(ConfigError, match="is no path of this machine"), only_writer(Path(name)):
        pytest.fail("it was locked")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_no_file_can_be_called_is_refused_and_nothing_is_made(name):
    message = _refused(lambda name: read_path(name, "--workdir"), name)
    assert message.startswith("--workdir")
    assert IMPOSSIBLE[name] in message
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["run", "a:b", "a:b/c", "C:/run", "a//b", "~run", "run[1]", "é" * 127, "a,b"])
def test_other_names_are_names(name):
    Path("~run").mkdir()
    assert read_path(name, "--workdir") == name


def test_home_is_what_no_shell_makes_of_it(tmp_path):
    assert read_path("~/run", "--workdir") == str(tmp_path / "run")
    assert read_path("~", "--workdir") == str(tmp_path)
    (tmp_path / "mine.py").write_text("def get_config(variant=''): return variant")
    assert load_config("~/mine.py:wide") == "wide"
    Path("~", "run").mkdir(parents=True)
    assert read_path("~/run", "--workdir") == "~/run"


def test_there_is_room_for_the_paths_below_a_folder():
    limit = os.pathconf("/", "PC_PATH_MAX")
    folder = Path("/" + "/".join(["x" * 200] * 17))
    left = limit - len(str(folder)) - len("/run.json") - 1
    check_writable(folder / "run.json", below=left)
    with pytest.raises(ConfigError, match="File name too long; name another place"):
        check_writable(folder / "run.json", below=left + 1)


def test_a_list_of_files_may_be_longer_than_a_name():
    names = ",".join(f"part{number}.txt" for number in range(500))
    assert DataConfig(path=names).path == names
    assert not is_prepared(Path(names))
