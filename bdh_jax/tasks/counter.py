"""The counter-benchmarks of n-back: recall when value and key are apart, when a key's value changes, and from any distance.

Sequences are k₁ … v₁ k₂ … v₂ … SEP key in the integer encoding of :mod:`bdh_jax.tasks.nback`; the answer is the value of the
queried pair. Evaluation sequences are those of github.com/fleeb83/bdh-fast-weights: same generator, seeds and order of draws.

* "vargap1", "vargap2": 8 pairs with one or two random ids 0 … 127 between key and value; the query is one of the last 4.
* "repeated8": 4 distinct keys, each shown twice at random places; the value shown last counts. Its ceiling is 1.
* "n16": 16 pairs, the query is any of them.

Training sequences may ask several queries, one after another: k₁ … v_P SEP key SEP key …

Axis letters: E episodes, P pairs, G ids in the gap, Q queries, B batch, T time.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from bdh_jax.config import ConfigError, check_types
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.nback import ENCODINGS, FIRST_VALUE, INTEGER_PADDING, INTEGER_VOCABULARY, SEPARATOR
from bdh_jax.tasks.packing import Encoded, assemble, pack
from bdh_jax.tasks.recall import EvaluationSet, batch_rng, check_evaluation_sequences, check_sets, score_set
from bdh_jax.tasks.scores import Evaluation
from bdh_jax.tasks.scoring import Predict

SetName = Literal["vargap1", "vargap2", "repeated8", "n16"]
EVALUATION_SEQUENCES = 500

_LAST_KEY, _LAST_VALUE, _LAST_DISTRACTOR = 64, 128, 127


class Kind(NamedTuple):
    """What the sequences of a set look like."""

    pairs: int
    """P."""
    window: int
    """The query is one of the last ``window`` keys."""
    gap: int
    """G, random ids between a key and its value."""
    repeated: bool
    """Half as many distinct keys as pairs, each twice; the later value counts."""
    evaluation_seed: int

    @property
    def answerable(self) -> int:
        """Pairs that a query may ask for."""
        return self.pairs // 2 if self.repeated else self.window


SETS: dict[str, Kind] = {
    "vargap1": Kind(pairs=8, window=4, gap=1, repeated=False, evaluation_seed=77),
    "vargap2": Kind(pairs=8, window=4, gap=2, repeated=False, evaluation_seed=78),
    "repeated8": Kind(pairs=8, window=8, gap=0, repeated=True, evaluation_seed=79),
    "n16": Kind(pairs=16, window=16, gap=0, repeated=False, evaluation_seed=80),
}


@dataclasses.dataclass(frozen=True)
class CounterConfig(TaskConfig):
    """The counter-benchmarks. One model serves all sets."""

    name: str = "counter"
    mixture: tuple[SetName, ...] = ("vargap1", "vargap2", "repeated8", "n16")
    """Sets to train on, one for each row of a batch in turn; a name given twice gets twice the rows."""
    queries: int = 1
    """Queries per training sequence, of different pairs in its window (of different keys in "repeated8"); evaluation has one."""
    evaluation_sets: tuple[SetName, ...] = ("vargap1", "vargap2", "repeated8", "n16")
    """Sets to score, each with its own sequences."""
    evaluation_sequences: int = EVALUATION_SEQUENCES
    """Take the first so many of each evaluation set; 500 is the published benchmark."""

    def __post_init__(self) -> None:
        check_types(self)
        check_sets("mixture", self.mixture, SetName, distinct=False)
        check_sets("evaluation_sets", self.evaluation_sets, SetName, distinct=True)
        check_evaluation_sequences(self.evaluation_sequences, EVALUATION_SEQUENCES)
        fewest = min(SETS[name].answerable for name in self.mixture)
        if not 1 <= self.queries <= fewest:
            raise ConfigError(
                f"task.queries={self.queries} must lie in 1 … {fewest}: a set of task.mixture={self.mixture} has no more pairs to "
                "ask for"
            )

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Counter:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return Counter(self, seed=seed, batch_size=batch_size)

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`."""
        return "integers"


