"""Several jobs at once: each row of a batch is of one of them, and one model with one vocabulary serves all.

Jobs are tasks. Each has ids of its own (those of texts come first, so that bytes are bytes), or all begin at 0: then what an id means depends
on the job, and no token says which job a row is of. Each job has the same number of rows and the same share of the loss, and is scored by
its own evaluation, over the whole vocabulary.

Axis letters: B batch, T time, V vocabulary; J jobs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bdh_jax.config import ConfigError, check_types, require
from bdh_jax.config.convert import from_config_dict
from bdh_jax.config.options import Options
from bdh_jax.data.config import DataConfig
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks import TASKS
from bdh_jax.tasks.base import Batch, Task, TaskBase, TaskConfig
from bdh_jax.tasks.scores import AnyScore, Evaluation, TextScore
from bdh_jax.tasks.scoring import Predict
from bdh_jax.tasks.text import Text


@dataclasses.dataclass(frozen=True)
class MixedConfig(TaskConfig):
    """Rows of several tasks in one batch."""

    name: str = "mixed"
    jobs: Options = Options(text=Options(length=68), nback=Options())
    """Name of each job → options of its task. ``name`` among them names the task, or ``module:Class`` of a configuration of your own; without it
    that is the job's name."""
    own_ids: bool = True
    """Whether the ids of a job come after those of the job before; False: all begin at 0."""

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "jobs", Options.of("task.jobs", self.jobs))
        require(len(self.jobs) >= 2, f"task.jobs={dict(self.jobs)} names {len(self.jobs)}; give two or more")
        self.job_configs()

    def job_configs(self) -> dict[str, TaskConfig]:
        """Name → the configuration of the job's task, in alphabetical order: that of the rows.

        Raises:
          ConfigError: for a task that does not exist or cannot be a job, or an option that it does not have.
        """
        return {job: self._job_config(job) for job in sorted(self.jobs)}

    def _job_config(self, job: str) -> TaskConfig:
        where, options = f"task.jobs.{job}", self.jobs[job]
        require(isinstance(options, Mapping), f"{where}={options!r} should be a mapping of the options of its task")
        name = options.get("name", job)
        kind = TASKS.get(name, f"{where}.name")
        require(not issubclass(kind, MixedConfig), f"{where}.name={name!r}: a mixed task is no job of another")
        config = from_config_dict(kind, {**options, "name": name}, where)
        require(
            not config.extra_rows,
            f"{where}: batches of the task {name!r} have rows beside their own, which a mixed batch has no place for; set it otherwise",
        )
        return config

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Mixed:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        configs = self.job_configs()
        require(
            batch_size % len(configs) == 0,
            f"train.batch_size={batch_size} is not divisible by the {len(configs)} jobs of task.jobs; every job has the same number of rows",
        )
        rows = batch_size // len(configs)
        return Mixed(self, {job: c.make(seed=seed, batch_size=rows, data=data) for job, c in configs.items()})

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`."""
        meanings = dict.fromkeys(config.token_meaning(tokenizer) for config in self.job_configs().values())
        return f"{' or '.join(meanings)}, {'one after another' if self.own_ids else 'all from 0'}"

    @property
    def reads_text(self) -> bool:
        """Whether one of the jobs does."""
        return any(config.reads_text for config in self.job_configs().values())


class Mixed(TaskBase):
    """Several tasks as one.

    Args:
      config: what it was made of.
      jobs: name → task, each with its part of the rows.
    """

    def __init__(self, config: MixedConfig, jobs: Mapping[str, Task]):
        self.config, self.jobs = config, dict(jobs)
        for job, task in self.jobs.items():
            if type(task).losses is not TaskBase.losses:
                raise ConfigError(
                    f"task.jobs.{job}: this task has a loss of its own, and the rows of a batch share one; name another task"
                )
        tasks = list(self.jobs.values())
        self.first_id = _first_ids(self.jobs) if config.own_ids else dict.fromkeys(self.jobs, 0)
        self.vocab_size = max(self.first_id[job] + task.vocab_size for job, task in self.jobs.items())
        self.sequence_length = max(task.sequence_length for task in tasks)
        self.may_reset = any(task.may_reset for task in tasks)
        self.fingerprint = "+".join(task.fingerprint for task in tasks if task.fingerprint is not None) or None
        self.files = {name: content for task in tasks for name, content in task.files.items()}
        self.tokenizer = next((task.tokenizer for task in tasks if task.tokenizer is not None), None)

    def batch(self, step: int) -> Batch:
        """The training batch of a step: rows 0, J, 2J, … are of the first job."""
        return self.join([task.batch(step) for task in self.jobs.values()])

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """The batches of steps ``start`` … ``end`` − 1."""
        return map(self.join, zip(*(task.batches(start, end) for task in self.jobs.values()), strict=True))

    def join(self, parts: Sequence[Batch]) -> Batch:
        """The batch of a batch of each job, in the order of their names, in this task's ids."""
        moved = []
        for part, first in zip(parts, self.first_id.values(), strict=True):
            tokens, targets = (np.where(part.valid, ids + np.int32(first), 0) for ids in (part.tokens, part.targets))
            moved.append(part._replace(tokens=tokens, targets=targets))
        return join(moved)

    def job_of_row(self, rows: int) -> np.ndarray:
        """The number of the job, in the order of their names, of each of so many rows [B]."""
        return np.arange(rows) % len(self.jobs)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Every job's own evaluation.

        Args:
          predict: as of the jobs.

        Returns:
          All their rows; those of a text have the bits per byte of the frequencies of its tokens beside them, ``unigram``. ``primary`` is the
          mean over jobs.
        """
        found = {job: task.evaluate(_from(predict, self.first_id[job])) for job, task in self.jobs.items()}
        rows = [_named(job, row, self.jobs[job], len(e.rows)) for job, e in found.items() for row in e.rows]
        notes = [evaluation.note for evaluation in found.values() if evaluation.note]
        primary = float(np.mean([evaluation.primary for evaluation in found.values()]))
        return Evaluation(rows=tuple(rows), primary=primary, note="; ".join(notes))


def join(parts: Sequence[Batch]) -> Batch:
    """The batch of several jobs, row by row in turn.

    Args:
      parts: a batch [B / J, T'] of each job; shorter rows are padded.

    Returns:
      The batch [B, T]. Its loss weights give every job the same share; altogether they are as many as there are valid tokens.
    """
    length = max(part.tokens.shape[1] for part in parts)
    counted = float(sum(np.sum(part.valid) for part in parts))

    def weighed(part: Batch) -> Batch:
        total = float(np.sum(part.loss_weights))
        scale = counted / (len(parts) * total) if total else 0.0
        return part._replace(loss_weights=part.loss_weights * np.float32(scale), extra=None)

    def whole(arrays: Sequence[np.ndarray]) -> np.ndarray:
        padded = [np.pad(array, ((0, 0), (0, length - array.shape[1]))) for array in arrays]
        return np.stack(padded, axis=1).reshape(-1, length)

    columns = zip(*(weighed(part)[:6] for part in parts), strict=True)
    written = [np.ones(part.tokens.shape, bool) if part.write is None else part.write for part in parts]
    write = None if all(part.write is None for part in parts) else whole(written)
    return Batch(*map(whole, columns), write=write)


def _first_ids(jobs: Mapping[str, Task]) -> dict[str, int]:
    """The first id of each job; texts have one tokenizer, and share theirs."""
    texts = [task.vocab_size for task in jobs.values() if task.tokenizer is not None]
    after, first = max(texts, default=0), {}
    for job, task in jobs.items():
        if task.tokenizer is not None:
            first[job] = 0
        else:
            first[job], after = after, after + task.vocab_size
    return first


def _from(predict: Predict, first: int) -> Predict:
    """What a job calls, whose id 0 is the model's id ``first``: its logits begin with those of its own ids, and no id is left out."""

    def moved(tokens: np.ndarray, valid: np.ndarray, *more: Any, **options: Any) -> Any:
        logits = predict(np.where(valid, tokens + np.int32(first), 0), valid, *more, **options)
        if isinstance(logits, Iterator):
            return (np.roll(np.asarray(part), -first, axis=-1) for part in logits)
        return np.roll(np.asarray(logits), -first, axis=-1)

    return moved if first else predict


def unigram_bits(text: Text) -> float:
    """Bits per byte of a validation text by the frequencies of its tokens in the training text, each counted once more than it is there."""
    size = text.data.tokenizer.vocab_size
    counts = np.bincount(np.asarray(text.data.train.tokens), minlength=size) + 1.0
    tokens = np.asarray(text.validation.tokens)[1:]
    return float(-np.log2(counts / counts.sum())[tokens].sum() / text.data.tokenizer.token_bytes[tokens].sum())


def _named(job: str, row: AnyScore, task: Task, rows: int) -> AnyScore:
    extra = row.extra
    if isinstance(row, TextScore) and isinstance(task, Text):
        extra = {**extra, "unigram": unigram_bits(task)}
    return dataclasses.replace(row, name=job if rows == 1 else f"{job} {row.name}", extra=extra)


CONFIG = MixedConfig
