"""Layer normalisation without parameters, as BDH has it.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LAYER_NORM_EPSILON = 1e-5


def layer_norm(x: jax.Array) -> jax.Array:
    """Layer normalisation over the last axis without affine parameters; statistics in float32 or wider."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)).astype(x.dtype)
