"""The accelerators that kernels and training steps are compiled for, on a machine that has none (``bdh_jax.parallel.chips``)."""

from __future__ import annotations

import os
from typing import NamedTuple

from bdh_jax.parallel import chips
from bdh_jax.parallel.chips import description, missing, versions

__all__ = ["PLATFORMS", "TARGETS", "Target", "description", "devices", "missing", "prepare", "versions"]
PLATFORMS = ("tpu", "gpu")


class Target(NamedTuple):
    """An accelerator."""

    name: str
    platform: str
    topology: str
    """The smallest one that has it."""
    quick: bool
    """Whether it is tried at every commit."""


TARGETS = (
    Target("v5e", "tpu", "v5e:2x2", quick=True),
    Target("v5p", "tpu", "v5p:2x2x1", quick=False),
    Target("v6e", "tpu", "v6e:2x2", quick=False),
    Target("H100", "gpu", "h100:1", quick=True),
)


def prepare(platform: str) -> None:
    """Set what has to be set before JAX is imported: arrays live on the CPU, and nobody looks for a TPU.

    Args:
      platform: of ``PLATFORMS``.
    """
    target = next(target for target in TARGETS if target.platform == platform)
    os.environ.update(chips.environment(chips.read_topology(target.topology)))


def devices(target: Target) -> list:
    """The devices of a target's topology, for compilation alone."""
    return chips.devices(chips.read_topology(target.topology))
