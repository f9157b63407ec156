"""Contexts that stood in the window before, and what bytes after them cost."""

from __future__ import annotations

import numpy as np
import pytest

from bdh_jax.analysis import repeated_strings
from bdh_jax.analysis.repeated_strings import (
    CLASSES,
    CONTEXT,
    DISTINCT,
    by_context,
    by_place,
    contexts,
    cost_windows,
    twice,
    whole,
)
from bdh_jax.config import ConfigError
from bdh_jax.data.corpus import Corpus, build_corpus


def bytes_of(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def kinds(text: bytes, starts: tuple[int, ...] = ()) -> tuple[list[str], list[bool]]:
    """Of the byte at each place from 1."""
    reset = np.zeros(len(text), bool)
    reset[list(starts)] = True
    found, goes_on = contexts(bytes_of(text), reset)
    return [CLASSES[kind] for kind in found], goes_on.tolist()


def naive(text: bytes, start: int, at: int) -> tuple[str, bool]:
    """The same by the definition, of one byte of a document that begins at ``start``."""
    context = text[max(start, at - CONTEXT) : at]
    if len(context) < CONTEXT:
        return "short", False
    before = [place for place in range(start + CONTEXT, at) if text[place - CONTEXT : place] == context]
    goes_on = bool(before) and text[before[-1]] == text[at]
    if len(set(context)) < DISTINCT:
        return "plain", goes_on
    return ("new", "once", "more")[min(len(before), 2)], goes_on


def test_a_string_that_comes_again():
    text = b"the name: getopt_r, and getopt_r; getopt_r."
    found, goes_on = kinds(text)
    # Behind " getopt_r" stands a comma first, then a semicolon, then a full stop.
    first, second, third = (place - 1 for place in (text.index(b","), text.index(b";"), text.index(b".")))
    assert (found[first], found[second], found[third]) == ("new", "once", "more")
    assert not goes_on[second]
    # " getopt_" was there: its last byte but one is foretold.
    assert found[second - 1] == "once"
    assert goes_on[second - 1]
    assert found[: CONTEXT - 1] == ["short"] * (CONTEXT - 1)


def test_contexts_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    words = [b"alpha beta ", b"gamma delta", b"        ", b"----------", b"epsilon(3) "]
    text = b"".join(words[rng.integers(len(words))] for _ in range(60))
    starts = (0, 150, 151, 333)
    found, goes_on = kinds(text, starts)
    expected = []
    for at in range(1, len(text)):
        start = max(start for start in starts if start <= at)
        expected.append(naive(text, start, at) if start < at else ("short", False))
    assert list(zip(found, goes_on, strict=True)) == expected
    assert {"short", "plain", "new", "once", "more"} == set(found)


def test_a_document_knows_nothing_of_the_one_before():
    text = b"abcdefgh!" * 2
    assert kinds(text)[0][-1] == "once"
    assert kinds(text, (9,))[0][-1] == "new"
    assert kinds(text, (10,))[0][-1] == "short"


def oracle(tokens: np.ndarray, valid: np.ndarray, reset: np.ndarray) -> np.ndarray:
    """Gives byte 1 a half, all others as much as each other: 1 bit for byte 1."""
    del valid, reset
    logits = np.zeros((*tokens.shape, 256), np.float32)
    logits[..., 1] = np.log(255)
    return logits


def test_costs_are_summed_by_place_and_context(monkeypatch):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 4, size).astype(np.uint8) for size in (21, 40, 3, 64)]
    corpus = build_corpus(documents, lambda document: document)
    monkeypatch.setattr(repeated_strings, "CONTEXT", 3)
    monkeypatch.setattr(repeated_strings, "DISTINCT", 2)
    costs = cost_windows(oracle, corpus, 16, 100, rows=4)
    assert costs.nats.shape == (7, 16)  # whole windows: 127 targets
    targets = np.concatenate(documents)[1 : 7 * 16 + 1].reshape(7, 16)
    expected = np.where(targets == 1, 1, 1 + np.log2(255))
    weight = np.ones((7, 16))
    for start in (21, 61, 64):
        weight.flat[start - 1] = 0
    np.testing.assert_array_equal(costs.weight, weight)
    np.testing.assert_allclose(costs.nats / np.log(2), expected, rtol=1e-6)
    everything = whole(costs)
    assert everything.count == weight.sum() == 7 * 16 - 3
    np.testing.assert_allclose(everything.bits_per_byte, (expected * weight).sum() / weight.sum(), rtol=1e-6)
    for parts in (by_context(costs), by_place(costs, (0, 4, 16))):
        assert sum(share.count for share in parts.values()) == everything.count
        np.testing.assert_allclose(
            sum(share.count * share.bits_per_byte for share in parts.values()) / everything.count, everything.bits_per_byte
        )
    assert {"short", "plain", "new", "once"} <= set(by_context(costs))
    # The target behind place p of a window was read after p + 1 of its bytes, or of its document's.
    early = costs.place < 4
    share = by_place(costs, (0, 4, 16))[0, 3]
    np.testing.assert_allclose(share.bits_per_byte, (expected * weight * early).sum() / (weight * early).sum(), rtol=1e-6)
    assert costs.place[1, 4] == 4
    assert costs.place[1, 5] == 0


def test_windows_lie_evenly_and_do_not_hang_on_rows():
    corpus = build_corpus([np.arange(201, dtype=np.uint8) % 7], lambda document: document)
    every, few = (cost_windows(oracle, corpus, 10, count, rows=3) for count in (20, 5))
    np.testing.assert_array_equal(few.nats, every.nats[::4])
    np.testing.assert_array_equal(cost_windows(oracle, corpus, 10, 5, rows=8).nats, few.nats)


def test_passages_stand_twice():
    corpus = build_corpus([np.arange(20, dtype=np.uint8)], lambda document: document)
    doubled = twice(corpus, 4, 2)
    assert doubled.tokens.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 8, 9, 10, 11, 8, 9, 10, 11]
    assert doubled.starts.tolist() == [0, 8]
    assert doubled.document(1).tolist() == [8, 9, 10, 11] * 2
    assert twice(corpus, 8, 100).documents == 2
    costs = cost_windows(oracle, doubled, 8, 5)
    assert [share.count for share in by_place(costs, (0, 3, 8)).values()] == [
        3,
        4,
    ]  # one window is whole; what begins a document is not predicted
    with pytest.raises(ConfigError, match="20 tokens are fewer than a passage of 21 needs"):
        twice(corpus, 21, 1)


@pytest.mark.parametrize("token", [256, -1])
def test_what_is_no_byte_is_refused(token):
    piece = np.full(12, 7)
    piece[9] = token
    with pytest.raises(ConfigError, match=rf"token id {token} at place 9 is no byte"):
        contexts(piece, np.zeros(12, bool))


def test_too_short_a_text_is_refused():
    with pytest.raises(ConfigError, match="5 tokens are fewer than a window of 8 needs"):
        cost_windows(oracle, Corpus(np.zeros(5, np.uint8), np.array([0])), 8, 1)
