"""Checkpoints: the last two, to resume from, and the best one, to use. Orbax stays behind this module.

A checkpoint is written beside the others, read back, and only then called by its step; what it supersedes goes after that. Every array
has a digest in the checkpoint's record, which has one of itself: whatever is read is what was saved, or is refused.

A save in the background copies the arrays to the host, and a thread does all the rest. The next one, and whoever asks what was saved, waits
for it. Of several processes each writes what it holds; the first one reads all of it back.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pydantic
from jax.experimental import multihost_utils

from bdh_jax.config.paths import check_local
from bdh_jax.config.records import SELF, RecordError, Schema, digest_of
from bdh_jax.parallel.processes import broadcast, gather
from bdh_jax.runs.fingerprint import different, digests, merged
from bdh_jax.runs.folder import (
    CHECKPOINTS,
    RUN,
    CheckpointError,
    DamagedError,
    Record,
    check_same_config,
    read_record,
    read_run,
    seed_folders,
    unreadable,
)
from bdh_jax.runs.weights_file import WEIGHTS, read_weights
from bdh_jax.types import Slow

_KEPT = 2
_FAILED = "failed: "
_SAVING, _DELETED = "saving", "deleted"
"""A checkpoint is written in the one folder, and moved to the other before it is deleted: a process killed half-way leaves none that
only looks whole."""
_NOT_EVALUATED = -1.0
"""What older versions wrote for the score of a state that was not evaluated."""
_PATTERNS = "[]*?\\"
"""Orbax takes a path for a pattern of names, and the library under it takes a backslash for a slash."""
_TRIES = 20
_SAVES = itertools.count()
"""Of this process; all processes of a run save alike."""
_READERS = ("orbax", "tensorstore")
_LOGGER = logging.getLogger("bdh_jax")
Which = Literal["best", "last"]
WHICH: tuple[Which, ...] = get_args(Which)


class RunProgress(Schema):
    """What a checkpoint knows of the run besides its arrays."""

    step: pydantic.NonNegativeInt
    seconds: float
    """Wall-clock time of the run until then, all its starts added up."""
    training_seconds: float
    """Time of the training steps alone, compilation left out."""
    tokens: int
    """Tokens trained in ``training_seconds``."""
    evaluated: bool
    """Whether this very step was evaluated."""


class _Info(Schema):
    """The record of a checkpoint."""

    config: dict[str, Any]
    progress: RunProgress
    primary: float | None = None
    digests: dict[str, dict[str, str | dict[str, str]]] | None = None
    """Name of a tree → :func:`bdh_jax.runs.fingerprint.digests`; None of an older version."""
    digest: str | None = None


class Weights(NamedTuple):
    """What a checkpoint has for another run."""

    config: dict[str, Any]
    """The whole configuration of its run, from JSON; ``model`` is a part of it."""
    step: int
    slow: Slow


class _OlderMetrics(Schema):
    """The file in which older versions kept the score."""

    primary: float


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder.
      record: the configuration that every checkpoint of it must have.
      keep_every: checkpoints of steps that it divides are kept for good; None for no others than the last two and the best.

    Raises:
      CheckpointError: if no checkpoint of ``workdir`` is readable though there are some, if they were made by another configuration, or
        if a folder of this name cannot hold any.
    """

    def __init__(self, workdir: Path, record: Record, keep_every: int | None = None):
        check_name(workdir)
        self._folder = workdir / CHECKPOINTS
        self._record = record
        self._keep_every = keep_every
        self._pending: Future[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._put_back()
        self._clear()
        kind = ocp.AsyncCheckpointer if jax.process_count() > 1 else ocp.Checkpointer
        self._checkpointer = kind(ocp.CompositeCheckpointHandler())
        self._infos, self._damaged = _read_infos(self._folder)
        if self.last_step is not None:
            check_same_config(workdir, self._infos[self.last_step].config, record)
        elif self._damaged:
            raise self._damaged[max(self._damaged)]

    @property
    def last_step(self) -> int | None:
        """Updates made when the last checkpoint was saved, or None without one."""
        self.wait()
        return max(self._infos, default=None)

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, primary score) of the best checkpoint by evaluation, or None before the first evaluation."""
        self.wait()
        return self._best()

    def restore(
        self, target: Mapping[str, Any], step_of: Callable[[Mapping[str, Any]], Any]
    ) -> tuple[dict[str, Any], RunProgress]:
        """Read the last checkpoint, or the one before if it is damaged. The log names both then, and the damaged one is set aside.

        Args:
          target: name → pytree of shapes, dtypes and shardings to restore to (``jax.ShapeDtypeStruct``), as they were saved.
          step_of: what was restored → the step that it says it is of.

        Returns:
          Name → pytree, and the progress then.

        Raises:
          CheckpointError: if none can be read; nothing is changed then.
        """
        damaged = dict(self._damaged)
        for step in sorted(self._infos, reverse=True):
            try:
                trees = _read(self._folder / str(step), target, self._infos[step])
                if int(step_of(trees)) != step:
                    raise _wrong(self._folder / str(step), f"its arrays are those of step {int(step_of(trees))}")
                break
            except DamagedError as error:
                damaged[step] = error
        else:
            raise damaged[max(damaged)]
        best = self.best
        if best is not None and best[0] not in damaged and best[0] != step:
            shapes = jax.tree.map(_on_host, dict(target))
            try:
                _read(self._folder / str(best[0]), shapes, self._infos[best[0]])
            except DamagedError as error:
                damaged[best[0]] = error
        for number, error in sorted(damaged.items()):
            aside = self._set_aside(number)
            _LOGGER.warning(
                "%s is damaged (%s); it is kept as %s, and the run goes on from %s",
                error.path,
                error.reason,
                aside,
                self._folder / str(step),
            )
            self._infos.pop(number, None)
        self._damaged = {}
        return trees, self._infos[step].progress

    def save(
        self, trees: Mapping[str, Any], progress: RunProgress, primary: float | None = None, *, background: bool = False
    ) -> None:
        """Save, and return when everything is on disk and was read back from there, or in the background, when it is copied to the host.

        The last two checkpoints and the one with the largest ``primary`` (the later one of equals) are kept.

        Args:
          trees: name → pytree of arrays, each with some. ``slow`` is what :func:`load_slow` reads.
          progress: at this state.
          primary: the evaluation's score of this very state, if it was evaluated.
          background: return early.

        Raises:
          CheckpointError: if it, or the one before it in the background, cannot be written. Those saved before are kept.
        """
        self.wait()
        if progress.step in self._infos and primary is None:
            return
        if jax.process_count() > 1:
            save = self._start_together(trees, progress, primary)
        else:
            # Copies: the next step takes the arrays themselves for its own.
            kept = jax.tree.map(lambda leaf: np.array(leaf, copy=True), dict(trees)) if background else trees
            save = functools.partial(self._save, kept, progress, primary)
        if not background:
            save()
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending = self._thread.submit(save)

    @property
    def saving(self) -> bool:
        """Whether one is being written in the background."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Return when nothing is being saved.

        Raises:
          CheckpointError: if it cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _best(self) -> tuple[int, float] | None:
        scores = [(info.primary, step) for step, info in self._infos.items() if info.primary is not None]
        if not scores:
            return None
        primary, step = max(scores)
        return step, primary

    def _save(self, trees: Mapping[str, Any], progress: RunProgress, primary: float | None) -> None:
        new, info = self._folder / _SAVING / str(progress.step), self._info_of(progress, primary)
        info = _signed(info, {name: digests(tree) for name, tree in trees.items()})
        with self._writing():
            self._write(new, info, trees)
            self._keep(progress.step, self._read_back(new, trees))

    def _start_together(self, trees: Mapping[str, Any], progress: RunProgress, primary: float | None) -> Callable[[], None]:
        """Copy what this process holds of the arrays, and let it be written. All processes call it.

        Returns:
          What waits for that and brings it to its end. It may run in a thread beside the next steps: no device takes part in it.
        """
        number, new = next(_SAVES), self._folder / _SAVING / str(progress.step)
        own = {name: digests(tree) for name, tree in trees.items()}
        told = [json.loads(text) for text in gather(f"digests/{number}", json.dumps(own))]
        # Process 0 writes the record.
        info = _signed(self._info_of(progress, primary), {name: merged([one[name] for one in told]) for name in own if told})
        if jax.default_backend() == "cpu":
            # Memory of a CPU is not copied to the host, and the next step takes the arrays themselves for its own.
            trees = jax.tree.map(jnp.copy, dict(trees))
        with self._writing():
            self._write(new, info, trees)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(trees))

        def finish() -> None:
            with self._writing():
                try:
                    if isinstance(self._checkpointer, ocp.AsyncCheckpointer):
                        with _quietly():
                            self._checkpointer.wait_until_finished()
                    found = self._read_back(new, shapes).model_dump_json() if jax.process_index() == 0 else None
                except Exception as error:
                    if jax.process_index() == 0:
                        broadcast(f"saved/{number}", f"{_FAILED}{_reason(error)}")
                    raise
                found = broadcast(f"saved/{number}", found)
                if found.startswith(_FAILED):
                    raise RecordError(f"process 0 says: {found.removeprefix(_FAILED)}")
                self._keep(progress.step, _Info.model_validate_json(found))

        return finish

    def _info_of(self, progress: RunProgress, primary: float | None) -> dict[str, Any]:
        return {"config": self._record.config, "progress": progress.model_dump(), "primary": primary}

    def _write(self, new: Path, info: Mapping[str, Any], trees: Mapping[str, Any]) -> None:
        self._clear()
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with _quietly():
            self._checkpointer.save(new.absolute(), args=ocp.args.Composite(info=ocp.args.JsonSave(dict(info)), **arrays))

    def _read_back(self, new: Path, trees: Mapping[str, Any]) -> _Info:
        """One that cannot be read is no checkpoint, whatever the library says."""
        saved = _read_info(new)
        for name, tree in trees.items():
            _read(new, {name: jax.tree.map(_on_host, tree)}, saved, alone=True)
        # If this very state was saved when its evaluation was interrupted, it is now once more, with the score.
        self._put_in_place(new, int(new.name))
        return saved

    def _keep(self, step: int, saved: _Info) -> None:
        """Take a checkpoint that is in its place for one of this run, and let go of those that it supersedes."""
        self._infos[step] = saved
        keep = {*sorted(self._infos)[-_KEPT:], *(self._best() or ())[:1]}
        if self._keep_every is not None:
            keep |= {step for step in self._infos if step and step % self._keep_every == 0}
        for old in self._infos.keys() - keep:
            del self._infos[old]
            self._delete(old)
        self._clear()

    def close(self) -> None:
        """Let what is being saved come to its end, and release what Orbax holds. A save that failed is a warning: something else ended
        the run, or nobody closes before the last save is waited for."""
        try:
            self.wait()
        except CheckpointError as error:
            _LOGGER.warning("%s", error)
        if self._thread is not None:
            self._thread.shutdown()
        self._checkpointer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax documents none, and raises those of several libraries
            with suppress(OSError):
                self._clear()
            raise CheckpointError(
                f"no checkpoint can be written into {self._folder} ({_reason(error)}). Those that were saved are kept: "
                "make room, and the same command goes on from the last one"
            ) from error

    def _put_in_place(self, new: Path, step: int) -> None:
        if jax.process_index() == 0:
            self._delete(step)
            new.replace(self._folder / str(step))

    def _delete(self, step: int) -> None:
        if jax.process_index() == 0 and (self._folder / str(step)).exists():
            trash = self._folder / _DELETED
            trash.mkdir(exist_ok=True)
            shutil.rmtree(trash / str(step), ignore_errors=True)
            (self._folder / str(step)).replace(trash / str(step))

    def _set_aside(self, step: int) -> Path:
        names = (f"damaged-{step}" + (f"-{number}" if number else "") for number in range(10**6))
        aside = next(self._folder / name for name in names if not (self._folder / name).exists())
        if jax.process_index() == 0:
            try:
                (self._folder / str(step)).replace(aside)
            except OSError as error:
                raise CheckpointError(
                    f"{self._folder / str(step)} is damaged and cannot be renamed: {error.strerror}; move it"
                ) from error
        _together()
        return aside

    def _put_back(self) -> None:
        """A checkpoint newer than all others was being replaced by the same one with a score when the process was killed."""
        kept, deleted = (max(_steps(folder), default=-1) for folder in (self._folder, self._folder / _DELETED))
        if deleted > kept and jax.process_index() == 0:
            (self._folder / _DELETED / str(deleted)).replace(self._folder / str(deleted))

    def _clear(self) -> None:
        if jax.process_index() == 0:
            for name in (_SAVING, _DELETED):
                shutil.rmtree(self._folder / name, ignore_errors=True)


