"""Bytes on a device, from what is declared of arrays and the lengths of a mesh's axes: no device, no array and no compiler is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.parallel.axes import is_leaf, split, split_weight


def bytes_of(leaf: Any, lengths: Mapping[str, int], *, fsdp: bool = False, batched: bool = True) -> int:
    """Bytes of one device's part of an array. Parts are as long as the longest: what does not divide is padded.

    Args:
      leaf: its declaration, with axes, shape and dtype.
      lengths: name of each mesh axis → its length.
      fsdp: whether it is a slow weight that is split over ``data`` as well.
      batched: as of :func:`bdh_jax.parallel.axes.split`.
    """
    over = split_weight(leaf.axes, leaf.shape, lengths) if fsdp else split(leaf.axes, lengths, batched=batched)
    parts = [math.prod(lengths[name] for name in names) for names in over]
    sizes = (-(-length // part) for length, part in zip(leaf.shape, parts, strict=True))
    return math.prod(sizes) * jnp.dtype(leaf.dtype).itemsize


def total_bytes(declared: Any, lengths: Mapping[str, int], *, fsdp: bool = False, batched: bool = True) -> int:
    """As :func:`bytes_of`, of all declarations of a tree."""
    leaves = jax.tree.leaves(declared, is_leaf=is_leaf)
    return sum(bytes_of(leaf, lengths, fsdp=fsdp, batched=batched) for leaf in leaves)
