"""How much each source adds to the output of a layer: the decoder, the fast weights S, and the synapse.

Axis letters: B batch, T time, L layer, H head, N neurons per head, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdh_jax.models.base import Model
from bdh_jax.types import Slow


def make_contributions(model: Model) -> Callable[..., dict[str, jax.Array]]:
    """Build a jitted function that measures a batch.

    Args:
      model: a BDH with fast weights.

    Returns:
      ``contributions(slow, tokens [B,T], valid, reset, write)`` → name → [L], root mean squares over the batch's D-wide vectors:
      ``decoder`` of what the decoder makes of the gated code, ``fast`` of what is read from S, and with a synapse ``synapse`` of
      what is read from that. The layer normalises the sum of the three, so their ratios are what counts.

    Raises:
      ValueError: if the model has no fast weights.
    """
    if not model.config.fast.enabled:
        raise ValueError("the model has no fast weights (fast.enabled=False): all of a layer's output is the decoder's")

    @jax.jit
    def contributions(
        slow: Slow,
        tokens: jax.Array,
        valid: jax.Array | None = None,
        reset: jax.Array | None = None,
        write: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        names = ("decoded", "read", "address") if "synapse" in slow else ("decoded", "read")
        masks = {"valid": valid, "reset": reset, "write": write}
        seen = model.apply({"params": slow}, tokens, **masks, state="none", collect=names).collected
        counts = jnp.ones(tokens.shape) if valid is None else valid.astype(jnp.float32)

        def size(array: jax.Array) -> jax.Array:
            square = jnp.mean(jnp.square(array.astype(jnp.float32)), axis=-1)
            return jnp.sqrt(jnp.sum(square * counts[None], axis=(1, 2)) / jnp.sum(counts))

        result, read = {"decoder": size(seen["decoded"])}, seen["read"]
        if "synapse" in slow:
            # A shared synapse has one layer, which every layer reads.
            synapse = jnp.broadcast_to(slow["synapse"], (read.shape[0], *slow["synapse"].shape[1:]))
            known = jnp.einsum("lbhtn,lhnd->lbtd", seen["address"].astype(synapse.dtype), synapse)
            result["synapse"], read = size(known), read - known
        return {**result, "fast": size(read)}

    return contributions
