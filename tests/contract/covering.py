"""Choose few rows of a product so that every combination of values of two, three, … factors occurs in some row."""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def combinations_of(row: Mapping[str, Any], strength: int) -> set[tuple[tuple[str, Any], ...]]:
    """The combinations of so many values that a row has."""
    return set(itertools.combinations(row.items(), strength))


def all_combinations(factors: Mapping[str, Sequence[Any]], strength: int) -> set[tuple[tuple[str, Any], ...]]:
    """The combinations of so many values of different factors that there are."""
    return {
        tuple(zip(names, values, strict=True))
        for names in itertools.combinations(factors, strength)
        for values in itertools.product(*(factors[name] for name in names))
    }


def covering(
    factors: Mapping[str, Sequence[Any]],
    strength: int,
    *,
    tries: int = 30,
    given: Sequence[Mapping[str, Any]] = (),
    cost: Callable[[Mapping[str, Any]], float] = lambda row: 1,
) -> list[dict[str, Any]]:
    """A covering array, by greed: each row starts from a combination still missing and takes, factor by factor, the value that
    adds most missing ones. Then values that are needed for no combination give way to others that make their row cost less.
    Of several tries with ties broken at random the one that costs least; always the same one.

    Args:
      factors: name → values, at least ``strength`` factors.
      strength: of how many factors every combination of values has to occur.
      tries: how many arrays to make.
      given: rows to start from, which stay as they are.
      cost: of a row.

    Returns:
      Rows, name → value.
    """
    arrays = (
        _cheaper(factors, strength, _greedy(factors, strength, random.Random(seed), given), len(given), cost)
        for seed in range(tries)
    )
    return min(arrays, key=lambda rows: sum(map(cost, rows)))


def _cheaper(
    factors: Mapping[str, Sequence[Any]],
    strength: int,
    rows: list[dict[str, Any]],
    fixed: int,
    cost: Callable[[Mapping[str, Any]], float],
) -> list[dict[str, Any]]:
    held = collections.Counter(combination for row in rows for combination in combinations_of(row, strength))
    for number in range(fixed, len(rows)):
        for name, values in factors.items():
            row = rows[number]
            changed = min(({**row, name: value} for value in values), key=cost)
            if cost(changed) >= cost(row):
                continue
            before, after = combinations_of(row, strength), combinations_of(changed, strength)
            if all(held[combination] > 1 for combination in before - after):
                held.subtract(before)
                held.update(after)
                rows[number] = changed
    return rows


def _greedy(
    factors: Mapping[str, Sequence[Any]], strength: int, rng: random.Random, given: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    names = list(factors)
    # A dict keeps the order, so that the result is the same in every process.
    missing = dict.fromkeys(
        frozenset(zip(chosen, values, strict=True))
        for chosen in itertools.combinations(names, strength)
        for values in itertools.product(*(factors[name] for name in chosen))
    )
    rows = [{name: row[name] for name in names} for row in given]
    for row in rows:
        _remove(missing, row, strength)
    while missing:
        row = dict(sorted(next(iter(missing)), key=repr))
        for name in rng.sample([name for name in names if name not in row], len(names) - strength):
            others = list(itertools.combinations(row.items(), strength - 1))
            gains = {
                value: sum(frozenset((*other, (name, value))) in missing for other in others) for value in factors[name]
            }
            row[name] = rng.choice([value for value, gain in gains.items() if gain == max(gains.values())])
        rows.append({name: row[name] for name in names})
        _remove(missing, row, strength)
    return rows


def _remove(missing: dict[frozenset, None], row: Mapping[str, Any], strength: int) -> None:
    for combination in combinations_of(row, strength):
        missing.pop(frozenset(combination), None)
