"""Multi-query associative recall (MQAR) as its authors define it (arXiv 2312.04927, github.com/HazyResearch/zoology).

    k1 v1 k2 v2 … kP vP   0 k2 0 0 k1 0 …
                            ↓      ↓
                            v2     v1

P keys, all different, each followed by its value, all different too; then every key is asked once, at a place behind them that is drawn by a power
law: the first places are likelier by far. What is asked for does not stand in the input afterwards. Keys are the ids 1 … V/2 − 1, values V/2 … V − 1,
and 0 stands where nothing is asked, or a random token with ``fillers``.

:func:`sequences` draws what the published generator draws, bit for bit, from NumPy's old generator. Fillers alone are drawn otherwise: there PyTorch
draws them. A run whose seed is 123 trains and is tested on the published sequences.

Accuracy is the share of asked positions that are right, as published; its ceiling is 1. Who knows the values of a sequence but not whose they are is
right at one of P: "chance".

Axis letters: E sequences, T time, P pairs, B batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from bdh_jax.config import check_types, require
from bdh_jax.config.seeds import whole_seed
from bdh_jax.console import Progress
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.recall import batch_rng
from bdh_jax.tasks.scores import Evaluation, Score
from bdh_jax.tasks.scoring import ROWS, Predict, teacher_forced

IGNORED = -100
"""Label of a position where nothing is asked."""
SETS_SEED = 123
"""The test sets are drawn from it; in the published program the training sets as well."""
SHOWN = 5000
"""Sequences from which on their making shows how far it is."""
_NUMBERS = 2**27
"""Most logits that a call of ``predict`` is asked for, if that leaves it eight rows."""


class Segment(NamedTuple):
    """Sequences of one length with so many pairs."""

    length: int
    """T."""
    pairs: int
    """P."""
    examples: int
    """E."""

    @property
    def name(self) -> str:
        """In a table."""
        return f"T{self.length}P{self.pairs}"


@dataclasses.dataclass(frozen=True)
class MQARConfig(TaskConfig):
    """Multi-query associative recall."""

    name: str = "mqar"
    vocab_size: int = 8192
    """V: keys are one half, values the other."""
    train: tuple[tuple[int, int, int], ...] = ((64, 4, 100_000),)
    """(T, P, sequences) of each training set. A batch is of one set; all sequences are seen in an order of their own in every epoch."""
    test: tuple[tuple[int, int, int], ...] = ((64, 4, 3000),)
    """The same of each test set."""
    power: float = 0.01
    """Of the law by which places are asked; 1 is uniform."""
    fillers: bool = False
    """Whether random tokens stand where nothing is asked."""

    least_vocabulary: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.vocab_size >= self.least_vocabulary,
            f"task.vocab_size={self.vocab_size} must be at least {self.least_vocabulary}: a key and a value besides 0",
        )
        require(self.power > 0, f"task.power={self.power} must be positive")
        for field in ("train", "test"):
            sets = getattr(self, field)
            require(len(sets) > 0, f"task.{field}=() names no set; give (T, pairs, sequences) of at least one")
            for numbers in sets:
                require(
                    len(numbers) == 3 and min(numbers) >= 1,
                    f"task.{field} has {numbers}, which must be three numbers ≥ 1: T, pairs and sequences",
                )
                require(numbers[0] % 2 == 0, f"task.{field} has {numbers}: T={numbers[0]} must be even")
                self.check_set(f"task.{field} has {numbers}", Segment(*numbers))
        names = [Segment(*numbers).name for numbers in self.test]
        twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
        require(twice is None, f"task.test={self.test} names {twice} twice: a row of scores is told by its T and pairs")

    def check_set(self, what: str, segment: Segment) -> None:
        """Refuse a set that cannot be drawn.

        Args:
          what: the beginning of the message.
          segment: its numbers, T even.

        Raises:
          ConfigError: says what is missing.
        """
        self.check_room(what, segment, 4 * segment.pairs)
        self.check_keys(what, segment.pairs, self.vocab_size // 2)

    def check_room(self, what: str, segment: Segment, least: int) -> None:
        """Refuse a T below ``least``."""
        require(least <= segment.length, f"{what}: {segment.pairs} pairs and their queries need T ≥ {least}")

    def check_keys(self, what: str, pairs: int, ids: int) -> None:
        """Refuse more keys than the ids 1 … ``ids`` − 1."""
        require(pairs < ids, f"{what}: task.vocab_size={self.vocab_size} has {ids - 1} keys for {pairs} pairs")

    def draw(self, segment: Segment, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of a set, as :func:`sequences`."""
        return sequences(self.vocab_size, segment, seed, power=self.power, fillers=self.fillers)

    def references(self, segment: Segment, inputs: np.ndarray, asked: np.ndarray, right: np.ndarray) -> dict[str, float]:
        """What stands beside a set's accuracy.

        Args:
          segment: the set's numbers.
          inputs: its sequences [E, T].
          asked: places [E, P] at which it is asked.
          right: [E, P] bool, whether the answer was right.
        """
        del inputs, asked, right
        return {"chance": 1 / segment.pairs}

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`."""
        half, last = self.vocab_size // 2, self.vocab_size - 1
        return f"0 for nothing, keys from 1 to {half - 1} and values from {half} to {last}"

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> MQAR:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`.

        Raises:
          ConfigError: for a training set that is smaller than a batch.
        """
        del data
        return MQAR(self, seed, batch_size)

    def shapes(self, rows: int) -> Batch:
        """Those of the longest batch, without drawing any sequences."""
        shape = (rows, max(length for length, _, _ in self.train))
        whole: Any = jax.ShapeDtypeStruct(shape, np.int32)
        real: Any = jax.ShapeDtypeStruct(shape, np.float32)
        nowhere: Any = None  # as of masks that mask nothing
        return Batch(whole, whole, real, real, valid=nowhere, reset=nowhere)


def sequences(
    vocab_size: int, segment: Segment, seed: int, *, power: float = 0.01, fillers: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The sequences that the published generator draws with ``np.random.seed(seed)``.

    Args:
      vocab_size: V.
      segment: T, P and E.
      seed: in [0, 2³²).
      power: of the law by which places are asked.
      fillers: random tokens where nothing is asked.

    Returns:
      inputs and labels, each [E, T] int32; a label is ``IGNORED`` where nothing is asked.

    Raises:
      ConfigError: if V has too few ids for the pairs, or T no room for the queries.
    """
    length, pairs, count = segment
    draw = np.random.RandomState(seed)
    half, start = vocab_size // 2, 2 * pairs
    places = (length - start) // 2
    choices = (np.arange(1, half), np.arange(half, vocab_size), np.arange(places))
    with Progress(f"drawing {segment.name}", 3 * count, shown=count >= SHOWN) as progress:
        # All keys, then all values, then all places: the order of the published draws.
        keys, values = (distinct(draw, options, count, pairs, progress) for options in choices[:2])
        gaps = distinct(draw, choices[2], count, pairs, progress, law=power_law(places, power))
    inputs, labels = empty(segment)
    inputs[:, 0:start:2], inputs[:, 1:start:2] = keys, values
    np.put_along_axis(inputs, start + 2 * gaps, keys, axis=1)
    np.put_along_axis(labels, start + 2 * gaps + 1, values, axis=1)
    return finish(inputs, labels, vocab_size, seed, fillers=fillers)


