"""What a local learning rule is.

Axis letters: M activities, the tokens of a batch (times the layers, of a weight that layers share); I inputs, O outputs of a linear map y = x @ W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Need = Literal["surprise", "negative", "target"]


class Context(NamedTuple):
    """What a rule may see beside its own weight, inputs and outputs.

    Attributes:
      share: [M], how much each activity counts in a mean; they sum up to 1.
      surprise: [M], the loss of the token in nats, where the rule needs it. It is one number for all weights, as a neuromodulator is.
      negative: x [M, I] and y [M, O] of a second forward pass, over tokens in a shuffled order, where the rule needs it.
      target: [M, O], what y should be, where the rule needs it.
    """

    share: jax.Array
    surprise: jax.Array | None = None
    negative: tuple[jax.Array, jax.Array] | None = None
    target: jax.Array | None = None


def no_memory(weight: jax.Array) -> Any:
    """Of a rule that remembers nothing."""
    del weight
    return ()


class LocalRule(NamedTuple):
    """An entry of the table of local rules."""

    change: Callable[..., tuple[jax.Array, Any]]
    """(weight [I, O], x [M, I], y [M, O], context, memory, **options) → the change of the weight at rate 1, and the next memory."""
    init: Callable[[jax.Array], Any] = no_memory
    """weight [I, O] → the memory before the first update, a pytree of arrays."""
    needs: tuple[Need, ...] = ()
    """What of the context it sees."""


def correlation(x: jax.Array, y: jax.Array, share: jax.Array) -> jax.Array:
    """Σ_m share_m x_m ⊗ y_m, [I, O]."""
    return x.T @ (share[:, None] * y)


def mean(values: jax.Array, share: jax.Array) -> jax.Array:
    """Σ_m share_m values_m, [N] of [M, N]."""
    return share @ values


def clamped(delta: jax.Array, clamp: float | None) -> jax.Array:
    """Every entry of a change within ± ``clamp``; None limits nothing."""
    return delta if clamp is None else jnp.clip(delta, -clamp, clamp)
