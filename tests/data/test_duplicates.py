"""Documents that say once more what others said."""

from __future__ import annotations

import pytest

from bdh_jax.config import ConfigError
from bdh_jax.data.duplicates import distinct

LINES = [f"line {number:02} of a document that says something".encode() for number in range(20)]


def document(*numbers: int) -> bytes:
    return b"\n".join(LINES[number] for number in numbers) + b"\n"


def test_what_stood_in_one_document_or_several_counts():
    first, second = document(0, 1, 2, 3), document(4, 5, 6, 7)
    half, more = document(0, 1, 8, 9), document(0, 4, 10)
    assert list(distinct([first, second, half, more])) == [first, second, half]
    assert list(distinct([first, second, half, more], share=0.7)) == [first, second, half, more]
    assert list(distinct([first, first], share=0.99)) == [first]
    assert list(distinct([first, first], share=1.0)) == [first, first]


def test_what_was_left_out_counts_for_nothing():
    first, copy = document(0, 1, 2), document(0, 1, 3)
    assert list(distinct([first, copy, document(3, 4)], share=0.3)) == [first, document(3, 4)]


def test_blanks_and_short_lines_do_not_count():
    first = document(0, 1) + b"NAME\nSYNOPSIS\n"
    indented = b"   " + LINES[0].replace(b" ", b"   ") + b"\r\n" + LINES[1] + b"\t\n"
    assert list(distinct([first, indented])) == [first]
    assert list(distinct([first, b"NAME\nSYNOPSIS\n" + document(2)])) == [first, b"NAME\nSYNOPSIS\n" + document(2)]


def test_documents_of_short_lines_are_compared_whole():
    documents = [b"a\nb\n", b"a\nb\n", b"a\nc\n"]
    assert list(distinct(documents)) == [b"a\nb\n", b"a\nc\n"]


def test_a_share_is_a_share():
    with pytest.raises(ConfigError, match=r"share=1.5 must lie in \[0, 1\]"):
        distinct([], share=1.5)  # before anything is asked of it
