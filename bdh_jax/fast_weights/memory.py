"""One layer's fast weights over a stretch of tokens: read them, write them, and count what was used.

Axis letters: B batch, T time, H head, N neurons per head, D model width; K = H·N.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.addresses import address_scale, address_source, shift_to_previous
from bdh_jax.fast_weights.masks import Episode, keep
from bdh_jax.fast_weights.rules import tokenwise as rules
from bdh_jax.fast_weights.state import LayerState
from bdh_jax.kernels.fast_weight_scan import fast_weight_scan
from bdh_jax.kernels.fast_weight_scan.xla import weights as weights_of_stretch
from bdh_jax.layers.projections import decode
from bdh_jax.models.config import BDHConfig
from bdh_jax.parallel.axes import sum_over_shards


def write_back(
    weights: dict[str, jax.Array],
    synapse: jax.Array | None,
    source: jax.Array,
    x: jax.Array,
    layer_state: LayerState,
    episode: Episode,
    rates: dict[str, Any],
    *,
    config: BDHConfig,
    form: str,
    state: str,
    axis: str | None,
) -> tuple[jax.Array, jax.Array, LayerState]:
    """Read S at every token, then write to it.

    Args:
      weights: slow weights by name; those of the gate are used.
      synapse: [H, N, D], read beside S, or None.
      source: [B, H, T, N], what becomes the address.
      x: [B, T, D], the layer's input, which is what is written.
      layer_state: S and what goes with it before the first token.
      episode: masks of the call.
      rates: ``learning_rate``, ``decay`` and ``reset`` of :func:`fast_weight_scan`.
      config: the model's configuration.
      form: of :func:`fast_weight_scan`.
      state: "full", "mean" or "none": what is wanted of the state after the last token.
      axis: name of the mesh axis that N is split over, inside ``jax.shard_map``.

    Returns:
      read [B, T, D], which is added to the layer's output (on a mesh the part of the rows at hand); address [B, H, T, N]; and the
      layer's state after the last token, without that of the attention.
    """
    source = address_source(source, config.fast.address_norm, config.fast.address_active, axis)
    scale = address_scale(source, config.fast.address_norm, axis)
    beta = _gate(weights, x, config) if config.fast.gated else None
    write = _write_hebbian if config.fast.hebbian else _write_by_rule
    key, value, read, memory, gram, previous_address = write(
        beta, synapse, source, scale, x, layer_state, episode, rates, config=config, form=form, state=state, axis=axis
    )
    if config.fast.keep_gram and gram is None and state != "none":
        gram = _gram(beta, source, scale, layer_state, episode, rates, config)
    if synapse is not None:
        read = read + scale[:, 0] * decode(source, synapse.astype(config.compute_dtype), config.state_dtype)
    strength = energy = None
    if state != "none":
        strength, energy = _activity(source, scale, key, value, beta, rates["learning_rate"], layer_state, episode)
    address = (source * scale).astype(config.compute_dtype)
    next_state = LayerState(memory=memory, gram=gram, previous_address=previous_address, strength=strength, energy=energy)
    return read, address, next_state


def _gate(weights, x, config):
    """β [B, T], how much of each token is written."""
    x = jax.lax.stop_gradient(x) if config.fast.write_gradient == "stop" else x
    return jax.nn.sigmoid(x.astype(config.state_dtype) @ weights["fast_gate"] + weights["fast_gate_bias"])


def _write_hebbian(beta, synapse, source, scale, x, layer_state, episode, rates, *, config, form, state, axis):
    """Read S and write k ⊗ x, or β k ⊗ x. Returns what :func:`_write_by_rule` does."""
    del synapse, axis
    fast, dtype = config.fast, config.compute_dtype
    # An address is its source times one factor per token. The factors are applied where the arrays are D wide: the key's to the
    # written value, the query's to the read.
    key, key_scale, previous_address = source, scale, None
    if fast.address == "previous":
        carried = layer_state.previous_address
        key, last = shift_to_previous(source, carried, episode.valid, episode.reset)
        carried = None if carried is None else jnp.ones_like(scale[:, :, 0])
        key_scale, last_scale = shift_to_previous(scale, carried, episode.valid, episode.reset)
        previous_address = (last * last_scale).astype(dtype)
    value = (x * key_scale[:, 0]).astype(dtype)
    if fast.write_gradient == "stop":
        key, value = jax.lax.stop_gradient((key, value))
    read, memory = fast_weight_scan(
        source,
        key,
        value if beta is None else (value * beta[..., None]).astype(dtype),
        layer_state.memory,
        **rates,
        limits=_limits(config),
        valid=episode.valid,
        implementation=form,
        chunk_size=config.chunk_size,
        final=state,
        sum_heads=True,
    )
    return key, value, scale[:, 0] * read, memory, None, previous_address


def _write_by_rule(beta, synapse, source, scale, x, layer_state, episode, rates, *, config, form, state, axis):
    """Read S and write to it by another rule than the Hebbian, whose products of k and x do not let factors be moved.

    Returns:
      key [B, H, T, N] and value [B, T, D] of the Hebbian write, the read [B, T, D], the next memory and gram, and the address to
      carry on [B, H, N].
    """
    fast, dtype = config.fast, config.compute_dtype
    address = (source * scale).astype(dtype)
    key, previous_address = address, None
    if fast.address == "previous":
        key, previous_address = shift_to_previous(address, layer_state.previous_address, episode.valid, episode.reset)
    value = x
    if fast.write_gradient == "stop":
        key, value = jax.lax.stop_gradient((key, value))
    error = value
    if synapse is not None and fast.predicts_values:
        # What the synapse knows already is not written.
        known = sum_over_shards(decode(key, synapse.astype(dtype), config.state_dtype), axis)
        error = value.astype(config.state_dtype) - known
    if fast.rule == "mesa":
        read, memory, gram = _mesa(address, key, error, layer_state, episode, rates, fast.ridge)
        return key, value, read, memory, gram, previous_address
    read, memory = fast_weight_scan(
        address,
        key,
        error,
        layer_state.memory,
        **rates,
        limits=_limits(config),
        valid=episode.valid,
        # The kernel knows the Hebbian rule only; it still runs the attention.
        implementation="chunked" if form.startswith("pallas") else form,
        chunk_size=config.chunk_size,
        rule=fast.rule,
        gate=beta,
        axis=axis,
        final=state,
        sum_heads=True,
    )
    return key, value, read, memory, None, previous_address


def _gram(beta, source, scale, layer_state, episode, rates, config):
    """The sum of k ⊗ k, or β k ⊗ k, after the last token, [B, K, K]."""
    dtype = config.state_dtype
    key = (source * scale).astype(config.compute_dtype)
    if config.fast.address == "previous":
        key, _ = shift_to_previous(key, layer_state.previous_address, episode.valid, episode.reset)
    if config.fast.write_gradient == "stop":
        key = jax.lax.stop_gradient(key)
    batch, _, length, _ = key.shape
    key = jnp.swapaxes(key, 1, 2).reshape(batch, length, -1).astype(dtype)
    # A shared S decays, and is cleared, with the first layer of a token only, and so does this.
    log_decay = None if rates["decay"] == 1 else jnp.log(jnp.asarray(rates["decay"], dtype))
    weight = weights_of_stretch(length, dtype, log_decay, episode.valid, rates["reset"])
    written = jnp.broadcast_to(weight.written.reshape(-1, length), (batch, length))
    written = written if beta is None else written * beta
    gram = rates["learning_rate"] * jnp.einsum("bt,btk,btl->bkl", written, key, key)
    if layer_state.gram is not None:
        gram = gram + jnp.broadcast_to(weight.kept.reshape(-1, 1, 1), (batch, 1, 1)) * layer_state.gram
    return gram


def _mesa(address, key, value, layer_state, episode, rates, ridge):
    """Rule "mesa" at one token; arguments as in :func:`_write_by_rule`. Returns read [B, 1, D], memory and gram."""
    memory, gram = layer_state.memory, layer_state.gram
    if rates["reset"] is not None:
        cleared = rates["reset"][:, 0, None, None]
        memory = jnp.where(cleared[..., None], jnp.zeros((), memory.dtype), memory)
        gram = jnp.where(cleared, jnp.zeros((), gram.dtype), gram)
    options = dict(learning_rate=rates["learning_rate"], decay=rates["decay"], ridge=ridge)
    read, next_memory, next_gram = rules.mesa(memory, gram, address[:, :, 0], key[:, :, 0], value, **options)
    if episode.valid is not None:
        counts = episode.valid[:, :, None]
        next_memory = jnp.where(counts[..., None], next_memory, memory)
        next_gram = jnp.where(counts, next_gram, gram)
    return jnp.sum(read, axis=1, keepdims=True), next_memory, next_gram


def _limits(config: BDHConfig) -> dict[str, float | None] | None:
    return config.fast.limits if config.fast.limited else None


def _activity(source, scale, key, value, beta, learning_rate, layer_state, episode):
    """Strength and energy of one layer's rows, [B, H, N] each, over this call and the episode's earlier ones."""
    dtype = episode.counted.dtype
    # Addresses of norm "centred" have both signs, and how much a row was used has not.
    strength = jnp.einsum("bhtn,bt->bhn", jnp.abs(source).astype(dtype), episode.counted * scale[:, 0, :, 0])
    size = episode.counted * jnp.sum(jnp.square(value.astype(dtype)), axis=-1)
    size = size if beta is None else size * jnp.square(beta.astype(dtype))
    rate = jnp.asarray(learning_rate, dtype).reshape(-1, 1)
    energy = jnp.square(rate)[None] * jnp.einsum("bhtn,bt->bhn", jnp.square(key.astype(dtype)), size)
    if layer_state.strength is not None:
        strength = strength + keep(layer_state.strength, episode.continues)
        energy = energy + keep(layer_state.energy, episode.continues)
    return strength, energy
