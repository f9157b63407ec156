"""A state between two calls of a model, with its fast weights S or its attention's state ρ emptied or in another order.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    return shuffle_rows_by(fast, key_of(seed))


def shuffle_rows_by(fast: FastState, key: jax.Array) -> FastState:
    """:func:`shuffle_rows` by a key of :func:`bdh_jax.config.seeds.key_of`, which may be traced."""
    memories = fast.memories()
    keys = jax.random.split(key, len(memories))
    return fast.with_memories(_shuffled(memory, key) for memory, key in zip(memories, keys, strict=True))


def empty_attention(fast: FastState) -> FastState:
    """The same state with every layer's ρ zero."""
    return _map_attention(fast, lambda attention, _: jnp.zeros_like(attention), None)


def shuffle_attention_by(fast: FastState, key: jax.Array) -> FastState:
    """The K rows of every layer's ρ in a random order, the same for every example."""

    def shuffle(attention: jax.Array, key: Any) -> jax.Array:
        batch, heads, neurons, width = attention.shape
        order = jax.random.permutation(key, heads * neurons)
        return jnp.take(attention.reshape(batch, heads * neurons, width), order, axis=1).reshape(attention.shape)

    return _map_attention(fast, shuffle, jax.random.split(key, len(fast.layers)))


def _map_attention(fast: FastState, function: Callable[[jax.Array, Any], jax.Array], keys: jax.Array | None) -> FastState:
    fast = fast.flush()
    layers = (
        layer.replace(attention=function(layer.attention, None if keys is None else keys[number]))
        for number, layer in enumerate(fast.layers)
    )
    return fast.replace(layers=tuple(layers))


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
