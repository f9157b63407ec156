"""The rows of the lifelong benchmark's table: every learner, bound and control by name, and the rates to choose from."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from bdh_jax import consolidation
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.consolidation import Function
from bdh_jax.consolidation.base import is_factory
from bdh_jax.consolidation.least_squares import Layers
from bdh_jax.lifelong.bounds import nearest_neighbour, never_reset, ridge
from bdh_jax.lifelong.controls import shuffled, untrained
from bdh_jax.lifelong.learners import Learner, consolidated, gradient, with_rule
from bdh_jax.models.bdh import BDH

LEAST_SQUARES_RIDGE = 0.1


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the table. Its *rate* is the one number of it that is chosen on validation streams: a learning rate, a share, a ridge."""

    name: str
    build: Callable[[BDH, Any, int], Learner]
    """(model, rate, F) → learner; the rate may be traced."""
    rates: tuple[float, ...] = ()
    """To choose from on validation streams; empty: there is none."""
    rate_of: str = ""
    """Take the rate of the contestant of this name."""
    traced: bool = True
    """Whether ``build`` takes a rate whose value is not known yet, so that one program serves all rates."""
    own: Function | None = None
    """A function from outside the library, which is checked before anything is measured."""

    def __post_init__(self) -> None:
        if self.rates and self.rate_of:
            raise ConfigError(f"contestant {self.name!r} has rates of its own and those of {self.rate_of!r}; choose one")


WRITE_RATES = (0.01, 0.03, 0.1, 0.2, 0.4, 1.0, 3.0)
"""What functions that add to the synapse choose from, yours included."""
_AVERAGES = (0.01, 0.03, 0.1, 0.3)
_STEPS = (1e-3, 3e-3, 1e-2, 3e-2)
_ERROR_STEPS = (0.1, 0.3, 1.0)
_BACKGROUNDS = (0.1, 0.3, 1.0)
_RIDGES = (0.01, 0.1, 1.0, 10.0)
_DRIFTS = (0.3, 1.0, 3.0, 10.0)
_TOLERANCES = (0.03, 0.3, 3.0)
_TRAININGS = (1e-4, 3e-4, 1e-3, 3e-3)
_DESCENTS = (1.0, 3.0, 10.0, 30.0, 100.0)


def own_function(
    name: str, function: Function | Callable[..., Function], rates: tuple[float, ...] = WRITE_RATES
) -> Contestant:
    """A row of the table for a consolidation function of your own, with a rate that is chosen as those of the other rows are.

    A parameter ``rate``, of the function or of a :func:`bdh_jax.consolidation.factory`, is that rate. Of any other function the change is
    multiplied by it, so that 1 is the function as it stands.

    Args:
      name: of the row.
      function: either form, see :mod:`bdh_jax.consolidation.base`, or a factory of one.
      rates: to choose from; empty for the function as it stands.
    """
    given: Any = function  # one of two kinds, which no type tells apart
    if not rates:
        return Contestant(name, lambda model, rate, facts: consolidated(model, given), own=given)
    takes_rate = "rate" in _parameters(given)

    def at(rate: Any) -> Function:
        if not takes_rate:
            return consolidation.scaled(given, rate)
        return given(rate=rate) if is_factory(given) else functools.partial(given, rate=rate)

    return Contestant(
        name,
        lambda model, rate, facts: consolidated(model, at(rate)),
        rates,
        # A function that is given its rate may look at the value.
        traced=not takes_rate,
        # As it was given: only of a tree of the right form can a change be scaled.
        own=at(rates[0]) if takes_rate else given,
    )


def _parameters(function: Any) -> tuple[str, ...]:
    if not callable(function):
        return ()
    try:
        return tuple(inspect.signature(function).parameters)
    except ValueError:  # a callable of C has no signature
        return ()


def _of(factory: Callable[..., Function], rates: tuple[float, ...] = WRITE_RATES, *, traced: bool = True) -> Contestant:
    def build(model: BDH, rate: Any, facts: int) -> Learner:
        return consolidated(model, factory(rate=rate))

    return Contestant(factory.__name__, build, rates, traced=traced)


