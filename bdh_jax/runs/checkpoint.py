"""Checkpoints: the last one, to resume from, and the best one, to use. Orbax stays behind this module.

A run's folder holds::

    run.json                 configuration and every start: versions, commit, device, command
    metrics.jsonl            one object a line
    tensorboard/             the same as event files
    checkpoints/<step>/      slow weights, optimiser state, memory of the consolidation, progress with the configuration that made them
    results.json             at the end

A run over several seeds holds one such folder ``seed<k>`` each, and its own ``results.json``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from bdh_jax.models.config import BDHConfig, ModelConfig
from bdh_jax.config import ConfigError
if TYPE_CHECKING:
    from bdh_jax.experiment import ExperimentConfig
from bdh_jax.config.convert import to_dict

RUN, RESULTS, FOLDER = "run.json", "results.json", "checkpoints"
_DELETED = "deleted"
"""Checkpoints no longer kept are moved here and then deleted: a process killed half-way leaves none that only looks whole."""
_NOT_EVALUATED = -1.0


class CheckpointError(Exception):
    """A folder that cannot be resumed from or loaded. The message names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a checkpoint knows of the run besides its arrays."""

    step: int
    seconds: float
    """Wall-clock time of the run until then, all its starts added up."""
    training_seconds: float
    """Time of the training steps alone, compilation left out."""
    tokens: int
    """Tokens trained in ``training_seconds``."""
    evaluated: bool
    """Whether this very step was evaluated."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder.
      config: the configuration that every checkpoint of it must have.

    Raises:
      CheckpointError: if a checkpoint of ``workdir`` is unreadable or was made by another configuration.
    """

    def __init__(self, workdir: Path, config: ExperimentConfig):
        self._folder = workdir / FOLDER
        self._config = config_json(config)
        self._put_back()
        self._manager = _open(self._folder) if self._folder.is_dir() else None
        self._best: tuple[int, float] | None = None
        self._empty_trash()
        if self.last_step is not None:
            try:
                check_same_config(workdir, _read_info(self._manager, self._folder, self.last_step)["config"], config)
                self._best = _read_best(self._manager, self._folder)
            except CheckpointError:
                self._manager.close()
                raise

    @property
    def last_step(self) -> int | None:
        """Updates made when the last checkpoint was saved, or None without one."""
        return None if self._manager is None else self._manager.latest_step()

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, primary score) of the best checkpoint by evaluation, or None before the first evaluation."""
        return self._best

    def restore(self, target: TrainState) -> tuple[TrainState, Progress]:
        """Read the last checkpoint.

        Args:
          target: shapes, dtypes and shardings to restore to, as of :func:`bdh_jax.training.step.abstract_state`.

        Raises:
          CheckpointError: if it cannot be read.
        """
        from bdh_jax.training.step import TrainState

        step = self.last_step
        optimizer = _besides_slow(target)
        items = ocp.args.Composite(slow=ocp.args.StandardRestore(target.slow), optimizer=ocp.args.StandardRestore(optimizer))
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:
            raise _unreadable(self._folder / str(step), error) from error
        rest = restored["optimizer"]
        state = TrainState(
            step=rest["step"],
            slow=restored["slow"],
            opt_state=rest["state"],
            memory=rest.get("memory", target.memory),
            fast=rest.get("fast", target.fast),
        )
        return state, Progress(**_read_info(self._manager, self._folder, step)["progress"])

    def save(self, state: TrainState, progress: Progress, primary: float | None = None) -> None:
        """Save in the background; a later save, :meth:`wait` (which the training calls at once) and :meth:`close` wait for it.

        The last checkpoint and the one with the largest ``primary`` (the later one of equals) are kept.

        Args:
          state: what to save. It may be donated as soon as this returns.
          progress: at this state.
          primary: the evaluation's score of this very state, if it was evaluated.

        Raises:
          CheckpointError: if it cannot be written; so does :meth:`wait`. Those saved before are kept.
        """
        if self._manager is None:
            self._manager = _open(self._folder)
        if progress.step in self._manager.all_steps():
            if primary is None:
                return
            # Saved when its evaluation was interrupted: once more, with the score. Until that is on disk the first one lies in the trash.
            self._empty_trash()
            self._manager.delete(progress.step)
        info = {"config": self._config, "progress": dataclasses.asdict(progress)}
        with self._writing():
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(
                    slow=ocp.args.StandardSave(state.slow),
                    optimizer=ocp.args.StandardSave(_besides_slow(state)),
                    info=ocp.args.JsonSave(info),
                ),
                metrics={"primary": _NOT_EVALUATED if primary is None else primary},
            )
        if primary is not None and (self._best is None or primary >= self._best[1]):
            self._best = (progress.step, primary)

    def wait(self) -> None:
        """Return when everything is on disk."""
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()
            self._empty_trash()

    def close(self) -> None:
        """As :meth:`wait`, and release what Orbax holds."""
        if self._manager is not None:
            self._manager.close()
            # What replaces a checkpoint may not have come to disk, and then this is the only one.
            self._put_back()
            self._empty_trash()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax documents none, and raises those of several libraries
            reason = str(error).strip().split("\n")[0][:300]
            raise CheckpointError(
                f"no checkpoint can be written into {self._folder} ({type(error).__name__}: {reason}). Those that were saved are kept: "
                "make room, and the same command goes on from the last one"
            ) from error

    def _put_back(self) -> None:
        """A checkpoint newer than all others was being replaced by the same one with a score when the process was killed."""
        steps = {
            folder: [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
            for folder in (self._folder, self._folder / _DELETED)
        }
        kept, deleted = (max(numbers, default=-1) for numbers in steps.values())
        if deleted > kept and jax.process_index() == 0:
            (self._folder / _DELETED / str(deleted)).replace(self._folder / str(deleted))

    def _empty_trash(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._folder / _DELETED, ignore_errors=True)


def load(workdir: str | Path, which: Literal["best", "last"] = "best") -> tuple[ModelConfig, dict[str, jax.Array]]:
    """Load a trained model.

    Args:
      workdir: the folder of a run (``seed<k>`` of a run over several seeds).
      which: "best" by the evaluations during training (the last before the first evaluation), or "last".

    Returns:
      The model's configuration and its slow weights, on the default device.

    Raises:
      CheckpointError: if there is no checkpoint, or it cannot be read.
    """
    workdir = Path(workdir)
    if which not in ("best", "last"):
        raise ValueError(f"which={which!r} is not one of 'best', 'last'")
    folder = workdir / FOLDER
    if not folder.is_dir():
        seeds = seed_folders(workdir)
        if seeds:
            raise CheckpointError(f"{workdir} is a run over several seeds; load one of {', '.join(map(str, seeds))}")
        raise CheckpointError(f"{workdir} holds no checkpoints: it should be the --workdir of a training run")
    manager = _open(folder)
    try:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{folder} is empty: the run stopped before its first checkpoint")
        best = _read_best(manager, folder)
        if which == "best" and best is not None:
            step, _ = best
        config = _model_config(_read_info(manager, folder, step)["config"]["model"])
        try:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            saved = ocp.StandardCheckpointHandler().metadata(folder.absolute() / str(step) / "slow")
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
                dict(saved),
                is_leaf=lambda leaf: hasattr(leaf, "shape"),
            )
            items = ocp.args.Composite(slow=ocp.args.StandardRestore(target))
            slow = manager.restore(step, args=items)["slow"]
        except Exception as error:
            raise _unreadable(folder / str(step), error) from error
    finally:
        manager.close()
    return config, slow


