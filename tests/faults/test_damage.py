"""Whatever file is damaged: it is noticed, or harmless to the bit. docs/reliability.md has the counts of a larger run."""

from __future__ import annotations

import logging

import pytest

from tests.faults import damage
from tests.faults.damage import SUBJECTS, Result, Subject


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("bdh_jax"), "propagate", False)


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize(
    ("flips", "most"), [pytest.param(20, 40, id="small"), pytest.param(15, None, id="all", marks=pytest.mark.full)]
)
def test_nothing_that_is_damaged_is_taken_in_silence(name, flips, most, capfd):
    results = list(damage.try_subject(name, flips, most=most))
    assert not [result for result in results if result.outcome in ("silent", "crash")]
    assert sum(result.outcome == "noticed" for result in results) >= len(results) / 10
    assert len(results) >= 20
    # Errors come as exceptions and in the log, and not on the terminal.
    assert "Traceback" not in capfd.readouterr().err


def write(folder):
    (folder / "file").write_bytes(bytes(range(64)))


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda folder: (folder / "file").read_bytes() if (folder / "file").exists() else b"", "silent"),
        (lambda folder: [(folder / "file").read_bytes()].index(bytes(range(64))), "crash"),
    ],
)
def test_a_reader_that_does_not_look_is_found_out(read, outcome, monkeypatch):
    monkeypatch.setitem(SUBJECTS, "blind", Subject(write, read, "*"))
    assert {result.outcome for result in damage.try_subject("blind", 3)} == {outcome}


def test_the_table_counts_every_outcome():
    results = [Result("a", "f", "flipped", outcome, "") for outcome in ("noticed", "noticed", "harmless", "crash")]
    assert damage.table(results).split("\n")[2:] == ["| a | `f` | 2 | 1 | 0 | 1 |", "| all | | 2 | 1 | 0 | 1 |"]
