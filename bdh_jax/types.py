"""What every part of the library speaks of: the one axis legend, and the type of slow weights.

Axis letters, in names, docstrings and einsums, everywhere:

    B  batch               H  head                     V  vocabulary
    T  time (tokens)       N  neurons per head         K  neurons over all heads, K = H·N
    L  layer               D  model width
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

Slow = dict[str, Any]
"""Slow weights: what training learned. A dict of arrays by name, nested as deep as the model declares it."""


class Struct:
    """Base of ``flax.struct`` dataclasses: it tells type checkers what the decorator adds."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> Self:
            """The same with other values in these fields."""
            ...
