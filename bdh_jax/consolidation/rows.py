"""Consolidation functions: how much of what an episode wrote goes into the slow weights.

Every factory returns a pure, jittable function (:mod:`bdh_jax.consolidation.base` says of what form). Notation: F̄ [L, H, N, D]
is the mean over examples of the fast weights S, a *row* is one (layer, head, neuron), Σ the sum over rows of a layer, and W the
target that is written: the synapse, or the decoder, onto which the layers are summed.

Axis letters: B batch, L layer, H head, N neurons per head, D model width; K = H·N rows a layer.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.consolidation.base import Consolidation, ConsolidationError, Function, Plain, Slow, as_consolidation
from bdh_jax.fast_weights.rules.tokenwise import ridge_solution
from bdh_jax.fast_weights.state import Activity, FastState

Target = Literal["synapse", "decoder"]
Score = Literal["strength", "energy", "state_norm"]
ExampleWeights = Callable[[Activity], jax.Array] | jax.Array | None
"""Weight [B] of each example in F̄, or a function of the activity that gives it; None weighs all the same.

The training step averages its batch before a function sees it, which saves holding B states: there B is 1, and weights change nothing.
"""


def none() -> Plain:
    """W ← W. The control: nothing outlives the episode."""
    return lambda slow, fast, activity: slow


def dense(rate: float = 1.0, *, target: Target = "synapse", example_weights: ExampleWeights = None) -> Plain:
    """W ← W + rate·F̄ (bdh-fast-weights, "dense").

    Args:
      rate: size of the write.
      target: "synapse" or "decoder".
      example_weights: see :data:`ExampleWeights`.
    """
    _check_target(target)
    _check_rate(rate)

    def consolidate(slow: Slow, fast: FastState, activity: Activity) -> Slow:
        return _add(slow, rate * mean_state(fast, activity, example_weights), target)

    return consolidate


def row_topk(
    fraction: float = 0.1,
    rate: float = 1.0,
    score: Score = "state_norm",
    *,
    target: Target = "synapse",
    example_weights: ExampleWeights = None,
) -> Plain:
    """W_i ← W_i + rate·F̄_i for the max(1, ⌊fraction·K⌋) rows of each layer with the largest score (bdh-fast-weights).

    Args:
      fraction: share of a layer's rows, in (0, 1].
      rate: size of the write.
      score: "state_norm" ‖F̄_i‖ (the published choice), "strength" summed address, "energy" Σ‖written row‖².
      target: "synapse" or "decoder".
      example_weights: see :data:`ExampleWeights`.
    """
    _check_fraction(fraction)
    return _of_rows(lambda scores: top_rows(scores, fraction), rate, score, target, example_weights)


def row_bottom(
    fraction: float = 0.1,
    rate: float = 1.0,
    score: Score = "state_norm",
    *,
    target: Target = "synapse",
    example_weights: ExampleWeights = None,
) -> Plain:
    """As :func:`row_topk` with the smallest scores above zero: rows that were never written have nothing to give. A control."""

    _check_fraction(fraction)

    def choose(scores: jax.Array) -> jax.Array:
        used = scores > 0
        return top_rows(jnp.where(used, -scores, -jnp.inf), fraction) & used

    return _of_rows(choose, rate, score, target, example_weights)


def row_random(
    fraction: float = 0.1,
    rate: float = 1.0,
    seed: int = 0,
    *,
    target: Target = "synapse",
    example_weights: ExampleWeights = None,
) -> Consolidation:
    """As :func:`row_topk` with rows drawn anew, uniformly, for every episode. A control.

    Its memory is the number of episodes so far, which the draw is a function of.

    Args:
      fraction, rate, target, example_weights: as :func:`row_topk`.
      seed: of the draws.
    """
    _check_fraction(fraction)
    _check_target(target)
    _check_rate(rate)

    def update(slow, fast, activity, memory):
        change = mean_state(fast, activity, example_weights)
        key = jax.random.fold_in(jax.random.key(seed), memory["episodes"])
        chosen = top_rows(jax.random.uniform(key, change.shape[:-1]), fraction)
        slow = _add_rows(slow, chosen, rate * change, target)
        return slow, {"episodes": memory["episodes"] + 1}

    return Consolidation(lambda slow: {"episodes": jnp.zeros((), jnp.int32)}, update)


def threshold(
    level: float = 0.1,
    rate: float = 1.0,
    score: Score = "state_norm",
    *,
    target: Target = "synapse",
    example_weights: ExampleWeights = None,
) -> Plain:
    """W_i ← W_i + rate·F̄_i for rows whose score is at least ``level`` times the largest of their layer.

    How many rows that is depends on the episode.

    Args:
      level: in [0, 1].
      rate, score, target, example_weights: as :func:`row_topk`.
    """
    if not 0 <= level <= 1:
        raise ConfigError(f"level={level} must lie in [0, 1]: it is a share of the layer's largest score")

    def choose(scores: jax.Array) -> jax.Array:
        return (scores > 0) & (scores >= level * jnp.max(scores, axis=(1, 2), keepdims=True))

    return _of_rows(choose, rate, score, target, example_weights)


def running_average(rate: float = 0.1, *, target: Target = "synapse", example_weights: ExampleWeights = None) -> Plain:
    """W ← (1 − rate)·W + rate·F̄: the exponential moving average of episodes.

    Args:
      rate: in (0, 1].
      target: "synapse" or "decoder".
      example_weights: see :data:`ExampleWeights`.
    """
    _check_target(target)
    if not 0 < rate <= 1:
        raise ConfigError(f"rate={rate} must lie in (0, 1]: it is the share of the new episode in the average")

    def consolidate(slow: Slow, fast: FastState, activity: Activity) -> Slow:
        slow = {**slow, target: (1 - rate) * target_of(slow, target)}
        return _add(slow, rate * mean_state(fast, activity, example_weights), target)

    return consolidate


def tfidf_rows(
    fraction: float = 0.1, rate: float = 1.0, *, target: Target = "synapse", example_weights: ExampleWeights = None
) -> Consolidation:
    """As :func:`row_topk`, rows ranked by their use in this episode against their use in all before it.

    score_i = s_i / Σ s · log((E + 1) / (u_i + 1)), with s the strength, E the episodes so far and u_i the sum over them of
    s_i / max s. After sparse memory finetuning (arXiv 2510.15103), where use is a count of accesses; here addresses are
    graded, so one episode counts as the share it used. Its memory is u and E.

    Args:
      fraction, rate, target, example_weights: as :func:`row_topk`.
    """
    _check_fraction(fraction)
    _check_target(target)
    _check_rate(rate)

    def init(slow):
        shape = _row_shape(slow, target)
        return {"row_use": jnp.zeros(shape, jnp.float32), "episodes": jnp.zeros((), jnp.int32)}

    def update(slow, fast, activity, memory):
        change = mean_state(fast, activity, example_weights)
        strength = row_scores("strength", fast, activity, example_weights)
        strength, change = _by_target_row(target, strength, change)
        frequency = strength / _at_least_tiny(jnp.sum(strength, axis=(1, 2), keepdims=True))
        rarity = jnp.log((memory["episodes"] + 1) / (memory["row_use"] + 1))
        # In the first episode every row is equally rare: its use alone decides.
        scores = frequency * jnp.where(memory["episodes"] == 0, 1.0, rarity)
        chosen = top_rows(scores, fraction)
        slow = _add_rows(slow, chosen, rate * change, target)
        share = strength / _at_least_tiny(jnp.max(strength, axis=(1, 2), keepdims=True))
        use = memory["row_use"] + share.astype(jnp.float32)
        return slow, {"row_use": use, "episodes": memory["episodes"] + 1}

    return Consolidation(init, update)


def importance_weighted(
    rate: float = 1.0, protection: float = 1.0, *, target: Target = "synapse", example_weights: ExampleWeights = None
) -> Consolidation:
    """W_i ← W_i + rate / (1 + protection·Ω_i)·F̄_i: rows that earlier episodes relied on change less.

    Ω_i is the sum over earlier episodes of the row's share of the layer's mean written energy (in the manner of synaptic
    intelligence, arXiv 1703.04200, with the energy of writes in place of gradients). Its memory is Ω.

    Args:
      rate: size of the write.
      protection: ≥ 0; 0 is :func:`dense`.
      target, example_weights: as :func:`row_topk`.
    """
    _check_target(target)
    _check_rate(rate)
    if not protection >= 0:
        raise ConfigError(f"protection={protection} must be ≥ 0")

    def update(slow, fast, activity, memory):
        change = mean_state(fast, activity, example_weights)
        energy = row_scores("energy", fast, activity, example_weights)
        energy, change = _by_target_row(target, energy, change)
        importance = memory["row_importance"]
        openness = (rate / (1 + protection * importance)).astype(change.dtype)
        share = energy / _at_least_tiny(jnp.mean(energy, axis=(1, 2), keepdims=True))
        importance = importance + share.astype(jnp.float32)
        return _add(slow, openness[..., None] * change, target), {"row_importance": importance}

    return Consolidation(lambda slow: {"row_importance": jnp.zeros(_row_shape(slow, target), jnp.float32)}, update)


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
    with the square root of its age instead of exponentially. The memory is u_2 … u_levels, each as large as the target.

    Args:
      rate: size of the write.
      levels: number of variables, at least 2.
      ratio: at least 1.
      target, example_weights: as :func:`row_topk`.
    """
    _check_target(target)
    _check_rate(rate)
    if levels < 2:
        raise ConfigError(f"levels={levels} must be at least 2: one is the target itself, the others are slower")
    if not ratio >= 1:
        raise ConfigError(f"ratio={ratio} must be at least 1: every level is slower than the one before it")
    capacity = [ratio**k for k in range(levels)]
    coupling = [ratio**-k / 4 for k in range(levels)]

    def init(slow):
        first = target_of(slow, target)
        return {"levels": jnp.zeros((levels - 1, *first.shape), first.dtype)}

    def update(slow, fast, activity, memory):
        written = _add(slow, rate * mean_state(fast, activity, example_weights), target)
        chain = [written[target], *memory["levels"], jnp.zeros_like(written[target])]
        flow = [coupling[k] * (chain[k + 1] - chain[k]) for k in range(levels)]  # into level k from the next one
        chain = [chain[k] + (flow[k] - (flow[k - 1] if k else 0)) / capacity[k] for k in range(levels)]
        return {**written, target: chain[0]}, {"levels": jnp.stack(chain[1:])}

    return Consolidation(init, update)


