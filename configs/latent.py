"""Reason in memory: a context is read once, then frozen, and questions think on it (``bdh_jax.models.latent``, ``bdh_jax.tasks.ladder``).

    python -m bdh_jax train latent --workdir=runs/latent
    python -m bdh_jax train latent:ordering,drawn --workdir=runs/latent_ordering_drawn

The default is the ladder of binding: three chains of 6 links, asked for a variable that is 1 to 6 links from its value, with one layer and R = 4
passes. Variants follow a colon, several are joined by commas.

    copy        sequences of 2 to 12 letters are repeated
    ordering    which item is the k-th of a chain, k from 1 to 6?
    shallow     trained on rungs 1 to 3 alone, of contexts that are as large, and tested on all
    drawn       in training each question draws its R from 1 … 8
    plain       BDH: one layer, the same as R = 1
    deep        BDH of four layers: as many as R = 4 passes through one, for the context too
    longer      three times the steps
    smoke       a tiny model for a few steps: does it run?

``benchmarks/latent_table.py`` trains the rows of docs/results/latent.md. Any key can be overridden, as in ``configs/nback.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bdh_jax.config.convert import apply_variants, change
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.latent import LatentConfig
from bdh_jax.tasks.ladder import Ladder, LadderConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: names of ``VARIANTS`` joined by commas, applied in the order of ``VARIANTS``; empty for the default.

    Raises:
      ConfigError: for an unknown or repeated variant.
    """
    task = LadderConfig(ladder="binding", rungs=6, variables=32)
    config = ExperimentConfig(
        task=task,
        model=LatentConfig(
            vocab_size=task.vocab_size,
            n_layer=1,
            d_model=48,
            n_head=1,
            n_neurons=192,
            init_std=0.1,
            fast=FastWeightConfig(decay=1.0, address_norm="centred"),
            thinking=4,
            most_thinking=task.questions(task.rungs),
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3, weight_decay=0.01),
        train=TrainConfig(steps=600, batch_size=32, loss="answer", evaluate_every=600, checkpoint_every=300),
    )
    return apply_variants(config, arg, VARIANTS)


def _task(config: ExperimentConfig) -> LadderConfig:
    assert isinstance(config.task, LadderConfig)
    return config.task


def _ladder(kind: Ladder) -> Callable[[ExperimentConfig], ExperimentConfig]:
    def vary(config: ExperimentConfig) -> ExperimentConfig:
        task = dataclasses.replace(_task(config), ladder=kind)
        config = dataclasses.replace(config, task=task)
        return change(config, "model", vocab_size=task.vocab_size, most_thinking=task.questions(task.rungs))

    return vary


def _shallow(config: ExperimentConfig) -> ExperimentConfig:
    return change(config, "task", trained=_task(config).rungs // 2)


def _plain(config: ExperimentConfig, n_layer: int) -> ExperimentConfig:
    shared = {field.name: getattr(config.model, field.name) for field in dataclasses.fields(BDHConfig)}
    return dataclasses.replace(config, model=BDHConfig(**shared | {"architecture": "bdh", "n_layer": n_layer}))


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "task", rungs=2, variables=12, evaluation_sequences=8)
    if _task(config).trained is not None:
        config = change(config, "task", trained=1)
    config = change(config, "model", vocab_size=_task(config).vocab_size, d_model=16, n_neurons=32)
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, batch_size=4, evaluate_every=10, checkpoint_every=10, log_every=5)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    "copy": _ladder("copy"),
    "ordering": _ladder("ordering"),
    "shallow": _shallow,
    "drawn": lambda config: change(config, "model", thinking=8, thinking_drawn=True),
    "plain": lambda config: _plain(config, 1),
    "deep": lambda config: _plain(config, 4),
    "longer": lambda config: change(config, "train", steps=1800, evaluate_every=1800),
    "smoke": _smoke,
}
