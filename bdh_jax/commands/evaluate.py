"""Score a trained model on a task, without training: ``bdh evaluate counter --workdir=runs/nback``.

The model comes from the workdir, the task from the experiment that is named; everything else of that is ignored. Without one it is the
task that the model was trained on. Settings of the model that its weights do not hang on can be others than in training:
``--config.model.thinking=8``. Prints the table, and writes it as JSON if ``--out=FILE`` names a file that is not there yet.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from bdh_jax.commands._flags import define_choice, define_config, define_path
from bdh_jax.commands._output import new_file, write_record
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import rebuild, to_config_dict, to_dict
from bdh_jax.config.options import Options
from bdh_jax.console import show
from bdh_jax.experiment import ExperimentConfig, load, read_experiment, tokenizer_of
from bdh_jax.models.base import ModelConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.checkpoint import WHICH
from bdh_jax.tasks import Task
from bdh_jax.training.init_from import misfits
from bdh_jax.training.step import make_predict
from bdh_jax.types import Slow

_OF_THE_TASK = ("task", "data", "seed")
"""What a score reads of an experiment besides the model, and how many sequences it takes at a time."""

_CONFIG = define_config()
_WORKDIR = define_path("workdir", "Folder of a training run (of one seed).")
_WHICH = define_choice("which", "last", WHICH, "Which checkpoint to score.")
_OUT = define_path("out", "New file for the scores, as JSON; without it they are only printed.")


def main(argv: Sequence[str]) -> None:
    """Print the table of the model and the task that the flags name.

    Raises:
      ConfigError: a flag is missing, the file to write exists, or the model does not know the task's tokens.
    """
    del argv
    out = new_file(_OUT.value)
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/nback")
    config, slow = load(Path(_WORKDIR.value), _WHICH.value)
    experiment = _CONFIG.value or read_experiment(Path(_WORKDIR.value))
    task = experiment.task.make(seed=experiment.seed, batch_size=experiment.train.batch_size, data=experiment.data)
    if task.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the task has token ids up to {task.vocab_size - 1}, but the model in {_WORKDIR.value} was trained with "
            f"vocab_size={config.vocab_size}: it knows none of the others"
        )
    _check_tokens(Path(_WORKDIR.value), task)
    config = _with_overrides(config, slow, experiment)
    evaluation = task.evaluate(make_predict(config.build(), make_mesh(MeshConfig()))(slow))
    show(evaluation.table())
    if out is not None:
        record = {"task": to_dict(experiment.task), "workdir": _WORKDIR.value, "which": _WHICH.value}
        record["model"] = to_dict(config)
        write_record(out, {**record, **evaluation.to_dict()})


def _with_overrides(config: ModelConfig, slow: Slow, experiment: ExperimentConfig) -> ModelConfig:
    """The trained model with the settings that the command line gives it.

    Raises:
      ConfigError: if a setting has no effect on a score, is none of this model, or wants other weights; names it.
    """
    given: Any = to_config_dict(experiment)
    changed: Any = ml_collections.ConfigDict({"model": to_config_dict(config)}).lock()
    keys = [key for key in _CONFIG.keys if key.startswith("model.")]
    for key in _CONFIG.keys:
        if key not in keys and key.split(".")[0] not in _OF_THE_TASK and key != "train.batch_size":
            raise ConfigError(f"--config.{key} changes nothing of a score; leave it out")
        if key.split(".")[0] == "data" and not experiment.task.reads_text:
            raise ConfigError(
                f"--config.{key} changes nothing of a score, as the task {experiment.task.name!r} reads no text; leave it out"
            )
    for key in keys:
        *parents, name = key.split(".")
        try:
            part: Any = functools.reduce(operator.getitem, parents, changed)
            value: Any = functools.reduce(operator.getitem, parents, given)[name]
            # What options there are is for their part to say: one that the trained model was not given may be one.
            with part.unlocked() if _are_options(config, parents[1:]) else contextlib.nullcontext():
                part[name] = value
        except KeyError:
            raise ConfigError(
                f"--config.{key}: the model in {_WORKDIR.value} is {config.architecture!r}, which has no such setting; leave it out"
            ) from None
    if not keys:
        return config
    config = rebuild(config, changed.model, "config.model")
    wrong = misfits(slow, jax.eval_shape(config.build().init_slow, jax.random.key(0)))
    if wrong:
        flags = " ".join(f"--config.{key}" for key in keys)
        raise ConfigError(
            f"{flags}: the weights in {_WORKDIR.value} do not fit: {wrong}. Name settings that no weight hangs on, or train such a model"
        )
    return config


def _are_options(config: ModelConfig, parts: Sequence[str]) -> bool:
    """Whether what stands in a configuration under these names, one in another, are options."""
    found: Any = config
    for name in parts:
        found = found[name] if isinstance(found, Options) else getattr(found, name)
    return isinstance(found, Options)


def _check_tokens(workdir: Path, task: Task) -> None:
    """Refuse a task whose token ids stand for something else than those that the model was trained on.

    Raises:
      ConfigError: names both.
    """
    trained = read_experiment(workdir).task
    there = trained.token_meaning(tokenizer_of(workdir) if trained.reads_text else None)
    here = task.config.token_meaning(task.tokenizer)
    if there != here:
        raise ConfigError(
            f"the token ids of the task {task.config.name!r} are {here}, but the model in {workdir} was trained on {trained.name!r}, where "
            f"they are {there}: its scores would mean nothing. Name a task that fits, or the tokenizer with --config.data.tokenizer"
        )
