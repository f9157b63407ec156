"""Reports in a real browser: nothing wrong on the console, nothing cut, dark and light, on paper, by keyboard, and without scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bdh_jax.analysis.report import page, watch
from bdh_jax.analysis.report.base import Finding
from bdh_jax.analysis.report.page import Answer, Page
from tests.report.browser import CUT, SCHEMES, UNNAMED, WIDTHS, browser, opened

TOKENS = ["a", "<b>", "␣", '"']
X, Y = {"field": "x", "type": "quantitative"}, {"field": "y", "type": "quantitative"}
LAYER = {"field": "layer", "type": "nominal"}
LONG = "a very long name of something that was measured and has to stand somewhere"
CHARTS = {
    "plain": {"mark": "line", "encoding": {"x": X, "y": Y, "color": LAYER}},
    "layers": {"layer": [{"mark": "line"}, {"mark": "point"}], "encoding": {"x": X, "y": Y}},
    "rows": {"mark": "line", "height": 60, "encoding": {"x": X, "y": Y, "row": LAYER}},
    "columns": {"mark": "line", "height": 60, "encoding": {"x": X, "y": Y, "column": LAYER}},
    "wrapped": {"mark": "point", "height": 60, "encoding": {"x": X, "y": Y, "facet": {**LAYER, "columns": 3}}},
    "facet": {"facet": LAYER, "columns": 3, "spec": {"mark": "point", "height": 60, "encoding": {"x": X, "y": Y}}},
    "beside": {
        "hconcat": [{"mark": "bar", "encoding": {"x": X, "y": Y}}, {"mark": "rect", "encoding": {"x": X, "y": LAYER}}]
    },
    "below": {"vconcat": [{"mark": "bar", "encoding": {"x": X, "y": Y}}, {"mark": "bar", "encoding": {"x": X, "y": Y}}]},
    "steps": {"mark": "bar", "height": {"step": 14}, "encoding": {"x": Y, "y": {"field": "name", "type": "nominal"}}},
    "slider": {
        "mark": "point",
        "params": [{"name": "at", "value": 1, "bind": {"input": "range", "min": 0, "max": 3, "step": 1, "name": "layer "}}],
        "transform": [{"filter": "datum.layer == at"}],
        "encoding": {"x": X, "y": Y},
    },
}


def rows(name: str):
    count = 6000 if name == "plain" else 30
    places = np.random.default_rng(0).normal(size=count)
    return [{"x": n, "y": places[n], "layer": n % 3, "name": f"{LONG} {n % 4}"} for n in range(count)]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A page with a chart of every kind that a section may make."""
    findings = [
        Finding(
            name,
            f"A finding about {LONG}",
            "It is 5 %.",
            "Nothing.",
            "A caption.",
            f"Words of {name}.",
            rows(name),
            chart,
            p_value=0.5,
        )
        for name, chart in CHARTS.items()
    ]
    wide = [{f"column {number}": LONG for number in range(9)}]
    findings.append(Finding("table", "A table", "It is wide.", "", "A caption.", "Words.", wide))
    coloured = "".join(f'<span style="background:#0072b255">{LONG}</span>' for _ in range(5))
    findings.append(
        Finding("text", "A text", "It is coloured.", "", "A caption.", "Words.", wide, html=f"<p>{coloured}</p>")
    )
    frames = [{"written": number, "read": 9, "norm": 0.5} for number in range(len(TOKENS))]
    pictures = [watch.png(np.full((8, 8), number, np.uint8)) for number in range(len(TOKENS))]
    slider = watch.slider(TOKENS, pictures, frames, "S")
    findings.append(Finding("frames", "Frames", "They move.", "", "A caption.", "Words.", frames, html=slider))
    answers = [
        Answer("one", "One", "Why?", findings, command="bdh report " + "--very_long=" * 20),
        Answer("two", "Two", "What?", refusal="None."),
    ]
    facts = {"Model": {"parameters": "1,234", LONG: LONG.replace(" ", "_")}}
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(
        page.render(Page(f"Inside {LONG.replace(' ', '_')}", LONG, facts, answers, "Made.", "report_csv")), encoding="utf-8"
    )
    return file


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wrong_or_cut(width, scheme, report, chromium):
    with opened(chromium, report, width, scheme) as (shown, wrong):
        assert wrong == []
        assert shown.evaluate(CUT) == []
        assert shown.evaluate(UNNAMED) == []
        ink, paper = (shown.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        lightness = [sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) for colour in (ink, paper)]
        assert (lightness[0] > lightness[1]) == (scheme == "dark")
        assert not shown.locator(".still").first.is_visible()


