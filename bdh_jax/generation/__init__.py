"""Generation: sampling with a state that is carried, and that state in a file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bdh_jax.generation.sampling import GenerationState, Sampling, generate, prefill

if TYPE_CHECKING:
    from bdh_jax.generation.state_files import StateError, load_state, save_state

__all__ = ["GenerationState", "Sampling", "StateError", "generate", "load_state", "prefill", "save_state"]


def __getattr__(name: str) -> Any:
    """What is about files, with the libraries that read them, only once it is asked for: sampling needs neither."""
    if name in ("StateError", "load_state", "save_state"):
        return getattr(importlib.import_module("bdh_jax.generation.state_files"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
