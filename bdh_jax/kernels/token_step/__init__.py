"""``token_step``: what one token of BDH reads and writes, at the cost of what is active."""

from bdh_jax.kernels.token_step.dispatch import flush, project, read, step

__all__ = ["flush", "project", "read", "step"]
