"""A state between two calls of a model, with its fast weights emptied, kept alone, or in another order.

Axis letters: B batch, H head, N neurons per head, D model width; K = H·N.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.state import FastState


def empty_memory(fast: FastState) -> FastState:
    """The same state with S zero. What a rule keeps beside S, and the activity, stay."""
    return fast.replace(memory=jnp.zeros_like(fast.memory))


def only_memory(fast: FastState) -> FastState:
    """Zeros in all but the fast weights and their activity: a new episode that goes on with what was written."""
    # The sums k ⊗ k belong to S: rule "mesa" reads both together.
    return fast.reset().replace(memory=fast.memory, gram=fast.gram, activity=fast.activity)


def shuffle_rows(fast: FastState, *, seed: int) -> FastState:
    """The K rows of S in a random order: one for each S, the same for every example.

    S keeps its size and the values it holds, but they lie under other addresses; so do the sums k ⊗ k, where there are any.
    """
    slots, batch, *rows, width = fast.memory.shape
    flat = fast.memory.reshape(slots, batch, -1, width)
    keys = jax.random.split(jax.random.key(seed), slots)
    orders = [jax.random.permutation(key, flat.shape[2]) for key in keys]
    flat = jnp.stack([memory[:, order] for memory, order in zip(flat, orders, strict=True)])
    gram = fast.gram
    if gram is not None:
        gram = jnp.stack([sums[:, order][:, :, order] for sums, order in zip(gram, orders, strict=True)])
    return fast.replace(memory=flat.reshape(slots, batch, *rows, width), gram=gram)
