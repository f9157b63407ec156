"""Are the activations of a token its own, wherever it stands? And what can be read from them? The same questions to a BDH and to a GPT.

In the first layer of a BDH the code is a function of the token alone, so equal tokens have equal codes; what later layers have read
before them tells them apart. *Active* is what is above zero.

Axis letters: see :mod:`bdh_jax.types`; K neurons of a layer, or the width of a hidden layer; P pairs of tokens, S shuffles.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.models.base import ModelConfig
from bdh_jax.types import Slow

TAPS = {"code": "code", "gated": "gated code", "mlp_out.x": "hidden layer"}
"""Tap of a model → what it is called: what a BDH or a GPT has of activations, K wide in every layer."""


def taps(config: ModelConfig) -> tuple[str, ...]:
    """Which of :data:`TAPS` a model has."""
    has = config.make_architecture().taps
    return tuple(tap for tap in TAPS if tap in has)


def activations(config: ModelConfig, slow: Slow, tokens: np.ndarray, valid: np.ndarray, tap: str) -> np.ndarray:
    """What a layer's neurons do at each token.

    Args:
      config: of the model.
      slow: its weights.
      tokens: [B, T].
      valid: [B, T].
      tap: one of :func:`taps`.

    Returns:
      [L, B, T, K] float32.
    """
    return np.asarray(jax.device_get(_activations(config, tap, slow, tokens, valid)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _activations(config: ModelConfig, tap: str, slow: Slow, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    model = config.build()
    found = model.apply({"params": slow}, tokens, valid=valid, state="none", collect=(tap,)).collected[tap]
    axes = config.make_architecture().taps[tap]
    rest = [1 + place for place, axis in enumerate(axes) if axis not in ("batch", "time")]
    order = (0, 1 + axes.index("batch"), 1 + axes.index("time"), *rest)
    return jnp.transpose(found, order).reshape(found.shape[0], *tokens.shape, -1).astype(jnp.float32)


class EqualTokens(NamedTuple):
    """Pairs of positions in one sequence with equal tokens, beside pairs of different tokens at the same distances.

    Attributes:
      edges: bounds of the groups of distances, group g holds edges[g] ≤ distance < edges[g + 1].
      pairs: [G] int, pairs of equal tokens.
      cosine, jaccard: [2, L, G], of the activations and of the sets of active neurons; first of equal tokens, then of different ones.
      excess: [L], cosine of equal tokens above the mean of all pairs at their distance, in the mean over pairs.
      shuffled: [S, L], the same with tokens in another order within their sequences.
      difference: [L], the largest difference of two equal tokens' activations, in units of the largest activation: 0 is equal to the bit.
    """

    edges: np.ndarray
    pairs: np.ndarray
    cosine: np.ndarray
    jaccard: np.ndarray
    excess: np.ndarray
    shuffled: np.ndarray
    difference: np.ndarray


def equal_tokens(
    acts: np.ndarray, tokens: np.ndarray, valid: np.ndarray, *, groups: int = 6, shuffles: int = 199, seed: int = 0
) -> EqualTokens:
    """Compare what equal tokens and different ones do to a layer.

    Args:
      acts: [L, B, T, K], of :func:`activations`.
      tokens: [B, T].
      valid: [B, T]; others are in no pair.
      groups: of distances, each twice as wide as the one before.
      shuffles: S.
      seed: draws them.

    Returns:
      The :class:`EqualTokens`.
    """
    layers, _, length, _ = acts.shape
    unit = acts / np.maximum(np.linalg.norm(acts, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    active = (acts > 0).astype(np.float32)
    size = active.sum(axis=-1)
    cosine = unit @ unit.swapaxes(-1, -2)  # [L, B, T, T]
    both = active @ active.swapaxes(-1, -2)
    either = size[..., :, None] + size[..., None, :] - both
    jaccard = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    now, then = np.meshgrid(np.arange(length), np.arange(length), indexing="ij")
    distance = now - then
    pair = (distance > 0)[None] & valid[:, :, None] & valid[:, None, :]  # [B, T, T]
    same = pair & (tokens[:, :, None] == tokens[:, None, :])
    edges = _edges(length, groups)
    chosen = [(distance >= low) & (distance < high) for low, high in itertools.pairwise(edges)]

    def means(values: np.ndarray) -> np.ndarray:
        return np.array(
            [
                [[_mean(values[layer], mask & which) for which in chosen] for layer in range(layers)]
                for mask in (same, pair & ~same)
            ]
        )

    excess, shuffled = _excess(cosine, tokens, valid, pair, distance, shuffles, seed)
    return EqualTokens(
        edges=edges,
        pairs=np.array([int((same & which).sum()) for which in chosen]),
        cosine=means(cosine),
        jaccard=means(jaccard),
        excess=excess,
        shuffled=shuffled,
        difference=np.array([_largest_difference(acts[layer], tokens, valid) for layer in range(layers)]),
    )


def _edges(length: int, groups: int) -> np.ndarray:
    return np.unique(np.minimum(np.append(2 ** np.arange(groups), length), length))


def _mean(values: np.ndarray, mask: np.ndarray) -> float:
    return float(values[mask].mean()) if mask.any() else float("nan")


def _excess(
    cosine: np.ndarray,
    tokens: np.ndarray,
    valid: np.ndarray,
    pair: np.ndarray,
    distance: np.ndarray,
    shuffles: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """[L] and [S, L]. The mean at each distance is taken off first: what is near is alike whatever it is."""
    layers = len(cosine)
    rest = np.zeros_like(cosine)
    for far in range(1, cosine.shape[-1]):
        at = pair & (distance == far)
        if at.any():
            rest[:, at] = cosine[:, at] - cosine[:, at].mean(axis=1, keepdims=True)
    flat = rest.reshape(layers, -1)

    def of(line: np.ndarray) -> np.ndarray:
        same = (pair & (line[:, :, None] == line[:, None, :])).ravel()
        return flat[:, same].mean(axis=1) if same.any() else np.zeros(layers)

    rng = np.random.default_rng(seed)
    shuffled = np.zeros((shuffles, layers))
    for number in range(shuffles):
        line = tokens.copy()
        for row, there in zip(line, valid, strict=True):
            row[there] = rng.permutation(row[there])
        shuffled[number] = of(line)
    return of(tokens), shuffled


def _largest_difference(acts: np.ndarray, tokens: np.ndarray, valid: np.ndarray) -> float:
    """Of [B, T, K]: of every token from the first of its kind, in any sequence."""
    rows, kinds = acts[valid], tokens[valid]
    _, first, kind = np.unique(kinds, return_index=True, return_inverse=True)
    largest = float(np.abs(rows).max())
    return float(np.abs(rows - rows[first[kind]]).max()) / largest if largest else 0.0


class Density(NamedTuple):
    """How many neurons take part at a token, in the mean over tokens: [L] in [0, 1].

    Attributes:
      active: the share that is above zero.
      effective: (Σ|a|)² / (K Σ a²), the share that would be active if all active ones were equally so.
    """

    active: np.ndarray
    effective: np.ndarray


def density(acts: np.ndarray, valid: np.ndarray) -> Density:
    """Of activations [L, B, T, K] at the valid tokens [B, T]."""
    rows = acts[:, valid]  # [L, tokens, K]
    size = np.abs(rows).sum(axis=-1, dtype=np.float64)
    square = np.square(rows, dtype=np.float64).sum(axis=-1) * rows.shape[-1]
    share = np.where(square > 0, size**2 / np.where(square > 0, square, 1), 0.0)
    return Density((rows > 0).mean(axis=(1, 2)), share.mean(axis=1))


ASKED = ("this token", "the one before", "the next")
"""What a probe is asked, and its distance: 0, −1, 1 tokens."""
_OFFSETS = (0, -1, 1)


class Probed(NamedTuple):
    """What a linear probe reads from activations.

    Attributes:
      accuracy: [L, 3], of :data:`ASKED`, on sequences that the probe was not fitted to.
      shuffled: [S, L, 3], of probes that were fitted to labels in another order.
      frequent: [3], of always answering the most frequent token of what it was fitted to.
    """

    accuracy: np.ndarray
    shuffled: np.ndarray
    frequent: np.ndarray


def probe(
    acts: np.ndarray,
    tokens: np.ndarray,
    valid: np.ndarray,
    *,
    ridge: float = 1e-2,
    shuffles: int = 19,
    seed: int = 0,
    offsets: Sequence[int] = _OFFSETS,
) -> Probed:
    """Fit a ridge regression from a layer's activations to tokens, on the even sequences, and ask it about the odd ones.

    Args:
      acts: [L, B, T, K], B ≥ 2.
      tokens: [B, T].
      valid: [B, T].
      ridge: times the mean square of a feature.
      shuffles: S; the labels that are fitted to, in another order.
      seed: draws them.
      offsets: of the tokens that are asked for.

    Returns:
      The :class:`Probed`.
    """
    layers, _, length, width = acts.shape
    rng = np.random.default_rng(seed)
    accuracy = np.zeros((layers, len(offsets)))
    shuffled = np.zeros((shuffles, layers, len(offsets)))
    frequent = np.zeros(len(offsets))
    for column, offset in enumerate(offsets):
        place = np.arange(length)
        other = np.clip(place + offset, 0, length - 1)
        asked = valid & valid[:, other] & (place + offset == other)[None]
        kinds, labels = np.unique(tokens[:, other], return_inverse=True)
        labels = labels.reshape(tokens.shape)
        fitted, tested = asked.copy(), asked.copy()
        fitted[1::2], tested[::2] = False, False
        known = labels[fitted]
        frequent[column] = float((labels[tested] == np.bincount(known).argmax()).mean())
        orders = [np.arange(len(known)), *(rng.permutation(len(known)) for _ in range(shuffles))]
        targets = np.concatenate([np.eye(len(kinds), dtype=np.float32)[known[order]] for order in orders], axis=1)
        for layer in range(layers):
            features, test = acts[layer][fitted], acts[layer][tested]
            scale = max(float(np.square(features).mean()), np.finfo(np.float32).tiny)
            constant = np.sqrt(scale).astype(np.float32)
            features, test = (np.pad(part, ((0, 0), (0, 1)), constant_values=constant) for part in (features, test))
            gram = features.T @ features + ridge * scale * len(features) * np.eye(width + 1, dtype=np.float32)
            said = test @ np.linalg.solve(gram, features.T @ targets)
            right = said.reshape(len(test), len(orders), len(kinds)).argmax(axis=-1) == labels[tested][:, None]
            accuracy[layer, column], shuffled[:, layer, column] = right[:, 0].mean(), right[:, 1:].mean(axis=0)
    return Probed(accuracy, shuffled, frequent)
