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

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdh_jax.config import require
from bdh_jax.fast_weights.state import Sizes, State, declare
from bdh_jax.models.base import Call, Setup
from bdh_jax.models.mixer import (
    MixerArchitecture,
    MixerConfig,
    Recurrent,
    Tokens,
    convolve,
    join_heads,
    linear,
    read_written,
    rms_norm,
    split_heads,
    with_axes,
)
from bdh_jax.types import Slow

TEMPER = 16
"""The root that is taken of σ, so that rows begin to forget slowly."""


@dataclasses.dataclass(frozen=True)
class GLAConfig(MixerConfig):
    """Gated linear attention (``bdh_jax.models.gla``)."""

    architecture: str = "gla"
    n_head: int = 2
    """H, matrices."""
    d_key: int = 16
    """N, width of a head's keys: the published layer has 1/2 of ``d_model`` over all heads."""
    d_value: int = 32
    """M, width of a head's values: the published layer has ``d_model`` over all heads."""
    gate_rank: int = 16
    """Rank of the map from x to the rates."""
    conv_size: int = 4
    """Tokens that the short convolution sees, its own among them; 0: there is none."""

    sized: ClassVar[tuple[str, ...]] = ("n_head", "d_key", "d_value", "gate_rank")

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


class GLAArchitecture(MixerArchitecture):
    """What gated linear attention is made of."""

    config: GLAConfig

    @property
    def _widths(self) -> tuple[int, int]:
        """Of the keys and values of all heads."""
        return self.config.n_head * self.config.d_key, self.config.n_head * self.config.d_value

    def mixer_weights(self) -> dict[str, Any]:
        """The maps, the convolution if there is one, the two of the rates, and the norm."""
        config, width, (keys, values) = self.config, self.config.d_model, self._widths
        conv = {"conv": self.convolution(config.conv_size, 2 * keys + values)} if config.conv_size else {}
        return {
            "in": self.dense(width, 2 * keys + values),
            **conv,
            "rates_in": self.dense(width, config.gate_rank),
            "rates_out": self.dense(config.gate_rank, keys, bias=True),
            "gate": self.dense(width, values),
            "norm": self.vector(config.d_value, nn.initializers.ones),
            "out": self.dense(values, width, last=True),
        }

    def mixer_state(self, sizes: Sizes) -> State:
        """S, and the last inputs of the convolution."""
        config, (keys, values) = self.config, self._widths
        lengths = {"head": config.n_head, "neuron": config.d_key, "wide": config.d_value}
        present = {"S", "past"} if config.conv_size else {"S"}
        return declare(Recurrent, with_axes(sizes, **lengths, slot=config.conv_size - 1, row=2 * keys + values), present)

    def mix(
        self, weights: Slow, x: jax.Array, state: Recurrent | None, call: Call, setup: Setup
    ) -> tuple[jax.Array, Recurrent]:
        """See :meth:`bdh_jax.models.mixer.MixerArchitecture.mix`."""
        config, (keys, _) = self.config, self._widths
        rows, past = linear(weights["in"], x), None
        if config.conv_size:
            rows, past = convolve(weights["conv"], rows, None if state is None else state.past, call)
            rows = jax.nn.silu(rows)
        query, key, value = (split_heads(part, config.n_head) for part in jnp.split(rows, (keys, 2 * keys), axis=-1))
        rates = linear(weights["rates_out"], linear(weights["rates_in"], x)).astype(config.state_dtype)
        decay = jnp.exp(jax.nn.log_sigmoid(split_heads(rates, config.n_head)) / TEMPER)
        tokens = Tokens(query / config.d_key**0.5, key, value, decay)
        read, after = read_written(tokens, None if state is None else state.S, call, final=setup.final)
        gate = split_heads(linear(weights["gate"], x), config.n_head)
        y = rms_norm(read.astype(x.dtype), weights["norm"]) * jax.nn.silu(gate)
        return linear(weights["out"], join_heads(y)), Recurrent(after, past)


CONFIG = GLAConfig
"""The entry of the table of models."""
