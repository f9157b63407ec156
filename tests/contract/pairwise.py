"""Choose few rows of a product so that every pair of values of two factors occurs in some row."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def pairs_of(row: Mapping[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """The pairs of values a row has."""
    return set(itertools.combinations(row.items(), 2))


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """A covering array of strength 2, by greed: each row starts from a pair still missing and takes, factor by factor, the
    value that adds most missing pairs. Deterministic; a few rows more than the least possible.

    Args:
      factors: name → values, at least two factors.

    Returns:
      Rows, name → value, in which every pair of values of two different factors occurs.
    """
    names = list(factors)
    missing = dict.fromkeys(  # a dict keeps the order, so that the result is the same in every process
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in factors[a] for y in factors[b]
    )
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for name in names:
            if name not in row:

                def gain(value, name=name, row=row):
                    new = {**row, name: value}
                    ordered = {n: new[n] for n in names if n in new}
                    return len(pairs_of(ordered) & missing.keys())

                # Ties go round the values, so that none is favoured.
                values = list(factors[name])
                turn = len(rows) % len(values)
                row[name] = max(values[turn:] + values[:turn], key=gain)
        row = {name: row[name] for name in names}
        rows.append(row)
        for pair in pairs_of(row):
            missing.pop(pair, None)
    return rows
