"""What else is done to weights without a gradient: pruning of weak ones, and scaling to a mean strength."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.config import require
from bdh_jax.models.base import Model
from bdh_jax.models.local_maps import choose, weight_of, with_weight
from bdh_jax.tasks.base import Batch
from bdh_jax.training.hooks import Hooks, Taps, Update
from bdh_jax.types import Slow


def prune_below(weight: jax.Array, threshold: float) -> jax.Array:
    """W · 1[|W| > threshold], as published in BDH-SLIM."""
    return jnp.where(jnp.abs(weight) > threshold, weight, jnp.zeros((), weight.dtype))


def prune_fraction(weight: jax.Array, fraction: float) -> jax.Array:
    """The weight without the ``fraction`` of its entries that are smallest; ties at the limit all go."""
    count = round(fraction * weight.size)
    if count == 0:
        return weight
    limit = jnp.sort(jnp.abs(weight).reshape(-1))[count - 1]
    return prune_below(weight, limit)  # pyright: ignore[reportArgumentType] - an array for a float


def scale_to(weight: jax.Array, target: float) -> jax.Array:
    """W · target / mean |W|, as published in BDH-SLIM; zeros stay zeros."""
    mean = jnp.mean(jnp.abs(weight))
    return weight * jnp.where(mean > 0, target / jnp.where(mean > 0, mean, 1.0), 1.0).astype(weight.dtype)


def pruning(
    model: Model,
    *,
    prune_where: str = "all",
    prune_every: int = 1000,
    threshold: float | None = 0.01,
    fraction: float | None = None,
    hold: bool = False,
) -> Hooks:
    """Every ``prune_every`` steps set weak weights to zero, after the optimiser.

    Args:
      model: the model.
      prune_where: ``where`` as in :func:`bdh_jax.training.local_rules.local_learning`.
      prune_every: steps from one pruning to the next.
      threshold: weights of at most this magnitude go; None to prune by ``fraction``.
      fraction: share of each matrix's entries that go; None to prune by ``threshold``.
      hold: what was pruned stays zero at every later step, and so does what was zero when training began; otherwise the optimiser may bring it back, as published.

    Raises:
      ConfigError: unless exactly one of threshold and fraction is given.
    """
    require(
        (threshold is None) != (fraction is None),
        f"threshold={threshold} and fraction={fraction}: pruning goes by one of them; set the other to None",
    )
    require(fraction is None or 0 <= fraction < 1, f"fraction={fraction} must lie in [0, 1)")
    require(threshold is None or threshold >= 0, f"threshold={threshold} must be ≥ 0")
    require(prune_every >= 1, f"prune_every={prune_every} must be at least 1")
    maps = choose(model, prune_where)

    def init(slow: Slow) -> Any:
        kept = {name: weight_of(slow, one) != 0 for name, one in maps.items()} if hold else {}
        return jnp.zeros((), jnp.int32), kept

    def update(slow: Slow, taps: Taps, batch: Batch, history: Any) -> tuple[Slow, Any]:
        del taps, batch
        step, kept = history
        now = (step + 1) % prune_every == 0
        for name, one in maps.items():
            weight = weight_of(slow, one)
            if hold:
                weight = jnp.where(kept[name], weight, jnp.zeros((), weight.dtype))
            pruned = prune_below(weight, threshold) if fraction is None else prune_fraction(weight, fraction)  # pyright: ignore[reportArgumentType] - one of them is given
            weight = jnp.where(now, pruned, weight)
            if hold:
                kept = {**kept, name: jnp.where(now, weight != 0, kept[name])}
            slow = with_weight(slow, one.path, weight)
        return slow, (step + 1, kept)

    return Hooks(updates=(Update("pruning", init, update, label="pruning"),))


def homeostasis(model: Model, *, scale_where: str = "all", scale_every: int = 1000, mean_weight: float = 0.5) -> Hooks:
    """Every ``scale_every`` steps scale each weight so that its mean magnitude is ``mean_weight``, after the optimiser.

    Args:
      model: the model.
      scale_where: ``where`` as in :func:`bdh_jax.training.local_rules.local_learning`.
      scale_every: steps from one scaling to the next.
      mean_weight: mean of |W| afterwards.

    Raises:
      ConfigError: for a mean_weight that is not positive.
    """
    require(mean_weight > 0, f"mean_weight={mean_weight} must be positive")
    require(scale_every >= 1, f"scale_every={scale_every} must be at least 1")
    maps = choose(model, scale_where).values()

    def update(slow: Slow, taps: Taps, batch: Batch, history: tuple[()]) -> tuple[Slow, tuple[()]]:
        del taps, batch
        for one in maps:
            slow = with_weight(slow, one.path, scale_to(weight_of(slow, one), mean_weight))
        return slow, history

    return Hooks(updates=(Update("homeostasis", lambda slow: (), update, every=scale_every, label="homeostasis"),))
