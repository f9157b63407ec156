"""What every part of the library speaks of: the one axis legend, and the type of slow weights.

Axis letters, in names, docstrings and einsums, everywhere:

    B  batch               H  head                     V  vocabulary
    T  time (tokens)       N  neurons per head         K  neurons over all heads, K = H·N
    L  layer               D  model width
"""

from __future__ import annotations

from typing import Any

Slow = dict[str, Any]
"""Slow weights: what training learned. A dict of arrays by name, nested as deep as the model declares it."""
