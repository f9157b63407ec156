"""``bdh report`` of real runs: what it writes, what a browser says of it, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bdh_jax.analysis.report.base import sections
from bdh_jax.analysis.report.page import tables_of
from tests.processes import run_text
from tests.report.browser import CUT, SCHEMES, UNNAMED, WIDTHS, browser, opened

SMALL = ("--config.train.steps=4", "--config.train.evaluate_every=2", "--config.train.log_every=1")
MEGABYTES = 5


def bdh(*arguments: object) -> tuple[int, str]:
    status, _, errors = run_text("bdh_jax", *arguments)
    return status, errors


def report(*arguments: object) -> None:
    status, errors = bdh("report", *arguments)
    assert status == 0, errors


def refused(*arguments: object) -> str:
    status, errors = bdh("report", *arguments)
    assert status == 2, errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A text of two seeds with a report, and a run of facts."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("to be or not to be, that <is> the question & whether tis nobler. " * 100)
    text = (
        "text:smoke",
        f"--config.data.path={folder / 'text.txt'}",
        "--config.train.checkpoint_every=1",
        "--config.train.keep_every=1",
    )
    for experiment, name, *more in (
        (text[0], "text", *text[1:], "--config.seeds=0,1"),
        ("lifelong:smoke", "facts"),
        ("text:gpt,smoke", "gpt", text[1]),
    ):
        status, errors = bdh("train", experiment, f"--workdir={folder / name}", *SMALL, *more)
        assert status == 0, errors
        report(f"--workdir={folder / name}", "--budget=0.05")
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.mark.parametrize("name", ["text", "facts", "gpt"])
def test_a_browser_finds_nothing_wrong(name, runs, chromium):
    file = runs / name / "report.html"
    assert file.stat().st_size < MEGABYTES * 2**20
    for width in WIDTHS:
        for scheme in SCHEMES:
            with opened(chromium, file, width, scheme) as (shown, wrong):
                assert wrong == []
                assert shown.evaluate(CUT) == []
                assert shown.evaluate(UNNAMED) == []
                for section in sections():
                    assert shown.locator(f"h2#{section}").is_visible()


def test_every_claim_has_a_null_and_its_numbers_beside_it(runs, chromium):
    folder = runs / "text"
    with opened(chromium, folder / "report.html", 1400) as (shown, _):
        held = shown.locator("#activity ~ article .held")
        assert held.count() >= 5
        for number in range(held.count()):
            said = held.nth(number).inner_text()
            assert "Held against" in said
            assert "p-value" in said or "interval" in said
    tables = tables_of((folder / "report.html").read_text(encoding="utf-8"))
    assert tables is not None
    assert {folder / name for name in tables} == set((folder / "report_csv").iterdir())
    with (folder / "report_csv" / "activity.share_by_layer.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["model"], row["seed"]) for row in rows} == {(m, s) for m in ("trained", "untrained") for s in "01"}
    with (folder / "report_csv" / "activity.share_over_training.csv").open(newline="") as file:
        assert {row["step"] for row in csv.DictReader(file)} == {"0", "1", "2", "3", "4"}
    results = json.loads((folder / "results.json").read_text())
    with (folder / "report_csv" / "scores.text.csv").open(newline="") as file:
        scores = {row["seed"]: row["bits_per_byte"] for row in csv.DictReader(file)}
    assert scores["1"] == str(results["runs"]["1"]["evaluation"]["validation"]["bits_per_byte"])


def test_what_a_model_cannot_be_asked_says_why(runs):
    html = (runs / "gpt" / "report.html").read_text(encoding="utf-8")
    assert "A GPT has no neurons with a code and a gate" in html
    assert not list((runs / "gpt" / "report_csv").glob("activity.*"))


def test_a_run_from_other_weights_is_compared_with_those_and_says_so(runs, tmp_path):
    """What is untrained there is what the other run had learned, seed by seed."""
    text = (f"--config.data.path={runs / 'text.txt'}", f"--config.train.init_from={runs / 'text'}", "--config.seeds=0,1")
    status, errors = bdh("train", "text:smoke", f"--workdir={tmp_path / 'on'}", *text, *SMALL)
    assert status == 0, errors
    report(f"--workdir={tmp_path / 'on'}", "--only=activity", "--budget=0.05")
    html = (tmp_path / "on" / "report.html").read_text(encoding="utf-8")
    assert "means those weights: what is found beside them is what this run has changed" in html
    assert "Its first weights were" not in (runs / "text" / "report.html").read_text(encoding="utf-8")

    def shares(folder, model):
        with (folder / "report_csv" / "activity.share_by_layer.csv").open(newline="") as file:
            return {
                (row["seed"], row["layer"], row["kind"]): row["share"]
                for row in csv.DictReader(file)
                if row["model"] == model
            }

    assert shares(tmp_path / "on", "untrained") == shares(runs / "text", "trained")
    assert shares(tmp_path / "on", "untrained") != shares(runs / "text", "untrained")


def test_an_exported_run_has_a_report_of_its_weights(runs, tmp_path):
    status, errors = bdh("export", f"--workdir={runs / 'facts'}", f"--out={tmp_path / 'sent'}")
    assert status == 0, errors
    report(f"--workdir={tmp_path / 'sent'}", "--only=activity", "--budget=0.05")
    assert (tmp_path / "sent" / "report_csv" / "activity.share_by_layer.csv").read_bytes() == (
        runs / "facts" / "report_csv" / "activity.share_by_layer.csv"
    ).read_bytes()


def test_a_report_is_replaced_only_if_asked_and_by_one_of_its_own(runs, tmp_path):
    workdir, out = f"--workdir={runs / 'facts'}", tmp_path / "page.html"
    small = (workdir, f"--out={out}", "--budget=0.05", "--only=activity")
    out.write_text("<!doctype html><title>mine</title>")
    assert "page.html is there and is no report of this command; name another file with --out" in refused(
        *small, "--overwrite"
    )
    out.unlink()
    report(*small)
    before = out.read_bytes()
    assert "page.html exists; name another file with --out, or pass --overwrite" in refused(*small)
    (tmp_path / "page_csv" / "mine.csv").write_text("1")
    assert "page_csv/mine.csv is of no report that is at" in refused(*small, "--overwrite")
    assert out.read_bytes() == before
    (tmp_path / "page_csv" / "mine.csv").unlink()
    report(*small, "--overwrite")
    assert (tmp_path / "page_csv" / "activity.neurons.csv").exists()


def test_mistakes_are_one_line_before_any_work(runs, tmp_path):
    workdir = f"--workdir={runs / 'facts'}"
    out = f"--out={tmp_path / 'x.html'}"
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "empty.txt").write_text("\n")
    assert "--workdir is missing" in refused()
    assert f"--only names 'activities'; sections: {', '.join(sections())}" in refused(workdir, out, "--only=activities")
    assert "must be a page, FILE.html" in refused(workdir, f"--out={tmp_path / 'x.pdf'}")
    assert "is one set; give two or more files" in refused(workdir, out, f"--sets={tmp_path / 'a.txt'}")
    assert "has no line with text" in refused(workdir, out, f"--sets={tmp_path / 'a.txt'},{tmp_path / 'empty.txt'}")
    (tmp_path / "b.txt").write_text("two\n")
    both = f"--sets={tmp_path / 'a.txt'},{tmp_path / 'b.txt'}"
    assert "was trained on the task 'facts', not on text; leave it out" in refused(workdir, out, both)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "empty.txt"]
