"""Which slow weights made a file."""

from __future__ import annotations

import hashlib

import jax
import numpy as np

from bdh_jax.types import Slow


def slow_hash(slow: Slow) -> str:
    """A hash of slow weights: what they made, a saved state or a measured row, is theirs alone.

    Args:
      slow: arrays by name.

    Returns:
      Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(slow):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
