"""BDH with fast weights. :class:`BDH` declares the slow weights; the mathematics is in the plain functions below it.

One layer, applied L times with the same weights (arXiv 2509.26507 and its published code):

    code = relu(x @ encoder)                                   sparse, positive
    a    = LN(Σ_{s<t} μ^(t−s−1) (rope(code_t) · rope(code_s)) x_s)   linear attention, strictly past; μ = 1 unless configured
    gate = relu(a @ encoder_v)
    y    = LN((code * gate) @ decoder + r)
    x    = LN(x + y)

with r the read of the fast weights S (per layer and example, [H, N, D]):

    address a_t = norm(code_t)                                 or of code * gate, or of gate
    read    r_t = a_t @ (synapse + S_t)                        read before write
    write   S_{t+1} = λ S_t + η k_t ⊗ x_t                      k_t = a_{t−1}, or a_t; or another rule (fast_weights/rules.py)

Axis letters: B batch, T time, L layer, H head, N neurons per head, D model width, V vocabulary; K = H·N.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bdh_jax.config import ConfigError
from bdh_jax.fast_weights import state as fast_state
from bdh_jax.fast_weights.addresses import shift_to_previous
from bdh_jax.fast_weights.masks import episode_of, keep
from bdh_jax.fast_weights.memory import write_back
from bdh_jax.fast_weights.state import Activity, FastState, LayerState
from bdh_jax.kernels.fast_weight_scan import dispatch, fast_weight_scan
from bdh_jax.layers.projections import decode, encode, encode_by_head
from bdh_jax.layers.rotary import rope
from bdh_jax.models.config import BDHConfig
from bdh_jax.parallel import axes as sharding
from bdh_jax.parallel.axes import sum_over_shards, vary_like

LAYER_NORM_EPSILON = 1e-5
BY_NEURON, BY_WIDTH = ("code", "gate", "address"), ("decoded", "read")
COLLECTABLE = (*BY_NEURON, *BY_WIDTH)
StateKind = Literal["full", "none", "mean"]


@flax.struct.dataclass
class BDHOutput:
    """What one call of the model returns.

    Attributes:
      logits: [B, T, V], float32 or wider.
      fast: :class:`FastState` after the last token; None with ``state="none"``.
      activity: ``fast.activity``; None with ``state="none"`` or without fast weights.
      collected: name → [L, B, H, T, N], or [L, B, T, D] for "decoded" and "read", for each name in ``collect``.
    """

    logits: jax.Array
    fast: FastState | None
    activity: Activity | None
    collected: dict[str, jax.Array]


class BDH(nn.Module):
    """Dragon Hatchling language model with optional fast weights, as a pure function of (slow, fast, tokens).

    Attributes:
      config: :class:`BDHConfig`.
      mesh: device mesh of ``bdh_jax.parallel.axes.make_mesh``; None computes on one device. It never changes the function.
    """

    config: BDHConfig
    mesh: Mesh | None = None

    def setup(self) -> None:
        _check_machine(self.config, self.mesh)
        self._slow = self._slow_weights()

    def __call__(
        self,
        tokens: jax.Array,
        fast: FastState | None = None,
        *,
        valid: jax.Array | None = None,
        reset: jax.Array | None = None,
        state: StateKind = "full",
        collect: tuple[str, ...] = (),
        deterministic: bool = True,
    ) -> BDHOutput:
        """Process T tokens, from T = 1 (generation) to a whole prompt.

        Args:
          tokens: [B, T] integers in [0, V). Out-of-range ids raise when the values are known, that is outside ``jit``.
          fast: state to continue from; None starts an episode.
          valid: [B, T] bool. An invalid token does not write, decay, count, advance the position or become the previous
            address; its logits mean nothing. None: all valid.
          reset: [B, T] bool. A new episode starts at that token, as if from zeros. None: no resets.
          state: "full" returns the state after the last token; "none" forms none (training); "mean" returns the batch mean
            of the fast weights, for consolidation.
          collect: names to return for every layer and token: "code", "gate", "address", "decoded" (what the decoder makes of the
            gated code) and "read" (what fast weights and synapse add to that).
          deterministic: False applies dropout and needs ``rngs={"dropout": key}``.

        Returns:
          :class:`BDHOutput`.

        Raises:
          ValueError: for shapes, token ids, a state of another model, or names that do not fit; the message says which.
          ConfigError: for an implementation or kernel that cannot run here.
        """
        config = self.config
        tokens, valid, reset = (np.asarray(a) if isinstance(a, list | tuple) else a for a in (tokens, valid, reset))
        _check_arguments(config, tokens, fast, valid, reset, state, collect)
        slow = self._slow
        if state == "mean" and not config.fast.enabled:
            raise ValueError('state="mean" is the batch mean of the fast weights, and fast.enabled=False has none')

        x = jnp.asarray(slow["embed"], config.compute_dtype)[tokens]
        x = layer_norm(x)
        dropout_masks = None
        if config.dropout > 0 and not deterministic:
            # The mask has the global shape, so every mesh draws the same one.
            rows = (config.n_layer, tokens.shape[0], config.n_head, tokens.shape[1], config.neurons_per_head)
            dropout_masks = jax.random.bernoulli(self.make_rng("dropout"), 1 - config.dropout, rows)

        weights = {name: array for name, array in slow.items() if name not in ("embed", "lm_head")}
        x, fast, collected = _run_layers(
            weights, x, fast, valid, reset, dropout_masks, config=config, mesh=self.mesh, state=state, collect=tuple(collect)
        )
        logits = jnp.einsum(
            "btd,dv->btv", x, slow["lm_head"].astype(config.compute_dtype), preferred_element_type=config.state_dtype
        )
        return BDHOutput(logits=logits, fast=fast, activity=None if fast is None else fast.activity, collected=collected)

    def init_slow(self, key: jax.Array) -> dict[str, jax.Array]:
        """The slow weights to start from: ``init(key, tokens)["params"]`` for any tokens, without a pass through the model."""
        return self.init(key, method=lambda model: model._slow)["params"]

    def init_fast(self, batch_size: int) -> FastState:
        """The state at the start of an episode, for ``batch_size`` examples."""
        return fast_state.zeros(self.config, batch_size)

    def _slow_weights(self) -> dict[str, jax.Array]:
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        heads, neurons, width = config.n_head, config.neurons_per_head, config.d_model
        declare = self.param
        slow = {
            "embed": declare("embed", normal, (config.vocab_size, width), config.state_dtype),
            "encoder": declare("encoder", normal, (width, heads, neurons), config.state_dtype),
            "encoder_v": declare("encoder_v", normal, (heads, width, neurons), config.state_dtype),
            "decoder": declare("decoder", normal, (heads, neurons, width), config.state_dtype),
            "lm_head": declare("lm_head", normal, (width, config.vocab_size), config.state_dtype),
        }
        fast = config.fast
        if not fast.enabled:
            return slow
        if fast.synapse:
            shape = (config.memory_slots, heads, neurons, width)
            synapse = declare("synapse", nn.initializers.zeros, shape, config.state_dtype)
            slow["synapse"] = synapse if fast.train_synapse else jax.lax.stop_gradient(synapse)
        if fast.learn_learning_rate:
            start = nn.initializers.constant(math.log(fast.learning_rate))
            slow["fast_log_learning_rate"] = declare("fast_log_learning_rate", start, (heads,), config.state_dtype)
        if fast.gated:
            # σ(2) = 0.88: open at first, so that there is something to learn from.
            slow["fast_gate"] = declare("fast_gate", nn.initializers.zeros, (width,), config.state_dtype)
            slow["fast_gate_bias"] = declare("fast_gate_bias", nn.initializers.constant(2.0), (), config.state_dtype)
        if fast.learn_decay:
            start = nn.initializers.constant(math.log(fast.decay / (1 - fast.decay)))
            slow["fast_logit_decay"] = declare("fast_logit_decay", start, (heads,), config.state_dtype)
        return slow


def layer_norm(x: jax.Array) -> jax.Array:
    """Layer normalisation over the last axis without affine parameters; statistics in float32 or wider."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)).astype(x.dtype)


