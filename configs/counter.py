"""The counter-benchmarks: one model trained on all four.

    python -m bdh_jax.main --config=configs/counter.py --workdir=runs/counter

takes an hour of one busy CPU core and reaches 0.994, 0.994, 0.999 and 0.998 of the ceiling on vargap1, vargap2, repeated8 and n16 (mean
of seeds 0, 1, 2); docs/results/counter.md says what it takes.

Variants follow a colon: ``--config=configs/counter.py:smoke``.

    smoke   a tiny model for a few steps: does it run?

Any key can be overridden, as in ``configs/nback.py``. A model trained on n-back is scored on these sets, without training, by

    python -m bdh_jax evaluate --workdir=runs/nback --config=configs/counter.py
"""

from __future__ import annotations

from collections.abc import Callable

from bdh_jax.config.convert import apply_variants, change
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.tasks.counter import CounterConfig
from bdh_jax.tasks.nback import INTEGER_VOCABULARY
from bdh_jax.training.config import OptimizerConfig, TrainConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment; ``arg`` is "" or "smoke".

    Raises:
      ConfigError: for an unknown variant.
    """
    config = ExperimentConfig(
        # vargap2 is learned last, so it has two rows of five.
        task=CounterConfig(mixture=("vargap1", "vargap2", "vargap2", "repeated8", "n16"), queries=4),
        model=BDHConfig(
            vocab_size=INTEGER_VOCABULARY,
            n_layer=3,
            d_model=64,
            n_head=2,
            n_neurons=1024,
            dropout=0.0,
            init_std=0.1,
            # A value is written under what stands before it, which is no longer its key: the address has to hold the key two or three
            # tokens back, and nothing of the pairs before. So attention forgets, and addresses know what it found. The second head does not
            # forget: whether there is a gap, and how wide, takes several pairs to tell.
            attention_decay=(0.7, 1.0),
            rope_theta=10.0,
            # Keys change their values: the delta rule writes new ones in place of old ones.
            fast=FastWeightConfig(rule="delta", learning_rate=1.0, decay=0.99, address_norm="l2", address_source="gated"),
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100),
        train=TrainConfig(steps=12000, batch_size=32, loss="weights", evaluate_every=1000, checkpoint_every=500),
    )
    return apply_variants(config, arg, VARIANTS)


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "task", evaluation_sequences=16)
    config = change(config, "model", n_layer=2, d_model=16, n_neurons=64)
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, batch_size=4, evaluate_every=10, checkpoint_every=10, log_every=5)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {"smoke": _smoke}
