"""A report as one HTML file that needs no network and no server, and the tables beside it.

Everything here is a function of findings: nothing is asked of a model, and nothing is read but this package's own assets. Charts are drawn
in the browser by Vega-Lite, which is part of the page; a still picture of each is there for print and for who runs no scripts.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import functools
import importlib.resources
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

from bdh_jax.analysis.report.base import Finding, Rows

GENERATOR = "bdh_jax report"
"""What a report says it was made by."""
SHOWN_ROWS = 100
"""Rows of a table that the page shows; its CSV has all."""
_LARGEST_SVG = 300_000
"""Bytes of a still picture of lines, beyond which it is one of dots."""
STILL_WIDTH = 640
"""Pixels of a chart that does not move."""
_INK, _SOFT, _GRID = "#1c2430", "#5b6675", "#e1e5ea"
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#a8578a", "#997700", "#4a90c2", "#6b6b6b", "#000000")
_DARK = ("#58b4f0", "#ff9f5a", "#3ccfa4", "#e59ac6", "#e3c24a", "#9ecbf0", "#b0b0b0", "#ffffff")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A section of the page.

    Attributes:
      name: of it, as ``--only`` takes it.
      title, asks: as of :class:`bdh_jax.analysis.report.base.Section`.
      findings: what it found.
      refusal: why it was not asked; empty if it was.
      failure: why it has no answer though it was asked: an error of the section itself; empty if there was none.
      command: that makes its numbers anew; empty where the run itself holds them.
    """

    name: str
    title: str
    asks: str
    findings: Sequence[Finding] = ()
    refusal: str = ""
    failure: str = ""
    command: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """All that a report says.

    Attributes:
      title: as the heading.
      lead: one or two sentences under it.
      facts: name → value, in groups by their heading: what the model is, how it was trained.
      answers: the sections, in their order.
      made: how the report itself was made, in one sentence.
      tables: folder of the CSV files as seen from the page; empty if there are none.
      notice: what has to be known before anything is read, under the lead; empty if nothing has.
    """

    title: str
    lead: str
    facts: Mapping[str, Mapping[str, str]]
    answers: Sequence[Answer]
    made: str
    tables: str = ""
    notice: str = ""


def render(page: Page, advance: Callable[[], None] = lambda: None) -> str:
    """The page as HTML.

    Args:
      page: what it says. All of it is escaped, but :attr:`Finding.html`.
      advance: called after each finding.

    Returns:
      HTML, UTF-8.

    Raises:
      ValueError: if two findings of a section have one name, or a name cannot be that of a file.
    """
    import jinja2  # optional dependencies

    _check_names(page)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": shown, "as_json": as_json, "marked": marked, "number": number}
    stills: dict[tuple[str, str], str] = {}
    for answer in page.answers:
        for finding in answer.findings:
            if finding.chart is not None:
                stills[answer.name, finding.name] = still(finding)
            advance()
    return environment.from_string(_asset("page.html")).render(
        page=page,
        style=_asset("page.css"),
        script=_asset("page.js"),
        library=_library(),
        stills=stills,
        themes={"light": theme(dark=False), "dark": theme(dark=True)},
        generator=GENERATOR,
        shown_rows=SHOWN_ROWS,
        csv_name=csv_name,
        columns=columns,
        specification=specification,
    )


def tables(page: Page) -> dict[str, str]:
    """Name of a file → CSV, for every finding that has rows."""
    return {
        csv_name(answer.name, finding.name): to_csv(finding.rows)
        for answer in page.answers
        for finding in answer.findings
        if finding.rows
    }


def _check_names(page: Page) -> None:
    names = [(answer.name, finding.name) for answer in page.answers for finding in answer.findings]
    for section, finding in names:
        if names.count((section, finding)) > 1 or not re.fullmatch(r"[\w-]+", finding):
            raise ValueError(
                f"the section {section!r} has a finding {finding!r}: a name is unique there, of letters, digits, _ and -"
            )


def csv_name(section: str, finding: str) -> str:
    """The file of a finding's numbers."""
    return f"{section}.{finding}.csv"


def to_csv(rows: Rows) -> str:
    """Rows as CSV, with a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = columns(rows)
    writer.writerow(names)
    writer.writerows([_plain(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def columns(rows: Rows) -> list[str]:
    """The names of all columns, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


