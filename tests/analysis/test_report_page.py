"""The page of a report: escaped, whole, with a text for each figure, and its tables beside it."""

from __future__ import annotations

import csv
import io
import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bdh_jax.analysis.report import overview, page
from bdh_jax.analysis.report.base import Finding, sections
from bdh_jax.analysis.report.page import Answer, Page

EVIL = "<script>alert('&')</script>"
CHART = {
    "mark": "point",
    "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "name", "type": "nominal"}},
}
VOID = {"meta", "link", "img", "br", "input", "hr"}


def finding(name: str = "share", **changes) -> Finding:
    rows = [{"name": EVIL, "x": np.float32(0.5)}, {"name": "b", "x": np.nan}, {"name": "c", "x": 3, "more": True}]
    values = {
        "title": f"Title {EVIL}",
        "says": "It is `code` and 5 % (p = 0.01).",
        "null": f"Nothing {EVIL}",
        "caption": f"Caption {EVIL}",
        "alternative": f'Words " {EVIL}',
        "rows": rows,
        "chart": CHART,
        "p_value": 0.01,
        "effect": -0.25,
    }
    return Finding(name=name, **{**values, **changes})


PAGE = Page(
    title=f"Inside {EVIL}",
    lead="Lead",
    facts={"Model": {"layers": EVIL}},
    answers=[
        Answer(
            "first",
            f"First {EVIL}",
            "Why?",
            [finding(), finding("table", chart=None), finding("own", chart=None, html="<b>own</b>")],
        ),
        Answer("second", "Second", "What?", refusal=f"A GPT {EVIL} has none."),
    ],
    made="Made by `bdh report`.",
    tables="report_csv",
)


