"""Experts of different kinds under a router, on two jobs at once: bytes of text, and recall within the context.

    python -m bdh_jax.main --config=configs/mixture.py --workdir=runs/mixture --config.data.path=FILE_FOLDER_OR_GLOB

Half of the rows of a batch are windows of a text, half are n-back, whose keys and values have ids after the bytes. Each layer
sends a token to one of the experts, each of which learns in its own way: a BDH by the optimiser, and by fast weights within the context; a GPT
by the optimiser; a SLIM by the optimiser and Oja's local rule. Without ``data.path`` the text is tiny Shakespeare, which is downloaded once.

Variants follow a colon, several are joined by commas:

    bdh      the BDH alone, with as many parameters as a token of the mixture can use
    gpt      the GPT alone, likewise
    slim     the SLIM alone, likewise, with its local rule
    dense    the outputs of all experts count, weighed by the router
    routed   an expert writes the tokens that are routed to it alone
    smoke    a tiny model for a few steps: does it run?

docs/results/mixture.md has the results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import apply_variants, change, parse_variants
from bdh_jax.config.options import Options
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.models.mixture import MixtureConfig
from bdh_jax.models.slim import SlimConfig
from bdh_jax.tasks.mixed import MixedConfig
from bdh_jax.tasks.nback import INTEGER_VOCABULARY
from bdh_jax.training.config import OptimizerConfig, TrainConfig

ALONE = ("bdh", "gpt", "slim")
"""Variants that are one expert alone, of which at most one is named."""
LOCAL = Options(rule="oja", rate=3e-3, keep=1.0, measure=False)
"""The local rule of the SLIM, and its rate."""
HOOK = "bdh_jax.training.local_rules:local_learning"


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: names of ``VARIANTS`` joined by commas; empty for the default.

    Raises:
      ConfigError: for an unknown or repeated variant, or two that do not go together.
    """
    models = [name for name in parse_variants(arg, VARIANTS) if name in (*ALONE, "dense", "routed")]
    if len(models) > 1:
        raise ConfigError(f"variants {' and '.join(map(repr, models))} do not go together: each is another model; name one")
    return apply_variants(_default(), arg, VARIANTS)


def _default() -> ExperimentConfig:
    bdh = Options(n_head=1, n_neurons=512, init_std=0.1, fast=Options(learning_rate=1.0, decay=0.95))
    gpt, slim = Options(n_head=4, rope_theta=100.0), Options(n_head=4, d_ff=256, max_length=128)
    return ExperimentConfig(
        task=MixedConfig(
            jobs=Options(
                text=Options(length=68, evaluation_windows=256),
                nback=Options(queries=2, evaluation_sequences=256),
            )
        ),
        model=MixtureConfig(
            vocab_size=256 + INTEGER_VOCABULARY,
            n_layer=2,
            d_model=64,
            experts=Options(bdh=bdh, gpt=gpt, slim=slim),
            top_k=1,
            context=256,
            balance=0.03,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=50),
        train=TrainConfig(
            steps=400,
            batch_size=16,
            loss="weights",
            hooks=("bdh_jax.training.expert_hooks:of_experts",),
            hook_options=Options(experts=Options(slim=Options({"hook": HOOK, **LOCAL}))),
            evaluate_every=400,
            checkpoint_every=200,
        ),
    )


def _sizes(config: ExperimentConfig) -> dict[str, Any]:
    return {name: getattr(config.model, name) for name in ("vocab_size", "d_model", "dropout", "dtype", "remat")}


def _without_hooks(config: ExperimentConfig) -> ExperimentConfig:
    return change(config, "train", hooks=(), hook_options=Options())


def _bdh(config: ExperimentConfig) -> ExperimentConfig:
    model = BDHConfig(
        **_sizes(config),
        n_layer=2,
        n_head=1,
        n_neurons=768,
        init_std=0.1,
        fast=FastWeightConfig(learning_rate=1.0, decay=0.95),
    )
    config = _without_hooks(config)
    # On seed 100 the rate 8e-3 was better than 4e-3.
    return change(change(config, model=model), "optimizer", learning_rate=8e-3)


def _gpt(config: ExperimentConfig) -> ExperimentConfig:
    return change(_without_hooks(config), model=GPTConfig(**_sizes(config), n_layer=3, n_head=4, rope_theta=100.0))


def _slim(config: ExperimentConfig) -> ExperimentConfig:
    model = SlimConfig(**_sizes(config), n_layer=3, n_head=4, d_ff=256, max_length=128)
    return change(change(config, model=model), "train", hooks=(HOOK,), hook_options=LOCAL)


def _dense(config: ExperimentConfig) -> ExperimentConfig:
    model: Any = config.model
    return change(config, "model", top_k=len(model.experts))


def _routed(config: ExperimentConfig) -> ExperimentConfig:
    return change(config, "model", writes="routed")


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    jobs = Options(text=Options(length=18, evaluation_windows=8), nback=Options(mixture=("n2",), evaluation_sequences=8))
    config = change(config, "task", jobs=jobs)
    config = change(config, "model", d_model=16, n_layer=min(config.model.n_layer, 2))
    config = change(config, "optimizer", warmup_steps=2)
    return change(config, "train", steps=20, batch_size=4, evaluate_every=10, checkpoint_every=10, log_every=5)


VARIANTS: dict[str, Callable[[ExperimentConfig], ExperimentConfig]] = {
    "bdh": _bdh,
    "gpt": _gpt,
    "slim": _slim,
    "dense": _dense,
    "routed": _routed,
    "smoke": _smoke,
}
