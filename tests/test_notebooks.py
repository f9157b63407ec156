"""The notebooks as they are stored: run in full and in order, without a warning or a path, and every term is explained where it comes first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bdh_jax.lifelong.contestants import CONTESTANTS

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TERMS = ("fast weights", "write-back", "address", "causal", "consolidation", "activity", "ceiling", "credit", "chance")
COLOURS = re.compile(r"\x1b\[[\d;]*m")


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def outputs(path: Path) -> list[dict]:
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def shown(path: Path) -> str:
    """All text of the outputs, without colours."""
    texts = ["".join(o.get("text", ()) or o.get("data", {}).get("text/plain", ())) for o in outputs(path)]
    return COLOURS.sub("", "\n".join(texts))


def test_they_are_numbered_in_the_order_to_read():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number}_" for number in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run_in_order(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any("execution" in cell["metadata"] for cell in code), "times of one machine"
    kinds = {kind for output in outputs(path) for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert kinds <= {"image/png", "text/html", "text/plain"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_hold_no_warning_and_no_path(path):
    assert not [output for output in outputs(path) if output["output_type"] == "error" or output.get("name") == "stderr"]
    everything = json.dumps(
        [{**o, "data": {k: v for k, v in o.get("data", {}).items() if k != "image/png"}} for o in outputs(path)]
    )
    for pattern in (r"[Ww]arning", "Traceback", r"/(home|root|tmp|usr|work|Users|var)/", "site-packages"):
        assert not re.search(pattern, everything), pattern


def test_preconditions_are_met_and_every_rate_was_chosen_from_its_grid():
    (path,) = (path for path in NOTEBOOKS if path.stem == "2_consolidation")
    text, source = shown(path), "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    assert "All are met" in text
    assert "NOT MET" not in text
    (own,) = re.findall(r"^my_function = (\w+)$", source, re.MULTILINE)
    for name, rates in (
        (own, CONTESTANTS["dense"].rates),
        *((row, CONTESTANTS[row].rates) for row in ("dense", "row_topk", "delta")),
    ):
        (rate,) = re.findall(rf"^{name} +([\d.]+) +\d\.\d\d\d ", text, re.MULTILINE)
        assert float(rate) in rates, name


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_explained_where_it_comes_first(term):
    """There it is bold. In links and code it may stand before."""
    prose = "\n".join("".join(cell["source"]) for path in NOTEBOOKS for cell in cells(path, "markdown"))
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", prose, flags=re.DOTALL)
    first = re.search(rf"(\*\*)?\b{term}", prose, re.IGNORECASE)
    assert first is not None
    assert first.group(1), prose[max(0, first.start() - 60) : first.end() + 20]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_exist(path):
    for cell in cells(path, "markdown"):
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", "".join(cell["source"])):
            assert (FOLDER / link).exists(), link
