"""The published size, and a tiny one of the same form. They are written out, since ``configs/text.py`` needs libraries that may not be
there; tests hold them to it."""

from __future__ import annotations

import dataclasses

from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.training.config import OptimizerConfig

_TINY = {"n_layer": 2, "d_model": 128, "n_head": 2, "n_neurons": 512}
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant", weight_decay=0.1, clip_norm=None)
"""Of ``text:official``."""
STEPS = 3000
"""Of its training."""
WRITE_BACK = FastWeightConfig(learning_rate=0.01, decay=0.95, learn_learning_rate=True, learn_decay=True)
"""What its variant ``fast`` adds."""


def official(tiny: bool) -> BDHConfig:
    """The model of ``text:official``."""
    config = BDHConfig(dropout=0.1, dtype="bfloat16", remat=True, fast=FastWeightConfig(enabled=False))
    return dataclasses.replace(config, **_TINY) if tiny else config


def official_batch(tiny: bool) -> tuple[int, int]:
    """B and T of ``text:official``."""
    return (2, 32) if tiny else (32, 512)


def generating(tiny: bool) -> BDHConfig:
    """The published size as it generates: float32, with write-back of fixed rates."""
    config = BDHConfig(dropout=0.0, fast=FastWeightConfig(learning_rate=0.01, decay=0.95))
    return dataclasses.replace(config, **_TINY) if tiny else config
