"""bdh_jax: BDH language models with fast weights, as pure functions in JAX."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdh_jax import consolidation, interop
    from bdh_jax.config import ConfigError
    from bdh_jax.experiment import load
    from bdh_jax.fast_weights import Activity, FastState, FastWeightConfig
    from bdh_jax.models.base import ModelOutput
    from bdh_jax.models.bdh import BDH, BDHConfig
    from bdh_jax.runs.folder import CheckpointError

__all__ = [
    "BDH",
    "Activity",
    "BDHConfig",
    "CheckpointError",
    "ConfigError",
    "FastState",
    "FastWeightConfig",
    "ModelOutput",
    "consolidation",
    "interop",
    "load",
]
__version__ = "0.1.0"

# What is asked for is imported then: a command listens to signals before the seconds that JAX takes to import.
_HOMES = {
    "BDH": "models.bdh",
    "Activity": "fast_weights",
    "BDHConfig": "models.bdh",
    "CheckpointError": "runs.folder",
    "ConfigError": "config",
    "FastState": "fast_weights",
    "FastWeightConfig": "fast_weights",
    "ModelOutput": "models.base",
    "load": "experiment",
}


def __getattr__(name: str) -> Any:
    """A name of the package, or one of its rooms."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
