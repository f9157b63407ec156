"""A random word, again and again, and whether layers fall silent.

13 random letters, then one random word of 8 letters to the end of 154 (arXiv 2509.26507, Fig. 14).

    python -m bdh_jax.main --config=configs/repeats.py --workdir=runs/repeats

What is predictable: no letter of the warm-up and of the word's first reading (1 in 26), every letter after it (ceiling 1).
docs/results/repeats.md shows which part of the neurons is active as the word repeats.

Variants follow a colon: ``--config=configs/repeats.py:smoke``.

    smoke   a tiny model for a few steps: does it run?
"""

from __future__ import annotations

from collections.abc import Callable

from bdh_jax.config.convert import apply_variants, change
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.tasks.repeats import RepeatsConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment; ``arg`` is "" or "smoke".

    Raises:
      ConfigError: for an unknown variant.
    """
    config = ExperimentConfig(
        task=RepeatsConfig(),
        model=BDHConfig(
            n_layer=4,
            d_model=32,
            n_head=4,
            n_neurons=1024,
            dropout=0.0,
            # From the published 0.02 this size is still at chance after 800 steps.
            init_std=0.1,
            fast=FastWeightConfig(enabled=False),
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
        # As a language model: all letters are trained on, also those that nobody can know.
        train=TrainConfig(steps=2200, batch_size=4, loss="all", evaluate_every=200, checkpoint_every=200),
    )
    return apply_variants(config, arg, VARIANTS)


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "task", length=40, evaluation_sequences=8)
    config = change(config, "model", n_layer=2, d_model=16, n_neurons=64)
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, evaluate_every=10, checkpoint_every=10)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {"smoke": _smoke}