class Parsed(HTMLParser):
    """Tags in their order, and whether each was closed in its turn."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif self._open and self._open[-1] != "style":
            self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return page.render(PAGE)


@pytest.fixture(scope="module")
def parsed(html) -> Parsed:
    return Parsed(html)


def test_everything_is_escaped_but_fragments(html, parsed):
    assert EVIL not in html
    assert len(parsed.of("script")) == 1 + 3  # a chart; themes, library, page.js
    text = "".join(parsed.text)
    assert text.count(f"Title {EVIL}") >= 3
    assert f"A GPT {EVIL} has none." in text
    assert len(parsed.of("b")) == 1


def test_backticks_are_code_and_numbers_keep_their_signs():
    assert str(page.marked("`a < b` is 5 % (p = 0.1)")) == "<code>a &lt; b</code> is 5\u00a0% (p\u00a0=\u00a00.1)"
    assert str(page.marked("one ` alone, `two` are")) == "one <code> alone, </code>two` are"
    assert page.number(-0.25) == "−0.25"


def test_nothing_is_loaded_from_anywhere(parsed):
    loaded = [attributes.get("src") or attributes.get("href") for _, attributes in parsed.tags]
    assert all(name.startswith(("#", "data:", "report_csv/")) for name in loaded if name)


def test_figures_and_landmarks_have_texts(parsed):
    figures = parsed.of("figure")
    assert len(figures) == 3
    ids = [attributes["id"] for _, attributes in parsed.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for attributes in figures:
        assert attributes["aria-describedby"] in ids
        assert attributes["aria-labelledby"] in ids
    assert [image["alt"] for image in parsed.of("img")] == [f'Words " {EVIL}']
    assert {"main", "nav", "header"} <= {tag for tag, _ in parsed.tags}
    anchors = [link["href"][1:] for link in parsed.of("a") if link["href"].startswith("#")]
    assert set(anchors) <= set(ids)
    assert {"first", "second", "first-share"} <= set(anchors)
    levels = [int(tag[1]) for tag, _ in parsed.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_a_chart_has_its_rows_as_json(parsed):
    specs = [json.loads(text) for attributes, text in parsed.scripts if attributes.get("id") == "first-share-spec"]
    assert [row["x"] for row in specs[0]["data"]["values"]] == [0.5, None, 3]
    assert specs[0]["mark"] == "point"
    assert specs[0]["description"].endswith(EVIL)


def test_numbers_are_said_beside_their_null(parsed):
    text = " ".join(" ".join(parsed.text).split())
    assert "Held against Nothing" in text
    assert "Effect −0.25" in text
    assert "p-value 0.01" in text


def test_a_section_that_failed_says_so():
    text = " ".join(
        Parsed(page.render(Page("Inside", "", {}, [Answer("x", "X", "?", failure=f"ValueError: {EVIL}")], "Made."))).text
    )
    assert "(failed)" in text
    assert f"ValueError: {EVIL}" in text
    assert "Not asked" not in text


def test_tables_hold_the_rows():
    files = page.tables(PAGE)
    assert list(files) == ["first.share.csv", "first.table.csv", "first.own.csv"]
    rows = list(csv.DictReader(io.StringIO(files["first.share.csv"])))
    assert rows == [
        {"name": EVIL, "x": "0.5", "more": ""},
        {"name": "b", "x": "", "more": ""},
        {"name": "c", "x": "3", "more": "True"},
    ]


def test_a_report_knows_its_tables_and_another_page_is_none(html):
    assert page.tables_of(html[: 2**16]) == [f"report_csv/first.{name}.csv" for name in ("share", "table", "own")]
    assert page.tables_of("<!doctype html><title>mine</title>") is None


def test_a_still_of_many_marks_is_a_picture(monkeypatch):
    assert page.still(finding()).startswith("data:image/svg+xml;base64,")
    monkeypatch.setattr(page, "_LARGEST_SVG", 100)
    assert page.still(finding()).startswith("data:image/png;base64,")


def test_means_of_neighbours():
    np.testing.assert_allclose(overview.smoothed([1.0, 2.0, 6.0, 3.0, 0.0], 1), [1, 3, 11 / 3, 3, 0])
    np.testing.assert_allclose(overview.smoothed([1.0, 2.0], 0), [1, 2])
    assert len(overview.smoothed([], 3)) == 0


def test_scores_stand_beside_ceilings_and_baselines():
    answer = {"name": "n2", "count": 4, "accuracy": 0.5, "credit": 0.5, "ceiling": 0.8, "extra": {}, "ratio": 0.625}
    text = {"name": "validation", "count": 9, "bits_per_byte": 2.5, "loss": 1.7, "accuracy": 0.5, "extra": {}}
    of_answers, of_text = overview.scores(
        {0: {"n2": answer, "validation": text}, 1: {"n2": answer, "validation": text}}, {"none": 8.0}
    )
    assert "0.5000 ± 0.0000 of 0.8000" in of_answers.says
    assert of_answers.title.startswith("62.5")
    assert "none 8.0000" in of_text.says
    assert {row["what"] for row in of_text.rows} == {"validation", "none"}
    assert overview.scores({}, {"none": 8.0}) == []


def kept(recalls, streams=4, facts=64, **harm):
    """Rows of the lifelong benchmark: function → mean recall; streams differ by the same for all functions."""
    return [
        {
            "function": name,
            "facts": facts,
            "model": 0,
            "stream": stream,
            "recall": recall + 0.01 * noise,
            "harm": harm.get(name, 0.1),
        }
        for name, recall in recalls.items()
        for stream, noise in enumerate(np.random.default_rng(len(name)).normal(size=streams))
    ]


def test_what_is_kept_of_facts_is_held_against_nothing_consolidated():
    (found,) = overview.retention(kept({"none": 0.1, "dense": 0.5, "delta": 0.9}, delta=float("nan")), 0.02)
    assert found.title.endswith("are kept by delta")
    assert found.interval is not None
    assert found.interval[0] < found.effect < found.interval[1]
    assert found.interval[0] > 0.7
    assert "not distinguishable" not in found.says
    assert "harm" not in found.says
    assert {row["function"] for row in found.rows if row["score"] == "harm"} == {"none", "dense"}
    assert "best of 2 rows" in found.null
    (nothing,) = overview.retention(kept({"none": 0.1, "dense": 0.11}), 0.02)
    assert "`dense` recalls" in nothing.says
    assert "not distinguishable" in nothing.says
    (alone,) = overview.retention(kept({"dense": 0.5}, streams=1), 0.02)
    assert (alone.null, alone.interval, alone.effect) == ("", None, None)
    assert overview.retention([], 0.02) == []


def test_what_is_kept_of_several_numbers_of_facts_is_told_of_the_largest():
    rows = kept({"none": 0.1, "dense": 0.9, "delta": 0.8}) + kept({"none": 0.1, "dense": 0.2, "delta": 0.7}, facts=512)
    (found,) = overview.retention(rows, 0.02)
    assert found.title.startswith("Of 512 facts of a stream")
    assert found.title.endswith("kept by delta")
    assert [(row["function"], row["facts"]) for row in found.rows][:2] == [("none", 64), ("dense", 64)]
    dense = {row["facts"]: row["recall"] for row in found.rows if row["function"] == "dense"}
    assert dense[64] == pytest.approx(0.9, abs=0.02)
    assert dense[512] == pytest.approx(0.2, abs=0.02)
    assert all(row["low"] < row["recall"] < row["high"] and row["streams"] == 4 for row in found.rows)
    assert page.still(found).startswith("data:image/svg+xml")


def test_in_noise_the_best_of_many_rows_is_not_called_better_more_often_than_stated():
    """The interval is widened for the choice: rows that keep nothing, 20 of them, of which the best is looked at."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        rows = [
            {"function": name, "facts": 64, "model": 0, "stream": stream, "recall": recall, "harm": 0.0}
            for name in ("none", *(f"row {number}" for number in range(20)))
            for stream, recall in enumerate(rng.normal(size=8))
        ]
        (found,) = overview.retention(rows, 0.0)
        wrong += found.interval is not None and found.interval[0] > 0
    assert wrong <= stats.binom.isf(1e-3, 200, 0.05)


