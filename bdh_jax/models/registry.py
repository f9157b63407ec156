"""The models that an experiment can name, by the class of their configuration."""

from __future__ import annotations

from jax.sharding import Mesh

from bdh_jax.models.bdh import BDH
from bdh_jax.models.config import GPTConfig, ModelConfig
from bdh_jax.models.gpt import GPT

Model = BDH | GPT


def make_model(config: ModelConfig, mesh: Mesh | None = None) -> Model:
    """The model that a configuration describes; called in the same way, whichever it is."""
    return (GPT if isinstance(config, GPTConfig) else BDH)(config, mesh)
