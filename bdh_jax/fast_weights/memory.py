"""One layer's fast weights over a stretch of tokens: read them, write them, and count what was used.

    address a_t = norm(code_t)
    read    r_t = a_t @ (synapse + S_t)                read before write
    write   S_{t+1} = λ S_t + η k_t ⊗ x_t              k_t = a_{t−1} or a_t; or another rule (bdh_jax.fast_weights.rules)

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.addresses import address_code, address_scale, carried_over, scores_of_previous, shift_to_previous
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.fast_weights.masks import Masks, Places, keep
from bdh_jax.fast_weights.rules import scan_rule
from bdh_jax.fast_weights.rules.base import Rule
from bdh_jax.fast_weights.state import LayerState, Memory, RecentWrites, RuleState, Use
from bdh_jax.kernels import token_step
from bdh_jax.kernels.fast_weight_scan import fast_weight_scan, own_scores
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Final, Stretch
from bdh_jax.kernels.fast_weight_scan.dispatch import Form
from bdh_jax.kernels.fast_weight_scan.stretch import coefficients, safe_log
from bdh_jax.layers.projections import decode
from bdh_jax.parallel.collectives import ShardAxes


class MemoryWeights(NamedTuple):
    """The slow weights that one layer's fast weights use.

    Attributes:
      synapse: [H, N, D], read beside S, or None.
      learning_rate: η for each head [H] where it is learned; None for the configuration's.
      decay: λ, likewise.
      rule: the write rule's own, by its names for them.
    """

    synapse: jax.Array | None = None
    learning_rate: jax.Array | None = None
    decay: jax.Array | None = None
    rule: Mapping[str, jax.Array] = {}


class MemorySetup(NamedTuple):
    """What is the same for all layers and tokens of a call, and known before anything is computed.

    Attributes:
      config: of the fast weights.
      form: of :func:`fast_weight_scan`.
      chunk_size: of its chunked forms.
      final: what is wanted of the state after the last token: "full", "mean" (over the batch) or "none".
      dtype: of codes and of what is computed.
      state_dtype: of S.
      axes: of the mesh.
      first: whether this layer is the first that uses S at a token. A shared S decays, and is cleared, with the first layer only.
      budget: rows of S and of the synapse that are read at most where writes wait in slots; None for all.
    """

    config: FastWeightConfig
    form: Form
    chunk_size: int
    final: Final
    dtype: Any
    state_dtype: Any
    axes: ShardAxes
    first: bool = True
    budget: int | None = None

    @property
    def rule(self) -> Rule:
        """The write rule."""
        return self.config.rule_entry

    def dynamics(self, weights: MemoryWeights) -> Dynamics:
        """η and λ. Numbers stay numbers, for which there are shorter ways."""
        learning_rate = float(self.config.learning_rate) if weights.learning_rate is None else weights.learning_rate
        decay = float(self.config.decay) if weights.decay is None else weights.decay
        return Dynamics(learning_rate, decay if self.first else 1.0)


class Call(NamedTuple):
    """What all layers of one call share: masks, and where the tokens stand.

    Attributes:
      masks: as given.
      places: what follows from them.
    """

    masks: Masks
    places: Places


class Address(NamedTuple):
    """A layer's addresses, as a code and what each token's is multiplied by: the factor is applied where arrays are D wide.

    Attributes:
      code: [B, H, T, N].
      scale: [B, 1, T, 1], float32 or wider.
      scores: of the codes among themselves, [B, H, T, T], where the write takes them; [B, 1, T, T] where heads have the same rates.
    """

    code: jax.Array
    scale: jax.Array
    scores: jax.Array | None = None

    def formed(self, dtype: Any) -> jax.Array:
        """The addresses themselves, [B, H, T, N]."""
        return (self.code * self.scale).astype(dtype)


class Pace(NamedTuple):
    """How much is written and kept at each token.

    Attributes:
      dynamics: η and λ.
      write_gate: β [B, T], or None for 1.
    """

    dynamics: Dynamics
    write_gate: jax.Array | None


class Scanned(NamedTuple):
    """What the scan of a stretch of tokens gives.

    Attributes:
      read: [B, T, D], of S alone.
      state: what the rule keeps after the last token, or None.
      recent: the writes that wait in slots, if they do.
      over_budget: [B] bool, where more rows were active than are read by themselves; None where all are read.
    """

    read: jax.Array
    state: Any
    recent: RecentWrites | None = None
    over_budget: jax.Array | None = None


class Written(NamedTuple):
    """What a stretch of tokens read and wrote.

    Attributes:
      scanned: what was read, and what the rule keeps.
      key: [B, H, T, N], what was written under.
      value: [B, T, D], what was written.
      previous_address: [B, H, N], to carry on; None if the address is the current one.
    """

    scanned: Scanned
    key: jax.Array
    value: jax.Array
    previous_address: jax.Array | None


class Used(NamedTuple):
    """What :func:`read_and_write` returns besides the next state.

    Attributes:
      read: [B, T, D], which is added to the layer's output; on a mesh the part of the rows at hand.
      address: [B, H, T, N].
      over_budget: [B] bool, where more rows were active than are read by themselves; None where all are read.
    """

    read: jax.Array
    address: jax.Array
    over_budget: jax.Array | None = None


def read_and_write(
    weights: MemoryWeights, source: jax.Array, x: jax.Array, state: LayerState, call: Call, setup: MemorySetup
) -> tuple[Used, LayerState]:
    """Read S at every token, then write to it.

    Args:
      weights: slow weights of the memory.
      source: [B, H, T, N], what becomes the address.
      x: [B, T, D], the layer's input, which is what is written.
      state: S and what goes with it before the first token.
      call: masks of the call.
      setup: what is known before anything is computed.

    Returns:
      What was used, and the layer's state after the last token, without that of the attention. The state's arrays are None where
      ``setup.final`` does not ask for them; with "mean" the batch axis of memory and use has length 1.
    """
    config, rule = setup.config, setup.rule
    source = address_code(source, config.address_norm, config.address_active, setup.axes)
    seen = jax.lax.stop_gradient(x) if config.write_gradient == "stop" else x
    write_gate = None if rule.gate is None else rule.gate(weights.rule, seen)
    dynamics = setup.dynamics(weights)
    if rule.dynamics is not None:
        dynamics = rule.dynamics(weights.rule, seen, dynamics)
        if not setup.first:  # a shared S decays with the first layer only, by a rule's own rate too
            dynamics = dynamics._replace(decay=1.0)
    scores = squares = None
    if setup.form == "parallel" and rule.linear and not _of_rows(dynamics):
        rows = source if _of_heads(dynamics) else _one_head(source)
        if config.write_gradient == "stop":
            stopped = jax.lax.stop_gradient(rows)
            scores = jnp.einsum("bhtn,bhsn->bhts", rows, stopped, preferred_element_type=setup.state_dtype)
        else:
            scores = own_scores(rows)
            squares = jnp.diagonal(scores, axis1=2, axis2=3)
    address = Address(source, address_scale(source, config.address_norm, setup.axes, squares), scores)
    pace = Pace(dynamics, write_gate)
    write = _write_factored if rule.linear else _write_formed
    written = write(weights, address, x, pace, state, call, setup)

    memory = None if state.memory is None else state.memory.written
    next_memory = None
    if setup.final != "none":
        gram = None
        if config.keeps_gram_beside:
            gram = _gram(address, pace, state, call, setup)
        next_memory = Memory(_as_rule_state(written.scanned.state, memory, setup), gram, written.scanned.recent)
    read, over_budget = written.scanned.read, written.scanned.over_budget
    if weights.synapse is not None and over_budget is not None:
        known, over = token_step.read(source[:, :, 0], weights.synapse, setup.budget, sum_heads=True)
        read, over_budget = read + address.scale[:, 0] * known[:, None].astype(setup.state_dtype), over_budget | over
    elif weights.synapse is not None:
        read = read + address.scale[:, 0] * decode(source, weights.synapse.astype(setup.dtype), setup.state_dtype)
    use = None
    if setup.final != "none":
        use = _use(address, written, pace, state.use, call, setup.axes)
        if setup.final == "mean":
            use = use.mean_over_examples()
    next_state = LayerState(memory=next_memory, previous_address=written.previous_address, use=use)
    return Used(read, address.formed(setup.dtype), over_budget), next_state


def _of_rows(dynamics: Dynamics) -> bool:
    """Whether rows of a head have rates of their own."""
    return any(jnp.ndim(rate) == 4 and jnp.shape(rate)[3] > 1 for rate in dynamics)


def _of_heads(dynamics: Dynamics) -> bool:
    """Whether heads have rates of their own."""
    return any(jnp.ndim(rate) == 1 or (jnp.ndim(rate) == 4 and jnp.shape(rate)[1] > 1) for rate in dynamics)


def _one_head(rows: jax.Array) -> jax.Array:
    """[B, H, T, N] → [B, 1, T, K]."""
    rows = jnp.swapaxes(rows, 1, 2)
    return rows.reshape(*rows.shape[:2], -1)[:, None]


def _write_factored(
    weights: MemoryWeights,
    address: Address,
    x: jax.Array,
    pace: Pace,
    state: LayerState,
    call: Call,
    setup: MemorySetup,
) -> Written:
    """Read S and write k ⊗ x, or β k ⊗ x. An address is its code times one factor per token; the factors are applied where the arrays
    are D wide: the key's to the written value, the query's to the read."""
    config, dtype = setup.config, setup.dtype
    valid, reset = call.masks.valid, call.masks.reset
    key, key_scale, previous_address = address.code, address.scale, None
    carried = carried_scale = None
    if config.address == "previous":
        carried = carried_over(address.code, state.previous_address, valid, reset, setup.axes)
        carried_scale = None if state.previous_address is None else jnp.ones_like(address.scale[:, :, 0])
        carried_scale = carried_over(address.scale, carried_scale, valid, reset, setup.axes)
        key, last = shift_to_previous(address.code, carried, valid, reset)
        key_scale, last_scale = shift_to_previous(address.scale, carried_scale, valid, reset)
        previous_address = setup.axes.from_last((last * last_scale).astype(dtype))
    value = (x * key_scale[:, 0]).astype(dtype)
    if config.write_gradient == "stop":
        key, value = jax.lax.stop_gradient((key, value))
    scores = address.scores
    if scores is not None and config.address == "previous":
        if carried is not None and config.write_gradient == "stop":
            carried = jax.lax.stop_gradient(carried)
        query = address.code
        if scores.shape[1] == 1:
            query, carried = _one_head(query), None if carried is None else carried.reshape(carried.shape[0], 1, -1)
        scores = scores_of_previous(scores, query, carried, valid, reset)
    scanned = _scan(address.code, key, value, pace, state, call, setup, scores)
    return Written(scanned._replace(read=address.scale[:, 0] * scanned.read), key, value, previous_address)


def _write_formed(
    weights: MemoryWeights,
    address: Address,
    x: jax.Array,
    pace: Pace,
    state: LayerState,
    call: Call,
    setup: MemorySetup,
) -> Written:
    """Read S and write to it by a rule whose products of k and x do not let factors be moved."""
    config, dtype = setup.config, setup.dtype
    formed = address.formed(dtype)
    key, previous_address = formed, None
    if config.address == "previous":
        key, previous_address = shift_to_previous(formed, state.previous_address, call.masks.valid, call.masks.reset)
    value = x
    if config.write_gradient == "stop":
        key, value = jax.lax.stop_gradient((key, value))
    target = value
    if weights.synapse is not None and setup.rule.predicts_values:
        # What the synapse knows already is not written.
        known = setup.axes.sum_over_rows(decode(key, weights.synapse.astype(dtype), setup.state_dtype))
        target = value.astype(setup.state_dtype) - known
    return Written(_scan(formed, key, target, pace, state, call, setup), key, value, previous_address)


def _scan(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    pace: Pace,
    state: LayerState,
    call: Call,
    setup: MemorySetup,
    scores: jax.Array | None = None,
) -> Scanned:
    """The rule's scan over the tokens."""
    config = setup.config
    if state.memory is not None and state.memory.recent is not None:
        written, recent = state.memory.written.S, state.memory.recent.arrays
        token = Stretch(query, key, value[:, None], pace.write_gate, call.masks.writes, call.masks.reset)
        read, recent, over = token_step.step(token, written, recent, pace.dynamics, budget=setup.budget, sum_heads=True)
        return Scanned(read, written, RecentWrites(*recent), over)
    rule = scan_rule(config.rule, config.options, config.limits, setup.axes)
    memory = None if state.memory is None else state.memory.written
    if memory is not None and setup.rule.state is RuleState:
        memory = memory.S
    scanned = fast_weight_scan(
        query,
        key,
        value,
        memory,
        learning_rate=pace.dynamics.learning_rate,
        decay=pace.dynamics.decay,
        valid=call.masks.writes,
        reset=call.masks.reset if setup.first else None,
        implementation=setup.form,
        chunk_size=setup.chunk_size,
        final=setup.final,
        sum_heads=True,
        rule=rule,
        write_gate=pace.write_gate,
        scores=scores,
        axes=setup.axes,
    )
    return Scanned(*scanned)


