"""Hashes of arrays: which slow weights made a file, and whether what is read is what was saved."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

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


def digests(tree: Any) -> dict[str, str]:
    """A hash of every array of a pytree: of its dtype, shape and bytes, wherever on a mesh they lie.

    One array at a time is copied to the host. With several processes all must call it.

    Args:
      tree: pytree of arrays.

    Returns:
      Path in the tree → sixteen hexadecimal digits.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _digest(leaf) for path, leaf in leaves}


def _digest(leaf: Any) -> str:
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
    array = np.asarray(leaf)
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()[:16]
