"""Documents that say once more what others said: aliases, copies with another title, tables that differ in a few rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bdh_jax.config import require

LINE_BYTES = 20
"""Shorter lines, such as headings, are in many documents and say nothing."""


def distinct(documents: Iterable[bytes], share: float = 0.5) -> Iterator[bytes]:
    """The documents without those of which too much stood in earlier ones.

    Args:
      documents: in any order; of two that are alike the first is kept.
      share: a document is left out if more than this share of its lines stood in documents that were kept before, in [0, 1]. Lines are
        compared without what is blank at their ends, and runs of blanks count as one; those shorter than ``LINE_BYTES`` do not count. A
        document without a line that counts is compared whole.

    Returns:
      those that are kept, in their order, one by one.

    Raises:
      ConfigError: if ``share`` is out of range.
    """
    require(0 <= share <= 1, f"share={share} must lie in [0, 1]: of a document's lines")
    return _kept(documents, share)


def _kept(documents: Iterable[bytes], share: float) -> Iterator[bytes]:
    seen: set[bytes] = set()
    for document in documents:
        lines = [line for line in (b" ".join(line.split()) for line in document.splitlines()) if len(line) >= LINE_BYTES]
        lines = lines or [document]
        if sum(line in seen for line in lines) <= share * len(lines):
            seen.update(lines)
            yield document
