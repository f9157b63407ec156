"""How many neurons of a code are active: a limit, and a measure that has a gradient.

Axis letters: see :mod:`bdh_jax.types`; K = H·N neurons.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdh_jax.layers.largest import alone, kth_largest


def above_the_rest(code: jax.Array, k: int, total: Callable[[jax.Array], jax.Array] = alone) -> jax.Array:
    """What the k largest numbers of a token's code have above the largest of the rest; zero elsewhere.

    Args:
      code: [B, H, T, N], not negative.
      k: in [1, K − 1].
      total: sum over the shards that the neurons are split over; K is of all of them.

    Returns:
      [B, H, T, N], at most k of them positive for each token. The gradient is that of the numbers that are left; the limit carries none.
    """
    limit = kth_largest(_by_token(code), k + 1, total)[:, None, :, None]
    return jax.nn.relu(code - limit)


def active_share(code: jax.Array, neurons: int, total: Callable[[jax.Array], jax.Array] = alone) -> jax.Array:
    """(Σ c)² / (K Σ c²) of every token's code: its share of active neurons, if all of them were equally active.

    Args:
      code: [B, H, T, N], not negative.
      neurons: K.
      total: sum over the shards that the neurons are split over.

    Returns:
      [B, T] in [1/K, 1], float32 or wider; 0 where no neuron is active.
    """
    wide = _by_token(code).astype(jnp.promote_types(jnp.float32, code.dtype))
    plain, squares = (total(jnp.sum(numbers, axis=-1)) for numbers in (wide, jnp.square(wide)))
    return jnp.square(plain) / (neurons * jnp.where(squares > 0, squares, 1))


def _by_token(code: jax.Array) -> jax.Array:
    """[B, H, T, N] → [B, T, K]."""
    rows = jnp.swapaxes(code, 1, 2)
    return rows.reshape(*rows.shape[:2], -1)
