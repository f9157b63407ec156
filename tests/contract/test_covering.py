"""The choice of rows, on a product small enough to look at."""

from __future__ import annotations

from tests.contract.covering import all_combinations, combinations_of, covering

FACTORS = {"a": (1, 2, 3), "b": (1, 2), "c": (1, 2, 3), "d": (1, 2)}


def unlike(row):
    """No 3 beside another 3, nor b = 2 with d = 2."""
    return not (row.get("a") == row.get("c") == 3 or row.get("b") == row.get("d") == 2)


def held(rows):
    return set().union(*(combinations_of(row, 2) for row in rows))


def test_every_possible_pair_is_there_and_no_other():
    rows = covering(FACTORS, 2, possible=unlike)
    assert held(rows) == all_combinations(FACTORS, 2, unlike)
    assert held(covering(FACTORS, 2)) == all_combinations(FACTORS, 2)
    assert len(all_combinations(FACTORS, 2)) - len(all_combinations(FACTORS, 2, unlike)) == 2


def test_what_is_required_stands_in_the_first_rows():
    required = [{"a": 3, "b": 2, "c": 1}, {"d": 1}]
    rows = covering(FACTORS, 2, required=required, possible=unlike)
    assert all(row.items() >= want.items() for row, want in zip(rows, required, strict=False))
    assert held(rows) == all_combinations(FACTORS, 2, unlike)


def test_what_costs_less_is_taken_where_no_pair_is_lost():
    cheap = covering(FACTORS, 2, cost=lambda row: 10 * (row["a"] == 3) + 1)
    assert sum(row["a"] == 3 for row in cheap) == 3  # as many as c has values
    assert held(cheap) == all_combinations(FACTORS, 2)