def check_name(workdir: Path) -> None:
    """Refuse a folder whose checkpoints could not be read again.

    Raises:
      CheckpointError: names the character that is in the way.
    """
    found = [character for character in str(workdir.absolute()) if character in _PATTERNS]
    if found:
        raise CheckpointError(
            f"{workdir.absolute()} cannot hold checkpoints: there is a {found[0]!r} in the path, which the library that writes them takes for "
            "something else; use another --workdir, or rename the folder"
        )


def load_slow(workdir: str | Path, which: Which = "best") -> tuple[dict[str, Any], Slow]:
    """The slow weights of a run, which may be training meanwhile.

    A checkpoint that is damaged is left out, and the log names it and the one that is read instead.

    Args:
      workdir: the folder of a run (``seed<k>`` of a run over several seeds).
      which: "best" by the evaluations during training (the last before the first evaluation), or "last".

    Returns:
      The part ``model`` of the configuration, from JSON, and the slow weights, on the default device.

    Raises:
      CheckpointError: if there is no checkpoint, or none can be read.
      ConfigError: if ``workdir`` is no path of this machine.
    """
    check_local(workdir, "workdir")
    if which not in ("best", "last"):
        raise ValueError(f"which={which!r} is not one of 'best', 'last'")
    weights = read_slow(workdir, which)
    return weights.config["model"], weights.slow


