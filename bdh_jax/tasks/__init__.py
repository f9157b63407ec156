"""Tasks, by name."""

from __future__ import annotations

from bdh_jax.data.config import DataConfig
from bdh_jax.data.load import load_text
from bdh_jax.tasks.base import Batch, Evaluation, Score, Task, TextScore, check_tokens
from bdh_jax.tasks.config import TaskConfig
from bdh_jax.tasks.counter import Counter, CounterConfig
from bdh_jax.tasks.facts import Facts, FactsConfig
from bdh_jax.tasks.nback import NBack, NBackConfig
from bdh_jax.tasks.scoring import Predict
from bdh_jax.tasks.text import Text, TextConfig

CONFIGS: dict[str, type[TaskConfig]] = {
    "nback": NBackConfig,
    "counter": CounterConfig,
    "facts": FactsConfig,
    "text": TextConfig,
}
"""Task name → its configuration class, for :func:`bdh_jax.config.convert.from_config_dict`."""

_TASKS: dict[type[TaskConfig], type] = {NBackConfig: NBack, CounterConfig: Counter, FactsConfig: Facts}


def make_task(config: TaskConfig, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Task:
    """Build the task that a configuration describes.

    Args:
      config: an instance of one of ``CONFIGS``' classes.
      seed: decides every training batch; evaluation sets have seeds of their own.
      batch_size: rows of a training batch.
      data: the text of a task that reads one, by default tiny Shakespeare; no other looks at it.

    Raises:
      DataError: if the text cannot be read.
      TypeError: for a configuration that belongs to no task.
    """
    if isinstance(config, TextConfig):
        return Text(config, load_text(data or DataConfig()), seed=seed, batch_size=batch_size)
    if type(config) not in _TASKS:
        raise TypeError(
            f"{type(config).__name__} belongs to no task; known: {', '.join(t.__name__ for t in CONFIGS.values())}"
        )
    return _TASKS[type(config)](config, seed=seed, batch_size=batch_size)


__all__ = [
    "CONFIGS",
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
    "Text",
    "TextConfig",
    "TextScore",
    "check_tokens",
    "make_task",
]