class Episodes(NamedTuple):
    """Sequences of one kind, before encoding."""

    keys: np.ndarray
    """[E,P] int32."""
    distractors: np.ndarray
    """[E,P,G] int32."""
    values: np.ndarray
    """[E,P] int32."""
    query: np.ndarray
    """[E,Q] int32, the pairs asked for."""

    @property
    def answers(self) -> np.ndarray:
        """[E,Q] int32, values of the pairs asked for."""
        return np.take_along_axis(self.values, self.query, axis=1)

    @property
    def query_keys(self) -> np.ndarray:
        """[E,Q] int32, keys of the pairs asked for."""
        return np.take_along_axis(self.keys, self.query, axis=1)


def published_episodes(kind: Kind, *, count: int) -> Episodes:
    """The first ``count`` evaluation sequences, drawn one by one in the order of the published benchmark; Q = 1."""
    rng = random.Random(kind.evaluation_seed)
    draw = _draw_repeated if kind.repeated else _draw_independent
    keys, distractors, values, query = zip(*(draw(rng, kind) for _ in range(count)), strict=True)
    shape = (count, kind.pairs, kind.gap)
    return Episodes(
        np.array(keys, np.int32),
        np.array(distractors, np.int32).reshape(shape),
        np.array(values, np.int32),
        np.array(query, np.int32)[:, None],
    )


def _draw_independent(rng: random.Random, kind: Kind) -> tuple[Sequence[int], list[list[int]], Sequence[int], int]:
    pairs = [(rng.randint(0, _LAST_KEY), rng.randint(FIRST_VALUE, _LAST_VALUE)) for _ in range(kind.pairs)]
    query = rng.randint(kind.pairs - kind.window, kind.pairs - 1)
    distractors = [[rng.randint(0, _LAST_DISTRACTOR) for _ in range(kind.gap)] for _ in pairs]
    keys, values = zip(*pairs, strict=True)
    return keys, distractors, values, query


def _draw_repeated(rng: random.Random, kind: Kind) -> tuple[Sequence[int], list[list[int]], Sequence[int], int]:
    distinct = kind.pairs // 2
    # The published code draws from 0 … 63 here, where the other sets reach 64.
    alphabet = list(range(_LAST_KEY))
    rng.shuffle(alphabet)
    values_by_time = [[rng.randint(FIRST_VALUE, _LAST_VALUE) for _ in range(distinct)] for _ in range(2)]
    places = list(range(kind.pairs))
    rng.shuffle(places)
    keys, values = [0] * kind.pairs, [0] * kind.pairs
    for number, place in enumerate(places):
        time, which = divmod(number, distinct)
        keys[place], values[place] = alphabet[which], values_by_time[time][which]
    asked = alphabet[rng.randint(0, distinct - 1)]
    query = max(place for place in range(kind.pairs) if keys[place] == asked)
    return keys, [], values, query


def sample_episodes(rng: np.random.Generator, kind: Kind, count: int, queries: int = 1) -> Episodes:
    """Fresh sequences of the same distribution as :func:`published_episodes`, all at once.

    Args:
      rng: source of randomness.
      kind: what they look like.
      count: E.
      queries: Q, at most ``kind.answerable``.
    """
    size = (count, kind.pairs)
    values = rng.integers(FIRST_VALUE, _LAST_VALUE + 1, size, dtype=np.int32)
    distractors = rng.integers(0, _LAST_DISTRACTOR + 1, (*size, kind.gap), dtype=np.int32)
    if not kind.repeated:
        keys = rng.integers(0, _LAST_KEY + 1, size, dtype=np.int32)
        query = kind.pairs - kind.window + _different(rng, count, kind.window, queries)
        return Episodes(keys, distractors, values, query)
    distinct = kind.pairs // 2
    alphabet = rng.random((count, _LAST_KEY), dtype=np.float32).argsort(axis=1)[:, :distinct].astype(np.int32)
    which = rng.permuted(np.tile(np.arange(kind.pairs) % distinct, (count, 1)), axis=1)
    keys = np.take_along_axis(alphabet, which, axis=1)
    # The last pair with the key asked for: the first from behind.
    asked = which[:, None, ::-1] == _different(rng, count, distinct, queries)[:, :, None]
    return Episodes(keys, distractors, values, (kind.pairs - 1 - asked.argmax(axis=2)).astype(np.int32))