def _run_layers(weights, x, fast, valid, reset, dropout_masks, *, config, mesh, state, collect):
    """All layers over [B, T, D]; on a mesh inside ``jax.shard_map``, so that no collective moves an N-sized array."""
    form = _choose_form(config, x.shape[1])
    if form == "recurrent" and fast is None:
        fast = fast_state.zeros(config, x.shape[0])
    core = functools.partial(
        _recurrent if form == "recurrent" and x.shape[1] > 1 else _layers,
        config=config,
        form=form,
        state=state,
        collect=collect,
    )
    if mesh is None:
        return core(weights, x, fast, valid, reset, dropout_masks, axis=None)
    rows = P(None, "data", None, None, "neurons")
    collected = {name: rows if name in BY_NEURON else P(None, "data") for name in collect}
    final = jax.eval_shape(lambda: fast_state.zeros(config, 1))
    if state == "none":
        fast_specs = None
    elif state == "mean":
        fast_specs = sharding.specs(jax.eval_shape(lambda: _only_mean(fast_state.zeros(config, 1))), batched=False)
    else:
        fast_specs = sharding.specs(final)

    def on_shard(weights, x, *rest):
        # Here once, and not at every use of a weight, so that gradients cross the mesh once, summed over layers and tokens.
        weights = jax.tree.map(lambda weight: vary_like(weight, x), weights)
        return core(weights, x, *rest, axis="neurons")

    return jax.shard_map(
        on_shard,
        mesh=mesh,
        in_specs=(sharding.specs(weights), P("data"), sharding.specs(fast), P("data"), P("data"), rows),
        out_specs=(P("data"), fast_specs, collected),
        # JAX's kernel interpreter mixes indices that differ between shards with ones that do not, which the check refuses.
        check_vma=form != "pallas_interpret",
    )(weights, x, fast, valid, reset, dropout_masks)