def read_slow(workdir: str | Path, which: Which | int, *, on_host: bool = False) -> Weights:
    """As :func:`load_slow`, with what the weights are of.

    Args:
      workdir: the folder of a run.
      which: "best", "last", or the step of a checkpoint, in whose place no other one is read.
      on_host: give arrays of NumPy instead.

    Raises:
      CheckpointError: if there is no such checkpoint, or none can be read.
    """
    workdir = Path(workdir)
    check_name(workdir)
    folder = workdir / CHECKPOINTS
    if not folder.is_dir() and (workdir / WEIGHTS).is_file():
        return _exported(workdir, which, on_host)
    if not folder.is_dir():
        seeds = seed_folders(workdir)
        if seeds:
            raise CheckpointError(f"{workdir} is a run over several seeds; load one of {', '.join(map(str, seeds))}")
        raise CheckpointError(f"{workdir} holds no checkpoints: it should be the --workdir of a training run")
    listed: dict[int, Any] = {}
    for _ in range(_TRIES):
        listed = {step: _identity(folder / str(step)) for step in _steps(folder)}
        if listed:
            try:
                return _load_one(folder, which, on_host)
            except CheckpointError:
                if listed == {step: _identity(folder / str(step)) for step in _steps(folder)}:
                    raise
        elif not any((folder / name).exists() for name in (_SAVING, _DELETED)):
            break
        time.sleep(0.1)
    if listed:
        raise CheckpointError(
            f"{folder}: checkpoints come and go faster than they are read; stop the training there, or try again"
        )
    raise CheckpointError(f"{folder} is empty: the run stopped before its first checkpoint")


