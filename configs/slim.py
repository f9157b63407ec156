"""BDH-SLIM on bytes: a small Transformer that learns by gradient, by a local rule, or by both.

    python -m bdh_jax.main --config=configs/slim.py --workdir=runs/slim --config.data.path=FILE_FOLDER_OR_GLOB
    python -m bdh_jax.main --config=configs/slim.py:hybrid --config.train.hook_options.rate=1e-4 --workdir=runs/hybrid

Without ``data.path`` it trains on tiny Shakespeare, which is downloaded once. Needs ``pip install "bdh_jax[text]"``.

Variants follow a colon, several are joined by commas: ``--config=configs/slim.py:published,hybrid``.

    published     the published size and training, on bytes: D 512, 6 layers, T 256, 5000 steps of 4 × 8 sequences, pruning every 1000
    hybrid        Hebb's rule besides the gradient, η 1e-3
    hebbian       Hebb's rule instead of the gradient, η 1e-3; embedding, readout and norms stay as they begin
    oja           Oja's rule besides the gradient, η 1e-4
    sanger        Sanger's
    bcm           BCM's, with a sliding threshold
    covariance    Hebb's of centred activities
    contrastive   Hebb's, less that of shuffled tokens
    predictive    the delta rule, towards the next token's embedding
    three_factor  Hebb's times the surprise above its mean
    pretrained    Hebb's rule, η 1e-3, besides the gradient in the first 50 steps only
    attention     the rule changes attention's layers only
    ffn           the rule changes the feed-forward layers only
    smoke         a tiny model for a few steps: does it run?

docs/results/hebbian_training.md has all results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import apply_variants, change, parse_variants
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.models.slim import SlimConfig
from bdh_jax.tasks.text import TextConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig

HOOK, PRUNING = "bdh_jax.training.local_rules:local_learning", "bdh_jax.training.local_rules:pruning"
RULES = ("oja", "sanger", "bcm", "covariance", "contrastive", "predictive", "three_factor")


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: names of ``VARIANTS`` joined by commas, applied in the order of ``VARIANTS``; empty for the default.

    Raises:
      ConfigError: for an unknown or repeated variant, two rules, or a part of the layers without a rule.
    """
    names = parse_variants(arg, VARIANTS)
    rules = [name for name in names if name in ("hybrid", "hebbian", "pretrained", *RULES)]
    if len(rules) > 1:
        raise ConfigError(f"variants {' and '.join(rules)} each choose a local rule; give one of them")
    for part in ("attention", "ffn"):
        if part in names and not rules:
            raise ConfigError(f"variant {part!r} says where a local rule acts; give one beside it, such as hybrid")
    if "attention" in names and "ffn" in names:
        raise ConfigError("variants 'attention' and 'ffn' together are all layers; leave both out")
    return apply_variants(_default(), arg, VARIANTS)


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        task=TextConfig(length=64),
        model=SlimConfig(n_layer=3, d_model=128, n_head=4, d_ff=256, max_length=64),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant", weight_decay=0.01, clip_norm=1.0),
        train=TrainConfig(steps=600, batch_size=16, loss="weights", evaluate_every=200, checkpoint_every=200),
    )


def _published(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "model", n_layer=6, d_model=512, n_head=8, d_ff=1024, max_length=256, dropout=0.1)
    config = change(config, "task", length=256)
    config = change(config, "optimizer", learning_rate=3e-4, warmup_steps=500, schedule="cosine")
    config = change(config, "train", steps=5000, batch_size=32, accumulation=8, evaluate_every=500, checkpoint_every=500)
    return _with_hook(config, PRUNING, prune_every=1000, threshold=0.01)


def _with_hook(config: ExperimentConfig, hook: str, **options: Any) -> ExperimentConfig:
    train = config.train
    hooks = train.hooks if hook in train.hooks else (hook, *train.hooks)
    return change(config, "train", hooks=hooks, hook_options={**train.hook_options, **options})


def _local(config: ExperimentConfig, **options: Any) -> ExperimentConfig:
    return _with_hook(config, HOOK, **options)


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "model", n_layer=2, d_model=16, n_head=2, d_ff=24, max_length=32, dropout=0.0)
    config = change(config, "task", length=32, evaluation_windows=16)
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, batch_size=4, accumulation=1, evaluate_every=10, checkpoint_every=10)


def _where(config: ExperimentConfig, part: str) -> ExperimentConfig:
    return _with_hook(config, HOOK, where=part)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    "published": _published,
    "hybrid": functools.partial(_local, rule="hebb", rate=1e-3),
    "hebbian": functools.partial(_local, rule="hebb", rate=1e-3, mode="hebbian"),
    **{rule: functools.partial(_local, rule=rule, rate=1e-4) for rule in RULES},
    "pretrained": functools.partial(_local, rule="hebb", rate=1e-3, until_step=50),
    "attention": functools.partial(_where, part="attention"),
    "ffn": functools.partial(_where, part="ffn"),
    "smoke": _smoke,
}
