"""An experiment: what a run is made of, and the checks across its parts. Only commands, the sweep and the public ``load`` see all of it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_collections

from bdh_jax.analysis.contributions import make_contributions
from bdh_jax.config import ConfigError, check_types, require
from bdh_jax.config.convert import Values, from_config_dict
from bdh_jax.config.files import load_config
from bdh_jax.config.identity import HOW, WHERE, keys_of
from bdh_jax.config.seeds import whole_seed
from bdh_jax.console import show
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.models.base import ModelConfig
from bdh_jax.models.registry import MODELS
from bdh_jax.parallel.mesh import MeshConfig
from bdh_jax.runs.checkpoint import Which, load_slow, read_slow
from bdh_jax.runs.folder import (
    RESULTS,
    RUN,
    CheckpointError,
    Record,
    Summary,
    config_json,
    read_record,
    read_run,
    seed_folders,
)
from bdh_jax.runs.lock import only_writer
from bdh_jax.runs.older import in_todays_words, model_in_todays_words
from bdh_jax.tasks import TASKS, TaskConfig
from bdh_jax.tasks.base import Task
from bdh_jax.tasks.scores import results_table
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.hooks import consolidation_hook, named_hooks
from bdh_jax.training.init_from import trained_tokenizer
from bdh_jax.training.loop import train_in
from bdh_jax.training.made_run import write_made_run
from bdh_jax.training.seeds import train_seeds
from bdh_jax.training.setup import Setup
from bdh_jax.types import Slow

_BDH = MODELS.get("bdh", "config.model.architecture")
Kind = TypeVar("Kind", bound=ModelConfig)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: everything that decides its result."""

    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = dataclasses.field(default_factory=lambda: _BDH())
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    consolidation: ConsolidationConfig = ConsolidationConfig()
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(), metadata=HOW)
    seed: int = 0
    """Decides the initial weights, the batches and all that is drawn in training."""
    seeds: tuple[int, ...] = ()
    """Several seeds: each runs in its own folder ``seed<k>`` of the workdir, and the table gives mean and spread."""

    def __post_init__(self) -> None:
        check_types(self)
        require(len(set(self.seeds)) == len(self.seeds), f"seeds={self.seeds} names a seed twice")
        whole_seed(self.seed)
        for seed in self.seeds:
            whole_seed(seed, "seeds")
        self._check_task()
        self.model.check_mesh(self.mesh.shape)
        self.model.check_time(self.mesh.shape)
        self._check_rows()
        self._check_state()

    def _check_task(self) -> None:
        """A name belongs to one class: another one's would be found when the run's folder is read."""
        name, kind = self.task.name, type(self.task)
        if name in TASKS:
            owner = TASKS.get(name, "task.name")
            require(
                kind is owner,
                f"task.name={name!r} is that of {owner.__name__}, and this task is a {kind.__name__}; name a configuration of that task, "
                "or leave the name as it is",
            )

    def _check_rows(self) -> None:
        self.train.check_mesh(self.mesh)
        require(
            self.mesh.data == -1 or self.task.extra_rows % self.mesh.data == 0,
            f"mesh.data={self.mesh.data} does not divide the {self.task.extra_rows} rows that batches of the task {self.task.name!r} have "
            "beside their own; change one of them",
        )

    def _check_state(self) -> None:
        consolidates = self.consolidation.function != "none"
        require(
            self.model.has_state or not self.train.carry_state,
            f"train.carry_state=True: a {_name(self.model)} has no state to carry; set it to False",
        )
        require(
            self.model.has_fast_weights or not consolidates,
            f"consolidation.function={self.consolidation.function!r}: this {_name(self.model)} has no fast weights to consolidate; set it to "
            "'none'",
        )
        require(
            not self.train.carry_state or self.task.rows_continue,
            "train.carry_state=True: rows of this task do not go on from batch to batch, so a state would leak into other text; set "
            'train.carry_state=False, or task.order="consecutive" of a text',
        )
        require(
            not self.train.carry_state or not consolidates,
            f"train.carry_state=True with consolidation.function={self.consolidation.function!r}: episodes that go on from step to "
            "step would be consolidated again and again; use one of them",
        )


def _name(model: ModelConfig) -> str:
    return type(model).__name__.removesuffix("Config")


def task_class(values: Mapping[str, Any], path: str) -> type[TaskConfig]:
    """The configuration class of the task that a mapping names."""
    return TASKS.get(values.get("name"), f"{path}.name")


def model_class(values: Mapping[str, Any], path: str) -> type[ModelConfig]:
    """The configuration class of the model that a mapping describes; without ``architecture`` it is a BDH."""
    return MODELS.get(values.get("architecture", "bdh"), f"{path}.architecture")


KINDS = {TaskConfig: task_class, ModelConfig: model_class}
"""How to tell which class a part of an experiment is of, from its values alone."""


