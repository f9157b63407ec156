"""The accelerators that programs are compiled for, on a machine that has none.

The compilers are the real ones: libtpu's XLA and Mosaic, and XLA and Mosaic for GPUs with ptxas. Each wants an environment of its own
(``make compile-tpu``, ``make compile-gpu``).
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import NamedTuple

PLATFORMS = ("tpu", "gpu")


class Target(NamedTuple):
    """An accelerator."""

    name: str
    platform: str
    topology: str
    """As ``jax.experimental.topologies`` calls the smallest one that has it; for a GPU the file that describes it."""
    quick: bool
    """Whether it is tried at every commit."""


TARGETS = (
    Target("v5e", "tpu", "v5e:2x2", quick=True),
    Target("v5p", "tpu", "v5p:2x2x1", quick=False),
    Target("v6e", "tpu", "v6e:2x2", quick=False),
    Target("H100", "gpu", "h100.txtpb", quick=True),
)
_NEEDS = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")}
_ENVIRONMENT = {
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no TPU that two processes could want
    },
    "gpu": {},
}


def prepare(platform: str) -> None:
    """Set what has to be set before JAX is imported: arrays live on the CPU, and nobody looks for a TPU.

    Args:
      platform: of ``PLATFORMS``.
    """
    os.environ.update({"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", **_ENVIRONMENT[platform]})


def missing(platform: str) -> list[str]:
    """Packages that a platform's compiler needs and that are not installed."""
    return [name for name in _NEEDS[platform] if _version(name) is None]


def versions(platform: str) -> dict[str, str | None]:
    """Package → version of all that a result depends on."""
    return {name: _version(name) for name in ("jax", "jaxlib", *_NEEDS[platform])}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices(target: Target) -> list:
    """The devices of a target's topology, for compilation alone."""
    from jax.experimental import topologies  # JAX reads the environment that `prepare` sets when it is imported

    if target.platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology).devices
    described = (Path(__file__).parent / target.topology).read_text(encoding="utf-8")
    return topologies.get_topology_desc(platform="cuda", topology_name="", target_config=described, topology="1x1x1").devices
