"""Ladders: a context is read, then asked about in questions of growing difficulty, which are not written (``Batch.write``).

    copy        x1 x2 … xn  k k … k                    the i-th of n questions: xi. Rung k: n = 2k
    binding     a b ; c 5 ; b c ; …   a                M chains of K links, their links shuffled: which value ends the chain of a? Rung k: it is k
                                                       links away
    ordering    a b ; c d ; ? a ; b c ; …   3          one chain a < b < c < …, its links shuffled, the first item marked: which is the third?
                                                       Rung k: the k-th

Every question is one token, and sees the context alone: since questions are not written, none sees another.

* copy: letters are drawn one by one from 16, with repetition; a question says of which rung it is. Chance 1/16, of who knows nothing of the context.
  Who knows its letters and not their places names the one that is most frequent: "most_frequent" is the share that is right by that, counted in the
  sequences that are scored. In binding every value stands once in a context, in ordering every item that is asked for twice.
* binding: all variables and values of a sequence are different, each variable but the first of a chain stands in two links, each value in one;
  every value is the answer equally often. Chance 1/M, of who knows the values and not whose they are.
* ordering: the chain has 2K items, all different, each but the last stands in two links (of the first one is the mark's). Only the first K are asked for,
  so that none is nearer to the end than to the mark. Chance 1/2K, of who knows the items and not their order.

The ceiling is 1 everywhere: every question has one answer, which the context fixes.

Axis letters: E sequences, T time, Q questions, K rungs, M chains, B batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from bdh_jax.config import ConfigError, check_types, require, require_choice
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.recall import batch_rng
from bdh_jax.tasks.scores import Evaluation, Score
from bdh_jax.tasks.scoring import ROWS, Predict

Ladder = Literal["copy", "binding", "ordering"]
PADDING, SEPARATOR, MARK = range(3)
"""Token ids of their own. Numbers from 1 to K follow, then letters, then variables."""
LETTERS = 16
"""Letters of copy, and values of binding."""
EVALUATION_SEED = 103
PER_RUNG = 2
"""Letters that a rung of copy adds."""


@dataclasses.dataclass(frozen=True)
class LadderConfig(TaskConfig):
    """Questions of growing difficulty about a context."""

    name: str = "ladder"
    ladder: Ladder = "binding"
    """"copy", "binding" or "ordering"."""
    rungs: int = 8
    """K, the hardest rung: of binding and ordering, how many links away an answer is."""
    trained: int | None = None
    """The hardest rung that is trained on, of contexts that are as large as those of all rungs; None: all are."""
    chains: int = 3
    """M, of binding."""
    variables: int = 48
    """Names that items of binding and ordering are drawn from."""
    evaluation_sequences: int = 512
    """Sequences that each rung is scored on."""

    def __post_init__(self) -> None:
        check_types(self)
        require_choice("task.ladder", self.ladder, Ladder)
        require(self.rungs >= 1, f"task.rungs={self.rungs} must be at least 1")
        require(
            self.trained is None or 1 <= self.trained <= self.rungs,
            f"task.trained={self.trained} must lie in [1, task.rungs = {self.rungs}], or be None for all rungs",
        )
        require(
            2 <= self.chains <= LETTERS, f"task.chains={self.chains} must lie in [2, {LETTERS}], the values that there are"
        )
        require(
            self.ladder == "copy" or self.items <= self.variables,
            f"task.variables={self.variables} are fewer than the {self.items} items of a sequence with task.rungs={self.rungs}",
        )
        require(self.evaluation_sequences >= 1, f"task.evaluation_sequences={self.evaluation_sequences} must be at least 1")

    @property
    def items(self) -> int:
        """Items of a context: letters, variables, or what is ordered."""
        if self.ladder == "copy":
            return PER_RUNG * self.rungs
        return self.chains * self.rungs if self.ladder == "binding" else 2 * self.rungs

    @property
    def context(self) -> int:
        """Tokens of the longest context."""
        return self.items if self.ladder == "copy" else 3 * self.items

    @property
    def hardest(self) -> int:
        """The hardest rung that is trained on."""
        return self.rungs if self.trained is None else self.trained

    @property
    def vocab_size(self) -> int:
        """V: ids of their own, numbers, letters, variables."""
        return self.first_variable + self.variables

    @property
    def first_letter(self) -> int:
        """Id of the first letter."""
        return MARK + 1 + self.rungs

    @property
    def first_variable(self) -> int:
        """Id of the first variable."""
        return self.first_letter + LETTERS

    @property
    def chance(self) -> float:
        """Share that is right by chance: of binding and ordering, of who knows the answers that a context holds; of copy, all letters that there are."""
        return {"copy": 1 / LETTERS, "binding": 1 / self.chains, "ordering": 1 / self.items}[self.ladder]

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`; all ladders have the same ids."""
        return f"those of ladders with {self.rungs} rungs, {LETTERS} letters and {self.variables} variables"

    def questions(self, hardest: int) -> int:
        """Most questions of a sequence, up to some rung."""
        return PER_RUNG * hardest if self.ladder == "copy" else hardest

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Ladders:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        del data
        return Ladders(self, seed, batch_size)