def experiment_from(values: Values, path: str = "config") -> ExperimentConfig:
    """The experiment that a ``ConfigDict``, or a dict from JSON, describes.

    Raises:
      ConfigError: for an unknown key, a value that is ill-typed or out of range.
    """
    return from_config_dict(ExperimentConfig, values, path, kinds=KINDS)


def load_experiment(named: str, where: str = "--config") -> ExperimentConfig:
    """The experiment of a configuration file, which is executed once.

    Args:
      named: ``NAME`` of one that comes with the package, or ``FILE.py``, either with ``:VARIANT`` after it.
      where: what names the file, for messages.

    Raises:
      ConfigError: if there is no such name, file or variant, or it is no experiment.
    """
    config = load_config(named, where)
    if isinstance(config, ml_collections.ConfigDict):
        config = experiment_from(config)
    if not isinstance(config, ExperimentConfig):
        raise ConfigError(
            f"{where}={named}: get_config returned a {type(config).__name__}; it should return an ExperimentConfig (bdh_jax.experiment)"
        )
    return config


def read_experiment(workdir: Path) -> ExperimentConfig:
    """The experiment that a run was trained with.

    Raises:
      CheckpointError: if the folder has no readable record.
      ConfigError: if the record names a class that is not there.
    """
    return experiment_from(in_todays_words(read_run(workdir).config))


def experiment_in(workdir: Path) -> ExperimentConfig | None:
    """The experiment of the run that a folder holds; None if it holds none.

    Of a run over several seeds that has not come to its end nobody knows how many there are to be: it has no ``seeds`` here.

    Raises:
      CheckpointError: if the folder's record cannot be read.
      ConfigError: if the record names a class that is not there.
    """
    if (workdir / RUN).exists():
        return read_experiment(workdir)
    folders = seed_folders(workdir)
    if not folders:
        return None
    first = dataclasses.replace(read_experiment(folders[0]), seed=ExperimentConfig.seed)
    if (workdir / RESULTS).exists():
        return dataclasses.replace(first, seeds=tuple(read_record(workdir / RESULTS, Summary).seeds))
    return first


def tokenizer_of(workdir: Path) -> Tokenizer:
    """The tokenizer that a run on text was trained with.

    Raises:
      ConfigError: if the run was trained on another task, or its tokenizer is gone.
    """
    task = read_experiment(workdir).task
    if not task.reads_text:
        raise ConfigError(f"{workdir} was trained on the task {task.name!r}, not on text: its tokens are no bytes")
    return trained_tokenizer(workdir)


def load(workdir: str | Path, which: Which = "best") -> tuple[ModelConfig, Slow]:
    """Load a trained model.

    Args:
      workdir: the folder of a run (``seed<k>`` of a run over several seeds).
      which: "best" by the evaluations during training (the last before the first evaluation), or "last".

    Returns:
      The model's configuration and its slow weights, on the default device.

    Raises:
      CheckpointError: if there is no checkpoint, or it cannot be read.
    """
    values, slow = load_slow(workdir, which)
    return _model_of(values), slow


def load_at(workdir: str | Path, which: Which = "best") -> tuple[ModelConfig, Slow, int]:
    """As :func:`load`, with the weights in the host's memory, and the step that they are of.

    Raises:
      CheckpointError: if there is no checkpoint, or it cannot be read.
    """
    weights = read_slow(workdir, which, on_host=True)
    return _model_of(weights.config["model"]), weights.slow, weights.step


def _model_of(values: Mapping[str, Any]) -> ModelConfig:
    values = model_in_todays_words(values)
    return from_config_dict(model_class(values, "config.model"), values, "config.model")


def load_as(kind: type[Kind], workdir: str | Path, which: Which = "best") -> tuple[Kind, Slow]:
    """As :func:`load`, of a run that trained a model of this configuration class.

    Raises:
      CheckpointError: also if it trained another model.
    """
    config, slow = load(workdir, which)
    return as_kind(kind, config, workdir), slow


def as_kind(kind: type[Kind], config: ModelConfig, workdir: str | Path) -> Kind:
    """The configuration of a run's model, if it is of this class.

    Raises:
      CheckpointError: if it is not.
    """
    if not isinstance(config, kind):
        wanted = kind.__name__.removesuffix("Config")
        raise CheckpointError(f"{workdir} holds a {_name(config)}, and this needs a {wanted}; name a {wanted}'s run")
    return config


def record_of(config: ExperimentConfig) -> Record:
    """What the folder of a run says of its experiment."""
    return Record(config_json(config), _with_defaults, keys_of(config, HOW), keys_of(config, WHERE))


