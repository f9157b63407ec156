"""What happens to a run costs at most an interval; docs/reliability.md has the counts of more of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.faults import kills


@pytest.fixture
def folder():
    """One that somebody without rights may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(["kill in a save", "full disk", "flipped bit"], id="some"),
        pytest.param([*kills.FAULTS], id="all", marks=pytest.mark.full),
    ],
)
def test_a_disturbed_run_ends_with_the_same_bits(kinds, folder):
    found = kills.disturb(kinds, folder)
    assert [each.kind for each in found] == kinds


def test_a_lost_step_is_noticed(folder, monkeypatch):
    monkeypatch.setattr(kills, "read_rows", lambda path, until: [{"step": 2}] if "whole" in path.parts else [{"step": 1}])
    monkeypatch.setattr(kills, "load", lambda path, which: (None, {}))
    with pytest.raises(AssertionError):
        kills._check_same(folder / "whole", folder / "disturbed")


def test_every_kind_comes_up_and_the_first_needs_no_folder():
    for seed in range(20):
        kinds = kills.chosen(50, seed)
        assert len(kinds) == 50
        assert set(kinds) == set(kills.FAULTS)
        assert kills.FAULTS[kinds[0]].wrong != "readonly"
