"""The contract as tests of rows, for the rules of the library and for those of its users.

In a test file of a rule from outside::

    register("usage", RuleUnderTest({"rule": "my_rules:USAGE"}, forms=("recurrent",)), Twin(usage, usage_start))
    test_usage = contract_test(rows_of_rule("usage"))
    test_usage_is_refused = refusal_test(["usage"])

where ``usage`` is the same rule in NumPy (:class:`tests.contract.twins.Twin`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bdh_jax import BDH
from bdh_jax.config import ConfigError
from tests.contract.cases import FACTORS, FORMS, RULES, Case, Row, build, config_of, row_id
from tests.contract.checks import CHECKS, checks_for


def contract_test(rows: Sequence[Row], *, inner: Sequence[Row] = ()) -> Callable[..., None]:
    """A test for every row and every check that the quick suite makes of it.

    Args:
      rows: as :func:`tests.contract.cases.rows_for` makes them.
      inner: those whose comparison with the reference belongs to ``make test-quick``.
    """

    def parameters(row: Row, name: str) -> Any:
        marks = [pytest.mark.quick] if name == "reference" and row in inner else []
        return pytest.param(row, name, id=f"{row_id(row)}-{name}", marks=marks)

    last = _Last()

    @pytest.mark.parametrize(
        ("row", "check"), [parameters(row, name) for row in rows for name in checks_for(row, quick=True)]
    )
    def test(row: Row, check: str) -> None:
        with jax.enable_x64(True):
            CHECKS[check].run(last.case(row))

    return test


def thorough_test(rows: Sequence[Row]) -> Callable[..., None]:
    """A test for every row, of all checks that apply to it."""

    @pytest.mark.full
    @pytest.mark.parametrize("row", rows, ids=row_id)
    def test(row: Row) -> None:
        with jax.enable_x64(True):
            case = build(row)
            for name in checks_for(row, quick=False):
                try:
                    CHECKS[name].run(case)
                except AssertionError as error:
                    raise AssertionError(name) from error
        jax.clear_caches()  # compiled functions of hundreds of configurations would fill the memory

    return test


def refusal_test(rules: Sequence[str]) -> Callable[..., None]:
    """A test for every rule and every form that it does not have: the form refuses it, instead of running another rule."""
    pairs = [(name, form) for name in rules for form in FORMS if form not in RULES[name].forms]
    first = {name: values[0] for name, values in FACTORS.items()} | {"dtype": "float64"}

    @pytest.mark.parametrize(("rule", "form"), pairs)
    def test(rule: str, form: str) -> None:
        row = first | {"rule": rule, "implementation": form}
        with jax.enable_x64(True), pytest.raises(ConfigError, match="rule|limits"):
            jax.eval_shape(lambda: BDH(config_of(row)).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))

    return test


class _Last:
    """The case of the last row asked for: checks of one row follow each other and share what it compiled."""

    def __init__(self) -> None:
        self._build = functools.lru_cache(maxsize=1)(lambda items: build(dict(items)))

    def case(self, row: Row) -> Case:
        return self._build(tuple(row.items()))
