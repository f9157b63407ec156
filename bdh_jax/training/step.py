"""One training step: (state, batch, key) → (state, metrics), jitted, sharded and with the state donated.

Axis letters: B batch, T time, V vocabulary, L layer, A accumulation slices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax.config import ConfigError, require
from bdh_jax.config.seeds import key_of
from bdh_jax.consolidation.base import check_same_tree, finite_leaves
from bdh_jax.fast_weights.masks import Masks
from bdh_jax.models.base import Model
from bdh_jax.parallel.axes import shardings
from bdh_jax.parallel.mesh import batch_sharding, replicated
from bdh_jax.tasks.base import Batch, TaskBase
from bdh_jax.tasks.scoring import Predict
from bdh_jax.training.config import Loss
from bdh_jax.training.hooks import NO_HOOKS, Hooks, Prepare, Taps, Update
from bdh_jax.training.optimizer import make_schedule, merge, split_trained
from bdh_jax.training.setup import Setup
from bdh_jax.training.state import TrainState, abstract_state, state_shardings
from bdh_jax.types import Slow

Metrics = dict[str, Any]
Losses = Callable[[jax.Array, Batch], jax.Array]
"""(logits [B, T, V], batch) → the loss [B, T] of every position: :meth:`bdh_jax.tasks.base.Task.losses`."""
cross_entropy: Losses = TaskBase().losses
"""In nats, what a task's loss is unless it says otherwise."""


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """What a training step asks of its forward pass."""

    loss: Loss = "answer"
    """Which positions count."""
    losses: Losses = cross_entropy
    accumulation: int = 1
    """Slices A that the batch is cut into."""
    prepare: tuple[Prepare, ...] = ()
    """What is done to the slow weights first, in this order."""
    state: Literal["none", "mean", "full"] = "none"
    """"mean" to get what the batch's last episodes wrote, for hooks; "full" to go on from."""
    collect: tuple[str, ...] = ()
    """What the model is to collect, for hooks."""
    answers: int | None = None
    """Answer tokens that a row holds at most: with ``loss="answer"`` logits are formed of so many tokens a row. None: of all."""

    def __post_init__(self) -> None:
        require(
            self.accumulation == 1 or self.state != "full",
            f"a forward pass in {self.accumulation} slices returns no state to go on from; set train.accumulation=1",
        )


class Gradients(NamedTuple):
    """What a batch says of the slow weights."""

    loss: jax.Array
    accuracy: jax.Array
    """Share of answer tokens that were predicted."""
    gradient: Slow
    """Of the trained parameters."""
    taps: Taps


def loss_weights(batch: Batch, loss: Loss) -> jax.Array | np.ndarray:
    """Weight [B,T] float32 of every position in the loss: the answer's, every valid one's, or those the task gives."""
    if loss == "answer":
        return batch.answer
    if loss == "weights":
        return batch.loss_weights
    return jnp.ones(batch.tokens.shape, jnp.float32) if batch.valid is None else batch.valid.astype(jnp.float32)


def loss_fn(
    model: Model,
    slow: Slow,
    batch: Batch,
    weights: jax.Array,
    key: jax.Array | None = None,
    fast: Any = None,
    ask: ForwardPass = ForwardPass(),
) -> tuple[jax.Array, tuple[jax.Array, Taps]]:
    """Weighted sum of the losses of all positions, and what the metrics need.

    Args:
      model: the model.
      slow: its parameters.
      batch: arrays [B,T]. ``valid`` and ``reset`` may be None: all valid, no resets.
      weights: [B,T] weight of each position. A position of weight 0 has no influence on the gradient.
      key: randomness of dropout; None switches dropout off.
      fast: the state to go on from; None starts from zeros.
      ask: what is asked for. Its ``prepare`` and ``accumulation`` are not looked at here.

    Returns:
      Σ weight · loss, and (number of answer tokens predicted right, the taps asked for). Both numbers are float32 scalars. Losses
      that the model names itself are added as if every position had them.
    """
    rngs = None if key is None else {"dropout": key}
    tokens, valid, reset, write, variables = batch.tokens, batch.valid, batch.reset, batch.write, {"params": slow}
    if ask.answers is not None and ask.loss == "answer" and ask.answers < tokens.shape[1]:
        # The tokens that count come first, in their order; if there are fewer, others follow, which count nothing.
        at = jnp.argsort(batch.answer == 0, axis=1, stable=True)[:, : ask.answers]
        batch, weights = jax.tree.map(lambda array: jnp.take_along_axis(array, at, axis=1), (batch, weights))
        variables = {**variables, "logits": {"at": at}}
    output = model.apply(
        variables,
        tokens,
        fast,
        valid=valid,
        reset=reset,
        write=write,
        state=ask.state,
        collect=ask.collect,
        deterministic=key is None,
        rngs=rngs,
    )
    total = jnp.sum(ask.losses(output.logits, batch) * weights)
    for named in output.losses.values():
        total = total + named * jnp.sum(weights)
    right = jnp.sum(batch.answer * (jnp.argmax(output.logits, axis=-1) == batch.targets))
    return total, (right, jax.lax.stop_gradient(Taps(output.fast, output.collected, output.metrics)))


