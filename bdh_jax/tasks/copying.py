"""Copying: MARK, symbols, MARK, the same symbols again.

In the input the copy stands one token behind what is to be predicted, as of a language model; it is scored symbol by symbol from the
model's own earlier answers. The sets have one length each, with symbols that are all different ("distinct8") or drawn one by one
("any8"). A memory of nothing but which symbol followed which one copies the former, and of the latter the share "pairs suffice".

Axis letters: E sequences, T time, A symbols of a copy, B batch.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from bdh_jax.config import check_types, require, require_choice
from bdh_jax.data.config import DataConfig
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.recall import batch_rng
from bdh_jax.tasks.scores import Evaluation, Score
from bdh_jax.tasks.scoring import Predict, autoregressive, teacher_forced

Kind = Literal["distinct", "any"]
EVALUATION_SEED = 101


@dataclasses.dataclass(frozen=True)
class CopyingConfig(TaskConfig):
    """Copying a sequence of symbols."""

    name: str = "copying"
    symbols: int = 16
    """Symbols that there are; MARK and padding are two more tokens."""
    lengths: tuple[int, int] = (2, 8)
    """Shortest and longest sequence that is trained on; each length is equally likely."""
    kind: Kind = "distinct"
    """Trained on: symbols of a sequence that are all different, or drawn one by one."""
    evaluation_lengths: tuple[int, ...] = (4, 8, 12)
    """One set of either kind for each; of all different symbols there are at most ``symbols``."""
    evaluation_sequences: int = 256
    """Sequences of each set."""

    def __post_init__(self) -> None:
        check_types(self)
        require_choice("task.kind", self.kind, Kind)
        low, high = self.lengths
        require(1 <= low <= high, f"task.lengths={self.lengths} must be two numbers, 1 ≤ shortest ≤ longest")
        longest = max(high if self.kind == "distinct" else 1, *self.evaluation_lengths)
        require(
            self.symbols >= longest,
            f"task.symbols={self.symbols} must be at least {longest}: the symbols of a sequence are all different",
        )
        require(self.evaluation_sequences >= 1, f"task.evaluation_sequences={self.evaluation_sequences} must be at least 1")
        require(
            min(self.evaluation_lengths, default=0) >= 1,
            f"task.evaluation_lengths={self.evaluation_lengths} must be numbers ≥ 1, at least one",
        )

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Copying:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return Copying(self, seed, batch_size)


def sample(rng: np.random.Generator, symbols: int, count: int, length: int, kind: Kind) -> np.ndarray:
    """Symbols [E, A] int32, in 0 … ``symbols`` − 1."""
    if kind == "any":
        return rng.integers(0, symbols, (count, length), dtype=np.int32)
    return rng.random((count, symbols)).argsort(axis=1)[:, :length].astype(np.int32)


def pairs_suffice(words: np.ndarray, mark: int) -> np.ndarray:
    """Whether no symbol of words [E, A], nor ``mark`` before them, is followed by two different ones: bool [E]."""
    before = np.concatenate([np.full((len(words), 1), mark), words[:, :-1]], axis=1)
    same = before[:, :, None] == before[:, None, :]
    return ~(same & (words[:, :, None] != words[:, None, :])).any(axis=(1, 2))


class Copying(TaskBase):
    """Copying as a task."""

    accuracy_name = "copied"

    def __init__(self, config: CopyingConfig, seed: int, batch_size: int):
        self.config, self.seed, self.batch_size = config, seed, batch_size
        self.mark, self.padding = config.symbols, config.symbols + 1
        self.vocab_size = config.symbols + 2
        self.sequence_length = 2 * config.lengths[1] + 1

    def batch(self, step: int) -> Batch:
        """Sequences of random lengths, padded at their ends."""
        rng, config = batch_rng(self.seed, step), self.config
        low, high = config.lengths
        words = sample(rng, config.symbols, self.batch_size, high, config.kind)
        tokens, targets, answer, valid = self.encode(words, rng.integers(low, high + 1, self.batch_size))
        weights = answer.astype(np.float32)
        return Batch(tokens, targets, weights, weights, valid, np.zeros_like(valid))

    def encode(self, words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets, answer and valid, each [E, 2·A + 1], of the first ``lengths`` [E] symbols of words [E, A]."""
        count, longest = words.shape
        full = np.full((count, 2 * longest + 3), self.padding, np.int32)
        place, size = np.arange(longest), lengths[:, None]
        row = np.arange(count)[:, None]
        kept = np.where(place < size, words, self.padding)
        full[:, 0] = self.mark
        full[:, 1 : longest + 1] = kept
        full[row, size + 1] = self.mark
        # Symbols beyond the length put padding where padding is.
        full[row, np.minimum(size + 2 + place, 2 * size + 2)] = kept
        tokens, targets = full[:, : 2 * longest + 1], full[:, 1 : 2 * longest + 2]
        time = np.arange(tokens.shape[1])
        valid = time <= 2 * size
        answer = (time > size) & valid
        return np.where(valid, tokens, self.padding), np.where(valid, targets, self.padding), answer, valid

    def evaluate(self, predict: Predict) -> Evaluation:
        """Share of sequences copied to their last symbol, from the model's own answers. "symbols" is the share of symbols that are right
        when the true ones before stand in the input (chance 1/``symbols``), "pairs suffice" that of the sequences that a memory of pairs can
        copy. ``primary`` is that of the longest set of the kind and lengths that are trained on, or of the shortest set."""
        rows = tuple(self._score(predict, kind, length) for kind, length in self.evaluation_sets)
        trained = [f"{self.config.kind}{n}" for n in sorted(self.config.evaluation_lengths) if n <= self.config.lengths[1]]
        name = trained[-1] if trained else f"{self.config.kind}{min(self.config.evaluation_lengths)}"
        return Evaluation(rows=rows, primary=next(row.ratio for row in rows if row.name == name))

    def _score(self, predict: Predict, kind: Kind, length: int) -> Score:
        words = self.evaluation_sets[kind, length]
        tokens, targets, answer, valid = self.encode(words, np.full(len(words), length))
        positions = np.tile(np.flatnonzero(answer[0]), (len(words), 1))
        own = autoregressive(predict, tokens, valid, positions, padding=self.padding)
        right = float((own == words).all(axis=1).mean())
        forced = teacher_forced(predict, tokens, valid, positions)
        extra = {
            "symbols": float((forced == np.take_along_axis(targets, positions, axis=1)).mean()),
            "chance": 1 / self.config.symbols,
            "pairs suffice": float(pairs_suffice(words, self.mark).mean()),
        }
        return Score(f"{kind}{length}", count=len(words), accuracy=right, credit=right, ceiling=1.0, extra=extra)

    @functools.cached_property
    def evaluation_sets(self) -> dict[tuple[Kind, int], np.ndarray]:
        """Kind and length → symbols [E, A]."""
        kinds: tuple[Kind, ...] = ("distinct", "any")
        return {
            (kind, length): sample(
                np.random.default_rng([EVALUATION_SEED, kinds.index(kind), length]),
                self.config.symbols,
                self.config.evaluation_sequences,
                length,
                kind,
            )
            for kind in kinds
            for length in self.config.evaluation_lengths
        }


CONFIG = CopyingConfig
