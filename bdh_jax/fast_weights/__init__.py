"""Fast weights: the state an episode carries (``state``), the rules that write it (``rules``), one layer's use of them
(``memory``), what they are addressed by (``addresses``), and which tokens count (``masks``)."""

from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.fast_weights.limits import bound
from bdh_jax.fast_weights.rules.delta import delta
from bdh_jax.fast_weights.rules.hebbian import hebbian
from bdh_jax.fast_weights.rules.longhorn import longhorn_gate
from bdh_jax.fast_weights.rules.mesa import mesa, ridge_solution
from bdh_jax.fast_weights.rules.oja import oja
from bdh_jax.fast_weights.state import Activity, BatchMean, FastState

__all__ = [
    "Activity",
    "BatchMean",
    "FastState",
    "FastWeightConfig",
    "bound",
    "delta",
    "hebbian",
    "longhorn_gate",
    "mesa",
    "oja",
    "ridge_solution",
]
