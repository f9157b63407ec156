"""Training steps of configurations, at their own sizes, as cases for a compiler."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bdh_jax.experiment import load_experiment, setup_of
from bdh_jax.parallel.mesh import batch_sharding, replicated
from bdh_jax.tasks.base import Batch, TaskConfig
from bdh_jax.tasks.text import TextConfig
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import abstract_state
from bdh_jax.training.step import make_train_step
from benchmarks.compilers.cases import Case

CONFIGS = ("configs/text.py:official", "configs/text.py:official,fast", "configs/nback.py:seed25m")


def cases(platform: str) -> list[Case]:
    """A case for each configuration."""
    del platform
    return [_case(named) for named in CONFIGS]


def _case(named: str) -> Case:
    config = load_experiment(named)
    batch = _batch(config.task, config.train.batch_size)

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        setup = setup_of(config)
        model = setup.model.build(None)
        hooks = make_hooks(setup.hooks, model)
        optimizer = make_optimizer(setup.optimizer, setup.train.steps)
        step = make_train_step(model, optimizer, setup, mesh, hooks=hooks)
        state = abstract_state(model, optimizer, mesh, hooks)
        key = jax.eval_shape(functools.partial(jax.random.key, 0))
        of_examples, whole = batch_sharding(mesh), replicated(mesh)
        rows = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=of_examples), batch)
        with jax.set_mesh(mesh):
            return step.lower(state, rows, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole))

    model, (rows, length) = config.model, batch.tokens.shape
    size = f"B {rows}, T {length}, L {model.n_layer}, D {model.d_model}, K {model.n_neurons}, {model.dtype}"
    return Case(f"training step of {named}", size, lower)


def _batch(task: TaskConfig, rows: int) -> Batch:
    """Shapes of a batch as :func:`bdh_jax.training.step.put_batch` leaves it: masks that mask nothing are None."""
    if isinstance(task, TextConfig):  # its batches need its data, and are windows without padding
        integers, numbers = (jax.ShapeDtypeStruct((rows, task.length), dtype) for dtype in (jnp.int32, jnp.float32))
        return Batch(integers, integers, numbers, numbers, None, None)
    batch = task.make(seed=0, batch_size=rows).batch(0)
    masks = {"valid": None if np.all(batch.valid) else batch.valid, "reset": batch.reset if np.any(batch.reset) else None}
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch._replace(**masks))
