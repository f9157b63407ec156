"""How many neurons a model uses: shares of its code, its gate and the gated code that are not zero.

Axis letters: see :mod:`bdh_jax.types`; K = H·N neurons, P pairs of sequences, S draws of a null.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.types import Slow

KINDS = ("code", "gate", "gated")
"""What is active or not at a neuron: its code x, its gate y, and the product of both."""
_BYTES = 2**28
"""What the taps of one call take at most, unless a single sequence takes more."""


class Activity(NamedTuple):
    """Which part of a model is active, by what."""

    by_token: dict[str, np.ndarray]
    """Kind → float32 [L, B, T], the share of the K neurons that are active at a token; NaN at padding."""
    by_neuron: dict[str, np.ndarray]
    """Kind → float32 [L, K], the share of tokens at which a neuron is active."""


class Trend(NamedTuple):
    """How something changes over the positions of its sequences."""

    change: np.ndarray
    """[M], from the first position to the last, by a line of least squares through each sequence, in the mean over sequences."""
    shuffled: np.ndarray
    """[S, M], the same of sequences that begin anywhere: each is moved round by a number of positions drawn for it."""


def active_shares(
    config: BDHConfig, slow: Slow, tokens: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The share of K neurons that are active at a token, in the mean over tokens.

    Args:
      config: of the model.
      slow: its weights.
      tokens: [B, T].
      valid: [B, T] bool, tokens that count; None: all.

    Returns:
      "code", "gate" and "gated" (both) → float32 [L] in [0, 1].
    """
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    return jax.device_get(_shares(config, slow, tokens, valid))


