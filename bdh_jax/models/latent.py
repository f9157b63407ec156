"""BDH that thinks: tokens that do not write pass through the layers R times, on a memory that stays as it is.

    S = ingest(D)             tokens that write: BDH, once through its L layers. They fill ρ, the attention's state, and S
    H_{r+1} = F(H_r, S)       tokens that do not (``write`` of a call): through the same L layers, R times in all, each time reading ρ and
                              S as the token found them; what comes out goes in again
    y = G(H_R)                readout

It is the interface of BDH-CQ (arXiv 2608.09888) on this library's BDH. A token thinks if it is valid and does not write, so what is asked,
and on which memory, is the caller's choice: a task's (``Batch.write``) or that of ``model.apply(…, write=…)``. Without such tokens, and with
R = 1, it is BDH to the bit. Tokens that think see the memory and themselves, not one another.

What a call leaves behind is of the first pass alone: ρ and S are those of before, the position goes on.

Axis letters: see :mod:`bdh_jax.types`; Q is the number of tokens that think at once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.config import require
from bdh_jax.config.identity import HOW
from bdh_jax.fast_weights.masks import Masks
from bdh_jax.fast_weights.state import FastState
from bdh_jax.models.base import Activations, Inputs, Setup, finish_state
from bdh_jax.models.bdh import BDH, BDHArchitecture, BDHConfig
from bdh_jax.types import Slow


@dataclasses.dataclass(frozen=True)
class LatentConfig(BDHConfig):
    """BDH whose tokens that do not write think R times on a frozen memory (``bdh_jax.models.latent``)."""

    architecture: str = "latent"
    dropout: float = 0.0
    thinking: int = 4
    """R, passes through the layers of a token that does not write. The weights do not depend on it, so that a trained model can think longer."""
    thinking_drawn: bool = False
    """In training, each token draws its own R from 1 … ``thinking`` instead, all equally likely."""
    most_thinking: int | None = dataclasses.field(default=None, metadata=HOW)
    """Q: how many tokens of a row think in one call at most, which then come behind all that it writes and resets there. They think all at
    once, and a row where it is not so has no logits but NaN. None takes them in any order, token by token. It changes speed, never the
    function."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.thinking >= 1, f"thinking={self.thinking} must be at least 1: a token passes through the layers once")
        require(
            self.most_thinking is None or self.most_thinking >= 1,
            f"most_thinking={self.most_thinking} must be at least 1, or None to think token by token",
        )
        require(
            self.thinking > 1 or not self.thinking_drawn,
            f"thinking_drawn=True with thinking={self.thinking}: there is one number to draw; set thinking to the largest, or "
            "thinking_drawn=False",
        )
        require(
            self.dropout == 0 or self.thinking == 1,
            f"dropout={self.dropout} with thinking={self.thinking}: there are masks for one pass through the layers; set it to 0",
        )

    @property
    def no_token_step(self) -> str | None:
        """Why writes cannot wait in slots; None if they can."""
        if self.thinking > 1:
            return f"thinking={self.thinking} reads the memory alone, not what waits beside it"
        return super().no_token_step

    @property
    def no_part(self) -> str | None:
        """Why its layers cannot stand among those of another model: what comes out of the last goes into the first again."""
        if self.thinking > 1:
            return f"thinking={self.thinking} goes through all layers again; set thinking to 1"
        return super().no_part

    @property
    def draws_in_training(self) -> bool:
        """Dropout, or how often a token thinks."""
        return super().draws_in_training or self.thinking_drawn

    @property
    def whole_time(self) -> str | None:
        """Why time cannot be split over devices: thinking reads the state behind all that is written."""
        if self.thinking > 1:
            return f"model.thinking={self.thinking} reads the memory behind all tokens of a call"
        return super().whole_time

    def multiply_adds_per_token(self, length: int) -> int:
        """Those of BDH for one pass over all tokens. Each further pass of Q tokens that think costs 3·D·K + D·K for each state that is read, and
        Q·K for scores; without ``most_thinking`` every token pays for all passes."""
        once = super().multiply_adds_per_token(length)
        if self.thinking == 1:
            return once
        return once + math.ceil((self.thinking - 1) * self._thinkers(length) * self.thought(length) / length)

    def thought(self, length: int) -> int:
        """Multiply-adds of one further pass of one token that thinks, in a call of so many tokens."""
        reads = 2 if self.fast.enabled else 1
        return self.n_layer * self.n_neurons * (3 * self.d_model + reads * (self.d_model + self._thinkers(length)))

    def _thinkers(self, length: int) -> int:
        return length if self.most_thinking is None else min(self.most_thinking, length)

    def make_architecture(self) -> LatentArchitecture:
        """What it is made of."""
        return LatentArchitecture(self)

    def build(self, mesh: Any = None) -> Latent:
        """The model."""
        return Latent(self, mesh)


class Latent(BDH):
    """BDH that thinks on a frozen memory, as a pure function of (slow, fast, tokens).

    Attributes:
      config: :class:`LatentConfig`.
      mesh: device mesh of ``bdh_jax.parallel.mesh.make_mesh``; None computes on one device. It never changes the function.
    """

    config: LatentConfig  # pyright: ignore[reportIncompatibleVariableOverride] - modules are frozen, which Flax does not say


