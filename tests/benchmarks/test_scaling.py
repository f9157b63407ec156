"""docs/scaling.md says what benchmarks/results say; the sequence axis keeps its claims on small windows."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def benchmark(name: str) -> ModuleType:
    """A file of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scaling = benchmark("scaling")


def test_the_tables_are_those_of_the_results():
    text = scaling.DOCUMENT.read_text(encoding="utf-8")
    assert scaling.filled(text) == text, "run python benchmarks/scaling.py"


def test_a_table_without_a_place_is_an_error():
    with pytest.raises(ValueError, match="no place for"):
        scaling.filled("nothing")


def test_committed_plans_keep_their_claims():
    found = json.loads((scaling.RESULTS / "plans.json").read_text(encoding="utf-8"))
    assert {(row["experiment"], row["mesh"]) for row in found["checked"]} >= {
        (name, mesh)
        for name in ("text:official", "scale:100m", "scale:1b")
        for mesh in ("data:4", "data:2,heads:2,fsdp", "heads:4")
    }
    assert len(found["refused"]) == 2
    assert benchmark("plans").report(found) == 0


def test_committed_windows_keep_their_claims():
    found = json.loads((scaling.RESULTS / "sequence_axis_cpu.json").read_text(encoding="utf-8"))
    assert (found["length"], len(found["training"]["one"])) == (131_072, 20)
    one, eight = (np.array(found["training"][name]) for name in ("one", "eight"))
    assert np.max(np.abs(eight / one - 1)) <= 1e-5
    assert one[-1] < 0.97 * one[0]
    assert found["recall"]["tokens_back"] == 100_000
    assert found["recall"]["scores"]["one device"] == found["recall"]["scores"]["eight devices"] > 0.9
    assert found["recall"]["scores"]["S emptied"] < 0.2
    temporaries = [row["temporaries"] for row in found["memory"]]
    assert all(later < 0.6 * earlier for earlier, later in itertools.pairwise(temporaries))


@pytest.mark.full
def test_small_windows_keep_the_claims():
    """Some steps on windows of 256 tokens, and the memory of a device."""
    module = benchmark("sequence_axis")
    found = module.training(256, 4)
    assert found["holds"], found["largest_difference"]
    rows = module.memory(256)
    assert [row["temporaries"] for row in rows] == sorted((row["temporaries"] for row in rows), reverse=True)