def _gradient(name: str, rates: tuple[float, ...], **options: Any) -> Contestant:
    return Contestant(name, lambda model, rate, facts: gradient(model, rate, facts=facts, **options), rates)


def _changed(name: str, base: Contestant, change: Callable[[Learner], Learner]) -> Contestant:
    rate_of = base.name if base.rates else ""
    return Contestant(
        name, lambda model, rate, facts: change(base.build(model, rate, facts)), rate_of=rate_of, traced=base.traced
    )


def _ruled(rule: str, rates: tuple[float, ...]) -> Contestant:
    """All that a rule wrote goes into the synapse, which the next episode's predictions include; the rate is the rule's own η."""

    def build(model: BDH, rate: Any, facts: int) -> Learner:
        own = "gated_delta" if rule == "delta" and model.config.fast.rule_entry.gate is not None else rule
        return consolidated(with_rule(model, own, rate), consolidation.dense())

    return Contestant(rule, build, rates, traced=False)


def _summing(model: BDH) -> BDH:
    return BDH(change(model.config, fast=model.config.fast.sums()))


_NONE = Contestant("none", lambda model, rate, facts: consolidated(model, consolidation.none()))
_RIDGE = Contestant("ridge", lambda model, rate, facts: ridge(model))
_DENSE, _ROW_TOPK = _of(consolidation.dense), _of(consolidation.row_topk)


def contestants(ridge: float = LEAST_SQUARES_RIDGE, layers: Layers = None) -> dict[str, Contestant]:
    """All rows of the benchmark's table, by name.

    Args:
      ridge: of ``least_squares``, ``kalman`` and ``null_space``.
      layers: that these three and ``mesa`` consolidate; None for all.
    """

    def solved(factory: Callable[..., Function], option: str, rates: tuple[float, ...]) -> Contestant:
        def build(model: BDH, rate: Any, facts: int) -> Learner:
            return consolidated(_summing(model), factory(ridge, layers=layers, **{option: rate}))

        return Contestant(factory.__name__, build, rates, traced=False)

    def mesa(model: BDH, rate: Any, facts: int) -> Learner:
        # What the rule would read after the episode, from the sums it keeps: the rule itself solves at every token, which the
        # stream has no use for.
        return consolidated(_summing(model), consolidation.least_squares(rate, background=0.0, layers=layers))

    kalman = solved(consolidation.kalman, "drift", _DRIFTS)
    rows = (
        _NONE,
        _DENSE,
        _ROW_TOPK,
        _of(consolidation.row_random),
        _of(consolidation.row_bottom),
        _of(consolidation.threshold),
        _of(consolidation.running_average, _AVERAGES, traced=False),
        _of(consolidation.tfidf_rows),
        _of(consolidation.importance_weighted),
        _of(consolidation.cascade),
        _ruled("delta", _ERROR_STEPS),
        _ruled("longhorn", _ERROR_STEPS),
        _ruled("oja", _ERROR_STEPS),
        Contestant("mesa", mesa, _RIDGES, traced=False),
        solved(consolidation.least_squares, "background", _BACKGROUNDS),
        kalman,
        solved(consolidation.null_space, "tolerance", _TOLERANCES),
        Contestant("never_reset", lambda model, rate, facts: never_reset(model)),
        _RIDGE,
        Contestant("nearest_neighbour", lambda model, rate, facts: nearest_neighbour(model)),
        _gradient("replay_synapse", _STEPS, target="synapse", replay=True),
        _gradient("replay_synapse_sgd", _DESCENTS, target="synapse", replay=True, optimizer="sgd"),
        _gradient("replay_slow", _TRAININGS, target="slow", replay=True),
        _gradient("fine_tuning", _TRAININGS, target="slow", replay=False),
        _changed("dense_shuffled", _DENSE, shuffled),
        _changed("row_topk_shuffled", _ROW_TOPK, shuffled),
        _changed("dense_untrained", _DENSE, untrained),
        _changed("row_topk_untrained", _ROW_TOPK, untrained),
        _changed("kalman_untrained", kalman, untrained),
        _changed("ridge_untrained", _RIDGE, untrained),
    )
    return {contestant.name: contestant for contestant in rows}


CONTESTANTS = contestants()
"""All rows, by name, with the settings that they have unless others are asked for."""
