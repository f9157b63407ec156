"""Brackets of three kinds: is a sequence balanced, and which bracket closes the innermost open one?

Tokens are the brackets ( [ { and ) ] }, a query, and answers. A sequence of brackets is followed by the query, whose target is YES or
NO. Half of all sequences are balanced; the others are one edit away from one that is: a bracket of another kind, a bracket turned round,
or two neighbours exchanged, each equally often. Exchanged neighbours leave every count as it was, so that counting brackets by their kind
does not tell them: that is the null "by counts".

At each bracket the target is the bracket that closes the innermost open one, or NONE where none is open; from the first mistake on it is
NO. The second question is scored at brackets of balanced sequences that leave one open.

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
END = -1
"""After the last bracket of a sequence that is shorter than others; no token."""
EDITS = ("kind", "direction", "exchange")
EVALUATION_SEED = 202
_ATTEMPTS = 100
"""At an edit, before another one is made."""
_BLOCK = 64
"""Batches that are made together."""


@dataclasses.dataclass(frozen=True)
class BracketsConfig(TaskConfig):
    """Balanced brackets of three kinds."""

    name: str = "brackets"
    lengths: tuple[int, int] = (4, 40)
    """Shortest and longest sequence that is trained on, in brackets; each even length between is equally likely."""
    max_depth: int = 4
    """Most brackets that are open at once, at least 2."""
    trace: float = 0.5
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


def balanced_brackets(rng: np.random.Generator, lengths: np.ndarray, max_depth: int) -> np.ndarray:
    """Balanced sequences of even lengths [E], as [E, T] int32 with END after their last bracket; of depth 2 at least and ``max_depth``
    at most."""
    brackets, left = np.full((len(lengths), int(lengths.max(initial=0))), END, np.int32), np.arange(len(lengths))
    while len(left):
        drawn, deepest = _walk(rng, lengths[left], max_depth)
        deep = deepest >= 2
        brackets[left[deep], : drawn.shape[1]] = drawn[deep]
        left = left[~deep]
    return brackets


def _walk(rng: np.random.Generator, lengths: np.ndarray, max_depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Balanced sequences [E, T], and the greatest depth of each."""
    count, longest = len(lengths), int(lengths.max())
    brackets = np.full((count, longest), END, np.int32)
    stack = np.zeros((count, max_depth + 1), np.int32)
    depth, deepest, row = np.zeros(count, np.int64), np.zeros(count, np.int64), np.arange(count)
    coins, kinds = rng.random((longest, count)) < 0.5, rng.integers(0, KINDS, (longest, count), dtype=np.int32)
    for t in range(longest):
        there = t < lengths
        opens = (coins[t] | (depth == 0)) & (depth < np.minimum(max_depth, lengths - t))
        brackets[:, t] = np.where(there, np.where(opens, kinds[t], KINDS + stack[row, np.maximum(depth - 1, 0)]), END)
        # What a bracket that closes leaves above the top of the stack is never read.
        stack[row, depth] = kinds[t]
        depth += np.where(there, np.where(opens, 1, -1), 0)
        deepest = np.maximum(deepest, depth)
    return brackets, deepest


class Reading(NamedTuple):
    """What a parser makes of sequences, each [E, T] after every bracket."""

    depth: np.ndarray
    """Open brackets."""
    closing: np.ndarray
    """int32, the bracket that closes the innermost open one, or NONE."""
    intact: np.ndarray
    """bool, whether there was no mistake so far."""


