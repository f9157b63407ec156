"""Choose few rows of a product so that every pair of values of two factors occurs in some row."""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def pairs_of(row: Mapping[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """The pairs of values a row has."""
    return set(itertools.combinations(row.items(), 2))


def pairwise(
    factors: Mapping[str, Sequence[Any]],
    tries: int = 30,
    given: Sequence[Mapping[str, Any]] = (),
    cost: Callable[[Mapping[str, Any]], float] = lambda row: 1,
) -> list[dict[str, Any]]:
    """A covering array of strength 2, by greed: each row starts from a pair still missing and takes, factor by factor, the
    value that adds most missing pairs. Then values that are needed for no pair give way to others that make their row cost
    less. Of several tries with ties broken at random the one that costs least; always the same one.

    Args:
      factors: name → values, at least two factors.
      tries: how many arrays to make.
      given: rows to start from, which stay as they are.
      cost: of a row.

    Returns:
      Rows, name → value, in which every pair of values of two different factors occurs.
    """
    arrays = (_cheaper(factors, _greedy(factors, random.Random(seed), given), len(given), cost) for seed in range(tries))
    return min(arrays, key=lambda rows: sum(map(cost, rows)))


def _cheaper(
    factors: Mapping[str, Sequence[Any]], rows: list[dict[str, Any]], fixed: int, cost: Callable[[Mapping[str, Any]], float]
) -> list[dict[str, Any]]:
    held = collections.Counter(pair for row in rows for pair in pairs_of(row))
    for number in range(fixed, len(rows)):
        for name, values in factors.items():
            row = rows[number]
            changed = min(({**row, name: value} for value in values), key=cost)
            if cost(changed) < cost(row) and all(held[pair] > 1 for pair in pairs_of(row) - pairs_of(changed)):
                held.subtract(pairs_of(row))
                held.update(pairs_of(changed))
                rows[number] = changed
    return rows


def _greedy(
    factors: Mapping[str, Sequence[Any]], rng: random.Random, given: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    names = list(factors)
    missing = dict.fromkeys(  # a dict keeps the order, so that the result is the same in every process
        frozenset({(a, x), (b, y)}) for a, b in itertools.combinations(names, 2) for x in factors[a] for y in factors[b]
    )
    rows = [{name: row[name] for name in names} for row in given]
    for row in rows:
        for pair in pairs_of(row):
            missing.pop(frozenset(pair), None)
    while missing:
        row = dict(sorted(next(iter(missing)), key=repr))
        for name in rng.sample([name for name in names if name not in row], len(names) - 2):
            gains = {
                value: sum(frozenset({item, (name, value)}) in missing for item in row.items()) for value in factors[name]
            }
            row[name] = rng.choice([value for value, gain in gains.items() if gain == max(gains.values())])
        rows.append({name: row[name] for name in names})
        for pair in pairs_of(row):
            missing.pop(frozenset(pair), None)
    return rows
