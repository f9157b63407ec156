"""Repeats: random letters, then one random word again and again (arXiv 2509.26507, §6.4 and Fig. 14).

    warm-up of 13 letters, word of 8, the word again, and again …           lower-case letters, as bytes

All letters are drawn one by one. Where the word begins and how long it is are the same in every sequence, so its first reading is as
unpredictable as the warm-up (1 in 26), and every letter from its second reading on is certain to who remembers eight letters.

Axis letters: E sequences, T time, B batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bdh_jax.config import check_types, require
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import BYTE_VOCABULARY, Tokenizer
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.recall import batch_rng
from bdh_jax.tasks.scores import Evaluation, Score
from bdh_jax.tasks.scoring import Predict, answer_logits

FIRST_LETTER = ord("a")
LETTERS = 26
EVALUATION_SEED = 102


@dataclasses.dataclass(frozen=True)
class RepeatsConfig(TaskConfig):
    """A word that repeats."""

    name: str = "repeats"
    warm_up: int = 13
    """Random letters before the word."""
    word: int = 8
    """Letters of the word."""
    length: int = 154
    """T, tokens of a sequence; the last reading of the word may be cut short."""
    evaluation_sequences: int = 64
    """Sequences that are scored."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.warm_up >= 0, f"task.warm_up={self.warm_up} must be ≥ 0")
        require(self.word >= 1, f"task.word={self.word} must be at least 1")
        require(
            self.readings >= 3,
            f"task.length={self.length} must be at least {self.warm_up + 3 * self.word}: the warm-up and three readings of the word",
        )
        require(self.evaluation_sequences >= 1, f"task.evaluation_sequences={self.evaluation_sequences} must be at least 1")

    @property
    def readings(self) -> int:
        """Whole readings of the word in a sequence."""
        return (self.length - self.warm_up) // self.word

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`; letters are bytes, as of a text."""
        return "bytes"

    @property
    def reads_text(self) -> bool:
        """Its tokens are bytes."""
        return True

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Repeats:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return Repeats(self, seed, batch_size)


def sequences(config: RepeatsConfig, rng: np.random.Generator, count: int, *, shuffled: bool = False) -> np.ndarray:
    """Letters as bytes, one more than a model reads.

    Args:
      config: of the task.
      rng: draws them.
      count: E.
      shuffled: every reading after the first has the word's letters in a random order of its own: the same letters, without the word.

    Returns:
      [E, T + 1] int32.
    """
    readings = -(-(config.length + 1 - config.warm_up) // config.word)
    letters = rng.integers(0, LETTERS, (count, config.warm_up + config.word), dtype=np.int32) + FIRST_LETTER
    word = np.broadcast_to(letters[:, None, config.warm_up :], (count, readings, config.word))
    if shuffled:
        later = rng.permuted(word[:, 1:], axis=2)
        word = np.concatenate([word[:, :1], later], axis=1)
    whole = np.concatenate([letters[:, : config.warm_up], word.reshape(count, -1)], axis=1)
    return whole[:, : config.length + 1].astype(np.int32)


def reading_of(config: RepeatsConfig) -> np.ndarray:
    """Which reading of the word each position's own letter belongs to: int32 [T + 1], 0 in the warm-up, 1 at first reading."""
    time = np.arange(config.length + 1)
    return np.where(time < config.warm_up, 0, (time - config.warm_up) // config.word + 1).astype(np.int32)


class Repeats(TaskBase):
    """A word that repeats, as a task."""

    accuracy_name = "repeated"

    def __init__(self, config: RepeatsConfig, seed: int, batch_size: int):
        self.config, self.seed, self.batch_size = config, seed, batch_size
        self.vocab_size = BYTE_VOCABULARY
        self.sequence_length = config.length

    def batch(self, step: int) -> Batch:
        """Sequences without padding; what counts are the letters from the second reading on."""
        whole = sequences(self.config, batch_rng(self.seed, step), self.batch_size)
        tokens, targets = whole[:, :-1], whole[:, 1:]
        answer = np.broadcast_to(reading_of(self.config)[1:] > 1, tokens.shape).astype(np.float32)
        valid = np.ones(tokens.shape, bool)
        return Batch(tokens, targets, answer, answer, valid, np.zeros_like(valid))

    def evaluate(self, predict: Predict) -> Evaluation:
        """Share of letters that are right, each with the true ones before it, in the first three readings and the last whole one.

        The first cannot be predicted: a letter earns 1 in 26 whichever it is, which is also its ceiling. That of the others is 1.
        ``primary`` is that of the second reading, which is the hardest that can be predicted.
        """
        config = self.config
        whole = sequences(config, np.random.default_rng(EVALUATION_SEED), config.evaluation_sequences)
        tokens, targets = whole[:, :-1], whole[:, 1:]
        positions = np.tile(np.arange(config.length), (len(tokens), 1))
        said = answer_logits(predict, tokens, np.ones(tokens.shape, bool), positions).argmax(axis=-1)
        reading = reading_of(config)[1:]
        rows = []
        for number in sorted({1, 2, 3, config.readings}):
            here = reading == number
            right = float((said == targets)[:, here].mean())
            letters = (said >= FIRST_LETTER) & (said < FIRST_LETTER + LETTERS)
            earned, ceiling = (right, 1.0) if number > 1 else (float(letters[:, here].mean()) / LETTERS, 1 / LETTERS)
            name, extra = f"reading{number}", {"chance": 1 / LETTERS}
            rows.append(Score(name, count=len(tokens), accuracy=right, credit=earned, ceiling=ceiling, extra=extra))
        return Evaluation(rows=tuple(rows), primary=rows[1].ratio)


CONFIG = RepeatsConfig