def _recurrent(weights, x, fast, valid, reset, dropout_masks, *, config, form, state, collect, axis):
    """``jax.lax.scan`` over tokens with the fast state as its explicit carry; each token runs through all layers."""

    def step(fast, token):
        x, valid, reset, mask = token
        x, fast, collected = _layers(
            weights, x, fast, valid, reset, mask, config=config, form=form, state="full", collect=collect, axis=axis
        )
        return fast, (x[:, 0], {name: array[..., 0, :] for name, array in collected.items()})

    # Each token keeps a time axis of length 1; absent masks stay None.
    by_token = [
        None if array is None else jnp.moveaxis(array, time, 0)[..., None] if array.ndim == 2 else _time_first(array, time)
        for array, time in ((x, 1), (valid, 1), (reset, 1), (dropout_masks, 3))
    ]
    fast, (x, collected) = jax.lax.scan(step, fast, tuple(by_token))
    x = jnp.moveaxis(x, 0, 1)
    collected = {name: jnp.moveaxis(array, 0, array.ndim - 2) for name, array in collected.items()}
    return x, _finish(fast, state, axis), collected


def _time_first(array: jax.Array, time: int) -> jax.Array:
    return jnp.expand_dims(jnp.moveaxis(array, time, 0), time + 1)


def _layers(weights, x, fast, valid, reset, dropout_masks, *, config, form, state, collect, axis):
    """Layer after layer over the tokens at hand. With one token and a shared S this is also the shared form."""
    local_neurons = weights["encoder"].shape[-1]
    offset = 0 if axis is None else jax.lax.axis_index(axis) * local_neurons
    episode = episode_of(config, fast, valid, reset, x.shape, offset + jnp.arange(local_neurons))
    learning_rate, decay = _rates(weights, config)
    shared = config.fast.enabled and config.fast.scope == "shared"
    # What one layer writes to a shared S the next one reads, whatever the caller wants in the end.
    kept = "full" if config.shared_across_layers else state
    function = functools.partial(_layer, config=config, form=form, state=kept, axis=axis)

    states, collected = [], []
    shared_memory = fast.memory[0] if shared and fast is not None else None
    shared_gram = fast.gram[0] if shared and fast is not None and fast.gram is not None else None
    for index in range(config.n_layer):
        layer_state = fast_state.layer_state(fast, index)
        if shared:
            layer_state = layer_state._replace(memory=shared_memory, gram=shared_gram)
        synapse = weights["synapse"][0 if shared else index] if "synapse" in weights else None
        # A shared S decays, or is cleared, once a token, before the first layer writes.
        layer_decay = decay if index == 0 or not shared else 1.0
        layer = function
        if config.remat:
            # Rates that are numbers stay numbers, for which there are shorter ways.
            numbers = tuple(place for place, rate in ((6, learning_rate), (7, layer_decay)) if isinstance(rate, float))
            layer = jax.checkpoint(function, static_argnums=numbers)
        x, layer_state, seen = layer(
            weights,
            synapse,
            x,
            layer_state,
            None if dropout_masks is None else dropout_masks[index],
            episode,
            learning_rate,
            layer_decay,
            reset if index == 0 or not shared else None,
        )
        shared_memory, shared_gram = layer_state.memory, layer_state.gram
        states.append(layer_state)
        # On a mesh every shard has the part of its own neurons.
        collected.append({name: seen[name] if name in BY_NEURON else sum_over_shards(seen[name], axis) for name in collect})
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *collected) if collect else {}
    if state == "none":
        return x, None, stacked

    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[s._replace(memory=None, gram=None) for s in states])
    memory = gram = None
    if config.fast.enabled:
        memory = states[-1].memory[None] if shared else jnp.stack([s.memory for s in states])
    if shared_gram is not None or states[-1].gram is not None:
        gram = states[-1].gram[None] if shared else jnp.stack([s.gram for s in states])
    activity = None
    if config.fast.enabled:
        count = jnp.sum(episode.counted, axis=1)
        if fast is not None:
            count = count + keep(fast.activity.count, episode.continues)
        activity = Activity(strength=layers.strength, energy=layers.energy, count=count)
    result = FastState(
        attention=layers.attention,
        memory=memory,
        gram=gram,
        ridge=config.fast.state_ridge,
        previous_address=layers.previous_address,
        previous_code=layers.previous_code,
        position=episode.end_position,
        activity=activity,
    )
    return x, _only_mean(result, axis) if state == "mean" else result, stacked


