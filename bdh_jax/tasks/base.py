"""What a task is: batches to train on, and an evaluation that knows its own ceiling.

Axis letters: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from rich import box
from rich.table import Table

from bdh_jax.tasks.config import TaskConfig
from bdh_jax.tasks.scoring import Predict


class Batch(NamedTuple):
    """One training batch of NumPy arrays, each [B,T]. A row may hold several episodes, and padding.

    ``fill`` has a B of its own; its targets and weights are not looked at.
    """

    tokens: np.ndarray
    """int32 input."""
    targets: np.ndarray
    """int32, what is to be predicted at each position. Every valid position has a target; elsewhere it is a padding id."""
    answer: np.ndarray
    """float32, 1 where an answer token is predicted, else 0."""
    weights: np.ndarray
    """float32 loss weights chosen by the task."""
    valid: np.ndarray
    """bool, False for padding."""
    reset: np.ndarray
    """bool, True at the first token of every episode of a row but its first."""
    fill: Batch | None = None
    """Episodes that are consolidated into the synapse first, for this batch alone (consolidation-aware training)."""


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of one evaluation set of questions with answers. All numbers but ``count`` are fractions."""

    COLUMNS: ClassVar[dict[str, str]] = {
        "accuracy": "accuracy",
        "credit": "credit",
        "ceiling": "ceiling",
        "ratio": "credit ÷ ceiling",
    }
    """Number → its heading in a table."""
    COUNTED: ClassVar[str] = "sequences"
    LOGGED: ClassVar[str] = "credit"
    """The number that a line of the log shows."""
    COMPARED: ClassVar[str] = "ratio"
    """The number that is listed seed by seed."""

    name: str
    count: int
    """Sequences scored."""
    accuracy: float
    """Share of sequences whose answer was the expected one."""
    credit: float
    """Accuracy with luck taken out: what the given answers earn on average over all that the sequence leaves open."""
    ceiling: float
    """The best credit any causal model can reach on these very sequences."""
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    """Further numbers of the task, by name."""

    @property
    def ratio(self) -> float:
        """credit ÷ ceiling, in [0, 1]."""
        return self.credit / self.ceiling

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, ``ratio`` included."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


@dataclasses.dataclass(frozen=True)
class TextScore:
    """How well a text is predicted, token after token."""

    COLUMNS: ClassVar[dict[str, str]] = {
        "bits_per_byte": "bits per byte",
        "loss": "nats per token",
        "accuracy": "accuracy",
    }
    COUNTED: ClassVar[str] = "bytes"
    LOGGED: ClassVar[str] = "bits_per_byte"
    COMPARED: ClassVar[str] = "bits_per_byte"

    name: str
    count: int
    """Bytes predicted."""
    bits_per_byte: float
    """Bits by which an arithmetic coder with these predictions would write the text, per byte of it."""
    loss: float
    """Mean cross-entropy of a token in nats."""
    accuracy: float
    """Share of tokens that were the most likely one."""
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    """Further numbers, by name."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return dataclasses.asdict(self)


AnyScore = Score | TextScore


def read_score(values: Mapping[str, Any]) -> AnyScore:
    """The score that ``to_dict`` made ``values`` of."""
    kind = TextScore if "bits_per_byte" in values else Score
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a task says of a model. All rows are of one kind."""

    rows: tuple[AnyScore, ...]
    primary: float
    """In [0, 1], larger is better; decides which checkpoint is the best."""
    note: str = ""
    """Printed under the table."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {"primary": self.primary, "rows": [row.to_dict() for row in self.rows]}

    def table(self, title: str | None = None) -> Table:
        """The scores as a table that fits 80 columns, one row a set."""
        kind = type(self.rows[0])
        extras = list(dict.fromkeys(key for row in self.rows for key in row.extra))
        table = Table(title=title, caption=self.note or None, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("set")
        for header in (kind.COUNTED, *kind.COLUMNS.values()):
            table.add_column(header, justify="right")
        for key in extras:
            table.add_column(key.replace("_", " "), justify="right")
        for row in self.rows:
            numbers = [getattr(row, name) for name in kind.COLUMNS]
            cells = [_fraction(x) for x in numbers] + [_fraction(row.extra[k]) if k in row.extra else "" for k in extras]
            table.add_row(row.name, str(row.count), *cells)
        return table


class Task(Protocol):
    """A task, made by :func:`bdh_jax.tasks.make_task` from its configuration, a seed and a batch size."""

    config: TaskConfig
    vocab_size: int
    sequence_length: int
    """T of the training batches."""
    accuracy_name: str
    """What the share of right answers in training is called: "recall", say."""

    def batch(self, step: int) -> Batch:
        """The training batch of a step: a pure function of the task's seed and ``step``."""
        ...

    def evaluate(self, predict: Predict) -> Evaluation:
        """Score ``predict``, which is called with few distinct shapes; B is a multiple of 8."""
        ...


def batches(task: Task, start: int, end: int) -> Iterator[Batch]:
    """The training batches of steps ``start`` … ``end`` − 1, made ahead by a task that has ``prefetch``."""
    prefetch = getattr(task, "prefetch", None)
    return (task.batch(step) for step in range(start, end)) if prefetch is None else prefetch(start, end)


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


def _fraction(value: float) -> str:
    return f"{value:.4f}" if value == 0 or not abs(value) < 1e-4 else f"{value:.1e}"
