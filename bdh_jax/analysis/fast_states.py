"""A state between two calls of a model, with its fast weights emptied or in another order.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.config.seeds import key_of
from bdh_jax.fast_weights.state import FastState, Memory


def empty_memory(fast: FastState) -> FastState:
    """The same state with S zero. What a rule keeps beside S, and the activity, stay."""
    return fast.map_memory(jnp.zeros_like)


def shuffle_rows(fast: FastState, *, seed: int) -> FastState:
    """The K rows of S in a random order: one for each S, the same for every example.

    S keeps its size and the values it holds, but they lie under other addresses; so does all that a rule keeps for its rows.
    """
    memories = fast.memories()
    keys = jax.random.split(key_of(seed), len(memories))
    return fast.with_memories(_shuffled(memory, key) for memory, key in zip(memories, keys, strict=True))


def _shuffled(memory: Memory, key: jax.Array) -> Memory:
    _, heads, neurons, _ = memory.written.S.shape
    order = jax.random.permutation(key, heads * neurons)

    def permute(axes: tuple[str, ...], array: jax.Array) -> jax.Array:
        for place, axis in enumerate(axes):
            if axis == "row":
                array = jnp.take(array, order, axis=place)
            elif axes[place : place + 2] == ("head", "neuron"):
                shape = array.shape
                rows = array.reshape(*shape[:place], heads * neurons, *shape[place + 2 :])
                array = jnp.take(rows, order, axis=place).reshape(shape)
        return array

    return memory.map_arrays(permute)
