"""One training step: (state, batch, key) → (state, metrics), jitted, sharded and with the state donated.

Axis letters: B batch, T time, V vocabulary, A accumulation slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax.consolidation import Consolidation, as_consolidation, check, from_config
from bdh_jax.consolidation.base import finite_leaves
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.state import FastState
from bdh_jax.models.registry import Model
from bdh_jax.parallel.axes import MEMORY_AXES, batch_sharding, replicated, shardings
from bdh_jax.tasks.base import Batch, Predict
from bdh_jax.training.config import Loss
from bdh_jax.training.optimizer import Slow, make_schedule, split_trained
from bdh_jax.training.prefilled_synapse import fill_synapse, make_reader

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
      step: int32 scalar, updates made so far.
      slow: parameters by name.
      opt_state: optimiser state of the trained parameters.
      memory: what the consolidation function remembers; () for none.
      fast: the state that the next step starts from, with ``train.carry_state``; () otherwise.
    """

    step: jax.Array
    slow: Slow
    opt_state: Any
    memory: Any = ()
    fast: Any = ()


def loss_weights(batch: Batch, loss: Loss) -> jax.Array:
    """Weight [B,T] float32 of every position in the loss: the answer's, every valid one's, or those the task gives."""
    if loss == "answer":
        return batch.answer
    if loss == "weights":
        return batch.weights
    return jnp.ones(batch.tokens.shape, jnp.float32) if batch.valid is None else batch.valid.astype(jnp.float32)


def make_consolidation(config: ExperimentConfig) -> Consolidation | None:
    """The consolidation function that a training step runs; None without one.

    Raises:
      ConfigError: for a name or option that does not exist.
    """
    function = from_config(config.consolidation)
    return None if config.consolidation.function == "none" else as_consolidation(function)


def loss_fn(
    model: Model,
    slow: Slow,
    batch: Batch,
    weights: jax.Array,
    key: jax.Array | None = None,
    *,
    state: str = "none",
    fast: FastState | None = None,
):
    """Weighted sum of cross-entropies, and what the metrics need.

    Args:
      model: the model.
      slow: its parameters.
      batch: arrays [B,T]. ``valid`` and ``reset`` may be None: all valid, no resets.
      weights: [B,T] weight of each position. A position of weight 0 has no influence on the gradient.
      key: randomness of dropout; None switches dropout off.
      state: "mean" to get what the batch's last episodes wrote, for consolidation; "full" to go on from.
      fast: the state to go on from; None starts from zeros.

    Returns:
      Σ weight · cross-entropy in nats, and (number of answer tokens predicted right, the state asked for). Both numbers are
      float32 scalars.
    """
    rngs = None if key is None else {"dropout": key}
    output = model.apply(
        {"params": slow},
        batch.tokens,
        fast,
        valid=batch.valid,
        reset=batch.reset,
        state=state,
        deterministic=key is None,
        rngs=rngs,
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch.targets)
    total = jnp.sum(losses * weights)
    right = jnp.sum(batch.answer * (jnp.argmax(output.logits, axis=-1) == batch.targets))
    return total, (right, jax.lax.stop_gradient(output.fast))


def gradients(
    model: Model,
    slow: Slow,
    batch: Batch,
    loss: Loss,
    accumulation: int,
    key: jax.Array | None,
    *,
    state: str = "none",
    fill_ridge: float = 0.1,
    fill_layers: Sequence[int] = (),
    fast: FastState | None = None,
) -> tuple[jax.Array, jax.Array, Slow, FastState | None]:
    """Loss and gradients of a batch, computed in ``accumulation`` slices one after the other.

    The loss is normalised by the weight of the whole batch, so slices of unequal weight count as they would in one piece.

    Args:
      model: the model.
      slow: its parameters.
      batch: arrays [B,T]; B is a multiple of ``accumulation``.
      loss: which positions count.
      accumulation: number of slices A.
      key: randomness of dropout, or None.
      state, fast: as in :func:`loss_fn`; "mean" gives the mean over the whole batch. "full" needs ``accumulation`` 1.
      fill_ridge, fill_layers: of :func:`bdh_jax.training.prefilled_synapse.fill_synapse`, for a batch with ``fill``. Every slice fills the synapse
        again.

    Returns:
      (loss, answer accuracy, gradients of the trained parameters, state or None).
    """
    trained, frozen = split_trained(slow, model.config)
    weights = loss_weights(batch, loss)
    fill, batch, carried = batch.extra, batch._replace(extra=None), fast

    def slice_loss(trained, batch, weights, key):
        slow, reader = {**trained, **frozen}, model
        if fill is not None:
            slow, reader = fill_synapse(model, slow, fill, fill_ridge, fill_layers), make_reader(model)
        return loss_fn(reader, slow, batch, weights, key, state=state, fast=carried)

    slice_gradient = jax.value_and_grad(slice_loss, has_aux=True)
    if accumulation == 1:
        (total, (right, fast)), gradient = slice_gradient(trained, batch, weights, key)
    else:

        def add_slice(sums, inputs):
            index, batch, weights = inputs
            slice_key = None if key is None else jax.random.fold_in(key, index)
            result = slice_gradient(trained, batch, weights, slice_key)
            return jax.tree.map(jnp.add, sums, result), None

        batch_slices, weight_slices = jax.tree.map(lambda x: _slices(x, accumulation, model.mesh), (batch, weights))
        inputs = (jnp.arange(accumulation), batch_slices, weight_slices)
        _, first_batch, first_weights = jax.tree.map(lambda x: x[0], inputs)
        sums = jax.eval_shape(slice_gradient, trained, first_batch, first_weights, key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)
        ((total, (right, fast)), gradient), _ = jax.lax.scan(add_slice, zeros, inputs)
        fast = jax.tree.map(lambda leaf: leaf / accumulation, fast)

    scale = 1 / _at_least_something(jnp.sum(weights))
    accuracy = right / _at_least_something(jnp.sum(batch.answer))
    return total * scale, accuracy, jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient), fast