def _as_rule_state(written: Any, before: Any, setup: MemorySetup) -> Any:
    """What the rule keeps, around S where the scan gave S alone."""
    if not isinstance(written, jax.Array):
        return written
    if before is not None:
        return before.replace(S=written)
    static = {} if setup.rule.static is None else setup.rule.static(setup.config.rule_options)
    return setup.rule.state(S=written, **static)


def _gram(address: Address, pace: Pace, state: LayerState, call: Call, setup: MemorySetup) -> jax.Array:
    """The sum of k ⊗ k, or β k ⊗ k, after the last token, [B, K, K]; [1, K, K] with ``final="mean"``."""
    dtype, masks, (dynamics, write_gate) = setup.state_dtype, call.masks, pace
    key = address.formed(setup.dtype)
    if setup.config.address == "previous":
        key, _ = shift_to_previous(key, state.previous_address, masks.valid, masks.reset)
    if setup.config.write_gradient == "stop":
        key = jax.lax.stop_gradient(key)
    batch, _, length, _ = key.shape
    key = jnp.swapaxes(key, 1, 2).reshape(batch, length, -1).astype(dtype)
    # A shared S decays, and is cleared, with the first layer of a token only, and so does this.
    log_decay = None if dynamics.decay == 1 else safe_log(jnp.asarray(dynamics.decay, dtype))
    found = coefficients(length, dtype, log_decay, masks.writes, call.masks.reset if setup.first else None)
    written = jnp.broadcast_to(found.written.reshape(-1, length), (batch, length))
    written = written if write_gate is None else written * write_gate
    gram = dynamics.learning_rate * jnp.einsum("bt,btk,btl->bkl", written, key, key)
    if state.memory is not None and state.memory.gram is not None:
        gram = gram + jnp.broadcast_to(found.kept.reshape(-1, 1, 1), (batch, 1, 1)) * state.memory.gram
    return jnp.mean(gram, axis=0, keepdims=True) if setup.final == "mean" else gram