class Sequences(NamedTuple):
    """Contexts with questions.

    Attributes:
      tokens: [E, T] int32, context, questions, padding.
      answers: [E, T] int32, the answer where there is a question.
      rung: [E, T] int32, of a question; 0 elsewhere.
      valid: [E, T] bool, False for padding.
      write: [E, T] bool, False for questions.
    """

    tokens: np.ndarray
    answers: np.ndarray
    rung: np.ndarray
    valid: np.ndarray
    write: np.ndarray


def sequences(config: LadderConfig, rng: np.random.Generator, count: int, rungs: np.ndarray) -> Sequences:
    """Draw sequences.

    Args:
      config: of the task.
      rng: draws them.
      count: E.
      rungs: [Q] ints. Of binding and ordering every sequence asks one question of each, in random order; of copy every sequence has the length
        of one of them.
    """
    if config.ladder == "copy":
        return _copy(config, rng, count, rungs)
    draw = _binding if config.ladder == "binding" else _ordering
    names = rng.permuted(np.tile(np.arange(config.variables), (count, 1)), axis=1)[:, : config.items]
    links, asked, answers = draw(config, rng, names + config.first_variable, rungs)
    links = _shuffled(rng, links)
    order = rng.permuted(np.tile(np.arange(len(rungs)), (count, 1)), axis=1)
    asked, answers, rung = (np.take_along_axis(a, order, axis=1) for a in (asked, answers, np.tile(rungs, (count, 1))))
    context = np.concatenate([links, np.full_like(links[..., :1], SEPARATOR)], axis=-1).reshape(count, -1)
    nothing = np.zeros_like(context)
    tokens, answers, rung = (
        np.concatenate(pair, axis=1).astype(np.int32) for pair in ((context, asked), (nothing, answers), (nothing, rung))
    )
    return Sequences(tokens, answers, rung, np.ones(tokens.shape, bool), rung == 0)


def _shuffled(rng: np.random.Generator, links: np.ndarray) -> np.ndarray:
    """[E, F, 2] with the links of each sequence in an order of its own."""
    order = rng.permuted(np.tile(np.arange(links.shape[1]), (len(links), 1)), axis=1)
    return np.take_along_axis(links, order[..., None], axis=1)


