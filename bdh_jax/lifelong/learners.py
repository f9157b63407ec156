"""What learns from a stream of facts: consolidation functions, and the bounds and baselines that stand beside them.

Axis letters: L layer, B batch, H head, N neurons per head, D model width, F facts, P facts of an episode, Q queries, T time;
K = H·N.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdh_jax import consolidation
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.consolidation import Function, as_consolidation, history_nbytes
from bdh_jax.consolidation.least_squares import Layers
from bdh_jax.fast_weights.config import Rule
from bdh_jax.fast_weights.state import FastState
from bdh_jax.models.bdh import BDH, BDHOutput, layer_norm
from bdh_jax.tasks.facts import FIRST_VALUE, VALUES

Slow = dict[str, Any]
Memory = Any

RIDGE = 1e-3
"""Of the bound."""
LEAST_SQUARES_RIDGE = 0.1
REPLAY_ROWS, REPLAY_STEPS = 64, 4


class Learner(NamedTuple):
    """Something that sees one episode after the other. All but ``nbytes`` are pure, and traced."""

    model: BDH
    prepare: Callable[[Slow], Slow]
    """The slow weights before the stream."""
    init: Callable[[Slow], Memory]
    start: Callable[[Memory], FastState | None]
    """The state (B = 1) that an episode or a query starts from; None is a fresh one."""
    update: Callable[[Slow, Memory, BDHOutput, jax.Array], tuple[Slow, Memory]]
    """(slow, memory, what the model returned on the episode, its facts [P, 3]) → (slow, memory)."""
    finish: Callable[[Slow, Memory, jax.Array, jax.Array], Slow] | None
    """(slow, memory, keys [F, 2], values [F]) → slow, after the last episode; or None. What uses the facts here is a bound."""
    answer: Callable[[Slow, Memory, jax.Array], jax.Array]
    """(slow, memory, keys [Q, 2]) → [Q] token ids, each key asked for alone."""
    nbytes: Callable[[Slow, Memory], int]
    """Bytes of what outlives an episode besides the trained weights; the arguments may be shapes."""
    by_model: bool = True
    """Whether answers are the model's. Otherwise in-episode recall and known facts are not measured."""
    collect: tuple[str, ...] = ()


Target = Literal["synapse", "slow"]


def consolidated(model: BDH, function: Function) -> Learner:
    """A consolidation function: it runs after every episode, and then the fast weights are reset.

    Args:
      model: with a synapse.
      function: either form, see :mod:`bdh_jax.consolidation.base`.
    """
    function = as_consolidation(function)

    def update(slow, memory, output, facts):
        return function.update(slow, output.fast, output.activity, memory)

    return Learner(
        model=model,
        prepare=lambda slow: slow,
        init=function.init,
        start=lambda memory: None,
        update=update,
        finish=None,
        answer=lambda slow, memory, keys: answers(model, slow, keys),
        nbytes=lambda slow, memory: history_nbytes(slow["synapse"]) + history_nbytes(memory),
    )


def with_rule(model: BDH, rule: Rule, learning_rate: float) -> BDH:
    """The model with another write rule, undecayed (λ = 1), so that what a consolidation adds up is one long sequence of writes."""
    return BDH(change(model.config, "fast", rule=rule, learning_rate=learning_rate, decay=1.0, keep_gram=False))


def answers(model: BDH, slow: Slow, keys: jax.Array, fast: FastState | None = None) -> jax.Array:
    """The model's answers [Q] to keys [Q, 2], each asked for alone, from a fresh state or from ``fast`` (B = 1)."""
    if fast is None:
        logits = model.apply({"params": slow}, keys, state="none").logits[:, -1]
    else:
        # The state is not copied: it has no axis of queries.
        logits = jax.vmap(lambda key: model.apply({"params": slow}, key[None], fast, state="none").logits[0, -1])(keys)
    return jnp.argmax(logits, axis=-1)


def addresses(model: BDH, slow: Slow, keys: jax.Array) -> jax.Array:
    """Addresses [Q, L, K] at the second token of keys [Q, 2], each from a fresh state."""
    address = model.apply({"params": slow}, keys, state="none", collect=("address",)).collected["address"]
    return jnp.moveaxis(address[:, :, :, -1], 0, 1).reshape(len(keys), model.config.n_layer, -1)


def never_reset(model: BDH) -> Learner:
    """No consolidation and no reset: the whole state is carried on, and nothing in it decays (λ = 1)."""
    model = BDH(change(model.config, "fast", decay=1.0))
    return consolidated(model, consolidation.none())._replace(
        init=lambda slow: model.init_fast(1),
        start=lambda memory: memory,
        update=lambda slow, memory, output, facts: (slow, output.fast),
        answer=lambda slow, memory, keys: answers(model, slow, keys, memory),
        nbytes=lambda slow, memory: history_nbytes(memory),
    )


