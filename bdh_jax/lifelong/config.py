"""Sizes of the lifelong benchmark."""

from __future__ import annotations

import dataclasses

from bdh_jax.config import ConfigError, check_types
from bdh_jax.config.seeds import whole_seed
from bdh_jax.lifelong.stream import StreamConfig
from bdh_jax.tasks.facts import combinations


@dataclasses.dataclass(frozen=True)
class LifelongConfig:
    """Sizes of the benchmark."""

    stream: StreamConfig = dataclasses.field(default_factory=StreamConfig)
    streams: int = 10
    """R, test streams; every model sees the same ones."""
    validation_streams: int = 1
    """Streams, others than those, on which the first model chooses rates."""
    seed: int = 0
    """Of the first test stream; the others follow."""
    known: int = 256
    """Facts that the model learned by gradient: ``task.known`` of its training."""
    reference: str = "dense"
    """The row that all others are compared with."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("streams", "validation_streams"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        object.__setattr__(self, "seed", whole_seed(self.seed))
        most = len(combinations().known)
        if not 0 <= self.known <= most:
            raise ConfigError(f"known={self.known} must lie in 0 … {most}")
