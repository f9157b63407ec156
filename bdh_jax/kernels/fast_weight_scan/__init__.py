"""``fast_weight_scan``: linear attention and Hebbian fast weights as one operation."""

from bdh_jax.kernels.fast_weight_scan.dispatch import fast_weight_scan
from bdh_jax.kernels.fast_weight_scan.xla import own_scores

__all__ = ["fast_weight_scan", "own_scores"]