def gradients(
    model: Model,
    slow: Slow,
    batch: Batch,
    ask: ForwardPass = ForwardPass(),
    key: jax.Array | None = None,
    fast: Any = None,
) -> Gradients:
    """Loss and gradients of a batch, computed in ``ask.accumulation`` slices one after the other.

    The loss is normalised by the weight of the whole batch, so slices of unequal weight count as they would in one piece.

    Args:
      model: the model.
      slow: its parameters.
      batch: arrays [B,T]; B is a multiple of the number of slices.
      ask: what is asked of the forward pass.
      key: randomness of dropout, or None.
      fast: as in :func:`loss_fn`.

    Returns:
      The :class:`Gradients`. Its taps are of the whole batch: the mean of the state over all slices, and what was collected of all rows
      in their order.
    """
    trained, frozen = split_trained(slow, model.declared_slow())
    weights = loss_weights(batch, ask.loss)
    extra, batch = batch.extra, batch._replace(extra=None)

    def slice_loss(
        trained: Slow, batch: Batch, weights: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, Taps]]:
        reader, slow = _prepared(model, merge(trained, frozen), batch._replace(extra=extra), ask.prepare)
        return loss_fn(reader, slow, batch, weights, key, fast, ask)

    slice_gradient = jax.value_and_grad(slice_loss, has_aux=True)
    if ask.accumulation == 1:
        (total, (right, taps)), gradient = slice_gradient(trained, batch, weights, key)
    else:

        def add_slice(sums: Any, inputs: Any) -> tuple[Any, Any]:
            index, batch, weights = inputs
            slice_key = None if key is None else jax.random.fold_in(key, index)
            result, collected = _apart(slice_gradient(trained, batch, weights, slice_key))
            return jax.tree.map(jnp.add, sums, result), collected

        batch_slices, weight_slices = jax.tree.map(lambda x: _slices(x, ask.accumulation, model.mesh), (batch, weights))
        inputs = (jnp.arange(ask.accumulation), batch_slices, weight_slices)
        _, first_batch, first_weights = jax.tree.map(lambda x: x[0], inputs)
        sums, _ = _apart(jax.eval_shape(slice_gradient, trained, first_batch, first_weights, key))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)
        (((total, (right, summed)), gradient), collected) = jax.lax.scan(add_slice, zeros, inputs)
        state, metrics = jax.tree.map(lambda leaf: leaf / ask.accumulation, summed)
        taps = Taps(state, jax.tree.map(_whole, collected), metrics)

    scale = 1 / _at_least_something(jnp.sum(weights))
    accuracy = right / _at_least_something(jnp.sum(batch.answer))
    return Gradients(total * scale, accuracy, jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient), taps)


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    setup: Setup,
    mesh: Mesh,
    *,
    hooks: Hooks = NO_HOOKS,
    losses: Losses = cross_entropy,
    answers: int | None = None,
) -> jax.stages.Wrapped:
    """Build the jitted training step: (state, batch, key) → (state, metrics).

    Args:
      model: the model, built on ``mesh`` if that has several devices.
      optimizer: as of :func:`bdh_jax.training.optimizer.make_optimizer`.
      setup: its ``train`` says how long and from which positions to learn, its ``optimizer`` which rates to report.
      mesh: device mesh of ``bdh_jax.parallel.axes.make_mesh``.
      hooks: what is added, as of ``make_hooks(setup.hooks, model)``.
      losses: of the task.
      answers: of the task: answer tokens that a row holds at most (:class:`ForwardPass`).

    Returns:
      ``step(state, batch, key) -> (state, metrics)``. ``state`` is donated. ``batch`` comes from :func:`put_batch`, ``key``
      is the run's, replicated; each step folds its number into it. Metrics are scalars: loss, answer_accuracy, grad_norm
      (before clipping), learning_rate and tokens (valid ones); model, a dict of what the model would like to be logged; hooks, of what
      the hooks measure; and finite, a dict: "loss", "gradient", the path of every leaf that is carried on, and "<hook>:" with the path of
      every leaf that a hook's update made → whether it is.

    Raises:
      ConfigError: for hooks that need what a step that carries its state does not have; and, when the step is traced, for an update that
        returns other trees than it was given.
    """
    schedule = make_schedule(setup.optimizer, setup.train.steps)
    carry = setup.train.carry_state
    for update in hooks.updates:
        require(
            not carry or update.state == "none",
            f"train.carry_state=True with {update.label}: episodes that go on from step to step have no last state to average; use one "
            "of them",
        )
    spread = None
    if setup.mesh.fsdp:
        spread, _ = split_trained(shardings(model.declared_slow(), mesh, fsdp=True), model.declared_slow())
    ask = ForwardPass(
        loss=setup.train.loss,
        losses=losses,
        accumulation=setup.train.accumulation,
        prepare=hooks.prepare,
        state="full" if carry else hooks.state,
        collect=hooks.collect,
        answers=answers,
    )

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step) if model.config.draws_in_training else None
        found = gradients(model, state.slow, batch, ask, step_key, state.fast if carry else None)
        if spread is not None:
            # Summed over ``data`` they are wanted in parts only: a sum and a part of it is one collective, half as long.
            found = found._replace(gradient=jax.lax.with_sharding_constraint(found.gradient, spread))
        trained, frozen = split_trained(state.slow, model.declared_slow())
        updates, opt_state = optimizer.update(found.gradient, state.opt_state, trained)
        changed: Any = optax.apply_updates(trained, updates)
        slow = merge(changed, frozen)
        norm = optax.tree.norm(found.gradient)
        finite = {"loss": jnp.isfinite(found.loss), "gradient": jnp.isfinite(norm)}
        taps, history = (Taps(None, found.taps.collected) if carry else found.taps), {}
        of_hooks: Metrics = {}
        for update in hooks.updates:
            slow, history[update.name] = _updated(update, state.step, slow, taps, batch, state.history[update.name])
            leaves = finite_leaves({"slow": slow, "history": history[update.name]})
            finite |= {f"{update.name}:{path}": is_finite for path, is_finite in leaves.items()}
            if update.metrics is not None:
                own = update.metrics(slow, history[update.name])
                of_hooks |= {f"{update.name}_{name}": value for name, value in own.items()}
        if carry:
            finite |= finite_leaves({"fast": found.taps.fast})
        metrics = {
            "loss": found.loss,
            "answer_accuracy": found.accuracy,
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "tokens": jnp.asarray(batch.tokens.size if batch.valid is None else jnp.sum(batch.valid), jnp.int32),
            "model": dict(found.taps.metrics),
            "finite": finite,
            "hooks": of_hooks,
        }
        return TrainState(state.step + 1, slow, opt_state, history, found.taps.fast if carry else ()), metrics

    rows = setup.train.batch_size if carry else None
    fsdp = setup.mesh.fsdp
    abstract = abstract_state(model, optimizer, mesh, hooks, rows, fsdp)
    placed = state_shardings(model, optimizer, mesh, abstract, hooks, fsdp)
    return jax.jit(
        step,
        in_shardings=(placed, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
    )


def make_keys(seed: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Keys of a run, on every device: one for the initial parameters, one for the steps. See :func:`bdh_jax.config.seeds.key_of`."""
    return jax.jit(lambda: tuple(jax.random.split(key_of(seed))), out_shardings=replicated(mesh))()


def make_predict(model: Model, mesh: Mesh) -> Callable[[Slow], Predict]:
    """Build what a task's evaluation calls.

    ``make_predict(model, mesh)(slow)`` is ``predict(tokens [B,T], valid [B,T], reset=None, size=None, write=None) -> logits [B,T,V]``. Any B
    is taken; rows are added and dropped where the mesh needs it. Logits come back as a NumPy array, on every process; with a ``size`` as an
    iterator over [B,size,V], of so many tokens after another, the last of which may be fewer.
    """

    def logits(slow: Slow, tokens: jax.Array, masks: Masks) -> jax.Array:
        return model.apply({"params": slow}, tokens, **masks._asdict(), state="none").logits

    def hidden(slow: Slow, tokens: jax.Array, masks: Masks) -> jax.Array:
        return model.apply({"params": slow}, tokens, **masks._asdict(), method="hidden")

    jitted = jax.jit(logits, out_shardings=replicated(mesh))
    jitted_hidden = jax.jit(hidden)
    readout = jax.jit(model.architecture.readout, out_shardings=replicated(mesh))

    def with_slow(slow: Slow) -> Predict:
        def predict(
            tokens: np.ndarray,
            valid: np.ndarray,
            reset: np.ndarray | None = None,
            size: int | None = None,
            write: np.ndarray | None = None,
        ) -> np.ndarray | Iterator[np.ndarray]:
            rows = len(tokens)
            index = np.minimum(np.arange(-(-rows // mesh.shape["data"]) * mesh.shape["data"]), rows - 1)
            given = (
                None if np.all(valid) else valid,
                None if reset is None or not np.any(reset) else reset,
                None if write is None or np.all(write) else write,
            )
            masks = Masks._make(None if mask is None else mask[index] for mask in given)
            arrays = put((tokens[index], masks), mesh)
            if size is None:
                return jax.device_get(jitted(slow, *arrays))[:rows]
            x = jitted_hidden(slow, *arrays)
            parts = range(0, tokens.shape[1], size)
            return (jax.device_get(readout(slow, x[:, first : first + size]))[:rows] for first in parts)

        return predict

    return with_slow


def put_batch(batch: Batch, mesh: Mesh, *, may_reset: bool = False) -> Batch:
    """Put a batch of NumPy arrays [B,T] on the mesh.

    Masks that mask nothing become None, which saves the model the work of applying them; with ``may_reset`` resets stay, so that
    batches with and without any are one program. With several processes every one passes the whole batch (it is a pure function of
    seed and step) and feeds its own devices their rows.

    Raises:
      ConfigError: if the mesh does not divide the rows.
    """
    for what, tree in (("a batch", batch._replace(extra=None)), ("a batch's extra", batch.extra)):
        for leaf in jax.tree.leaves(tree):
            if np.shape(leaf)[0] % mesh.shape["data"]:
                raise ConfigError(
                    f"mesh.data={mesh.shape['data']} does not divide the {np.shape(leaf)[0]} rows of {what}; change one of them"
                )
    return put(
        batch._replace(
            valid=None if np.all(batch.valid) else batch.valid,
            reset=batch.reset if may_reset or np.any(batch.reset) else None,
        ),
        mesh,
    )


def put(tree: Any, mesh: Mesh) -> Any:
    """Put NumPy arrays [B, ...] on the mesh, B over ``data``. Every process passes the same arrays."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, global_shape=x.shape), tree)


def _prepared(model: Model, slow: Slow, batch: Batch, prepare: tuple[Prepare, ...]) -> tuple[Model, Slow]:
    """The model and the slow weights of the forward pass."""
    reader = model
    for hook in prepare:
        if hook.when(batch):
            slow = hook.prepare(slow, batch)
            reader = hook.reader or reader
    return reader, slow


def _updated(update: Update, step: jax.Array, slow: Slow, taps: Taps, batch: Batch, history: Any) -> tuple[Slow, Any]:
    """What an update makes of the slow weights and its history, every ``update.every`` steps."""

    def apply(slow: Slow, history: Any) -> tuple[Slow, Any]:
        returned = update.update(slow, taps, batch, history)
        require(
            isinstance(returned, tuple) and len(returned) == 2,
            f"{update.label} returned a {type(returned).__name__}; it must return the pair (slow, history)",
        )
        for name, given, new in (("slow", slow, returned[0]), ("history", history, returned[1])):
            check_same_tree(update.label, name, given, new)
        return returned

    return jax.lax.cond((step + 1) % update.every == 0, apply, lambda slow, history: (slow, history), slow, history)


def _apart(result: Any) -> tuple[Any, dict[str, jax.Array]]:
    """A slice's result, with what is summed over slices apart from what was collected of its rows."""
    (total, (right, taps)), gradient = result
    return ((total, (right, (taps.fast, dict(taps.metrics)))), gradient), taps.collected


def _slices(array: jax.Array, count: int, mesh: Mesh | None) -> jax.Array:
    """[B, ...] → [A, B / A, ...]. Slice a takes rows a, a + A, …: every device keeps the rows it has."""
    array = array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
    return array if mesh is None else jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P(None, "data")))


def _whole(slices: jax.Array) -> jax.Array:
    """[A, L, B / A, ...] → [L, B, ...], the rows as :func:`_slices` found them."""
    array = jnp.moveaxis(slices, 0, 2)
    return array.reshape(array.shape[0], -1, *array.shape[3:])


def _at_least_something(total: jax.Array) -> jax.Array:
    return jnp.where(total > 0, total, 1.0)
