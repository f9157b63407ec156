"""Consolidation: pure functions that move part of what an episode wrote into the slow weights.

    slow = consolidation.row_topk(fraction=0.1, rate=1.0)(slow, out.fast, out.activity)

Your own is any jittable ``(slow, fast, activity) -> slow``; see :mod:`bdh_jax.consolidation.base` for one with memory.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from bdh_jax.config import ConfigError
from bdh_jax.consolidation.base import (
    Consolidation,
    ConsolidationError,
    Consolidator,
    Function,
    as_consolidation,
    check,
    make_consolidator,
    memory_nbytes,
)
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.consolidation.least_squares import kalman, least_squares, null_space
from bdh_jax.consolidation.rows import (
    at_norm,
    cascade,
    dense,
    importance_weighted,
    mean_state,
    none,
    row_bottom,
    row_random,
    row_scores,
    row_topk,
    running_average,
    tfidf_rows,
    threshold,
    top_rows,
)

FUNCTIONS: dict[str, Callable[..., Function]] = {
    factory.__name__: factory
    for factory in (
        none,
        dense,
        row_topk,
        row_random,
        row_bottom,
        threshold,
        running_average,
        tfidf_rows,
        importance_weighted,
        cascade,
        least_squares,
        kalman,
        null_space,
    )
}
"""Name → factory, for configurations."""


def make_function(name: str, **options: Any) -> Function:
    """Build a consolidation function from a name.

    Args:
      name: of ``FUNCTIONS``, or ``module:function`` for a callable (or an object with ``init`` and ``update``) of your own,
        which takes no options.
      options: arguments of the factory.

    Raises:
      ConfigError: for a name that does not exist or an option that the function does not have; lists the valid ones.
    """
    if ":" in name:
        return _import(name, options)
    if name not in FUNCTIONS:
        raise ConfigError(
            f"consolidation {name!r} does not exist. Valid names: {', '.join(FUNCTIONS)}; or module:function for your own"
        )
    valid = inspect.signature(FUNCTIONS[name]).parameters
    for option in options:
        if option not in valid:
            known = ", ".join(key for key in valid if key != "example_weights") or "none"
            raise ConfigError(f"consolidation {name!r} has no option {option!r}. Its options: {known}")
    return FUNCTIONS[name](**options)


def from_config(config: ConsolidationConfig) -> Function:
    """The function that a configuration names.

    Raises:
      ConfigError: as :func:`make_function`; or if there is a ``norm`` for a change that "none" does not make.
    """
    function = make_function(config.function, **config.options)
    if config.norm is not None and config.function == "none":
        raise ConfigError(
            f'consolidation.norm={config.norm} scales a change, and consolidation.function="none" makes none; name a '
            "function, or set norm to None"
        )
    return function if config.norm is None else at_norm(function, config.norm)


def _import(name: str, options: dict[str, Any]) -> Function:
    if options:
        raise ConfigError(
            f"consolidation {name!r} takes no options, but {', '.join(options)} was given; set them in your module"
        )
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError, TypeError) as error:  # TypeError: a relative name
        raise ConfigError(
            f"consolidation {name!r}: module {module!r} cannot be imported ({error}). It must lie on the Python path; the "
            "folder you start from does"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"consolidation {name!r}: module {module!r} has no {attribute!r}") from error
    as_consolidation(function)
    return function


__all__ = [
    "FUNCTIONS",
    "Consolidation",
    "ConsolidationError",
    "Consolidator",
    "Function",
    "as_consolidation",
    "at_norm",
    "cascade",
    "check",
    "dense",
    "from_config",
    "importance_weighted",
    "kalman",
    "least_squares",
    "make_consolidator",
    "make_function",
    "mean_state",
    "memory_nbytes",
    "none",
    "null_space",
    "row_bottom",
    "row_random",
    "row_scores",
    "row_topk",
    "running_average",
    "tfidf_rows",
    "threshold",
    "top_rows",
]
