"""What learns from a stream of facts: what a learner is, and those that learn by consolidation, by a write rule or by gradient.

:mod:`bdh_jax.lifelong.bounds` and :mod:`bdh_jax.lifelong.controls` have what stands beside them, and
:mod:`bdh_jax.lifelong.contestants` the table of all.

Axis letters: B batch, F facts, P facts of an episode, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdh_jax import consolidation
from bdh_jax.analysis.probes import answers
from bdh_jax.config.convert import change
from bdh_jax.config.options import Options
from bdh_jax.config.seeds import key_of
from bdh_jax.consolidation import Function, as_consolidation, history_nbytes
from bdh_jax.fast_weights.state import FastState
from bdh_jax.models.base import ModelOutput
from bdh_jax.models.bdh import BDH
from bdh_jax.types import Slow

History = Any
Trained = Literal["synapse", "slow"]
"""What gradient descent changes: the synapse, or all other slow weights."""

REPLAY_ROWS, REPLAY_STEPS = 64, 4


class Learner(NamedTuple):
    """Something that sees one episode after the other. All but ``nbytes`` are pure, and traced.

    Its *history* is what it remembers of the episodes before, a pytree of arrays.
    """

    model: BDH
    prepare: Callable[[Slow], Slow]
    """The slow weights before the stream."""
    init: Callable[[Slow], History]
    """The history before the stream."""
    start: Callable[[History], FastState | None]
    """The state (B = 1) that an episode or a query starts from; None is a fresh one."""
    update: Callable[[Slow, History, ModelOutput, jax.Array], tuple[Slow, History]]
    """(slow, history, what the model returned on the episode, its facts [P, 3]) → (slow, history)."""
    finish: Callable[[Slow, History, jax.Array, jax.Array], Slow] | None
    """(slow, history, keys [F, 2], values [F]) → slow, after the last episode; or None. What uses the facts here is a bound."""
    answer: Callable[[Slow, History, jax.Array], jax.Array]
    """(slow, history, keys [Q, 2]) → [Q] token ids, each key asked for alone."""
    nbytes: Callable[[Slow, History], int]
    """Bytes of what outlives an episode besides the trained weights; the arguments may be shapes."""
    by_model: bool = True
    """Whether answers are the model's. Otherwise in-episode recall and known facts are not measured."""
    collect: tuple[str, ...] = ()


def consolidated(model: BDH, function: Function) -> Learner:
    """A consolidation function: it runs after every episode, and then the fast weights are reset.

    Args:
      model: with a synapse.
      function: either form, see :mod:`bdh_jax.consolidation.base`.
    """
    function = as_consolidation(function)

    def update(slow: Slow, history: History, output: ModelOutput, facts: jax.Array) -> tuple[Slow, History]:
        if output.activity is None:
            raise ValueError("the model has no fast weights to consolidate (fast.enabled=False)")
        return function.update(slow, output.carried, output.activity, history)

    return Learner(
        model=model,
        prepare=lambda slow: slow,
        init=function.init,
        start=lambda history: None,
        update=update,
        finish=None,
        answer=lambda slow, history, keys: answers(model, slow, keys),
        nbytes=lambda slow, history: history_nbytes(slow["synapse"]) + history_nbytes(history),
    )


def with_rule(model: BDH, rule: str, learning_rate: float) -> BDH:
    """The model with another write rule, undecayed (λ = 1), so that what a consolidation adds up is one long sequence of writes."""
    return BDH(
        change(model.config, "fast", rule=rule, options=Options(), learning_rate=learning_rate, decay=1.0, keep_gram=False)
    )


def gradient(
    model: BDH,
    learning_rate: float,
    *,
    target: Trained,
    replay: bool,
    facts: int,
    optimizer: Literal["adam", "sgd"] = "adam",
) -> Learner:
    """Training on facts asked for without context: on those of the episode, or on draws from all that were seen.

    Args:
      model: with a synapse.
      learning_rate: of the optimizer.
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
    transform = {"adam": optax.adam, "sgd": optax.sgd}[optimizer](learning_rate)

    def split(slow: Slow) -> tuple[Slow, Slow]:
        chosen = {name for name in slow if (name == "synapse") == (target == "synapse")}
        return {n: slow[n] for n in slow if n in chosen}, {n: slow[n] for n in slow if n not in chosen}

    def init(slow: Slow) -> History:
        history = {"optimizer": transform.init(split(slow)[0]), "steps": jnp.zeros((), jnp.int32)}
        if replay:
            history |= {"buffer": jnp.full((capacity, 3), -1, jnp.int16), "filled": jnp.zeros((), jnp.int32)}
        return history

    def loss(trained: Slow, frozen: Slow, batch: jax.Array) -> jax.Array:
        logits = model.apply({"params": {**trained, **frozen}}, batch[:, :2], state="none").logits[:, -1]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 2]))

    def store(history: History, facts: jax.Array) -> History:
        buffer, filled = history["buffer"], history["filled"]
        same = jnp.all(buffer[None, :, :2] == facts[:, None, :2], axis=-1)
        known = jnp.any(same, axis=1)
        free = filled + jnp.cumsum(~known) - 1
        # A full buffer starts again at its oldest entry.
        place = jnp.where(known, jnp.argmax(same, axis=1), free % capacity)
        buffer = buffer.at[place].set(facts.astype(jnp.int16))
        return {**history, "buffer": buffer, "filled": filled + jnp.sum(~known)}

    def update(slow: Slow, history: History, output: ModelOutput, facts: jax.Array) -> tuple[Slow, History]:
        if replay:
            history = store(history, facts)

        def step(carry: tuple[Slow, Any, jax.Array], _: None) -> tuple[tuple[Slow, Any, jax.Array], None]:
            slow, state, steps = carry
            batch = facts
            if replay:
                key = jax.random.fold_in(key_of(0), steps)
                drawn = jax.random.randint(key, (REPLAY_ROWS,), 0, jnp.minimum(history["filled"], capacity))
                again = -(-REPLAY_ROWS // len(facts))
                batch = jnp.concatenate(
                    [jnp.tile(facts, (again, 1))[:REPLAY_ROWS], history["buffer"][drawn].astype(facts.dtype)]
                )
            trained, frozen = split(slow)
            updates, state = transform.update(jax.grad(loss)(trained, frozen, batch), state, trained)
            changed: Any = optax.apply_updates(trained, updates)
            return ({**changed, **frozen}, state, steps + 1), None

        carry = (slow, history["optimizer"], history["steps"])
        (slow, state, steps), _ = jax.lax.scan(step, carry, length=REPLAY_STEPS)
        return slow, {**history, "optimizer": state, "steps": steps}

    def nbytes(slow: Slow, history: History) -> int:
        return history_nbytes(history) + (history_nbytes(slow["synapse"]) if target == "synapse" else 0)

    return consolidated(model, consolidation.none())._replace(init=init, update=update, nbytes=nbytes)