class _Head(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.tables = "", []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "meta" and named.get("name") == "generator":
            self.generator = named.get("content") or ""
        elif tag == "link" and named.get("rel") == "alternate" and named.get("type") == "text/csv":
            self.tables.append(named.get("href") or "")


def tables_of(html: str) -> list[str] | None:
    """The files, from its folder on, that a report names as its own; None of a page that is no report.

    Args:
      html: the page, or its beginning.
    """
    head = _Head()
    head.feed(html.partition("</head>")[0])
    return head.tables if head.generator == GENERATOR else None


def specification(finding: Finding) -> dict[str, Any]:
    """The Vega-Lite specification of a finding's chart, with its data.

    Raises:
      ValueError: if it has none.
    """
    if finding.chart is None:
        raise ValueError(f"the finding {finding.name!r} has no chart")
    values = [{name: _plain(value) for name, value in row.items()} for row in finding.rows]
    return {**finding.chart, "data": {"values": values}, "description": finding.alternative}


def still(finding: Finding) -> str:
    """A still picture of a finding's chart for print, as a ``data:`` address: lines, or dots where lines would be too many."""
    import vl_convert  # an optional dependency

    spec = sized(specification(finding), STILL_WIDTH)
    config = theme(dark=False)
    svg = vl_convert.vegalite_to_svg(spec, config=config)
    if len(svg) <= _LARGEST_SVG:
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    picture = vl_convert.vegalite_to_png(spec, config=config, scale=1.5)
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def theme(*, dark: bool) -> dict[str, Any]:
    """The Vega-Lite configuration of all charts."""
    ink, soft, grid = ("#e8ebf0", "#a9b3c1", "#323a46") if dark else (_INK, _SOFT, _GRID)
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
    text = {
        "labelFont": font,
        "titleFont": font,
        "labelColor": ink,
        "titleColor": soft,
        "labelFontSize": 12,
        "titleFontSize": 12,
    }
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            **text,
            "titleFontWeight": 500,
            "domainColor": soft,
            "tickColor": soft,
            "gridColor": grid,
            "titlePadding": 8,
            "labelLimit": 160,
            "labelFlush": False,
            "labelOverlap": "parity",
        },
        "axisX": {"grid": False},
        "legend": {
            **text,
            "symbolBaseFillColor": soft,
            "symbolBaseStrokeColor": soft,
            "orient": "top",
            "symbolStrokeWidth": 2,
            "labelLimit": 220,
            "titleFontWeight": 500,
            "offset": 8,
        },
        "header": {**text, "labelFontWeight": 600},
        "title": {"color": ink, "font": font, "anchor": "start", "fontSize": 13},
        "text": {"color": ink, "font": font},
        "mark": {"tooltip": True},
        "rule": {"color": soft},
        "line": {"strokeWidth": 2},
        "range": {
            "category": list(_DARK if dark else _LIGHT),
            "heatmap": {"scheme": "cividis"},
            "ramp": {"scheme": "cividis"},
            "ordinal": {"scheme": "viridis", "extent": [0.35, 1] if dark else [0, 0.85]},
        },
    }


def shown(value: Any) -> str:
    """A cell of a table."""
    value = _plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}"


def number(value: float) -> str:
    """A number of a sentence: three digits, with a minus sign."""
    return f"{value:.3g}".replace("-", "−", 1) if value < 0 else f"{value:.3g}"


def marked(text: str) -> Any:
    """Text as HTML, escaped; what stands between backticks is code. Numbers have a minus sign, and are not parted from their unit."""
    import markupsafe  # comes with jinja2

    parts = [markupsafe.escape(part if place % 2 else _set(part)) for place, part in enumerate(text.split("`"))]
    if len(parts) % 2 == 0:  # the last one opens what nothing closes
        parts[-2:] = [parts[-2] + "`" + parts[-1]]
    code = markupsafe.Markup("<code>{}</code>")
    return markupsafe.Markup("").join(code.format(part) if place % 2 else part for place, part in enumerate(parts))


def _set(text: str) -> str:
    """Words with numbers as they are printed."""
    text = re.sub(r"(?<![\w.,\u2212-])-(?=\d)", "\u2212", text)
    text = re.sub(r"(?<=\d) ?%", "\u00a0%", text)
    text = re.sub(r"(?<=\d) ± (?=\d)", "\u00a0±\u00a0", text)
    return re.sub(r"\bp ([=<≤]) (?=\d)", "p\u00a0\\1\u00a0", re.sub(r"\bp (?=\d)", "p\u00a0", text))


def as_json(value: Any) -> Any:
    """JSON that may stand in a ``script`` element: no tag ends in it."""
    import markupsafe  # comes with jinja2

    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return markupsafe.Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python; what is not finite is None, since JSON has no such number."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sized(spec: dict[str, Any], width: int) -> dict[str, Any]:
    """A Vega-Lite specification for a page of so many pixels, as page.js makes one for the page that there is."""
    spec = dict(spec)
    for name in ("hconcat", "vconcat", "concat"):
        if name in spec:
            parts = [sized(dict(part), width - 80) for part in spec.pop(name)]
            return {**spec, "vconcat": parts}
    if "spec" in spec:
        return {**spec, "spec": sized(dict(spec["spec"]), width // max(1, int(spec.get("columns", 1))) - 80)}
    encoding = spec.get("encoding", {})
    if "row" in encoding or "column" in encoding or "facet" in encoding:
        across = _panels(spec, encoding.get("column")) if "column" in encoding else _across(encoding.get("facet"))
        return {"width": max(90, (width - 90) // across - 20), **spec}
    return {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}, **spec}


def _panels(spec: Mapping[str, Any], channel: Mapping[str, Any]) -> int:
    values = spec.get("data", {}).get("values", [])
    return max(1, len({row.get(channel.get("field")) for row in values}))


def _across(facet: Mapping[str, Any] | None) -> int:
    return max(1, int(facet.get("columns", 1))) if facet else 1


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script; ``vegaEmbed`` is global."""
    import vl_convert  # an optional dependency

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


@functools.cache
def _asset(name: str) -> str:
    return importlib.resources.files(__package__ or "").joinpath("assets", name).read_text(encoding="utf-8")
