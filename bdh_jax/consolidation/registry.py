"""Consolidation functions by name, for configurations: those of this package, and a user's own.

A name is one of ``FUNCTIONS``, with options that are the parameters of its factory; or ``module:name`` of your own, which may be

* an object with ``init`` and ``update``: taken as it is, without options;
* a function whose first three parameters have no default: the consolidation function ``(slow, fast, activity) -> slow`` itself, with
  its further parameters as options;
* any other callable, or one marked with :func:`bdh_jax.consolidation.factory`: a factory, called with the options, which are its
  parameters.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from bdh_jax.config import ConfigError
from bdh_jax.config.files import describe
from bdh_jax.config.options import options_of
from bdh_jax.config.table import Table
from bdh_jax.consolidation.base import Consolidation, Function, as_consolidation, is_factory
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.consolidation.rows import at_norm

FUNCTIONS: Table[Any] = Table("consolidation function", package="bdh_jax.consolidation", attribute="FACTORIES")
"""Name → factory. Every module of the package that lists ``FACTORIES`` adds its own; a user's own may be a function already."""

_NO_OPTION = ("slow", "fast", "activity", "example_weights")


def make_function(name: str, **options: Any) -> Function:
    """Build a consolidation function from a name.

    Args:
      name: of ``FUNCTIONS``, or ``module:name`` of your own; see the module's docstring.
      options: arguments of the factory.

    Raises:
      ConfigError: for a name that does not exist or an option that the function does not have; lists the valid ones.
    """
    found = FUNCTIONS.get(name, where="consolidation.function")
    where = f"consolidation {name!r}"
    if _is_made(found):
        as_consolidation(found)
        if options:
            raise ConfigError(f"{where} has no option {next(iter(options))!r}: it is made already. Its options: none")
        return found
    options = options_of(found, options, where, leave_out=_NO_OPTION)
    if is_factory(found) or not _is_function(found):
        try:
            inspect.signature(found).bind(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where} cannot be called with the options {options}: {error}") from None
        try:
            made = found(**options)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{where} cannot be called with the options {options}: {describe(error)}") from error
        try:
            as_consolidation(made)
        except ConfigError as error:
            raise ConfigError(f"{where} was called with the options {options}, and what it returned: {error}") from None
        return made
    function = functools.partial(found, **options) if options else found
    as_consolidation(function)
    return function


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


def _is_made(found: Any) -> bool:
    """Whether it is an object with ``init`` and ``update``, or nothing that can be called."""
    return not callable(found) or isinstance(found, Consolidation)


def _is_function(found: Callable[..., Any]) -> bool:
    """Whether it is a consolidation function itself, by its first three parameters."""
    try:
        first = list(inspect.signature(found).parameters.values())[:3]
    except ValueError:  # a callable of C has no signature
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(first) == 3 and all(p.kind in positional and p.default is p.empty for p in first)
