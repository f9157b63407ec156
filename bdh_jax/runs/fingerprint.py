"""Hashes of arrays: which slow weights made a file, and whether what is read is what was saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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


Digest = str | dict[str, str]
"""Of an array: sixteen hexadecimal digits; or, of one that lay on several hosts, of each of its parts, by the box "0:4,8:16" that it is."""


def digests(tree: Any) -> dict[str, Digest]:
    """A hash of every array of a pytree: of its dtype, shape and bytes, wherever on a mesh of this process they lie.

    One array at a time is copied to the host. Of arrays that lie on several hosts as well, those parts that this process has to answer
    for: :func:`merged` puts them together.

    Args:
      tree: pytree of arrays.

    Returns:
      Path in the tree → digest.
    """
    return {path: _parts(leaf) if _is_spread(leaf) else _digest(leaf) for path, leaf in _leaves(tree)}


def merged(parts: Sequence[Mapping[str, Digest]]) -> dict[str, Digest]:
    """The digests of a tree from those of every process."""
    found: dict[str, Digest] = {}
    for one in parts:
        for path, digest in one.items():
            before = found.get(path)
            found[path] = {**before, **digest} if isinstance(before, dict) and isinstance(digest, dict) else digest
    return found


def different(tree: Any, saved: Mapping[str, Digest]) -> list[str]:
    """Paths of a tree whose arrays are not those of the digests, or that only one of the two has.

    Arrays that lie on several hosts are compared part by part where they lie, if they lie as when they were saved; then each process
    knows of its own. Otherwise they are put together, one at a time: with several processes all must call it.
    """
    found = dict(_leaves(tree))
    return [path for path in {**saved, **found} if not (path in saved and path in found and _is(found[path], saved[path]))]


def _is(leaf: Any, saved: Digest) -> bool:
    if isinstance(saved, str):
        return _digest(leaf) == saved
    leaf = _bits(leaf)
    if _is_spread(leaf):
        boxes = {_box(index, leaf.shape) for index in leaf.sharding.devices_indices_map(leaf.shape).values()}
        if boxes == saved.keys():
            return all(saved[box] == digest for box, digest in _parts(leaf).items())
    array = _whole(leaf)
    return bool(saved) and all(_digest(array[_slices(box)]) == digest for box, digest in saved.items())


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _bits(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _is_spread(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _parts(leaf: Any) -> dict[str, str]:
    leaf = _bits(leaf)
    first = (shard for shard in leaf.addressable_shards if shard.replica_id == 0)
    return {_box(shard.index, leaf.shape): _digest(shard.data) for shard in first}


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    bounds = (part.indices(length) for part, length in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop, _ in bounds)


def _slices(box: str) -> tuple[slice, ...]:
    return tuple(slice(*map(int, part.split(":"))) for part in box.split(",") if part)


def _whole(leaf: Any) -> np.ndarray:
    leaf = _bits(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if _is_spread(leaf) else leaf)


def _digest(leaf: Any) -> str:
    array = _whole(leaf)
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()[:16]
