"""Forgetting MQAR: recall of a key whose value has changed (github.com/HazyResearch/zoology, ``forgetting_mqar``).

    k1 v1 k2 v2 … kP vP   k2 v2' k1 v1'   0 k2 0 0 k3 0 k1 …
                                            ↓      ↓    ↓
                                            v2'    v3   v1'

As :mod:`bdh_jax.tasks.mqar`, but ``updates`` of the P keys are shown once more, with another value, before it is asked: what is right is what
was shown last. A memory that adds up what it is told has both values under such a key; one that corrects itself has the last.

:func:`sequences` draws what the published generator draws, bit for bit, fillers apart. In it a new value differs from the value of *some* key of
the sequence, so that once in some hundred times, at V = 256, it is the old one again; that is kept.

"chance" is as in MQAR. "stale" is the accuracy of who remembers the first value of every key. "updated" is the accuracy at keys that were shown twice.

Axis letters: E sequences, T time, P pairs, U updates, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bdh_jax.config import require
from bdh_jax.console import Progress
from bdh_jax.tasks.mqar import SHOWN, MQARConfig, Segment, distinct, empty, finish, power_law


@dataclasses.dataclass(frozen=True)
class ForgettingMQARConfig(MQARConfig):
    """MQAR in which some keys get a new value."""

    name: str = "forgetting_mqar"
    updates: int = 4
    """U: keys of every sequence that are shown a second time."""

    def check_set(self, what: str, segment: Segment) -> None:
        """See :meth:`bdh_jax.tasks.mqar.MQARConfig.check_set`."""
        require(
            1 <= self.updates <= segment.pairs,
            f"{what}: task.updates={self.updates} must lie in 1 … {segment.pairs}, its number of pairs",
        )
        self.check_room(what, segment, 4 * segment.pairs + 2 * self.updates)
        self.check_keys(what, segment.pairs, self.vocab_size // 2)

    def draw(self, segment: Segment, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of a set, as :func:`sequences`."""
        return sequences(self.vocab_size, segment, self.updates, seed, power=self.power, fillers=self.fillers)

    def references(self, segment: Segment, inputs: np.ndarray, asked: np.ndarray, right: np.ndarray) -> dict[str, float]:
        """See :meth:`bdh_jax.tasks.mqar.MQARConfig.references`."""
        shown = inputs[:, 2 * segment.pairs : 2 * (segment.pairs + self.updates) : 2]
        updated = (np.take_along_axis(inputs, asked, axis=1)[:, :, None] == shown[:, None, :]).any(axis=2)
        return {
            "chance": 1 / segment.pairs,
            "stale": 1 - self.updates / segment.pairs,
            "updated": float(right[updated].mean()),
        }


def sequences(
    vocab_size: int, segment: Segment, updates: int, seed: int, *, power: float = 0.01, fillers: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The sequences that the published generator draws with this seed.

    Args:
      vocab_size: V.
      segment: T, P and E.
      updates: U.
      seed: in [0, 2³²).
      power: of the law by which places are asked.
      fillers: random tokens where nothing is asked.

    Returns:
      inputs and labels, each [E, T] int32, as of :func:`bdh_jax.tasks.mqar.sequences`.

    Raises:
      ConfigError: if V has too few ids for the pairs, or T no room for the queries.
    """
    length, pairs, count = segment
    draw = np.random.RandomState(seed)
    half, first, start = vocab_size // 2, 2 * pairs, 2 * (pairs + updates)
    places, ids = (length - start) // 2, np.arange(half, vocab_size)
    with Progress(f"drawing {segment.name}", 5 * count, shown=count >= SHOWN) as progress:
        keys = distinct(draw, np.arange(1, half), count, pairs, progress)
        values = distinct(draw, ids, count, pairs, progress)
        new = np.empty((count, updates), np.int64)
        for example in range(count):
            for update in range(updates):
                new[example, update] = draw.choice(ids[ids != values[example, update]])
            if example % 1000 == 999:
                progress.advance(1000)
        which = distinct(draw, np.arange(pairs), count, updates, progress)
        gaps = distinct(draw, np.arange(places), count, pairs, progress, law=power_law(places, power))
    inputs, labels = empty(segment)
    inputs[:, 0:first:2], inputs[:, 1:first:2] = keys, values
    inputs[:, first:start:2], inputs[:, first + 1 : start : 2] = np.take_along_axis(keys, which, axis=1), new
    np.put_along_axis(values, which, new, axis=1)
    np.put_along_axis(inputs, start + 2 * gaps, keys, axis=1)
    np.put_along_axis(labels, start + 2 * gaps + 1, values, axis=1)
    return finish(inputs, labels, vocab_size, seed, fillers=fillers)


CONFIG = ForgettingMQARConfig
