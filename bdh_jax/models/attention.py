"""Causal softmax attention with a short convolution: what recall is measured against.

    q, k, v = W x + b                                 q and k turned by their positions, unless ``rope_theta`` is None
    y = W_out softmax(q · k / √N) v + b               over the token itself and the ``window`` tokens written before it

It is the attention of the zoology library (``MHA``) in the frame of :mod:`bdh_jax.models.mixer`, whose gated convolution of three tokens
stands in every other layer, as there: two layers recall a pair by the token that follows its key. What a call carries on are keys and values of
the last ``window`` tokens; with a window as long as the episode it is full attention.

Axis letters: see :mod:`bdh_jax.types`; W is the window, N the width of a head.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.config import require
from bdh_jax.fast_weights.masks import Places
from bdh_jax.fast_weights.state import Sizes, State, array, declare
from bdh_jax.layers.convolution import in_order
from bdh_jax.layers.rotary import rope, rope_angles, rope_frequencies
from bdh_jax.models.base import Call, Inputs, Setup
from bdh_jax.models.mixer import MixerArchitecture, MixerConfig, join_heads, linear, split_heads, with_axes
from bdh_jax.types import Slow


@dataclasses.dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Softmax attention with a short convolution (``bdh_jax.models.attention``)."""

    architecture: str = "attention"
    gated_convolution: int = 3
    n_head: int = 2
    """H, heads of the attention."""
    window: int = 256
    """W, tokens before its own that a token sees, and that a state holds."""
    rope_theta: float | None = 10000.0
    """Base of the rotary wavelengths; None: attention knows no positions, as in the published comparison of recall."""

    sized: ClassVar[tuple[str, ...]] = ("n_head", "window")

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self.n_head if self.rope_theta is None else 2 * self.n_head
        require(
            self.d_model % parts == 0,
            f"d_model={self.d_model} is not divisible by {parts}: every head has a whole width, and with rotary positions an even one",
        )
        require(self.rope_theta is None or self.rope_theta > 1, f"rope_theta={self.rope_theta} must be greater than 1")

    def mixing(self, length: int) -> int:
        """2·D for each token of the call: all are scored, and masks leave some out."""
        return 2 * self.d_model * length

    def make_architecture(self) -> AttentionArchitecture:
        """What it is made of."""
        return AttentionArchitecture(self)


@flax.struct.dataclass
class Window(State):
    """What attention carries.

    Attributes:
      key: [B, W, D], turned by their positions, the newest last.
      value: likewise.
      there: [B, W, 1], 1 where a token was written.
    """

    key: jax.Array = array("batch", "slot", "model", dtype="compute")
    value: jax.Array = array("batch", "slot", "model", dtype="compute")
    there: jax.Array = array("batch", "slot", "level", dtype="bool")


class Seen(NamedTuple):
    """What every layer's attention needs.

    Attributes:
      own: [B or 1, 1, T, T] bool, which token of this call (last axis) each token sees.
      kept: [B or 1, 1, T, W] bool, which of the carried ones, if they are there.
      turn: cos and sin of the rotary phases, or None.
    """

    own: jax.Array
    kept: jax.Array
    turn: tuple[jax.Array, jax.Array] | None


class AttentionArchitecture(MixerArchitecture):
    """What softmax attention with a short convolution is made of."""

    config: AttentionConfig

    def mixer_weights(self) -> dict[str, Any]:
        """Two linear maps with biases."""
        width = self.config.d_model
        return {"in": self.dense(width, 3 * width, bias=True), "out": self.dense(width, width, last=True, bias=True)}

    def mixer_state(self, sizes: Sizes) -> State:
        """Keys and values of the last tokens."""
        return declare(Window, with_axes(sizes, slot=self.config.window, level=1))

    def shared(self, weights: Slow, inputs: Inputs, places: Places, setup: Setup) -> Seen:
        """Which tokens each token sees, and rotary phases."""
        del weights, setup
        config, masks, length = self.config, inputs.masks, inputs.x.shape[1]
        writes = jnp.ones((1, length), bool) if masks.writes is None else masks.writes
        before = jnp.cumsum(writes, axis=1) - writes
        episode = jnp.zeros((1, length), jnp.int32) if masks.reset is None else jnp.cumsum(masks.reset, axis=1)
        near = before[:, :, None] - before[:, None, :] <= config.window
        same = episode[:, :, None] == episode[:, None, :]
        # A token always sees itself, also one that is not written.
        eye = jnp.eye(length, dtype=bool)[None]
        own = eye | (jnp.tril(jnp.ones((length, length), bool))[None] & same & near & writes[:, None, :])
        back = config.window - jnp.arange(config.window)[None, None]
        kept = (before[:, :, None] + back <= config.window) & (episode == 0)[:, :, None]
        turn = None
        if config.rope_theta is not None:
            neurons = jnp.arange(config.d_model // config.n_head)
            frequencies = rope_frequencies(neurons, len(neurons), config.rope_theta, config.state_dtype)
            turn = rope_angles(places.position, neurons, frequencies)
        return Seen(own[:, None], kept[:, None], turn)

    def mix(self, weights: Slow, x: jax.Array, state: Window | None, call: Call, setup: Setup) -> tuple[jax.Array, Any]:
        """See :meth:`bdh_jax.models.mixer.MixerArchitecture.mix`."""
        config, seen = self.config, call.extra
        query, key, value = (split_heads(part, config.n_head) for part in jnp.split(linear(weights["in"], x), 3, axis=-1))
        if seen.turn is not None:
            query, key = rope(query, *seen.turn), rope(key, *seen.turn)
        own = (join_heads(key), join_heads(value))
        mask = seen.own
        if state is not None:
            mask = jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))
            mask = jnp.concatenate([seen.kept & state.there[:, None, None, :, 0], mask], axis=-1)
            key, value = (
                jnp.concatenate([split_heads(kept, config.n_head), part], axis=2)
                for kept, part in ((state.key, key), (state.value, value))
            )
        scores = jnp.einsum("bhtn,bhsn->bhts", query, key, preferred_element_type=config.state_dtype)
        scores = jnp.where(mask, scores / query.shape[-1] ** 0.5, -jnp.inf)
        share = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        y = linear(weights["out"], join_heads(jnp.einsum("bhts,bhsn->bhtn", share, value)))
        return y, None if setup.final == "none" else self._kept(own, state, call)

    def _kept(self, own: tuple[jax.Array, jax.Array], state: Window | None, call: Call) -> Window:
        """The last tokens that were written."""
        (key, value), width, masks = own, own[0].shape[-1], call.masks
        rows = jnp.concatenate([key, value, jnp.ones((*key.shape[:2], 1), key.dtype)], axis=-1)
        if state is None:
            before = jnp.zeros((rows.shape[0], self.config.window, rows.shape[-1]), rows.dtype)
        else:
            before = jnp.concatenate([state.key, state.value, state.there.astype(key.dtype)], axis=-1)
        last = in_order(rows, before, masks.writes, masks.reset).last
        return Window(last[..., :width], last[..., width:-1], last[..., -1:] > 0)


CONFIG = AttentionConfig
"""The entry of the table of models."""
