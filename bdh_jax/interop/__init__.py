"""Weights of other implementations."""

from bdh_jax.interop.pathway import from_pathway, to_pathway

__all__ = ["from_pathway", "to_pathway"]
