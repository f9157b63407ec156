"""The lifelong benchmark on trained models: ``bdh lifelong --workdir=runs/lifelong``.

The models come from the workdir, one or several seeds, and so does the number of facts that they know. Prints the tables and writes
``results.json``, ``figure.png`` and ``course.png`` (scores along the stream) into ``WORKDIR/lifelong`` or ``--out``. With several
numbers of facts, ``--facts=256,1024,4096``, tables and figure compare them.

Rows that are done wait in ``unfinished.json`` there until all are: the same command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from bdh_jax.commands._flags import define_choice, define_config, define_path, numbers
from bdh_jax.commands._output import result_files, save_figure, write_record
from bdh_jax.config import ConfigError
from bdh_jax.console import show
from bdh_jax.consolidation import make_function
from bdh_jax.experiment import as_kind, load_as, read_experiment
from bdh_jax.lifelong import sweep as lifelong_sweep
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.lifelong.contestants import CONTESTANTS, LEAST_SQUARES_RIDGE, Contestant, contestants, own_function
from bdh_jax.lifelong.finished_rows import FinishedRows, settings_of
from bdh_jax.lifelong.stream import StreamConfig
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.runs.checkpoint import WHICH
from bdh_jax.runs.folder import seed_folders
from bdh_jax.runs.provenance import describe_start
from bdh_jax.runs.signals import Stopped, number_of
from bdh_jax.tasks.facts import FactsConfig

_LOGGER = logging.getLogger("bdh_jax")

_CONFIG = define_config()
_WORKDIR = define_path("workdir", "Folder of a training run, of one seed or several.")
_OUT = define_path("out", "Folder for results.json and figures; default: lifelong in the workdir.")
_WHICH = define_choice("which", "last", WHICH, "Which checkpoint to test.")
_FACTS = flags.DEFINE_list("facts", ["1024"], "Facts of a stream; several numbers to compare them.")
_STREAMS = flags.DEFINE_integer("streams", 10, "Test streams.")
_VALIDATION = flags.DEFINE_integer("validation_streams", 1, "Streams on which the first model chooses rates.")
_SEED = flags.DEFINE_integer("stream_seed", 0, "Seed of the first stream.", lower_bound=0)
_FUNCTIONS = flags.DEFINE_list(
    "functions",
    None,
    "Rows of the table, by name or as module:function; default all. NAME=RATE takes this rate instead of choosing one; 1 is a function "
    "of your own as it stands.",
)
_REFERENCE = flags.DEFINE_string("reference", "dense", "Row that the others are compared with, or none.")
_RIDGE = flags.DEFINE_float("ridge", LEAST_SQUARES_RIDGE, "Ridge of least_squares, kalman and null_space.", lower_bound=1e-9)
_LAYERS = flags.DEFINE_list("layers", None, "Layers, from 0, that these three and mesa consolidate; default all.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace results that are there, and rows of an interrupted run with other settings."
)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark that the flags describe.

    Raises:
      ConfigError: a flag is missing or wrong, or results are there already.
    """
    del argv
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/lifelong")
    workdir = Path(_WORKDIR.value)
    folders = seed_folders(workdir) or [workdir]
    experiment = _CONFIG.value or read_experiment(folders[0])
    if not isinstance(experiment.task, FactsConfig):
        named = "--config" if flags.FLAGS["config"].present else f"--workdir={workdir}"
        raise ConfigError(
            f"{named} has the task {experiment.task.name!r}; the benchmark needs facts: train with `bdh train lifelong --workdir=…`"
        )
    out = Path(_OUT.value) if _OUT.value else workdir / "lifelong"
    layers = _layers(as_kind(BDHConfig, experiment.model, workdir).memory_slots)
    rows, rates = _rows(_FUNCTIONS.value or list(CONTESTANTS), contestants(_RIDGE.value, layers))
    if flags.FLAGS["reference"].present and _REFERENCE.value not in (*rows, "none"):
        raise ConfigError(
            f"--reference={_REFERENCE.value} is not among the rows: {', '.join(rows)}; --reference=none compares with nothing"
        )
    facts = numbers("facts", _FACTS.value, int)
    config = LifelongConfig(
        stream=StreamConfig(pairs=experiment.task.pairs),
        streams=_STREAMS.value,
        validation_streams=_VALIDATION.value,
        seed=_SEED.value,
        known=experiment.task.known,
        reference=_REFERENCE.value,
    )
    with result_files(out, ("figure.png", "course.png"), overwrite=_OVERWRITE.value) as files:
        models = [load_as(BDHConfig, folder, _WHICH.value) for folder in folders]
        for folder in folders:
            _check_trained(folder, experiment.task)
        slows = [slow for _, slow in models]
        solved = {"ridge": _RIDGE.value, "layers": layers}
        unfinished = out / "unfinished.json"
        settings = {**settings_of(slows), "model": dataclasses.asdict(models[0][0]), **solved}
        finished = FinishedRows(unfinished, settings, overwrite=_OVERWRITE.value)
        if len(finished):
            _LOGGER.info("%s holds rows of an interrupted run (%d); those that fit are taken", unfinished, len(finished))
        try:
            sweep = lifelong_sweep.run(
                BDH(models[0][0]), slows, rows, facts=facts, config=config, rates=rates, finished=finished
            )
        except KeyboardInterrupt as stopped:
            if not len(finished):
                raise
            raise Stopped(
                number_of(stopped), f"aborted; rows that are done wait in {unfinished} for the same command"
            ) from None
        result = sweep.results[0] if len(facts) == 1 else sweep
        record = {**result.to_dict(), "least_squares": solved, "start": describe_start(0, config.seed)}
        write_record(files["results.json"], record)
        save_figure(result.plot, files["figure.png"])
        files["course.png"].unlink(missing_ok=True)
        if len(facts) == 1:
            save_figure(sweep.results[0].plot_course, files["course.png"])
        left = finished.finish()
        show(*result.tables())
        if left:
            _LOGGER.info("%s still holds rows that are not in this table (%d)", unfinished, left)


