"""How many neurons a model uses: shares of its code, its gate and the gated code that are not zero.

Axis letters: see :mod:`bdh_jax.types`; K = H·N neurons.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.types import Slow


def active_shares(
    config: BDHConfig, slow: Slow, tokens: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The share of K neurons that are active at a token, in the mean over tokens.

    Args:
      config: of the model.
      slow: its weights.
      tokens: [B, T].
      valid: [B, T] bool, tokens that count; None: all.

    Returns:
      "code", "gate" and "gated" (both) → float32 [L] in [0, 1].
    """
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    return jax.device_get(_shares(config, slow, tokens, valid))


@functools.partial(jax.jit, static_argnums=0)
def _shares(config: BDHConfig, slow: Slow, tokens: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    out = BDH(config).apply({"params": slow}, tokens, valid=valid, state="none", collect=("code", "gate"))
    code, gate = out.collected["code"] != 0, out.collected["gate"] != 0  # [L, B, H, T, N]

    def share(active: jax.Array) -> jax.Array:
        by_token = jnp.mean(active, axis=(2, 4), dtype=jnp.float32)  # [L, B, T]
        return jnp.sum(by_token * valid[None], axis=(1, 2)) / jnp.maximum(jnp.sum(valid), 1)

    return {"code": share(code), "gate": share(gate), "gated": share(code & gate)}
