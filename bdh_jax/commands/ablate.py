"""Score a trained model with parts of it switched off: ``bdh ablate --workdir=runs/nback``.

The model comes from the workdir, and so does the task, unless ``--config`` names another. Of a run over several seeds all models
are scored, and the tables have mean and spread. docs/results/ablations.md says what is switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bdh_jax.analysis import ablations
from bdh_jax.commands._flags import define_choice, define_config, define_path
from bdh_jax.commands._output import new_file, write_record
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import to_dict
from bdh_jax.console import show
from bdh_jax.experiment import load_as, read_experiment
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.runs.checkpoint import WHICH
from bdh_jax.runs.folder import seed_folders

_CONFIG = define_config()
_WORKDIR = define_path("workdir", "Folder of a training run, of one seed or several.")
_WHICH = define_choice("which", "last", WHICH, "Which checkpoint to score.")
_OUT = define_path("out", "New file for the scores, as JSON; without it they are only printed.")


def main(argv: Sequence[str]) -> None:
    """Print the tables of the model that the flags name.

    Raises:
      ConfigError: a flag is missing, the file to write exists, or the task and the model do not fit.
    """
    del argv
    out = new_file(_OUT.value)
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/nback")
    workdir = Path(_WORKDIR.value)
    folders = seed_folders(workdir) or [workdir]
    models = [load_as(BDHConfig, folder, _WHICH.value) for folder in folders]
    experiment = _CONFIG.value or read_experiment(folders[0])
    task = experiment.task.make(seed=experiment.seed, batch_size=experiment.train.batch_size, data=experiment.data)
    results = [ablations.run(config, slow, task) for config, slow in models]
    show(ablations.score_table(results))
    if results[0].addresses:
        print()
        show(ablations.address_table(results), keys=2)
    if out is not None:
        record = {"task": to_dict(experiment.task), "workdir": _WORKDIR.value, "which": _WHICH.value}
        write_record(
            out, {**record, "models": {folder.name: r.to_dict() for folder, r in zip(folders, results, strict=True)}}
        )
