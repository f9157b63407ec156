"""The same training with several seeds: a folder each, and one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bdh_jax.runs.checkpoint import Checkpoints
from bdh_jax.runs.folder import (
    CHECKPOINTS,
    RESULTS,
    RUN,
    CheckpointError,
    Record,
    Summary,
    check_same_config,
    finished,
    read_json,
    read_record,
    seed_folders,
    trained_texts,
    write_json,
)
from bdh_jax.runs.signals import name_of
from bdh_jax.tasks.base import Task
from bdh_jax.tasks.scores import summarise
from bdh_jax.training.init_from import find_source
from bdh_jax.training.loop import Interrupted, train_in
from bdh_jax.training.setup import Setup


def train_seeds(
    workdir: Path,
    seeds: tuple[int, ...],
    setup_of: Callable[[int], Setup],
    make_task: Callable[[Setup], Task],
    record: Record,
) -> dict[str, Any]:
    """Train one seed after the other, each in its folder ``seed<k>``, and write ``results.json`` with mean and spread.

    Args:
      workdir: the run's folder, which the caller holds (:func:`bdh_jax.runs.lock.only_writer`).
      seeds: which, in this order.
      setup_of: seed → its training.
      make_task: its task. It is not called for a seed that is finished.
      record: the configuration of all of them together.

    Returns:
      What ``results.json`` holds.

    Raises:
      CheckpointError: if the folder holds something else, or more seeds than are asked for.
      ConfigError, NonFiniteError, Interrupted: as :func:`bdh_jax.training.loop.train`.
    """
    if (workdir / CHECKPOINTS).exists() or (workdir / RUN).exists():
        raise CheckpointError(f"{workdir} holds a run of one seed; use another --workdir for config.seeds={seeds}")
    _check_summary(workdir, seeds, record)
    for folder in seed_folders(workdir):
        _check_folder(folder, setup_of(int(folder.name[4:])).record)
    trained_texts(seed_folders(workdir))
    for seed in seeds:
        source = setup_of(seed).train.init_from
        if source is not None and not (workdir / f"seed{seed}" / RUN).exists():
            # Said before the first seed has trained, not after it.
            find_source(source, seed)
    runs: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        setup = setup_of(seed)
        folder = workdir / f"seed{seed}"
        runs[str(seed)], stopped_by = train_in(folder, setup, lambda setup=setup: make_task(setup), seed_folders(workdir))
        if stopped_by is not None and seed != seeds[-1]:
            raise Interrupted(
                f"{name_of(stopped_by)}: seed {seed} is finished; the same command goes on with the next one in {workdir}",
                stopped_by,
            )
    mean, spread = summarise(list(runs.values()))
    results = {
        "config": record.config,
        "seeds": list(seeds),
        "steps": next(iter(runs.values()))["steps"],
        "seconds": sum(r["seconds"] for r in runs.values()),
        "mean": mean,
        "spread": spread,
        "runs": {seed: {key: r[key] for key in r if key != "config"} for seed, r in runs.items()},
    }
    write_json(workdir / RESULTS, results)
    return results


def _check_folder(workdir: Path, record: Record) -> None:
    """Refuse a folder whose results, checkpoints or metrics another configuration made."""
    if finished(workdir, record) is None:
        Checkpoints(workdir, record).close()


def _check_summary(workdir: Path, seeds: tuple[int, ...], record: Record) -> None:
    """Refuse to replace ``results.json`` of several seeds by what is no run's, another configuration's, or of fewer seeds."""
    path = workdir / RESULTS
    if not path.exists():
        return
    stored = read_json(path)
    if not isinstance(stored, dict) or "config" not in stored or "seeds" not in stored:
        raise CheckpointError(f"{path} is not of a training run over several seeds; move it, or use another --workdir")
    summary = read_record(path, Summary)
    check_same_config(workdir, {**summary.config, "seeds": list(seeds)}, record, seed_folders(workdir))
    missing = [seed for seed in summary.seeds if seed not in seeds]
    if missing:
        together = ",".join(map(str, dict.fromkeys([*summary.seeds, *seeds])))
        raise CheckpointError(
            f"{path} has the results of seeds {summary.seeds}, and --config.seeds={','.join(map(str, seeds))} would leave "
            f"{missing} out; give --config.seeds={together}, or another --workdir"
        )
