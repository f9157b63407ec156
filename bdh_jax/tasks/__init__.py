"""Tasks, by name."""

from __future__ import annotations

from bdh_jax.config import TaskConfig
from bdh_jax.evaluation.scoring import Predict
from bdh_jax.tasks.base import Batch, Evaluation, Score, Task, check_tokens
from bdh_jax.tasks.counter import Counter, CounterConfig
from bdh_jax.tasks.facts import Facts, FactsConfig
from bdh_jax.tasks.nback import NBack, NBackConfig

CONFIGS: dict[str, type[TaskConfig]] = {"nback": NBackConfig, "counter": CounterConfig, "facts": FactsConfig}
"""Task name → its configuration class, for :func:`bdh_jax.config.from_config_dict`."""

_TASKS: dict[type[TaskConfig], type] = {NBackConfig: NBack, CounterConfig: Counter, FactsConfig: Facts}


def make_task(config: TaskConfig, *, seed: int, batch_size: int) -> Task:
    """Build the task that a configuration describes.

    Args:
      config: an instance of one of ``CONFIGS``' classes.
      seed: decides every training batch; evaluation sets have seeds of their own.
      batch_size: rows of a training batch.

    Raises:
      TypeError: for a configuration that belongs to no task.
    """
    if type(config) not in _TASKS:
        raise TypeError(f"{type(config).__name__} belongs to no task; known: {', '.join(t.__name__ for t in _TASKS)}")
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
    "check_tokens",
    "make_task",
]
