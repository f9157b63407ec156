"""The neighbour of every BDH number: a GPT with layer norms before attention and MLP, rotary positions, and no biases.

    x = x + attention(LN(x))      softmax over the past and the token itself, queries and keys rotated
    x = x + MLP(LN(x))            gelu, ``width_factor`` times as wide
    logits = LN(x) @ lm_head

Axis letters: B batch, T time, H head, N width of a head, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bdh_jax.config import ConfigError
from bdh_jax.layers.rotary import rope, rope_angles
from bdh_jax.models.bdh import BDHOutput
from bdh_jax.models.config import GPTConfig


class GPT(nn.Module):
    """A GPT that is called like :class:`bdh_jax.BDH`, without a state to carry.

    Attributes:
      config: :class:`GPTConfig`.
      mesh: device mesh; sequences are spread over ``data``, weights are whole on every device.
    """

    config: GPTConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        fast: None = None,
        *,
        valid: jax.Array | None = None,
        reset: jax.Array | None = None,
        state: str = "none",
        collect: tuple[str, ...] = (),
        deterministic: bool = True,
    ) -> BDHOutput:
        """Process T tokens.

        Args:
          tokens: [B, T] integers in [0, V).
          fast: None; a GPT keeps nothing.
          valid: [B, T] bool. An invalid token is not attended to and does not advance the position; its logits mean nothing.
          reset: [B, T] bool. A new document starts at that token: nothing before it is seen.
          state: "none".
          collect: (); there is nothing to collect.
          deterministic: False applies dropout and needs ``rngs={"dropout": key}``.

        Returns:
          :class:`bdh_jax.BDHOutput` with ``logits`` [B, T, V] and nothing else.

        Raises:
          ValueError: for a state or names to collect.
          ConfigError: for float64 without JAX's 64-bit mode.
        """
        config = self.config
        if fast is not None or state != "none" or collect:
            raise ValueError(
                f"a GPT has no fast state and collects nothing, but fast, state={state!r} or collect={collect} asks for it"
            )
        if config.dtype == "float64" and not jax.config.jax_enable_x64:
            raise ConfigError('dtype="float64" needs JAX\'s 64-bit mode: set JAX_ENABLE_X64=1 in the environment')
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        document = jnp.zeros(tokens.shape, jnp.int32) if reset is None else jnp.cumsum(reset, axis=1)
        before = jnp.cumsum(valid, axis=1) - valid
        start = 0 if reset is None else jax.lax.cummax(jnp.where(reset, before, 0), axis=1)
        past = jnp.tril(jnp.ones((tokens.shape[1], tokens.shape[1]), bool))
        same = document[:, :, None] == document[:, None, :]
        # A token always sees itself, so that a row of padding has something to be normalised over.
        seen = past[None] & same & (valid[:, None, :] | jnp.eye(tokens.shape[1], dtype=bool)[None])
        width = config.d_model // config.n_head
        cos, sin = rope_angles(before - start, jnp.arange(width), width, config.rope_theta, config.state_dtype)

        x = nn.Embed(
            config.vocab_size,
            config.d_model,
            dtype=config.compute_dtype,
            param_dtype=config.state_dtype,
            embedding_init=nn.initializers.normal(config.init_std),
            name="embed",
        )(tokens)
        x = nn.Dropout(config.dropout)(x, deterministic=deterministic)
        block = nn.remat(_Block, static_argnums=(5,)) if config.remat else _Block
        for index in range(config.n_layer):
            x = block(config, name=f"layer{index}")(x, cos, sin, seen[:, None], deterministic)
        x = _layer_norm(config, "norm")(x)
        logits = _dense(config, config.vocab_size, "lm_head")(x)
        return BDHOutput(logits=logits.astype(config.state_dtype), fast=None, activity=None, collected={})

    def init_slow(self, key: jax.Array) -> dict[str, Any]:
        """The weights to start from: ``init(key, tokens)["params"]`` for any tokens."""
        rows = 1 if self.mesh is None else self.mesh.shape["data"]
        return self.init(key, jnp.zeros((rows, 1), jnp.int32))["params"]


class _Block(nn.Module):
    config: GPTConfig

    @nn.compact
    def __call__(self, x, cos, sin, seen, deterministic: bool):
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        # Parts that end in the residual start smaller, as in GPT-2: their sum then does not grow with the number of layers.
        last = config.init_std / (2 * config.n_layer) ** 0.5
        batch, length, width = x.shape
        heads = (batch, length, 3, config.n_head, width // config.n_head)
        query, key, value = jnp.moveaxis(
            _dense(config, 3 * width, "attention_in")(_layer_norm(config, "attention_norm")(x)).reshape(heads), 2, 0
        )
        query, key = (rope(part.swapaxes(1, 2), cos, sin).swapaxes(1, 2) for part in (query, key))
        attended = jax.nn.dot_product_attention(query, key, value, mask=seen).reshape(x.shape)
        x = x + drop(_dense(config, width, "attention_out", last)(attended))
        hidden = _dense(config, config.width_factor * width, "mlp_in")(_layer_norm(config, "mlp_norm")(x))
        return x + drop(_dense(config, width, "mlp_out", last)(jax.nn.gelu(hidden)))


def _dense(config: GPTConfig, features: int, name: str, init_std: float | None = None) -> Any:
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.compute_dtype,
        param_dtype=config.state_dtype,
        kernel_init=nn.initializers.normal(config.init_std if init_std is None else init_std),
        name=name,
    )


def _layer_norm(config: GPTConfig, name: str) -> Any:
    return nn.LayerNorm(use_bias=False, dtype=config.compute_dtype, param_dtype=config.state_dtype, name=name)
