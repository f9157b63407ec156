"""Settings of calls of one token that cost what is active, and how a state gets and loses its slots.

With ``token_step.slots`` = W a call of one token (generation) does not write to the attention's state ρ and to S. It takes one of W slots
for its keys and values, reads through those as well (``bdh_jax.kernels.token_step``), and all slots are written by one product when
none is left. What such a call reads of a matrix it reads at active rows alone, up to a budget of rows. Slots and budgets change speed,
never the function: a token with more active rows reads the whole matrix.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.config import check_types, require
from bdh_jax.fast_weights import state as states
from bdh_jax.fast_weights.state import FastState, RecentWrites, TokenSteps


@dataclasses.dataclass(frozen=True)
class TokenStepConfig:
    """How a call of one token reads and writes. A budget of None reads the whole matrix."""

    slots: int = 0
    """W, writes that are kept beside ρ and S before they are written together; 0: every write goes there at once. Each of them adds
    1/D of the state's size."""
    attention: int | None = None
    """Budget of ρ: pairs of neurons that the rotary embedding turns; of attention "shift" rows."""
    encoder_v: int | None = None
    """Budget of the gate's encoder: rows, of the code. Needs a copy of it by rows (``views`` of the architecture), and counts only where
    no more of the gate is asked for."""
    decoder: int | None = None
    """Budget of the decoder: rows, of the gated code."""
    memory: int | None = None
    """Budget of S and of the synapse: rows, of the address."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.slots >= 0, f"token_step.slots={self.slots} must be ≥ 0; 0 writes at once")
        for name, budget in self.budgets.items():
            require(
                budget is None or budget >= 1, f"token_step.{name}={budget} must be at least 1, or None to read all rows"
            )
            require(
                budget is None or self.slots > 0,
                f"token_step.{name}={budget} needs token_step.slots of at least 1: a state that is written whole is read whole",
            )

    @property
    def budgets(self) -> dict[str, int | None]:
        """Name of each budget → its rows."""
        return {name: getattr(self, name) for name in ("attention", "encoder_v", "decoder", "memory")}


def with_slots(fast: FastState, declared: FastState) -> FastState:
    """A state without slots with free ones, as ``declared`` has them."""
    layers = []
    for layer, wanted in zip(fast.layers, declared.layers, strict=True):
        memory = layer.memory
        if memory is not None:
            memory = memory.replace(recent=_free(wanted.memory.recent))
        layers.append(layer.replace(memory=memory, recent=_free(wanted.recent)))
    steps = states.zeros(declared.token_steps) if fast.token_steps is None else fast.token_steps
    return fast.replace(layers=tuple(layers), token_steps=steps)


def without_slots(fast: FastState) -> FastState:
    """A state as a model without slots keeps it: all that was written is in ρ and S."""
    if fast.token_steps is None:
        return fast
    layers = []
    for layer in fast.flush(_used(fast) > 0).layers:
        memory = None if layer.memory is None else layer.memory.replace(recent=None)
        layers.append(layer.replace(memory=memory, recent=None))
    return fast.replace(layers=tuple(layers), token_steps=None)


def slots_of(fast: FastState) -> int:
    """How many slots a state has."""
    return 0 if fast.token_steps is None else _recent(fast)[0].value.shape[1]


def make_room(fast: FastState) -> FastState:
    """The state with at least one free slot: all are written where none is left. One that is given up is written in place, and where
    nothing is written nothing is copied (tests look at the program)."""
    return fast.flush(_used(fast) >= slots_of(fast))


def count_step(before: FastState, over_budget: jax.Array) -> TokenSteps:
    """One more call of one token, and whether it exceeded a budget.

    Raises:
      ValueError: if the state before it has no slots.
    """
    steps = before.token_steps
    if steps is None:
        raise ValueError("a state without slots takes no token steps; give it some (with_slots)")
    return TokenSteps(steps.taken + 1, steps.over_budget + over_budget.astype(jnp.int32))


def _used(fast: FastState) -> jax.Array:
    return jnp.max(jnp.stack([recent.used for recent in _recent(fast)]))


def _recent(fast: FastState) -> list[RecentWrites]:
    found = [r for layer in fast.layers for r in (layer.recent, None if layer.memory is None else layer.memory.recent)]
    return [recent for recent in found if recent is not None]


def _free(declared: RecentWrites) -> RecentWrites:
    """Slots that are not in use, beside a matrix that holds everything."""
    zeros: Any = states.zeros(declared)
    return zeros.replace(scale=jnp.ones_like(zeros.scale))
