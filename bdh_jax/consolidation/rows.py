"""Consolidation functions: how much of what an episode wrote goes into the slow weights.

Every factory returns a pure, jittable function (:mod:`bdh_jax.consolidation.base` says of what form). Notation: F̄ [L, H, N, D]
is the mean over examples of the fast weights S, a *row* is one (layer, head, neuron), Σ the sum over rows of a layer, and W the
target that is written: the synapse, or the decoder, onto which the layers are summed.

Axis letters: B batch, L layer, H head, N neurons per head, D model width; K = H·N rows a layer.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from bdh_jax.config import ConfigError, require
from bdh_jax.config.base import as_float, shown
from bdh_jax.config.seeds import key_of, whole_seed
from bdh_jax.consolidation.base import (
    Consolidation,
    ConsolidationError,
    Function,
    History,
    Plain,
    as_consolidation,
    factory,
)
from bdh_jax.fast_weights.state import Activity, FastState
from bdh_jax.kernels.row_add import row_add
from bdh_jax.layers.largest import largest
from bdh_jax.types import Slow

Target = Literal["synapse", "decoder"]
Score = Literal["strength", "energy", "state_norm"]
ExampleWeights = Callable[[Activity], jax.Array] | jax.Array | None
"""Weight [B] of each example in F̄, or a function of the activity that gives it; None weighs all the same.

