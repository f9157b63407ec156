"""Every property of the model's contract, on every pair of settings; on every three settings with ``make test-full``.

The product of all settings has a million combinations.
"""

from __future__ import annotations

import jax
import pytest

from tests.contract.cases import FACTORS, build, full_rows, quick_rows, row_id
from tests.contract.checks import CHECKS
from tests.contract.covering import all_combinations, combinations_of, covering


@pytest.fixture(scope="module", params=quick_rows(), ids=row_id)
def case(request):
    return build(request.param)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_contract(case, check):
    check(case)


@pytest.mark.full
@pytest.mark.parametrize("row", full_rows(), ids=row_id)
def test_contract_thoroughly(row):
    case = build(row, thorough=True)
    for name, check in CHECKS.items():
        try:
            check(case)
        except AssertionError as error:
            raise AssertionError(name) from error
    jax.clear_caches()  # compiled functions of hundreds of configurations would fill the memory


@pytest.mark.parametrize(("rows", "strength"), [(quick_rows(), 2), (full_rows(), 3)], ids=["quick", "full"])
def test_rows_hold_every_combination(rows, strength):
    exact = [row for row in rows if row["dtype"] == "float64"]
    held = set().union(*(combinations_of({name: row[name] for name in FACTORS}, strength) for row in exact))
    assert held >= all_combinations(FACTORS, strength)


def test_rows_are_few():
    assert len(covering(FACTORS, 2)) <= 32
    assert len(full_rows()) <= 180


def test_quick_rows_hold_every_value_in_bfloat16():
    rows = [row for row in quick_rows() if row["dtype"] == "bfloat16"]
    assert {name: {row[name] for row in rows} for name in FACTORS} == {name: set(values) for name, values in FACTORS.items()}
