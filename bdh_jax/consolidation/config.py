"""Settings of consolidation during training."""

from __future__ import annotations

import dataclasses
from typing import Any

from bdh_jax.config.base import require


@dataclasses.dataclass(frozen=True)
class ConsolidationConfig:
    """What moves fast weights into slow ones during training. Options that are None keep the function's own default."""

    function: str = "none"
    """A name in ``bdh_jax.consolidation.FUNCTIONS``, or ``module:function`` for your own (slow, fast, activity) -> slow."""
    every: int = 1
    """Training steps from one consolidation to the next. A step's episodes are the last ones of its rows."""
    norm: float | None = None
    """Scale every change to this many times the norm of the batch mean of S (``consolidation.at_norm``)."""
    rate: float | None = None
    fraction: float | None = None
    score: str | None = None
    level: float | None = None
    levels: int | None = None
    ratio: float | None = None
    protection: float | None = None
    ridge: float | None = None
    background: float | None = None
    drift: float | None = None
    tolerance: float | None = None
    seed: int | None = None
    target: str | None = None
    layers: tuple[int, ...] = ()
    """Layers, from 0, that ``least_squares``, ``kalman`` or ``null_space`` consolidate; empty for all."""

    def __post_init__(self):
        require(self.every >= 1, f"consolidation.every={self.every} must be at least 1")

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("function", "every", "norm")]
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, ())}