class Thinkers(NamedTuple):
    """The tokens of a call that think, in its last places.

    Attributes:
      at: [B, Q] their places in the call; others fill the row where there are fewer.
      think: [B, Q] bool, which of them think.
      behind: [B] bool, whether all of them are among these, and stand behind all that is written or reset.
      first: [B] int32, position of the first.
    """

    at: jax.Array
    think: jax.Array
    behind: jax.Array
    first: jax.Array


def thinkers(masks: Masks, end: jax.Array, shape: tuple[int, int], most: int) -> Thinkers:
    """Find the tokens that think.

    Args:
      masks: of the call, with ``write``.
      end: [B] int32, the position after its last token.
      shape: (B, T).
      most: how many may think at once, Q unless T is less.

    Returns:
      their places. Where more think than may, those that come first are named, and ``behind`` is False.
    """
    length = shape[1]
    valid = jnp.ones(shape, bool) if masks.valid is None else masks.valid
    write = jnp.ones(shape, bool) if masks.write is None else masks.write
    think = valid & ~write
    count = jnp.sum(think, axis=1, dtype=jnp.int32)
    begun = jnp.cumsum(think, axis=1) - think > 0
    disturbs = valid & write if masks.reset is None else (valid & write) | masks.reset
    behind = (count <= most) & ~jnp.any(begun & disturbs, axis=1)
    at = jnp.argsort(~think, axis=1, stable=True)[:, : min(most, length)]
    return Thinkers(at, jnp.take_along_axis(think, at, axis=1), behind, end - count)


class LatentArchitecture(BDHArchitecture):
    """What it is made of."""

    config: LatentConfig  # pyright: ignore[reportIncompatibleVariableOverride] - nobody sets it but __init__

    def activations(self, batch: int, length: int, parts: int) -> Activations | None:
        """Those of BDH; None where tokens think, which nobody declared."""
        return super().activations(batch, length, parts) if self.config.thinking == 1 else None

    def by_token(self, length: int) -> bool:
        """Whether a call of so many tokens goes token by token, as it does where tokens think in any order."""
        config = self.config
        return super().by_token(length) or (config.thinking > 1 and config.most_thinking is None)

    def draws(self, key: jax.Array, batch: int, length: int) -> jax.Array:
        """R of each token [B, T] int32; dropout masks of a model that does not think."""
        if not self.config.thinking_drawn:
            return super().draws(key, batch, length)
        return jax.random.randint(key, (batch, length), 1, self.config.thinking + 1)

    def draw_axes(self) -> tuple[str, ...]:
        """Logical axes of :meth:`draws`."""
        return ("batch", "time") if self.config.thinking_drawn else super().draw_axes()

    def layer_draws(self, draws: Any, index: int) -> Any:
        """Dropout masks of layer ``index``."""
        return None if self.config.thinking_drawn else super().layer_draws(draws, index)

    def layers(self, weights: Slow, inputs: Inputs, setup: Setup) -> tuple[jax.Array, Any, Any]:
        """Once through the layers with all tokens, then again with those that think, on the state that the first pass left."""
        config, masks, (batch, length, _) = self.config, inputs.masks, inputs.x.shape
        if config.thinking == 1 or masks.write is None:
            return super().layers(weights, inputs, setup)
        x, fast, found = super().layers(weights, inputs, setup._replace(final="full"))
        # Token by token a call of this function has one, which finds itself behind all that is written.
        who = thinkers(masks, fast.position, (batch, length), config.most_thinking or 1)
        thought = self._think(weights, jnp.take_along_axis(x, who.at[..., None], axis=1), fast, who, inputs.draws, setup)
        rows = jnp.arange(batch)[:, None]
        undefined = ~who.behind[:, None, None] & (~masks.write)[..., None]
        x = jnp.where(undefined, jnp.nan, x.at[rows, who.at].set(thought))
        return x, finish_state(fast, setup), found

    def _think(
        self, weights: Slow, x: jax.Array, fast: FastState, who: Thinkers, draws: jax.Array | None, setup: Setup
    ) -> jax.Array:
        """All passes but the first of the tokens at hand, [B, Q, D]."""
        frozen = fast.replace(position=who.first)
        again = Masks(valid=who.think, write=jnp.zeros_like(who.think))
        passes = None if draws is None else jnp.take_along_axis(draws, who.at, axis=1)
        inner = setup._replace(final="none", collect=())
        read = super().layers

        def once_more(x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            after, _, _ = read(weights, Inputs(x, frozen, again, None), inner)
            goes_on = who.think if passes is None else who.think & (number <= passes)
            return jnp.where(goes_on[..., None], after, x), None

        # A loop, so that thinking longer takes no longer to compile.
        return jax.lax.scan(once_more, x, jnp.arange(2, self.config.thinking + 1))[0]


CONFIG = LatentConfig
"""The entry of the table of models."""
