"""Nulls: p-values of permutations, and what is left of them when many things were searched.

What SciPy has is SciPy's: ``scipy.stats.mannwhitneyu``, ``bootstrap``, ``false_discovery_control`` (Benjamini and Hochberg).
"""

from __future__ import annotations

import numpy as np


def p_of(observed: float | np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """The share of values at least as large as what was observed, itself among them (Phipson and Smyth, 2010): never zero.

    Args:
      observed: [...], larger means more structure.
      shuffled: [S, ...], the same of S shuffles.

    Returns:
      [...] in [1 / (S + 1), 1].
    """
    return (1 + np.sum(shuffled >= np.asarray(observed)[None], axis=0)) / (len(shuffled) + 1)


def p_of_largest(observed: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """As :func:`p_of`, against the largest of all things searched in each shuffle: the family-wise error is kept (Westfall and Young).

    Args:
      observed: [M], one value a thing.
      shuffled: [S, M].

    Returns:
      [M].
    """
    largest = np.max(shuffled, axis=1)
    return (1 + np.sum(largest[:, None] >= np.asarray(observed)[None], axis=0)) / (len(shuffled) + 1)
