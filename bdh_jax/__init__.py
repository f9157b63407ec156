"""bdh_jax: BDH language models with fast weights, as pure functions in JAX."""

from bdh_jax import consolidation, interop
from bdh_jax.config import BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.fast_weights import Activity, FastState
from bdh_jax.model import BDH, BDHOutput
from bdh_jax.training.checkpoint import CheckpointError, load

__all__ = [
    "BDH",
    "Activity",
    "BDHConfig",
    "BDHOutput",
    "CheckpointError",
    "ConfigError",
    "FastState",
    "FastWeightConfig",
    "consolidation",
    "interop",
    "load",
]
__version__ = "0.1.0"
