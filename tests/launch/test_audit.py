"""A version that is known to be vulnerable is found without the network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from packaging.version import Version

FOLDER = Path(__file__).parents[2] / "constraints"
_spec = importlib.util.spec_from_file_location("audit", FOLDER / "audit.py")
audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)


@pytest.mark.parametrize(("version", "found"), [("2.0.6", True), ("2.0.7", False), ("1.26.17", True), ("1.26.18", False)])
def test_what_lies_in_a_range_is_affected(version, found, tmp_path):
    path = tmp_path / "python3.11.txt"
    path.write_text(f"# made up\nurllib3=={version}\n")
    assert any("PYSEC-2023-212" in line for line in audit.by_snapshot([path])) == found


def test_a_range_may_have_no_end_and_a_version_may_be_named():
    open_range = {"id": "A", "aliases": [], "ranges": [("1.2", None)], "versions": []}
    named = {"id": "B", "aliases": [], "ranges": [], "versions": ["3.0"]}
    assert [audit.affected(Version(version), open_range) for version in ("1.1", "1.2", "9")] == [False, True, True]
    assert [audit.affected(Version(version), named) for version in ("3.0", "3.1")] == [True, False]


def test_the_versions_that_are_shipped_are_in_no_advisory_of_the_snapshot():
    assert list(audit.by_snapshot(sorted(FOLDER.glob("python3.*.txt")))) == []


def test_every_python_has_versions_of_what_the_package_needs():
    for version in ("3.11", "3.12", "3.13"):
        assert {"jax", "flax", "optax", "orbax-checkpoint", "libtpu"} <= set(audit.pinned(FOLDER / f"python{version}.txt"))