def ridge(model: BDH) -> Learner:
    """The bound: ridge regression of what should be read on the addresses of all facts at their final values."""
    return consolidated(model, consolidation.none())._replace(
        finish=lambda slow, memory, keys, values: ridge_synapse(model, slow, keys, values)
    )


def ridge_synapse(model: BDH, slow: Slow, keys: jax.Array, values: jax.Array) -> Slow:
    """Slow weights whose synapse reads, at every key's address, what the fast weights read right after the fact alone was written.

    Layer after layer, since what a layer reads decides the addresses and the values of those after it.

    Args:
      model: with one synapse a layer.
      slow: its parameters; the synapse they hold is replaced.
      keys: [F, 2].
      values: [F] token ids.
    """
    config = model.config

    def wanted(slow, key, value):
        """Address [L, K] and what it should read [L, D]."""
        fast = model.apply({"params": slow}, key[None]).fast
        address = fast.previous_address[:, 0].astype(config.state_dtype)
        fast = fast.replace(memory=jnp.zeros_like(fast.memory))
        written = model.apply({"params": slow}, value[None, None], fast).fast.memory[:, 0]
        return address.reshape(config.n_layer, -1), jnp.einsum("lhn,lhnd->ld", address, written)

    def fill(layer, synapse):
        filled = {**slow, "synapse": synapse}
        address, read = jax.lax.map(lambda fact: wanted(filled, *fact), (keys, values), batch_size=64)
        address, read = address[:, layer], read[:, layer]
        gram = address.T @ address + RIDGE * jnp.eye(address.shape[1], dtype=address.dtype)
        solution = jax.scipy.linalg.solve(gram, address.T @ read, assume_a="pos")
        return synapse.at[layer].set(solution.reshape(synapse.shape[1:]).astype(synapse.dtype))

    return {**slow, "synapse": jax.lax.fori_loop(0, config.n_layer, fill, jnp.zeros_like(slow["synapse"]))}


def shuffled(learner: Learner) -> Learner:
    """The same, and in the end the rows of each layer's synapse are permuted: keeps their sizes and not their places."""

    def finish(slow, memory, keys, values):
        synapse = slow["synapse"]
        layers, heads, neurons, width = synapse.shape
        rows = synapse.reshape(layers, heads * neurons, width)
        order = [jax.random.permutation(jax.random.key(layer), heads * neurons) for layer in range(layers)]
        rows = jnp.stack([rows[layer][order[layer]] for layer in range(layers)])
        return {**slow, "synapse": rows.reshape(synapse.shape)}

    return learner._replace(finish=finish)


def untrained(learner: Learner) -> Learner:
    """The same with weights as initialised. Its answer is the value whose embedding is nearest to what the first layer reads."""
    model = learner.model

    def prepare(slow):
        return model.init_slow(jax.random.key(0))

    def answer(slow, memory, keys):
        read = addresses(model, slow, keys)[:, 0] @ slow["synapse"][0].reshape(-1, model.config.d_model)
        values = layer_norm(slow["embed"][FIRST_VALUE : FIRST_VALUE + VALUES])
        return FIRST_VALUE + jnp.argmax(read @ values.T, axis=-1)

    return learner._replace(prepare=prepare, answer=answer, by_model=False)


