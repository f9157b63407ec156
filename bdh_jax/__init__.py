"""bdh_jax: BDH language models with fast weights, as pure functions in JAX."""

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
