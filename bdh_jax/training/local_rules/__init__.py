"""Local learning during training: weights that are changed by their own inputs and outputs, besides or instead of the gradient.

A rule is a pure function ``(weight, x, y, context, memory, **options) → (delta, memory)``; :mod:`.hook` applies one to the linear maps that a model
declares (``Architecture.local_maps``), :mod:`.upkeep` prunes and scales them. Nothing here knows a particular model.
"""

from bdh_jax.training.local_rules.base import Context, LocalRule
from bdh_jax.training.local_rules.hook import local_learning
from bdh_jax.training.local_rules.registry import LOCAL_RULES
from bdh_jax.training.local_rules.upkeep import homeostasis, pruning

__all__ = ["LOCAL_RULES", "Context", "LocalRule", "homeostasis", "local_learning", "pruning"]
