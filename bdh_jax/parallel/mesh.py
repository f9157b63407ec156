"""The device mesh: its axes, its configuration, and what lies whole on every device or is split by examples."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax.config import ConfigError, check_types, require

MESH_AXES = ("data", "sequence", "heads", "neurons")
"""Examples; time; whole heads; the neurons within a head."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh: batch over ``data``, time over ``sequence``, whole heads over ``heads``, the neurons of a head over ``neurons``.

    Whole heads first: a head's read, norm and gate are then local, and only what is D wide crosses a layer. ``neurons`` is for more
    devices than heads. ``sequence`` is for windows whose activations do not fit: states are all that crosses it.
    """

    data: int = 1
    """Of −1: all devices that the other axes leave."""
    sequence: int = 1
    """Parts of a window's tokens. A window that it does not divide is padded."""
    heads: int = 1
    """Divides ``model.n_head``."""
    neurons: int = 1
    """Divides the neurons of a head."""
    fsdp: bool = False
    """Split parameters and optimiser state over ``data`` as well (``bdh_jax.parallel.axes.SPREAD``); they meet for a step only."""
    distributed: bool = False
    """Call ``jax.distributed.initialize()`` first: one process per host of a pod."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.data == -1 or self.data >= 1, f"mesh.data={self.data} must be at least 1, or -1 for all devices left")
        for name in ("sequence", "heads", "neurons"):
            require(getattr(self, name) >= 1, f"mesh.{name}={getattr(self, name)} must be at least 1")

    @property
    def shape(self) -> dict[str, int]:
        """Name of each axis → its length, as that of a mesh; ``data`` may be −1."""
        return {name: getattr(self, name) for name in MESH_AXES}


def make_mesh(
    config: MeshConfig,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] - JAX assigns the name of this class
) -> Mesh:
    """The mesh that a configuration asks for.

    Args:
      config: sizes of the axes; ``data=-1`` takes all devices that the others leave.
      devices: devices to use, in order; all devices of the machine (of all hosts) by default.

    Raises:
      ConfigError: if there are too few devices, or they do not divide.
    """
    devices = jax.devices() if devices is None else devices
    rows = config.sequence * config.heads * config.neurons
    sizes = (len(devices) // rows if config.data == -1 else config.data, config.sequence, config.heads, config.neurons)
    needed = math.prod(sizes)
    if needed == 0 or needed > len(devices):
        raise ConfigError(
            f"mesh.data={config.data} × mesh.sequence={config.sequence} × mesh.heads={config.heads} × mesh.neurons={config.neurons} needs "
            f"{max(needed, rows)} devices, but there are {len(devices)} ({devices[0].platform}); make the mesh smaller"
        )
    return Mesh(
        np.asarray(devices[:needed]).reshape(sizes), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch [B, ...]: examples over ``data``."""
    return NamedSharding(mesh, P("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())
