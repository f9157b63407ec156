"""How many facts a matrix of fast weights holds: ``bdh capacity --out=runs/capacity``.

Prints a table of F95, the number of facts of which 95 in 100 are recalled, for each write rule and kind of address, and writes
``results.json`` and ``figure.png`` into ``--out``. With ``--workdir`` the addresses of a trained model have rows of their own.
docs/results/capacity.md says more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from bdh_jax.analysis import fact_capacity as capacity
from bdh_jax.commands._flags import define_path, numbers
from bdh_jax.commands._output import result_files, save_figure, write_record
from bdh_jax.config import ConfigError
from bdh_jax.console import show
from bdh_jax.experiment import load_as
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.runs.folder import seed_folders
from bdh_jax.runs.provenance import describe_start
from bdh_jax.tasks.facts import VOCABULARY
from bdh_jax.types import Slow

_OUT = define_path("out", "Folder for results.json and figure.png.")
_WORKDIR = define_path("workdir", "Folder of a training run with configs/lifelong.py, of one seed or several.")
_RULES = flags.DEFINE_list("rules", list(capacity.RULES), "Write rules.")
_ROWS = flags.DEFINE_list("rows", ["128", "256", "512", "1024"], "Numbers of rows K.")
_ACTIVE = flags.DEFINE_list("active", ["0.01", "0.03", "0.1", "0.3", "1"], "Shares of active rows, at --at_rows.")
_AT_ROWS = flags.DEFINE_integer("at_rows", 1024, "K for --active.")
_AT_ACTIVE = flags.DEFINE_float("at_active", 0.03, "Share of active rows for --rows.")
_SEEDS = flags.DEFINE_integer("trials", 3, "Trials of each entry.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that are there.")


def main(argv: Sequence[str]) -> None:
    """Measure what the flags describe.

    Raises:
      ConfigError: a flag is missing or wrong, or results are there already.
    """
    del argv
    if not _OUT.value:
        raise ConfigError("--out is missing: name a folder for the results, such as --out=runs/capacity")
    out = Path(_OUT.value)
    with result_files(out, overwrite=_OVERWRITE.value) as files:
        if _SEEDS.value < 1:
            raise ConfigError(f"--trials={_SEEDS.value} must be at least 1")
        rows = numbers("rows", _ROWS.value, int)
        kinds = [capacity.Addresses(count, _AT_ACTIVE.value) for count in rows]
        kinds += [capacity.Addresses(_AT_ROWS.value, share) for share in numbers("active", _ACTIVE.value, float)]
        kinds += [capacity.Addresses(count, None) for count in rows]
        if not kinds:
            raise ConfigError("--rows and --active name nothing to draw addresses for; give one of them a number")
        result = capacity.measure(
            list(dict.fromkeys(kinds)), rules=_RULES.value, seeds=range(_SEEDS.value), trained=_trained()
        )
        record = {"entries": result.to_dict(), "start": describe_start(0, 0)}
        write_record(files["results.json"], record)
        save_figure(result.plot, files["figure.png"])
        show(result.table(), keys=3)


def _trained() -> Sequence[tuple[BDH, Slow]]:
    if not _WORKDIR.value:
        return ()
    workdir = Path(_WORKDIR.value)
    models = [load_as(BDHConfig, folder, "last") for folder in seed_folders(workdir) or [workdir]]
    for config, _ in models:
        if config.vocab_size != VOCABULARY or not config.fast.enabled:
            raise ConfigError(
                f"--workdir={workdir}: vocab_size={config.vocab_size}, fast.enabled={config.fast.enabled}; the keys are those of "
                f"configs/lifelong.py (vocab_size={VOCABULARY}), and their addresses need fast weights"
            )
    return [(BDH(config), slow) for config, slow in models]
