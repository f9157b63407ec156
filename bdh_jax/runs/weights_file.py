"""Slow weights in one file, to share: safetensors, with a digest of every array's name and content."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from bdh_jax.config.records import digest_of
from bdh_jax.config.whole_files import whole_file
from bdh_jax.runs.fingerprint import digests
from bdh_jax.runs.folder import CheckpointError, DamagedError
from bdh_jax.types import Slow

WEIGHTS = "weights.safetensors"
_BETWEEN = "/"
"""Between the names of a nested weight."""
_DIGEST, _STEP = "bdh_jax.digest", "bdh_jax.step"
"""Keys of the file's header."""


def write_weights(path: Path, slow: Slow, step: int) -> None:
    """Write slow weights, whole or not at all.

    Args:
      path: the file.
      slow: arrays by name, nested.
      step: of their training, which the file says.

    Raises:
      CheckpointError: if it cannot be written.
    """
    named = jax.tree_util.tree_leaves_with_path(slow)
    arrays = {_name(leaf): np.ascontiguousarray(array) for leaf, array in named}
    header = {_STEP: str(step)}
    header[_DIGEST] = digest_of({**digests(arrays), **header})
    try:
        with whole_file(path) as part:
            safetensors.numpy.save_file(arrays, part, header)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}; make room, or name another folder") from error


def read_weights(path: Path) -> tuple[Slow, int]:
    """The slow weights that :func:`write_weights` wrote, as arrays of NumPy, and their step.

    Raises:
      DamagedError: if the file cannot be read, or is not what was written.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise DamagedError(path, f"{type(error).__name__}: {str(error).splitlines()[0][:300]}") from error
    if _DIGEST not in header or not header.get(_STEP, "").isdecimal():
        raise DamagedError(path, "its header has no digest and step, so bdh export did not write it")
    if header[_DIGEST] != digest_of({**digests(arrays), _STEP: header[_STEP]}):
        raise DamagedError(path, "its arrays are not those that were saved")
    slow: Slow = {}
    for name, array in arrays.items():
        *groups, last = name.split(_BETWEEN)
        node = slow
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = array
    return slow, int(header[_STEP])


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=_BETWEEN)
