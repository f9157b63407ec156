"""What a model is asked, key by key: its answer, and the address at which it looks.

A key is two tokens, and its answer the token after them (:mod:`bdh_jax.tasks.facts`).

Axis letters: Q keys, L layer, K neurons of a layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.state import FastState
from bdh_jax.models.bdh import BDH
from bdh_jax.types import Slow


def answers(model: BDH, slow: Slow, keys: jax.Array, fast: FastState | None = None) -> jax.Array:
    """The model's answers [Q] to keys [Q, 2], each asked for alone, from a fresh state or from ``fast`` (B = 1)."""
    if fast is None:
        logits = model.apply({"params": slow}, keys, state="none").logits[:, -1]
    else:
        # The state is not copied: it has no axis of queries.
        logits = jax.vmap(lambda key: model.apply({"params": slow}, key[None], fast, state="none").logits[0, -1])(keys)
    return jnp.argmax(logits, axis=-1)


def addresses(model: BDH, slow: Slow, keys: jax.Array) -> jax.Array:
    """Addresses [Q, L, K] at the second token of keys [Q, 2], each from a fresh state."""
    address = model.apply({"params": slow}, keys, state="none", collect=("address",)).collected["address"]
    return jnp.moveaxis(address[:, :, :, -1], 0, 1).reshape(len(keys), model.config.n_layer, -1)
