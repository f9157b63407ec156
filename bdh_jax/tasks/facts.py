"""Facts: pairs of tokens and their values, recalled within an episode. What a model learns before the lifelong benchmark.

A key is two tokens (a, b), each from an alphabet of its own; a fact is a key and one of 64 values. An episode is
a₁ b₁ v₁ … a_P b_P v_P and then queries a b, each to be answered by the key's value. Many keys share a token, so the address under
which a value is written must hold both. Three kinds of key tell what a model has learned:

* "seen": combinations that occur in training;
* "held_out": other combinations of the same tokens;
* "new_ids": combinations of tokens that never occur in training.

Besides, there are known facts: held-out combinations whose values never stand in the input. They are asked for alone, at the start
of an episode, and can only be learned by gradient: knowledge that later writing may harm.

Axis letters: E episodes, P facts of an episode, Q queries, B batch, T time.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import numpy as np

from bdh_jax.config import ConfigError, check_types
from bdh_jax.config.seeds import whole_seed
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.packing import Encoded
from bdh_jax.tasks.recall import EvaluationSet, batch_rng, score_set
from bdh_jax.tasks.scores import Evaluation
from bdh_jax.tasks.scoring import Predict

Kind = Literal["seen", "held_out", "new_ids", "reserved"]
KINDS: tuple[Kind, ...] = ("seen", "held_out", "new_ids")
"""What streams of facts are made of."""

IDS = 128
"""Tokens of each alphabet that occur in training."""
NEW_IDS = 32
"""Tokens of each alphabet that do not."""
FIRST_A, FIRST_B, FIRST_VALUE = 0, IDS + NEW_IDS, 2 * (IDS + NEW_IDS)
VALUES = 64
PADDING = FIRST_VALUE + VALUES
VOCABULARY = PADDING + 1

HELD_OUT = 4096
"""Combinations of tokens that occur in training which do not."""
MOST_KNOWN = 512
RESERVED = 512
"""Combinations of tokens that occur in training which neither training nor any stream of facts uses."""
SEEN = IDS * IDS - HELD_OUT - MOST_KNOWN - RESERVED
"""Combinations of training."""
_COMBINATION_SEED, _EVALUATION_SEED = 0, 99


@dataclasses.dataclass(frozen=True)
class FactsConfig(TaskConfig):
    """Recall of facts whose keys are two tokens."""

    name: str = "facts"
    pairs: int = 16
    """P."""
    queries: int = 8
    """Q of a training episode; they ask for different keys."""
    grids: tuple[int, ...] = (6, 32)
    """Each row of a batch in turn draws its keys from so many tokens of each alphabet: the fewer, the more keys share a token."""
    known: int = 256
    """Facts to be learned by gradient."""
    known_rows: int = 2
    """Rows of a batch that ask for them."""
    evaluation_sequences: int = 256
    """Sequences of each evaluation set."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("pairs", "queries", "evaluation_sequences"):
            if getattr(self, name) < 1:
                raise ConfigError(f"task.{name}={getattr(self, name)} must be at least 1")
        if self.queries > self.pairs:
            raise ConfigError(
                f"task.queries={self.queries} must be at most task.pairs={self.pairs}: they ask for different keys"
            )
        # A grid keeps enough combinations after those that are held out.
        if not self.grids or not all(2 * self.pairs <= grid**2 and grid <= NEW_IDS for grid in self.grids):
            raise ConfigError(
                f"task.grids={self.grids}: each needs at least {2 * self.pairs} combinations (twice task.pairs) and at most "
                f"{NEW_IDS} tokens of an alphabet"
            )
        if not 0 <= self.known <= MOST_KNOWN:
            raise ConfigError(f"task.known={self.known} must lie in 0 … {MOST_KNOWN}")
        if self.known_rows < 0 or (self.known_rows == 0) != (self.known == 0):
            raise ConfigError(
                f"task.known_rows={self.known_rows} with task.known={self.known}: known facts need rows to ask for them, and "
                "rows need facts; set both or neither to 0"
            )

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Facts:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return Facts(self, seed=seed, batch_size=batch_size)

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`."""
        return "keys and values of facts"


class Combinations(NamedTuple):
    """All keys, by kind. Every array is int32 with the tokens a and b in its last axis."""

    seen: np.ndarray
    """[11264, 2], the combinations of training."""
    held_out: np.ndarray
    """[4096, 2]."""
    new_ids: np.ndarray
    """[1024, 2]."""
    known: np.ndarray
    """[512, 2], of which a task takes the first."""
    known_values: np.ndarray
    """[512] int32."""
    reserved: np.ndarray
    """[512, 2]."""


@functools.cache
def combinations() -> Combinations:
    """The keys of every kind: the same for all models, seeds and sizes."""
    rng = np.random.default_rng(_COMBINATION_SEED)
    trained = _grid(IDS, 0)[rng.permutation(IDS * IDS)]
    known_values = rng.integers(FIRST_VALUE, FIRST_VALUE + VALUES, MOST_KNOWN + RESERVED, dtype=np.int32)[:MOST_KNOWN]
    ends = np.cumsum([MOST_KNOWN, RESERVED, HELD_OUT])
    known, reserved, held_out, seen = np.split(trained, ends)
    return Combinations(seen, held_out, _grid(NEW_IDS, IDS), known, known_values, reserved)


def _grid(size: int, first: int) -> np.ndarray:
    a, b = np.meshgrid(np.arange(first, first + size), np.arange(first, first + size), indexing="ij")
    return np.stack([FIRST_A + a.ravel(), FIRST_B + b.ravel()], axis=1).astype(np.int32)


@functools.cache
def _allowed(kind: Kind) -> np.ndarray:
    """[160, 160] bool: the combinations of a kind, by the places of a and b in their alphabets."""
    keys = getattr(combinations(), kind)
    allowed = np.zeros((IDS + NEW_IDS, IDS + NEW_IDS), bool)
    allowed[keys[:, 0] - FIRST_A, keys[:, 1] - FIRST_B] = True
    return allowed


def initialise_new_ids(embed: np.ndarray, *, seed: int) -> np.ndarray:
    """Embeddings in which the tokens that never occur in training look like those that do.

    Those of training share a large common direction, which serves the encoder as a bias and makes its codes sparse. An embedding
    left as it was initialised lacks it: its codes are dense, and its keys collide. New embeddings are therefore drawn from the
    normal distribution with mean and covariance of the trained ones, for each alphabet of its own.

    Args:
      embed: [V, D], trained.
      seed: of the draws.

    Returns:
      [V, D] with other rows for the new ids, and for these only.
    """
    rng = np.random.default_rng(whole_seed(seed))
    embed = np.array(embed)
    for first in (FIRST_A, FIRST_B):
        trained = embed[first : first + IDS].astype(np.float64)
        mean, covariance = trained.mean(axis=0), np.cov(trained.T)
        embed[first + IDS : first + IDS + NEW_IDS] = rng.multivariate_normal(mean, covariance, NEW_IDS)
    return embed


class Episodes(NamedTuple):
    """Episodes before encoding."""

    keys: np.ndarray
    """[E,P,2] int32, distinct within an episode."""
    values: np.ndarray
    """[E,P] int32."""
    query: np.ndarray
    """[E,Q] int, the facts asked for, distinct within an episode."""

    @property
    def answers(self) -> np.ndarray:
        """[E,Q] int32."""
        return np.take_along_axis(self.values, self.query, axis=1)


def sample_episodes(rng: np.random.Generator, kind: Kind, count: int, *, pairs: int, queries: int, grid: int) -> Episodes:
    """Fresh episodes.

    Args:
      rng: source of randomness.
      kind: of their keys.
      count: E.
      pairs: P.
      queries: Q.
      grid: tokens of each alphabet that an episode draws its keys from.

    Returns:
      The episodes.

    Raises:
      ValueError: if an episode's grid holds fewer combinations of that kind than there are pairs.
    """
    first, ids = (IDS, NEW_IDS) if kind == "new_ids" else (0, IDS)
    allowed = _allowed(kind)
    keys = np.empty((count, pairs, 2), np.int32)
    left = np.arange(count)
    for _ in range(1000 if grid**2 >= pairs else 0):
        a, b = (first + rng.random((len(left), ids), dtype=np.float32).argsort(axis=1)[:, :grid] for _ in range(2))
        order = rng.random((len(left), grid * grid), dtype=np.float32)
        fits = allowed[a[:, :, None], b[:, None, :]].reshape(len(left), -1)
        chosen = np.where(fits, order, 2).argsort(axis=1)[:, :pairs]
        enough = fits.sum(axis=1) >= pairs
        tokens = [
            np.take_along_axis(a, chosen // grid, axis=1) + FIRST_A,
            np.take_along_axis(b, chosen % grid, axis=1) + FIRST_B,
        ]
        keys[left] = np.stack(tokens, axis=2)
        # A grid that holds too few is drawn again.
        left = left[~enough]
        if not len(left):
            break
    else:
        raise ValueError(f"grids of {grid} × {grid} tokens hold fewer than {pairs} keys of kind {kind!r}; use a larger grid")
    values = rng.integers(FIRST_VALUE, FIRST_VALUE + VALUES, (count, pairs), dtype=np.int32)
    query = rng.random((count, pairs), dtype=np.float32).argsort(axis=1)[:, :queries]
    return Episodes(keys, values, query)


def encode(episodes: Episodes) -> Encoded:
    """Episodes as tokens, T = 3P + 2Q. Answers are targets, never input. Every other target is the next token."""
    count, pairs = episodes.values.shape
    facts = np.concatenate([episodes.keys, episodes.values[..., None]], axis=2).reshape(count, -1)
    asked = np.take_along_axis(episodes.keys, episodes.query[..., None], axis=1).reshape(count, -1)
    tokens = np.concatenate([facts, asked], axis=1)
    targets = np.roll(tokens, -1, axis=1)
    targets[:, 3 * pairs + 1 :: 2] = episodes.answers
    answer = np.zeros(tokens.shape, bool)
    answer[:, 3 * pairs + 1 :: 2] = True
    return Encoded(tokens, targets, answer, np.ones(tokens.shape, bool))


class Facts(TaskBase):
    """The task. Rows of a training batch hold one episode each; the last ones ask for known facts."""

    accuracy_name = "recall"

    def __init__(self, config: FactsConfig, *, seed: int, batch_size: int):
        """See :meth:`FactsConfig.make`.

        Raises:
          ConfigError: if known facts leave no row for episodes, or the largest grid holds too few keys that are held out.
        """
        if config.known_rows >= batch_size:
            raise ConfigError(
                f"task.known_rows={config.known_rows} leave no row for episodes in a batch of train.batch_size={batch_size}"
            )
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self.vocab_size = VOCABULARY
        self.sequence_length = 3 * config.pairs + 2 * config.queries
        try:
            # Drawn now rather than after an hour of training: whether enough keys are in a grid shows when it is drawn.
            self.evaluation_sets  # noqa: B018
        except ValueError as error:
            raise ConfigError(f"task.grids={config.grids}, task.pairs={config.pairs}: {error}, or fewer pairs") from None

    def batch(self, step: int) -> Batch:
        """The training batch of a step, each array [batch_size, sequence_length]: a pure function of (seed, step)."""
        config = self.config
        rng = batch_rng(self.seed, step)
        size = (self.batch_size, self.sequence_length)
        tokens, targets = np.full(size, PADDING, np.int32), np.full(size, PADDING, np.int32)
        answer, valid, reset = (np.zeros(size, bool) for _ in range(3))
        rows = self.batch_size - self.asked_rows(step)
        for turn, grid in enumerate(config.grids):
            here = slice(turn, rows, len(config.grids))
            count = len(range(rows)[here])
            if count:
                episodes = sample_episodes(rng, "seen", count, pairs=config.pairs, queries=config.queries, grid=grid)
                tokens[here], targets[here], answer[here], valid[here] = encode(episodes)
        keys, values, extra = self.asked(rng, step)
        if len(keys):
            each = self.asked_facts
            tokens[rows:, : 2 * each] = keys.reshape(len(keys), -1)
            # At its first token a key's second is the target, as it is everywhere else.
            targets[rows:, 0 : 2 * each : 2], targets[rows:, 1 : 2 * each : 2] = keys[..., 1], values
            answer[rows:, 1 : 2 * each : 2] = True
            valid[rows:, : 2 * each] = True
            reset[rows:, 2 : 2 * each : 2] = True
        answer = answer.astype(np.float32)
        return Batch(tokens, targets, answer, answer.copy(), valid, reset, extra)

    @property
    def asked_facts(self) -> int:
        """Facts that one of the last rows asks for, each in an episode of its own."""
        return self.sequence_length // 2

    def asked_rows(self, step: int) -> int:
        """R, how many of the last rows of a step's batch ask for facts that do not stand in the row."""
        return self.config.known_rows

    def asked(self, rng: np.random.Generator, step: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """The facts that the last rows of a step's batch ask for, drawn after all its episodes.

        Args:
          rng: the batch's randomness.
          step: of the training.

        Returns:
          keys [R, asked_facts, 2] and values [R, asked_facts] int32, with R = ``asked_rows(step)``; and the batch's ``extra``.
        """
        rows, known = self.config.known_rows, self.config.known
        size = (rows, self.asked_facts)
        which = rng.integers(0, known, size) if rows else np.zeros(size, int)
        return combinations().known[which], combinations().known_values[which], None

    def evaluate(self, predict: Predict) -> Evaluation:
        """Score a model: one query an episode for each kind of key, and every known fact.

        Args:
          predict: tokens [B,T] int32, valid [B,T] bool → logits [B,T,V].

        Returns:
          A row for each kind, and "known". The ceiling of all is 1; ``primary`` is the smallest accuracy, new ids left out: their
          embeddings are as initialised (see :func:`initialise_new_ids`).
        """
        rows = tuple(
            score_set(name, data, predict, decode=lambda answers: answers[:, 0], padding=PADDING)
            for name, data in self.evaluation_sets.items()
        )
        return Evaluation(rows=rows, primary=min(row.ratio for row in rows if row.name != "new_ids"))

    @functools.cached_property
    def evaluation_sets(self) -> dict[str, EvaluationSet]:
        """The evaluation sets, by name: the same for every seed."""
        config = self.config
        sets = {}
        for number, kind in enumerate(KINDS):
            rng = batch_rng(_EVALUATION_SEED, number)
            grid = max(config.grids)
            episodes = sample_episodes(rng, kind, config.evaluation_sequences, pairs=config.pairs, queries=1, grid=grid)
            encoded = encode(episodes)
            place = np.arange(config.pairs)[None] == episodes.query
            sets[kind] = EvaluationSet(
                episodes.answers[:, 0], episodes.values, place, encoded, np.argwhere(encoded.answer)[:, 1:], None
            )
        if config.known:
            keys, values = combinations().known[: config.known], combinations().known_values[: config.known]
            answer = np.tile([False, True], (len(keys), 1))
            encoded = Encoded(keys, np.stack([keys[:, 1], values], axis=1), answer, np.ones(keys.shape, bool))
            everything = np.ones((len(keys), 1), bool)
            sets["known"] = EvaluationSet(values, values[:, None], everything, encoded, np.ones((len(keys), 1), int), None)
        return sets


CONFIG = FactsConfig
