"""Gated DeltaNet (arXiv 2412.06464): a matrix that forgets by a gate and writes what it does not predict yet.

    q, k, v = silu(conv(W x))                         a short convolution over each channel; q and k of length 1, q ÷ √N
    λ = exp(−exp(a) · softplus(W_λ x + dt)),  β = σ(W_β x)      one number for each head and token
    S ← λ S + β k ⊗ (v − λ Sᵀ k)
    y = W_out (RMSNorm(Sᵀ q) · silu(W_gate x))        the norm over each head's M numbers

It is the layer of the flash-linear-attention library (``GatedDeltaNet``) in the frame of :mod:`bdh_jax.models.mixer`. What is written is the
rule ``gated_delta`` of :mod:`bdh_jax.fast_weights.rules`, one memory a head.

Axis letters: see :mod:`bdh_jax.types`; N is the width of a head's keys, M that of its values.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bdh_jax.config import require_choice
from bdh_jax.config.identity import HOW
from bdh_jax.models.base import Call, Setup
from bdh_jax.models.mixer import (
    HeadsArchitecture,
    HeadsConfig,
    Implementation,
    Recurrent,
    Tokens,
    linear,
    log_of_uniform,
    read_written,
    timescale,
)
from bdh_jax.types import Slow

UNIT_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetConfig(HeadsConfig):
    """Gated DeltaNet (``bdh_jax.models.gated_deltanet``). The published layer has 3/4 of ``d_model`` for the keys of all heads, and 3/2 of it
    for their values."""

    architecture: str = "gated_deltanet"
    d_key: int = 24
    """N, width of a head's keys."""
    d_value: int = 48
    """M, width of a head's values."""
    implementation: Implementation = dataclasses.field(default="auto", metadata=HOW)
    """Form of the scan; never changes the function."""

    sized: ClassVar[tuple[str, ...]] = (*HeadsConfig.sized, "conv_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("implementation", self.implementation, Implementation)

    def mixing(self, length: int) -> int:
        """3·N·M a head: to read, to predict and to write."""
        del length
        return 3 * self.n_head * self.d_key * self.d_value

    def make_architecture(self) -> GatedDeltaNetArchitecture:
        """What it is made of."""
        return GatedDeltaNetArchitecture(self)


class GatedDeltaNetArchitecture(HeadsArchitecture):
    """What a gated DeltaNet is made of."""

    config: GatedDeltaNetConfig

    def mixer_weights(self) -> dict[str, Any]:
        """Those of the heads, the map to λ and β, and a and dt of each head."""
        config = self.config
        return self.heads_weights(
            rates=self.dense(config.d_model, 2 * config.n_head),
            a=self.vector(config.n_head, log_of_uniform(0.01, 16)),
            dt=self.vector(config.n_head, timescale()),
        )

    def mix(
        self, weights: Slow, x: jax.Array, state: Recurrent | None, call: Call, setup: Setup
    ) -> tuple[jax.Array, Recurrent]:
        """See :meth:`bdh_jax.models.mixer.MixerArchitecture.mix`."""
        config = self.config
        (query, key, value), past = self.heads_in(weights, x, state, call)
        write, forget = jnp.split(linear(weights["rates"], x).astype(config.state_dtype).swapaxes(1, 2), 2, axis=1)
        rate, step = (weights[name][None, :, None] for name in ("a", "dt"))
        decay = jnp.exp(-jnp.exp(rate) * jax.nn.softplus(forget + step))
        query, key = _unit(query) / config.d_key**0.5, _unit(key)
        read, after = read_written(
            Tokens(query, key, value, decay[..., None], gate=jax.nn.sigmoid(write)),
            None if state is None else state.S,
            call,
            implementation=config.implementation,
            final=setup.final,
        )
        return self.heads_out(weights, x, read), Recurrent(after, past)


def _unit(rows: jax.Array) -> jax.Array:
    """Rows of length 1."""
    wide = rows.astype(jnp.promote_types(jnp.float32, rows.dtype))
    return (wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True) + UNIT_EPSILON)).astype(rows.dtype)


CONFIG = GatedDeltaNetConfig
"""The entry of the table of models."""