def _exported(workdir: Path, which: Which | int, on_host: bool) -> Weights:
    """The weights of a folder that ``bdh export`` wrote: there is one step alone, which is the last and the best."""
    slow, step = read_weights(workdir / WEIGHTS)
    if which not in ("best", "last", step):
        raise CheckpointError(f"{workdir} holds the weights of step {step} and of no other; name that, or none")
    config = read_run(workdir).config
    if not isinstance(config.get("model"), dict):
        raise _wrong(workdir / RUN, "its configuration has no part 'model'")
    return Weights(config, step, slow if on_host else jax.tree.map(jnp.asarray, slow))


def _load_one(folder: Path, which: Which | int, on_host: bool) -> Weights:
    """The slow weights of the first sound checkpoint that is wanted.

    Raises:
      CheckpointError: if there is none, or a checkpoint was replaced meanwhile.
    """
    listed = {step: _identity(folder / str(step)) for step in _steps(folder)}
    infos, damaged = _read_infos(folder, listed)
    if which == "best":
        wanted = sorted(infos, key=lambda step: (_score(infos[step]), step), reverse=True)
    elif which == "last":
        wanted = sorted(infos, reverse=True)
    elif which not in listed:
        raise CheckpointError(
            f"{folder} has no checkpoint of step {which}, but of {', '.join(map(str, sorted(listed)))}; name one of them"
        )
    else:
        wanted = [which] if which in infos else []
        damaged = {step: error for step, error in damaged.items() if step == which}
    for step in wanted:
        path, slow = folder / str(step), None
        try:
            if not isinstance(infos[step].config.get("model"), dict):
                raise _wrong(path, "its configuration has no part 'model'")
            slow = _read(path, {"slow": _saved_shapes(path, on_host)}, infos[step], alone=True)["slow"]
        except DamagedError as error:
            damaged[step] = error
        if _identity(path) != listed[step]:
            raise CheckpointError(f"{path} was replaced while it was read")
        if slow is not None:
            for error in damaged.values():
                _LOGGER.warning("%s is damaged (%s); %s is read instead", error.path, error.reason, path)
            _LOGGER.info("read %s", path)
            return Weights(infos[step].config, step, slow)
    raise damaged[max(damaged)]


