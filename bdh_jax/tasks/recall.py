"""What the recall tasks share: checks of what is asked for, randomness of a batch, evaluation sets and their scores.

Axis letters: E episodes, P pairs, T time, A tokens of an answer, B batch, V vocabulary.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.config import ConfigError
from bdh_jax.config.seeds import whole_seed
from bdh_jax.tasks.packing import Encoded
from bdh_jax.tasks.scores import Score
from bdh_jax.tasks.scoring import Predict, answer_logits, answer_swap, autoregressive, ceiling, credit


def check_sets(field: str, names: Sequence[str], literal: Any, *, distinct: bool) -> None:
    """Check a field of a task's configuration that names sets.

    Args:
      field: its name, for the message.
      names: its value.
      literal: the ``Literal`` of the sets that exist.
      distinct: refuse a set that is named twice.

    Raises:
      ConfigError: names the field, the value and the valid sets.
    """
    valid = typing.get_args(literal)
    unknown = [name for name in names if name not in valid]
    if unknown or not names:
        problem = f"{unknown[0]!r} is not a set" if unknown else "no set is named"
        raise ConfigError(f"task.{field}={names!r}: {problem}; valid sets: {', '.join(valid)}")
    if distinct and len(set(names)) < len(names):
        raise ConfigError(f"task.{field}={names!r} names a set twice")


def check_evaluation_sequences(count: int, published: int) -> None:
    """Check how many sequences of each published set are to be scored.

    Raises:
      ConfigError: if the set does not hold so many.
    """
    if not 1 <= count <= published:
        raise ConfigError(f"task.evaluation_sequences={count} must lie in 1 … {published}, the size of the published sets")


def batch_rng(seed: int, step: int) -> np.random.Generator:
    """The randomness of a training batch: a stream of its own for each (seed, step)."""
    # Philox turns any two different keys into independent streams.
    return np.random.Generator(np.random.Philox(key=np.array([whole_seed(seed, below=2**64), step], np.uint64)))


class EvaluationSet(NamedTuple):
    """What it takes to score one set, whatever generated it."""

    answers: np.ndarray
    """[E] int32, the expected values."""
    values: np.ndarray
    """[E,P] int32, the values that a sequence holds."""
    candidates: np.ndarray
    """[E,P] bool, which of them the query may mean."""
    encoded: Encoded
    positions: np.ndarray
    """[E,A] int, where the answer's tokens are predicted."""
    swapped: np.ndarray | None
    """[E,T] int32, the input with another answer in place of the true one; None if the input holds no answer."""


def score_set(
    name: str, data: EvaluationSet, predict: Predict, *, decode: Callable[[np.ndarray], np.ndarray], padding: int
) -> Score:
    """Score a model on one set; see :meth:`bdh_jax.tasks.nback.NBack.evaluate` for what is scored.

    Args:
      name: of the set.
      data: the set.
      predict: tokens [B,T] int32, valid [B,T] bool → logits [B,T,V].
      decode: answer tokens [E,A] → values [E] int32, −1 for what is no value.
      padding: id of tokens where there is no episode.

    Returns:
      The score.
    """
    tokens, targets, _, valid = data.encoded
    values = decode(autoregressive(predict, tokens, valid, data.positions, padding=padding))
    extra = {}
    if data.swapped is not None:
        logits = answer_logits(predict, tokens, valid, data.positions)
        right = logits.argmax(axis=-1) == np.take_along_axis(targets, data.positions, axis=1)
        swap = answer_swap(predict, tokens, data.swapped, valid, data.positions, reference=logits)
        extra = {
            "teacher_forced": float(right.all(axis=1).mean()),
            "swap_unchanged": swap.unchanged,
            "swap_change": swap.change,
        }
    return Score(
        name=name,
        count=len(values),
        accuracy=float((values == data.answers).mean()),
        credit=float(credit(values, data.values, data.candidates).mean()),
        ceiling=float(ceiling(data.values, data.candidates).mean()),
        extra=extra,
    )
