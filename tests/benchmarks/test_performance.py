"""docs/performance.md says what benchmarks/results say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("performance", ROOT / "benchmarks" / "performance.py")
performance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(performance)


def test_the_tables_are_those_of_the_results():
    text = performance.DOCUMENT.read_text(encoding="utf-8")
    assert performance.filled(text) == text, "run python benchmarks/performance.py"


def test_what_stands_between_the_marks_is_replaced_and_nothing_else():
    places = "".join(
        f"STANDS BEFORE\n<!-- {name} -->\nWAS HERE\n<!-- end of {name} -->\nSTANDS AFTER\n" for name in performance.TABLES
    )
    filled = performance.filled(places)
    assert "WAS HERE" not in filled
    assert filled.count("STANDS BEFORE") == filled.count("STANDS AFTER") == len(performance.TABLES)
    assert "| dense |" in filled


def test_a_table_without_a_place_is_an_error():
    with pytest.raises(ValueError, match="no place for"):
        performance.filled("nothing")