def setup_of(config: ExperimentConfig) -> Setup:
    """How one seed of an experiment, ``config.seed``, is trained.

    Raises:
      ConfigError: for a hook or consolidation function that does not exist, or an option that it does not have.
    """
    return Setup(
        model=config.model,
        optimizer=config.optimizer,
        train=config.train,
        mesh=config.mesh,
        hooks=(*named_hooks(config.train), *consolidation_hook(config.consolidation)),
        seed=config.seed,
        measure=make_contributions if config.train.log_contributions and config.model.fast.enabled else None,
        record=record_of(config),
    )


def memory_needed(config: ExperimentConfig) -> int:
    """Bytes that training takes at the very least: the weights, a gradient and two moments of each, and one token of every row."""
    weights = jax.tree.leaves(config.model.build().declared_slow(), is_leaf=lambda leaf: hasattr(leaf, "decays"))
    numbers = sum(
        math.prod(weight.shape) * jnp.dtype(weight.dtype).itemsize * (4 if weight.trained else 1) for weight in weights
    )
    rows = config.train.batch_size // config.train.accumulation
    return numbers + rows * config.model.n_layer * config.model.d_model * config.model.compute_dtype.itemsize


def check_memory(config: ExperimentConfig, available: int | None) -> None:
    """Refuse what no setting of the machine could hold, before anything is read or computed.

    Args:
      config: the experiment.
      available: bytes of all devices; None if they are not known.

    Raises:
      ConfigError: names both numbers of bytes, and the sizes that decide.
    """
    needed = memory_needed(config)
    require(
        available is None or needed <= available,
        f"train.batch_size={config.train.batch_size} with this model (vocab_size={config.model.vocab_size}, n_layer={config.model.n_layer}, "
        f"d_model={config.model.d_model}) needs more than {needed / 2**30:.0f} GiB, and there are {(available or 0) / 2**30:.0f}; make them "
        "smaller, or raise train.accumulation",
    )


def memory_available() -> int | None:
    """Bytes of all devices, or of the machine; None where neither is known."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("bytes_limit" in one for one in stats):
        return sum(one["bytes_limit"] for one in stats) * jax.process_count()
    if jax.default_backend() == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * jax.process_count()
    return None


def run(config: ExperimentConfig, workdir: Path) -> dict[str, Any]:
    """Train what a configuration asks for, in one folder or one a seed, write ``results.json`` and print its table.

    A folder that holds an unfinished run of the same result is resumed (``bdh_jax.config.identity``); a finished one is only printed.

    Args:
      config: the experiment.
      workdir: the run's folder.

    Returns:
      What ``results.json`` holds.

    Raises:
      ConfigError: if the configuration cannot run here, or another process writes to the folder.
      CheckpointError: if the folder cannot be resumed from.
      NonFiniteError, Interrupted: as :func:`bdh_jax.training.loop.train`.
    """
    results, _ = train(config, workdir)
    if jax.process_index() == 0:
        show(results_table(results))
    return results


def train(config: ExperimentConfig, workdir: Path) -> tuple[dict[str, Any], int | None]:
    """As :func:`run`, and nothing is printed.

    Args:
      config: the experiment.
      workdir: the run's folder.

    Returns:
      What ``results.json`` holds; and, of a run of one seed, the signal that came too late to interrupt anything, or None.

    Raises:
      ConfigError, CheckpointError, NonFiniteError, Interrupted: as :func:`run`.
    """

    def of_seed(seed: int) -> Setup:
        return setup_of(dataclasses.replace(config, seed=seed, seeds=()))

    def make_task(setup: Setup) -> Task:
        return config.task.make(seed=setup.seed, batch_size=config.train.batch_size, data=config.data)

    check_memory(config, memory_available())
    with only_writer(workdir):
        if config.seeds:
            return train_seeds(workdir, config.seeds, of_seed, make_task, record_of(config)), None
        if seed_folders(workdir):
            raise CheckpointError(f"{workdir} holds a run over several seeds; give --config.seeds or another --workdir")
        setup = setup_of(config)
        return train_in(workdir, setup, lambda: make_task(setup))


def write_made(config: ExperimentConfig, slow: Slow, workdir: Path, made_of: Mapping[str, Any], *, like: Path) -> None:
    """Write weights that no training made as a run before its first step, which all commands read and training goes on from.

    Args:
      config: of the run; ``config.model`` is what the weights are of.
      slow: the weights.
      workdir: a new folder.
      made_of: what they were made of, for the run's record.
      like: the folder of a run of the same task, whose text and tokenizer the new one has.

    Raises:
      ConfigError: if the folder holds anything, or the configuration cannot run here.
      CheckpointError: if it cannot be written, or ``like`` not be read.
    """
    record = read_run(like)
    files = {name: (like / name).read_text(encoding="utf-8") for name in record.files}
    write_made_run(workdir, setup_of(dataclasses.replace(config, seeds=())), slow, made_of, record, files)


def _with_defaults(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored configuration with the keys that did not exist yet, at the defaults that it ran with."""
    try:
        return config_json(experiment_from(in_todays_words(stored)))
    except ConfigError:
        return stored
