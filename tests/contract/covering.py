"""Choose few rows of a product so that every possible combination of values of two, three, … factors occurs in some row.

``possible`` says of values of some factors whether they can stand in one row. Whatever it allows has to fit into some whole row:
rows are filled value by value and never taken back.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Possible = Callable[[Mapping[str, Any]], bool]


def everything(row: Mapping[str, Any]) -> bool:
    """No combination is impossible."""
    del row
    return True


def combinations_of(row: Mapping[str, Any], strength: int) -> set[tuple[tuple[str, Any], ...]]:
    """The combinations of so many values that a row has."""
    return set(itertools.combinations(row.items(), strength))


def all_combinations(
    factors: Mapping[str, Sequence[Any]], strength: int, possible: Possible = everything
) -> set[tuple[tuple[str, Any], ...]]:
    """The possible combinations of so many values of different factors."""
    return set(_all_combinations(factors, strength, possible))


def _all_combinations(
    factors: Mapping[str, Sequence[Any]], strength: int, possible: Possible
) -> Iterator[tuple[tuple[str, Any], ...]]:
    for names in itertools.combinations(factors, strength):
        for values in itertools.product(*(factors[name] for name in names)):
            combination = tuple(zip(names, values, strict=True))
            if possible(dict(combination)):
                yield combination


def covering(
    factors: Mapping[str, Sequence[Any]],
    strength: int,
    *,
    tries: int = 30,
    required: Sequence[Mapping[str, Any]] = (),
    possible: Possible = everything,
    cost: Callable[[Mapping[str, Any]], float] = lambda row: 1,
) -> list[dict[str, Any]]:
    """A covering array, by greed: each row starts from a combination still missing and takes, factor by factor, the possible value
    that adds most missing ones. Then values that are needed for no combination give way to others that make their row cost less.
    Of several tries with ties broken at random the one that costs least; always the same one.

    Args:
      factors: name → values, at least ``strength`` factors.
      strength: of how many factors every possible combination of values has to occur.
      tries: how many arrays to make.
      required: values that have to stand together in one row; the first rows, in this order, are each one of these completed.
      possible: whether values of some factors can stand in one row.
      cost: of a row.

    Returns:
      Rows, name → value.
    """
    wanted = [frozenset(combination) for combination in _all_combinations(factors, strength, possible)]
    arrays = (
        _cheaper(
            factors,
            strength,
            _greedy(factors, strength, random.Random(seed), wanted, required, possible),
            required,
            possible,
            cost,
        )
        for seed in range(tries)
    )
    return min(arrays, key=lambda rows: sum(map(cost, rows)))


def _cheaper(
    factors: Mapping[str, Sequence[Any]],
    strength: int,
    rows: list[dict[str, Any]],
    required: Sequence[Mapping[str, Any]],
    possible: Possible,
    cost: Callable[[Mapping[str, Any]], float],
) -> list[dict[str, Any]]:
    held = collections.Counter(combination for row in rows for combination in combinations_of(row, strength))
    for number in range(len(rows)):
        fixed = required[number] if number < len(required) else {}
        for name in (name for name in factors if name not in fixed):
            row = rows[number]
            others = ({**row, name: value} for value in factors[name])
            changed = min((other for other in others if possible(other)), key=cost)
            if cost(changed) >= cost(row):
                continue
            before, after = combinations_of(row, strength), combinations_of(changed, strength)
            if all(held[combination] > 1 for combination in before - after):
                held.subtract(before)
                held.update(after)
                rows[number] = changed
    return rows


def _greedy(
    factors: Mapping[str, Sequence[Any]],
    strength: int,
    rng: random.Random,
    wanted: Sequence[frozenset[tuple[str, Any]]],
    required: Sequence[Mapping[str, Any]],
    possible: Possible,
) -> list[dict[str, Any]]:
    # A dict keeps the order, so that the result is the same in every process.
    missing = dict.fromkeys(wanted)
    rows: list[dict[str, Any]] = []
    while len(rows) < len(required) or missing:
        start = required[len(rows)] if len(rows) < len(required) else dict(sorted(next(iter(missing)), key=repr))
        row = dict(start)
        unset = [name for name in factors if name not in row]
        for name in rng.sample(unset, len(unset)):
            others = list(itertools.combinations(row.items(), strength - 1))
            gains = {
                value: sum(frozenset((*other, (name, value))) in missing for other in others)
                for value in factors[name]
                if possible({**row, name: value})
            }
            row[name] = rng.choice([value for value, gain in gains.items() if gain == max(gains.values())])
        rows.append({name: row[name] for name in factors})
        for combination in combinations_of(rows[-1], strength):
            missing.pop(frozenset(combination), None)
    return rows