def _score(info: _Info) -> float:
    return -np.inf if info.primary is None else info.primary


def _steps(folder: Path) -> list[int]:
    """The steps that a folder has checkpoints of."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a checkpoint from another one of the same name; None if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read_infos(folder: Path, listed: Mapping[int, Any] | None = None) -> tuple[dict[int, _Info], dict[int, DamagedError]]:
    """The records of all checkpoints, and what is wrong with those that cannot be read.

    Raises:
      CheckpointError: if one of ``listed`` was replaced meanwhile.
    """
    infos, damaged = {}, {}
    for step in _steps(folder) if listed is None else listed:
        try:
            infos[step] = _read_info(folder / str(step))
        except DamagedError as error:
            if listed is not None and _identity(folder / str(step)) != listed[step]:
                raise
            damaged[step] = error
    return infos, damaged


def _read_info(path: Path) -> _Info:
    info = read_record(path / "info" / "metadata", _Info)
    if (info.digest is None) != (info.digests is None):
        raise _wrong(path, "its record has lost its digest")
    if info.progress.step != int(path.name):
        raise _wrong(path, f"its record is that of step {info.progress.step}")
    if info.digests is None:
        primary = read_record(path / "metrics" / "metrics", _OlderMetrics).primary
        info = info.model_copy(update={"primary": None if primary == _NOT_EVALUATED else primary})
    return info


def _read(path: Path, target: Mapping[str, Any], info: _Info, *, alone: bool = False) -> dict[str, Any]:
    """The trees of a checkpoint, as they were saved. All processes call it, but where one reads ``alone``.

    Raises:
      CheckpointError: if they cannot be read, or are others.
    """
    items = {name: ocp.args.StandardRestore(tree) for name, tree in target.items()}
    trees, failed = {}, None
    try:
        for name, item in items.items():
            with _quietly(), closing(ocp.StandardCheckpointHandler()) as handler:
                directory: Any = (path / name).absolute()  # Orbax takes any path, and declares its own
                trees[name] = handler.restore(directory, args=item)
    except Exception as error:  # Orbax documents none, and raises those of several libraries
        failed = unreadable(path, error)
    if alone and failed is not None:
        raise failed
    if not alone:
        _check_everywhere(path, failed)
    if info.digests is None:
        _LOGGER.warning("%s was saved by an older version, without digests: whether it is damaged cannot be told", path)
        return trees
    wrong = [f"{name}{leaf}" for name, tree in trees.items() for leaf in different(tree, info.digests.get(name, {}))]
    failed = _wrong(path, f"the array {wrong[0]} is not the one that was saved") if wrong else None
    if alone and failed is not None:
        raise failed
    if not alone:
        _check_everywhere(path, failed)
    return trees


def _signed(info: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a checkpoint with the digests of its arrays, and its own."""
    info["digests"] = dict(found)
    info[SELF] = digest_of(info)
    return info


