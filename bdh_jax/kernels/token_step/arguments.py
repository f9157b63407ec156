"""What the parts of a token step hand to each other: arrays only.

Axis letters: see :mod:`bdh_jax.types`; W slots, R rows that are read.
"""

from __future__ import annotations

from typing import NamedTuple

import jax


class Recent(NamedTuple):
    """Writes that have not reached the matrix M beside them. What is read is

        scale · M + Σ_w weight_w key_w ⊗ value_w

    for each example and head: decay changes ``scale`` and ``weight``, and never M. A slot that is not in use has weight 0.

    Attributes:
      key: [B, H, W, N].
      value: [B, W, D], for all heads.
      weight: [B, H, W], float32 or wider.
      scale: [B, H], float32 or wider.
      used: int32, how many slots are taken, of every example alike.
    """

    key: jax.Array
    value: jax.Array
    weight: jax.Array
    scale: jax.Array
    used: jax.Array


class Write(NamedTuple):
    """What one token of every example writes.

    Attributes:
      key: [B, H, N].
      value: [B, D].
      weight: [B or 1, H or 1], how much of it is written; 0 for an example that writes nothing.
      kept: [B or 1, H or 1], what is left of earlier writes; 1 for an example that writes nothing.
    """

    key: jax.Array
    value: jax.Array
    weight: jax.Array
    kept: jax.Array


class Rows(NamedTuple):
    """The rows of a vector that are not zero, in order.

    Attributes:
      index: [R] int32, with K in what is left over.
      count: int32, how many there are; more than R where they do not fit.
    """

    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.index, which is not called
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, which is not called


class Active(NamedTuple):
    """Rows that a kernel is to read of matrices that stay where they are, for each example.

    Attributes:
      index: [B, R] int32, groups of G neighbouring rows of a matrix, as of :class:`Rows`; what is no group has values of zero.
      values: [B, R, G], what these rows are multiplied with.
      address: [B, R], of S, whose rows are read with those of the code; None if S is not.
    """

    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.index, which is not called
    values: jax.Array
    address: jax.Array | None = None


class Matrices(NamedTuple):
    """What a token of a layer reads by rows. K rows, those of a head after those of the one before.

    Attributes:
      attention: ρ, [B, K, D].
      encoder_v: by rows, [K, D].
      decoder: [K, D].
      memory: S, [B, K, D], or None.
    """

    attention: jax.Array
    encoder_v: jax.Array
    decoder: jax.Array
    memory: jax.Array | None = None