def parse(brackets: np.ndarray) -> Reading:
    """Read brackets [E, T] with a stack. At END all stays as it is."""
    count, length = brackets.shape
    stack = np.zeros((count, length + 1), np.int32)
    depth, intact, row = np.zeros(count, np.int64), np.ones(count, bool), np.arange(count)
    depths, closing = np.zeros((count, length), np.int64), np.full((count, length), NONE, np.int32)
    unbroken = np.zeros((count, length), bool)
    for t in range(length):
        bracket = brackets[:, t]
        opens, closes = (bracket >= 0) & (bracket < KINDS), bracket >= KINDS
        top = stack[row, np.maximum(depth - 1, 0)]
        intact = intact & (~closes | ((depth > 0) & (bracket == KINDS + top)))
        stack[row, depth] = bracket  # above the top unless it opens
        depth = np.maximum(depth + opens - closes, 0)
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
    lengths = (brackets != END).sum(axis=1)
    for attempt in range(_ATTEMPTS + 1):
        if attempt == _ATTEMPTS:
            edit[left] = EDITS.index("kind")  # which unbalances every sequence
        rows, row = brackets[left], np.arange(len(left))
        exchange = edit[left] == EDITS.index("exchange")
        at = rng.integers(0, lengths[left] - exchange)
        here = rows[row, at]
        other = here - here % KINDS + (here % KINDS + rng.integers(1, KINDS, len(left))) % KINDS
        turned = (here + KINDS) % (2 * KINDS)
        after = np.minimum(at + 1, lengths[left] - 1)
        changed = rows.copy()
        changed[row, at] = np.where(exchange, rows[row, after], np.where(edit[left] == EDITS.index("kind"), other, turned))
        changed[row[exchange], after[exchange]] = here[exchange]
        broken = ~is_balanced(changed)
        brackets[left[broken]] = changed[broken]
        left = left[~broken]
    return brackets, edit


def sample(rng: np.random.Generator, count: int, length: int, max_depth: int) -> Sequences:
    """Sequences of one length, the first half of them balanced."""
    brackets = balanced_brackets(rng, np.full(count, length), max_depth)
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
        self._blocks: dict[int, tuple[np.ndarray, ...]] = {}

    def batch(self, step: int) -> Batch:
        """Sequences of random lengths, of each balanced one and one that is not; padded at their ends."""
        block, place = divmod(step, _BLOCK)
        if block not in self._blocks:
            self._blocks = {block: self._block(block)}
        rows = slice(place * self.batch_size, (place + 1) * self.batch_size)
        tokens, targets, answer, weights, valid = (array[rows] for array in self._blocks[block])
        return Batch(tokens, targets, answer, weights, valid, np.zeros_like(valid))

    def _block(self, block: int) -> tuple[np.ndarray, ...]:
        """The rows of _BLOCK batches, which are made together: most of the time goes to the loops over places."""
        rng, (low, high) = batch_rng(self.seed, block), self.config.lengths
        half = -(-self.batch_size // 2)
        lengths = np.repeat(rng.integers(low // 2, high // 2 + 1, _BLOCK * half) * 2, 2)
        brackets = np.full((len(lengths), high), END, np.int32)
        drawn = balanced_brackets(rng, lengths, self.config.max_depth)
        brackets[:, : drawn.shape[1]] = drawn
        brackets[1::2], _ = edited(rng, brackets[1::2], rng.integers(0, len(EDITS), len(lengths) // 2))
        arrays = self.encode(brackets, np.arange(len(lengths)) % 2 == 0)
        # An odd batch leaves its last partner out.
        kept = np.arange(len(lengths)) % (2 * half) < self.batch_size
        return tuple(array[kept] for array in arrays)

    def encode(self, brackets: np.ndarray, balanced: np.ndarray) -> tuple[np.ndarray, ...]:
        """Tokens, targets, answer, loss weights and valid, each [E, T + 1], of brackets [E, T] and balanced [E]."""
        reading, (count, length) = parse(brackets), brackets.shape
        end, row = (brackets != END).sum(axis=1), np.arange(count)
        there = np.arange(length) < end[:, None]
        tokens, targets = (np.full((count, length + 1), PADDING, np.int32) for _ in range(2))
        tokens[:, :-1], tokens[row, end] = np.where(there, brackets, PADDING), QUERY
        targets[:, :-1] = np.where(there, np.where(reading.intact, reading.closing, NO), PADDING)
        targets[row, end] = np.where(balanced, YES, NO)
        answer, weights = (np.zeros((count, length + 1), np.float32) for _ in range(2))
        answer[row, end] = weights[row, end] = 1
        weights[:, :-1] += self.config.trace * there
        return tokens, targets, answer, weights, np.arange(length + 1) <= end[:, None]

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