def test_charts_follow_the_width_and_the_scheme(report, chromium):
    with opened(chromium, report, 1400) as (shown, wrong):
        label = "document.querySelector('.live svg text').getAttribute('fill')"
        light = shown.evaluate(label)
        shown.set_viewport_size({"width": 400, "height": 900})
        shown.emulate_media(color_scheme="dark")
        shown.wait_for_function("document.documentElement.dataset.drawn === 'dark'")
        shown.wait_for_function(f"!({CUT})().length")
        assert shown.evaluate(label) != light
        assert wrong == []


def test_panels_are_wide_enough_to_read(report, chromium):
    with opened(chromium, report, 400) as (shown, _):
        panels = shown.evaluate(
            "[...document.querySelectorAll('.live svg g.role-scope.cell > g > path.background')].map((one) => one.getBoundingClientRect().width)"
        )
        assert len(panels) >= 12
        assert min(panels) > 150


def test_on_paper_there_are_stills_and_no_contents(report, chromium):
    with opened(chromium, report, 800) as (shown, _):
        shown.emulate_media(media="print")
        assert shown.locator(".still").first.is_visible()
        assert not shown.locator(".chart").first.is_visible()
        assert not shown.locator("nav").is_visible()


def test_without_scripts_there_are_stills(report, chromium):
    with opened(chromium, report, 400, java_script_enabled=False) as (shown, wrong):
        stills = shown.locator(".still")
        assert stills.count() == len(CHARTS)
        assert all(stills.nth(number).is_visible() for number in range(len(CHARTS)))
        assert wrong == []


def test_the_keyboard_reaches_the_report_and_its_numbers(report, chromium):
    with opened(chromium, report, 1400) as (shown, _):
        shown.keyboard.press("Tab")
        assert shown.evaluate("document.activeElement.className") == "skip"
        assert shown.locator(".skip").bounding_box()["x"] >= 0
        shown.keyboard.press("Enter")
        assert shown.evaluate("document.activeElement.id") == "main"
        numbers = shown.locator("details.numbers summary").first
        numbers.focus()
        shown.keyboard.press("Enter")
        assert shown.locator("details.numbers table").first.is_visible()


def test_arrow_keys_go_from_frame_to_frame_and_each_says_what_it_shows(report, chromium):
    """The slider of the section "watch", in the page: seen, and as a screen reader is told."""
    with opened(chromium, report, 1400) as (shown, wrong):
        group = shown.get_by_role("radiogroup", name="the state after each token")
        frames = group.locator(".frame")
        assert group.get_by_role("radio").count() == frames.count() == len(TOKENS)

        def seen():
            return [number for number in range(len(TOKENS)) if frames.nth(number).is_visible()]

        group.get_by_role("radio", checked=True).focus()
        assert seen() == [len(TOKENS) - 1]
        for key, number in (("ArrowLeft", 2), ("ArrowUp", 1), ("ArrowRight", 2), ("ArrowDown", 3), ("ArrowRight", 0)):
            shown.keyboard.press(key)
            assert seen() == [number]
            at = group.get_by_role(
                "radio", name=f"after token {number + 1}, {TOKENS[number]}: {number} rows written, 9 read, norm 0.5"
            )
            assert at.is_checked()
            assert at.evaluate("one => one === document.activeElement")
            assert frames.nth(number).get_by_role("img").get_attribute("alt").startswith(f"State after token {number + 1}")
            label = group.locator("label").nth(number)
            assert label.evaluate("one => getComputedStyle(one).outlineStyle") == "solid", (
                "the place of the keyboard is seen"
            )
        group.locator("label").nth(1).click()
        assert seen() == [1]
        # One stop for the Tab key, not one for each token.
        shown.keyboard.press("Tab")
        assert not shown.evaluate("document.activeElement.matches('input[type=radio]')")
        assert wrong == []


def test_a_pointer_is_told_the_numbers(report, chromium):
    with opened(chromium, report, 1400) as (shown, _):
        bar = shown.locator("[data-spec=one-steps-spec] .mark-rect path").first
        bar.scroll_into_view_if_needed()
        bar.hover()
        shown.wait_for_selector("#vg-tooltip-element.visible")
        assert LONG in shown.inner_text("#vg-tooltip-element")