def make_train_step(
    model: Model, optimizer: optax.GradientTransformation, config: ExperimentConfig, mesh: Mesh
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Build the jitted training step.

    Args:
      model: the model, built on ``mesh`` if that has several devices.
      optimizer: as of :func:`bdh_jax.training.optimizer.make_optimizer`.
      config: the experiment.
      mesh: device mesh of ``bdh_jax.parallel.axes.make_mesh``.

    Returns:
      ``step(state, batch, key) -> (state, metrics)``. ``state`` is donated. ``batch`` comes from :func:`put_batch`, ``key``
      is the run's, replicated; each step folds its number into it. Metrics are scalars: loss, answer_accuracy, grad_norm
      (before clipping), learning_rate, tokens (valid ones), and finite, a dict: "loss", "gradient" and the path of every leaf that
      consolidation made or that is carried on → whether it is.

    Raises:
      ConfigError: for a consolidation function that does not exist, cannot be traced or returns other trees than it was given.
    """
    schedule = make_schedule(config.optimizer, config.train.steps)
    carry = config.train.carry_state
    consolidation = make_consolidation(config)
    if consolidation is not None:
        _check_consolidation(consolidation, model, config)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step) if config.model.dropout > 0 else None
        loss, accuracy, gradient, fast = gradients(
            model,
            state.slow,
            batch,
            config.train.loss,
            config.train.accumulation,
            step_key,
            state="full" if carry else "none" if consolidation is None else "mean",
            fill_ridge=config.train.fill_ridge,
            fill_layers=config.train.fill_layers,
            fast=state.fast if carry else None,
        )
        trained, frozen = split_trained(state.slow, config.model)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
        slow = {**optax.apply_updates(trained, updates), **frozen}
        norm = optax.tree.norm(gradient)
        finite = {"loss": jnp.isfinite(loss), "gradient": jnp.isfinite(norm)}
        memory = state.memory
        if consolidation is not None:
            slow, memory = jax.lax.cond(
                (state.step + 1) % config.consolidation.every == 0,
                lambda slow, memory: consolidation.update(slow, fast, fast.activity, memory),
                lambda slow, memory: (slow, memory),
                slow,
                memory,
            )
            finite |= finite_leaves({"slow": slow, "memory": memory})
        if carry:
            finite |= finite_leaves({"fast": fast})
        metrics = {
            "loss": loss,
            "answer_accuracy": accuracy,
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "tokens": jnp.asarray(batch.tokens.size if batch.valid is None else jnp.sum(batch.valid), jnp.int32),
            "finite": finite,
        }
        next_state = TrainState(
            step=state.step + 1, slow=slow, opt_state=opt_state, memory=memory, fast=fast if carry else ()
        )
        return next_state, metrics

    rows = config.train.batch_size if carry else None
    state_shardings = _state_shardings(mesh, abstract_state(model, optimizer, mesh, consolidation, rows))
    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_keys(seed: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Keys of a run, on every device: one for the initial parameters, one for the steps."""
    return jax.jit(lambda: tuple(jax.random.split(jax.random.key(seed))), out_shardings=replicated(mesh))()


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    consolidation: Consolidation | None = None,
    carried_rows: int | None = None,
) -> TrainState:
    """A fresh training state, made on its devices: no device ever holds more than its shards.

    Args:
      model: the model.
      optimizer: as of :func:`bdh_jax.training.optimizer.make_optimizer`.
      mesh: device mesh.
      key: randomness of the initial parameters. The mesh does not change what it gives.
      consolidation: what :func:`make_consolidation` gives for the experiment.
      carried_rows: B of the fast state that goes on from step to step; None for none.
    """
    # Compiled on its own it is traced once, for the shapes and for the values.
    initialise = jax.jit(_initialiser(model, optimizer, mesh, consolidation, carried_rows))
    out_shardings = _state_shardings(mesh, jax.eval_shape(initialise, key))
    return jax.jit(initialise, out_shardings=out_shardings)(key)


