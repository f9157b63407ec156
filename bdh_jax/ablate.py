"""Score a trained model with parts of it switched off: ``python -m bdh_jax.ablate --workdir=runs/nback``.

The model comes from the workdir, and so does the task, unless ``--config`` names another. docs/ablations.md says what is switched
off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich.console
from absl import flags

from bdh_jax import cli
from bdh_jax.config import ConfigError
from bdh_jax.evaluation import ablations
from bdh_jax.tasks import make_task
from bdh_jax.training.checkpoint import load_bdh
from bdh_jax.training.record import experiment_of

_CONFIG = cli.define_config()
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run (of one seed).")
_WHICH = flags.DEFINE_enum("which", "last", ["last", "best"], "Which checkpoint to score.")


def main(argv: Sequence[str]) -> None:
    """Print the tables of the model that the flags name.

    Raises:
      ConfigError: a flag is missing, or the task and the model do not fit.
    """
    del argv
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/nback")
    workdir = Path(_WORKDIR.value)
    config, slow = load_bdh(workdir, _WHICH.value)
    if _CONFIG.value is None:
        experiment = experiment_of(workdir)
    else:
        experiment = cli.experiment(_CONFIG.value)
    ablations.check_task(experiment.task)
    task = make_task(experiment.task, seed=experiment.seed, batch_size=experiment.train.batch_size)
    result = ablations.run(config, slow, task)
    console = rich.console.Console()
    console.print(result.table())
    if result.addresses:
        console.print()
        console.print(result.address_table())


if __name__ == "__main__":
    cli.run(main)
