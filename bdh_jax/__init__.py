"""bdh_jax: BDH language models with fast weights, as pure functions in JAX."""

# from bdh_jax import consolidation, interop
from bdh_jax.config import ConfigError
from bdh_jax.fast_weights import Activity, FastState, FastWeightConfig
from bdh_jax.models.base import ModelOutput
from bdh_jax.models.bdh import BDH, BDHConfig

__all__ = [
    "BDH",
    "Activity",
    "BDHConfig",
    "ConfigError",
    "FastState",
    "FastWeightConfig",
    "ModelOutput",


]
__version__ = "0.1.0"
