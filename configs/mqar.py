"""Multi-query associative recall, the published comparison of models by recall and size of state (arXiv 2312.04927).

    python -m bdh_jax train mqar --workdir=runs/mqar
    python -m bdh_jax train mqar:gated_deltanet --workdir=runs/mqar_gated_deltanet

The default is softmax attention with a short convolution in the smallest published setting: 64 tokens, 4 pairs, 8,192 token ids, the loss at asked
positions only; training ends at an accuracy of .99. Variants follow a colon, several are joined by commas: ``mqar:gla,published``.

    gla             a gated convolution, and gated linear attention
    gated_deltanet  a gated convolution, and gated DeltaNet
    mamba2          Mamba-2
    bdh             BDH without write-back
    shift           the same, whose attention keeps what it reads under the code of the token before
    write_back      BDH that writes its activity back by the delta rule
    grid            64 to 256 tokens, 4 to 32 pairs, 1,024 token ids: what the table of recall by size of state is trained on
    forgetting      8 of 8 or 16 keys get a second value, which is what is asked for
    compositional   keys of two tokens, neither of which says the value
    small           1,024 token ids: minutes of a CPU core, where the default takes longer
    published       the published mixture of up to 256 tokens and 64 pairs, tested to 1,024 tokens: for a GPU
    smoke           a tiny model for a few steps: does it run?

Any key can be overridden, as in ``configs/nback.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bdh_jax.config.convert import apply_variants, change
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.attention import AttentionConfig
from bdh_jax.models.base import ModelConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gated_deltanet import GatedDeltaNetConfig
from bdh_jax.models.gla import GLAConfig
from bdh_jax.models.mamba2 import Mamba2Config
from bdh_jax.tasks.compositional_mqar import CompositionalMQARConfig
from bdh_jax.tasks.forgetting_mqar import ForgettingMQARConfig
from bdh_jax.tasks.mqar import MQARConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig

WIDTH = 64
"""D of every model."""


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: names of ``VARIANTS`` joined by commas, applied in the order of ``VARIANTS``; empty for the default.

    Raises:
      ConfigError: for an unknown or repeated variant.
    """
    config = ExperimentConfig(
        task=MQARConfig(),
        model=AttentionConfig(vocab_size=8192, d_model=WIDTH, window=64),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
        train=TrainConfig(
            steps=8000,
            batch_size=64,
            loss="answer",
            stop_at=0.99,
            evaluate_every=250,
            checkpoint_every=1000,
        ),
    )
    return apply_variants(config, arg, VARIANTS)


def _model(model: ModelConfig) -> Callable[[ExperimentConfig], ExperimentConfig]:
    return lambda config: dataclasses.replace(config, model=dataclasses.replace(model, vocab_size=config.model.vocab_size))


_BDH = BDHConfig(
    n_layer=2, d_model=WIDTH, n_head=2, n_neurons=256, dropout=0.0, init_std=0.1, fast=FastWeightConfig(enabled=False)
)
_WRITE_BACK = FastWeightConfig(rule="delta", learning_rate=1.0, decay=1.0, address_norm="l2")


def _small(config: ExperimentConfig) -> ExperimentConfig:
    config = change(config, "task", vocab_size=1024, test=((64, 4, 1000),))
    return change(config, "model", vocab_size=1024)


def _on_cpu(
    config: ExperimentConfig, task: MQARConfig, sets: tuple[tuple[int, int], ...], **of_task: int
) -> ExperimentConfig:
    """Sets of 20,000 sequences over 1,024 token ids, and a training of some minutes of a core."""
    train, test = (tuple((*numbers, count) for numbers in sets) for count in (20_000, 256))
    config = change(config, task=dataclasses.replace(task, vocab_size=1024, train=train, test=test, **of_task))
    config = change(config, "model", vocab_size=1024)
    if isinstance(config.model, AttentionConfig):
        config = change(config, "model", window=max(length for length, _ in sets))
    return change(config, "train", steps=1500, batch_size=32, evaluate_every=250)


def _grid(config: ExperimentConfig) -> ExperimentConfig:
    return _on_cpu(config, MQARConfig(), ((64, 4), (64, 8), (128, 16), (256, 32)))


def _forgetting(config: ExperimentConfig) -> ExperimentConfig:
    return _on_cpu(config, ForgettingMQARConfig(), ((64, 8), (128, 16)), updates=8)


def _compositional(config: ExperimentConfig) -> ExperimentConfig:
    return _on_cpu(config, CompositionalMQARConfig(), ((64, 4), (128, 16)))


def _published(config: ExperimentConfig) -> ExperimentConfig:
    """The mixture of the published program, whose rates are 10⁻³, 10⁻²·⁵, 10⁻², 10⁻¹·⁵, each for 32 epochs of 703 batches."""
    train = ((64, 4, 100_000), *((length, pairs, 20_000) for length, pairs in ((128, 8), (256, 16), (256, 32), (256, 64))))
    lengths = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
    test = tuple((length, pairs, 1000) for length, pairs in lengths)
    config = change(config, "task", vocab_size=8192, train=train, test=test, fillers=True)
    config = change(config, "model", vocab_size=8192)
    if isinstance(config.model, AttentionConfig):
        config = change(config, "model", window=1024)
    return change(config, "train", steps=32 * 702, batch_size=256, stop_at=None, evaluate_every=702, checkpoint_every=702)


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    # A square number of pairs, and room for new values: what the tasks of all variants can be drawn with.
    sets = {"train": ((24, 4, 64),), "test": ((24, 4, 16), (32, 4, 8))}
    own = {"updates": 2} if isinstance(config.task, ForgettingMQARConfig) else {}
    config = change(config, "task", vocab_size=32, **sets, **own)
    config = change(config, "model", vocab_size=32, d_model=16)
    if isinstance(config.model, BDHConfig):
        config = change(config, "model", n_neurons=32)
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, batch_size=4, stop_at=None, evaluate_every=10, checkpoint_every=10, log_every=5)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    # Behind a gated convolution, as in the published comparison, where Mamba-2 stands alone as well.
    "gla": _model(GLAConfig(d_model=WIDTH, gated_convolution=3)),
    "gated_deltanet": _model(GatedDeltaNetConfig(d_model=WIDTH, gated_convolution=3)),
    "mamba2": _model(Mamba2Config(d_model=WIDTH)),
    "bdh": _model(_BDH),
    "shift": _model(dataclasses.replace(_BDH, attention="shift")),
    "write_back": _model(dataclasses.replace(_BDH, fast=_WRITE_BACK)),
    "grid": _grid,
    "forgetting": _forgetting,
    "compositional": _compositional,
    "small": _small,
    "published": _published,
    "smoke": _smoke,
}
