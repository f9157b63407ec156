"""Make a folder to share of a trained model: ``bdh export --workdir=runs/text --out=shared/text --licence=apache-2.0``.

It holds the weights as safetensors, the configuration, the tokenizer, and README.md, a model card with the scores of these very weights.
Paths and commands of this machine are left out. `bdh generate`, `bdh evaluate` and `bdh score-text` read it as --workdir, and
`train.init_from` starts from it, wherever it lies.

    --layout=huggingface  config.json and model.safetensors instead, which
                          ports of BDH to transformers read; of the published
                          model alone
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from bdh_jax.commands._card import Card
from bdh_jax.commands._flags import define_choice, define_path
from bdh_jax.commands._output import write_output
from bdh_jax.config import ConfigError
from bdh_jax.config.identity import WHERE, keys_of
from bdh_jax.console import suggest
from bdh_jax.experiment import load_at, read_experiment
from bdh_jax.interop.files import WeightsError
from bdh_jax.interop.huggingface import write_huggingface
from bdh_jax.runs.checkpoint import WHICH
from bdh_jax.runs.folder import METRICS, RUN, config_json, read_run, write_json
from bdh_jax.runs.lock import only_writer
from bdh_jax.runs.reporter import read_rows
from bdh_jax.runs.weights_file import WEIGHTS, write_weights
from bdh_jax.tasks.scores import AnyScore, read_score
from bdh_jax.training.made_run import check_new

_WORKDIR = define_path("workdir", "Folder of a training run (of one seed).")
_OUT = define_path("out", "New folder.")
_WHICH = define_choice("which", "last", WHICH, "Which checkpoint.")
_LAYOUT = define_choice("layout", "run", ("run", "huggingface"), "What the folder looks like.")
_LICENCE = flags.DEFINE_string("licence", None, "Of the weights, such as apache-2.0 or mit; the card says if none is given.")
_KEPT = ("time", "step", "seed", "git", "versions", "device")
"""What is told of a start: not its command, nor the machine."""
_LOGGER = logging.getLogger("bdh_jax")


def main(argv: Sequence[str]) -> None:
    """Export what the flags name.

    Raises:
      ConfigError: a flag is missing, the folder holds something, or the layout cannot hold the model.
      CheckpointError: the run cannot be read.
    """
    del argv
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/text")
    if not _OUT.value:
        raise ConfigError("--out is missing: name a new folder, such as --out=shared/text")
    folder, out = Path(_WORKDIR.value), Path(_OUT.value)
    check_new(out)
    model, slow, step = load_at(folder, _WHICH.value)
    slow = jax.tree.map(np.asarray, slow)
    experiment, record = read_experiment(folder), read_run(folder)
    config = _without_paths(config_json(experiment), [*keys_of(experiment, WHERE), "train.init_from"])
    starts = [{name: start[name] for name in _KEPT if name in start} for start in record.starts]
    origin = None if record.init_from is None else _without_folders(record.init_from)
    generates = experiment.task.reads_text and model.has_state
    use = ["pip install bdh_jax"]
    if _LAYOUT.value == "huggingface":
        use = ["from bdh_jax.interop import read_huggingface", f"config, slow = read_huggingface({out.name!r})"]
    elif generates:
        use.append(f'bdh generate --workdir={out.name} --prompt="…"')
    else:
        use.append(f"bdh evaluate --workdir={out.name}")
    scores = _scores(folder, step)
    card = Card(out.name, model, experiment.task, config, step, scores, starts, origin, _LICENCE.value, use)
    with only_writer(out):
        check_new(out)
        if _LAYOUT.value == "huggingface":
            try:
                write_huggingface(out, model, slow)
            except WeightsError as error:
                raise ConfigError(str(error)) from error
        else:
            values = {"config": config, "text": record.text, "files": record.files, "file_digests": record.file_digests}
            write_json(out / RUN, {**values, "starts": starts, "init_from": origin})
            write_weights(out / WEIGHTS, slow, step)
        for name in record.files:
            write_output(out / name, (folder / name).read_text(encoding="utf-8"))
        write_output(out / "README.md", card.text())
    if not _LICENCE.value:
        _LOGGER.warning("the card states no licence; others may not use the model without one: --licence=NAME")
    if _LAYOUT.value == "run":
        suggest(f"bdh {'generate' if generates else 'evaluate'} --workdir={out}{' --prompt=…' if generates else ''}")


def _without_paths(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A configuration from JSON without where things lie on this machine, which is told by keys with dots between their parts."""
    shared = copy.deepcopy(config)
    for name in names:
        *parts, last = name.split(".")
        node = shared
        for part in parts:
            node = node[part]
        # A column of a file is no path, and has no other value that means nothing.
        node[last] = node[last] if last == "column" else None
    return shared


def _without_folders(origin: Any) -> Any:
    """What a run started from, without the names of folders."""
    if isinstance(origin, Mapping):
        return {name: _without_folders(value) for name, value in origin.items() if name != "folder"}
    return [_without_folders(one) for one in origin] if isinstance(origin, list) else origin


def _scores(folder: Path, step: int) -> list[AnyScore]:
    """What the run measured of the weights of this step."""
    if not (folder / METRICS).exists():
        return []
    for row in read_rows(folder / METRICS, until=step):
        if row["step"] == step and "evaluation" in row:
            return [read_score(score) for name, score in row["evaluation"].items() if name != "primary"]
    return []
