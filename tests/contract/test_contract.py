"""Every property of the model's contract, on every pair of settings; on every combination of settings with ``make test-full``."""

from __future__ import annotations

import itertools

import jax
import pytest

from tests.contract.cases import FACTORS, all_rows, build, quick_rows, row_id
from tests.contract.checks import CHECKS
from tests.contract.pairwise import pairs_of, pairwise


@pytest.fixture(scope="module", params=quick_rows(), ids=row_id)
def case(request):
    return build(request.param)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_contract(case, check):
    check(case)


@pytest.mark.full
@pytest.mark.parametrize("attention", FACTORS["attention"])
@pytest.mark.parametrize("masks", FACTORS["masks"])
@pytest.mark.parametrize("scope", FACTORS["scope"])
@pytest.mark.parametrize("norm", FACTORS["norm"])
@pytest.mark.parametrize("implementation", FACTORS["implementation"])
def test_contract_on_the_full_product(implementation, norm, scope, masks, attention):
    for row in all_rows(implementation=implementation, norm=norm, scope=scope, masks=masks, attention=attention):
        case = build(row, many=True)
        for name, check in CHECKS.items():
            try:
                check(case)
            except AssertionError as error:
                raise AssertionError(f"{name}, {row_id(row)}") from error
        jax.clear_caches()  # compiled functions of thousands of configurations would fill the memory


def test_pairwise_rows_hold_every_pair_and_are_few():
    rows = [row for row in quick_rows() if row["dtype"] == "float64"]
    held = set().union(*map(pairs_of, rows))
    wanted = {((a, x), (b, y)) for a, b in itertools.combinations(FACTORS, 2) for x in FACTORS[a] for y in FACTORS[b]}
    assert held >= wanted
    assert len(pairwise(FACTORS)) <= 32


def test_quick_rows_hold_every_value_in_bfloat16():
    rows = [row for row in quick_rows() if row["dtype"] == "bfloat16"]
    assert {name: {row[name] for row in rows} for name in FACTORS} == {name: set(values) for name, values in FACTORS.items()}
