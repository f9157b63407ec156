"""Mamba-2 (arXiv 2405.21060): state-space duality, a matrix that each head forgets at a rate chosen by the token.

    z, (x, B, C), dt = W_in u;  x, B, C = silu(conv(x, B, C))      one B and C for all heads
    Δ = softplus(dt + b),  λ = exp(−exp(a) Δ)                      one number for each head and token
    S ← λ S + B ⊗ Δ x
    y = W_out RMSNorm((Sᵀ C + d x) · silu(z))                      the norm over all heads at once

It is the layer of the mamba_ssm library (``Mamba2`` with one group) in the frame of :mod:`bdh_jax.models.mixer`. C is what reads and B what is
written under: query and key.

Axis letters: see :mod:`bdh_jax.types`; N is ``d_state``, M the width of a head.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdh_jax.config import require, require_choice
from bdh_jax.config.identity import HOW
from bdh_jax.fast_weights.state import Sizes, State, declare
from bdh_jax.models.base import Call, Setup
from bdh_jax.models.mixer import (
    Implementation,
    MixerArchitecture,
    MixerConfig,
    Recurrent,
    Tokens,
    convolve,
    join_heads,
    linear,
    log_of_uniform,
    read_written,
    rms_norm,
    split_heads,
    timescale,
    with_axes,
)
from bdh_jax.types import Slow


@dataclasses.dataclass(frozen=True)
class Mamba2Config(MixerConfig):
    """Mamba-2 (``bdh_jax.models.mamba2``)."""

    architecture: str = "mamba2"
    d_state: int = 64
    """N, rows of a head's matrix."""
    expand: int = 2
    """Width of all heads, in ``d_model``."""
    d_head: int = 32
    """M, width of a head."""
    conv_size: int = 4
    """Tokens that the short convolution sees, its own among them."""
    implementation: Implementation = dataclasses.field(default="auto", metadata=HOW)
    """Form of the scan; never changes the function."""

    sized: ClassVar[tuple[str, ...]] = ("d_state", "expand", "d_head", "conv_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.inner % self.d_head == 0,
            f"d_head={self.d_head} does not divide expand · d_model = {self.inner}; change one of them",
        )
        require_choice("implementation", self.implementation, Implementation)

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.expand * self.d_model

    @property
    def n_head(self) -> int:
        """H."""
        return self.inner // self.d_head

    def mixing(self, length: int) -> int:
        """2·N for each number of a head: to read and to write."""
        del length
        return 2 * self.d_state * self.inner

    def make_architecture(self) -> Mamba2Architecture:
        """What it is made of."""
        return Mamba2Architecture(self)


class Mamba2Architecture(MixerArchitecture):
    """What a Mamba-2 is made of."""

    config: Mamba2Config

    def mixer_weights(self) -> dict[str, Any]:
        """The maps, the convolution, a, d and dt of each head, and the norm."""
        config, width = self.config, self.config.d_model
        convolved = config.inner + 2 * config.d_state
        return {
            "in": self.dense(width, config.inner + convolved + config.n_head),
            "conv": self.convolution(config.conv_size, convolved, bias=True),
            "a": self.vector(config.n_head, log_of_uniform(1, 16)),
            "d": self.vector(config.n_head, nn.initializers.ones),
            "dt": self.vector(config.n_head, timescale()),
            "norm": self.vector(config.inner, nn.initializers.ones),
            "out": self.dense(config.inner, width, last=True),
        }

    def mixer_state(self, sizes: Sizes) -> State:
        """S and the last inputs of the convolution."""
        config = self.config
        lengths = {"head": config.n_head, "neuron": config.d_state, "wide": config.d_head}
        past = {"slot": config.conv_size - 1, "row": config.inner + 2 * config.d_state}
        present = {"S", "past"} if config.conv_size > 1 else {"S"}
        return declare(Recurrent, with_axes(sizes, **lengths, **past), present)

    def mix(
        self, weights: Slow, x: jax.Array, state: Recurrent | None, call: Call, setup: Setup
    ) -> tuple[jax.Array, Recurrent]:
        """See :meth:`bdh_jax.models.mixer.MixerArchitecture.mix`."""
        config, inner, rows = self.config, self.config.inner, self.config.d_state
        gate, rest, step = jnp.split(linear(weights["in"], x), (inner, 2 * inner + 2 * rows), axis=-1)
        rest, past = convolve(weights["conv"], rest, None if state is None else state.past, call)
        value, key, query = jnp.split(jax.nn.silu(rest), (inner, inner + rows), axis=-1)
        value = split_heads(value, config.n_head)
        shape = (*value.shape[:3], rows)
        key, query = (jnp.broadcast_to(part[:, None], shape) for part in (key, query))
        rate, skip, bias = (weights[name][None, :, None, None] for name in ("a", "d", "dt"))
        step = jax.nn.softplus(split_heads(step, config.n_head).astype(config.state_dtype) + bias)
        read, after = read_written(
            Tokens(query, key, (step * value).astype(x.dtype), decay=jnp.exp(-jnp.exp(rate) * step)),
            None if state is None else state.S,
            call,
            implementation=config.implementation,
            final=setup.final,
        )
        y = join_heads((read + skip * value).astype(x.dtype))
        return linear(weights["out"], rms_norm(y * jax.nn.silu(gate), weights["norm"])), Recurrent(after, past)


CONFIG = Mamba2Config
"""The entry of the table of models."""