def nearest_neighbour(model: BDH) -> Learner:
    """The latest addresses of the first layer, as many as fit into the bytes of the synapse; the nearest one's value is the answer."""
    config = model.config
    synapse_bytes = config.memory_slots * config.n_neurons * config.d_model * 4
    capacity = max(1, synapse_bytes // (config.n_neurons * 4 + 2))

    def init(slow):
        return {
            "address": jnp.zeros((capacity, config.n_neurons), jnp.float32),
            "value": jnp.zeros((capacity,), jnp.int16),
        }

    def update(slow, memory, output, facts):
        # The address of every fact's second token, in the first layer.
        address = output.collected["address"][0, 0, :, 1::3]
        address = jnp.moveaxis(address, 0, 1).reshape(len(facts), -1).astype(jnp.float32)
        latest = {"address": address, "value": facts[:, 2].astype(jnp.int16)}
        # The latest come first, so that of equally near ones the later one answers.
        return slow, jax.tree.map(lambda new, old: jnp.concatenate([new[::-1], old])[:capacity], latest, memory)

    def answer(slow, memory, keys):
        nearest = jnp.argmax(addresses(model, slow, keys)[:, 0] @ memory["address"].T, axis=1)
        return memory["value"][nearest].astype(jnp.int32)

    return consolidated(model, consolidation.none())._replace(
        init=init,
        update=update,
        answer=answer,
        nbytes=lambda slow, memory: history_nbytes(memory),
        by_model=False,
        collect=("address",),
    )


def gradient(
    model: BDH, rate: float, *, target: Target, replay: bool, facts: int, optimizer: Literal["adam", "sgd"] = "adam"
) -> Learner:
    """Training on facts asked for without context: on those of the episode, or on draws from all that were seen.

    Args:
      model: with a synapse.
      rate: of the optimizer.
      target: train the synapse, or all trained weights instead.
      replay: keep the facts, three tokens each, as many as fit into the bytes of the synapse; a key's new value replaces its old
        one. Half of a batch is the episode, half is drawn from the buffer.
      facts: F, how many there will be; a larger buffer would stay empty.
      optimizer: Adam keeps two numbers for every one it trains; plain SGD keeps none.
    """
    config = model.config
    model = BDH(change(config, "fast", train_synapse=target == "synapse"))
    synapse_bytes = config.memory_slots * config.n_neurons * config.d_model * 4
    capacity = min(facts, synapse_bytes // 6) if replay else 0
    transform = {"adam": optax.adam, "sgd": optax.sgd}[optimizer](rate)

    def split(slow):
        chosen = {name for name in slow if (name == "synapse") == (target == "synapse")}
        return {n: slow[n] for n in slow if n in chosen}, {n: slow[n] for n in slow if n not in chosen}

    def init(slow):
        memory = {"optimizer": transform.init(split(slow)[0]), "steps": jnp.zeros((), jnp.int32)}
        if replay:
            memory |= {"buffer": jnp.full((capacity, 3), -1, jnp.int16), "filled": jnp.zeros((), jnp.int32)}
        return memory

    def loss(trained, frozen, batch):
        logits = model.apply({"params": {**trained, **frozen}}, batch[:, :2], state="none").logits[:, -1]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 2]))

    def store(memory, facts):
        buffer, filled = memory["buffer"], memory["filled"]
        same = jnp.all(buffer[None, :, :2] == facts[:, None, :2], axis=-1)
        known = jnp.any(same, axis=1)
        free = filled + jnp.cumsum(~known) - 1
        # A full buffer starts again at its oldest entry.
        place = jnp.where(known, jnp.argmax(same, axis=1), free % capacity)
        buffer = buffer.at[place].set(facts.astype(jnp.int16))
        return {**memory, "buffer": buffer, "filled": filled + jnp.sum(~known)}

    def update(slow, memory, output, facts):
        if replay:
            memory = store(memory, facts)

        def step(carry, _):
            slow, state, steps = carry
            batch = facts
            if replay:
                key = jax.random.fold_in(jax.random.key(0), steps)
                drawn = jax.random.randint(key, (REPLAY_ROWS,), 0, jnp.minimum(memory["filled"], capacity))
                again = -(-REPLAY_ROWS // len(facts))
                batch = jnp.concatenate(
                    [jnp.tile(facts, (again, 1))[:REPLAY_ROWS], memory["buffer"][drawn].astype(facts.dtype)]
                )
            trained, frozen = split(slow)
            updates, state = transform.update(jax.grad(loss)(trained, frozen, batch), state, trained)
            return ({**optax.apply_updates(trained, updates), **frozen}, state, steps + 1), None

        carry = (slow, memory["optimizer"], memory["steps"])
        (slow, state, steps), _ = jax.lax.scan(step, carry, length=REPLAY_STEPS)
        return slow, {**memory, "optimizer": state, "steps": steps}

    def nbytes(slow, memory):
        return history_nbytes(memory) + (history_nbytes(slow["synapse"]) if target == "synapse" else 0)

    return consolidated(model, consolidation.none())._replace(init=init, update=update, nbytes=nbytes)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the table."""

    name: str
    build: Callable[[BDH, Any, int], Learner]
    """(model, rate, F) → learner; the rate may be traced."""
    rates: tuple[float, ...] = ()
    """To choose from on validation streams; empty: there is none."""
    rate_of: str = ""
    """Take the rate of the contestant of this name."""
    traced: bool = True
    """Whether ``build`` takes a rate whose value is not known yet, so that one program serves all rates."""
    own: Function | None = None
    """A function from outside the library, which is checked before anything is measured."""

    def __post_init__(self):
        if self.rates and self.rate_of:
            raise ConfigError(f"contestant {self.name!r} has rates of its own and those of {self.rate_of!r}; choose one")


_WRITES = (0.01, 0.03, 0.1, 0.2, 0.4, 1.0, 3.0)
_AVERAGES = (0.01, 0.03, 0.1, 0.3)
_STEPS = (1e-3, 3e-3, 1e-2, 3e-2)
_ERROR_STEPS = (0.1, 0.3, 1.0)
_BACKGROUNDS = (0.1, 0.3, 1.0)
_RIDGES = (0.01, 0.1, 1.0, 10.0)
_DRIFTS = (0.3, 1.0, 3.0, 10.0)
_TOLERANCES = (0.03, 0.3, 3.0)
_TRAININGS = (1e-4, 3e-4, 1e-3, 3e-3)
_DESCENTS = (1.0, 3.0, 10.0, 30.0, 100.0)


def _of(name: str, rates: tuple[float, ...] = _WRITES, *, traced: bool = True) -> Contestant:
    def build(model, rate, facts):
        return consolidated(model, consolidation.make_function(name, rate=rate))

    return Contestant(name, build, rates, traced=traced)


def _gradient(name: str, rates: tuple[float, ...], **options) -> Contestant:
    return Contestant(name, lambda model, rate, facts: gradient(model, rate, facts=facts, **options), rates)


def _changed(name: str, base: Contestant, change: Callable[[Learner], Learner]) -> Contestant:
    rate_of = base.name if base.rates else ""
    return Contestant(
        name, lambda model, rate, facts: change(base.build(model, rate, facts)), rate_of=rate_of, traced=base.traced
    )


def _ruled(rule: Rule, rates: tuple[float, ...]) -> Contestant:
    """All that a rule wrote goes into the synapse, which the next episode's predictions include; the rate is the rule's own η."""

    def build(model, rate, facts):
        own = "gated_delta" if rule == "delta" and model.config.fast.gated else rule
        return consolidated(with_rule(model, own, rate), consolidation.dense())

    return Contestant(rule, build, rates, traced=False)


def _summing(model: BDH) -> BDH:
    return BDH(change(model.config, fast=model.config.fast.sums()))


_NONE = Contestant("none", lambda model, rate, facts: consolidated(model, consolidation.none()))
_RIDGE = Contestant("ridge", lambda model, rate, facts: ridge(model))
_DENSE, _ROW_TOPK = _of("dense"), _of("row_topk")


def contestants(ridge: float = LEAST_SQUARES_RIDGE, layers: Layers = None) -> dict[str, Contestant]:
    """All rows of the benchmark's table, by name.

    Args:
      ridge: of ``least_squares``, ``kalman`` and ``null_space``.
      layers: that these three and ``mesa`` consolidate; None for all.
    """

    def solved(name: str, function: Callable[..., Function], option: str, rates: tuple[float, ...]) -> Contestant:
        def build(model, rate, facts):
            return consolidated(_summing(model), function(ridge, layers=layers, **{option: rate}))

        return Contestant(name, build, rates, traced=False)

    def mesa(model, rate, facts):
        # What the rule would read after the episode, from the sums it keeps: the rule itself solves at every token, which the
        # stream has no use for.
        return consolidated(_summing(model), consolidation.least_squares(rate, background=0.0, layers=layers))

    kalman = solved("kalman", consolidation.kalman, "drift", _DRIFTS)
    rows = (
        _NONE,
        _DENSE,
        _ROW_TOPK,
        _of("row_random"),
        _of("row_bottom"),
        _of("threshold"),
        _of("running_average", _AVERAGES, traced=False),
        _of("tfidf_rows"),
        _of("importance_weighted"),
        _of("cascade"),
        _ruled("delta", _ERROR_STEPS),
        _ruled("longhorn", _ERROR_STEPS),
        _ruled("oja", _ERROR_STEPS),
        Contestant("mesa", mesa, _RIDGES, traced=False),
        solved("least_squares", consolidation.least_squares, "background", _BACKGROUNDS),
        kalman,
        solved("null_space", consolidation.null_space, "tolerance", _TOLERANCES),
        Contestant("never_reset", lambda model, rate, facts: never_reset(model)),
        _RIDGE,
        Contestant("nearest_neighbour", lambda model, rate, facts: nearest_neighbour(model)),
        _gradient("replay_synapse", _STEPS, target="synapse", replay=True),
        _gradient("replay_synapse_sgd", _DESCENTS, target="synapse", replay=True, optimizer="sgd"),
        _gradient("replay_slow", _TRAININGS, target="slow", replay=True),
        _gradient("fine_tuning", _TRAININGS, target="slow", replay=False),
        _changed("dense_shuffled", _DENSE, shuffled),
        _changed("row_topk_shuffled", _ROW_TOPK, shuffled),
        _changed("dense_untrained", _DENSE, untrained),
        _changed("row_topk_untrained", _ROW_TOPK, untrained),
        _changed("kalman_untrained", kalman, untrained),
        _changed("ridge_untrained", _RIDGE, untrained),
    )
    return {contestant.name: contestant for contestant in rows}


CONTESTANTS = contestants()
"""All rows, by name, with their own settings."""
