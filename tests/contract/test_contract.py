"""Every property of the model's contract, on every pair of settings; on every three settings with ``make test-full``.

The product of all settings has millions of combinations.
"""

from __future__ import annotations

import ast
import inspect

import pytest

from tests.contract import checks
from tests.contract.cases import FACTORS, full_rows, inner_rows, possible, quick_rows
from tests.contract.checks import CHECKS, checks_for
from tests.contract.covering import all_combinations, combinations_of, covering
from tests.contract.suite import contract_test, refusal_test, thorough_test

test_contract = contract_test(quick_rows(), inner=inner_rows())
test_contract_thoroughly = thorough_test(full_rows())
test_a_form_refuses_a_rule_that_it_does_not_have = refusal_test(FACTORS["rule"])


@pytest.mark.parametrize("check", [check.run for check in CHECKS.values()], ids=CHECKS)
def test_no_check_returns_before_it_asserts(check):
    (function,) = ast.parse(inspect.getsource(check)).body
    own = [node for statement in function.body if not isinstance(statement, ast.FunctionDef) for node in ast.walk(statement)]
    assert not any(isinstance(node, ast.Return) for node in own)


@pytest.mark.parametrize("rule", FACTORS["rule"])
def test_every_check_is_made_of_every_rule(rule):
    quick = {name for row in quick_rows() if row["rule"] == rule for name in checks_for(row, quick=True)}
    full = {name for row in full_rows() if row["rule"] == rule for name in checks_for(row, quick=False)}
    assert full | {"rounded gradients"} == set(CHECKS)
    # What "mean" says of S is of one form as of another; not every rule has one that does not go token by token.
    assert quick >= {name for name, check in CHECKS.items() if check.quick is not checks.never} - {"mean"}


@pytest.mark.parametrize(("rows", "strength"), [(quick_rows(), 2), (full_rows(), 3)], ids=["quick", "full"])
def test_rows_hold_every_combination(rows, strength):
    exact = [row for row in rows if row["dtype"] == "float64"]
    held = set().union(*(combinations_of({name: row[name] for name in FACTORS}, strength) for row in exact))
    assert held >= all_combinations(FACTORS, strength, possible)


def test_rows_are_few():
    assert len(covering(FACTORS, 2, possible=possible)) <= 48
    assert len(full_rows()) <= 240


@pytest.mark.parametrize(
    "rows", [[row for row in quick_rows() if row["dtype"] == "bfloat16"], inner_rows()], ids=["bfloat16", "inner"]
)
def test_a_few_rows_hold_every_value(rows):
    assert {name: {row[name] for row in rows} for name in FACTORS} == {name: set(values) for name, values in FACTORS.items()}


def test_what_is_impossible_is_in_no_row():
    assert all(possible(row) for row in (*quick_rows(), *full_rows()))
    impossible = [
        {"implementation": "pallas_interpret", "rule": "delta"},
        {"implementation": "chunked", "rule": "mesa"},
        {"implementation": "parallel", "scope": "two"},
        {"gram": "kept", "rule": "oja"},
        {"gram": "kept", "rates": "learned"},
        {"rule": "mesa", "rates": "learned"},
    ]
    assert not any(possible(row) for row in impossible)
