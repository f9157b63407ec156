"""All that a training is made of but its task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bdh_jax.config.seeds import whole_seed
from bdh_jax.models.base import Model, ModelConfig
from bdh_jax.parallel.mesh import MeshConfig
from bdh_jax.runs.folder import Record
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.hooks import HookFactory


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that a training of one seed is made of but its task.

    Raises:
      ConfigError: if the mesh does not divide the rows of a batch, or the seed is none.
    """

    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    hooks: tuple[HookFactory, ...] = ()
    """What is added to the step, in this order: all of it, that of ``train.hooks`` and consolidation too."""
    seed: int = 0
    measure: Callable[[Model], Callable[..., Any]] | None = None
    """model → ``measure(slow, tokens, valid, reset)`` → name → a number for each layer, which is logged with each evaluation. Of a task that
    says which tokens are written it is given ``write=`` as well."""
    record: Record = Record()
    """The configuration of which all this was made, for the folder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_seed(self.seed))
        self.train.check_mesh(self.mesh)
