"""Score a trained model on a task, without training: ``python -m bdh_jax.evaluate --workdir=runs/nback --config=configs/counter.py``.

The model comes from the workdir, the task from the configuration; everything else of the configuration is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich.console
from absl import flags

from bdh_jax import cli
from bdh_jax.config import ConfigError, MeshConfig
from bdh_jax.model import BDH
from bdh_jax.sharding import make_mesh
from bdh_jax.tasks import make_task
from bdh_jax.training.checkpoint import load
from bdh_jax.training.step import make_predict

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run (of one seed).")
_WHICH = flags.DEFINE_enum("which", "last", ["last", "best"], "Which checkpoint to score.")


def main(argv: Sequence[str]) -> None:
    """Print the table of the model and the task that the flags name.

    Raises:
      ConfigError: a flag is missing, or the model does not know the task's tokens.
    """
    del argv
    if _CONFIG.value is None:
        raise ConfigError("--config is missing: name the configuration of a task, such as --config=configs/counter.py")
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/nback")
    experiment = cli.experiment(_CONFIG.value)
    config, slow = load(Path(_WORKDIR.value), _WHICH.value)
    task = make_task(experiment.task, seed=experiment.seed, batch_size=experiment.train.batch_size)
    if task.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the task has token ids up to {task.vocab_size - 1}, but the model in {_WORKDIR.value} was trained with "
            f"vocab_size={config.vocab_size}: it knows none of the others"
        )
    evaluation = task.evaluate(make_predict(BDH(config), make_mesh(MeshConfig()))(slow))
    rich.console.Console().print(evaluation.table())


if __name__ == "__main__":
    cli.run(main)
