"""Manual pages in windows of 512 bytes: what forgetting and write-back are worth in text, beside a gated DeltaNet and a GPT.

    python -m bdh_jax.main --config=configs/manpages.py --workdir=runs/manpages --config.data.path=FOLDER

FOLDER has the pages (docs/how-to/merge.md says how to get some); any other text of documents will do. All models have 131,072 weights, within
2 %. ``benchmarks/manpages_table.py`` trains and compares them.

Variants follow a colon, several are joined by commas: ``--config=configs/manpages.py:decay,tbptt``.

    decay           attention forgets, by a μ of each head that is learned; heads begin at .9, .98, .995 and .999
    write_back      the same with write-back
    gated_deltanet  a gated DeltaNet instead of BDH
    gpt             a GPT instead of BDH
    tbptt           rows go on reading where they stopped, with their state; gradients end at the window's start
    smoke           a tiny model for a few steps: does it run?
"""

from __future__ import annotations

from collections.abc import Callable

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import apply_variants, change, parse_variants
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gated_deltanet import GatedDeltaNetConfig
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.tasks.text import TextConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig

MODELS = ("decay", "write_back", "gated_deltanet", "gpt")
"""Variants of which there can be one."""


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: names of ``VARIANTS`` joined by commas, applied in the order of ``VARIANTS``; empty for BDH.

    Raises:
      ConfigError: for an unknown or repeated variant, or two that exclude each other.
    """
    names = parse_variants(arg, VARIANTS)
    models = [name for name in names if name in MODELS]
    if len(models) > 1:
        raise ConfigError(f"variants {models[0]!r} and {models[1]!r} do not go together: each is a model; name one")
    if "gpt" in names and "tbptt" in names:
        raise ConfigError("variants 'gpt' and 'tbptt' do not go together: a GPT has no state")
    return apply_variants(_default(), arg, VARIANTS)


def _default() -> ExperimentConfig:
    model = BDHConfig(
        n_layer=2,
        d_model=64,
        n_head=4,
        n_neurons=512,
        dropout=0.0,
        init_std=0.02,
        fast=FastWeightConfig(enabled=False),
    )
    return ExperimentConfig(
        task=TextConfig(length=512, evaluation_windows=200),
        model=model,
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=50),
        train=TrainConfig(steps=600, batch_size=4, loss="weights", evaluate_every=600, checkpoint_every=300),
    )


def _decay(config: ExperimentConfig) -> ExperimentConfig:
    return change(config, "model", attention_decay=(0.9, 0.98, 0.995, 0.999), learn_attention_decay=True)


def _write_back(config: ExperimentConfig) -> ExperimentConfig:
    fast = FastWeightConfig(learning_rate=0.1, decay=0.98, learn_learning_rate=True, learn_decay=True)
    return change(_decay(config), "model", fast=fast)


def _gated_deltanet(config: ExperimentConfig) -> ExperimentConfig:
    model = GatedDeltaNetConfig(vocab_size=256, n_layer=2, d_model=64, n_head=2, d_key=24, d_value=48, d_ff=120, tied=False)
    return change(config, model=model)


def _gpt(config: ExperimentConfig) -> ExperimentConfig:
    return change(config, model=GPTConfig(vocab_size=256, n_layer=2, d_model=64, n_head=4, dropout=0.0))


def _tbptt(config: ExperimentConfig) -> ExperimentConfig:
    return change(change(config, "task", order="consecutive"), "train", carry_state=True)


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    model = config.model
    if isinstance(model, BDHConfig):
        config = change(config, "model", d_model=16, n_neurons=64)
    else:
        config = change(config, "model", n_layer=1, d_model=16)
    config = change(config, "task", length=64, evaluation_windows=16)
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, evaluate_every=10, checkpoint_every=10)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    "decay": _decay,
    "write_back": _write_back,
    "gated_deltanet": _gated_deltanet,
    "gpt": _gpt,
    "tbptt": _tbptt,
    "smoke": _smoke,
}
