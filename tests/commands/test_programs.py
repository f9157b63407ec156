"""Compiled programs are kept for the next command, unless the user said something else."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bdh_jax.commands import _programs

PROGRAM = """
import sys, types
import bdh_jax, jax
assert jax.config.jax_compilation_cache_dir is None, "import bdh_jax set a folder"
from bdh_jax.commands import _process

def main(argv):
    import jax.numpy as jnp
    jax.monitoring.register_event_listener(lambda event, **_: print(event) if "cache_hit" in event else None)
    print(jax.config.jax_compilation_cache_dir, jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(3)).sum())

command = types.ModuleType("command", "A command.")
command.main = main
_process.run(command, ["command"])
"""
NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


class Config(SimpleNamespace):
    """What of ``jax.config`` is looked at, and what was set."""

    def __init__(self, folder: str | None = None, enabled: bool = True):
        super().__init__(jax_compilation_cache_dir=folder, jax_enable_compilation_cache=enabled, changed={})

    def update(self, name: str, value: Any) -> None:
        self.changed[name] = value


@pytest.fixture
def config(monkeypatch, tmp_path) -> Config:
    """JAX that was told nothing, of a user with a home."""
    for name in (*NAMES, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = Config()
    monkeypatch.setattr(_programs.jax, "config", found)
    return found


def test_the_second_command_finds_what_the_first_has_compiled(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in (*NAMES, "XDG_CACHE_HOME")}
    environment |= {"HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    said = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    folder = tmp_path / ".cache" / "bdh_jax" / "jax"
    assert str(folder) in said[0]
    assert list(folder.glob("*-cache"))
    assert ["cache_hit" in output for output in said] == [False, True]


def test_the_folder_has_a_limit(config, tmp_path):
    folder = _programs.keep_programs()
    assert folder == tmp_path / ".cache" / "bdh_jax" / "jax"
    assert folder.is_dir()
    assert config.changed["jax_compilation_cache_dir"] == str(folder)
    assert config.changed["jax_compilation_cache_max_size"] == _programs.LARGEST


@pytest.mark.parametrize(("name", "expected"), [("cache", "cache/bdh_jax/jax"), ("", ".cache/bdh_jax/jax")])
def test_the_user_s_cache_folder_is_taken_if_it_is_absolute(config, tmp_path, monkeypatch, name, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name) if name else "relative")
    assert _programs.keep_programs() == tmp_path / expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_COMPILATION_CACHE_DIR", "/elsewhere"), ("JAX_COMPILATION_CACHE_DIR", ""), ("JAX_ENABLE_COMPILATION_CACHE", "0")],
)
def test_what_the_environment_says_is_left_alone(config, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert _programs.keep_programs() is None
    assert config.changed == {}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("told", [Config("/elsewhere"), Config(enabled=False)], ids=["folder", "off"])
def test_what_jax_was_told_is_left_alone(config, monkeypatch, told):
    monkeypatch.setattr(_programs.jax, "config", told)
    assert _programs.keep_programs() is None
    assert told.changed == {}


def test_one_setting_of_the_user_leaves_the_others(config, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "60")
    assert _programs.keep_programs() is not None
    assert "jax_persistent_cache_min_compile_time_secs" not in config.changed


@pytest.mark.parametrize("home", ["file", "/dev/null", ""])
def test_where_nothing_can_be_written_nothing_is_kept_and_little_said(config, tmp_path, monkeypatch, caplog, home):
    (tmp_path / "file").write_text("no folder")
    if home:
        monkeypatch.setenv("HOME", str(tmp_path / home))
    else:
        monkeypatch.setattr(_programs.Path, "home", _no_home)
    with caplog.at_level(logging.DEBUG, "bdh_jax"):
        assert _programs.keep_programs() is None
    assert config.changed == {}
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
