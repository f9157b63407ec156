"""What the folder of a run says of it: its configuration, and what its token ids stand for."""

from __future__ import annotations

from pathlib import Path

from bdh_jax.config import ConfigError
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.tasks.config import TaskConfig
from bdh_jax.experiment import experiment_from
from bdh_jax.data.tokenizer import Tokenizer, load_tokenizer
from bdh_jax.tasks import CONFIGS, FactsConfig, NBackConfig, TextConfig
from bdh_jax.tasks.text import TOKENIZER
from bdh_jax.runs.checkpoint import RUN, read_json


def experiment_of(workdir: Path) -> ExperimentConfig:
    """The configuration that a run was trained with.

    Raises:
      CheckpointError: if the folder has no readable record.
    """
    return experiment_from(read_json(workdir / RUN)["config"])


def tokenizer_of(workdir: Path) -> Tokenizer:
    """The tokenizer that a run on text was trained with.

    Raises:
      ConfigError: if the run was trained on another task, or its tokenizer is gone.
    """
    task = experiment_of(workdir).task
    if not isinstance(task, TextConfig):
        raise ConfigError(f"{workdir} was trained on the task {task.name!r}, not on text: its tokens are no bytes")
    path = workdir / TOKENIZER
    if TOKENIZER in read_json(workdir / RUN).get("files", ()) and not path.exists():
        raise ConfigError(f"{path} is missing, without which the model's tokens mean nothing; restore it")
    return load_tokenizer(path if path.exists() else None)


def token_meaning(task: TaskConfig, tokenizer: Tokenizer | None) -> str:
    """What the token ids of a task stand for. A model knows nothing of ids that stood for something else in its training.

    Args:
      task: the configuration.
      tokenizer: of a text.
    """
    if isinstance(task, FactsConfig):
        return "keys and values of facts"
    if isinstance(task, NBackConfig) and task.encoding == "text":
        return "bytes"
    return "integers" if tokenizer is None else "bytes" if tokenizer.content is None else f"tokens of {tokenizer.name}"
