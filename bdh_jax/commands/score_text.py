"""Score a trained language model beyond its training length: ``bdh score-text --workdir=runs/text``.

Prints bits per byte of the validation text from empty and from carried states, by the number of tokens read before, and with parts of
the model switched off; the bytes of its state beside a transformer's cache; and writes ``results.json`` and ``figure.png`` into
``WORKDIR/score`` or ``--out``. A GPT, which carries no state, is scored up to ``--gpt_context``.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
import rich.table
from absl import flags

from bdh_jax.analysis import language
from bdh_jax.commands._flags import define_choice, define_path
from bdh_jax.commands._output import result_files, save_figure, write_record
from bdh_jax.config import ConfigError
from bdh_jax.console import WIDTH, Progress, show
from bdh_jax.experiment import ExperimentConfig, load, read_experiment
from bdh_jax.models.base import ModelConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.checkpoint import WHICH
from bdh_jax.runs.folder import check_text, seed_folders, trained_texts
from bdh_jax.runs.provenance import describe_start
from bdh_jax.tasks import TextConfig
from bdh_jax.tasks.text import Text
from bdh_jax.training.optimizer import Slow
from bdh_jax.training.step import make_predict

_WORKDIR = define_path("workdir", "Folder of a training run on text, of one seed or several.")
_WHICH = define_choice("which", "last", WHICH, "Which checkpoint to score.")
_OUT = define_path("out", "Folder for results.json and figure.png; default: score in the workdir.")
_CONTEXT = flags.DEFINE_integer("context", 16384, "Tokens of the longest context.", lower_bound=64)
_GPT_CONTEXT = flags.DEFINE_integer(
    "gpt_context", 1024, "The same for a GPT, whose cost grows with its square.", lower_bound=64
)
_ROWS = flags.DEFINE_integer(
    "rows", 8, "Parts of the text that are read side by side while a state is carried.", lower_bound=1
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that are there.")


def main(argv: Sequence[str]) -> None:
    """Score what the flags name.

    Raises:
      ConfigError: a flag is missing or wrong, or results are there already.
      DataError: the text is gone, or too short for the context.
      CheckpointError: the text is another one than a model was trained on.
    """
    del argv
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/text")
    workdir = Path(_WORKDIR.value)
    out = Path(_OUT.value) if _OUT.value else workdir / "score"
    with result_files(out, overwrite=_OVERWRITE.value) as files:
        _score(workdir, files)


def _score(workdir: Path, files: dict[str, Path]) -> None:
    folders = seed_folders(workdir) or [workdir]
    loaded = [load(folder, _WHICH.value) for folder in folders]
    experiment = read_experiment(folders[0])
    if not isinstance(experiment.task, TextConfig):
        raise ConfigError(f"{workdir} was trained on the task {experiment.task.name!r}, not on text; see `bdh evaluate`")
    config, length = loaded[0][0], experiment.task.length
    context = _CONTEXT.value if config.has_state else _GPT_CONTEXT.value
    task = _task(experiment, folders)
    validation = task.validation
    if len(validation.tokens) <= context:
        raise ConfigError(
            f"the validation text has {len(validation.tokens)} tokens, too few for a context of {context}; give a smaller --context "
            "(--gpt_context for a GPT)"
        )
    arguments = (validation, task.data.tokenizer.token_bytes)

    record = {"workdir": str(workdir), "which": _WHICH.value, "train_length": length, "start": describe_start(0, 0)}

    rows = {f"empty state every {length} tokens": _from_empty(task, config)}
    if config.has_state:
        rows["carried state"] = lambda slow: language.carried(config, slow, *arguments, rows=_ROWS.value).bits_per_byte
        for name, (other, _) in list(language.ablations(*loaded[0]).items())[1:]:
            evaluate = _from_empty(task, other)
            rows[f"{name}, empty every {length}"] = lambda slow, name=name, evaluate=evaluate: evaluate(
                language.ablations(config, slow)[name][1]
            )
    table = rich.table.Table(title="validation bits per byte", box=rich.box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for folder in folders:
        table.add_column(folder.name, justify="right")
    record["whole"] = {}
    for name, measure in rows.items():
        bits = [measure(slow) for _, slow in loaded]
        record["whole"][name] = bits
        table.add_row(name, *(f"{b:.4f}" for b in bits))
    show(table)
    print()

    positions = {
        folder.name: language.by_position(config, slow, *arguments, context=context)
        for folder, (_, slow) in zip(folders, loaded, strict=True)
    }
    title = f"validation bits per byte in contexts of {context:,} (trained on {length})"
    show(language.positions_table(positions, title))
    record["by_position"] = {name: [row._asdict() for row in scores] for name, scores in positions.items()}
    if config.has_state:
        equal = language.equal_context(config)
        state = language.state_bytes(config)
        record["state_bytes"], record["equal_context"] = state, equal
        line = f"state of one text: {state / 2**20:.2f} MiB; a transformer's cache of equal layers and width is as large after {equal:,} tokens"
        print("\n" + textwrap.fill(line, WIDTH))
    write_record(files["results.json"], record)
    save_figure(lambda: language.plot_positions(positions, length), files["figure.png"])


def _task(experiment: ExperimentConfig, folders: Sequence[Path]) -> Text:
    """The task of the runs, which validates on all of its text.

    Raises:
      CheckpointError: if the text is not the one that each was trained on: what was validation may be training now.
    """
    if not isinstance(experiment.task, TextConfig):
        raise ConfigError(f"{folders[0]} was trained on the task {experiment.task.name!r}, not on text; see `bdh evaluate`")
    config = dataclasses.replace(experiment.task, evaluation_windows=None)
    before = trained_texts(folders)
    task = config.make(data=experiment.data, seed=experiment.seed, batch_size=experiment.train.batch_size)
    for folder, text in before.items():
        check_text(folder, text, task.fingerprint)
    return task


def _from_empty(task: Text, config: ModelConfig) -> Callable[[Slow], float]:
    """Weights → bits per byte as training reports them: of windows, each read from an empty state."""
    make = make_predict(config.build(), make_mesh(MeshConfig()))

    def bits_per_byte(slow: Slow) -> float:
        predict = make(slow)
        with Progress("tokens", len(task.validation.tokens)) as progress:

            def counted(tokens: np.ndarray, valid: np.ndarray, *rest: Any) -> Any:
                progress.advance(int(valid.sum()))
                return predict(tokens, valid, *rest)

            return task.score(counted).bits_per_byte

    return bits_per_byte
