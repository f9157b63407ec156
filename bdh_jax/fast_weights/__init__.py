"""Fast weights: the state an episode carries (``state``) and the rules that write it (``rules``)."""

from bdh_jax.fast_weights.rules import hebbian
from bdh_jax.fast_weights.state import Activity, FastState

__all__ = ["Activity", "FastState", "hebbian"]
