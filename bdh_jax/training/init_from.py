"""A run that starts from the slow weights of another one (``train.init_from``): which ones, and whether they fit.

They are read once, when the run begins. Of the other run nothing else is taken: optimiser, step and data begin anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import from_config_dict
from bdh_jax.data.errors import DataError
from bdh_jax.data.shards import TOKENIZER
from bdh_jax.data.tokenizer import Tokenizer, load_tokenizer
from bdh_jax.runs.checkpoint import Weights, read_slow
from bdh_jax.runs.fingerprint import slow_hash
from bdh_jax.runs.folder import CHECKPOINTS, RUN, CheckpointError, changes, read_run, seed_folders
from bdh_jax.runs.older import in_todays_words
from bdh_jax.runs.weights_file import WEIGHTS
from bdh_jax.tasks import TASKS
from bdh_jax.tasks.base import Task
from bdh_jax.training.setup import Setup
from bdh_jax.types import Slow

_NAMED = 4
"""Leaves that a message names."""
_LOGGER = logging.getLogger("bdh_jax")


class Start(NamedTuple):
    """What a run starts from."""

    slow: Slow
    """In the host's memory."""
    origin: dict[str, Any]
    """For the run's record: the folder, the step, and :func:`bdh_jax.runs.fingerprint.slow_hash` of the weights."""


def find_source(named: str, seed: int) -> tuple[Path, int | None]:
    """The run whose weights a seed starts from.

    Of a run over several seeds that is the folder of the same seed, or the only one there is.

    Args:
      named: ``train.init_from``: ``FOLDER`` or ``FOLDER@STEP``.
      seed: of the run that starts.

    Returns:
      The folder of one seed, and the step, None for the newest checkpoint.

    Raises:
      ConfigError: if there is no such folder, no run in it, or no seed that is this one's.
    """
    folder, step = Path(named).expanduser(), None
    before, at, after = named.rpartition("@")
    if at and after.isdecimal() and not folder.exists():
        folder, step = Path(before).expanduser(), int(after)
    if not folder.is_dir():
        raise ConfigError(f"train.init_from={named}: there is no folder {folder}; name that of a run, or FOLDER@STEP")
    if (folder / CHECKPOINTS).is_dir() or (folder / WEIGHTS).is_file():
        return folder, step
    seeds = {int(path.name[4:]): path for path in seed_folders(folder)}
    if not seeds:
        raise ConfigError(f"train.init_from={named}: {folder} holds no checkpoints; name the --workdir of a run")
    if seed not in seeds and len(seeds) > 1:
        raise ConfigError(
            f"train.init_from={named}: {folder} has the seeds {', '.join(map(str, sorted(seeds)))} and not {seed}; name the folder of one of "
            f"them, such as {next(iter(seeds.values()))}, or start with those seeds"
        )
    return seeds.get(seed, next(iter(seeds.values()))), step


def read_start(setup: Setup, task: Task, declared: Slow) -> Start:
    """The slow weights that ``setup.train.init_from`` names, verified and found to fit. All processes call it.

    Args:
      setup: of the run that starts.
      task: its task.
      declared: its slow weights as shapes and dtypes.

    Raises:
      ConfigError: if the weights are of another architecture or other shapes, or know other tokens; it names what does not fit.
      CheckpointError: if there is no such checkpoint, or it cannot be read.
      DataError: if the tokenizer of the other run cannot be read.
    """
    try:
        found = _read_start(setup, task, declared)
    except (ConfigError, CheckpointError, DataError) as error:
        found = error
    if jax.process_count() > 1:
        # One that went on alone would wait for the others for ever.
        step = found.origin["step"] if isinstance(found, Start) else -1
        steps = multihost_utils.process_allgather(np.array(step))
        if isinstance(found, Start) and len(set(steps.tolist())) > 1:
            found = CheckpointError(
                f"train.init_from={setup.train.init_from}: this process reads step {step}, and others read another one, or none; "
                "let all of them see the same folder, and name a step: FOLDER@STEP"
            )
    if not isinstance(found, Start):
        raise found
    _LOGGER.info("starting from the weights of %s at step %d", found.origin["folder"], found.origin["step"])
    return found


def _read_start(setup: Setup, task: Task, declared: Slow) -> Start:
    """As :func:`read_start`, in this process alone."""
    named = setup.train.init_from
    if named is None:
        raise ConfigError("train.init_from names no run to start from")
    folder, step = find_source(named, setup.seed)
    weights = read_slow(folder, "last" if step is None else step, on_host=True)
    _check_architecture(named, setup, weights)
    _check_leaves(named, folder, weights.slow, declared)
    _check_tokens(named, folder, weights, task)
    for key, (there, now) in changes(weights.config, setup.record).result.items():
        if key.startswith("model."):
            _LOGGER.info("train.init_from=%s: %s was %s there and is %s now", named, key, there, now)
    return Start(weights.slow, {"folder": str(folder), "step": weights.step, "slow": slow_hash(weights.slow)})


