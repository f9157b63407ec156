"""Models that BDH is compared with."""

from bdh_jax.baselines.gpt import GPT

__all__ = ["GPT"]