def load_bdh(workdir: str | Path, which: Literal["best", "last"] = "best") -> tuple[BDHConfig, dict[str, jax.Array]]:
    """As :func:`load`, of a run that trained a BDH.

    Raises:
      CheckpointError: also if it trained another model.
    """
    config, slow = load(workdir, which)
    if not isinstance(config, BDHConfig):
        raise CheckpointError(
            f"{workdir} holds a {config.architecture.upper()}, and only a BDH has neurons and a state; name a BDH's run"
        )
    return config, slow


def seed_folders(workdir: Path) -> list[Path]:
    """Folders of single seeds in the folder of a run over several."""
    return sorted(path for path in workdir.glob("seed*") if path.name[4:].isdigit() and path.is_dir())


def config_json(config: ExperimentConfig) -> dict[str, Any]:
    """A configuration as JSON keeps it: tuples become lists."""
    return json.loads(json.dumps(to_dict(config)))


def check_same_config(workdir: Path, stored: Mapping[str, Any], config: ExperimentConfig) -> None:
    """Refuse a folder that another configuration made.

    Raises:
      CheckpointError: names every key that differs.
    """
    old, new = _flatten(_with_defaults(stored, config)), _flatten(config_json(config))
    shown = [{key: json.dumps(value) for key, value in flat.items()} for flat in (old, new)]
    different = [
        f"  {key}: there {shown[0].get(key, 'absent')}, now {shown[1].get(key, 'absent')}"
        for key in dict.fromkeys([*old, *new])
        if shown[0].get(key) != shown[1].get(key)
    ]
    if different:
        raise CheckpointError(
            f"{workdir} holds a run of another configuration:\n"
            + "\n".join(different)
            + "\nUse another --workdir, or the configuration that made it; nothing was changed"
        )


