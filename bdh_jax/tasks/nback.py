"""n-back recall: pairs of key and value, then one of the last n keys again; what was its value?

A sequence is k₁ v₁ … k_P v_P SEP key, the answer is the value of the queried pair. Three sets: n2, n4 and n8 have P = 8,
16 and 32 pairs and query one of the last n = 2, 4, 8. Keys repeat within a sequence, so some queries are ambiguous, and each
set has a ceiling below 1 (see :func:`bdh_jax.tasks.scoring.ceiling`). Evaluation sequences, and the training set "published",
are those of the benchmark of github.com/fleeb83/bdh-fast-weights: same generator, same seeds, same order of draws.

Two encodings:

* "integer": keys are ids 0…64, values 64…128, SEP 128 (key 64 and value 64 share an id, value 128 and SEP too). The answer
  is not part of the input: it is the target at the query key.
* "text": ``<bos>K012 V071 … K034 V128<sep>K012<answer>V071<eos>``. Letters, digits and the space between words are bytes;
  the four marks are single ids beyond the bytes. The answer is four tokens, ``V`` and three digits, predicted one after
  another; under teacher forcing they stand in the input.

The clean variant has 64 keys (0…63), all distinct in a sequence, and 64 values (64…127), so that no id means two things and
the ceiling is 1.

Axis letters: E episodes, P pairs, Q queries, T time, A tokens of an answer, B batch.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from bdh_jax.config import ConfigError, check_types
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.packing import Encoded, assemble, pack
from bdh_jax.tasks.recall import EvaluationSet, batch_rng, check_evaluation_sequences, check_sets, score_set
from bdh_jax.tasks.scores import Evaluation
from bdh_jax.tasks.scoring import Predict

SetName = Literal["n2", "n4", "n8"]

FIRST_VALUE = 64
SEPARATOR = 128
INTEGER_PADDING = 129
INTEGER_VOCABULARY = 130

BOS, SEP, ANSWER, EOS = 256, 257, 258, 259
TEXT_PADDING = 0
TEXT_VOCABULARY = 260
_MARKS = {"<bos>": BOS, "<sep>": SEP, "<answer>": ANSWER, "<eos>": EOS}
_MARK_NAMES = {id: mark for mark, id in _MARKS.items()}

PUBLISHED_TRAINING_SEED, PUBLISHED_TRAINING_SEQUENCES = 42, 8000
EVALUATION_SEED, EVALUATION_SEQUENCES = 99, 1000


class Shape(NamedTuple):
    """What the sequences of a set look like."""

    pairs: int
    """P."""
    window: int
    """The query is one of the last ``window`` keys."""


SETS: dict[str, Shape] = {"n2": Shape(8, 2), "n4": Shape(16, 4), "n8": Shape(32, 8)}


@dataclasses.dataclass(frozen=True)
class NBackConfig(TaskConfig):
    """The n-back benchmark. One model serves all sets."""

    name: str = "nback"
    encoding: Literal["integer", "text"] = "integer"
    """Tokens: an id for each key and value, or the bytes of a text such as "K012 V071" (``bdh_jax.tasks.nback``)."""
    clean: bool = False
    """Distinct keys and no id with two meanings: every query has one answer."""
    train_set: Literal["fresh", "published"] = "fresh"
    """Endless fresh sequences, or draws from the published 8,000 of each set."""
    mixture: tuple[SetName, ...] = ("n2", "n4", "n8")
    """Sets to train on, one for each row of a batch in turn; a name given twice gets twice the rows."""
    train_pairs: tuple[int, ...] = ()
    """Train on sequences of these many pairs instead of the mixture, one for each row of a batch in turn."""
    train_window: tuple[int, ...] = (8,)
    """With ``train_pairs``: the query is one of this many last keys (of all, in a shorter sequence). One number for all lengths or
    one for each: ``train_pairs=(4, 16, 8, 16)`` with ``train_window=(4, 8, 2, 4)`` are two easier shapes, then n2's and n4's."""
    curriculum: tuple[int, ...] = ()
    """Step from which each further entry of the mixture (or of ``train_pairs``) is trained on, beside those before it; empty:
    all from the start. With mixture ("n2", "n4", "n8") and curriculum (500, 1000) n8 joins at step 1000."""
    queries: int = 1
    """Queries per training sequence (at most as many as its window; evaluation has one). All ask for different keys."""
    train_alike: float = 0.0
    """Share of the training sequences, with encoding "text", whose values all begin with the same two digits (half of them) or all
    end in the same one. Of other values a digit mostly follows from those before it, so that few sequences teach to recall it by
    the key."""
    evaluation_sets: tuple[SetName, ...] = ("n2", "n4", "n8")
    """Sets to score, each with its own sequences."""
    evaluation_sequences: int = EVALUATION_SEQUENCES
    """Take the first so many of each evaluation set; 1000 is the published benchmark."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, choices in (("encoding", ("integer", "text")), ("train_set", ("fresh", "published"))):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"task.{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        check_sets("mixture", self.mixture, SetName, distinct=False)
        check_sets("evaluation_sets", self.evaluation_sets, SetName, distinct=True)
        if isinstance(self.train_window, int):
            object.__setattr__(self, "train_window", (self.train_window,))
        self._check_window()
        self._check_curriculum()
        for pairs in self.train_pairs:
            if pairs < 1:
                raise ConfigError(f"task.train_pairs={self.train_pairs} must be at least 1 each")
            if self.clean and pairs > 64:
                raise ConfigError(
                    f"task.train_pairs={self.train_pairs} must be at most 64: with task.clean there are 64 keys"
                )
        widest = max(shape.window for shape in self.training_shapes)
        if not 1 <= self.queries <= widest:
            raise ConfigError(f"task.queries={self.queries} must lie in 1 … {widest}, the widest window that is trained on")
        if self.queries > 1 and self.train_set == "published":
            raise ConfigError(
                f'task.queries={self.queries} needs task.train_set="fresh": the published sequences have one query each'
            )
        if not 0 <= self.train_alike <= 1:
            raise ConfigError(f"task.train_alike={self.train_alike} must lie in [0, 1]")
        if self.train_alike > 0 and (self.encoding, self.train_set) != ("text", "fresh"):
            raise ConfigError(
                f'task.train_alike={self.train_alike} needs task.encoding="text" and task.train_set="fresh": it chooses the '
                "digits of values that are drawn"
            )
        check_evaluation_sequences(self.evaluation_sequences, EVALUATION_SEQUENCES)

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> NBack:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return NBack(self, seed=seed, batch_size=batch_size)

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`."""
        return "bytes" if self.encoding == "text" else "integers"

    def _check_window(self) -> None:
        windows = self.train_window
        if any(window < 1 for window in windows):
            raise ConfigError(f"task.train_window={windows} must be at least 1 each")
        if len(windows) not in {1, len(self.train_pairs)}:
            raise ConfigError(
                f"task.train_window={windows} must be one number for all of task.train_pairs={self.train_pairs}, or one for "
                "each of them"
            )

    def _check_curriculum(self) -> None:
        steps = self.curriculum
        if not steps:
            return
        stages = len(self.training_shapes)
        if len(steps) != stages - 1:
            name = "train_pairs" if self.train_pairs else "mixture"
            raise ConfigError(
                f"task.curriculum={steps} must name {stages - 1} steps: one for each entry of "
                f"task.{name}={getattr(self, name)} after the first"
            )
        if steps[0] < 0 or list(steps) != sorted(steps):
            raise ConfigError(f"task.curriculum={steps} must be steps ≥ 0 that do not fall")

    @property
    def training_shapes(self) -> tuple[Shape, ...]:
        """The shapes to train on, one for each row of a batch in turn."""
        if self.train_pairs:
            windows = self.train_window if len(self.train_window) > 1 else self.train_window * len(self.train_pairs)
            return tuple(Shape(pairs, min(pairs, w)) for pairs, w in zip(self.train_pairs, windows, strict=True))
        return tuple(SETS[name] for name in self.mixture)


class Episodes(NamedTuple):
    """Sequences of one shape, before encoding."""

    keys: np.ndarray
    """[E,P] int32."""
    values: np.ndarray
    """[E,P] int32."""
    query: np.ndarray
    """[E,Q] int32, the pairs asked for; −1 where an episode has fewer queries."""

    def take(self, index: np.ndarray) -> Episodes:
        """The episodes at ``index``."""
        return Episodes(*(x[index] for x in self))

    @property
    def answers(self) -> np.ndarray:
        """[E,Q] int32, values of the pairs asked for (of any pair where the query is −1)."""
        return np.take_along_axis(self.values, np.maximum(self.query, 0), axis=1)

    @property
    def query_keys(self) -> np.ndarray:
        """[E,Q] int32, keys of the pairs asked for (of any pair where the query is −1)."""
        return np.take_along_axis(self.keys, np.maximum(self.query, 0), axis=1)


def candidates(episodes: Episodes, window: int) -> np.ndarray:
    """[E,P] bool: the pairs that the first query may mean, which are those of the last ``window`` with its key."""
    recent = np.arange(episodes.keys.shape[1]) >= episodes.keys.shape[1] - window
    return (episodes.keys == episodes.query_keys[:, :1]) & recent


def published_episodes(shape: Shape, *, seed: int, count: int, clean: bool = False) -> Episodes:
    """Sequences drawn one by one from Python's generator, in the order of the published benchmark.

    Args:
      shape: pairs and window.
      seed: of ``random.Random``; 42 is the published training set, 99 the evaluation set.
      count: E.
      clean: draw distinct keys and leave out key 64 and value 128.

    Returns:
      Episodes with Q = 1.
    """
    rng = random.Random(seed)
    last_key, last_value = (63, 127) if clean else (64, 128)
    keys, values, query = [], [], []
    for _ in range(count):
        if clean:
            keys.append(rng.sample(range(last_key + 1), shape.pairs))
        else:
            keys.append([rng.randint(0, last_key) for _ in range(shape.pairs)])
        values.append([rng.randint(FIRST_VALUE, last_value) for _ in range(shape.pairs)])
        query.append([rng.randint(shape.pairs - shape.window, shape.pairs - 1)])
    return Episodes(np.array(keys, np.int32), np.array(values, np.int32), np.array(query, np.int32))


def sample_episodes(
    rng: np.random.Generator, shape: Shape, count: int, *, queries: int = 1, clean: bool = False
) -> Episodes:
    """Fresh sequences of the same distribution as :func:`published_episodes`, all at once.

    Args:
      rng: source of randomness.
      shape: pairs and window.
      count: E.
      queries: Q. Queries of an episode ask for different keys; each is equally likely to mean any pair with its key. An
        episode with fewer distinct keys in its window has −1 in place of the queries it lacks.
      clean: distinct keys, no key 64, no value 128.

    Returns:
      The episodes.
    """
    pairs, window = shape
    if clean:
        keys = rng.random((count, 64), dtype=np.float32).argsort(axis=1)[:, :pairs].astype(np.int32)
    else:
        keys = rng.integers(0, 65, (count, pairs), dtype=np.int32)
    values = rng.integers(FIRST_VALUE, 128 if clean else 129, (count, pairs), dtype=np.int32)
    if queries == 1:
        query = rng.integers(pairs - window, pairs, (count, 1), dtype=np.int32)
    else:
        query = _distinct_queries(rng, keys[:, pairs - window :], queries)
        query = np.where(query < 0, -1, query + pairs - window).astype(np.int32)
    return Episodes(keys, values, query)


def alike_values(rng: np.random.Generator, values: np.ndarray, share: float, *, clean: bool = False) -> np.ndarray:
    """``values`` [E,P], with those of a ``share`` of the episodes drawn anew so that only some of their digits tell them apart.

    In half of these the last digit does (070 … 079, say), in the others all but the last one (078, 088, … 128, say).

    Args:
      rng: source of randomness.
      values: [E,P] int32.
      share: in [0, 1], of episodes.
      clean: leave out value 128.

    Returns:
      [E,P] int32.
    """
    last = 127 if clean else 128
    episodes = len(values)
    decade = rng.integers(FIRST_VALUE // 10, last // 10 + 1, (episodes, 1), dtype=np.int32) * 10
    first, after = np.maximum(decade, FIRST_VALUE), np.minimum(decade + 10, last + 1)
    same_start = rng.integers(first, after, values.shape, dtype=np.int32)
    digit = rng.integers(0, 10, (episodes, 1), dtype=np.int32)
    first, after = -(-(FIRST_VALUE - digit) // 10), (last - digit) // 10 + 1
    same_end = rng.integers(first, after, values.shape, dtype=np.int32) * 10 + digit
    which = rng.random((episodes, 1))
    return np.where(which < share / 2, same_start, np.where(which < share, same_end, values))


def _distinct_queries(rng: np.random.Generator, keys: np.ndarray, queries: int) -> np.ndarray:
    order = rng.random(keys.shape, dtype=np.float32).argsort(axis=1)
    shuffled = np.take_along_axis(keys, order, axis=1)
    earlier = np.tri(keys.shape[1], k=-1, dtype=bool)
    repeated = ((shuffled[:, :, None] == shuffled[:, None, :]) & earlier).any(axis=2)
    chosen = repeated.argsort(axis=1, kind="stable")[:, :queries]
    query = np.take_along_axis(order, chosen, axis=1)
    return np.where(np.take_along_axis(repeated, chosen, axis=1), -1, query)


class Encoding(NamedTuple):
    """How episodes become tokens. ``encode`` gives T = ``length(P, Q)``."""

    vocab_size: int
    padding: int
    answer_length: int
    """A."""
    length: Callable[[int, int], int]
    encode: Callable[[Episodes], Encoded]
    values: Callable[[np.ndarray], np.ndarray]
    """Answer tokens [E,A] → values [E] int32, −1 for what is no value."""


def _encode_integers(episodes: Episodes) -> Encoded:
    keys, values, query = episodes
    count, pairs = keys.shape
    tokens = np.empty((count, 2 * (pairs + query.shape[1])), np.int32)
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    tokens[:, 2 * pairs :: 2] = SEPARATOR
    tokens[:, 2 * pairs + 1 :: 2] = episodes.query_keys
    targets = np.roll(tokens, -1, axis=1)
    targets[:, 2 * pairs + 1 :: 2] = episodes.answers
    valid = np.ones(tokens.shape, bool)
    valid[:, 2 * pairs :] = np.repeat(query >= 0, 2, axis=1)
    answer = valid.copy()
    answer[:, : 2 * pairs] = False
    answer[:, 2 * pairs :: 2] = False
    return Encoded(np.where(valid, tokens, INTEGER_PADDING), np.where(valid, targets, INTEGER_PADDING), answer, valid)


def _words(letter: str, last: int) -> np.ndarray:
    return np.array([list(f"{letter}{i:03d}".encode()) for i in range(last + 1)], np.int32)


_KEY_WORDS = _words("K", 64)
_VALUE_WORDS = _words("V", 128)
# A pair with the space after each word, and a query with the marks before and after its key.
_PAIR = _QUERY = 10


def _encode_text(episodes: Episodes) -> Encoded:
    keys, values, query = episodes
    (count, pairs), queries = keys.shape, query.shape[1]
    # One token longer than the input: <bos>, pairs with a space after each but the last, queries, <eos>.
    full = np.full((count, _PAIR * (pairs + queries) + 1), ord(" "), np.int32)
    full[:, 0] = BOS
    words = full[:, 1 : 1 + _PAIR * pairs].reshape(count, pairs, _PAIR)
    words[..., 0:4] = _KEY_WORDS[keys]
    words[..., 5:9] = _VALUE_WORDS[values]
    full[:, 1 : 1 + _PAIR * pairs] = words.reshape(count, -1)
    asked = np.empty((count, queries, _QUERY), np.int32)
    asked[..., 0] = SEP
    asked[..., 1:5] = _KEY_WORDS[episodes.query_keys]
    asked[..., 5] = ANSWER
    asked[..., 6:10] = _VALUE_WORDS[episodes.answers]
    # An episode that lacks queries ends after its last: <eos> there is the target, and the rest is invalid.
    asked[query < 0] = EOS
    full[:, _PAIR * pairs : -1] = asked.reshape(count, -1)
    full[:, -1] = EOS
    tokens, targets = full[:, :-1], full[:, 1:]
    valid = tokens != EOS
    answer = np.zeros((count, queries, _QUERY), bool)
    answer[..., 5:9] = (query >= 0)[..., None]
    answer = np.concatenate([np.zeros((count, _PAIR * pairs), bool), answer.reshape(count, -1)], axis=1)
    return Encoded(np.where(valid, tokens, TEXT_PADDING), np.where(valid, targets, TEXT_PADDING), answer, valid)


def _text_values(answers: np.ndarray) -> np.ndarray:
    match = (answers[:, None, :] == _VALUE_WORDS).all(axis=2)
    match[:, :FIRST_VALUE] = False
    return np.where(match.any(axis=1), match.argmax(axis=1), -1).astype(np.int32)


ENCODINGS: dict[str, Encoding] = {
    "integer": Encoding(
        vocab_size=INTEGER_VOCABULARY,
        padding=INTEGER_PADDING,
        answer_length=1,
        length=lambda pairs, queries: 2 * (pairs + queries),
        encode=_encode_integers,
        values=lambda answers: answers[:, 0],
    ),
    "text": Encoding(
        vocab_size=TEXT_VOCABULARY,
        padding=TEXT_PADDING,
        answer_length=4,
        length=lambda pairs, queries: _PAIR * pairs + _QUERY * queries,
        encode=_encode_text,
        values=_text_values,
    ),
}


def text_to_ids(text: str) -> np.ndarray:
    """Token ids of the text encoding: UTF-8 bytes, and one id for each of <bos>, <sep>, <answer>, <eos>.

    Args:
      text: any text.

    Returns:
      [T] int32.
    """
    ids: list[int] = []
    for part in re.split("(" + "|".join(_MARKS) + ")", text):
        ids.extend([_MARKS[part]] if part in _MARKS else part.encode())
    return np.array(ids, np.int32)


def ids_to_text(ids: np.ndarray) -> str:
    """The text of token ids [T] of the text encoding. Bytes that are no UTF-8 become U+FFFD.

    Args:
      ids: [T] int, each at most 259.

    Returns:
      The text.
    """
    encoded = b"".join(_MARK_NAMES[i].encode() if i in _MARK_NAMES else bytes([i]) for i in np.asarray(ids).tolist())
    return encoded.decode(errors="replace")


def evaluation_set(episodes: Episodes, window: int, encoding: Encoding) -> EvaluationSet:
    """Prepare episodes of one query each for :func:`bdh_jax.tasks.recall.score_set`.

    Args:
      episodes: with Q = 1.
      window: the query is known to be one of the last ``window`` pairs.
      encoding: one of ``ENCODINGS``.

    Returns:
      The evaluation set.
    """
    encoded = encoding.encode(episodes)
    answers = episodes.answers[:, 0]
    positions = encoded.answer.argmax(axis=1)[:, None] + np.arange(encoding.answer_length)
    swapped = None
    if encoding is ENCODINGS["text"]:
        swapped = encoded.tokens.copy()
        np.put_along_axis(swapped, positions + 1, _VALUE_WORDS[_other_values(answers)], axis=1)
    return EvaluationSet(answers, episodes.values, candidates(episodes, window), encoded, positions, swapped)


def _other_values(values: np.ndarray) -> np.ndarray:
    """For each value another one, whose first different digit is the first, second or third in turn along E.

    So each digit is once the first one to change, and a prediction of any of them that reads ahead is noticed.
    """
    # Value 128 is left out: the clean variant does not know it.
    known = np.arange(FIRST_VALUE, 128)
    equal = _VALUE_WORDS[values][:, None, 1:] == _VALUE_WORDS[known][None, :, 1:]
    shared = np.cumprod(equal, axis=2).sum(axis=2)
    fits = shared == (np.arange(len(values)) % 3)[:, None]
    return known[fits.argmax(axis=1)].astype(np.int32)


class NBack(TaskBase):
    """The n-back task.

    Rows of a training batch have one fixed length, that of the longest sequence trained on. What is left of a row after a
    shorter sequence is filled with further ones, marked by ``reset``, and padded. ``weights`` are on answers only, and give
    all shapes of sequence the same share of the loss however many of each a batch holds.
    """

    accuracy_name = "recall"

    def __init__(self, config: NBackConfig, *, seed: int, batch_size: int):
        """See :meth:`NBackConfig.make`."""
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self.encoding = ENCODINGS[config.encoding]
        self.vocab_size = self.encoding.vocab_size
        shapes = config.training_shapes
        self._queries = {shape: min(config.queries, shape.window) for shape in shapes}
        lengths = {shape: self.encoding.length(shape.pairs, self._queries[shape]) for shape in shapes}
        self.sequence_length = max(lengths.values())
        # Rows take turns over the shapes, on from batch to batch, so a batch may be smaller than the mixture. One list of
        # layouts for each stage of the curriculum, by its number of shapes; all stages have rows of the same length.
        self._layouts = {
            known: [
                pack([shapes[(turn + row) % known] for row in range(batch_size)], shapes[:known], lengths)
                for turn in range(known)
            ]
            for known in ({len(shapes)} if not config.curriculum else range(1, len(shapes) + 1))
        }

    def batch(self, step: int) -> Batch:
        """The training batch of a step, each array [batch_size, sequence_length]: a pure function of (seed, step)."""
        rng = batch_rng(self.seed, step)
        layouts = self._layouts[self._shapes_known_at(step)]
        layout = layouts[step * self.batch_size % len(layouts)]
        encoded = {
            shape: self.encoding.encode(self._training_episodes(rng, shape, len(places)))
            for shape, places in layout.places.items()
        }
        return assemble(layout, encoded, padding=self.encoding.padding)

    def _shapes_known_at(self, step: int) -> int:
        starts = self.config.curriculum
        return 1 + sum(start <= step for start in starts) if starts else len(self.config.training_shapes)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Score a model on the published evaluation sequences.

        Accuracy and credit are of the greedy answer given without the true one in sight. For text, ``extra`` holds
        ``teacher_forced``, the share of answers all four tokens of which are right when the true ones stand in the input,
        and the answer swap's ``swap_unchanged`` and ``swap_change`` (:class:`bdh_jax.tasks.scoring.AnswerSwap`).

        Args:
          predict: tokens [B,T] int32, valid [B,T] bool → logits [B,T,V]. One shape per evaluation set, B a multiple of 8,
            at most 256.

        Returns:
          A row for each set. ``primary`` is the smallest credit ÷ ceiling: one model serves all sets, so it is as good as
          its worst.
        """
        decode, padding = self.encoding.values, self.encoding.padding
        rows = tuple(
            score_set(name, data, predict, decode=decode, padding=padding) for name, data in self.evaluation_sets.items()
        )
        note = "accuracy and credit are of whole answers, decoded token by token" if self.config.encoding == "text" else ""
        return Evaluation(rows=rows, primary=min(row.ratio for row in rows), note=note)

    @functools.cached_property
    def evaluation_sets(self) -> dict[str, EvaluationSet]:
        """The evaluation sets, by name."""
        count, clean = self.config.evaluation_sequences, self.config.clean
        return {
            name: evaluation_set(
                published_episodes(SETS[name], seed=EVALUATION_SEED, count=count, clean=clean),
                SETS[name].window,
                self.encoding,
            )
            for name in self.config.evaluation_sets
        }

    def _training_episodes(self, rng: np.random.Generator, shape: Shape, count: int) -> Episodes:
        if self.config.train_set == "fresh":
            clean, alike = self.config.clean, self.config.train_alike
            episodes = sample_episodes(rng, shape, count, queries=self._queries[shape], clean=clean)
            if alike:
                return episodes._replace(values=alike_values(rng, episodes.values, alike, clean=clean))
            return episodes
        return self._published[shape].take(rng.integers(0, PUBLISHED_TRAINING_SEQUENCES, count))

    @functools.cached_property
    def _published(self) -> dict[Shape, Episodes]:
        sizes = {"seed": PUBLISHED_TRAINING_SEED, "count": PUBLISHED_TRAINING_SEQUENCES, "clean": self.config.clean}
        return {shape: published_episodes(shape, **sizes) for shape in set(self.config.training_shapes)}


CONFIG = NBackConfig