def test_curves_have_a_line_for_each_seed():
    lines = {
        seed: [
            {"step": 10, "loss": 3.0 + seed},
            {
                "step": 10,
                "evaluation": {
                    "primary": 0.1,
                    "v": {"name": "v", "count": 1, "bits_per_byte": 4.0, "loss": 1.0, "accuracy": 0.1, "extra": {}},
                },
            },
            {"step": 20, "loss": 1.0 + seed},
            {
                "step": 20,
                "evaluation": {
                    "primary": 0.2,
                    "v": {"name": "v", "count": 1, "bits_per_byte": 3.0, "loss": 1.0, "accuracy": 0.1, "extra": {}},
                },
            },
        ]
        for seed in (0, 1)
    }
    loss, evaluations = overview.curves(lines)
    assert [row["smoothed"] for row in loss.rows] == [3.0, 1.0, 4.0, 2.0]
    assert "1.5000 ± 0.7071" in loss.says
    assert len(evaluations.rows) == 4
    assert "3.0000 ± 0.0000" in evaluations.says
    assert overview.curves({0: []}) == []


@pytest.mark.parametrize("names", [("share", "share"), ("a/b",), ("",)])
def test_a_finding_has_a_name_of_its_own_that_a_file_can_have(names):
    answers = [Answer("first", "First", "Why?", [finding(name, chart=None) for name in names])]
    with pytest.raises(ValueError, match="a name is unique there, of letters, digits"):
        page.render(Page("Inside", "Lead", {}, answers, "Made."))


def test_every_section_has_a_row_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "report.md").read_text(encoding="utf-8")
    assert [name for name in sections() if f"| `{name}` |" not in text] == []
