"""Kernels: one folder an operation, each with a reference, faster forms, and the dispatch between them."""

from bdh_jax.kernels.fast_weight_scan.dispatch import fast_weight_scan
from bdh_jax.kernels.row_add.dispatch import row_add

__all__ = ["fast_weight_scan", "row_add"]
