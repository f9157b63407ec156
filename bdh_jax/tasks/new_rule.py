"""A new rule: a pair of symbols that was never trained on is shown a few times among distractors, then asked for.

A pair is an input symbol and an output symbol, one after the other. An episode shows its rule ``a b`` k times, in random places among
other pairs, each shown once, and single fillers; then ASK and a, and the target is b. ``a`` occurs nowhere else. Which pairs may be
shown in training is drawn once: of all pairs a share is held out, and the evaluation asks for those alone. So the answer is in no
weight, and a memory that keeps nothing of the episode is at chance.

Tokens: 0 … S − 1 input symbols, S … 2S − 1 output symbols, then fillers, ASK and padding.

Axis letters: E episodes, S symbols of either side, T time, B batch.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from bdh_jax.config import check_types, require
from bdh_jax.data.config import DataConfig
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.recall import batch_rng
from bdh_jax.tasks.scores import Evaluation, Score
from bdh_jax.tasks.scoring import Predict, answer_logits

HELD_OUT_SEED, EVALUATION_SEED = 303, 304


@dataclasses.dataclass(frozen=True)
class NewRuleConfig(TaskConfig):
    """Rules that were never trained on, shown in an episode."""

    name: str = "new_rule"
    symbols: int = 32
    """S, input symbols and as many output symbols."""
    held_out: float = 0.25
    """Share of the pairs that training never shows."""
    shown: tuple[int, ...] = (1, 2, 4, 8)
    """How often an episode shows its rule: each equally likely in training, and one evaluation set for each."""
    others: int = 6
    """Other pairs of an episode, with inputs of their own."""
    fillers: int = 4
    """Single tokens between pairs; there are as many filler tokens as S."""
    evaluation_sequences: int = 512
    """Episodes of each set."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.symbols >= 2, f"task.symbols={self.symbols} must be at least 2")
        per_input = round(self.held_out * self.symbols)
        require(
            1 <= per_input < self.symbols,
            f"task.held_out={self.held_out} must leave each of the {self.symbols} input symbols a pair to train on and one to ask for",
        )
        require(
            bool(self.shown) and min(self.shown) >= 1 and len(set(self.shown)) == len(self.shown),
            f"task.shown={self.shown} must be different numbers ≥ 1, at least one",
        )
        require(
            0 <= self.others < self.symbols,
            f"task.others={self.others} must lie in 0 … {self.symbols - 1}: each has an input symbol of its own",
        )
        require(self.fillers >= 0, f"task.fillers={self.fillers} must be ≥ 0")
        require(self.evaluation_sequences >= 1, f"task.evaluation_sequences={self.evaluation_sequences} must be at least 1")

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> NewRule:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return NewRule(self, seed, batch_size)

    @property
    def ask(self) -> int:
        """Id of ASK."""
        return 3 * self.symbols

    @property
    def length(self) -> int:
        """T of the longest episode."""
        return 2 * (max(self.shown) + self.others) + self.fillers + 2


