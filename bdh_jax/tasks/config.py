"""Settings that every task has."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Base of every task's own configuration. ``name`` selects the task in ``bdh_jax.tasks``."""

    name: str = ""
