"""Which array axis lies on which mesh axis: one table, used by the model, the train step and checkpoints.

The mesh has two axes. Sequences are spread over ``data``; neurons, the axis BDH grows along, over ``neurons``. Every array
of the library is found in ``LOGICAL_AXES`` by the last name of its path, so the same table serves parameters, their
optimiser state, their gradients and the fast state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax.config import ConfigError
from bdh_jax.parallel.mesh import MeshConfig

MESH_AXES = ("data", "neurons")

RULES: dict[str, str | None] = {
    "batch": "data",
    "neuron": "neurons",
    "layer": None,
    "head": None,
    "model": None,
    "vocab": None,
    "level": None,
    # Rule "mesa" solves for all rows together. Its sums come from arrays that are split over neurons, into one part.
    "row": None,
    "address": "neurons",
}
"""Logical axis → mesh axis."""

LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    # slow weights
    "embed": ("vocab", "model"),
    "encoder": ("model", "head", "neuron"),
    "encoder_v": ("head", "model", "neuron"),
    "decoder": ("head", "neuron", "model"),
    "lm_head": ("model", "vocab"),
    "synapse": ("layer", "head", "neuron", "model"),
    "fast_log_learning_rate": ("head",),
    "fast_logit_decay": ("head",),
    "fast_gate": ("model",),
    "fast_gate_bias": (),
    # fast state
    "attention": ("layer", "batch", "head", "neuron", "model"),
    "memory": ("layer", "batch", "head", "neuron", "model"),
    "gram": ("layer", "batch", "address", "row"),
    "previous_address": ("layer", "batch", "head", "neuron"),
    "previous_code": ("layer", "batch", "head", "neuron"),
    "strength": ("layer", "batch", "head", "neuron"),
    "energy": ("layer", "batch", "head", "neuron"),
    "position": ("batch",),
    "count": ("batch",),
}
"""Last name of a leaf's path → its logical axes. A leaf that is not listed is replicated."""

MEMORY_AXES: dict[str, tuple[str, ...]] = {
    "background": ("layer", "row", "row"),
    "covariance": ("layer", "row", "row"),
    "row_use": ("layer", "head", "neuron"),
    "row_importance": ("layer", "head", "neuron"),
    "levels": ("level", "layer", "head", "neuron", "model"),
}
"""The same for what consolidation functions remember, apart because a function of one's own may call its memory what it likes."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh ``data × neurons`` that the configuration asks for.

    Args:
      config: sizes of the two axes; ``data=-1`` takes all devices that ``neurons`` leaves.
      devices: devices to use, in order; all devices of the machine (of all hosts) by default.

    Raises:
      ConfigError: if there are too few devices, or they do not divide.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // config.neurons if config.data == -1 else config.data
    needed = data * config.neurons
    if needed == 0 or needed > len(devices):
        raise ConfigError(
            f"mesh.data={config.data} × mesh.neurons={config.neurons} needs {max(needed, config.neurons)} devices, but there are "
            f"{len(devices)} ({devices[0].platform}); make the mesh smaller"
        )
    return Mesh(
        np.asarray(devices[:needed]).reshape(data, config.neurons), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2
    )


def spec_of(name: str, *, batched: bool = True, axes: Mapping[str, tuple[str, ...]] = LOGICAL_AXES) -> P:
    """Partition of the array called ``name``. ``batched=False``: its batch axis has length 1 and is not split."""
    return P(*(RULES[axis] if batched or axis != "batch" else None for axis in axes.get(name, ())))


def specs(tree: Any, *, batched: bool = True, axes: Mapping[str, tuple[str, ...]] = LOGICAL_AXES) -> Any:
    """A tree of partition specs for any tree of arrays: parameters, gradients, optimiser state or fast state.

    Leaves are recognised by the last name of their path. One whose rank differs from the table's (a scalar statistic kept
    under a parameter's name, say) is replicated.

    Args:
      tree: pytree of arrays or of ``jax.ShapeDtypeStruct``.
      batched: as in :func:`spec_of`.
      axes: the table, ``LOGICAL_AXES`` or ``MEMORY_AXES``.
    """

    def spec(path, leaf) -> P:
        name = _last_name(path)
        if len(axes.get(name, ())) != len(leaf.shape):
            return P()
        return spec_of(name, batched=batched, axes=axes)

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(mesh: Mesh, tree: Any, *, batched: bool = True, axes: Mapping[str, tuple[str, ...]] = LOGICAL_AXES) -> Any:
    """As :func:`specs`, as ``NamedSharding`` on ``mesh``."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs(tree, batched=batched, axes=axes),
        is_leaf=lambda leaf: isinstance(leaf, P),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch [B, ...]: examples over ``data``."""
    return NamedSharding(mesh, P("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def _last_name(path: tuple[Any, ...]) -> str:
    for entry in reversed(path):
        name = getattr(entry, "key", getattr(entry, "name", None))
        if isinstance(name, str):
            return name
    return ""


def sum_over_shards(array: jax.Array, axis: str | None) -> jax.Array:
    """Inside ``jax.shard_map``: the sum over the mesh axis ``axis``; the array itself without a mesh (``axis`` None)."""
    return array if axis is None else jax.lax.psum(array, axis)


def vary_like(array: jax.Array, like: jax.Array) -> jax.Array:
    """``array`` typed as different on every shard where ``like`` is: inside ``jax.shard_map`` a carry must say so."""
    missing = jax.typeof(like).manual_axis_type.varying - jax.typeof(array).manual_axis_type.varying
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array
