"""Sequences of a task that a model was not trained on: those that its evaluation shows to one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.tasks.base import Task
from bdh_jax.tasks.scoring import ROWS

_SEEN = 64 * ROWS
"""Sequences after which an evaluation has shown enough to choose from."""


class HeldOut(NamedTuple):
    """Sequences, the shorter ones padded."""

    tokens: np.ndarray
    """int32 [B, T]."""
    valid: np.ndarray
    """bool [B, T]."""


class _Enough(Exception):
    """Ends an evaluation that nobody wants the scores of."""


def held_out(task: Task, rows: int) -> HeldOut:
    """Sequences that an evaluation shows a model, spread evenly over all that it shows.

    Sequences that begin alike are shown again with other answers, and very short ones ask for what was learned by heart: one of the former is
    taken, and none of the latter.

    Args:
      task: asked by its own evaluation, of a model that gives all tokens the same logits.
      rows: B; fewer if the evaluation has fewer.

    Returns:
      The :class:`HeldOut`.
    """
    seen: dict[bytes, np.ndarray] = {}

    def predict(tokens: np.ndarray, valid: np.ndarray, reset: Any = None, size: int | None = None) -> Any:
        del reset
        for row, there in zip(np.asarray(tokens), np.asarray(valid), strict=True):
            sequence = np.array(row[there], np.int32)
            seen.setdefault(sequence[: max(1, len(sequence) // 2)].tobytes(), sequence)
        if len(seen) >= _SEEN:
            raise _Enough
        shape = (len(tokens), tokens.shape[1], task.vocab_size)
        return np.zeros(shape, np.float32) if size is None else _parts(shape, size)

    with contextlib.suppress(_Enough):
        task.evaluate(predict)
    longest = max(map(len, seen.values()))
    kept = [sequence for sequence in seen.values() if 2 * len(sequence) >= longest]
    chosen = [kept[number] for number in np.unique(np.arange(rows) * len(kept) // rows)]
    valid = np.arange(longest)[None] < np.array([len(sequence) for sequence in chosen])[:, None]
    tokens = np.stack([np.pad(sequence, (0, longest - len(sequence))) for sequence in chosen])
    return HeldOut(tokens, valid)


def _parts(shape: tuple[int, int, int], size: int) -> Iterator[np.ndarray]:
    """Logits of so many tokens after another."""
    rows, length, vocabulary = shape
    for first in range(0, length, size):
        yield np.zeros((rows, min(size, length - first), vocabulary), np.float32)
