"""Text that was there before: how well a byte is predicted whose context stood in the window already, and by its place in the window.

A byte's *context* is the ``CONTEXT`` bytes before it. It is **new** if it did not end anywhere earlier in the same window and document,
**once** if it did exactly once, **more** if it did more often. A context of fewer than ``DISTINCT`` different bytes, such as an indent or a
ruled line, is **plain** whatever happened before, and at the start of a window or document it is **short**. The byte itself decides nothing, so
that every byte is in one class, whether it goes on as the earlier string did or not.

Axis letters: W windows, T time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bdh_jax.config import ConfigError, require
from bdh_jax.data.corpus import Corpus, window
from bdh_jax.tasks.scoring import Predict

CONTEXT = 8
DISTINCT = 4
CLASSES = ("short", "plain", "new", "once", "more")
"""What number k of :func:`contexts` stands for."""
EDGES = (0, 16, 64, 128, 256, 512)
"""Of places in a window: 0 … 15, 16 … 63 and so on."""


class WindowCosts(NamedTuple):
    """What the bytes of some windows cost a model."""

    nats: np.ndarray
    """[W, T] float64, −ln of the probability of each target."""
    weight: np.ndarray
    """[W, T], 0 where a target begins a document, which nothing foretells; else 1."""
    place: np.ndarray
    """[W, T] int, tokens of the same window and document before each target, less one: what the model had read beside the last token."""
    contexts: np.ndarray
    """[W, T] int, of each target: a number of ``CLASSES``."""
    goes_on: np.ndarray
    """[W, T] bool, whether it is the byte that followed its context the last time."""


class Share(NamedTuple):
    """The bytes of a class."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, which is not called
    bits_per_byte: float
    goes_on: float
    """Share of them that are what followed their context the last time."""


def contexts(piece: np.ndarray, reset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a window's contexts stood before.

    Args:
      piece: [T + 1], the bytes of a window and the one after it.
      reset: [T + 1] bool, where a document starts. The first token of a window starts anew too.

    Returns:
      For targets 1 … T: the number of the class in ``CLASSES`` [T], and whether the target is the byte that followed its context the last time
      [T] bool.

    Raises:
      ConfigError: for a token id that is no byte.
    """
    piece = np.asarray(piece)
    others = np.flatnonzero((piece < 0) | (piece > 255))
    if len(others):
        raise ConfigError(f"token id {piece[others[0]]} at place {others[0]} is no byte; give text that is read as bytes")
    text = piece.astype(np.uint8).tobytes()
    kinds, goes_on = np.empty(len(text) - 1, np.int64), np.zeros(len(text) - 1, bool)
    start, seen = 0, {}
    for target in range(1, len(text)):
        if reset[target]:
            # It begins a document, and has no context of its own.
            start, seen = target, {}
        context = text[target - CONTEXT : target] if target - start >= CONTEXT else b""
        count, after = seen.get(context, (0, -1))
        if not context:
            kinds[target - 1] = CLASSES.index("short")
            continue
        plain = len(set(context)) < DISTINCT
        kinds[target - 1] = CLASSES.index("plain" if plain else ("new", "once", "more")[min(count, 2)])
        goes_on[target - 1] = after == text[target]
        seen[context] = (count + 1, text[target])
    return kinds, goes_on


def cost_windows(predict: Predict, corpus: Corpus, length: int, windows: int, *, rows: int = 8) -> WindowCosts:
    """The costs of windows that lie evenly in a text, each read from an empty state.

    Args:
      predict: tokens [B, T] int32, valid [B, T] bool, reset [B, T] bool → logits [B, T, V].
      corpus: of bytes.
      length: T.
      windows: W, at most; all whole windows if there are fewer.
      rows: B, windows of one call.

    Raises:
      ConfigError: if the corpus is shorter than a window, or is not of bytes.
    """
    total = (len(corpus.tokens) - 1) // length
    require(total >= 1, f"{len(corpus.tokens)} tokens are fewer than a window of {length} needs; give more text")
    numbers = np.arange(min(windows, total)) * total // min(windows, total)
    found = []
    for first in range(0, len(numbers), rows):
        pieces = [window(corpus, int(number) * length, length) for number in numbers[first : first + rows]]
        tokens, targets, reset, weight = (np.stack(arrays) for arrays in zip(*pieces, strict=True))
        index = np.minimum(np.arange(rows), len(pieces) - 1)
        logits = np.asarray(predict(tokens[index], np.ones(tokens[index].shape, bool), reset[index]))[: len(pieces)]
        nats = _costs(logits, targets)
        count = np.arange(length)
        place = count - np.maximum.accumulate(np.where(reset, count, 0), axis=1)
        for row in range(len(pieces)):
            piece = np.append(tokens[row], targets[row, -1])
            starts = np.append(reset[row], weight[row, -1] == 0)
            found.append((nats[row], weight[row], place[row], *contexts(piece, starts)))
    return WindowCosts(*(np.stack(arrays) for arrays in zip(*found, strict=True)))


def twice(corpus: Corpus, length: int, windows: int) -> Corpus:
    """Passages that lie evenly in a text, each twice in a row as one document: what a model can find again is all that it needs.

    Args:
      corpus: the text.
      length: of a passage; a document has twice as many tokens.
      windows: passages, at most.

    Raises:
      ConfigError: if the corpus is shorter than a passage.
    """
    total = len(corpus.tokens) // length
    require(total >= 1, f"{len(corpus.tokens)} tokens are fewer than a passage of {length} needs; give more text")
    count = min(windows, total)
    starts = np.arange(count) * total // count * length
    passages = [np.tile(np.asarray(corpus.tokens[start : start + length]), 2) for start in starts]
    return Corpus(np.concatenate(passages), np.arange(count) * 2 * length)


def by_context(costs: WindowCosts) -> dict[str, Share]:
    """Bits per byte of each class of contexts that has a byte."""
    classes = {name: costs.contexts == number for number, name in enumerate(CLASSES)}
    return {name: _share(costs, where) for name, where in classes.items() if (costs.weight * where).any()}


def by_place(costs: WindowCosts, edges: Sequence[int] = EDGES) -> dict[tuple[int, int], Share]:
    """Bits per byte by how much of the window was read: (first, last place) → bytes there. Classes without a byte are left out.

    Args:
      costs: of windows.
      edges: first places of the classes, and behind them where the last class ends: bytes from there on, such as those from place 512 of longer
        windows, are in none.
    """
    places = {(low, high - 1): (costs.place >= low) & (costs.place < high) for low, high in itertools.pairwise(edges)}
    return {name: _share(costs, where) for name, where in places.items() if (costs.weight * where).any()}


def whole(costs: WindowCosts) -> Share:
    """All bytes that are predicted."""
    return _share(costs, np.ones(costs.nats.shape, bool))


def _share(costs: WindowCosts, where: np.ndarray) -> Share:
    weight = costs.weight * where
    size = float(weight.sum())
    return Share(
        int(size), float((costs.nats * weight).sum() / size / math.log(2)), float((costs.goes_on * weight).sum() / size)
    )


def _costs(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    largest = wide.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(wide - largest).sum(axis=-1)) + largest[..., 0]
    return log_sum - np.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