def _different(rng: np.random.Generator, count: int, choices: int, queries: int) -> np.ndarray:
    """[E,Q] int32: in each row different numbers below ``choices``, in random order."""
    if queries == 1:
        return rng.integers(0, choices, (count, 1), dtype=np.int32)
    return rng.permuted(np.tile(np.arange(choices, dtype=np.int32), (count, 1)), axis=1)[:, :queries]


def candidates(episodes: Episodes, kind: Kind) -> np.ndarray:
    """[E,P] bool: the pairs that the first query may mean. Of repeated keys only the last; else all in the window with its key."""
    place = np.arange(kind.pairs)
    if kind.repeated:
        return place == episodes.query[:, :1]
    return (episodes.keys == episodes.query_keys[:, :1]) & (place >= kind.pairs - kind.window)


def length(kind: Kind, queries: int = 1) -> int:
    """T of an episode: the pairs with their gaps, and SEP and the key of each query."""
    return kind.pairs * (2 + kind.gap) + 2 * queries


def encode(episodes: Episodes) -> Encoded:
    """Episodes as tokens in the integer encoding; an answer is the target at its query's key, not part of the input."""
    pairs = np.concatenate([episodes.keys[..., None], episodes.distractors, episodes.values[..., None]], axis=2)
    count, queries = episodes.query.shape
    asked = np.stack([np.full_like(episodes.query, SEPARATOR), episodes.query_keys], axis=2)
    tokens = np.concatenate([pairs.reshape(count, -1), asked.reshape(count, -1)], axis=1).astype(np.int32)
    answer = np.zeros(tokens.shape, bool)
    answer[:, -2 * queries + 1 :: 2] = True
    targets = np.roll(tokens, -1, axis=1)
    targets[answer] = episodes.answers.ravel()
    return Encoded(tokens, targets, answer, np.ones(tokens.shape, bool))


class Counter(TaskBase):
    """The counter-benchmarks as a task. Rows of a training batch are packed as those of :class:`bdh_jax.tasks.nback.NBack`."""

    accuracy_name = "recall"

    def __init__(self, config: CounterConfig, *, seed: int, batch_size: int):
        """See :meth:`CounterConfig.make`."""
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self.vocab_size = INTEGER_VOCABULARY
        kinds = tuple(SETS[name] for name in config.mixture)
        lengths = {kind: length(kind, config.queries) for kind in kinds}
        self.sequence_length = max(lengths.values())
        self._layouts = [
            pack([kinds[(turn + row) % len(kinds)] for row in range(batch_size)], kinds, lengths)
            for turn in range(len(kinds))
        ]

    def batch(self, step: int) -> Batch:
        """The training batch of a step, each array [batch_size, sequence_length]: a pure function of (seed, step)."""
        rng = batch_rng(self.seed, step)
        layout = self._layouts[step * self.batch_size % len(self._layouts)]
        queries = self.config.queries
        encoded = {kind: encode(sample_episodes(rng, kind, len(places), queries)) for kind, places in layout.places.items()}
        return assemble(layout, encoded, padding=INTEGER_PADDING)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Score a model on the published evaluation sequences; see :meth:`bdh_jax.tasks.nback.NBack.evaluate`."""
        decode = ENCODINGS["integer"].values
        rows = tuple(
            score_set(name, data, predict, decode=decode, padding=INTEGER_PADDING)
            for name, data in self.evaluation_sets.items()
        )
        return Evaluation(rows=rows, primary=min(row.ratio for row in rows))

    @functools.cached_property
    def evaluation_sets(self) -> dict[str, EvaluationSet]:
        """The evaluation sets, by name."""
        sets = {}
        for name in self.config.evaluation_sets:
            episodes = published_episodes(SETS[name], count=self.config.evaluation_sequences)
            encoded = encode(episodes)
            positions = np.full((len(encoded.tokens), 1), encoded.tokens.shape[1] - 1)
            sets[name] = EvaluationSet(
                episodes.answers[:, 0], episodes.values, candidates(episodes, SETS[name]), encoded, positions, swapped=None
            )
        return sets


CONFIG = CounterConfig
