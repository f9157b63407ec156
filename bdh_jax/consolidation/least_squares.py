"""Consolidation by least squares: the write that serves the new pairs and disturbs the old ones least.

It needs to know which addresses an episode used together, the sum G = Σ k ⊗ k that a model with ``fast.keep_gram=True`` or
``fast.rule="mesa"`` keeps beside S. The rules "hebbian" and "mesa" are linear in what is written, so that an episode's S and G say all.

Axis letters: L layer, H head, N neurons per head, D model width; K = H·N rows a layer.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.consolidation.base import Consolidation, ConsolidationError, History, factory
from bdh_jax.consolidation.rows import ExampleWeights, check_rate, mean_over_examples, target_of
from bdh_jax.fast_weights.rules.mesa import ridge_solution
from bdh_jax.fast_weights.state import Activity, FastState
from bdh_jax.kernels.linear_algebra import eigh, solve
from bdh_jax.types import Slow

Layers = tuple[int, ...] | None
PAIR_AXES = ("layer", "row", "row")
"""Logical axes of one number for each two rows of a layer: they are needed together, so that every device holds them all."""


@factory
def least_squares(
    ridge: float = 0.01, background: float = 1.0, *, layers: Layers = None, example_weights: ExampleWeights = None
) -> Consolidation:
    """W ← W + (background·C + G + ridge)⁻¹ V (MEMIT, arXiv 2210.07229), with C the sum of the G of all episodes before.

    V = Σ k ⊗ (x − Wᵀ k) is what the synapse W does not know yet: S − G W of the Hebbian rule, and S itself of "mesa". So W changes
    where the episode's addresses are and, for background = 1, as little as possible where earlier ones were. With undecayed fast
    weights (λ = η = 1) and background = 1 this is recursive least squares: W is the ridge regression on all pairs of all
    episodes, the best that any linear read of these addresses can know. The history is C, K² numbers a layer; with background = 0
    there is none, and what is written is what the mesa rule reads after this episode alone.

    Args:
      ridge: > 0.
      background: ≥ 0, how much the earlier episodes count.
      layers: which layers' fast weights are consolidated, by number from 0; None for all.
      example_weights: see :data:`bdh_jax.consolidation.rows.ExampleWeights`.
    """
    _check_positive("ridge", ridge)
    check_rate(background, "background")
    if background < 0:
        raise ConfigError(f"background={background} must be ≥ 0: it is how much earlier episodes count")

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        gram, written = _of_episode(slow, fast, activity, example_weights, layers)
        if not background:
            return _written(slow, ridge_solution(gram, written, ridge), layers), history
        normal = background * history["background"] + gram
        change = ridge_solution(normal, written, ridge)
        return _written(slow, change, layers), {"background": history["background"] + gram}

    if not background:
        return Consolidation(lambda slow: {}, update)
    return Consolidation(functools.partial(_init, layers=layers), update, lambda slow: {"background": PAIR_AXES})


@factory
def kalman(
    ridge: float = 0.01, drift: float = 1.0, *, layers: Layers = None, example_weights: ExampleWeights = None
) -> Consolidation:
    """W ← W + P′ V with P′ = (Q⁻¹ + G)⁻¹ and Q = P + drift·P G P: a Kalman filter for W whose truth moves where episodes write.

    P is the covariance of what is not known of W, and starts as 1/ridge. With ``drift`` 0 this is :func:`least_squares`, for which
    an old value of a key counts as much as a new one. The noise drift·P G P lets go of what is known of this episode's addresses
    before they are written: of a key of length 1 at a right angle to all others that was written n times, n / (1 + drift/n) of n
    remains. It lies along P k and not along k, so that other addresses, overlapping ones too, read what they read before. The
    history is P, K² numbers a layer.

    Args:
      ridge: > 0.
      drift: ≥ 0.
      layers: which layers' fast weights are consolidated, by number from 0; None for all.
      example_weights: see :data:`bdh_jax.consolidation.rows.ExampleWeights`.
    """
    _check_positive("ridge", ridge)
    check_rate(drift, "drift")
    if drift < 0:
        raise ConfigError(f"drift={drift} must be ≥ 0: it is a variance")

    def init(slow: Slow) -> History:
        empty = _init(slow, layers=layers)["background"]
        return {"covariance": empty + jnp.eye(empty.shape[-1], dtype=empty.dtype)[None] / ridge}

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        gram, written = _of_episode(slow, fast, activity, example_weights, layers)
        covariance = history["covariance"]
        covariance = covariance + drift * jnp.einsum("lij,ljk,lkm->lim", covariance, gram, covariance)
        # (P⁻¹ + G)⁻¹ without an inverse of P.
        both = jnp.eye(gram.shape[-1], dtype=gram.dtype)[None] + jnp.einsum("lij,ljk->lik", covariance, gram)
        covariance = solve(both, covariance)
        covariance = (covariance + covariance.swapaxes(1, 2)) / 2
        change = jnp.einsum("lij,ljd->lid", covariance, written.reshape(*gram.shape[:2], -1))
        return _written(slow, change.reshape(written.shape), layers), {"covariance": covariance}

    return Consolidation(init, update, lambda slow: {"covariance": PAIR_AXES})


@factory
def null_space(
    ridge: float = 0.01, tolerance: float = 0.01, *, layers: Layers = None, example_weights: ExampleWeights = None
) -> Consolidation:
    """W ← W + P (P G P + ridge)⁻¹ P V, with P the projection onto what earlier addresses do not read (AlphaEdit, 2410.02355).

    P drops the eigenvectors of C, the sum of the G of all episodes before, whose eigenvalue is above ``tolerance``. Reads of
    addresses within their span do not change at all; once they span all K dimensions nothing can be written any more. The history is
    C, K² numbers a layer.

    Args:
      ridge: > 0.
      tolerance: > 0, in units of η ‖k‖² summed over tokens.
      layers: which layers' fast weights are consolidated, by number from 0; None for all.
      example_weights: see :data:`bdh_jax.consolidation.rows.ExampleWeights`.
    """
    _check_positive("ridge", ridge)
    _check_positive("tolerance", tolerance)

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        gram, written = _of_episode(slow, fast, activity, example_weights, layers)
        values, vectors = eigh(history["background"])
        free = jnp.where((values <= tolerance)[:, None, :], vectors, jnp.zeros((), vectors.dtype))
        projection = jnp.einsum("lij,lkj->lik", free, free)
        inside = jnp.einsum("lij,ljk,lkm->lim", projection, gram, projection)
        rows = written.reshape(*gram.shape[:2], -1)
        projected = jnp.einsum("lij,ljd->lid", projection, rows).reshape(written.shape)
        # The solution of something inside the subspace lies inside it, but for rounding, which the second projection takes off.
        change = ridge_solution(inside, projected, ridge).reshape(rows.shape)
        change = jnp.einsum("lij,ljd->lid", projection, change).reshape(written.shape)
        return _written(slow, change, layers), {"background": history["background"] + gram}

    return Consolidation(functools.partial(_init, layers=layers), update, lambda slow: {"background": PAIR_AXES})


FACTORIES = (least_squares, kalman, null_space)


def _init(slow: Slow, layers: Layers) -> History:
    slots, heads, neurons, _ = target_of(slow, "synapse").shape
    chosen, rows = _chosen(slots, layers), heads * neurons
    return {"background": jnp.zeros((len(chosen), rows, rows), slow["synapse"].dtype)}


def _chosen(slots: int, layers: Layers) -> list[int]:
    """Which of a synapse's parts are meant; there are as many as layers, or one for all."""
    chosen = list(range(slots)) if layers is None else list(layers)
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= layer < slots for layer in chosen):
        raise ConfigError(f"layers={layers} must name some of the synapse's parts, 0 … {slots - 1}, each once; None for all")
    return chosen


