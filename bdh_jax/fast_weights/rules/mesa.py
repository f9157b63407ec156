"""The mesa rule: ridge regression on all pairs so far (arXiv 2309.05858). It keeps K × K numbers and solves at every token.

No other linear read of the same addresses has a smaller squared error on the pairs so far, each weighted by λ per token of age: it is the
bound of the other rules.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.config import check_types, require
from bdh_jax.fast_weights.rules.base import Context, Rule
from bdh_jax.fast_weights.state import RuleState, array
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Rate, Token
from bdh_jax.kernels.fast_weight_scan.reference import outer, read
from bdh_jax.kernels.linear_algebra import solve_positive


@dataclasses.dataclass(frozen=True)
class MesaOptions:
    """Options of the mesa rule."""

    ridge: float = 0.01
    """What is added to the diagonal of G, > 0."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.ridge > 0, f"ridge={self.ridge} must be positive")


@flax.struct.dataclass
class MesaState(RuleState):
    """S and the sums of the addresses' products.

    Attributes:
      gram: G [B, K, K], Σ η k ⊗ k, decayed as S is.
      ridge: of the options.
    """

    predicts_values: ClassVar[bool] = True

    gram: jax.Array = array("batch", "row", "row")
    ridge: float = flax.struct.field(pytree_node=False, default=0.0)

    def effective(self) -> jax.Array:
        """(G + ridge)⁻¹ S, [B, H, N, D]."""
        return ridge_solution(self.gram, self.S, self.ridge)


def mesa(
    state: jax.Array,
    gram: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    learning_rate: Rate,
    decay: Rate,
    ridge: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Online ridge regression: r = q @ (G + ridge)⁻¹ S, then S ← λ S + η k ⊗ x and G ← λ G + η k ⊗ k (arXiv 2309.05858).

    Args:
      state: S, [..., H, N, D].
      gram: G, [..., K, K].
      query: q, [..., H, N].
      key: k, [..., H, N].
      value: x, [..., 1, D].
      learning_rate: η.
      decay: λ.
      ridge: > 0.

    Returns:
      read [..., H, D], and the next state and gram.
    """
    flat = key.astype(gram.dtype).reshape(*key.shape[:-2], -1)
    found = read(query, ridge_solution(gram, state, ridge))
    state = decay * state + learning_rate * outer(key, value, state.dtype)
    return found, state, decay * gram + learning_rate * outer(flat, flat, gram.dtype)


def ridge_solution(gram: jax.Array, state: jax.Array, ridge: float) -> jax.Array:
    """W = (G + ridge·I)⁻¹ S: the ridge regression of all values on their keys, which is what the mesa rule reads.

    Args:
      gram: G = Σ k ⊗ k, [..., K, K] with K = H·N.
      state: S = Σ k ⊗ x, [..., H, N, D].
      ridge: > 0.

    Returns:
      [..., H, N, D].
    """
    rows, width = gram.shape[-1], state.shape[-1]
    diagonal = jnp.expand_dims(ridge * jnp.eye(rows, dtype=gram.dtype), range(gram.ndim - 2))
    flat = state.reshape(*state.shape[:-3], rows, width)
    return solve_positive(gram + diagonal, flat).reshape(state.shape)


def _write(state: MesaState, token: Token, dynamics: Dynamics, context: Context) -> tuple[jax.Array, MesaState]:
    rates = {"learning_rate": dynamics.learning_rate, "decay": dynamics.decay}
    rows = token.query, token.key, token.value
    found, S, gram = mesa(state.S, state.gram, *rows, **rates, ridge=context.options.ridge)
    return found, state.replace(S=S, gram=gram)


RULE = Rule(
    _write,
    options=MesaOptions,
    state=MesaState,
    static=lambda options: {"ridge": options.ridge},
    predicts_values=True,
    sums_rows=True,
    limits=False,
)
