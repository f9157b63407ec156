"""Figures of the pages that are a report's own charts.

    python -m docs.tools.report_figures runs/text/report.html graph-degrees text_degrees

takes the chart of a finding, SECTION-NAME, out of a report, with its numbers, title and caption, and keeps it in
``benchmarks/results/charts``; ``python -m docs.tools.figures`` draws all that are kept, as the report does.
"""

from __future__ import annotations

import html
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from bdh_jax.analysis.report import page

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "benchmarks" / "results" / "charts"
_TITLE_WIDTH = 72
"""Characters of a line."""


def take(report: str, finding: str) -> dict[str, Any]:
    """A chart of a report with what stands around it.

    Args:
      report: the page, as HTML.
      finding: its anchor there, ``section-name``.

    Returns:
      "title", "says", "caption" and "spec", a Vega-Lite specification with its data.

    Raises:
      ValueError: if the report has no such finding, or no chart of it.
    """
    article = re.search(rf'<article aria-labelledby="{re.escape(finding)}">(.*?)</article>', report, re.DOTALL)
    spec = re.search(rf'<script type="application/json" id="{re.escape(finding)}-spec">(.*?)</script>', report, re.DOTALL)
    if article is None or spec is None:
        raise ValueError(f"the report has no chart of {finding!r}")
    parts = {"title": "h3", "says": 'p class="says"', "caption": "figcaption"}
    found = {name: _text(article[1], tag) for name, tag in parts.items()}
    return {**found, "spec": json.loads(spec[1])}


def _text(article: str, tag: str) -> str:
    inside = re.search(rf"<{tag}[^>]*>(.*?)</{tag.split()[0]}>", article, re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", inside[1] if inside else "")).split())


def kept() -> dict[str, dict[str, Any]]:
    """Name → chart, of all that are kept."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(CHARTS.glob("*.json"))}


def draw(chart: dict[str, Any]) -> tuple[str, bytes]:
    """A chart that was kept, as SVG and PNG: as the report draws it, with its title, on white."""
    import vl_convert

    title = {"text": textwrap.wrap(chart["title"], _TITLE_WIDTH), "anchor": "start"}
    spec = page.sized({**chart["spec"], "title": title}, page.STILL_WIDTH)
    config = {**page.theme(dark=False), "background": "white", "font": "sans-serif"}
    return vl_convert.vegalite_to_svg(spec, config=config), vl_convert.vegalite_to_png(spec, config=config, scale=2)


def main(report: str, finding: str, name: str) -> None:
    """Keep a chart."""
    chart = take(Path(report).read_text(encoding="utf-8"), finding)
    CHARTS.mkdir(parents=True, exist_ok=True)
    path = CHARTS / f"{name}.json"
    path.write_text(json.dumps(chart, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {chart['title']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
