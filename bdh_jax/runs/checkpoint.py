"""Checkpoints: the last one, to resume from, and the best one, to use. Orbax stays behind this module."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from bdh_jax.runs.folder import CHECKPOINTS, CheckpointError, Record, check_same_config, seed_folders, unreadable
from bdh_jax.types import Slow

_DELETED = "deleted"
"""Checkpoints no longer kept are moved here and then deleted: a process killed half-way leaves none that only looks whole."""
_NOT_EVALUATED = -1.0
Which = Literal["best", "last"]


@dataclasses.dataclass(frozen=True)
class RunProgress:
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
      record: the configuration that every checkpoint of it must have.

    Raises:
      CheckpointError: if a checkpoint of ``workdir`` is unreadable or was made by another configuration.
    """

    def __init__(self, workdir: Path, record: Record):
        self._folder = workdir / CHECKPOINTS
        self._record = record
        self._put_back()
        self._manager = _open(self._folder) if self._folder.is_dir() else None
        self._best: tuple[int, float] | None = None
        self._empty_trash()
        if self.last_step is not None:
            try:
                check_same_config(workdir, _read_info(self._manager, self._folder, self.last_step)["config"], record)
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

    def restore(self, target: Mapping[str, Any]) -> tuple[dict[str, Any], RunProgress]:
        """Read the last checkpoint.

        Args:
          target: name → pytree of shapes, dtypes and shardings to restore to (``jax.ShapeDtypeStruct``), as they were saved.

        Returns:
          Name → pytree, and the progress then.

        Raises:
          CheckpointError: if it cannot be read.
        """
        step = self.last_step
        items = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in target.items()})
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:
            raise unreadable(self._folder / str(step), error) from error
        progress = RunProgress(**_read_info(self._manager, self._folder, step)["progress"])
        return {name: restored[name] for name in target}, progress

    def save(self, trees: Mapping[str, Any], progress: RunProgress, primary: float | None = None) -> None:
        """Save in the background; a later save, :meth:`wait` (which the training calls at once) and :meth:`close` wait for it.

        The last checkpoint and the one with the largest ``primary`` (the later one of equals) are kept.

        Args:
          trees: name → pytree of arrays, each with some. They may be donated as soon as this returns. ``slow`` is what
            :func:`load_slow` reads.
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
        info = {"config": self._record.config, "progress": dataclasses.asdict(progress)}
        with self._writing():
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(
                    info=ocp.args.JsonSave(info),
                    **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
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


def load_slow(workdir: str | Path, which: Which = "best") -> tuple[dict[str, Any], Slow]:
    """The slow weights of a run.

    Args:
      workdir: the folder of a run (``seed<k>`` of a run over several seeds).
      which: "best" by the evaluations during training (the last before the first evaluation), or "last".

    Returns:
      The part ``model`` of the configuration, from JSON, and the slow weights, on the default device.

    Raises:
      CheckpointError: if there is no checkpoint, or it cannot be read.
    """
    workdir = Path(workdir)
    if which not in ("best", "last"):
        raise ValueError(f"which={which!r} is not one of 'best', 'last'")
    folder = workdir / CHECKPOINTS
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
        config = _read_info(manager, folder, step)["config"]["model"]
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
            raise unreadable(folder / str(step), error) from error
    finally:
        manager.close()
    return config, slow


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
        raise unreadable(folder, error) from error


def _read_info(manager: ocp.CheckpointManager, folder: Path, step: int) -> dict[str, Any]:
    try:
        return manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))["info"]
    except Exception as error:
        raise unreadable(folder / str(step), error) from error


def _read_best(manager: ocp.CheckpointManager, folder: Path) -> tuple[int, float] | None:
    for step in manager.all_steps():
        if manager.metrics(step) is None:
            raise unreadable(folder / str(step) / "metrics", FileNotFoundError("no such file"))
    step = manager.best_step()
    primary = _primary(manager.metrics(step))
    return None if primary == _NOT_EVALUATED else (step, primary)


def _primary(metrics: Mapping[str, float]) -> float:
    return metrics["primary"]