def _layer(
    weights, synapse, x, layer_state, dropout_mask, episode, learning_rate, decay, memory_reset, *, config, form, state, axis
):
    """One layer over [B, T, D]. Returns the next x, the layer's next state and the arrays that probes may ask for."""
    fast, dtype = config.fast, config.compute_dtype
    encoder, encoder_v, decoder = (weights[name].astype(dtype) for name in ("encoder", "encoder_v", "decoder"))
    code = jax.nn.relu(encode(x, encoder))

    previous_code = None
    if config.attention == "rope":
        query = key = rope(code, episode.cos, episode.sin)
    else:
        query = code
        key, previous_code = shift_to_previous(code, layer_state.previous_code, episode.valid, episode.reset)
    attended, attention = fast_weight_scan(
        query,
        key,
        x,
        layer_state.attention,
        decay=_attention_decay(config),
        valid=episode.valid,
        reset=episode.reset,
        implementation=form,
        chunk_size=config.chunk_size,
        final="none" if state == "mean" else state,
    )
    attended = layer_norm(sum_over_shards(attended, axis)).astype(dtype)
    gate = jax.nn.relu(encode_by_head(attended, encoder_v))
    gated = code * gate
    if dropout_mask is not None:
        gated = jnp.where(dropout_mask, gated / (1 - config.dropout), jnp.zeros((), dtype))
    y = decode(gated, decoder, config.state_dtype)

    next_state = LayerState()
    seen = {"code": code, "gate": gate, "decoded": y}
    if fast.enabled:
        source = {"code": code, "gated": code * gate, "gate": gate}[fast.address_source]
        rates = dict(learning_rate=learning_rate, decay=decay, reset=memory_reset)
        seen["read"], seen["address"], next_state = write_back(
            weights, synapse, source, x, layer_state, episode, rates, config=config, form=form, state=state, axis=axis
        )
        y = y + seen["read"]
    next_state = next_state._replace(attention=attention, previous_code=previous_code)

    y = layer_norm(sum_over_shards(y, axis)).astype(dtype)
    return layer_norm(x + y), next_state, seen


def _attention_decay(config):
    """A float if it is the same for all heads, for which there are shorter ways."""
    decays = config.attention_decay
    return decays[0] if len(set(decays)) == 1 else jnp.asarray(decays, config.state_dtype)


def _rates(weights, config):
    learning_rate: Any = float(config.fast.learning_rate)
    decay: Any = float(config.fast.decay)
    if "fast_log_learning_rate" in weights:
        learning_rate = jnp.exp(weights["fast_log_learning_rate"])
    if "fast_logit_decay" in weights:
        decay = jax.nn.sigmoid(weights["fast_logit_decay"])
    return learning_rate, decay