def abstract_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    consolidation: Consolidation | None = None,
    carried_rows: int | None = None,
) -> TrainState:
    """Shapes and dtypes of :func:`init_state`'s result, with their shardings, without computing it."""
    shapes = jax.eval_shape(_initialiser(model, optimizer, mesh, consolidation, carried_rows), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        _state_shardings(mesh, shapes),
    )


def _state_shardings(mesh: Mesh, state: TrainState) -> TrainState:
    # What a consolidation function remembers is not looked up by the names of the state's own fields.
    memory = shardings(mesh, state.memory, axes=MEMORY_AXES)
    return shardings(mesh, state.replace(memory=())).replace(memory=memory)


def make_predict(model: Model, mesh: Mesh) -> Callable[[Slow], Predict]:
    """Build what a task's evaluation calls.

    ``make_predict(model, mesh)(slow)`` is ``predict(tokens [B,T], valid [B,T], reset=None) -> logits [B,T,V]``. Any B is taken;
    rows are added and dropped where the mesh needs it. Logits come back as a NumPy array, on every process.
    """

    def logits(slow, tokens, valid, reset):
        return model.apply({"params": slow}, tokens, valid=valid, reset=reset, state="none").logits

    jitted = jax.jit(logits, out_shardings=replicated(mesh))

    def with_slow(slow: Slow) -> Predict:
        def predict(tokens: np.ndarray, valid: np.ndarray, reset: np.ndarray | None = None) -> np.ndarray:
            rows = len(tokens)
            index = np.minimum(np.arange(-(-rows // mesh.shape["data"]) * mesh.shape["data"]), rows - 1)
            valid = None if np.all(valid) else valid
            reset = None if reset is None or not np.any(reset) else reset
            masks = [None if mask is None else mask[index] for mask in (valid, reset)]
            return jax.device_get(jitted(slow, *put((tokens[index], *masks), mesh)))[:rows]

        return predict

    return with_slow


def put_batch(batch: Batch, mesh: Mesh, *, may_reset: bool = False) -> Batch:
    """Put a batch of NumPy arrays [B,T] on the mesh.

    Masks that mask nothing become None, which saves the model the work of applying them; with ``may_reset`` resets stay, so that
    batches with and without any are one program. With several processes every one passes the whole batch (it is a pure function of
    seed and step) and feeds its own devices their rows.
    """
    return put(_without_masks(batch, may_reset), mesh)


def _without_masks(batch: Batch, may_reset: bool = False) -> Batch:
    return batch._replace(
        valid=None if np.all(batch.valid) else batch.valid,
        reset=batch.reset if may_reset or np.any(batch.reset) else None,
        extra=None if batch.extra is None else _without_masks(batch.extra),
    )


def put(tree: Any, mesh: Mesh) -> Any:
    """Put NumPy arrays [B, ...] on the mesh, B over ``data``. Every process passes the same arrays."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, global_shape=x.shape), tree)


def _initialiser(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    consolidation: Consolidation | None,
    carried_rows: int | None,
) -> Callable[[jax.Array], TrainState]:
    def init(key: jax.Array) -> TrainState:
        slow = model.init_slow(key)
        trained, _ = split_trained(slow, model.config)
        memory = () if consolidation is None else consolidation.init(slow)
        fast = () if carried_rows is None else model.init_fast(carried_rows)
        return TrainState(jnp.zeros((), jnp.int32), slow, optimizer.init(trained), memory, fast)

    return init


def _check_consolidation(consolidation: Consolidation, model: Model, config: ExperimentConfig) -> None:
    slow = jax.eval_shape(model.init_slow, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((config.train.batch_size // config.train.accumulation, 2), jnp.int32)
    fast = jax.eval_shape(lambda slow, tokens: model.apply({"params": slow}, tokens, state="mean").fast, slow, tokens)
    check(consolidation, slow, fast)


def _slices(array: jax.Array, count: int, mesh: Mesh | None) -> jax.Array:
    """[B, ...] → [A, B / A, ...]. Slice a takes rows a, a + A, …: every device keeps the rows it has."""
    array = array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
    return array if mesh is None else jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P(None, "data")))


def _at_least_something(total: jax.Array) -> jax.Array:
    return jnp.where(total > 0, total, 1.0)
