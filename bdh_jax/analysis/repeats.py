"""Does a model need fewer neurons for what it has read before? Shares of gated code at the first reading of a word and in its repeats.

After arXiv 2509.26507, §6.4 and Fig. 14; the sequences are those of :mod:`bdh_jax.tasks.repeats`. Two controls: the same model before
training, and *shuffled repeats*, the same letters in a new order at every reading, which come at the same positions and make the same
counts of letters, but no word that repeats.

Axis letters: see :mod:`bdh_jax.types`; E sequences, R readings (0 is the warm-up, 1 the first reading), K = H·N neurons.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.analysis.nulls import p_of_largest
from bdh_jax.models.base import ModelConfig
from bdh_jax.tasks.repeats import FIRST_LETTER, RepeatsConfig, reading_of, sequences
from bdh_jax.types import Slow

TAP = "gated"
"""What is counted: code times gate, the paper's y."""


def letters_of(config: RepeatsConfig, ids: np.ndarray, count: int, *, seed: int, shuffled: bool = False) -> np.ndarray:
    """Sequences of the task as the tokens of some model. With another ``shuffled`` they have the same warm-up, word and first reading.

    Args:
      config: of the task.
      ids: [26], the token of each letter.
      count: E.
      seed: draws them.
      shuffled: see :func:`bdh_jax.tasks.repeats.sequences`.

    Returns:
      [E, T] int32.
    """
    return ids[sequences(config, np.random.default_rng(seed), count, shuffled=shuffled)[:, :-1] - FIRST_LETTER].astype(
        np.int32
    )


def shares_by_reading(model: ModelConfig, slow: Slow, tokens: np.ndarray, task: RepeatsConfig) -> np.ndarray:
    """The share of K neurons whose gated code is not zero, by layer, sequence and reading, in the mean over its letters.

    Args:
      model: whose architecture has the tap "gated".
      slow: its weights.
      tokens: [E, T], of :func:`letters_of`.
      task: says which reading each position belongs to; the last one counts if it is whole.

    Returns:
      float32 [L, E, R] in [0, 1].
    """
    reading = reading_of(task)[:-1]
    by_token = np.concatenate(
        [np.asarray(_active(model, slow, tokens[first : first + _ROWS])) for first in range(0, len(tokens), _ROWS)], axis=1
    )
    return np.stack([by_token[:, :, reading == number].mean(axis=2) for number in _readings(task)], axis=2)


_ROWS = 16
"""Sequences of one call: the taps of all layers are there at once."""


def _readings(task: RepeatsConfig) -> range:
    return range(0 if task.warm_up else 1, task.readings + 1)


@functools.partial(jax.jit, static_argnums=0)
def _active(model: ModelConfig, slow: Slow, tokens: jax.Array) -> jax.Array:
    out = model.build().apply({"params": slow}, tokens, state="none", collect=(TAP,))
    return jnp.mean(out.collected[TAP] != 0, axis=(2, 4), dtype=jnp.float32)  # [L, B, T]


def fall(shares: np.ndarray, first: int, neurons: int) -> np.ndarray:
    """How many times as large a share is at first reading as in the repeats: the logarithm, [L, E].

    Args:
      shares: [L, E, R].
      first: index of the first reading on the last axis; all after it are repeats.
      neurons: K; half a neuron is added to either share, so that a layer that falls silent has a number.
    """
    half = 0.5 / neurons
    return np.log(shares[:, :, first] + half) - np.log(shares[:, :, first + 1 :].mean(axis=2) + half)


class Fall(NamedTuple):
    """What repeats do to the share of active neurons, layer by layer.

    Attributes:
      trained: [S, L], share at first reading ÷ share in repeats, the geometric mean over sequences, of each seed.
      shuffled: [S, L], the same of shuffled repeats.
      untrained: [S, L], the same of the model before training.
      p_value: [L], of trained against shuffled repeats: signs of the paired differences flipped at random, corrected for L layers.
    """

    trained: np.ndarray
    shuffled: np.ndarray
    untrained: np.ndarray
    p_value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reading:
    """Shares of one model on the same words, repeated and shuffled: each [L, E, R]."""

    trained: np.ndarray
    shuffled: np.ndarray
    untrained: np.ndarray


def compare(readings: list[Reading], *, first: int, neurons: int, flips: int = 999, seed: int = 0) -> Fall:
    """Falls of all seeds, and whether word and shuffled letters differ.

    The null says that a reading's order does not matter: then the difference of log falls between a sequence and the same one with
    shuffled repeats has either sign with the same probability. Means over seeds and sequences are compared, layer by layer, with the
    largest over layers of each flip.

    Args:
      readings: one for each seed, of the same sequences.
      first: index of the first reading.
      neurons: K.
      flips: random choices of signs.
      seed: draws them.
    """
    falls = {
        name: np.stack([fall(getattr(reading, name), first, neurons) for reading in readings])
        for name in ("trained", "shuffled", "untrained")
    }  # each [S, L, E]
    difference = (falls["trained"] - falls["shuffled"]).mean(axis=0)  # [L, E]
    # A sequence is flipped in all layers at once: they are not independent.
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (flips, difference.shape[1]))
    null = signs @ difference.T / difference.shape[1]
    ratio = {name: np.exp(values.mean(axis=2)) for name, values in falls.items()}
    return Fall(ratio["trained"], ratio["shuffled"], ratio["untrained"], p_of_largest(difference.mean(axis=1), null))