def _saved_shapes(path: Path, on_host: bool) -> Any:
    """What to restore the slow weights of a checkpoint to: on the host, or on the default device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        with _quietly(), closing(ocp.StandardCheckpointHandler()) as handler:
            directory: Any = path.absolute() / "slow"
            saved: Any = handler.metadata(directory)
        return jax.tree.map(
            lambda leaf: _on_host(leaf) if on_host else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            dict(saved),
            is_leaf=lambda leaf: hasattr(leaf, "shape"),
        )
    except Exception as error:
        raise unreadable(path, error) from error


def _on_host(leaf: Any) -> np.ndarray:
    """What makes Orbax read a leaf into the host's memory: an array of its shape, which itself takes none."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


@contextmanager
def _quietly() -> Iterator[None]:
    """Orbax logs what it raises as well, with its traceback."""
    _drop_echoes()
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _drop_echoes() -> None:
    """Of arrays that are read at once, one that fails ends asyncio's loop, and the others then complain that it is closed, from threads
    that nobody waits for, or when they are collected. The first error says what there is to say."""
    warnings.filterwarnings("ignore", r"coroutine '(Store\.|_read_array|_deserialize).* was never awaited", RuntimeWarning)
    asyncio, absl = logging.getLogger("asyncio"), logging.getLogger("absl")
    if _is_no_echo not in asyncio.filters:
        asyncio.addFilter(_is_no_echo)
    if _is_no_thread not in absl.filters:
        absl.addFilter(_is_no_thread)
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:
        sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _is_no_echo(record: logging.LogRecord) -> bool:
    return not any(library in record.getMessage() for library in _READERS)


def _is_no_thread(record: logging.LogRecord) -> bool:
    """A thread of Orbax whose write failed says so with a traceback, at times after the error that it caused was raised."""
    return "_SignalingThread" not in record.getMessage()


def _unraisable(otherwise: Callable[[Any], None], unraisable: Any) -> None:
    closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    if not closed and not (code is not None and any(library in code.co_filename for library in _READERS)):
        otherwise(unraisable)


def _wrong(path: Path, reason: str) -> DamagedError:
    return unreadable(path, RecordError(reason))


def _reason(error: Exception) -> str:
    if isinstance(error, DamagedError):
        return f"what is read back is not what was written: {error.reason}"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def _check_everywhere(path: Path, error: DamagedError | None) -> None:
    """Raise an error of one process in all of them: one that went on alone would wait for the others for ever."""
    failed = error is not None
    if jax.process_count() > 1:
        failed = bool(np.any(multihost_utils.process_allgather(np.array(failed))))
    if failed:
        raise error or DamagedError(path, "another process of this run cannot read it; its message says why")


def _together() -> None:
    """Return when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("bdh_jax.runs.checkpoint")
