"""A real browser without a window, and what it says of a page.

Chromium is found by its name, or by ``BDH_JAX_BROWSER``; otherwise it is the one that ``playwright install chromium`` fetches. Without any
the tests fail, and say so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (400, 1400)
SCHEMES = ("light", "dark")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """The browser, while the block lasts."""
    named = os.environ.get("BDH_JAX_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=named, args=["--no-sandbox"])
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def opened(
    found: Browser, file: Path, width: int, scheme: Any = "light", **options: Any
) -> Iterator[tuple[Page, list[str]]]:
    """A file as a page, once its charts are drawn, and what went wrong: messages of the console, errors, and what it asked the network for."""
    context = found.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    wrong: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on(
        "request",
        lambda asked: (
            wrong.append(f"request: {asked.url}") if not asked.url.startswith(("file:", "data:", "blob:")) else None
        ),
    )
    page.goto(file.absolute().as_uri(), wait_until="load")
    if options.get("java_script_enabled", True):
        page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
    try:
        yield page, wrong
    finally:
        context.close()


CUT = """() => {
  const wide = [];
  const limit = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > limit) wide.push(`page ${document.documentElement.scrollWidth} > ${limit}`);
  const scrolls = (one) => {
    for (let box = one.parentElement; box; box = box.parentElement) {
      if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return true;
    }
    return false;
  };
  for (const one of document.querySelectorAll("body *")) {
    const box = one.getBoundingClientRect();
    if (!box.width || one.closest(".hidden, .skip, script, svg *") || scrolls(one)) continue;
    if (box.right > limit + 1 || box.left < -1) wide.push(`${one.tagName}.${one.className} ${box.left} to ${box.right}`);
  }
  for (const chart of document.querySelectorAll(".chart")) {
    const picture = chart.querySelector("svg.marks, canvas.marks");
    if (!picture) wide.push(`no picture in ${chart.querySelector(".live").dataset.spec}`);
    const frame = picture && picture.getBoundingClientRect();
    for (const text of chart.querySelectorAll("svg.marks text")) {
      const box = text.getBoundingClientRect();
      if (frame && box.width && getComputedStyle(text).opacity !== "0" && (box.right > frame.right + 2 || box.left < frame.left - 2))
        wide.push(`"${text.textContent}" is cut in ${chart.querySelector(".live").dataset.spec}`);
    }
    if (picture && chart.scrollWidth > chart.clientWidth + 1) wide.push(`chart ${chart.querySelector(".live").dataset.spec} scrolls`);
  }
  return wide;
}"""
"""What stands beyond the page's edge, in no box that scrolls; charts that are not there; charts that do not fit theirs."""

UNNAMED = """() => {
  const none = [];
  for (const figure of document.querySelectorAll("figure")) {
    const said = document.getElementById(figure.getAttribute("aria-describedby"));
    if (!said || !said.textContent.trim()) none.push(figure.outerHTML.slice(0, 120));
  }
  for (const chart of document.querySelectorAll(".chart")) if (!chart.getAttribute("aria-label")) none.push("chart");
  for (const image of document.querySelectorAll("img")) if (!image.alt) none.push("img");
  return none;
}"""
"""Figures without a text that says what they show."""
