"""Tasks: a file each, whose ``CONFIG`` is the class in the table ``TASKS`` under the file's name."""

from __future__ import annotations

from typing import Any

from bdh_jax.config import ConfigError
from bdh_jax.config.table import Table
from bdh_jax.tasks.base import Batch, Task, TaskBase, TaskConfig, check_tokens
from bdh_jax.tasks.counter import Counter, CounterConfig
from bdh_jax.tasks.facts import Facts, FactsConfig
from bdh_jax.tasks.nback import NBack, NBackConfig
from bdh_jax.tasks.scores import Evaluation, Score, TextScore
from bdh_jax.tasks.scoring import Predict
from bdh_jax.tasks.text import Text, TextConfig


def _check(entry: Any) -> None:
    if not (isinstance(entry, type) and issubclass(entry, TaskConfig)):
        raise ConfigError(f"{entry!r} is no configuration of a task: make it a subclass of bdh_jax.tasks.TaskConfig")


TASKS: Table[type[TaskConfig]] = Table("task", package="bdh_jax.tasks", attribute="CONFIG", check=_check)
"""Name → configuration class, which makes the task."""


__all__ = [
    "TASKS",
    "Batch",
    "Counter",
    "CounterConfig",
    "Evaluation",
    "Facts",
    "FactsConfig",
    "NBack",
    "NBackConfig",
    "Predict",
    "Score",
    "Task",
    "TaskBase",
    "TaskConfig",
    "Text",
    "TextConfig",
    "TextScore",
    "check_tokens",
]
