"""Compositional MQAR: keys of two tokens, neither of which says the value (github.com/HazyResearch/zoology, ``compositional_mqar``).

    a x v1   b y v2   a y v3   b x v4     a y 0   b y 0 …
                                            ↓       ↓
                                            v3      v2

As :mod:`bdh_jax.tasks.mqar`, but the P keys of a sequence are all pairs of √P first and √P second tokens, shown in a random order and asked for
by both. What is found by one of the tokens alone is one of √P values. First tokens are the ids 1 … V/3 − 1, second ones V/3 … 2V/3 − 1, values the
rest.

:func:`sequences` draws what the published generator draws, bit for bit, fillers apart.

"chance" is as in MQAR; "half", 1 ÷ √P, is the accuracy of who goes by one token of the key and knows the values it stands with.

Axis letters: E sequences, T time, P pairs, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from bdh_jax.config import require
from bdh_jax.console import Progress
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks.mqar import SHOWN, MQARConfig, Segment, distinct, empty, finish, power_law


@dataclasses.dataclass(frozen=True)
class CompositionalMQARConfig(MQARConfig):
    """MQAR whose keys are pairs of tokens. Numbers of pairs are squares."""

    name: str = "compositional_mqar"

    least_vocabulary: ClassVar[int] = 6

    def check_set(self, what: str, segment: Segment) -> None:
        """See :meth:`bdh_jax.tasks.mqar.MQARConfig.check_set`."""
        side = math.isqrt(segment.pairs)
        require(
            side**2 == segment.pairs,
            f"{what}: {segment.pairs} pairs are no square, such as {side**2} or {(side + 1) ** 2}: keys are all pairs of √P first and √P "
            "second tokens",
        )
        self.check_room(what, segment, 6 * segment.pairs)
        self.check_keys(what, side, self.vocab_size // 3)
        require(
            segment.pairs <= self.vocab_size - 2 * (self.vocab_size // 3),
            f"{what}: task.vocab_size={self.vocab_size} has {self.vocab_size - 2 * (self.vocab_size // 3)} values for {segment.pairs} pairs",
        )

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`."""
        third, last = self.vocab_size // 3, self.vocab_size - 1
        return (
            f"0 for nothing, first tokens of keys from 1 to {third - 1}, second ones from {third} to {2 * third - 1} and values from {2 * third} "
            f"to {last}"
        )

    def draw(self, segment: Segment, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of a set, as :func:`sequences`."""
        return sequences(self.vocab_size, segment, seed, power=self.power, fillers=self.fillers)

    def references(self, segment: Segment, inputs: np.ndarray, asked: np.ndarray, right: np.ndarray) -> dict[str, float]:
        """See :meth:`bdh_jax.tasks.mqar.MQARConfig.references`."""
        return super().references(segment, inputs, asked, right) | {"half": 1 / math.isqrt(segment.pairs)}


def sequences(
    vocab_size: int, segment: Segment, seed: int, *, power: float = 0.01, fillers: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The sequences that the published generator draws with this seed.

    Args:
      vocab_size: V.
      segment: T, P and E, P a square.
      seed: in [0, 2³²).
      power: of the law by which places are asked.
      fillers: random tokens where nothing is asked.

    Returns:
      inputs and labels, each [E, T] int32, as of :func:`bdh_jax.tasks.mqar.sequences`: a label stands at the second token of a key.

    Raises:
      ConfigError: if V has too few ids for the pairs, or T no room for the queries.
    """
    length, pairs, count = segment
    draw = np.random.RandomState(seed)
    third, side, start = vocab_size // 3, math.isqrt(pairs), 3 * pairs
    places = (length - start) // 3
    with Progress(f"drawing {segment.name}", 4 * count, shown=count >= SHOWN) as progress:
        first = np.repeat(distinct(draw, np.arange(1, third), count, side, progress), side, axis=1)
        second = np.tile(distinct(draw, np.arange(third, 2 * third), count, side, progress), (1, side))
        order = np.stack([draw.permutation(pairs) for _ in range(count)])
        values = distinct(draw, np.arange(2 * third, vocab_size), count, pairs, progress)
        gaps = distinct(draw, np.arange(places), count, pairs, progress, law=power_law(places, power))
    first, second = (np.take_along_axis(tokens, order, axis=1) for tokens in (first, second))
    inputs, labels = empty(segment)
    inputs[:, 0:start:3], inputs[:, 1:start:3], inputs[:, 2:start:3] = first, second, values
    np.put_along_axis(inputs, start + 3 * gaps, first, axis=1)
    np.put_along_axis(inputs, start + 3 * gaps + 1, second, axis=1)
    np.put_along_axis(labels, start + 3 * gaps + 2, values, axis=1)
    return finish(inputs, labels, vocab_size, seed, fillers=fillers)


CONFIG = CompositionalMQARConfig
