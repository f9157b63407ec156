"""What a training step changes: its parts, its start, where it lies on a mesh, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from bdh_jax.models.base import Model
from bdh_jax.parallel.axes import shardings, spec_of
from bdh_jax.parallel.mesh import replicated
from bdh_jax.training.hooks import NO_HOOKS, Hooks
from bdh_jax.training.optimizer import split_trained
from bdh_jax.types import Slow

_CONSOLIDATION = "consolidation"


@flax.struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
      step: int32 scalar, updates made so far.
      slow: parameters by name.
      opt_state: optimiser state of the trained parameters.
      history: what the hooks' updates remember, by their names.
      fast: the state that the next step starts from, with ``train.carry_state``; () otherwise.
    """

    step: jax.Array
    slow: Slow
    opt_state: Any
    history: dict[str, Any] = flax.struct.field(default_factory=dict)
    fast: Any = ()


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    hooks: Hooks = NO_HOOKS,
    carried_rows: int | None = None,
    fsdp: bool = False,
) -> TrainState:
    """A fresh training state, made on its devices: no device ever holds more than its shards.

    Args:
      model: the model.
      optimizer: as of :func:`bdh_jax.training.optimizer.make_optimizer`.
      mesh: device mesh.
      key: randomness of the initial parameters. The mesh does not change what it gives.
      hooks: of :func:`bdh_jax.training.hooks.make_hooks`.
      carried_rows: B of the fast state that goes on from step to step; None for none.
      fsdp: whether parameters and optimiser state are split over ``data`` as well.
    """
    # Compiled on its own it is traced once, for the shapes and for the values.
    initialise = jax.jit(_initialiser(model, optimizer, hooks, carried_rows))
    out_shardings = state_shardings(model, optimizer, mesh, jax.eval_shape(initialise, key), hooks, fsdp)
    return jax.jit(initialise, out_shardings=out_shardings)(key)


def state_from(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    slow: Slow,
    hooks: Hooks = NO_HOOKS,
    carried_rows: int | None = None,
    fsdp: bool = False,
) -> TrainState:
    """As :func:`init_state`, from slow weights that are there already: arrays on the host, the same in every process."""
    fresh = jax.jit(_starter(model, optimizer, hooks, carried_rows))
    placed = jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(leaf.shape, sharding, lambda part: leaf[part]),
        slow,
        shardings(model.declared_slow(), mesh, fsdp=fsdp),
    )
    out_shardings = state_shardings(model, optimizer, mesh, jax.eval_shape(fresh, placed), hooks, fsdp)
    return jax.jit(fresh, out_shardings=out_shardings)(placed)


def abstract_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    hooks: Hooks = NO_HOOKS,
    carried_rows: int | None = None,
    fsdp: bool = False,
) -> TrainState:
    """Shapes and dtypes of :func:`init_state`'s result, with their shardings, without computing it."""
    shapes = jax.eval_shape(_initialiser(model, optimizer, hooks, carried_rows), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(model, optimizer, mesh, shapes, hooks, fsdp),
    )


def state_shardings(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh, state: TrainState, hooks: Hooks, fsdp: bool = False
) -> TrainState:
    """Where each array of a training state lies, from what the model and the hooks declare."""
    whole: Any = replicated(mesh)
    slow = shardings(model.declared_slow(), mesh, fsdp=fsdp)
    trained, _ = split_trained(slow, model.declared_slow())
    opt_state = optax.tree.map_params(
        optimizer, lambda leaf, sharding: sharding, state.opt_state, trained, transform_non_params=lambda leaf: whole
    )
    history = {
        update.name: _history_shardings(
            mesh, state.history[update.name], None if update.axes is None else update.axes(state.slow)
        )
        for update in hooks.updates
    }
    fast = state.fast
    if jax.tree.leaves(fast):
        fast = shardings(model.declared_fast(fast.batch_size), mesh)
    return TrainState(whole, slow, opt_state, history, fast)


def _history_shardings(mesh: Mesh, history: Any, axes: Any) -> Any:
    if axes is None:
        return jax.tree.map(lambda leaf: replicated(mesh), history)
    return jax.tree.map(lambda leaf, names: NamedSharding(mesh, spec_of(names, mesh)), history, axes)


def saved_trees(state: TrainState) -> dict[str, Any]:
    """A state as :class:`bdh_jax.runs.checkpoint.Checkpoints` saves it: slow weights apart, so that they can be read alone.

    A part without arrays is left out: there is nothing to write for it.
    """
    others = {
        name: history for name, history in state.history.items() if name != _CONSOLIDATION and jax.tree.leaves(history)
    }
    rest = {"memory": state.history.get(_CONSOLIDATION, ()), "history": others, "fast": state.fast}
    present = {name: tree for name, tree in rest.items() if jax.tree.leaves(tree)}
    return {"slow": state.slow, "optimizer": {"step": state.step, "state": state.opt_state, **present}}


def restored_state(trees: Mapping[str, Any], target: TrainState) -> TrainState:
    """The state of which :func:`saved_trees` made ``trees``. What has no arrays is that of ``target``."""
    rest = trees["optimizer"]
    history = target.history | rest.get("history", {})
    if "memory" in rest:
        history[_CONSOLIDATION] = rest["memory"]
    return TrainState(rest["step"], trees["slow"], rest["state"], history, rest.get("fast", target.fast))


def _initialiser(
    model: Model, optimizer: optax.GradientTransformation, hooks: Hooks, carried_rows: int | None
) -> Callable[[jax.Array], TrainState]:
    start = _starter(model, optimizer, hooks, carried_rows)
    return lambda key: start(model.init_slow(key))


def _starter(
    model: Model, optimizer: optax.GradientTransformation, hooks: Hooks, carried_rows: int | None
) -> Callable[[Slow], TrainState]:
    def start(slow: Slow) -> TrainState:
        trained, _ = split_trained(slow, model.declared_slow())
        fast = () if carried_rows is None else model.init_fast(carried_rows)
        return TrainState(jnp.zeros((), jnp.int32), slow, optimizer.init(trained), hooks.init(slow), fast)

    return start
