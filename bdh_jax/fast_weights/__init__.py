"""Fast weights: the state an episode carries (``state``), the rules that write it (``rules``), one layer's use of them
(``write_back``), and what they are addressed by (``addresses``)."""

from bdh_jax.fast_weights.rules.tokenwise import bound, delta, hebbian, longhorn_gate, mesa, oja, ridge_solution
from bdh_jax.fast_weights.state import Activity, FastState

__all__ = [
    "Activity",
    "FastState",
    "bound",
    "delta",
    "hebbian",
    "longhorn_gate",
    "mesa",
    "oja",
    "ridge_solution",
]
