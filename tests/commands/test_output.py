"""Where commands write: asked before the work, and whole or not at all after it."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bdh_jax import console
from bdh_jax.commands import _output as output
from bdh_jax.config import ConfigError
from tests.processes import ROOT


@pytest.fixture
def full_disk():
    """No file may become larger than a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("there/x.json", "exists; name another file"),
        ("link", "exists; name another file"),
        ("there/x.json/y.json", "x.json is a file; name another place|Not a directory; name another place"),
        ("a" * 256, "File name too long; name another place"),
        ("b/" + "a" * 300 + "/x", "File name too long; name another place"),
        ("a\0b", "null byte; name another place"),
        ("/proc/x", "cannot be written: No such file or directory; name another place"),
    ],
)
def test_an_impossible_place_is_refused_before_the_work(name, reason, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x.json").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=reason) as refused:
        output.new_file(str(tmp_path / name))
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_can_be_made_is_not_made_yet(tmp_path):
    assert output.new_file(str(tmp_path / "new" / "x.json")) == tmp_path / "new" / "x.json"
    assert output.new_file(None) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    class Figure:
        def savefig(self, path, **more):
            Path(path).write_bytes(bytes(1000))

    (tmp_path / "old.json").write_text("{}")
    for write in (
        lambda path: output.write_record(path, {"a": [1] * 1000}),
        lambda path: output.write_output(path, "a" * 1000),
        lambda path: output.save_figure(Figure, path),
    ):
        for name in ("old.json", "new.json"):
            with pytest.raises(ConfigError, match=rf"{name} cannot be written: File too large; make room"):
                write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        pytest.param(["config", "nback"], "", id="buffered"),
        pytest.param(["config", "nback"], "1", id="unbuffered", marks=pytest.mark.full),
        pytest.param(["list", "--help"], "", id="help"),
        pytest.param([], "", id="list of commands", marks=pytest.mark.full),
    ],
)
def test_who_reads_no_further_ends_a_command(arguments, unbuffered):
    """As of ``bdh config nback | head``; a program that SIGPIPE ends has this status."""
    program = [sys.executable, "-m", "bdh_jax", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    process = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, env=environment, timeout=300)
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")


def test_what_the_output_cannot_show_is_a_question_mark():
    program, environment = [sys.executable, "-m", "bdh_jax", "list"], os.environ | {"PYTHONIOENCODING": "ascii"}
    process = subprocess.run(program, capture_output=True, cwd=ROOT, env=environment, timeout=300)
    assert (process.returncode, process.stderr) == (0, b"")
    assert b"nback" in process.stdout
    assert b"?" in process.stdout


def test_a_table_that_nobody_reads_is_told_to_who_can_end_the_command(monkeypatch):
    """Rich would end the process with status 1."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "wb", buffering=0))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sys.stdout, write_through=True))
    with pytest.raises(BrokenPipeError):
        console.output().print("x" * 100_000)
