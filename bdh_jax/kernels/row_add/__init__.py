"""``row_add``: some rows of a matrix, scaled and added into another in place; and the choice of these rows by their scores."""

from bdh_jax.kernels.row_add.dispatch import row_add
from bdh_jax.kernels.row_add.select import largest

__all__ = ["largest", "row_add"]