def trained_texts(folders: Iterable[Path]) -> dict[Path, str]:
    """The fingerprint of the text that each folder was trained on; folders without one are left out.

    Raises:
      CheckpointError: if they differ, or a record cannot be read.
    """
    texts = {}
    for folder in folders:
        text = read_json(folder / RUN).get("text") if (folder / RUN).exists() else None
        if text is not None:
            texts[folder] = text
    first = next(iter(texts), None)
    for folder, text in texts.items():
        if text != texts[first]:
            raise CheckpointError(
                f"{first} and {folder} were trained on different texts: their fingerprints are {texts[first]} and {text}, so their scores "
                "cannot be compared, and what validates one may have trained the other. Move one of them away"
            )
    return texts


def check_text(folder: Path, before: str | None, now: str | None) -> None:
    """Refuse another text than a folder was trained on: the files of a configuration's path may have changed since.

    Raises:
      CheckpointError: names both fingerprints.
    """
    if before not in (None, now):
        raise CheckpointError(
            f"{folder} holds a run on another text: its fingerprint is {before}, and that of the files now is {now}. Restore the files or "
            "the tokenizer, or use another --workdir; nothing was changed"
        )


def _with_defaults(stored: Mapping[str, Any], config: ExperimentConfig) -> Mapping[str, Any]:
    """A stored configuration with the keys that did not exist yet, at the defaults that it ran with."""
    try:
        return config_json(_experiment_from(stored))
    except ConfigError:
        return stored


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
      CheckpointError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _besides_slow(state: TrainState) -> dict[str, Any]:
    """What is saved beside the slow weights. A part without arrays is left out: Orbax has nothing to write for it."""
    tree = {"step": state.step, "state": state.opt_state}
    for name in ("memory", "fast"):
        if jax.tree.leaves(getattr(state, name)):
            tree[name] = getattr(state, name)
    return tree


def _open(folder: Path) -> ocp.CheckpointManager:
    keep = checkpoint_managers.AnyPreservationPolicy(
        [checkpoint_managers.LatestN(1), checkpoint_managers.BestN(get_metric_fn=_primary, n=1)]
    )
    try:
        return ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=_primary, todelete_subdir=_DELETED),
        )
    except Exception as error:
        raise _unreadable(folder, error) from error


def _read_info(manager: ocp.CheckpointManager, folder: Path, step: int) -> dict[str, Any]:
    try:
        return manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))["info"]
    except Exception as error:
        raise _unreadable(folder / str(step), error) from error


def _read_best(manager: ocp.CheckpointManager, folder: Path) -> tuple[int, float] | None:
    for step in manager.all_steps():
        if manager.metrics(step) is None:
            raise _unreadable(folder / str(step) / "metrics", FileNotFoundError("no such file"))
    step = manager.best_step()
    primary = _primary(manager.metrics(step))
    return None if primary == _NOT_EVALUATED else (step, primary)


def _primary(metrics: Mapping[str, float]) -> float:
    return metrics["primary"]


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().split("\n")[0][:300]
    return CheckpointError(
        f"{path} cannot be read ({type(error).__name__}: {reason}). It may be truncated. "
        "Restore it from a copy, remove it to go on from what is left, or use another --workdir; nothing was changed"
    )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _model_config(values: Mapping[str, Any]) -> ModelConfig:
    from bdh_jax.config.convert import from_config_dict
    from bdh_jax.experiment import model_class

    return from_config_dict(model_class(values, "config.model"), values)


def _experiment_from(values: Mapping[str, Any]) -> ExperimentConfig:
    from bdh_jax.experiment import experiment_from

    return experiment_from(values)
