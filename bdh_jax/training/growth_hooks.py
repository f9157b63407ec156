"""A hook that trains new neurons alone, of a model that has grown (``bdh_jax.analysis.merging.grow``).

train.hooks = ("bdh_jax.training.growth_hooks:new_heads",)
train.hook_options = {"old_heads": 4}
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.config import require
from bdh_jax.models.base import Model, named_weights
from bdh_jax.tasks.base import Batch
from bdh_jax.training.hooks import History, Hooks, Taps, Update
from bdh_jax.types import Slow


def new_heads(model: Model, *, old_heads: int) -> Hooks:
    """Leave everything as it was at the start but the heads from ``old_heads`` on: after each step all else is put back, the embedding too.

    Args:
      model: one whose weights have heads, side by side.
      old_heads: heads that are not trained, from the first on.

    Raises:
      ConfigError: if there are no such heads.
    """
    declared = {".".join(path): weight for path, weight in named_weights(model.declared_slow())}
    heads = {weight.shape[weight.axes.index("head")] for weight in declared.values() if "head" in weight.axes}
    require(
        len(heads) == 1 and 0 < old_heads < max(heads),
        f"train.hook_options.old_heads={old_heads} must be between 1 and the heads of the model less one, and its weights have "
        f"{', '.join(map(str, sorted(heads))) or 'no'} heads",
    )

    def init(slow: Slow) -> History:
        # Copies: the step takes the weights themselves for its own.
        return jax.tree.map(jnp.copy, slow)

    def update(slow: Slow, taps: Taps, batch: Batch, history: History) -> tuple[Slow, History]:
        del taps, batch

        def kept(path: tuple, new: jax.Array, old: jax.Array) -> jax.Array:
            axes = declared[jax.tree_util.keystr(path, simple=True, separator=".")].axes
            if "head" not in axes:
                return old
            place = axes.index("head")
            number = jax.lax.broadcasted_iota(jnp.int32, new.shape, place)
            return jnp.where(number < old_heads, old, new)

        return jax.tree_util.tree_map_with_path(kept, slow, history), history

    return Hooks(updates=(Update("old_neurons", init, update),))