def _binding(
    config: LadderConfig, rng: np.random.Generator, names: np.ndarray, rungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Links [E, F, 2], what is asked [E, Q] and the answers [E, Q]."""
    count, chains = len(names), config.chains
    values = rng.permuted(np.tile(np.arange(LETTERS), (count, 1)), axis=1)[:, :chains] + config.first_letter
    chain = np.concatenate([names.reshape(count, chains, config.rungs), values[..., None]], axis=2)
    links = np.stack([chain[:, :, :-1], chain[:, :, 1:]], axis=-1).reshape(count, -1, 2)
    which = rng.integers(0, chains, (count, len(rungs)))
    rows = np.arange(count)[:, None]
    return links, chain[rows, which, config.rungs - rungs], values[rows, which]


def _ordering(
    config: LadderConfig, rng: np.random.Generator, names: np.ndarray, rungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Links [E, F, 2], what is asked [E, Q] and the answers [E, Q]; the mark's link is first among the links."""
    del config, rng
    chain = np.concatenate([np.full_like(names[:, :1], MARK), names], axis=1)
    links = np.stack([chain[:, :-1], chain[:, 1:]], axis=-1)
    return links, np.broadcast_to(MARK + rungs, (len(names), len(rungs))), chain[:, rungs]


def _copy(config: LadderConfig, rng: np.random.Generator, count: int, rungs: np.ndarray) -> Sequences:
    """Letters, as many questions as there are letters, padding up to the length of the hardest rung."""
    rung = rng.choice(rungs, size=count)[:, None]
    length = PER_RUNG * rung
    width = config.items
    letters = rng.integers(0, LETTERS, (count, width)) + config.first_letter
    time = np.arange(2 * width)[None]
    asked, valid = (time >= length) & (time < 2 * length), time < 2 * length
    answers = np.take_along_axis(letters, np.clip(time - length, 0, width - 1), axis=1)
    context = np.take_along_axis(letters, np.minimum(np.broadcast_to(time, answers.shape), width - 1), axis=1)
    tokens = np.select([asked, valid], [np.broadcast_to(MARK + rung, asked.shape), context], PADDING)
    return Sequences(
        tokens.astype(np.int32),
        np.where(asked, answers, 0).astype(np.int32),
        np.where(asked, rung, 0).astype(np.int32),
        valid,
        ~asked,
    )


class Ladders(TaskBase):
    """A ladder as a task."""

    accuracy_name = "right"

    def __init__(self, config: LadderConfig, seed: int, batch_size: int):
        self.config, self.seed, self.batch_size = config, seed, batch_size
        self.vocab_size = config.vocab_size
        self.most_answers = config.questions(config.hardest)
        self.sequence_length = config.context + (config.items if config.ladder == "copy" else self.most_answers)

    def batch(self, step: int) -> Batch:
        """Sequences with questions of every rung that is trained on; what counts are the answers."""
        rungs = np.arange(1, self.config.hardest + 1)
        drawn = sequences(self.config, batch_rng(self.seed, step), self.batch_size, rungs)
        answer = (drawn.rung > 0).astype(np.float32)
        reset = np.zeros(drawn.valid.shape, bool)
        return Batch(drawn.tokens, drawn.answers, answer, answer, drawn.valid, reset, write=drawn.write)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Share of questions that are answered right, by rung; "chance" stands beside it, and of copy "most_frequent". ``primary`` is the mean over
        all rungs.

        Raises:
          ConfigError: as :func:`said`.
        """
        config, rungs, found, common = self.config, np.arange(1, self.config.rungs + 1), {}, {}
        # A sequence of copy has one length; others ask about every rung.
        for of_set in np.split(rungs, len(rungs)) if config.ladder == "copy" else [rungs]:
            drawn = self.evaluation_set(of_set)
            right = said(predict, drawn) == drawn.answers
            found |= {int(rung): right[drawn.rung == rung] for rung in of_set}
            if config.ladder == "copy":
                common[int(of_set[0])] = most_frequent(drawn)
        rows = tuple(
            Score(
                f"rung{rung}",
                count=config.evaluation_sequences,
                accuracy=float(right.mean()),
                credit=float(right.mean()),
                ceiling=1.0,
                extra={"chance": config.chance} | ({"most_frequent": common[rung]} if rung in common else {}),
            )
            for rung, right in sorted(found.items())
        )
        primary = sum(row.accuracy for row in rows) / len(rows)
        return Evaluation(rows=rows, primary=primary, note=f"accuracy: of questions; chance {config.chance:.3f}")

    def evaluation_set(self, rungs: np.ndarray) -> Sequences:
        """The sequences that some rungs are scored on, the same for every seed."""
        rng = np.random.default_rng([EVALUATION_SEED, *(int(rung) for rung in rungs)])
        return sequences(self.config, rng, self.config.evaluation_sequences, rungs)


def most_frequent(drawn: Sequences) -> float:
    """Share of the questions of copy that are right if the answer is always the letter that is most frequent in the context.

    Args:
      drawn: sequences of one length.
    """
    answers = drawn.answers[drawn.rung > 0].reshape(len(drawn.answers), -1)
    return float((answers[:, :, None] == answers[:, None, :]).sum(axis=-1).max(axis=-1).mean() / answers.shape[1])


def said(predict: Predict, drawn: Sequences) -> np.ndarray:
    """Most likely token of every position, [E, T]; −1 where a position that is no question has logits that are not finite.

    Args:
      predict: tokens, valid [B, T] and ``write=`` [B, T] → logits [B, T, V].
      drawn: sequences.

    Raises:
      ConfigError: if a question has logits that are not finite, of which none is the largest.
    """
    count, parts = len(drawn.tokens), []
    rows = min(ROWS, -(-count // 8) * 8)
    for first in range(0, count, rows):
        index = np.minimum(np.arange(first, first + rows), count - 1)
        logits = np.asarray(predict(drawn.tokens[index], drawn.valid[index], write=drawn.write[index]))
        finite = np.isfinite(logits).all(axis=-1)
        for row, place in np.argwhere(~finite & (drawn.rung[index] > 0))[:1]:
            rung, questions = drawn.rung[index[row], place], (~drawn.write[index[row]]).sum()
            raise ConfigError(
                f"the logits of sequence {index[row]}, position {place}, a question of rung {rung}, are not finite: model.most_thinking must be None "
                f"or at least the {questions} questions of a sequence, or else the weights are not finite"
            )
        parts.append(np.where(finite, logits.argmax(axis=-1), -1))
    return np.concatenate(parts)[:count]


CONFIG = LadderConfig
