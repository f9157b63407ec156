"""Train one experiment: ``bdh train nback --workdir=runs/nback``.

    bdh train nback:text,clean --workdir=runs/text    with variants
    bdh train mine.py --workdir=runs/mine             a file of your own
    bdh train nback --workdir=runs/wide --config.model.d_model=128
    bdh train --workdir=runs/nback                    goes on there

``bdh list`` names the experiments, ``bdh config nback`` the keys of one. Run it again to resume, or, once finished, to print the table
again. ``python -m bdh_jax.main`` takes the same flags. Exit status: 0 finished, 1 loss or gradient not finite,
2 a mistake in what was asked, 75 another process of the run is gone, 128 + n after signal n: Ctrl-C (130), SIGTERM (143), SIGHUP (129) and SIGUSR1 (138) save first. A second
Ctrl-C aborts at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import flags

from bdh_jax.commands._flags import define_config, define_path
from bdh_jax.commands._process import GONE, gone
from bdh_jax.config import ConfigError
from bdh_jax.console import show_error, suggest
from bdh_jax.experiment import ExperimentConfig, run
from bdh_jax.parallel import processes
from bdh_jax.runs import signals
from bdh_jax.tasks.facts import FactsConfig
from bdh_jax.tasks.text import TextConfig

_LOGGER = logging.getLogger("bdh_jax")

_CONFIG = define_config()
_WORKDIR = define_path("workdir", "Folder for checkpoints, metrics and results; resumes what it holds.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "With --config.mesh.distributed=True, where no cluster is found by itself: HOST:PORT of process 0, with the two below.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main(argv: Sequence[str]) -> None:
    """Train what the flags ask for.

    Raises:
      ConfigError: a flag is missing, or the experiment cannot be run as configured.
    """
    del argv
    if _CONFIG.value is None:
        there = f", and --workdir={_WORKDIR.value} holds no run to go on with" if _WORKDIR.value else ""
        raise ConfigError(
            f"--config is missing{there}: name an experiment, such as --config=nback, or a file; `bdh list` has all experiments"
        )
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name a folder for checkpoints and results, such as --workdir=runs/nback")
    config = _CONFIG.value
    named = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if config.mesh.distributed:
        processes.join(*named)
    elif named != (None, None, None):
        raise ConfigError(
            "--coordinator, --num_processes and --process_id join processes, and mesh.distributed=False: add "
            "--config.mesh.distributed=True, or leave them out"
        )
    workdir = Path(_WORKDIR.value)
    with processes.watched(_end):
        run(config, workdir)
    if jax.process_index() == 0:
        _LOGGER.info("results, metrics and checkpoints are in %s", workdir)
        suggest(*_next(config, workdir))


def _end(who: str) -> None:
    """End this process, since another one is gone. It may hang in what only all of them can do together."""
    show_error(gone(who))
    signals.leave(GONE)


def _next(config: ExperimentConfig, workdir: Path) -> Iterator[str]:
    """Commands that say more of what was trained."""
    one = workdir / f"seed{config.seeds[0]}" if config.seeds else workdir
    if isinstance(config.task, FactsConfig):
        yield f"bdh lifelong --workdir={workdir}"
    elif config.task.reads_text:
        if config.model.has_state:
            yield f'bdh generate --workdir={one} --prompt="To be"'
        whole = isinstance(config.task, TextConfig)
        yield f"bdh score-text --workdir={workdir}" if whole else f"bdh evaluate --workdir={one}"
    else:
        yield f"bdh evaluate --workdir={one}"
        if config.model.has_fast_weights and config.task.token_meaning() == "integers":
            yield f"bdh ablate --workdir={workdir}"
