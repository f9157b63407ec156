"""A state of generation in a file: written in one process, continued in another.

A file holds the arrays of a :class:`bdh_jax.generation.sampling.GenerationState` in the safetensors format, and in its header what
made it: the model's configuration and a hash of the weights. A state of another model or of other weights is refused, and so is one
that is not what was saved: the header has a digest of itself and of the arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from bdh_jax.config.base import one_line
from bdh_jax.config.identity import HOW, keys_of
from bdh_jax.config.records import RecordError, Schema, digest_of, parse
from bdh_jax.config.whole_files import whole_file
from bdh_jax.fast_weights.state import structs
from bdh_jax.generation.sampling import GenerationState, as_model_keeps_it
from bdh_jax.models.base import Model, ModelConfig
from bdh_jax.models.token_step import without_slots
from bdh_jax.runs.fingerprint import digests, slow_hash
from bdh_jax.types import Slow

_FORMATS = "bdh_jax.generation_state."
FORMAT = f"{_FORMATS}2"
"""Version 1 kept all layers in one array."""
_LOGGER = logging.getLogger("bdh_jax")


class _Header(Schema):
    """The header, whose values are texts in this format."""

    format: str
    config: str
    config_hash: str
    slow_hash: str
    batch: str = pydantic.Field(pattern=r"^[1-9]\d{0,8}$")
    arrays: str | None = None
    """Hash of the arrays; None of an older version, as the digest of the header."""
    digest: str | None = None


class StateError(ValueError):
    """A saved state that cannot be used here. The message names the file, what is wrong and the remedy."""


def config_hash(config: ModelConfig) -> str:
    """What tells states of different models apart: a hash of all settings that change the function or the state's shape. Those that say how
    it is computed (``bdh_jax.config.identity``) do not, nor does dropout, which is of training alone."""
    settings = dataclasses.asdict(config)
    for key in keys_of(config, HOW) | {"dropout"}:
        *parts, name = key.split(".")
        functools.reduce(operator.getitem, parts, settings).pop(name, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def save_state(path: str | Path, state: GenerationState, model: Model, slow: Slow, *, overwrite: bool = False) -> None:
    """Write a state to a safetensors file, with a header that says what made it. Writes that wait in slots are made for that: a file is
    the same whatever ``token_step`` is.

    The file is written beside its place and then moved there, so that an interruption leaves no half of one.

    Args:
      path: the file.
      state: to be saved.
      model: that made it.
      slow: the weights that made it.
      overwrite: replace a file that is there.

    Raises:
      StateError: if the file exists and ``overwrite`` is false, or cannot be written; then nothing is left of it.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise StateError(f"{path} exists; name another file, or allow it to be replaced")
    state = state.replace(fast=without_slots(state.fast))
    arrays = {_name(key): np.ascontiguousarray(np.asarray(leaf)) for key, leaf in jax.tree_util.tree_leaves_with_path(state)}
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    header = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "config_hash": config_hash(model.config),
        "slow_hash": slow_hash(slow),
        "batch": str(state.logits.shape[0]),
        "versions": json.dumps(versions),
    }
    header["arrays"] = digest_of(digests(arrays))
    header["digest"] = digest_of(header)
    try:
        with whole_file(path) as part:
            safetensors.numpy.save_file(arrays, part, header)
    except (OSError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StateError(f"{path} cannot be written ({reason}); make room, or name another file") from error


def load_state(path: str | Path, model: Model, slow: Slow) -> GenerationState:
    """Read a state that :func:`save_state` wrote.

    Args:
      path: the file.
      model: that is to continue it.
      slow: its weights, which must be those that made the state.

    Raises:
      StateError: for a file that is missing, damaged, no state, or of another model or other weights.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise StateError(f"{path} does not exist") from None
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise StateError(
            f"{path} cannot be read ({one_line(str(error), 300)}); it may be truncated, or no safetensors file"
        ) from error
    written_as = header.get("format", "")
    if not written_as.startswith(_FORMATS):
        raise StateError(
            f"{path} is no state of this library: its format is {written_as!r}; name a file that save_state wrote"
        )
    if written_as != FORMAT:
        raise StateError(
            f"{path} is a state of another version: its format is {written_as!r}, not {FORMAT!r}; read the prompt again with this one"
        )
    read = _checked(path, header, arrays)
    if read.config_hash != config_hash(model.config):
        made, now = _config(path, read.config), json.loads(json.dumps(dataclasses.asdict(model.config)))
        raise StateError(f"{path} is a state of another model: {_difference(made, now)}. Load the model that made it")
    if read.slow_hash != slow_hash(slow):
        raise StateError(f"{path} is a state of other weights of the same configuration; load the checkpoint that made it")
    batch = int(read.batch)
    logits: Any = jax.ShapeDtypeStruct((batch, model.config.vocab_size), model.config.state_dtype)
    plain = model.config.without_slots().build()
    shapes = GenerationState(structs(plain.declared_fast(batch)), logits)

    def leaf(key: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> jax.Array:
        array = arrays.get(_name(key))
        if array is None or array.shape != expected.shape or array.dtype != expected.dtype:
            found = "absent" if array is None else f"{array.dtype} {list(array.shape)}"
            raise StateError(f"{path}: {_name(key)} is {found} and must be {expected.dtype} {list(expected.shape)}")
        if not np.all(np.isfinite(array)):
            raise StateError(f"{path}: {_name(key)} is NaN or infinite in places; read the prompt again")
        if np.issubdtype(array.dtype, np.integer) and array.size and array.min() < 0:
            raise StateError(f"{path}: {_name(key)} is {array.min()} and cannot be negative; read the prompt again")
        return jnp.asarray(array)

    return as_model_keeps_it(model, jax.tree_util.tree_map_with_path(leaf, shapes))


def _checked(path: Path, header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> _Header:
    """The header, if it and the arrays are what was saved."""
    try:
        read = parse(json.dumps(dict(header)), _Header)
        if (read.digest is None) != (read.arrays is None):
            raise RecordError("its header has lost its digest")
        if read.arrays is not None and read.arrays != digest_of(digests(arrays)):
            raise RecordError("its arrays are not those that were saved")
    except RecordError as error:
        raise StateError(f"{path} is damaged ({error}); restore it from a copy, or read the prompt again") from error
    if read.arrays is None:
        _LOGGER.warning("%s was saved by an older version, without a digest: whether it is damaged cannot be told", path)
    return read


def _config(path: Path, content: str) -> Mapping[str, Any]:
    try:
        return parse(content, Schema).model_dump()
    except RecordError as error:
        raise StateError(f"{path} is damaged (config: {error}); restore it from a copy, or read the prompt again") from error


def _name(key: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(key, simple=True, separator=".")


def _difference(made: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    """The first setting that two configurations do not share, in words; empty if there is none."""
    for name in dict.fromkeys([*made, *now]):
        old, new = made.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := _difference(old, new, f"{prefix}{name}."):
                return found
        elif old != new:
            return f"{prefix}{name} was {old!r} there and is {new!r} here"
    return ""