def check_same_start(origin: dict[str, Any], folders: Iterable[Path]) -> None:
    """Refuse to train a seed from other weights than the seeds before it: the run that both are from may have gone on since.

    Args:
      origin: of :class:`Start`.
      folders: those of the other seeds.

    Raises:
      CheckpointError: names both.
    """
    for folder in folders:
        other = read_run(folder).init_from if (folder / RUN).exists() else None
        if other is not None and other.get("folder") == origin["folder"] and other.get("slow") != origin["slow"]:
            raise CheckpointError(
                f"{folder} started from {origin['folder']} at step {other.get('step')}, which is at step {origin['step']} now: seeds that start "
                "from different weights cannot be compared. Use another --workdir, and name the step: "
                f"--config.train.init_from={origin['folder']}@{origin['step']}"
            )


def started_with(folder: Path) -> Slow | None:
    """The slow weights that a run began with, if they were not its own random ones and are there still.

    Args:
      folder: of one seed.

    Returns:
      Of the run that ``train.init_from`` named, or of the checkpoint at step 0, whichever are known by their hash; None without either.

    Raises:
      CheckpointError: if the record of the run cannot be read.
    """
    origin = read_run(folder).init_from
    if origin is None:
        return None
    places = [(folder, 0)]
    if "folder" in origin and "step" in origin:
        places.insert(0, (Path(origin["folder"]), origin["step"]))
    for place, step in places:
        try:
            slow = read_slow(place, step, on_host=True).slow
        except (CheckpointError, ConfigError):
            continue
        if slow_hash(slow) == origin.get("slow"):
            return slow
    return None


def trained_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a run on text keeps in its folder; bytes if it kept none.

    Raises:
      ConfigError: if it kept one that is gone.
      CheckpointError: if the record of the run cannot be read.
    """
    path = folder / TOKENIZER
    if not path.exists() and TOKENIZER in read_run(folder).files:
        raise ConfigError(f"{path} is missing, without which the model's tokens mean nothing; restore it")
    return load_tokenizer(path if path.exists() else None)


def _check_architecture(named: str, setup: Setup, weights: Weights) -> None:
    there = weights.config["model"].get("architecture", "bdh")
    if there != setup.model.architecture:
        raise ConfigError(
            f"train.init_from={named} holds a model of the architecture {there!r}, and config.model is one of {setup.model.architecture!r}; "
            "name a run of that"
        )


def _check_leaves(named: str, folder: Path, slow: Slow, declared: Slow) -> None:
    wrong = misfits(slow, declared)
    if wrong:
        raise ConfigError(
            f"train.init_from={named}: the weights do not fit config.model: {wrong}. Give config.model the settings of {folder / RUN}, or name "
            "another run"
        )


def misfits(slow: Slow, declared: Slow) -> str:
    """Which weights of a run are not those that a model declares, the first few by name; empty if all fit.

    Args:
      slow: the run's.
      declared: the model's, as shapes and dtypes.
    """
    there, here = (
        {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)} for tree in (slow, declared)
    )
    wrong = [f"{name} {list(here[name].shape)} is missing there" for name in here.keys() - there.keys()]
    wrong += [f"{name} {list(there[name].shape)} is unknown here" for name in there.keys() - here.keys()]
    for name in here.keys() & there.keys():
        old, new = there[name], here[name]
        if old.shape != new.shape:
            wrong.append(f"{name} is {list(old.shape)} there and {list(new.shape)} here")
        elif old.dtype != new.dtype:
            wrong.append(f"{name} is {old.dtype} there and {new.dtype} here")
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return "; ".join(sorted(wrong)[:_NAMED]) + more


def _check_tokens(named: str, folder: Path, weights: Weights, task: Task) -> None:
    values = in_todays_words(weights.config).get("task", {})
    name = values.get("name")
    kind = type(task.config) if name == task.config.name else TASKS.get(name, f"{folder / RUN}: config.task.name")
    trained = from_config_dict(kind, values, "config.task")
    there = trained.token_meaning(trained_tokenizer(folder) if trained.reads_text else None)
    here = task.config.token_meaning(task.tokenizer)
    if there != here:
        raise ConfigError(
            f"train.init_from={named}: it was trained on {trained.name!r}, whose token ids are {there}, and those of the task "
            f"{task.config.name!r} are {here}: its weights know none of them. Name a run or a task that fits, or the tokenizer with "
            "--config.data.tokenizer"
        )


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
