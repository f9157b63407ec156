"""Weights of other implementations."""

from bdh_jax.interop.files import WeightsError, read_pathway, write_pathway
from bdh_jax.interop.huggingface import read_huggingface, write_huggingface
from bdh_jax.interop.pathway import from_pathway, to_pathway

__all__ = [
    "WeightsError",
    "from_pathway",
    "read_huggingface",
    "read_pathway",
    "to_pathway",
    "write_huggingface",
    "write_pathway",
]