def held_out_pairs(symbols: int, share: float) -> np.ndarray:
    """[S, S] bool: which pairs (input, output) are held out, of every input and every output equally many."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    rows, columns = rng.permutation(symbols), rng.permutation(symbols)
    circle = (np.arange(symbols)[:, None] + np.arange(symbols)[None]) % symbols < round(share * symbols)
    return circle[rows][:, columns]


class NewRule(TaskBase):
    """The new rule as a task."""

    accuracy_name = "recall"

    def __init__(self, config: NewRuleConfig, seed: int, batch_size: int):
        self.config, self.seed, self.batch_size = config, seed, batch_size
        self.padding = config.ask + 1
        self.vocab_size = config.ask + 2
        self.sequence_length = config.length
        self.held_out = held_out_pairs(config.symbols, config.held_out)

    def batch(self, step: int) -> Batch:
        """Episodes of pairs that may be trained on."""
        rng = batch_rng(self.seed, step)
        shown = rng.choice(np.array(self.config.shown), self.batch_size)
        tokens, answers = self.episodes(rng, shown, new=False)
        valid = tokens != self.padding
        last = valid.sum(axis=1) - 1
        targets = np.concatenate([tokens[:, 1:], np.full((len(tokens), 1), self.padding, np.int32)], axis=1)
        targets[np.arange(len(tokens)), last] = answers
        answer = np.zeros(tokens.shape, np.float32)
        answer[np.arange(len(tokens)), last] = 1
        return Batch(tokens, targets, answer, answer, valid, np.zeros_like(valid))

    def episodes(self, rng: np.random.Generator, shown: np.ndarray, *, new: bool) -> tuple[np.ndarray, np.ndarray]:
        """Episodes of one rule each.

        Args:
          rng: source of randomness.
          shown: [E] int, how often each shows its rule.
          new: whether the rules are held-out pairs; the other pairs never are.

        Returns:
          Tokens [E, T] int32, padded at their ends, and the answers [E] int32.
        """
        config = self.config
        count, symbols = len(shown), config.symbols
        inputs = rng.random((count, symbols)).argsort(axis=1)[:, : 1 + config.others]
        outputs = np.empty_like(inputs)
        outputs[:, 0] = _draw(rng, self.held_out if new else ~self.held_out, inputs[:, 0])
        for other in range(1, 1 + config.others):
            outputs[:, other] = _draw(rng, ~self.held_out, inputs[:, other])
        tokens = np.full((count, config.length), self.padding, np.int32)
        fillers = 2 * symbols + rng.integers(0, symbols, (count, config.fillers))
        for row in range(count):
            which = [*[0] * shown[row], *range(1, 1 + config.others), *[-1] * config.fillers]
            place = filler = 0
            for pair in rng.permutation(which):
                if pair < 0:
                    tokens[row, place] = fillers[row, filler]
                    place, filler = place + 1, filler + 1
                else:
                    tokens[row, place : place + 2] = inputs[row, pair], symbols + outputs[row, pair]
                    place += 2
            tokens[row, place : place + 2] = config.ask, inputs[row, 0]
        return tokens, (symbols + outputs[:, 0]).astype(np.int32)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Accuracy on held-out rules, one set for each number of times that they are shown ("shown1"), and on rules that training may have
        shown ("known1", shown once). The ceiling is 1; "chance" is 1/S. ``primary`` is the smallest score of held-out rules."""
        rows = tuple(self._score(name, predict) for name in self.evaluation_sets)
        return Evaluation(rows=rows, primary=min(row.ratio for row in rows if row.name.startswith("shown")))

    def _score(self, name: str, predict: Predict) -> Score:
        tokens, answers = self.evaluation_sets[name]
        valid = tokens != self.padding
        positions = valid.sum(axis=1, keepdims=True) - 1
        said = answer_logits(predict, tokens, valid, positions)[:, 0].argmax(axis=-1)
        accuracy = float((said == answers).mean())
        extra = {"chance": 1 / self.config.symbols}
        return Score(name, count=len(answers), accuracy=accuracy, credit=accuracy, ceiling=1.0, extra=extra)

    @functools.cached_property
    def evaluation_sets(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Name → tokens [E, T] and answers [E]."""
        config = self.config
        sets = {f"shown{shown}": (shown, True) for shown in config.shown} | {"known1": (1, False)}
        return {
            name: self.episodes(
                np.random.default_rng([EVALUATION_SEED, shown, new]),
                np.full(config.evaluation_sequences, shown),
                new=new,
            )
            for name, (shown, new) in sets.items()
        }


def _draw(rng: np.random.Generator, allowed: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """For each input [E] one of the outputs that allowed [S, S] has for it."""
    return np.where(allowed[inputs], rng.random((len(inputs), allowed.shape[1])), -1).argmax(axis=1)


CONFIG = NewRuleConfig
