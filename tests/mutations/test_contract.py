"""Every check of the contract and every rule has a fault that should turn it red; ``make mutate-contract`` tries whether it does."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.contract.cases import FACTORS, build, memory_leaves
from tests.contract.checks import CHECKS
from tests.mutations import contract
from tests.mutations.contract import FAULTS, Result


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_faults_name_checks_that_exist():
    assert {check for fault in FAULTS.values() for check in fault.checks} == set(CHECKS)


@pytest.mark.parametrize("rule", FACTORS["rule"])
def test_every_check_of_every_rule_has_a_fault(rule):
    assert {check for _, checks in contract.plan(rule) for check in checks} == set(CHECKS)
    noticed = {check for part in contract.plan(rule) for *_, noticed_by in contract.trials(*part) for check in noticed_by}
    assert noticed == set(CHECKS)


@pytest.mark.parametrize("rule", FACTORS["rule"])
def test_every_array_that_a_rule_keeps_is_damaged(rule):
    leaves = set(memory_leaves(build(contract.plan(rule)[0][0]).fast))
    damaged = {leaf for part in contract.plan(rule) for _, fault, leaf, _ in contract.trials(*part) if fault.each_leaf}
    assert damaged == leaves
    assert leaves


def test_a_rule_with_a_matrix_form_is_broken_there_too():
    forms = {rule: {row["implementation"] for row, _ in contract.plan(rule)} for rule in FACTORS["rule"]}
    assert forms["hebbian"] == forms["delta"] == {"recurrent", "chunked"}
    assert forms["mesa"] == {"recurrent"}


def test_the_table_names_what_turned_red_and_what_did_not():
    results = [
        Result("delta", "reset", None, False),
        Result("delta", "reset", "one", False),
        Result("delta", "reset", "one", True),  # on another row
        Result("delta", "mean", "two", False),
        Result("delta", "none", None, True),
    ]
    lines = contract.table(results, ["delta"]).splitlines()
    assert "| reset | A |" in lines
    assert "| mean | none |" in lines
    assert "- A: one" in lines
    assert contract.problems(results) == [
        "delta: mean is green in spite of 'two'",
        "delta: none is red without a fault",
    ]


def test_one_fault_is_noticed_and_the_model_without_it_is_not():
    """The others take minutes."""
    row, checks = contract.plan("hebbian")[0]
    case = build(row)
    assert not contract.is_red(case, "two calls")
    found = {name: (fault, leaf) for name, fault, leaf, _ in contract.trials(row, checks)}
    fault, leaf = found["not carried"]
    broken = dataclasses.replace(case, model=contract.Broken(row, case.model, fault, leaf), stepping=None)
    np.testing.assert_array_equal(broken.call()[0], case.call()[0])
    assert contract.is_red(broken, "two calls")
