"""Checks of a built site: every internal link and anchor leads somewhere, and every public name has a place in the reference."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif (name == "id" or name == "name" and tag == "a") and value:
                self.anchors.add(value)


def broken_links(site: Path) -> list[str]:
    """Every link within a built site that leads to no file, or to no anchor of its page, as "page: link".

    Args:
      site: folder of HTML pages. Links to other hosts are not followed.
    """
    pages: dict[Path, _Page] = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = _Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists() or anchor and target in pages and anchor not in pages[target].anchors:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def names_without_place(site: Path, names: Iterable[str]) -> list[str]:
    """Those of the names ("module.name") that the inventory of the reference does not have.

    Args:
      site: folder that holds ``objects.inv``.
      names: to be found.
    """
    inventory = (site / "objects.inv").read_bytes()
    body = inventory.split(b"\n", 4)[
        4
    ]  # four lines of header, then compressed lines "name domain:role priority uri display"
    there = {line.split(" ", 1)[0] for line in zlib.decompress(body).decode("utf-8").splitlines()}
    return [name for name in names if name not in there]
