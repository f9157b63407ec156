"""Make one model of several trained ones: ``bdh merge runs/de runs/fr --out=runs/both``.

The runs are folders of training, of one seed each, whose models began as one (``train.init_from``): models that did not have little to do
with each other's numbers. What is written is a run's folder before its first step. `bdh evaluate`, `bdh generate` and `bdh score-text`
read it, `train.init_from` starts from it, and `bdh train` goes on there, with the task and text of the first run.

    --mode=neurons  heads go on with the neurons of the next model, as in the
                    paper; they keep their rotary phases
    --mode=heads    heads stand side by side, and meet in the decoder alone
    --mode=average  the mean of all weights: nothing grows
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bdh_jax.analysis import merging
from bdh_jax.commands._flags import define_choice, define_path
from bdh_jax.config import ConfigError
from bdh_jax.console import suggest
from bdh_jax.experiment import ExperimentConfig, load_at, read_experiment, tokenizer_of, write_made
from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.runs.checkpoint import WHICH
from bdh_jax.training.made_run import check_new
from bdh_jax.types import Slow

ARGUMENTS = "RUN"
_OUT = define_path("out", "New folder for the merged model.")
_MODE = define_choice("mode", "neurons", merging.MODES, "How they are put together.")
_WHICH = define_choice("which", "last", WHICH, "Which checkpoint of each run.")

_LOGGER = logging.getLogger("bdh_jax")


class Source(NamedTuple):
    """One of the runs."""

    folder: Path
    experiment: ExperimentConfig
    config: ModelConfig
    slow: Slow
    step: int
    tokens: str
    """What its token ids are."""


def main(argv: Sequence[str]) -> None:
    """Merge what the arguments name.

    Raises:
      ConfigError: fewer than two runs, no ``--out``, a folder that holds something, or models that do not fit; it names the runs.
      CheckpointError: a run cannot be read.
    """
    named = [Path(name) for name in argv[1:]]
    if len(named) < 2:
        raise ConfigError("name two runs or more, such as: bdh merge runs/de runs/fr --out=runs/both")
    if not _OUT.value:
        raise ConfigError("--out is missing: name a new folder for the merged model, such as --out=runs/both")
    out = Path(_OUT.value)
    check_new(out)
    sources = [_read(folder) for folder in named]
    for other in sources[1:]:
        if other.tokens != sources[0].tokens:
            raise ConfigError(
                f"the token ids of {sources[0].folder} are {sources[0].tokens}, and those of {other.folder} are {other.tokens}: merge models of "
                "one tokenizer"
            )
    try:
        config, slow = merging.merge([(source.config, source.slow) for source in sources], _MODE.value)
    except ConfigError as error:
        names = ", ".join(f"model {number} is {source.folder}" for number, source in enumerate(sources, 1))
        raise ConfigError(f"{error} ({names})") from error
    first = sources[0]
    experiment = dataclasses.replace(
        first.experiment, model=config, train=dataclasses.replace(first.experiment.train, init_from=None)
    )
    parts = [{"folder": str(source.folder), "step": source.step} for source in sources]
    write_made(experiment, slow, out, {"merged": parts, "mode": _MODE.value}, like=first.folder)
    weights = count_parameters(config.build().declared_slow())
    _LOGGER.info("%s models merged (%s): %s weights in %s", len(sources), _MODE.value, f"{weights:,}", out)
    suggest(f"bdh evaluate --workdir={out}", f"bdh train --workdir={out}")


def _read(folder: Path) -> Source:
    config, slow, step = load_at(folder, _WHICH.value)
    experiment = read_experiment(folder)
    tokenizer = tokenizer_of(folder) if experiment.task.reads_text else None
    meaning: Any = experiment.task.token_meaning(tokenizer)
    return Source(folder, experiment, config, slow, step, meaning)
