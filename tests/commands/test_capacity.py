"""The command that measures capacity: what it prints and writes, and how it exits."""

from __future__ import annotations

import json

import pytest

from tests.processes import run_text

SMALL = ["--rows=64,128", "--active=0.1", "--at_rows=64", "--at_active=0.1", "--trials=2", "--rules=hebbian"]


def _run(*arguments: str) -> tuple[int, str, str]:
    return run_text("bdh_jax", "capacity", *arguments)


def test_it_prints_a_table_writes_files_and_never_replaces_them(tmp_path):
    out = tmp_path / "new"
    status, output, errors = _run(f"--out={out}", *SMALL)
    assert status == 0, errors
    for expected in ("Facts at 95 % recall", "dense ±", "10.00% active", "facts/KiB"):
        assert expected in output
    assert "4/4  hebbian, dense ±, K 128: F95" in errors
    record = json.loads((out / "results.json").read_text())
    assert len(record["entries"]) == 4
    assert all(len(entry["f95"]) == 2 for entry in record["entries"])
    assert record["start"]["versions"]["jax"]
    assert (out / "figure.png").stat().st_size > 1000
    status, output, errors = _run(f"--out={out}", *SMALL)
    assert (status, output) == (2, "")
    assert "results.json exists; name another folder with --out, or pass --overwrite" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out is missing"),
        (["--out=OUT", "--rows=many"], "--rows=many must be numbers with commas between them"),
        (["--out=OUT", "--rows=", "--active="], "--rows and --active name nothing to draw addresses for"),
        (["--out=OUT", "--rules=hopfield"], "rule 'hopfield' is not one of hebbian"),
        (["--out=OUT", "--active=2"], "active=2.0 of rows=1024 must lie in"),
    ],
)
def test_mistakes_are_one_message(tmp_path, arguments, message):
    status, output, errors = _run(*(argument.replace("OUT", str(tmp_path / "new")) for argument in arguments))
    assert (status, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "new").exists()
