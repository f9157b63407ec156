"""The accelerators that a run is planned for and programs are compiled for, on a machine that has none.

The compilers are the real ones: libtpu's XLA and Mosaic, and XLA for GPUs with ptxas. Each wants an environment of its own. Where neither is
there, a program can still be compiled for as many CPU devices as there would be chips: its collectives are the same, its temporaries not.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from bdh_jax.config import ConfigError


class Chip(NamedTuple):
    """An accelerator, at the rates that its maker states."""

    platform: str
    """"tpu", "gpu", or "cpu"."""
    memory: int
    """Bytes that a program may take."""
    flops: float
    """Dense bfloat16 operations a second; a multiply-add is two."""
    bandwidth: float
    """Bytes a second between the chip and its memory."""
    interconnect: float
    """Bytes a second that a chip sends to its neighbours, over all links; between GPUs of one machine."""
    smallest: str
    """The smallest topology that the compiler has."""
    dimensions: int
    """Of its torus: 2x2 has two."""
    of_a_machine: int
    """How many share a machine, which saves what they hold."""


GIB = 2**30
GPUS_OF_A_MACHINE = 8
CHIPS = {
    # cloud.google.com/tpu/docs/v5e, v5p, v6e: links are stated in gigabits a second. The compiler leaves programs a little less than all
    # of the memory.
    "v5e": Chip("tpu", int(15.75 * GIB), 197e12, 819e9, 1600e9 / 8, "2x2", 2, 4),
    "v5p": Chip("tpu", int(95.74 * GIB), 459e12, 2765e9, 4800e9 / 8, "2x2x1", 3, 4),
    "v6e": Chip("tpu", int(31.25 * GIB), 918e12, 1640e9, 3200e9 / 8, "2x2", 2, 4),
    # NVIDIA's data sheet of the SXM version; NVLink has 900 GB/s, half of it in each direction. Memory as CUDA has it.
    "h100": Chip("gpu", 84_978_434_048, 989e12, 3350e9, 450e9, "1", 1, GPUS_OF_A_MACHINE),
}
"""Name → chip. The rates of a CPU are not known."""

_NEEDS = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12"), "cpu": ()}
_ENVIRONMENT = {
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no TPU that two processes could want
    },
    "gpu": {},
    "cpu": {},
}
_DESCRIBED = Path(__file__).with_name("h100.txtpb")


class Topology(NamedTuple):
    """So many chips of a kind, and how they are connected."""

    name: str
    """Of ``CHIPS``, or "cpu"."""
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip | None:
        """What is known of its chips; None of CPU devices."""
        return CHIPS.get(self.name)

    @property
    def platform(self) -> str:
        """Whose compiler it wants: "tpu", "gpu" or "cpu"."""
        return "cpu" if self.chip is None else self.chip.platform

    @property
    def size(self) -> int:
        """How many chips."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))}"


def read_topology(text: str) -> Topology:
    """The topology that ``v5p:8x8x8``, ``h100:8`` or ``cpu:8`` names.

    Raises:
      ConfigError: for another form, a chip that is not known, or too few dimensions.
    """
    name, _, sizes = text.lower().partition(":")
    known = (*CHIPS, "cpu")
    if name not in known:
        raise ConfigError(f"--topology={text} names the chip {name!r}; known are {', '.join(known)}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise ConfigError(f"--topology={text} must be a chip and a shape, such as v5e:2x2, v5p:8x8x8, h100:8 or cpu:8")
    found = Topology(name, tuple(map(int, sizes.split("x"))))
    wanted = 1 if found.chip is None else found.chip.dimensions
    if len(found.shape) != wanted:
        example = f"{name}:{'x'.join(['4'] * wanted)}"
        raise ConfigError(f"--topology={text}: chips of {name} are connected in {wanted} dimensions, such as {example}")
    return found


def environment(topology: Topology) -> dict[str, str]:
    """What has to be set before JAX is imported: arrays live on the CPU, and nobody looks for an accelerator."""
    found = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", **_ENVIRONMENT[topology.platform]}
    if topology.platform == "cpu":
        found["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={topology.size}"
    return found


def missing(platform: str) -> list[str]:
    """Packages that a platform's compiler needs and that are not installed."""
    return [name for name in _NEEDS[platform] if _version(name) is None]


def versions(platform: str) -> dict[str, str | None]:
    """Package → version of all that a compiled program depends on."""
    return {name: _version(name) for name in ("jax", "jaxlib", *_NEEDS[platform])}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def description(platform: str) -> str:
    """What the compiler is told of the chip, beside its topology: a result depends on it."""
    return _DESCRIBED.read_text(encoding="utf-8") if platform == "gpu" else ""


def devices(topology: Topology) -> list[Any]:
    """The devices of a topology, for compilation alone, in a process that has :func:`environment` set."""
    import jax  # reads the environment
    from jax.experimental import topologies

    if topology.platform == "cpu":
        return jax.devices()[: topology.size]
    shape = "x".join(map(str, topology.shape))
    if topology.platform == "tpu":
        return list(topologies.get_topology_desc(platform="tpu", topology_name=f"{topology.name}:{shape}").devices)
    machines, of_each = divmod(topology.size, GPUS_OF_A_MACHINE)
    shape = f"1x{machines}x{GPUS_OF_A_MACHINE}" if machines and not of_each else f"1x1x{topology.size}"
    return list(
        topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=description("gpu"), topology=shape
        ).devices
    )