The training step averages its batch before a function sees it, which saves holding B states: there B is 1, and weights change nothing.
"""


@factory
def none() -> Plain:
    """W ← W. The control: nothing outlives the episode."""
    return lambda slow, fast, activity: slow


@factory
def dense(rate: float = 1.0, *, target: Target = "synapse", example_weights: ExampleWeights = None) -> Plain:
    """W ← W + rate·F̄ (bdh-fast-weights, "dense").

    Args:
      rate: size of the write.
      target: "synapse" or "decoder".
      example_weights: see :data:`ExampleWeights`.
    """
    check_target(target)
    check_rate(rate)

    def consolidate(slow: Slow, fast: FastState, activity: Activity) -> Slow:
        return add_to(slow, rate * mean_state(fast, activity, example_weights), target)

    return consolidate


@factory
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
    check_fraction(fraction)
    return _of_rows(lambda scores: top_rows(scores, fraction), rate, score, target, example_weights, fraction)


@factory
def row_bottom(
    fraction: float = 0.1,
    rate: float = 1.0,
    score: Score = "state_norm",
    *,
    target: Target = "synapse",
    example_weights: ExampleWeights = None,
) -> Plain:
    """As :func:`row_topk` with the smallest scores above zero: rows that were never written have nothing to give. A control."""

    check_fraction(fraction)

    def choose(scores: jax.Array) -> jax.Array:
        used = scores > 0
        return top_rows(jnp.where(used, -scores, -jnp.inf), fraction) & used

    return _of_rows(choose, rate, score, target, example_weights, fraction)


@factory
def row_random(
    fraction: float = 0.1,
    rate: float = 1.0,
    seed: int = 0,
    *,
    target: Target = "synapse",
    example_weights: ExampleWeights = None,
) -> Consolidation:
    """As :func:`row_topk` with rows drawn anew, uniformly, for every episode. A control.

    Its history is the number of episodes so far, which the draw is a function of.

    Args:
      fraction, rate, target, example_weights: as :func:`row_topk`.
      seed: of the draws.
    """
    check_fraction(fraction)
    check_target(target)
    check_rate(rate)
    whole_seed(seed)

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        change = mean_state(fast, activity, example_weights)
        key = jax.random.fold_in(key_of(seed), history["episodes"])
        chosen = top_rows(jax.random.uniform(key, change.shape[:-1]), fraction)
        slow = add_rows(slow, chosen, change, target, rate=rate, fraction=fraction)
        return slow, {"episodes": history["episodes"] + 1}

    return Consolidation(lambda slow: {"episodes": jnp.zeros((), jnp.int32)}, update, lambda slow: {"episodes": ()})


@factory
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


FACTORIES = (none, dense, row_topk, row_random, row_bottom, threshold)


def scaled(function: Function, rate: float) -> Consolidation:
    """The same change as ``function``, times ``rate``; what it remembers is what it would remember without.

    Args:
      function: either form.
      rate: any finite number; 1 is the function as it stands.
    """
    check_rate(rate)
    inner = as_consolidation(function)

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        changed, history = inner.update(slow, fast, activity, history)
        return _moved(slow, jax.tree.map(jnp.subtract, changed, slow), rate), history

    return Consolidation(inner.init, update, inner.axes)


def at_norm(function: Function, norm: float) -> Consolidation:
    """The same change as ``function``, scaled to a Frobenius norm of norm·‖F̄‖: compares directions, not sizes.

    Args:
      function: either form.
      norm: > 0; 1 is the size of :func:`dense` with rate 1.
    """
    check_rate(norm, "norm", least=0)
    inner = as_consolidation(function)

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        changed, history = inner.update(slow, fast, activity, history)
        change = jax.tree.map(jnp.subtract, changed, slow)
        size = _root(functools.reduce(jnp.add, (jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(change))))
        wanted = norm * _root(jnp.sum(jnp.square(mean_state(fast, activity, None))))
        # A change of nothing has no direction: it stays nothing.
        scale = jnp.where(size > 0, wanted / jnp.where(size > 0, size, 1), 0)
        return _moved(slow, change, scale), history

    return Consolidation(inner.init, update, inner.axes)


def _moved(slow: Slow, change: Slow, scale: float | jax.Array) -> Slow:
    return jax.tree.map(lambda old, d: (old + scale * d).astype(old.dtype), slow, change)


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
    weights = None if example_weights is None else _weights_of(example_weights, activity, fast.batch_size)
    return jnp.stack([memory.written.mean_over_examples(weights).effective()[0] for memory in fast.memories()])


def row_scores(score: Score, fast: FastState, activity: Activity, example_weights: ExampleWeights = None) -> jax.Array:
    """Score [L, H, N] ([1, H, N] when shared) of every row, ≥ 0: see :func:`row_topk` for what they are."""
    if score == "state_norm":
        return jnp.sqrt(jnp.sum(jnp.square(mean_state(fast, activity, example_weights)), axis=-1))
    scores = mean_over_examples(getattr(activity, score), activity, example_weights)
    # A matrix shared by all layers was written by all of them.
    shared = len(fast.memories()) == 1
    return jnp.sum(scores, axis=0, keepdims=True) if shared else scores


def top_rows(scores: jax.Array, fraction: float) -> jax.Array:
    """Of scores [L, H, N] the max(1, ⌊fraction·K⌋) largest of each layer: bool [L, H, N]. The first of equal ones wins.

    Raises:
      ConfigError: for a fraction outside (0, 1].
    """
    check_fraction(fraction)
    layers, heads, neurons = scores.shape
    flat = scores.reshape(layers, heads * neurons)
    return largest(flat, _count(fraction, heads * neurons)).reshape(scores.shape)


def _count(fraction: float, rows: int) -> int:
    """How many rows a fraction of a layer is."""
    # The tolerance makes 0.1 · 30 three rows although it is 2.9999999999999996 in binary.
    return max(1, int(fraction * rows + 1e-9))


def check_rate(rate: float, name: str = "rate", least: float = -math.inf) -> None:
    """Refuse what is no finite number above ``least``."""
    # A traced rate has no value yet.
    if isinstance(rate, Tracer):
        return
    try:
        finite = not isinstance(rate, bool | str | bytes) and jnp.ndim(rate) == 0 and math.isfinite(as_float(rate))
    except (TypeError, ValueError):
        finite = False
    require(finite, f"{name}={shown(rate)} must be a finite number")
    if rate <= least:
        raise ConfigError(f"{name}={rate} must be " + ("positive" if least == 0 else f"above {least}"))


def _of_rows(
    choose: Callable[[jax.Array], jax.Array],
    rate: float,
    score: Score,
    target: Target,
    example_weights: ExampleWeights,
    fraction: float | None = None,
) -> Plain:
    """Score, select, write. ``fraction``: how many rows ``choose`` takes of each layer at most, if that is known."""
    check_rate(rate)
    check_target(target)
    if score not in typing.get_args(Score):
        raise ConfigError(f"score={score!r} is not one of {', '.join(map(repr, typing.get_args(Score)))}")

    def consolidate(slow: Slow, fast: FastState, activity: Activity) -> Slow:
        chosen = choose(row_scores(score, fast, activity, example_weights))
        change = mean_state(fast, activity, example_weights)
        return add_rows(slow, chosen, change, target, rate=rate, fraction=fraction)

    return consolidate


def mean_over_examples(array: jax.Array, activity: Activity, example_weights: ExampleWeights) -> jax.Array:
    """``array`` [L, B, ...] averaged over the examples: [L, ...].

    Raises:
      ConsolidationError: if there is not one weight for each example.
    """
    if example_weights is None:
        return jnp.mean(array, axis=1)
    weights = _weights_of(example_weights, activity, array.shape[1])
    return jnp.einsum("lb...,b->l...", array, weights / at_least_tiny(jnp.sum(weights)))


def _weights_of(example_weights: ExampleWeights, activity: Activity, batch: int) -> jax.Array:
    """The weight of each example, [B]."""
    weights = example_weights(activity) if callable(example_weights) else example_weights
    weights = jnp.asarray(weights, activity.count.dtype)
    if weights.shape != (batch,):
        raise ConsolidationError(
            f"example_weights has shape {weights.shape}; a batch of {batch} needs one weight for each: [{batch}]"
        )
    return weights


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


def row_shape(slow: Slow, target: Target) -> tuple[int, int, int]:
    """[L, H, N] of a synapse, [1, H, N] of the decoder, whose rows all layers share."""
    *layers, heads, neurons, _ = target_of(slow, target).shape
    return layers[0] if target == "synapse" else 1, heads, neurons


def add_to(slow: Slow, change: jax.Array, target: Target) -> Slow:
    """Add ``change`` [L, H, N, D] to the target."""
    old = target_of(slow, target)
    if target == "decoder":
        change = jnp.sum(change, axis=0)
    return {**slow, target: old + change.astype(old.dtype)}


def add_rows(
    slow: Slow, chosen: jax.Array, change: jax.Array, target: Target, *, rate: float = 1.0, fraction: float | None = None
) -> Slow:
    """Add ``rate · change`` where ``chosen`` [L, H, N] holds.

    Args:
      slow: parameters by name.
      chosen: bool.
      change: [L, H, N, D].
      target: what is written.
      rate: a scalar.
      fraction: share of each layer's rows that is chosen at most, for kernels; None: unknown.
    """
    if target == "decoder":  # rows of several layers may meet in one
        return add_to(slow, jnp.where(chosen[..., None], rate * change, jnp.zeros((), change.dtype)), target)
    layers, heads, neurons = chosen.shape
    count = None if fraction is None else layers * _count(fraction, heads * neurons)
    return {**slow, target: row_add(target_of(slow, target), change, chosen, rate, count=count)}


def by_target_row(target: Target, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays [L, H, N, ...] as one entry for each row of the target: all layers write into the same rows of the decoder."""
    return tuple(jnp.sum(a, axis=0, keepdims=True) for a in arrays) if target == "decoder" else arrays


def check_fraction(fraction: float) -> None:
    """Refuse a fraction outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction} must lie in (0, 1]: it is the share of a layer's rows that is written")


def check_target(target: str) -> None:
    """Refuse a name that is no :data:`Target`."""
    if target not in typing.get_args(Target):
        raise ConfigError(f"target={target!r} is not one of {', '.join(map(repr, typing.get_args(Target)))}")


def at_least_tiny(array: jax.Array) -> jax.Array:
    """Something to divide by: numbers ≥ 0, with the smallest positive one in place of zero."""
    return jnp.maximum(array, jnp.finfo(array.dtype).tiny)
