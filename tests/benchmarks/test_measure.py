"""What benchmarks share: runs in processes of their own, what is said of several seeds, tables."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import measure


def test_processes_started_at_a_time_have_a_core_each(tmp_path, monkeypatch):
    """Of pretended cores, since a machine may have one alone."""
    pinned = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: pinned.append(cores), raising=False)
    with measure.pool(2) as pool:
        # Each waits for the other, so that both threads are there.
        barrier = threading.Barrier(2)
        list(pool.map(lambda _: barrier.wait(60), range(2)))
    assert sorted(map(sorted, pinned)) == [[3], [5]]
    for jobs in (1, 3):
        with measure.pool(jobs) as pool:
            list(pool.map(abs, range(jobs)))
    assert len(pinned) == 2


def test_a_process_of_its_own_gets_its_arguments_and_says_why_it_failed(tmp_path):
    script, log = tmp_path / "script.py", tmp_path / "runs" / "seed0.log"
    script.write_text("import sys, bdh_jax\nprint(sys.argv[1:])\nsys.exit(sys.argv[1] == 'fail' and 'for a reason')\n")
    measure.apart(str(script), ["work", "--one"], log)
    assert "['work', '--one']" in log.read_text()
    with pytest.raises(SystemExit, match=r"seed0\.log says why"):
        measure.apart(str(script), ["fail"], log)
    assert "for a reason" in log.read_text()


def test_tables_find_their_experiments_wherever_they_are_started(tmp_path):
    program = """
import argparse, pathlib
import latent_table, manpages_table, mqar_table
options = argparse.Namespace(smoke=True)
print(latent_table.Run("copy", "deep", 0).config(smoke=True).task.name)
print(manpages_table.Run("models", "GPT", "gpt", 0).config(pathlib.Path(), smoke=True).task.name)
print(mqar_table.Run("grid", mqar_table.of_size("GLA", 0), 0, None).config(options).task.name)
"""
    (script := tmp_path / "script.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(measure.__file__).parent)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["ladder", "text", "mqar"], done.stderr


def test_what_is_said_of_several_seeds():
    assert measure.spread([]) == ""
    assert measure.spread([0.5]) == "0.500"
    assert measure.spread([1, 2, 3], digits=1) == "2.0 ± 1.0"
    # Three differences of standard deviation 1: t = 4.3027 with two degrees of freedom.
    assert measure.paired([1, 2, 3]) == pytest.approx((2, 4.3027 / math.sqrt(3)), rel=1e-4)
    assert measure.paired([1.0]) == (1, math.inf)


def test_tables_go_between_their_marks_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before <a> old <b> after", encoding="utf-8")
    measure.write_between(page, ("<a>", "<b>"), "new")
    assert page.read_text(encoding="utf-8") == "before <a>\n\nnew\n\n<b> after"
    for lacking in ("no mark", "<a> no end", "no begin <b>", "<b> before <a>"):
        page.write_text(lacking, encoding="utf-8")
        with pytest.raises(SystemExit, match="between which the tables go"):
            measure.write_between(page, ("<a>", "<b>"), "new")
        assert page.read_text(encoding="utf-8") == lacking


def test_seeds_are_added_to_a_row_of_the_same_rate_alone():
    def row(rate, command, **runs):
        return {"rate": rate, "command": command, "runs": {seed[1:]: of_seed for seed, of_seed in runs.items()}}

    known = {"GLA": row(0.1, "one", _0="a", _2="c"), "BDH": row(0.1, "one", _0="d")}
    assert measure.added(known, {"GLA": row(0.1, "two", _1="b")}) == {
        "GLA": row(0.1, "one; two", _0="a", _1="b", _2="c"),
        "BDH": known["BDH"],
    }
    assert measure.added(known, {"GLA": row(0.2, "two", _1="b")})["GLA"] == row(0.2, "two", _1="b")
    assert list(measure.added(known, {"Mamba-2": None})) == ["GLA", "BDH", "Mamba-2"]


def test_what_is_kept_is_made_once_and_whole(tmp_path):
    file = tmp_path / "run" / "scores.json"

    def broken():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        measure.kept(file, broken)
    assert not file.exists()
    assert measure.kept(file, lambda: {"a": (1, 2)}) == {"a": [1, 2]}
    assert measure.kept(file, broken) == {"a": [1, 2]}
    assert [path.name for path in file.parent.iterdir()] == ["scores.json"]
