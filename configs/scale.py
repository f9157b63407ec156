"""Language modelling at 100 million, 1 billion and 10 billion parameters, for pods; plan one before you rent it.

    bdh plan scale:1b --topology=v5p:4x4x4 --mesh=data:8,heads:8,fsdp
    bdh train scale:1b --workdir=runs/1b --config.mesh.data=8 --config.mesh.heads=8 --config.mesh.fsdp=True

Variants follow a colon, several are joined by commas: ``--config=configs/scale.py:1b,fast``.

    100m        D 512, 8 heads, K 65,536, 6 layers, windows of 1,024 bytes, 256 of them a step; the default
    1b          D 1,024, 16 heads, K 327,680, 8 layers, windows of 2,048
    10b         D 4,096, 64 heads, K 819,200, 12 layers, windows of 2,048
    fast        with write-back
    long        windows of 131,072 bytes, 8 of them a step: split them over ``mesh.sequence``

Rates are those of the published size, and not tuned. Which text is said by ``--config.data.path``. docs/scaling.md has what fits where.
"""

from __future__ import annotations

from collections.abc import Callable

from bdh_jax.config.convert import apply_variants, change, parse_variants
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.tasks.text import TextConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: names of ``VARIANTS`` joined by commas, applied in the order of ``VARIANTS``; empty for the default.

    Raises:
      ConfigError: for an unknown or repeated variant.
    """
    parse_variants(arg, VARIANTS)
    return apply_variants(_100m(_default()), arg, VARIANTS)


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        task=TextConfig(length=1024, evaluation_windows=512),
        model=BDHConfig(dropout=0.0, dtype="bfloat16", remat=True, fast=FastWeightConfig(enabled=False)),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=500, weight_decay=0.1),
        train=TrainConfig(steps=20_000, batch_size=256, loss="weights", evaluate_every=1000, checkpoint_every=500),
    )


def _100m(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "task", length=1024)
    return change(config, "model", n_layer=6, d_model=512, n_head=8, n_neurons=65_536)


def _1b(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "task", length=2048)
    return change(config, "model", n_layer=8, d_model=1024, n_head=16, n_neurons=327_680)


def _10b(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "task", length=2048)
    return change(config, "model", n_layer=12, d_model=4096, n_head=64, n_neurons=819_200)


def _fast(config: ExperimentConfig) -> ExperimentConfig:
    fast = FastWeightConfig(learning_rate=0.01, decay=0.95, learn_learning_rate=True, learn_decay=True)
    return change(config, "model", fast=fast)


def _long(config: ExperimentConfig) -> ExperimentConfig:
    return change(change(config, "task", length=131_072, evaluation_windows=8), "train", batch_size=8)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    "100m": _100m,
    "1b": _1b,
    "10b": _10b,
    "fast": _fast,
    "long": _long,
}
