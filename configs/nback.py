"""The n-back benchmark: recall the value of a key shown up to 8 pairs ago, from 32 pairs.

    python -m bdh_jax.main --config=configs/nback.py --workdir=runs/nback

The default takes about 80 s a seed on one CPU core and reaches 0.997, 0.998 and 0.999 of the ceiling on n2, n4 and n8 (mean of
seeds 0, 1, 2; the table of all variants is in the README).

Variants follow a colon, several are joined by commas: ``--config=configs/nback.py:stop_gradient,all_positions``.

    seed25m          the published 25 M parameter size, for an accelerator
    baseline         no fast weights; short sequences first, attention with fast rotations (17 minutes a seed on one CPU core)
    shift_attention  no fast weights; attention keys are the previous token's code, un-rotated: what λ = 1 amounts to
    shift_decay      the same attention, which forgets as fast weights do: what λ = 0.95 amounts to; 8 minutes
    stop_gradient    no gradient through what is written
    all_positions    loss on every position instead of the answer only: the recall is not learned
    shared           one fast weight matrix for all layers (token by token, slow)
    clean            distinct keys, no id with two meanings: every query has one answer, the ceiling is 1
    text             bytes instead of integer ids, answers of four tokens; an hour on one busy CPU core, 0.991, 0.985, 0.966 of the ceiling
    smoke            a tiny model for a few steps: does it run?

Any key can be overridden: ``--config.model.d_model=128 --config.optimizer.clip_norm=None --config.seeds=0,1,2``.
"""

from __future__ import annotations

from collections.abc import Callable

from bdh_jax.config.convert import apply_variants, change
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.tasks.nback import INTEGER_VOCABULARY, TEXT_VOCABULARY, NBackConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: names of ``VARIANTS`` joined by commas, applied in the order of ``VARIANTS``; empty for the default.

    Raises:
      ConfigError: for an unknown or repeated variant.
    """
    return apply_variants(_default(), arg, VARIANTS)


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        task=NBackConfig(),
        model=BDHConfig(
            vocab_size=INTEGER_VOCABULARY,
            n_layer=2,
            d_model=64,
            n_head=1,
            n_neurons=512,
            dropout=0.0,
            # Smaller initial weights lose keys: an Adam step then moves a code so far that all its neurons can fall silent at
            # once, and a key without a code is neither written nor read, so no gradient ever brings it back.
            init_std=0.1,
            fast=FastWeightConfig(learning_rate=1.0, decay=0.95, address_norm="l2", write_gradient="full"),
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=50),
        train=TrainConfig(steps=600, batch_size=32, loss="answer", evaluate_every=100, checkpoint_every=100),
    )


def _seed25m(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "model", n_layer=6, d_model=256, n_head=4, n_neurons=32768)
    return change(config, "optimizer", learning_rate=1e-3)


def _baseline(config: ExperimentConfig) -> ExperimentConfig:
    # Attention has to learn which token came before, and to find a key by it. Short sequences first, all of whose keys are asked
    # for, teach that; the sets themselves follow, of which n2 and n4 ask for recent keys. Fast rotations tell neighbours apart.
    config = change(
        config,
        "task",
        train_pairs=(4, 8, 16, 32, 8, 16),
        train_window=(8, 8, 8, 8, 2, 4),
        curriculum=(500, 1000, 1500, 1500, 1500),
    )
    config = change(change(config, "model", rope_theta=10.0), "model.fast", enabled=False)
    config = change(config, "train", steps=12000, evaluate_every=2000, checkpoint_every=2000)
    return change(config, "optimizer", learning_rate=1.6e-2)


def _shift_attention(config: ExperimentConfig) -> ExperimentConfig:
    config = change(change(config, "model.fast", enabled=False), "model", attention="shift")
    config = change(config, "train", steps=36000, evaluate_every=6000, checkpoint_every=6000)
    return change(config, "optimizer", learning_rate=8e-3)


def _shift_decay(config: ExperimentConfig) -> ExperimentConfig:
    config = change(_shift_attention(config), "model", attention_decay=(0.95,))
    return change(config, "train", steps=4500, evaluate_every=1500, checkpoint_every=1500)


def _stop_gradient(config: ExperimentConfig) -> ExperimentConfig:
    return change(config, "model.fast", write_gradient="stop")


def _all_positions(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "train", loss="all", steps=3000, evaluate_every=500, checkpoint_every=500)
    return change(config, "optimizer", learning_rate=2e-3)


def _shared(config: ExperimentConfig) -> ExperimentConfig:
    return change(config, "model.fast", scope="shared")


def _clean(config: ExperimentConfig) -> ExperimentConfig:
    return change(config, "task", clean=True)


def _text(config: ExperimentConfig) -> ExperimentConfig:
    # Which key a "V" belongs to stands in the four bytes before it, so addresses must hold context: gated codes do from the first
    # layer on, codes only later, and then training finds recency instead. Attention forgets, so that an address holds the last ten
    # bytes or so, and is the same when the key is asked for. Short sequences come first: retrieval is learned there. In two thirds
    # of them only some digits tell the values apart, which must then be recalled by the key. The delta rule replaces the value of a
    # key that occurs again, so that S may forget slowly: a sequence has 320 bytes.
    config = change(
        config,
        "task",
        encoding="text",
        train_pairs=(4, 8, 16, 32),
        train_window=(8,),
        curriculum=(250, 450, 700),
        queries=4,
        train_alike=0.67,
    )
    config = change(
        config,
        "model",
        vocab_size=TEXT_VOCABULARY,
        n_layer=3,
        n_head=4,
        n_neurons=1024,
        rope_theta=10.0,
        attention_decay=(0.8,),
    )
    config = change(config, "model.fast", rule="delta", decay=0.998, address_source="gated")
    config = change(config, "optimizer", warmup_steps=100)
    return change(config, "train", loss="weights", steps=2000, batch_size=8, evaluate_every=2000, checkpoint_every=250)


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "task", evaluation_sequences=16)
    config = change(config, "model", n_layer=min(config.model.n_layer, 2), d_model=16, n_neurons=64)
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, batch_size=4, evaluate_every=10, checkpoint_every=10, log_every=5)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    "seed25m": _seed25m,
    "baseline": _baseline,
    "shift_attention": _shift_attention,
    "shift_decay": _shift_decay,
    "stop_gradient": _stop_gradient,
    "all_positions": _all_positions,
    "shared": _shared,
    "clean": _clean,
    "text": _text,
    "smoke": _smoke,
}
