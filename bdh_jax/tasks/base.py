"""What a task is: batches to train on, and an evaluation that knows its own ceiling.

A task of one's own is a :class:`TaskConfig` and a :class:`TaskBase` (docs/how-to/task.md).

Axis letters: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from bdh_jax.config import ConfigError
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks.scores import Evaluation
from bdh_jax.tasks.scoring import Predict


class Batch(NamedTuple):
    """One training batch of NumPy arrays, each [B,T]. A row may hold several episodes, and padding."""

    tokens: np.ndarray
    """int32 input."""
    targets: np.ndarray
    """int32, what is to be predicted at each position. Every valid position has a target; elsewhere it is a padding id."""
    answer: np.ndarray
    """float32, 1 where an answer token is predicted, else 0."""
    loss_weights: np.ndarray
    """float32, chosen by the task."""
    valid: np.ndarray
    """bool, False for padding."""
    reset: np.ndarray
    """bool, True at the first token of every episode of a row but its first."""
    extra: Any = None
    """Arrays [B', ...] that a training hook of this task reads, in any pytree; the step itself does not look at them."""
    write: np.ndarray | None = None
    """bool, False for tokens that read and are not written: the memory is frozen there. None: all are written."""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Base of every task's own configuration."""

    name: str = ""
    """Finds this class again when a run's folder is read: a name of ``bdh_jax.tasks.TASKS``, or ``module:Class`` for one's own."""

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Task:
        """The task that this configuration describes.

        Args:
          seed: decides every training batch; evaluation sets have seeds of their own.
          batch_size: rows of a training batch.
          data: the text of a task that reads one, by default tiny Shakespeare; no other looks at it.

        Raises:
          ConfigError: if there is no such task.
          DataError: if the text cannot be read.
        """
        raise ConfigError(f"task.name={self.name!r}: {type(self).__name__} makes no task; its class has to define make")

    def shapes(self, rows: int) -> Batch:
        """Shapes of a batch of so many rows, as a training step is given it: masks that mask nothing are None. A task whose text has to be
        read first says them itself.

        Raises:
          ConfigError: as :meth:`make`.
        """
        batch = self.make(seed=0, batch_size=rows).batch(0)
        masks = {
            "valid": None if np.all(batch.valid) else batch.valid,
            "reset": batch.reset if np.any(batch.reset) else None,
        }
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch._replace(**masks))

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """What the token ids stand for. A model knows nothing of ids that stood for something else in its training.

        Args:
          tokenizer: of a text.
        """
        return f"peculiar to {self.name!r}"

    @property
    def reads_text(self) -> bool:
        """Whether the tokens are those of a text, made by a tokenizer."""
        return False

    @property
    def rows_continue(self) -> bool:
        """Whether each row of a batch goes on where it stopped in the batch before, as ``train.carry_state`` needs."""
        return False

    @property
    def extra_rows(self) -> int:
        """B' of :attr:`Batch.extra`, which is spread over the mesh like a batch; 0 without."""
        return 0


class Task(Protocol):
    """Everything that is asked of a task. :class:`TaskBase` has the plain answers."""

    @property
    def config(self) -> TaskConfig:
        """What it was made of."""
        ...

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def sequence_length(self) -> int:
        """T of the training batches."""
        ...

    @property
    def accuracy_name(self) -> str:
        """What the share of right answers in training is called: "recall", say."""
        ...

    @property
    def may_reset(self) -> bool:
        """Whether some batches have resets and others none: then all keep their mask, and are one program."""
        ...

    @property
    def most_answers(self) -> int | None:
        """Answer tokens that a row of a batch holds at most, of a task that has few: training on them alone forms no other logits. None
        says nothing."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Of what is trained on besides the configuration, such as files; a run does not go on with another."""
        ...

    @property
    def files(self) -> Mapping[str, str]:
        """Name → content of what is kept in the run's folder, because it cannot be made again from the configuration."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Of a text."""
        ...

    def batch(self, step: int) -> Batch:
        """The training batch of a step: a pure function of the task's seed and ``step``."""
        ...

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """The training batches of steps ``start`` … ``end`` − 1; they may be made ahead."""
        ...

    def losses(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The loss of every position, [B,T], of logits [B,T,V]. It is traced, and weighted and summed by the training step."""
        ...

    def evaluate(self, predict: Predict) -> Evaluation:
        """Score ``predict``, which is called with few distinct shapes; B is a multiple of 8."""
        ...


class TaskBase:
    """A task without anything special. It lacks ``config``, ``vocab_size``, ``sequence_length``, ``batch`` and ``evaluate``."""

    accuracy_name: str = "accuracy"
    may_reset: bool = False
    most_answers: int | None = None
    fingerprint: str | None = None
    files: Mapping[str, str] = MappingProxyType({})
    tokenizer: Tokenizer | None = None

    def batches(self: Task, start: int, end: int) -> Iterator[Batch]:
        """Made one by one, when asked for."""
        return (self.batch(step) for step in range(start, end))

    def losses(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Cross-entropy in nats."""
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)


def check_tokens(tokens: Any, vocab_size: int) -> None:
    """Check that token ids lie in a vocabulary: indexing on an accelerator would clamp them in silence.

    Args:
      tokens: integers, of any shape.
      vocab_size: ids 0 … vocab_size − 1 exist.

    Raises:
      ValueError: names the first id that does not exist, its position and the vocabulary size.
    """
    tokens = np.asarray(tokens)
    bad = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        place = ", ".join(map(str, where))
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise ValueError(
            f"token id {int(tokens[where])} at position [{place}]{more} is outside the vocabulary: "
            f"vocab_size={vocab_size} has ids 0 to {vocab_size - 1}"
        )