def _of_episode(
    slow: Slow, fast: FastState, activity: Activity, example_weights: ExampleWeights, layers: Layers
) -> tuple[jax.Array, jax.Array]:
    """G [L, K, K] and V [L, H, N, D] of an episode, means over examples, of the layers that are consolidated."""
    sums, memory = fast.gram, fast.memory
    if sums is None or memory is None:
        raise ConsolidationError(
            "least squares needs the sum of k ⊗ k, which this state does not keep; build the model with "
            'FastWeightConfig(keep_gram=True, synapse=True), or rule="mesa"'
        )
    chosen = jnp.asarray(_chosen(slow["synapse"].shape[0], layers))
    gram, written = (mean_over_examples(array, activity, example_weights)[chosen] for array in (sums, memory))
    if fast.predicts_values:
        return gram, written  # the rule has taken off what the synapse knows
    synapse = slow["synapse"][chosen].reshape(*gram.shape[:2], -1)
    return gram, written - jnp.einsum("lij,ljd->lid", gram, synapse).reshape(written.shape)


def _written(slow: Slow, change: jax.Array, layers: Layers) -> Slow:
    synapse = slow["synapse"]
    return {**slow, "synapse": synapse.at[jnp.asarray(_chosen(synapse.shape[0], layers))].add(change.astype(synapse.dtype))}


def _check_positive(name: str, value: float) -> None:
    check_rate(value, name, least=0)
