"""Settings of consolidation during training."""

from __future__ import annotations

import dataclasses

from bdh_jax.config.base import check_types, require
from bdh_jax.config.options import Options


@dataclasses.dataclass(frozen=True)
class ConsolidationConfig:
    """What moves fast weights into slow ones during training."""

    function: str = "none"
    """A name of ``bdh_jax.consolidation.FUNCTIONS``, or ``module:name`` for your own (``bdh_jax.consolidation.registry``)."""
    every: int = 1
    """Training steps from one consolidation to the next. A step's episodes are the last ones of its rows."""
    norm: float | None = None
    """Scale every change to this many times the norm of the batch mean of S (``consolidation.at_norm``)."""
    options: Options = Options()
    """The function's own, by name; those left out keep its defaults."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.every >= 1, f"consolidation.every={self.every} must be at least 1")
        object.__setattr__(self, "options", Options.of("consolidation.options", self.options))
