"""AdamW with warm-up, cosine decay, clipping, and weight decay on matrices only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from bdh_jax.config import ConfigError
from bdh_jax.training.config import OptimizerConfig

Slow = dict[str, Any]


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the number of updates already made.

    Linear warm-up from peak / (warmup_steps + 1), so that the first update does something, then a cosine down to
    ``final_fraction`` of the peak at ``steps``, or a constant.

    Raises:
      ConfigError: if the warm-up is as long as the training.
    """
    if config.warmup_steps >= steps:
        raise ConfigError(
            f"optimizer.warmup_steps={config.warmup_steps} must be less than train.steps={steps}: nothing is left to train"
        )
    warmup = optax.linear_schedule(
        config.learning_rate / (config.warmup_steps + 1), config.learning_rate, transition_steps=config.warmup_steps
    )
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, steps - config.warmup_steps, alpha=config.final_fraction)
    else:
        after = optax.constant_schedule(config.learning_rate)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of the trained slow weights (see :func:`split_trained`).

    Args:
      config: rates and limits.
      steps: length of the training, where the cosine ends.

    Raises:
      ConfigError: as :func:`make_schedule`.
    """
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    return adamw if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def decay_mask(slow: Slow) -> dict[str, bool]:
    """Which leaves are decayed: matrices are, per-head rates (in log and logit space) are not."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, slow)


def split_trained(slow: Slow, declared: Mapping[str, Any]) -> tuple[Slow, Slow]:
    """Split slow weights into those the optimiser trains and those it leaves alone.

    What a model declares as not trained has no gradient, no optimiser state and no weight decay. So it is with BDH's synapse, which only
    consolidation changes, unless ``fast.train_synapse``.

    Args:
      slow: weights by name, nested as declared.
      declared: of the model (:meth:`bdh_jax.models.base.Model.declared_slow`).

    Returns:
      (trained, frozen), which :func:`merge` joins again.
    """
    trained: Slow = {}
    frozen: Slow = {}
    for name, leaf in slow.items():
        weight = declared[name]
        if isinstance(weight, Mapping):
            parts = split_trained(leaf, weight)
            for side, part in zip((trained, frozen), parts, strict=True):
                if part:
                    side[name] = part
        else:
            (trained if weight.trained else frozen)[name] = leaf
    return trained, frozen


def merge(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> Slow:
    """The slow weights that :func:`split_trained` split."""
    merged = dict(trained)
    for name, leaf in frozen.items():
        merged[name] = merge(trained[name], leaf) if isinstance(leaf, Mapping) and name in trained else leaf
    return merged