def at_norm(function: Function, norm: float) -> Consolidation:
    """The same change as ``function``, scaled to a Frobenius norm of norm·‖F̄‖: compares directions, not sizes.

    Args:
      function: either form.
      norm: > 0; 1 is the size of :func:`dense` with rate 1.
    """
    if norm <= 0:
        raise ConfigError(f"norm={norm} must be positive")
    inner = as_consolidation(function)

    def update(slow, fast, activity, memory):
        changed, memory = inner.update(slow, fast, activity, memory)
        change = jax.tree.map(jnp.subtract, changed, slow)
        size = _root(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(change)))
        wanted = norm * _root(jnp.sum(jnp.square(mean_state(fast, activity, None))))
        # A change of nothing has no direction: it stays nothing.
        scale = jnp.where(size > 0, wanted / jnp.where(size > 0, size, 1), 0)
        return jax.tree.map(lambda old, d: (old + scale * d).astype(old.dtype), slow, change), memory

    return Consolidation(inner.init, update)


def _root(square: jax.Array) -> jax.Array:
    """Square root whose gradient at zero is zero."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def mean_state(fast: FastState, activity: Activity, example_weights: ExampleWeights = None) -> jax.Array:
    """F̄ [L, H, N, D] ([1, H, N, D] when shared): the weighted mean over examples of the fast weights S.

    Of rule "mesa" it is the solution of the mean sums, whether these come as a batch or as its mean: one regression on all examples.

    Args:
      fast: a state, its batch mean included (B = 1).
      activity: what a function as ``example_weights`` looks at.
      example_weights: see :data:`ExampleWeights`.
    """
    mean = mean_over_examples(fast.memory, activity, example_weights)
    if fast.ridge == 0:
        return mean
    gram = mean_over_examples(fast.gram, activity, example_weights)
    return ridge_solution(gram[:, None], mean[:, None], fast.ridge)[:, 0]


def row_scores(score: Score, fast: FastState, activity: Activity, example_weights: ExampleWeights = None) -> jax.Array:
    """Score [L, H, N] ([1, H, N] when shared) of every row, ≥ 0: see :func:`row_topk` for what they are."""
    if score == "state_norm":
        return jnp.sqrt(jnp.sum(jnp.square(mean_state(fast, activity, example_weights)), axis=-1))
    scores = mean_over_examples(getattr(activity, score), activity, example_weights)
    # A matrix shared by all layers was written by all of them.
    shared = fast.memory.shape[0] == 1
    return jnp.sum(scores, axis=0, keepdims=True) if shared else scores


def top_rows(scores: jax.Array, fraction: float) -> jax.Array:
    """Of scores [L, H, N] the max(1, ⌊fraction·K⌋) largest of each layer: bool [L, H, N]. The first of equal ones wins.

    Raises:
      ConfigError: for a fraction outside (0, 1].
    """
    _check_fraction(fraction)
    layers, heads, neurons = scores.shape
    flat = scores.reshape(layers, heads * neurons)
    # The tolerance makes 0.1 · 30 three rows although it is 2.9999999999999996 in binary.
    count = max(1, int(fraction * heads * neurons + 1e-9))
    _, index = jax.lax.top_k(flat, count)
    chosen = jnp.zeros(flat.shape, bool).at[jnp.arange(layers)[:, None], index].set(True)
    return chosen.reshape(scores.shape)


def _check_rate(rate: float) -> None:
    # A traced rate has no value yet.
    if not isinstance(rate, jax.core.Tracer) and not math.isfinite(rate):
        raise ConfigError(f"rate={rate} must be a finite number")


def _of_rows(choose, rate, score, target, example_weights) -> Plain:
    _check_rate(rate)
    _check_target(target)
    if score not in typing.get_args(Score):
        raise ConfigError(f"score={score!r} is not one of {', '.join(map(repr, typing.get_args(Score)))}")

    def consolidate(slow: Slow, fast: FastState, activity: Activity) -> Slow:
        chosen = choose(row_scores(score, fast, activity, example_weights))
        change = mean_state(fast, activity, example_weights)
        return _add_rows(slow, chosen, rate * change, target)

    return consolidate


def mean_over_examples(array: jax.Array, activity: Activity, example_weights: ExampleWeights) -> jax.Array:
    """``array`` [L, B, ...] averaged over the examples: [L, ...].

    Raises:
      ConsolidationError: if there is not one weight for each example.
    """
    if example_weights is None:
        return jnp.mean(array, axis=1)
    weights = jnp.asarray(example_weights(activity) if callable(example_weights) else example_weights, array.dtype)
    if weights.shape != array.shape[1:2]:
        raise ConsolidationError(
            f"example_weights has shape {weights.shape}; a batch of {array.shape[1]} needs one weight for each: [{array.shape[1]}]"
        )
    return jnp.einsum("lb...,b->l...", array, weights / _at_least_tiny(jnp.sum(weights)))


def target_of(slow: Slow, target: Target) -> jax.Array:
    """The slow weights that are written.

    Raises:
      ConsolidationError: if the model has no synapse.
    """
    if target not in slow:
        raise ConsolidationError(
            f"target={target!r}: the slow weights have no {target!r}. Build the model with "
            'FastWeightConfig(synapse=True), or consolidate into target="decoder"'
        )
    return slow[target]


def _row_shape(slow: Slow, target: Target) -> tuple[int, int, int]:
    """[L, H, N] of a synapse, [1, H, N] of the decoder, whose rows all layers share."""
    shape = target_of(slow, target).shape[:-1]
    return shape if target == "synapse" else (1, *shape)


def _add(slow: Slow, change: jax.Array, target: Target) -> Slow:
    old = target_of(slow, target)
    if target == "decoder":
        change = jnp.sum(change, axis=0)
    return {**slow, target: old + change.astype(old.dtype)}


def _add_rows(slow: Slow, chosen: jax.Array, change: jax.Array, target: Target) -> Slow:
    """Add ``change`` where ``chosen`` [L, H, N] holds."""
    return _add(slow, jnp.where(chosen[..., None], change, jnp.zeros((), change.dtype)), target)


def _by_target_row(target: Target, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays [L, H, N, ...] as one entry for each row of the target: all layers write into the same rows of the decoder."""
    return tuple(jnp.sum(a, axis=0, keepdims=True) for a in arrays) if target == "decoder" else arrays


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction} must lie in (0, 1]: it is the share of a layer's rows that is written")


def _check_target(target: str) -> None:
    if target not in typing.get_args(Target):
        raise ConfigError(f"target={target!r} is not one of {', '.join(map(repr, typing.get_args(Target)))}")


def _at_least_tiny(array: jax.Array) -> jax.Array:
    return jnp.maximum(array, jnp.finfo(array.dtype).tiny)