def _check_trained(folder: Path, task: FactsConfig) -> None:
    """Refuse to ask a model for facts that it was not taught by gradient."""
    trained = read_experiment(folder).task
    if not isinstance(trained, FactsConfig):
        raise ConfigError(f"{folder} was trained on the task {trained.name!r}; the benchmark needs a model of facts")
    if trained.known != task.known:
        raise ConfigError(
            f"{folder} was trained with task.known={trained.known}, and --config has task.known={task.known}: name the configuration of the "
            f"training, with --config.task.known={trained.known}"
        )


def _rows(entries: Sequence[str], known: dict[str, Contestant]) -> tuple[dict[str, Contestant], dict[str, float]]:
    """The rows that --functions names, and the rates it gives to some: NAME, NAME=RATE, or module:function.

    A row that is named again, with another rate, is called NAME=RATE.
    """
    rows: dict[str, Contestant] = {}
    rates: dict[str, float] = {}
    for entry in entries:
        name, given, text = entry.partition("=")
        if ":" in name:
            contestant = own_function(name, make_function(name))
        elif name in known:
            contestant = known[name]
        else:
            raise ConfigError(
                f"--functions names {name!r}; valid names: {', '.join(known)}; or module:function for your own"
            )
        row = entry if name in rows else name
        if row in rows:
            raise ConfigError(f"--functions names {row!r} twice: a row stands there once for each rate, as {name}=RATE")
        if given:
            rates[row] = _rate(text, entry, contestant)
        rows[row] = dataclasses.replace(contestant, name=row)
    return rows, rates


def _rate(text: str, entry: str, contestant: Contestant) -> float:
    if not contestant.rates:
        other = contestant.rate_of
        raise ConfigError(
            f"--functions={entry}: {contestant.name!r} {f'takes the rate of {other!r}' if other else 'has no rate'}"
        )
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not math.isfinite(rate):
        raise ConfigError(f"--functions={entry}: {text!r} is no number; write NAME=RATE, such as kalman=1")
    return rate


def _layers(slots: int) -> tuple[int, ...] | None:
    if _LAYERS.value is None:
        return None
    try:
        layers = tuple(int(text) for text in _LAYERS.value)
    except ValueError:
        layers = ()
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer < slots for layer in layers):
        raise ConfigError(
            f"--layers={','.join(_LAYERS.value)} must be numbers in 0 … {slots - 1}, each once, with commas between"
        )
    return layers
