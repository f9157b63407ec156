"""Several episodes in one row of a batch, so that short ones do not cost as much as long ones.

Axis letters: E episodes, B batch, T time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from bdh_jax.tasks.base import Batch

Kind = TypeVar("Kind", bound=Hashable)


class Encoded(NamedTuple):
    """Episodes as tokens, each [E,T]."""

    tokens: np.ndarray
    """int32."""
    targets: np.ndarray
    """int32."""
    answer: np.ndarray
    """bool, where an answer token is predicted."""
    valid: np.ndarray
    """bool; False only for queries that an episode lacks, at its end."""


class Layout(NamedTuple, Generic[Kind]):
    """Where the episodes of a batch lie."""

    places: dict[Kind, np.ndarray]
    """For each kind [E,T] int64: index into the flattened batch."""
    loss_weights: dict[Kind, float]
    """Loss weight of an answer token, for each kind."""
    reset: np.ndarray
    """[B,T] bool."""


def pack(rows: list[Kind], kinds: tuple[Kind, ...], lengths: dict[Kind, int]) -> Layout[Kind]:
    """Give each row an episode of its own kind, then the longest that still fits, until none does.

    Args:
      rows: kind of the first episode of each row.
      kinds: what else rows are filled up with.
      lengths: tokens T_kind of an episode of each kind; the longest is the length T of a row.
    """
    width = max(lengths.values())
    starts: dict[Kind, list[int]] = {}
    reset = np.zeros((len(rows), width), bool)
    by_length = sorted(set(kinds), key=lambda kind: -lengths[kind])
    for row, kind in enumerate(rows):
        column = 0
        fits: Kind | None = kind
        while fits is not None:
            starts.setdefault(fits, []).append(row * width + column)
            reset[row, column] = column > 0
            column += lengths[fits]
            fits = next((s for s in by_length if column + lengths[s] <= width), None)
    places = {kind: np.array(s)[:, None] + np.arange(lengths[kind]) for kind, s in starts.items()}
    episodes = sum(len(s) for s in starts.values())
    weights = {kind: episodes / (len(starts) * len(s)) for kind, s in starts.items()}
    return Layout(places, weights, reset)


def assemble(layout: Layout[Kind], encoded: Mapping[Kind, Encoded], *, padding: int) -> Batch:
    """The batch of a layout.

    Args:
      layout: of :func:`pack`.
      encoded: as many episodes of each kind as the layout has places for.
      padding: id of tokens and targets where there is no episode.

    Returns:
      A batch [B,T]. ``loss_weights`` are on answers only, and give all kinds the same share of the loss however many there are.
    """
    size = layout.reset.shape
    batch = Batch(
        tokens=np.full(size, padding, np.int32),
        targets=np.full(size, padding, np.int32),
        answer=np.zeros(size, np.float32),
        loss_weights=np.zeros(size, np.float32),
        valid=np.zeros(size, bool),
        reset=layout.reset.copy(),
    )
    for kind, places in layout.places.items():
        tokens, targets, answer, valid = encoded[kind]
        batch.tokens.ravel()[places] = tokens
        batch.targets.ravel()[places] = targets
        batch.answer.ravel()[places] = answer
        batch.loss_weights.ravel()[places] = answer * np.float32(layout.loss_weights[kind])
        batch.valid.ravel()[places] = valid
    return batch
