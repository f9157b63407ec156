"""Gated Hebbian writes with a rate for each channel (row) of S, learned.

``WRITTEN``  S ← λ S + η_n β k ⊗ x: what each channel writes. The write does not look at S, so every form has it.
``KEPT``     S ← λ_n α S + β k ⊗ x with α = σ(x · w) for each token, as in gated linear attention: what each channel keeps. No product of
             matrices has a decay for each row, so it goes token by token, and its entry says so by not saying ``linear``.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax

from bdh_jax.fast_weights.rules import gated_hebbian
from bdh_jax.fast_weights.rules.base import RuleWeight
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics

CHANNEL = RuleWeight(("head", "neuron"), nn.initializers.normal(1.0))
TOKEN = RuleWeight(("model",), nn.initializers.normal(1.0))


def _written(weights: Mapping[str, jax.Array], x: jax.Array, dynamics: Dynamics) -> Dynamics:
    rate = jax.nn.sigmoid(weights["channel"])[None, :, None]
    return dynamics._replace(learning_rate=dynamics.learning_rate * rate)


def _kept(weights: Mapping[str, jax.Array], x: jax.Array, dynamics: Dynamics) -> Dynamics:
    channel = jax.nn.sigmoid(weights["channel"])[None, :, None]
    token = jax.nn.sigmoid(x.astype(channel.dtype) @ weights["token"])[:, None, :, None]
    return dynamics._replace(decay=channel * token)


GATE = gated_hebbian.GATE_WEIGHTS
WRITTEN = gated_hebbian.RULE._replace(weights={**GATE, "channel": CHANNEL}, dynamics=_written)
KEPT = gated_hebbian.RULE._replace(weights={**GATE, "channel": CHANNEL, "token": TOKEN}, dynamics=_kept, linear=False)
