"""Controls: a learner with one thing taken away that its result should depend on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.analysis.probes import addresses
from bdh_jax.config.seeds import key_of
from bdh_jax.layers.norm import layer_norm
from bdh_jax.lifelong.learners import History, Learner
from bdh_jax.tasks.facts import FIRST_VALUE, VALUES
from bdh_jax.types import Slow


def shuffled(learner: Learner) -> Learner:
    """The same, and in the end the rows of each layer's synapse are permuted: keeps their sizes and not their places."""

    def finish(slow: Slow, history: History, keys: jax.Array, values: jax.Array) -> Slow:
        synapse = slow["synapse"]
        layers, heads, neurons, width = synapse.shape
        rows = synapse.reshape(layers, heads * neurons, width)
        order = [jax.random.permutation(key_of(layer), heads * neurons) for layer in range(layers)]
        rows = jnp.stack([rows[layer][order[layer]] for layer in range(layers)])
        return {**slow, "synapse": rows.reshape(synapse.shape)}

    return learner._replace(finish=finish)


def untrained(learner: Learner) -> Learner:
    """The same with weights as initialised. Its answer is the value whose embedding is nearest to what the first layer reads."""
    model = learner.model

    def prepare(slow: Slow) -> Slow:
        return model.init_slow(key_of(0))

    def answer(slow: Slow, history: History, keys: jax.Array) -> jax.Array:
        read = addresses(model, slow, keys)[:, 0] @ slow["synapse"][0].reshape(-1, model.config.d_model)
        values = layer_norm(slow["embed"][FIRST_VALUE : FIRST_VALUE + VALUES])
        return FIRST_VALUE + jnp.argmax(read @ values.T, axis=-1)

    return learner._replace(prepare=prepare, answer=answer, by_model=False)
