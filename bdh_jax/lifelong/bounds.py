"""Bounds of what consolidation can keep, and rivals that keep it elsewhere.

Ridge regression sees all facts at the end, one endless episode never loses its state, and a table of nearest neighbours has no
weights to share.

Axis letters: L layer, H head, N neurons per head, D model width, F facts, Q queries; K = H·N.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax import consolidation
from bdh_jax.analysis.fast_states import empty_memory
from bdh_jax.analysis.probes import addresses, answers
from bdh_jax.config.convert import change
from bdh_jax.consolidation import history_nbytes
from bdh_jax.lifelong.learners import History, Learner, consolidated
from bdh_jax.models.base import ModelOutput
from bdh_jax.models.bdh import BDH
from bdh_jax.types import Slow

RIDGE = 1e-3
"""Of ridge regression."""


def ridge(model: BDH) -> Learner:
    """The bound: ridge regression of what should be read on the addresses of all facts at their final values."""
    return consolidated(model, consolidation.none())._replace(
        finish=lambda slow, history, keys, values: ridge_synapse(model, slow, keys, values)
    )


def ridge_synapse(model: BDH, slow: Slow, keys: jax.Array, values: jax.Array) -> Slow:
    """Slow weights whose synapse reads, at every key's address, what the fast weights read right after the fact alone was written.

    Layer after layer, since what a layer reads decides the addresses and the values of those after it.

    Args:
      model: with one synapse a layer.
      slow: its parameters; the synapse they hold is replaced.
      keys: [F, 2].
      values: [F] token ids.
    """
    config = model.config

    def wanted(slow: Slow, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Address [L, K] and what it should read [L, D]."""
        fast = model.apply({"params": slow}, key[None]).carried
        written = model.apply({"params": slow}, value[None, None], empty_memory(fast)).carried.memory
        if fast.previous_address is None or written is None:
            raise ValueError('this bound needs fast weights whose fast.address is "previous"')
        address = fast.previous_address[:, 0].astype(config.state_dtype)
        return address.reshape(config.n_layer, -1), jnp.einsum("lhn,lhnd->ld", address, written[:, 0])

    def fill(layer: jax.Array, synapse: jax.Array) -> jax.Array:
        filled = {**slow, "synapse": synapse}
        address, read = jax.lax.map(lambda fact: wanted(filled, *fact), (keys, values), batch_size=64)
        address, read = address[:, layer], read[:, layer]
        gram = address.T @ address + RIDGE * jnp.eye(address.shape[1], dtype=address.dtype)
        solution = jax.scipy.linalg.solve(gram, address.T @ read, assume_a="pos")
        return synapse.at[layer].set(solution.reshape(synapse.shape[1:]).astype(synapse.dtype))

    return {**slow, "synapse": jax.lax.fori_loop(0, config.n_layer, fill, jnp.zeros_like(slow["synapse"]))}


def never_reset(model: BDH) -> Learner:
    """No consolidation and no reset: the whole state is carried on, and nothing in it decays (λ = 1)."""
    model = BDH(change(model.config, "fast", decay=1.0))
    return consolidated(model, consolidation.none())._replace(
        init=lambda slow: model.init_fast(1),
        start=lambda history: history,
        update=lambda slow, history, output, facts: (slow, output.carried),
        answer=lambda slow, history, keys: answers(model, slow, keys, history),
        nbytes=lambda slow, history: history_nbytes(history),
    )


def nearest_neighbour(model: BDH) -> Learner:
    """The latest addresses of the first layer, as many as fit into the bytes of the synapse; the nearest one's value is the answer."""
    config = model.config
    synapse_bytes = config.memory_slots * config.n_neurons * config.d_model * 4
    capacity = max(1, synapse_bytes // (config.n_neurons * 4 + 2))

    def init(slow: Slow) -> History:
        return {
            "address": jnp.zeros((capacity, config.n_neurons), jnp.float32),
            "value": jnp.zeros((capacity,), jnp.int16),
        }

    def update(slow: Slow, history: History, output: ModelOutput, facts: jax.Array) -> tuple[Slow, History]:
        # The address of every fact's second token, in the first layer.
        address = output.collected["address"][0, 0, :, 1::3]
        address = jnp.moveaxis(address, 0, 1).reshape(len(facts), -1).astype(jnp.float32)
        latest = {"address": address, "value": facts[:, 2].astype(jnp.int16)}
        # The latest come first, so that of equally near ones the later one answers.
        return slow, jax.tree.map(lambda new, old: jnp.concatenate([new[::-1], old])[:capacity], latest, history)

    def answer(slow: Slow, history: History, keys: jax.Array) -> jax.Array:
        nearest = jnp.argmax(addresses(model, slow, keys)[:, 0] @ history["address"].T, axis=1)
        return history["value"][nearest].astype(jnp.int32)

    return consolidated(model, consolidation.none())._replace(
        init=init,
        update=update,
        answer=answer,
        nbytes=lambda slow, history: history_nbytes(history),
        by_model=False,
        collect=("address",),
    )