def distinct(
    draw: np.random.RandomState, choices: np.ndarray, count: int, size: int, progress: Progress, *, law: Any = None
) -> np.ndarray:
    """So many of the choices for each of ``count`` sequences, none twice in one: [count, size], drawn sequence by sequence as published.

    Args:
      draw: advances.
      choices: to choose from.
      count: E.
      size: of each sequence.
      progress: goes on by a thousand sequences at a time.
      law: probabilities of the choices; None for equal ones.

    Raises:
      ConfigError: if there are fewer choices than one sequence takes.
    """
    require(
        size <= len(choices),
        f"{size} different ones of {len(choices)} are too many: a sequence takes more ids, or more room behind its pairs; give a larger vocab_size, "
        "or a longer T",
    )
    drawn = np.empty((count, size), np.int64)
    for example in range(count):
        drawn[example] = draw.choice(choices, replace=False, p=law, size=size)
        if example % 1000 == 999:
            progress.advance(1000)
    return drawn


def power_law(places: int, power: float) -> np.ndarray:
    """Probabilities of so many places: the n-th's goes as n^(power − 1)."""
    law = power * np.arange(1, places + 1) ** (power - 1.0)
    return law / law.sum()


def empty(segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of 0 and labels that are ignored, with one place more than T for a label behind the last token: [E, T + 1]."""
    shape = (segment.examples, segment.length + 1)
    return np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)


def finish(
    inputs: np.ndarray, labels: np.ndarray, vocab_size: int, seed: int, *, fillers: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of a set as they are trained on, one place shorter.

    Args:
      inputs: [E, T + 1] int32, 0 where nothing stands.
      labels: [E, T + 1] int32, each at the place behind the token that asks for it.
      vocab_size: V.
      seed: of the random tokens.
      fillers: put random tokens where nothing stands.

    Returns:
      inputs [E, T] and labels [E, T], each at the token that asks for it.
    """
    inputs, labels = inputs[:, :-1], labels[:, 1:]
    if fillers:
        random = np.random.default_rng([seed, 1]).integers(0, vocab_size, inputs.shape, dtype=np.int32)
        inputs = np.where(inputs == 0, random, inputs)
    return inputs, labels


def set_seeds(seed: int, train: int, test: int) -> tuple[list[int], list[int]]:
    """The seeds of so many training and test sets that the published program derives from its own."""
    draw = np.random.RandomState(seed)
    of_train = draw.randint(0, 2**31, size=train)
    return of_train.tolist(), draw.randint(2**31, 2**32, size=test).tolist()


class MQAR(TaskBase):
    """Multi-query associative recall as a task."""

    accuracy_name = "recall"

    def __init__(self, config: MQARConfig, seed: int, batch_size: int):
        self.config, self.seed, self.batch_size = config, seed, batch_size
        self.vocab_size = config.vocab_size
        self._train, self._test = ([Segment(*numbers) for numbers in sets] for sets in (config.train, config.test))
        self.sequence_length = max(segment.length for segment in self._train)
        self.most_answers = max(segment.pairs for segment in self._train)
        for segment in self._train:
            require(
                segment.examples >= batch_size,
                f"train.batch_size={batch_size} is more than the {segment.examples} sequences of {segment.name} in task.train",
            )
        self._batches = [
            (number, first)
            for number, segment in enumerate(self._train)
            for first in range(0, segment.examples - batch_size + 1, batch_size)
        ]
        self._order: tuple[int, list[np.ndarray], np.ndarray] | None = None

    def batch(self, step: int) -> Batch:
        """Sequences of one training set, [B, T of that set]."""
        epoch, index = divmod(step, len(self._batches))
        if self._order is None or self._order[0] != epoch:
            rng = batch_rng(self.seed, epoch)
            rows = [rng.permutation(segment.examples) for segment in self._train]
            self._order = epoch, rows, rng.permutation(len(self._batches))
        _, rows, order = self._order
        number, first = self._batches[order[index]]
        chosen = rows[number][first : first + self.batch_size]
        inputs, labels = (array[chosen] for array in self.training_sets[number])
        asked = labels != IGNORED
        weights, valid = asked.astype(np.float32), np.ones(asked.shape, bool)
        return Batch(inputs, np.where(asked, labels, 0), weights, weights, valid, np.zeros_like(valid))

    def evaluate(self, predict: Predict) -> Evaluation:
        """Share of asked positions that are right, of each test set; "whole" is that of sequences without a mistake, and "chance" 1/P.
        ``primary`` is the mean over the sets."""
        rows = tuple(
            self._score(predict, segment, *arrays) for segment, arrays in zip(self._test, self.test_sets, strict=True)
        )
        primary = sum(row.accuracy for row in rows) / len(rows)
        return Evaluation(rows=rows, primary=primary, note="accuracy: of asked positions; chance: a value of the sequence")

    def _score(self, predict: Predict, segment: Segment, inputs: np.ndarray, labels: np.ndarray) -> Score:
        asked = np.nonzero(labels != IGNORED)[1].reshape(len(labels), segment.pairs)
        most = _NUMBERS // (segment.length * self.vocab_size) // 8 * 8
        size, said = min(ROWS, max(8, most)), []
        for first in range(0, len(inputs), size):
            part = np.minimum(np.arange(first, first + size), len(inputs) - 1) if len(inputs) > size else slice(None)
            valid = np.ones(inputs[part].shape, bool)
            said.append(teacher_forced(predict, inputs[part], valid, asked[part]))
        right = np.concatenate(said)[: len(inputs)] == np.take_along_axis(labels, asked, axis=1)
        accuracy = float(right.mean())
        extra = {"whole": float(right.all(axis=1).mean()), **self.config.references(segment, inputs, asked, right)}
        return Score(segment.name, count=len(inputs), accuracy=accuracy, credit=accuracy, ceiling=1.0, extra=extra)

    def _draw(self, segments: list[Segment], seeds: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self.config.draw(segment, seed) for segment, seed in zip(segments, seeds, strict=True)]

    @functools.cached_property
    def training_sets(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Inputs and labels [E, T] of each training set."""
        return self._draw(self._train, set_seeds(whole_seed(self.seed, below=2**32), len(self._train), 0)[0])

    @functools.cached_property
    def test_sets(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Inputs and labels [E, T] of each test set: the same for every seed."""
        return self._draw(self._test, set_seeds(SETS_SEED, len(self._train), len(self._test))[1])


CONFIG = MQARConfig
