"""Ways to score answers: teacher-forced, autoregressively, by answer swap; credit and ceiling of ambiguous questions.

A ``predict`` function maps tokens [B,T] int32 and valid [B,T] bool to logits [B,T,V]. Answers are named by the positions
[E,A] at which their A tokens are predicted: token i of an answer is predicted at ``positions[:, i]`` and, if more tokens
follow, stands in the input at ``positions[:, i + 1]``.

Axis letters: E sequences, T time, A tokens of an answer, V vocabulary, P candidate positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.config import ConfigError

Predict = Callable[..., Any]
"""``predict(tokens [B,T] int32, valid [B,T] bool) -> logits [B,T,V]``, a NumPy or JAX array. More arguments are possible:
:func:`bdh_jax.training.step.make_predict`."""

ROWS = 256
"""Most rows a call of ``predict`` gets."""
# Rows of a call are a multiple of this, so that they divide over the devices of a host.
_ROW_MULTIPLE = 8


class AnswerSwap(NamedTuple):
    """What predictions do when the answer that stands in the input is replaced. A causal model has (1.0, 0.0)."""

    unchanged: float
    """Share of sequences none of whose compared predictions changed."""
    change: float
    """Largest |Δ logit| over all compared predictions."""


def answer_logits(predict: Predict, tokens: np.ndarray, valid: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Logits at the answers' positions, computed in calls of one and the same shape.

    Args:
      predict: see the module's docstring. It sees at most ``ROWS`` rows; the last call is filled up with copies.
      tokens: [E,T] int32.
      valid: [E,T] bool.
      positions: [E,A] int.

    Returns:
      [E,A,V] float32 (float64 if the logits are).

    Raises:
      ConfigError: if a logit of an answer is NaN or +∞, of which none is the largest. −∞ is a token that is ruled out.
    """
    count = len(tokens)
    calls = -(-count // ROWS)
    rows = -(-count // (calls * _ROW_MULTIPLE)) * _ROW_MULTIPLE
    parts = []
    for first in range(0, count, rows):
        index = np.minimum(np.arange(first, first + rows), count - 1)
        logits = np.asarray(predict(tokens[index], valid[index]))
        part = logits[np.arange(rows)[:, None], positions[index]]
        if not (part < np.inf).all():
            row, token, _ = np.argwhere(~(part < np.inf))[0]
            raise ConfigError(
                f"the logits of sequence {index[row]}, position {positions[index[row], token]}, are not finite, so that there is no answer to "
                "score: the weights are not finite, or the sequence is longer than the model bears; look at the run's losses, or ask for less"
            )
        parts.append(part.astype(np.promote_types(np.float32, part.dtype)))
    return np.concatenate(parts)[:count]


def teacher_forced(predict: Predict, tokens: np.ndarray, valid: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Most likely answer tokens when the true ones stand in the input.

    Args:
      predict: see the module's docstring.
      tokens: [E,T] int32, with the true answers.
      valid: [E,T] bool.
      positions: [E,A] int.

    Returns:
      [E,A] int32.
    """
    return answer_logits(predict, tokens, valid, positions).argmax(axis=-1).astype(np.int32)


def autoregressive(
    predict: Predict,
    tokens: np.ndarray,
    valid: np.ndarray,
    positions: np.ndarray,
    *,
    padding: int,
) -> np.ndarray:
    """Greedy answers of a model that sees nothing but the question and its own previous answer tokens.

    The answer and everything after it is removed from the input: the ids become ``padding`` and the positions invalid.
    Each of the A tokens takes one pass over all sequences, in the shape of ``tokens``.

    Args:
      predict: see the module's docstring.
      tokens: [E,T] int32.
      valid: [E,T] bool.
      positions: [E,A] int, consecutive along A.
      padding: id to put in place of what is not known yet.

    Returns:
      [E,A] int32.

    Raises:
      ValueError: if the positions of an answer are not consecutive.
    """
    if (np.diff(positions, axis=1) != 1).any():
        raise ValueError("the positions of an answer's tokens must be consecutive")
    time = np.arange(tokens.shape[1])
    tokens = np.where(time > positions[:, :1], padding, tokens).astype(tokens.dtype)
    answers = np.empty(positions.shape, np.int32)
    for i in range(positions.shape[1]):
        here = positions[:, i : i + 1]
        if i:
            np.put_along_axis(tokens, here, answers[:, i - 1 : i].astype(tokens.dtype), axis=1)
        answers[:, i : i + 1] = teacher_forced(predict, tokens, valid & (time <= here), here)
    return answers


def answer_swap(
    predict: Predict,
    tokens: np.ndarray,
    swapped: np.ndarray,
    valid: np.ndarray,
    positions: np.ndarray,
    *,
    reference: np.ndarray | None = None,
) -> AnswerSwap:
    """Replace answers in the input and see whether their own predictions move: they do if the model reads the future.

    Compared are those answer predictions before which (their own position included) the two inputs are the same.

    Args:
      predict: see the module's docstring.
      tokens: [E,T] int32, with the true answers.
      swapped: [E,T] int32, the same with other answers.
      valid: [E,T] bool.
      positions: [E,A] int.
      reference: ``answer_logits`` of ``tokens``, if at hand: saves computing them.

    Returns:
      The :class:`AnswerSwap`.

    Raises:
      ValueError: if some sequence was not changed, or was changed before its answer's first prediction.
    """
    differs = tokens != swapped
    first = np.where(differs.any(axis=1), differs.argmax(axis=1), tokens.shape[1])
    compared = positions < first[:, None]
    if not differs.any(axis=1).all():
        raise ValueError(f"sequence {int(differs.any(axis=1).argmin())} is the same in tokens and swapped")
    if not compared[:, 0].all():
        row = int(compared[:, 0].argmin())
        raise ValueError(f"sequence {row} was changed at position {first[row]}, before its answer is first predicted")
    if reference is None:
        reference = answer_logits(predict, tokens, valid, positions)
    logits = answer_logits(predict, swapped, valid, positions)
    same = (logits.argmax(axis=-1) == reference.argmax(axis=-1)) | ~compared
    return AnswerSwap(
        unchanged=float(same.all(axis=1).mean()), change=float(np.abs(logits - reference).max(axis=-1)[compared].max())
    )


def ceiling(values: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The best expected credit per sequence: the share of the most frequent value among the candidates.

    A question is ambiguous if it fits several positions equally well. No causal model can tell them apart, so this bounds
    every one, also one that knows how the sequences were drawn.

    Args:
      values: [E,P] int, the answer that each position would have.
      candidates: [E,P] bool, the positions that the question may mean; at least one per sequence.

    Returns:
      [E] float64 in (0, 1].
    """
    same = (values[:, :, None] == values[:, None, :]) & candidates[:, :, None] & candidates[:, None, :]
    return same.sum(axis=2).max(axis=1) / candidates.sum(axis=1)


def credit(answers: np.ndarray, values: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """What an answer earns on average over the positions that the question may mean; never above :func:`ceiling`.

    Args:
      answers: [E] int, one answer per sequence; an answer that is no value at all earns nothing.
      values: [E,P] int.
      candidates: [E,P] bool.

    Returns:
      [E] float64 in [0, 1].
    """
    return ((values == answers[:, None]) & candidates).sum(axis=1) / candidates.sum(axis=1)
