"""Give a trained model more neurons: ``bdh grow --workdir=runs/text --n_neurons=2048 --out=runs/grown``.

New heads stand beside the old ones, and nothing reads them before they are trained, so that the grown model computes what the old one does.
What is written is a run's folder before its first step: `bdh train` goes on there, `train.init_from` starts from it.

    --along=neurons  new neurons in the heads that are there, which take part
                     in their attention at once: outputs change
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from bdh_jax.analysis import merging
from bdh_jax.commands._flags import define_choice, define_path
from bdh_jax.config import ConfigError
from bdh_jax.config.seeds import key_of
from bdh_jax.console import suggest
from bdh_jax.experiment import load_at, read_experiment, write_made
from bdh_jax.models.base import count_parameters
from bdh_jax.runs.checkpoint import WHICH
from bdh_jax.training.made_run import check_new

_WORKDIR = define_path("workdir", "Folder of a training run (of one seed).")
_OUT = define_path("out", "New folder for the grown model.")
_N_NEURONS = flags.DEFINE_integer("n_neurons", None, "Neurons over all heads, after growing.", lower_bound=1)
_ALONG = define_choice("along", "heads", merging.ALONG, "Where the new ones stand.")
_WHICH = define_choice("which", "last", WHICH, "Which checkpoint of the run.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the new weights.", lower_bound=0, upper_bound=2**64 - 1)
_LOGGER = logging.getLogger("bdh_jax")


def main(argv: Sequence[str]) -> None:
    """Grow what the flags name.

    Raises:
      ConfigError: a flag is missing, a folder that holds something, or a model that cannot grow so.
      CheckpointError: the run cannot be read.
    """
    del argv
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/text")
    if not _OUT.value:
        raise ConfigError("--out is missing: name a new folder for the grown model, such as --out=runs/grown")
    if _N_NEURONS.value is None:
        raise ConfigError("--n_neurons is missing: say how many neurons there are to be, such as --n_neurons=2048")
    folder, out = Path(_WORKDIR.value), Path(_OUT.value)
    check_new(out)
    config, slow, step = load_at(folder, _WHICH.value)
    wider, grown = merging.grow(config, slow, _N_NEURONS.value, key_of(_SEED.value), _ALONG.value)
    experiment = read_experiment(folder)
    train = dataclasses.replace(experiment.train, init_from=None)
    made_of = {"grown": {"folder": str(folder), "step": step}, "along": _ALONG.value, "seed": _SEED.value}
    write_made(dataclasses.replace(experiment, model=wider, train=train), grown, out, made_of, like=folder)
    weights = count_parameters(wider.build().declared_slow())
    _LOGGER.info("grown to %s neurons: %s weights in %s", f"{_N_NEURONS.value:,}", f"{weights:,}", out)
    suggest(f"bdh train --workdir={out}")
