"""A tiny BDH and what its σ is good for: XOR as published, copying, recall, brackets, and rules that no weight knows.

    python -m bdh_jax train tiny_bdh --workdir=runs/xor
    python -m bdh_jax train tiny_bdh:brackets --workdir=runs/brackets

XOR takes seconds, the others one to three minutes of a CPU core. docs/results/tiny_bdh.md has the scores of all of them. Variants follow a
colon, several are joined by commas: ``--config=configs/tiny_bdh.py:brackets,gru``.

    copy        copying up to 8 different symbols
    recall      the n-back benchmark
    brackets    balanced brackets of three kinds, of up to 40 tokens
    new_rule    pairs that no training showed
    published   of these, σ's rates as published: forgetting .2, clamp 1, threshold .005, rows of norm 1
    neurons128  128 neurons
    neurons256  256 neurons
    no_sigma    without σ, in training and test
    gru         a gated recurrent network of as many parameters
    bdh         BDH with its own fast weights, of as many parameters
    smoke       a tiny model for a few steps: does it run?

Any key can be overridden, as in ``configs/nback.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bdh_jax.config.convert import apply_variants, change
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.base import count_parameters
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gru import GRUConfig
from bdh_jax.models.tiny_bdh import TinyBDHConfig
from bdh_jax.tasks.brackets import VOCABULARY as BRACKETS
from bdh_jax.tasks.brackets import BracketsConfig
from bdh_jax.tasks.copying import CopyingConfig
from bdh_jax.tasks.nback import INTEGER_VOCABULARY, NBackConfig
from bdh_jax.tasks.new_rule import NewRuleConfig
from bdh_jax.tasks.xor import XORConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig

AFTER_STEP = "bdh_jax.training.sigma:after_step"


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
        task=XORConfig(),
        model=TinyBDHConfig(),
        # Adam at a constant rate. Eight rows are the four sequences twice, which divide over eight devices.
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=0, schedule="constant", weight_decay=0.0, clip_norm=None),
        train=TrainConfig(
            steps=3000, batch_size=8, hooks=(AFTER_STEP,), evaluate_every=300, checkpoint_every=1000, log_every=10
        ),
    )


def _sequences(config: ExperimentConfig, vocab_size: int, **changes: object) -> ExperimentConfig:
    """What all sequences share. σ is that of each example, and nothing is written after a step. It forgets nothing and has no limits unless
    something says so, and what is written has the size of what neurons do."""
    config = change(
        config,
        "model",
        **{
            "vocab_size": vocab_size,
            "interface": "tokens",
            "init_std": 0.2,
            "address_norm": "l2",
            "address": "previous",
            "learning_rate": 1.0,
            "forget": 0.0,
            "clamp": None,
            "threshold": None,
            "row_norm": None,
            **changes,
        },
    )
    config = change(
        config, "optimizer", learning_rate=4e-3, warmup_steps=50, schedule="cosine", weight_decay=0.01, clip_norm=1.0
    )
    return change(config, "train", hooks=(), steps=500, batch_size=32, evaluate_every=50, checkpoint_every=500)


def _copy(config: ExperimentConfig) -> ExperimentConfig:
    task = CopyingConfig()
    return _sequences(dataclasses.replace(config, task=task), task.symbols + 2)


def _recall(config: ExperimentConfig) -> ExperimentConfig:
    config = _sequences(dataclasses.replace(config, task=NBackConfig()), INTEGER_VOCABULARY, forget=0.05)
    return change(config, "train", steps=1000, evaluate_every=100)


def _brackets(config: ExperimentConfig) -> ExperimentConfig:
    # The first field keeps what is open, and those above it that a bracket did not fit: one alone counts, and no more.
    changes = {"address": "mapped", "n_layer": 3, "residual": True}
    config = _sequences(dataclasses.replace(config, task=BracketsConfig()), BRACKETS, **changes)
    config = change(config, "optimizer", learning_rate=1e-2)
    return change(config, "train", loss="weights", steps=3000, evaluate_every=500, checkpoint_every=1000)


def _new_rule(config: ExperimentConfig) -> ExperimentConfig:
    task = NewRuleConfig()
    return _sequences(dataclasses.replace(config, task=task), task.ask + 2)


def _published(config: ExperimentConfig) -> ExperimentConfig:
    published = TinyBDHConfig()
    limits = {name: getattr(published, name) for name in ("forget", "clamp", "threshold", "row_norm")}
    return change(config, "model", **limits)


def _neurons(count: int) -> Callable[[ExperimentConfig], ExperimentConfig]:
    return lambda config: change(config, "model", n_neurons=count)


def _no_sigma(config: ExperimentConfig) -> ExperimentConfig:
    return change(change(config, "model", use_sigma=False), "train", hooks=())


def _gru(config: ExperimentConfig) -> ExperimentConfig:
    parameters, vocab_size = _trained(config), config.model.vocab_size
    width = min(range(8, 512), key=lambda width: abs(6 * width**2 + (4 + 2 * vocab_size) * width - parameters))
    model = GRUConfig(vocab_size=vocab_size, d_model=width)
    return change(dataclasses.replace(config, model=model), "train", hooks=())


def _bdh(config: ExperimentConfig) -> ExperimentConfig:
    parameters, vocab_size, width = _trained(config), config.model.vocab_size, 32
    neurons = max(2, 2 * round((parameters - 2 * vocab_size * width) / (6 * width)))
    fast = FastWeightConfig(learning_rate=1.0, decay=0.95)
    model = BDHConfig(
        vocab_size=vocab_size,
        n_layer=2,
        d_model=width,
        n_head=1,
        n_neurons=neurons,
        dropout=0.0,
        init_std=0.1,
        fast=fast,
    )
    return change(dataclasses.replace(config, model=model), "train", hooks=())


def _trained(config: ExperimentConfig) -> int:
    """Parameters of the tiny-BDH that are trained."""
    weights = config.model.build().declared_slow()
    weights.pop("synapse", None)
    return count_parameters(weights)


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    tasks = {
        "copying": {"evaluation_sequences": 8, "evaluation_lengths": (4,)},
        "nback": {"evaluation_sequences": 16},
        "brackets": {"evaluation_sequences": 8, "evaluation_lengths": (20, 40)},
        "new_rule": {"evaluation_sequences": 8},
    }
    config = change(config, "task", **tasks.get(config.task.name, {}))
    sizes = {"tiny_bdh": {"n_neurons": 16, "d_model": 4}, "gru": {"d_model": 8}, "bdh": {"n_neurons": 32, "d_model": 8}}
    config = change(config, "model", **sizes[config.model.architecture])
    config = change(config, "optimizer", warmup_steps=min(config.optimizer.warmup_steps, 2))
    return change(config, "train", steps=20, evaluate_every=10, checkpoint_every=10, log_every=5)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    "copy": _copy,
    "recall": _recall,
    "brackets": _brackets,
    "new_rule": _new_rule,
    "published": _published,
    "neurons128": _neurons(128),
    "neurons256": _neurons(256),
    "no_sigma": _no_sigma,
    "gru": _gru,
    "bdh": _bdh,
    "smoke": _smoke,
}
