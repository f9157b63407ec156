"""A run's folder for slow weights that no training made: merged ones, or grown ones.

It holds what a run holds before its first step: these weights, a fresh state of the optimiser, and the configuration. So whatever reads a
run reads it, and training goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bdh_jax.config import ConfigError
from bdh_jax.config.paths import check_writable
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.checkpoint import Checkpoints, RunProgress, check_name
from bdh_jax.runs.fingerprint import slow_hash
from bdh_jax.runs.folder import BELOW, RUN, RunFile, text_digest, write_json, write_text
from bdh_jax.runs.lock import LOCK, only_writer
from bdh_jax.runs.provenance import describe_start
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.setup import Setup
from bdh_jax.training.state import saved_trees, state_from
from bdh_jax.types import Slow


def check_new(workdir: Path) -> None:
    """Refuse a folder that holds anything, or that cannot be written.

    Raises:
      ConfigError: names it.
    """
    check_name(workdir)
    check_writable(workdir / RUN, BELOW)
    found = sorted(path.name for path in workdir.iterdir() if path.name != LOCK) if workdir.is_dir() else []
    if found:
        raise ConfigError(f"{workdir} holds {found[0]!r} already; name a new folder")


def write_made_run(
    workdir: Path, setup: Setup, slow: Slow, made_of: Mapping[str, Any], like: RunFile, files: Mapping[str, str]
) -> None:
    """Write a run that stands before its first step.

    Args:
      workdir: a new folder, or an empty one.
      setup: how it would be trained.
      slow: its weights.
      made_of: what they were made of, for the run's record.
      like: the record of a run with the same task and text.
      files: what else the task keeps in the folder, name → content.

    Raises:
      ConfigError: if the folder holds anything.
      CheckpointError: if it cannot be written.
    """
    with only_writer(workdir):
        check_new(workdir)
        mesh = make_mesh(MeshConfig(data=1))
        model, host = setup.model.build(), jax.tree.map(np.asarray, slow)
        rows = setup.train.batch_size if setup.train.carry_state else None
        state = state_from(
            model, make_optimizer(setup.optimizer, setup.train.steps), mesh, host, make_hooks(setup.hooks, model), rows
        )
        for name, content in files.items():
            write_text(workdir / name, content)
        values = {
            "config": setup.record.config,
            "text": like.text,
            "files": list(files),
            "file_digests": {name: text_digest(content) for name, content in files.items()},
            "starts": [describe_start(0, setup.seed)],
            "init_from": {**made_of, "slow": slow_hash(host)},
        }
        write_json(workdir / RUN, values)
        checkpoints = Checkpoints(workdir, setup.record)
        try:
            progress = RunProgress(step=0, seconds=0.0, training_seconds=0.0, tokens=0, evaluated=False)
            checkpoints.save(saved_trees(state), progress)
        finally:
            checkpoints.close()