def _finish(fast: FastState, state: StateKind, axis: str | None) -> FastState | None:
    """The state a caller asked for, from the full one."""
    if state == "none":
        return None
    return _only_mean(fast, axis) if state == "mean" else fast


def _only_mean(fast: FastState, axis: str | None = None) -> FastState:
    """Batch means of memory and activity, on every shard; nothing else."""

    def mean(array: jax.Array, batch_axis: int) -> jax.Array:
        array = jnp.mean(array, axis=batch_axis, keepdims=True)
        return array if axis is None else jax.lax.pmean(array, "data")

    activity = fast.activity
    return FastState(
        attention=None,
        memory=mean(fast.memory, 1),
        gram=None if fast.gram is None else mean(fast.gram, 1),
        ridge=fast.ridge,
        previous_address=None,
        previous_code=None,
        position=None,
        activity=Activity(mean(activity.strength, 1), mean(activity.energy, 1), mean(activity.count, 0)),
    )


def _choose_form(config: BDHConfig, length: int) -> str:
    """The form of ``fast_weight_scan`` that implementation and kernel stand for at this length."""
    implementation, kernel = config.implementation, config.kernel
    if config.shared_across_layers or config.memory_is_recurrent:
        implementation = "recurrent"
    if kernel in ("pallas", "pallas_interpret"):
        if config.shared_across_layers or config.memory_is_recurrent:
            raise ConfigError(
                f"kernel={kernel!r} is a chunked kernel, and fast.scope={config.fast.scope!r} with fast.rule={config.fast.rule!r} and the "
                'limits on S has the form token by token only; use kernel="xla" (or "auto")'
            )
        if implementation in ("recurrent", "parallel"):
            raise ConfigError(
                f"kernel={kernel!r} is a chunked kernel; it cannot run implementation={implementation!r}. "
                'Use implementation="chunked" or kernel="xla"'
            )
        return "recurrent" if implementation == "auto" and length == 1 else kernel
    if implementation == "auto":
        return dispatch.choose_form(length, config.d_model, config.chunk_size)
    return implementation


def _check_machine(config: BDHConfig, mesh: Mesh | None) -> None:
    if config.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError(
            'dtype="float64" needs JAX\'s 64-bit mode: set JAX_ENABLE_X64=1 in the environment, or call '
            'jax.config.update("jax_enable_x64", True) before any array is made'
        )
    _choose_form(config, 1)
    if mesh is None:
        return
    if config.fast.enabled and config.fast.has_gram and mesh.shape["neurons"] > 1:
        raise ConfigError(
            f'a mesh of {mesh.shape["neurons"]} over "neurons" splits the rows that fast.rule="mesa" and fast.keep_gram need together; '
            'spread over "data" only'
        )
    if config.attention == "rope" and config.neurons_per_head % (2 * mesh.shape["neurons"]):
        raise ConfigError(
            f'a mesh of {mesh.shape["neurons"]} over "neurons" does not split the {config.neurons_per_head} neurons of a head into even '
            "parts, and the rotary embedding pairs them"
        )


def _check_arguments(config, tokens, fast, valid, reset, state, collect) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens has shape {tokens.shape} and dtype {tokens.dtype}; it must be integers [B, T]")
    batch, length = tokens.shape
    if length < 1 or batch < 1:
        raise ValueError(f"tokens is empty, {tokens.shape}: B and T must be at least 1")
    if not isinstance(tokens, jax.core.Tracer):
        ids = np.asarray(tokens)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= config.vocab_size:
            bad = low if low < 0 else high
            raise ValueError(
                f"token id {bad} is outside the vocabulary of vocab_size={config.vocab_size}: ids are 0 … V − 1"
            )
    for name, mask in (("valid", valid), ("reset", reset)):
        if mask is not None and (mask.shape != (batch, length) or mask.dtype != bool):
            raise ValueError(f"{name} has shape {mask.shape} and dtype {mask.dtype}; it must be bool [{batch}, {length}]")
    if state not in ("full", "none", "mean"):
        raise ValueError(f"state={state!r} is not one of 'full', 'none', 'mean'")
    for name in collect:
        has = COLLECTABLE if config.fast.enabled else ("code", "gate", "decoded")
        if name not in has:
            raise ValueError(f"collect names {name!r}; this model can return {', '.join(has)}")
    if fast is not None:
        fast_state.check(fast, config, batch)
