"""Train a table of settings, each at its best rate: ``bdh sweep nback --workdir=runs/sweep``.

    bdh sweep nback --workdir=runs/rules --rows=model.fast.rule=hebbian,delta
        --grid=optimizer.learning_rate=1e-3,2e-3,4e-3
    bdh sweep nback --workdir=runs/variants --variants=':;baseline'
        --grid=optimizer.learning_rate=4e-3,8e-3,1.6e-2 --seeds=0,1,2,3,4

Every row is trained at each point of the grid with --validation_seed. The point with the best score is the row's, and with it the row
is trained with --seeds, which are what the table shows. A value is written as in --config.KEY=VALUE; a tuple stands in parentheses:
--grid=task.train_pairs=(8,),(4,8).

The same command goes on where it stopped, also with more rows, values or seeds, and trains only what is missing. A run that diverges is
a result. Writes ``results.json``, ``table.md`` and ``figure.png`` into the workdir, beside a training run's folder for each run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from bdh_jax.commands._flags import define_config, define_path, numbers, read_values
from bdh_jax.commands._output import save_figure, write_output
from bdh_jax.config import ConfigError
from bdh_jax.console import show
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.runs.signals import Stopped, number_of
from bdh_jax.sweep import FIGURE, TABLE, VALIDATION_SEED, plan, run

_LOGGER = logging.getLogger("bdh_jax")

_CONFIG = define_config()
_WORKDIR = define_path("workdir", "Folder of the sweep; goes on with the one it holds.")
_ROWS = flags.DEFINE_multi_string(
    "rows",
    [],
    "KEY=VALUE,VALUE,…: a row for each value of a key of the configuration; of several keys, for all combinations.",
)
_VARIANTS = flags.DEFINE_string(
    "variants",
    None,
    "A row for each of these variants of the experiment, with semicolons between, since commas join variants; ':' or nothing is the "
    "experiment as --config names it.",
)
_GRID = flags.DEFINE_multi_string(
    "grid", [], "KEY=VALUE,VALUE,…: what each row chooses from; of several keys, all combinations."
)
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds that are reported. Default: config.seeds, or 0,1,2.")
_VALIDATION_SEED = flags.DEFINE_integer("validation_seed", VALIDATION_SEED, "Seed by which is chosen.", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Train what is missing of the sweep that the flags describe, and print its tables.

    Raises:
      ConfigError: a flag is missing or wrong, or a configuration cannot be run.
      Stopped: by a signal between two runs.
    """
    del argv
    if _CONFIG.value is None:
        raise ConfigError("--config is missing: name an experiment, such as `bdh sweep nback`; `bdh list` has all")
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name a folder for the runs of the sweep, such as --workdir=runs/sweep")
    rows = read_values(_CONFIG.value, "rows", _ROWS.value)
    grid = read_values(_CONFIG.value, "grid", _GRID.value)
    for flag, keys in (("rows", rows), ("grid", grid)):
        twice = next((key for key in keys if key in _CONFIG.keys), None)
        if twice is not None:
            raise ConfigError(f"--config.{twice} and --{flag}={twice} both set {twice}; leave out one of them")
    seeds = None if _SEEDS.value is None else numbers("seeds", _SEEDS.value, int)
    planned = plan(_experiments(_CONFIG.value), rows=rows, grid=grid, seeds=seeds, validation_seed=_VALIDATION_SEED.value)
    workdir = Path(_WORKDIR.value)
    try:
        result = run(planned, workdir)
    except KeyboardInterrupt as stopped:
        raise Stopped(
            number_of(stopped),
            f"aborted; runs that are finished, and what others saved, wait in {workdir} for the same command",
        ) from None
    write_output(workdir / TABLE, result.markdown())
    save_figure(result.plot, workdir / FIGURE)
    show(*result.tables(), keys=result.key_columns)


def _experiments(experiment: ExperimentConfig) -> dict[str, ExperimentConfig]:
    """The experiment, by the variants that --variants adds to it."""
    named = [""] if _VARIANTS.value is None else [name.strip().removeprefix(":") for name in _VARIANTS.value.split(";")]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--variants={_VARIANTS.value} names {twice or ':'} twice; leave out one of them")
    return {name: _CONFIG.with_variants(name) if name else experiment for name in named}
