"""Gated linear attention (arXiv 2312.06635): a matrix each of whose rows forgets at a rate of its own.

    q, k, v = silu(conv(W x))                         a short convolution over each channel; q ÷ √N
    λ = σ(W_2 W_1 x + b)^(1/16)                       [H·N], one number for each row and token
    S ← diag(λ) S + k ⊗ v
    y = W_out (RMSNorm(Sᵀ q) · silu(W_gate x))        the norm over each head's M numbers

It is the layer of the flash-linear-attention library (``GatedLinearAttention``) in the frame of :mod:`bdh_jax.models.mixer`. Without
``conv_size`` there is neither convolution nor silu, which is that library's default.

Axis letters: see :mod:`bdh_jax.types`; N is the width of a head's keys, M that of its values.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bdh_jax.config import require
from bdh_jax.models.base import Call, Setup
from bdh_jax.models.mixer import HeadsArchitecture, HeadsConfig, Recurrent, Tokens, linear, read_written, split_heads
from bdh_jax.types import Slow

TEMPER = 16
"""The root that is taken of σ, so that rows begin to forget slowly."""


@dataclasses.dataclass(frozen=True)
class GLAConfig(HeadsConfig):
    """Gated linear attention (``bdh_jax.models.gla``). The published layer has 1/2 of ``d_model`` for the keys of all heads, and ``d_model``
    for their values. Without a convolution ``conv_size`` is 0."""

    architecture: str = "gla"
    gate_rank: int = 16
    """Rank of the map from x to the rates."""

    sized: ClassVar[tuple[str, ...]] = (*HeadsConfig.sized, "gate_rank")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.conv_size >= 0, f"conv_size={self.conv_size} must be at least 0")

    def mixing(self, length: int) -> int:
        """2·N·M a head: to read and to write."""
        del length
        return 2 * self.n_head * self.d_key * self.d_value

    def make_architecture(self) -> GLAArchitecture:
        """What it is made of."""
        return GLAArchitecture(self)


class GLAArchitecture(HeadsArchitecture):
    """What gated linear attention is made of."""

    config: GLAConfig

    def mixer_weights(self) -> dict[str, Any]:
        """Those of the heads, and the two maps of the rates."""
        config = self.config
        return self.heads_weights(
            rates_in=self.dense(config.d_model, config.gate_rank),
            rates_out=self.dense(config.gate_rank, config.widths[0], bias=True),
        )

    def mix(
        self, weights: Slow, x: jax.Array, state: Recurrent | None, call: Call, setup: Setup
    ) -> tuple[jax.Array, Recurrent]:
        """See :meth:`bdh_jax.models.mixer.MixerArchitecture.mix`."""
        config = self.config
        (query, key, value), past = self.heads_in(weights, x, state, call)
        rates = linear(weights["rates_out"], linear(weights["rates_in"], x)).astype(config.state_dtype)
        decay = jnp.exp(jax.nn.log_sigmoid(split_heads(rates, config.n_head)) / TEMPER)
        tokens = Tokens(query / config.d_key**0.5, key, value, decay)
        read, after = read_written(tokens, None if state is None else state.S, call, final=setup.final)
        return self.heads_out(weights, x, read), Recurrent(after, past)


CONFIG = GLAConfig
"""The entry of the table of models."""
