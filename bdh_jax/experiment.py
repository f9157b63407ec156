"""An experiment: what a run is made of, and the checks across its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bdh_jax.config.base import require
from bdh_jax.config.convert import from_config_dict
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.data.config import DataConfig
from bdh_jax.models.config import BDHConfig, GPTConfig, ModelConfig
from bdh_jax.parallel.mesh import MeshConfig
from bdh_jax.tasks import CONFIGS
from bdh_jax.tasks.config import TaskConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: everything that decides its result."""

    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = BDHConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    consolidation: ConsolidationConfig = ConsolidationConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    seeds: tuple[int, ...] = ()
    """Several seeds: each runs in its own folder ``seed<k>`` of the workdir, and the table gives mean and spread."""

    def __post_init__(self):
        require(len(set(self.seeds)) == len(self.seeds), f"seeds={self.seeds} names a seed twice")
        require(min((self.seed, *self.seeds)) >= 0, f"seed={self.seed}, seeds={self.seeds} must not be negative")
        if isinstance(self.model, GPTConfig):
            require(self.mesh.neurons == 1, f"mesh.neurons={self.mesh.neurons}: a GPT has no neurons to spread; set it to 1")
            require(not self.train.carry_state, "train.carry_state=True: a GPT has no state to carry; set it to False")
            require(
                self.consolidation.function == "none",
                f"consolidation.function={self.consolidation.function!r}: a GPT has no fast weights to consolidate; set it to 'none'",
            )
        else:
            self._check_neurons()
        require(
            self.mesh.data == -1 or (self.train.batch_size // self.train.accumulation) % self.mesh.data == 0,
            f"mesh.data={self.mesh.data} does not divide the {self.train.batch_size // self.train.accumulation} sequences of a "
            f"slice (train.batch_size={self.train.batch_size}, train.accumulation={self.train.accumulation})",
        )
        filled = getattr(self.task, "fill_episodes", 0) if getattr(self.task, "fill_every", 0) else 0
        require(
            self.mesh.data == -1 or filled % self.mesh.data == 0,
            f"mesh.data={self.mesh.data} does not divide task.fill_episodes={filled}; change one of them",
        )
        require(
            not self.train.carry_state or getattr(self.task, "order", None) == "consecutive",
            "train.carry_state=True: rows of this task do not go on from batch to batch, so a state would leak into other text; set "
            'train.carry_state=False, or task.order="consecutive" of a text',
        )
        require(
            not self.train.carry_state or self.consolidation.function == "none",
            f"train.carry_state=True with consolidation.function={self.consolidation.function!r}: episodes that go on from step to "
            "step would be consolidated again and again; use one of them",
        )

    def _check_neurons(self) -> None:
        pairs = 2 if self.model.attention == "rope" else 1
        require(
            self.model.n_neurons // self.model.n_head % (pairs * self.mesh.neurons) == 0,
            f"mesh.neurons={self.mesh.neurons} does not divide the {self.model.n_neurons // self.model.n_head} neurons of a head "
            f"(model.n_neurons={self.model.n_neurons}, model.n_head={self.model.n_head})"
            + (" into even parts, and the rotary embedding pairs them" if pairs == 2 else ""),
        )
        require(
            self.mesh.neurons == 1 or not (self.model.fast.enabled and self.model.fast.has_gram),
            f'mesh.neurons={self.mesh.neurons} splits the rows that model.fast.rule="mesa" and model.fast.keep_gram need together; '
            "set it to 1",
        )


def task_class(values: Mapping[str, Any], path: str) -> type[TaskConfig]:
    """The configuration class of the task that a mapping names."""
    name = values.get("name")
    require(name in CONFIGS, f"{path}.name={name!r} is not a task. Valid tasks: {', '.join(sorted(CONFIGS))}")
    return CONFIGS[name]


def model_class(values: Mapping[str, Any], path: str) -> type[ModelConfig]:
    """The configuration class of the model that a mapping describes; without ``architecture`` it is a BDH."""
    architecture = values.get("architecture")
    require(architecture in (None, "gpt"), f"{path}.architecture={architecture!r} is not 'gpt'; leave it out for BDH")
    return BDHConfig if architecture is None else GPTConfig


KINDS = {TaskConfig: task_class, ModelConfig: model_class}
"""How to tell which class a part of an experiment is of."""


def experiment_from(values: Mapping[str, Any], path: str = "config") -> ExperimentConfig:
    """The experiment that a ``ConfigDict``, or a dict from JSON, describes.

    Raises:
      ConfigError: for an unknown key, a value that is ill-typed or out of range.
    """
    return from_config_dict(ExperimentConfig, values, path, kinds=KINDS)
