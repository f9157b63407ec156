"""Language modelling on bytes: train on any text, score in bits per byte of its validation part.

    python -m bdh_jax.main --config=configs/text.py --workdir=runs/text --config.data.path=FILE_FOLDER_OR_GLOB

Without ``data.path`` it trains on tiny Shakespeare, which is downloaded once. Needs ``pip install "bdh_jax[text]"``.

Variants follow a colon, several are joined by commas: ``--config=configs/text.py:fast,tbptt``.

    official    the published size and training: 25.3 M parameters, T 512, B 32, 3000 steps; for an accelerator
    v03         D 768, T 192, B 48, raw bytes; for an accelerator
    gpt         a GPT with as many parameters instead of BDH (also of ``official``)
    fast        with write-back
    fast_topk   with write-back, and consolidation of the top 10 % of rows every 100 steps
    tbptt       rows go on reading where they stopped, with their state; gradients end at the window's start; attention forgets
    smoke       a tiny model for a few steps: does it run?

The default takes 4 minutes on one CPU core and has 2.47 bits per byte of tiny Shakespeare; docs/results/language.md has all results.
"""

from __future__ import annotations

from collections.abc import Callable

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import apply_variants, change, parse_variants
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.tasks.text import TextConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: names of ``VARIANTS`` joined by commas, applied in the order of ``VARIANTS``; empty for the default.

    Raises:
      ConfigError: for an unknown or repeated variant.
    """
    names = parse_variants(arg, VARIANTS)
    for name in ("fast", "fast_topk", "tbptt"):
        if name in names and "gpt" in names:
            raise ConfigError(f"variants 'gpt' and {name!r} do not go together: a GPT has no fast weights and no state")
    return apply_variants(_default(), arg, VARIANTS)


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        task=TextConfig(length=128),
        model=BDHConfig(
            n_layer=3,
            d_model=64,
            n_head=4,
            n_neurons=1024,
            dropout=0.0,
            init_std=0.02,
            fast=FastWeightConfig(enabled=False),
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100),
        train=TrainConfig(
            steps=1000, batch_size=16, loss="weights", evaluate_every=500, checkpoint_every=250, log_contributions=True
        ),
    )


def _published(config: ExperimentConfig) -> ExperimentConfig:
    """The published optimiser: AdamW at a constant rate, without warm-up and clipping."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant", weight_decay=0.1, clip_norm=None)
    return change(config, optimizer=optimizer)


def _official(config: ExperimentConfig) -> ExperimentConfig:
    config = change(
        config, "model", n_layer=6, d_model=256, n_head=4, n_neurons=32768, dropout=0.1, dtype="bfloat16", remat=True
    )
    config = change(config, "task", length=512)
    return _published(change(config, "train", steps=3000, batch_size=32))


def _v03(config: ExperimentConfig) -> ExperimentConfig:
    config = change(
        config, "model", n_layer=6, d_model=768, n_head=4, n_neurons=32768, dropout=0.1, dtype="bfloat16", remat=True
    )
    config = change(config, "task", length=192)
    return _published(change(config, "train", steps=3000, batch_size=48))


def _gpt(config: ExperimentConfig) -> ExperimentConfig:
    # BDH has 3 D n parameters beside the embeddings, a GPT layer 12 D².
    model = config.model
    width, layers = {64: (64, 4), 256: (512, 8), 768: (1024, 6)}[model.d_model]
    gpt = GPTConfig(
        vocab_size=model.vocab_size,
        n_layer=layers,
        d_model=width,
        n_head=max(4, width // 64),
        dropout=model.dropout,
        dtype=model.dtype,
        remat=model.remat,
    )
    return change(change(config, model=gpt), "train", log_contributions=False)


def _fast(config: ExperimentConfig) -> ExperimentConfig:
    fast = FastWeightConfig(learning_rate=0.01, decay=0.95, learn_learning_rate=True, learn_decay=True)
    return change(config, "model", fast=fast)


def _fast_topk(config: ExperimentConfig) -> ExperimentConfig:
    config = _fast(config)
    config = change(config, "model.fast", synapse=True)
    consolidation = ConsolidationConfig(function="row_topk", every=100, options={"fraction": 0.1, "rate": 1e-2})
    return change(config, consolidation=consolidation)


def _tbptt(config: ExperimentConfig) -> ExperimentConfig:
    # Attention that forgets nothing adds up all it has read: a sum that no window has shown, and that trains badly (docs/results/language.md).
    config = change(config, "model", attention_decay=(0.98,))
    return change(change(config, "task", order="consecutive"), "train", carry_state=True)


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    if isinstance(config.model, GPTConfig):
        config = change(config, "model", n_layer=1, d_model=16, n_head=2)
    else:
        config = change(config, "model", n_layer=2, d_model=16, n_head=2, n_neurons=64, dtype="float32", remat=False)
    config = change(config, "task", length=32, evaluation_windows=16)
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, batch_size=4, evaluate_every=10, checkpoint_every=10)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    "official": _official,
    "v03": _v03,
    "gpt": _gpt,
    "fast": _fast,
    "fast_topk": _fast_topk,
    "tbptt": _tbptt,
    "smoke": _smoke,
}