def _use(address: Address, written: Written, pace: Pace, before: Use | None, call: Call, axes: ShardAxes) -> Use:
    """How much each row was used, over this call and the episode's earlier ones."""
    places, write, (dynamics, write_gate) = call.places, call.masks.write, pace
    counted = places.counted
    dtype = counted.dtype
    # Addresses of norm "centred" have both signs, and how much a row was used has not.
    strength = jnp.einsum("bhtn,bt->bhn", jnp.abs(address.code).astype(dtype), counted * address.scale[:, 0, :, 0])
    counted = counted if write is None else counted * write.astype(dtype)
    size = counted * jnp.sum(jnp.square(written.value.astype(dtype)), axis=-1)
    size = size if write_gate is None else size * jnp.square(write_gate.astype(dtype))
    key = jnp.square(written.key.astype(dtype))
    rate = jnp.asarray(dynamics.learning_rate, dtype)
    if rate.ndim == 4:
        energy = jnp.einsum("bhtn,bt->bhn", jnp.square(rate) * key, size)
    else:
        energy = jnp.square(rate.reshape(-1, 1))[None] * jnp.einsum("bhtn,bt->bhn", key, size)
    strength, energy = axes.sum_over_time(strength), axes.sum_over_time(energy)
    if before is not None:
        strength = strength + keep(before.strength, places.continues)
        energy = energy + keep(before.energy, places.continues)
    return Use(strength, energy)
