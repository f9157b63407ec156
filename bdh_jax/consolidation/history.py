"""Consolidation functions that remember earlier episodes, or average over them. Notation as in :mod:`bdh_jax.consolidation.rows`."""

from __future__ import annotations

import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.consolidation.base import Consolidation, History, Plain, factory
from bdh_jax.consolidation.rows import (
    ExampleWeights,
    Target,
    add_rows,
    add_to,
    at_least_tiny,
    by_target_row,
    check_fraction,
    check_rate,
    check_target,
    mean_state,
    row_scores,
    row_shape,
    target_of,
    top_rows,
)
from bdh_jax.fast_weights.state import Activity, FastState
from bdh_jax.types import Slow

ROW_AXES = ("layer", "head", "neuron")
"""Logical axes of one number for each row."""


@factory
def running_average(rate: float = 0.1, *, target: Target = "synapse", example_weights: ExampleWeights = None) -> Plain:
    """W ← (1 − rate)·W + rate·F̄: the exponential moving average of episodes.

    Args:
      rate: in (0, 1].
      target: "synapse" or "decoder".
      example_weights: see :data:`ExampleWeights`.
    """
    check_target(target)
    if not 0 < rate <= 1:
        raise ConfigError(f"rate={rate} must lie in (0, 1]: it is the share of the new episode in the average")

    def consolidate(slow: Slow, fast: FastState, activity: Activity) -> Slow:
        slow = {**slow, target: (1 - rate) * target_of(slow, target)}
        return add_to(slow, rate * mean_state(fast, activity, example_weights), target)

    return consolidate


@factory
def tfidf_rows(
    fraction: float = 0.1, rate: float = 1.0, *, target: Target = "synapse", example_weights: ExampleWeights = None
) -> Consolidation:
    """As :func:`row_topk`, rows ranked by their use in this episode against their use in all before it.

    score_i = s_i / Σ s · log((E + 1) / (u_i + 1)), with s the strength, E the episodes so far and u_i the sum over them of
    s_i / max s. After sparse memory finetuning (arXiv 2510.15103), where use is a count of accesses; here addresses are
    graded, so one episode counts as the share it used. Its history is u and E.

    Args:
      fraction, rate, target, example_weights: as :func:`row_topk`.
    """
    check_fraction(fraction)
    check_target(target)
    check_rate(rate)

    def init(slow: Slow) -> History:
        shape = row_shape(slow, target)
        return {"row_use": jnp.zeros(shape, jnp.float32), "episodes": jnp.zeros((), jnp.int32)}

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        change = mean_state(fast, activity, example_weights)
        strength = row_scores("strength", fast, activity, example_weights)
        strength, change = by_target_row(target, strength, change)
        frequency = strength / at_least_tiny(jnp.sum(strength, axis=(1, 2), keepdims=True))
        rarity = jnp.log((history["episodes"] + 1) / (history["row_use"] + 1))
        # In the first episode every row is equally rare: its use alone decides.
        scores = frequency * jnp.where(history["episodes"] == 0, 1.0, rarity)
        chosen = top_rows(scores, fraction)
        slow = add_rows(slow, chosen, change, target, rate=rate, fraction=fraction)
        share = strength / at_least_tiny(jnp.max(strength, axis=(1, 2), keepdims=True))
        use = history["row_use"] + share.astype(jnp.float32)
        return slow, {"row_use": use, "episodes": history["episodes"] + 1}

    return Consolidation(init, update, lambda slow: {"row_use": ROW_AXES, "episodes": ()})


@factory
def importance_weighted(
    rate: float = 1.0, protection: float = 1.0, *, target: Target = "synapse", example_weights: ExampleWeights = None
) -> Consolidation:
    """W_i ← W_i + rate / (1 + protection·Ω_i)·F̄_i: rows that earlier episodes relied on change less.

    Ω_i is the sum over earlier episodes of the row's share of the layer's mean written energy (in the manner of synaptic
    intelligence, arXiv 1703.04200, with the energy of writes in place of gradients). Its history is Ω.

    Args:
      rate: size of the write.
      protection: ≥ 0; 0 is :func:`dense`.
      target, example_weights: as :func:`row_topk`.
    """
    check_target(target)
    check_rate(rate)
    if not protection >= 0:
        raise ConfigError(f"protection={protection} must be ≥ 0")

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        change = mean_state(fast, activity, example_weights)
        energy = row_scores("energy", fast, activity, example_weights)
        energy, change = by_target_row(target, energy, change)
        importance = history["row_importance"]
        openness = (rate / (1 + protection * importance)).astype(change.dtype)
        share = energy / at_least_tiny(jnp.mean(energy, axis=(1, 2), keepdims=True))
        importance = importance + share.astype(jnp.float32)
        return add_to(slow, openness[..., None] * change, target), {"row_importance": importance}

    def init(slow: Slow) -> History:
        return {"row_importance": jnp.zeros(row_shape(slow, target), jnp.float32)}

    return Consolidation(init, update, lambda slow: {"row_importance": ROW_AXES})


@factory
def cascade(
    rate: float = 1.0,
    levels: int = 4,
    ratio: float = 2.0,
    *,
    target: Target = "synapse",
    example_weights: ExampleWeights = None,
) -> Consolidation:
    """A chain of ever slower variables behind every synapse (Benna & Fusi 2016, doi 10.1038/nn.4401).

    u_1 = W takes in rate·F̄ and exchanges with u_2, that with u_3, and so on, once an episode:

        u_k ← u_k + (g_{k−1}·(u_{k−1} − u_k) + g_k·(u_{k+1} − u_k)) / C_k,    C_k = ratio^{k−1},  g_k = ratio^{1−k} / 4

    with g_0 = 0 and u_{levels+1} = 0, so that level k answers in about 4·ratio^{2(k−1)} episodes. What an episode wrote decays
    with the square root of its age instead of exponentially. The history is u_2 … u_levels, each as large as the target.

    Args:
      rate: size of the write.
      levels: number of variables, at least 2.
      ratio: at least 1.
      target, example_weights: as :func:`row_topk`.
    """
    check_target(target)
    check_rate(rate)
    if levels < 2:
        raise ConfigError(f"levels={levels} must be at least 2: one is the target itself, the others are slower")
    if not ratio >= 1:
        raise ConfigError(f"ratio={ratio} must be at least 1: every level is slower than the one before it")
    capacity = [ratio**k for k in range(levels)]
    coupling = [ratio**-k / 4 for k in range(levels)]

    def init(slow: Slow) -> History:
        first = target_of(slow, target)
        return {"levels": jnp.zeros((levels - 1, *first.shape), first.dtype)}

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        written = add_to(slow, rate * mean_state(fast, activity, example_weights), target)
        chain = [written[target], *history["levels"], jnp.zeros_like(written[target])]
        flow = [coupling[k] * (chain[k + 1] - chain[k]) for k in range(levels)]  # into level k from the next one
        chain = [chain[k] + (flow[k] - (flow[k - 1] if k else 0)) / capacity[k] for k in range(levels)]
        return {**written, target: chain[0]}, {"levels": jnp.stack(chain[1:])}

    axes = (*ROW_AXES, "model") if target == "synapse" else (*ROW_AXES[1:], "model")
    return Consolidation(init, update, lambda slow: {"levels": ("level", *axes)})


FACTORIES = (running_average, tfidf_rows, importance_weighted, cascade)
