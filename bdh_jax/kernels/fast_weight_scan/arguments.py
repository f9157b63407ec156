"""What the forms of the scan hand to each other: arrays only, no form knows which rule it runs.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Final = Literal["full", "mean", "none"]
"""What is wanted of the state after the last token: S_T, its mean over the batch, or nothing."""

Rate = jax.Array | float
"""A number, one for each head [H], or [B or 1, H or 1, T or 1, N or 1]: for each example, head, token and row."""


class Dynamics(NamedTuple):
    """How a state changes by itself and how much is written to it."""

    learning_rate: Rate
    """η ≥ 0."""
    decay: Rate
    """λ in (0, 1]."""


class Stretch(NamedTuple):
    """A stretch of tokens.

    Attributes:
      query: [B, H, T, N], what is read with.
      key: [B, H, T, N], what is written under.
      value: [B, 1, T, D], what is written, shared by all heads; or [B, H, T, D].
      write_gate: β [B, T] in [0, 1], how much of each token is written; None for all of it.
      valid: [B, T] bool: an invalid token neither writes nor decays. None: all are valid.
      reset: [B, T] bool: the state is zero when that token reads. None: no resets.
      scores: q_t · k_s [B, H, T, T], where they are known; the parallel form of a linear rule then reads without its keys.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    write_gate: jax.Array | None = None
    valid: jax.Array | None = None
    reset: jax.Array | None = None
    scores: jax.Array | None = None


class Token(NamedTuple):
    """One token of every example, as a rule sees it.

    Attributes:
      query: [B, H, N].
      key: [B, H, N].
      value: [B, 1, D] or [B, H, D].
      write_gate: β [B], or None.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    write_gate: jax.Array | None = None


class Wanted(NamedTuple):
    """What a form is to return."""

    final: Final
    sum_heads: bool
    """Sum the read over the heads."""


Write = Callable[[Any, Token, Dynamics], tuple[jax.Array, Any]]
"""(state, token, dynamics) → (read [B, H, D], next state): one token, which reads before it writes. The state is S [B, H, N, D], or any
pytree whose arrays begin with B."""

Correct = Callable[[Stretch, Any, Any, Dynamics], tuple[jax.Array, jax.Array]]
"""(stretch, S at its start [B, H, D, N] or None, its coefficients, dynamics) → (key, value) whose plain write with η = 1 is what the
rule writes in that stretch."""


class ScanRule(NamedTuple):
    """A way to write, and what it can do."""

    name: str
    """How messages call it."""
    write: Write
    """The definition."""
    linear: bool = False
    """Whether S_{t+1} = λ S_t + η β k_t ⊗ x_t, so that every form and the kernel write it as it is."""
    correct: Correct | None = None
    """For the matrix forms of a rule that is not linear. None: token by token only."""

    gated: bool = False
    """Whether it takes a write gate."""

    @property
    def has_matrix_form(self) -> bool:
        """Whether a stretch of tokens can be written by matrix products."""
        return self.linear or self.correct is not None