def measure(config: BDHConfig, slow: Slow, tokens: np.ndarray, valid: np.ndarray | None = None) -> Activity:
    """Which part of a model is active at each token, and each neuron's share of tokens.

    Args:
      config: of the model.
      slow: its weights.
      tokens: int32 [B, T], read in calls of so few sequences that their taps fit.
      valid: [B, T] bool, tokens that count; None: all.

    Returns:
      The :class:`Activity`.
    """
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    count, length = tokens.shape
    each = 8 * config.n_layer * length * config.n_neurons
    rows = max(1, min(count, _BYTES // each))
    parts = []
    for first in range(0, count, rows):
        index = np.arange(first, first + rows)
        there = valid[np.minimum(index, count - 1)] & (index < count)[:, None]
        parts.append(jax.device_get(_counts(config, slow, tokens[np.minimum(index, count - 1)], there)))
    by_token, by_neuron = {}, {}
    for kind in KINDS:
        shares = np.concatenate([part[kind][0] for part in parts], axis=1)[:, :count]
        by_token[kind] = np.where(valid[None], shares, np.nan)
        by_neuron[kind] = sum(part[kind][1] for part in parts) / max(int(valid.sum()), 1)
    return Activity(by_token, by_neuron)


def sequence_means(by_token: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The mean over the tokens of each sequence that has some: [..., B', of B, T] → [..., B'].

    Args:
      by_token: [..., B, T], NaN at padding.
      valid: [B, T] bool.
    """
    some = valid.any(axis=1)
    return np.nansum(by_token[..., some, :], axis=-1) / valid[some].sum(axis=1)


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t; of equal values both ends are their mean, and of one value all numbers.

    Args:
      values: [n], independent.
    """
    if len(values) < 2:
        return -float("inf"), float("inf")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    reach = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def over_positions(values: Sequence[np.ndarray], draws: int, generator: np.random.Generator) -> Trend:
    """How quantities change from the first position of a sequence to its last.

    A sequence that is moved round keeps what neighbouring tokens have in common, and loses only where it begins.

    Args:
      values: a sequence each, [M, T], T at least 2 and of any length.
      draws: S.
      generator: of the shifts.

    Returns:
      The :class:`Trend`.
    """
    observed, shuffled = [], []
    for sequence in values:
        time = sequence.shape[-1]
        place = np.linspace(-0.5, 0.5, time)
        weights = place / np.sum(place**2)  # slope per whole sequence = Σ weights · values
        moved = np.fft.irfft(np.fft.rfft(sequence) * np.conj(np.fft.rfft(weights)), n=time)  # all shifts at once, [M, T]
        observed.append(moved[:, 0])
        shuffled.append(moved[:, generator.integers(0, time, draws)].T)
    return Trend(np.mean(observed, axis=0), np.mean(shuffled, axis=0))


def repeats(
    tokens: np.ndarray, valid: np.ndarray, pairs: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences whose second half has been read before, and the same after something else.

    Args:
      tokens: int32 [B, T].
      valid: [B, T] bool.
      pairs: P; fewer if there are fewer sequences.
      generator: of which sequences, and what stands before them.

    Returns:
      Repeated and fresh, both int32 [P, 2 · (T // 2)]: the same second halves. What stands before a fresh one is the half of another sequence.

    Raises:
      ValueError: if fewer than two different sequences have T // 2 valid tokens, or T is less than 4.
    """
    half = tokens.shape[1] // 2
    segments = [row[there][:half] for row, there in zip(tokens, valid, strict=True) if there.sum() >= half]
    found = np.unique(np.array(segments, np.int32).reshape(-1, half), axis=0) if segments and half >= 2 else np.empty((0, 0))
    if len(found) < 2:
        raise ValueError(f"{len(found)} different sequences of {half} tokens; a repeat needs two, of two tokens or more")
    chosen = found[generator.permutation(len(found))[:pairs]]
    before = np.roll(chosen, 1, axis=0)
    return np.concatenate([chosen, chosen], axis=1), np.concatenate([before, chosen], axis=1)


def sign_flips(differences: np.ndarray, draws: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """|t| of paired differences, and of the same with their signs drawn anew: a pair's two sides are exchangeable if nothing differs.

    Args:
      differences: [M, P], the same pairs for all M.
      draws: S.
      generator: of the signs.

    Returns:
      [M] and [S, M]; 0 where all differences are zero.
    """
    signs = generator.choice(np.array([-1.0, 1.0]), (draws, 1, differences.shape[1]))
    return _absolute_t(differences[None])[0], _absolute_t(signs * differences[None])


def explained_by_token(values: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The share of variance between tokens of different ids: 1 if equal tokens have equal values.

    Args:
      values: [M, n].
      tokens: [n] int.

    Returns:
      [M] in [0, 1]; 0 where nothing varies.
    """
    _, ids, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    centred = values - values.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(ids, weights=row, minlength=len(counts)) for row in centred])
    total = np.sum(centred**2, axis=1)
    return np.sum(sums**2 / counts, axis=1) / np.where(total > 0, total, 1)


def _absolute_t(differences: np.ndarray) -> np.ndarray:
    """[..., P] → [...]."""
    spread = np.std(differences, axis=-1, ddof=1) / differences.shape[-1] ** 0.5
    mean = np.abs(np.mean(differences, axis=-1))
    return np.where(mean > 0, mean / np.where(spread > 0, spread, 1e-30), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def _shares(config: BDHConfig, slow: Slow, tokens: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    active = _active(config, slow, tokens, valid)

    def share(active: jax.Array) -> jax.Array:
        by_token = jnp.mean(active, axis=(2, 4), dtype=jnp.float32)  # [L, B, T]
        return jnp.sum(by_token * valid[None], axis=(1, 2)) / jnp.maximum(jnp.sum(valid), 1)

    return {kind: share(active[kind]) for kind in KINDS}


@functools.partial(jax.jit, static_argnums=0)
def _counts(config: BDHConfig, slow: Slow, tokens: jax.Array, valid: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Kind → the share of neurons by token [L, B, T], and the number of valid tokens by neuron [L, K]."""

    def both(active: jax.Array) -> tuple[jax.Array, jax.Array]:
        counted = active & valid[None, :, None, :, None]
        by_neuron = jnp.sum(counted, axis=(1, 3), dtype=jnp.float32)  # [L, H, N]
        return jnp.mean(active, axis=(2, 4), dtype=jnp.float32), by_neuron.reshape(by_neuron.shape[0], -1)

    return {kind: both(active) for kind, active in _active(config, slow, tokens, valid).items()}


def _active(config: BDHConfig, slow: Slow, tokens: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    """Kind → bool [L, B, H, T, N]."""
    out = BDH(config).apply({"params": slow}, tokens, valid=valid, state="none", collect=("code", "gate"))
    code, gate = out.collected["code"] != 0, out.collected["gate"] != 0
    return {"code": code, "gate": gate, "gated": code & gate}
