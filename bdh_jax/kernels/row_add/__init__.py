"""``row_add``: some rows of a matrix, scaled and added into another in place."""

from bdh_jax.kernels.row_add.dispatch import row_add

__all__ = ["row_add"]
