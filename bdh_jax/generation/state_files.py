"""A state of generation in a file: written in one process, continued in another.

A file holds the arrays of a :class:`bdh_jax.generation.sampling.GenerationState` in the safetensors format, and in its header what
made it: the model's configuration and a hash of the weights. A state of another model or of other weights is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from bdh_jax.fast_weights.state import structs
from bdh_jax.generation.sampling import GenerationState
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.runs.fingerprint import slow_hash
from bdh_jax.types import Slow

_FORMATS = "bdh_jax.generation_state."
FORMAT = f"{_FORMATS}2"
"""Version 1 kept all layers in one array."""


class StateError(ValueError):
    """A saved state that cannot be used here. The message names the file, what is wrong and the remedy."""


def config_hash(config: BDHConfig) -> str:
    """What tells states of different models apart: a hash of all settings that change the function or the state's shape."""
    settings = dataclasses.asdict(config)
    for name in ("implementation", "kernel", "chunk_size", "remat", "dropout"):  # speed and training only
        settings.pop(name, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def save_state(path: str | Path, state: GenerationState, model: BDH, slow: Slow, *, overwrite: bool = False) -> None:
    """Write a state to a safetensors file, with a header that says what made it.

    The file is written beside its place and then moved there, so that an interruption leaves no half of one.

    Args:
      path: the file.
      state: to be saved.
      model: that made it.
      slow: the weights that made it.
      overwrite: replace a file that is there.

    Raises:
      StateError: if the file exists and ``overwrite`` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise StateError(f"{path} exists; name another file, or allow it to be replaced")
    arrays = {_name(key): np.asarray(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(state)}
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    header = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "config_hash": config_hash(model.config),
        "slow_hash": slow_hash(slow),
        "batch": str(state.logits.shape[0]),
        "versions": json.dumps(versions),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part, header)
    part.replace(path)


def load_state(path: str | Path, model: BDH, slow: Slow) -> GenerationState:
    """Read a state that :func:`save_state` wrote.

    Args:
      path: the file.
      model: that is to continue it.
      slow: its weights, which must be those that made the state.

    Raises:
      StateError: for a file that is missing, truncated, no state, or of another model or other weights.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise StateError(f"{path} does not exist") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise StateError(f"{path} cannot be read ({error}); it may be truncated, or no safetensors file") from error
    written_as = header.get("format", "")
    if not written_as.startswith(_FORMATS):
        raise StateError(
            f"{path} is no state of this library: its format is {written_as!r}; name a file that save_state wrote"
        )
    if written_as != FORMAT:
        raise StateError(
            f"{path} is a state of another version: its format is {written_as!r}, not {FORMAT!r}; read the prompt again with this one"
        )
    if header["config_hash"] != config_hash(model.config):
        made, now = json.loads(header["config"]), json.loads(json.dumps(dataclasses.asdict(model.config)))
        raise StateError(f"{path} is a state of another model: {_difference(made, now)}. Load the model that made it")
    if header["slow_hash"] != slow_hash(slow):
        raise StateError(f"{path} is a state of other weights of the same configuration; load the checkpoint that made it")
    batch = int(header["batch"])
    logits = jax.ShapeDtypeStruct((batch, model.config.vocab_size), model.config.state_dtype)
    shapes = GenerationState(structs(model.declared_fast(batch)), logits)

    def leaf(key: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> jax.Array:
        array = arrays.get(_name(key))
        if array is None or array.shape != expected.shape or array.dtype != expected.dtype:
            found = "absent" if array is None else f"{array.dtype} {list(array.shape)}"
            raise StateError(f"{path}: {_name(key)} is {found} and must be {expected.dtype} {list(expected.shape)}")
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


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
