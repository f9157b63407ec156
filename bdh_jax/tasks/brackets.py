"""Brackets of three kinds: is a sequence balanced, and which bracket closes the innermost open one?

Tokens are the brackets ( [ { and ) ] }, a query, and answers. A sequence of brackets is followed by the query, whose target is YES or
NO. Half of all sequences are balanced; the others are one edit away from one that is: a bracket of another kind, a bracket turned round,
or two neighbours exchanged, each equally often. Exchanged neighbours leave every count as it was, so that counting brackets by their kind
does not tell them: that is the null "by counts".

At each bracket of a balanced sequence, and of another one up to its first mistake, the target is the bracket that closes the innermost
open one, or NONE. The second question is scored there, where something is open.

A balanced sequence is a walk that opens or closes with equal chance, between depth 0 and ``max_depth``, and reaches depth 2.

Axis letters: E sequences, T time, B batch.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from bdh_jax.config import check_types, require
from bdh_jax.data.config import DataConfig
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.recall import batch_rng
from bdh_jax.tasks.scores import Evaluation, Score
from bdh_jax.tasks.scoring import ROWS, Predict

KINDS = 3
QUERY, YES, NO, NONE, PADDING = range(2 * KINDS, 2 * KINDS + 5)
VOCABULARY = PADDING + 1
SHORTEST = 4
"""The shortest sequence of depth 2."""
EDITS = ("kind", "direction", "exchange")
EVALUATION_SEED = 202
_ATTEMPTS = 100
"""At an edit, before another one is made."""


@dataclasses.dataclass(frozen=True)
class BracketsConfig(TaskConfig):
    """Balanced brackets of three kinds."""

    name: str = "brackets"
    lengths: tuple[int, int] = (4, 40)
    """Shortest and longest sequence that is trained on, in brackets; each even length between is equally likely."""
    max_depth: int = 8
    """Most brackets that are open at once, at least 2."""
    trace: float = 0.2
    """Loss weight (``train.loss="weights"``) of each bracket's target; the query's is 1."""
    evaluation_lengths: tuple[int, ...] = (20, 40, 60, 80, 100)
    """Brackets of the sequences of each set."""
    evaluation_sequences: int = 256
    """Sequences of each set."""

    def __post_init__(self) -> None:
        check_types(self)
        low, high = self.lengths
        require(
            SHORTEST <= low <= high and low % 2 == high % 2 == 0,
            f"task.lengths={self.lengths} must be two even numbers, {SHORTEST} ≤ shortest ≤ longest",
        )
        require(self.max_depth >= 2, f"task.max_depth={self.max_depth} must be at least 2")
        require(self.trace >= 0, f"task.trace={self.trace} must be ≥ 0")
        require(
            bool(self.evaluation_lengths) and all(n >= SHORTEST and n % 2 == 0 for n in self.evaluation_lengths),
            f"task.evaluation_lengths={self.evaluation_lengths} must be even numbers of at least {SHORTEST}, at least one",
        )
        require(
            self.evaluation_sequences >= 2 and self.evaluation_sequences % 2 == 0,
            f"task.evaluation_sequences={self.evaluation_sequences} must be an even number: half are balanced",
        )

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Brackets:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return Brackets(self, seed, batch_size)


class Sequences(NamedTuple):
    """Sequences of one length."""

    brackets: np.ndarray
    """[E, T] int32, kind k opens as k and closes as KINDS + k."""
    balanced: np.ndarray
    """[E] bool."""
    edit: np.ndarray
    """[E] int, index into EDITS; −1 of a balanced one."""


def balanced_brackets(rng: np.random.Generator, count: int, length: int, max_depth: int) -> np.ndarray:
    """Balanced sequences [E, T] int32 of depth 2 at least and ``max_depth`` at most."""
    found = np.empty((0, length), np.int32)
    while len(found) < count:
        brackets = np.empty((count, length), np.int32)
        stack = np.zeros((count, max_depth), np.int32)
        depth, deepest, row = np.zeros(count, np.int64), np.zeros(count, np.int64), np.arange(count)
        for t in range(length):
            opens = (rng.random(count) < 0.5) | (depth == 0)
            opens &= depth < np.minimum(max_depth, length - t)
            kind = rng.integers(0, KINDS, count)
            brackets[:, t] = np.where(opens, kind, KINDS + stack[row, np.maximum(depth - 1, 0)])
            stack[row[opens], depth[opens]] = kind[opens]
            depth += np.where(opens, 1, -1)
            deepest = np.maximum(deepest, depth)
        found = np.concatenate([found, brackets[deepest >= 2]])
    return found[:count]


class Reading(NamedTuple):
    """What a parser makes of sequences, each [E, T] after every bracket."""

    depth: np.ndarray
    """Open brackets."""
    closing: np.ndarray
    """int32, the bracket that closes the innermost open one, or NONE."""
    intact: np.ndarray
    """bool, whether there was no mistake so far."""


def parse(brackets: np.ndarray) -> Reading:
    """Read brackets [E, T] with a stack."""
    count, length = brackets.shape
    stack = np.zeros((count, length + 1), np.int32)
    depth, intact, row = np.zeros(count, np.int64), np.ones(count, bool), np.arange(count)
    depths, closing = np.zeros((count, length), np.int64), np.full((count, length), NONE, np.int32)
    unbroken = np.zeros((count, length), bool)
    for t in range(length):
        bracket = brackets[:, t]
        opens = bracket < KINDS
        top = stack[row, np.maximum(depth - 1, 0)]
        intact = intact & (opens | ((depth > 0) & (bracket == KINDS + top)))
        stack[row[opens], depth[opens]] = bracket[opens]
        depth = np.maximum(depth + np.where(opens, 1, -1), 0)
        depths[:, t], unbroken[:, t] = depth, intact
        closing[:, t] = np.where(depth > 0, KINDS + stack[row, np.maximum(depth - 1, 0)], NONE)
    return Reading(depths, closing, unbroken)


def is_balanced(brackets: np.ndarray) -> np.ndarray:
    """Whether each of brackets [E, T] is balanced, bool [E]."""
    reading = parse(brackets)
    return reading.intact[:, -1] & (reading.depth[:, -1] == 0)


def counts_fit(brackets: np.ndarray) -> np.ndarray:
    """Whether each of brackets [E, T] opens and closes every kind equally often, bool [E]: all that counting says."""
    return np.all([(brackets == k).sum(axis=1) == (brackets == KINDS + k).sum(axis=1) for k in range(KINDS)], axis=0)


def edited(rng: np.random.Generator, brackets: np.ndarray, edit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Balanced brackets [E, T] after one edit each, so that none is balanced, and which edits they were [E].

    They are those of EDITS[edit [E]], but a sequence that no exchange unbalances, such as (()), has a bracket of another kind instead.
    """
    brackets, edit, left = brackets.copy(), edit.copy(), np.arange(len(brackets))
    places = brackets.shape[1] - 1
    for attempt in range(_ATTEMPTS + 1):
        if attempt == _ATTEMPTS:
            edit[left] = EDITS.index("kind")  # which unbalances every sequence
        rows, row = brackets[left], np.arange(len(left))
        exchange = edit[left] == EDITS.index("exchange")
        at = rng.integers(0, np.where(exchange, places, places + 1))
        here = rows[row, at]
        other = here - here % KINDS + (here % KINDS + rng.integers(1, KINDS, len(left))) % KINDS
        turned = (here + KINDS) % (2 * KINDS)
        after = np.minimum(at + 1, places)
        changed = rows.copy()
        changed[row, at] = np.where(exchange, rows[row, after], np.where(edit[left] == EDITS.index("kind"), other, turned))
        changed[row[exchange], after[exchange]] = here[exchange]
        broken = ~is_balanced(changed)
        brackets[left[broken]] = changed[broken]
        left = left[~broken]
    return brackets, edit


