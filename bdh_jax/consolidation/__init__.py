"""Consolidation: pure functions that move part of what an episode wrote into the slow weights.

    slow = consolidation.row_topk(fraction=0.1, rate=1.0)(slow, out.fast, out.activity)

Your own is any jittable ``(slow, fast, activity) -> slow``; see :mod:`bdh_jax.consolidation.base` for one with a history.
"""

from bdh_jax.consolidation.base import (
    Consolidation,
    ConsolidationError,
    Consolidator,
    Function,
    as_consolidation,
    check,
    factory,
    history_nbytes,
    make_consolidator,
)
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.consolidation.history import cascade, importance_weighted, running_average, tfidf_rows
from bdh_jax.consolidation.least_squares import kalman, least_squares, null_space
from bdh_jax.consolidation.registry import FUNCTIONS, from_config, make_function
from bdh_jax.consolidation.rows import (
    at_norm,
    dense,
    mean_state,
    none,
    row_bottom,
    row_random,
    row_scores,
    row_topk,
    scaled,
    threshold,
    top_rows,
)

__all__ = [
    "FUNCTIONS",
    "Consolidation",
    "ConsolidationConfig",
    "ConsolidationError",
    "Consolidator",
    "Function",
    "as_consolidation",
    "at_norm",
    "cascade",
    "check",
    "dense",
    "factory",
    "from_config",
    "history_nbytes",
    "importance_weighted",
    "kalman",
    "least_squares",
    "make_consolidator",
    "make_function",
    "mean_state",
    "none",
    "null_space",
    "row_bottom",
    "row_random",
    "row_scores",
    "row_topk",
    "running_average",
    "scaled",
    "tfidf_rows",
    "threshold",
    "top_rows",
]