def sample(rng: np.random.Generator, count: int, length: int, max_depth: int) -> Sequences:
    """Sequences of one length, the first half of them balanced."""
    brackets = balanced_brackets(rng, count, length, max_depth)
    edit = np.full(count, -1)
    half = (count + 1) // 2
    edit[half:] = np.arange(count - half) % len(EDITS)
    brackets[half:], edit[half:] = edited(rng, brackets[half:], edit[half:])
    return Sequences(brackets, edit < 0, edit)


class Brackets(TaskBase):
    """Brackets as a task."""

    vocab_size = VOCABULARY

    def __init__(self, config: BracketsConfig, seed: int, batch_size: int):
        self.config, self.seed, self.batch_size = config, seed, batch_size
        self.sequence_length = config.lengths[1] + 1

    def batch(self, step: int) -> Batch:
        """Sequences of random lengths, two of each, one of them balanced; padded at their ends."""
        rng, config, width = batch_rng(self.seed, step), self.config, self.sequence_length
        low, high = config.lengths
        tokens, targets = (np.full((self.batch_size, width), PADDING, np.int32) for _ in range(2))
        answer, weights = (np.zeros((self.batch_size, width), np.float32) for _ in range(2))
        valid = np.zeros((self.batch_size, width), bool)
        turns = rng.integers(low // 2, high // 2 + 1, -(-self.batch_size // 2)) * 2
        edits = rng.integers(0, len(EDITS), len(turns))
        for length in np.unique(turns):
            (pairs,) = np.nonzero(turns == length)
            brackets = balanced_brackets(rng, 2 * len(pairs), int(length), config.max_depth)
            brackets[len(pairs) :], _ = edited(rng, brackets[len(pairs) :], edits[pairs])
            rows = np.concatenate([2 * pairs, 2 * pairs + 1])
            there = rows < self.batch_size
            encoded = self.encode(brackets, np.arange(len(rows)) < len(pairs))
            for array, part in zip((tokens, targets, answer, weights, valid), encoded, strict=True):
                array[rows[there], : length + 1] = part[there]
        return Batch(tokens, targets, answer, weights, valid, np.zeros_like(valid))

    def encode(self, brackets: np.ndarray, balanced: np.ndarray) -> tuple[np.ndarray, ...]:
        """Tokens, targets, answer, loss weights and valid, each [E, T + 1], of brackets [E, T] and balanced [E]."""
        reading, count = parse(brackets), len(brackets)
        query = np.full((count, 1), QUERY, np.int32)
        tokens = np.concatenate([brackets, query], axis=1).astype(np.int32)
        verdict = np.where(balanced, YES, NO).astype(np.int32)[:, None]
        # After a mistake there is nothing to predict, and no loss weight.
        targets = np.concatenate([np.where(reading.intact, reading.closing, NONE), verdict], axis=1)
        answer = np.zeros(tokens.shape, np.float32)
        answer[:, -1] = 1
        weights = np.concatenate([self.config.trace * reading.intact, np.ones((count, 1))], axis=1).astype(np.float32)
        return tokens, targets.astype(np.int32), answer, weights, np.ones(tokens.shape, bool)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Two rows for each length, whose ceiling is 1.

        "balanced20": is it, of 20 brackets? The larger logit of YES and NO counts; "chance" is 1/2, which is the base rate too, and
        "by counts" what counting the brackets of every kind can reach; "kind", "direction" and "exchange" are accuracies on sequences with
        that edit. "closing20": which bracket closes the innermost open one, at every bracket of the balanced sequences that leaves one
        open; the largest logit of the closing ones counts, "chance" is 1/3, and "by last" what naming the kind opened last can reach.

        ``primary`` is the smallest score at lengths that are trained on, or at the shortest.
        """
        longest, rows = max(self.config.evaluation_lengths), []
        for length, data in self.evaluation_sets.items():
            tokens, *_ = self.encode(data.brackets, data.balanced)
            padded = np.full((len(tokens), longest + 1), PADDING, np.int32)
            padded[:, : length + 1] = tokens
            valid = np.broadcast_to(np.arange(longest + 1) <= length, padded.shape)
            logits = _in_calls(predict, padded, valid)[:, : length + 1]
            rows += [_score_balanced(data, logits[:, -1]), _score_closing(data, logits[:, :-1])]
        known = [n for n in self.config.evaluation_lengths if n <= self.config.lengths[1]]
        known = known or [min(self.config.evaluation_lengths)]
        names = [f"{question}{n}" for question in ("balanced", "closing") for n in known]
        return Evaluation(rows=tuple(rows), primary=min(row.ratio for row in rows if row.name in names))

    @functools.cached_property
    def evaluation_sets(self) -> dict[int, Sequences]:
        """Length → sequences, half of them balanced."""
        config = self.config
        return {
            length: sample(
                np.random.default_rng([EVALUATION_SEED, length]), config.evaluation_sequences, length, config.max_depth
            )
            for length in config.evaluation_lengths
        }


def _in_calls(predict: Predict, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits [E, T, V], computed in calls of one shape of at most ROWS rows."""
    rows = min(ROWS, -(-len(tokens) // 8) * 8)
    parts = []
    for first in range(0, len(tokens), rows):
        index = np.minimum(np.arange(first, first + rows), len(tokens) - 1)
        parts.append(np.asarray(predict(tokens[index], valid[index])))
    return np.concatenate(parts)[: len(tokens)]


def _score_balanced(data: Sequences, logits: np.ndarray) -> Score:
    says_yes = logits[:, YES] > logits[:, NO]
    right = says_yes == data.balanced
    extra = {"chance": 0.5, "by counts": float((counts_fit(data.brackets) == data.balanced).mean())}
    for number, edit in enumerate(EDITS):
        if (data.edit == number).any():
            extra[edit] = float(right[data.edit == number].mean())
    accuracy = float(right.mean())
    name = f"balanced{data.brackets.shape[1]}"
    return Score(name, count=len(right), accuracy=accuracy, credit=accuracy, ceiling=1.0, extra=extra)


def _score_closing(data: Sequences, logits: np.ndarray) -> Score:
    brackets, logits = data.brackets[data.balanced], logits[data.balanced]
    reading = parse(brackets)
    opened = np.maximum.accumulate(np.where(brackets < KINDS, np.arange(brackets.shape[1]), 0), axis=1)
    by_last = KINDS + np.take_along_axis(brackets, opened, axis=1)
    asked = reading.depth > 0
    said = KINDS + logits[..., KINDS : 2 * KINDS].argmax(axis=-1)
    accuracy, last = (float((answer == reading.closing)[asked].mean()) for answer in (said, by_last))
    extra = {"chance": 1 / KINDS, "by last": last}
    name = f"closing{brackets.shape[1]}"
    return Score(name, count=len(brackets), accuracy=accuracy, credit=accuracy, ceiling=1.0, extra=extra)


CONFIG = BracketsConfig
