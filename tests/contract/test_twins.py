"""A rule from outside brings its own twin, with state of its own, and the reference model runs it."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

from tests import reference_model
from tests.contract.cases import FACTORS, RuleUnderTest, build, register
from tests.contract.twins import TWINS, Sizes, State, Token, Twin, hebbian

TOKENS = np.arange(8, dtype=np.int32)[None]


def usage(state: State, token: Token) -> tuple[np.ndarray, State]:
    """Rows that were read lately forget more, then a Hebbian write."""
    forgotten = 1 / (1 + token.config.forget * state["usage"])
    S = token.decayed(state["S"]) * forgotten[:, :, None] + token.written(token.key, token.value)
    return token.read(state["S"]), {"S": S, "usage": 0.5 * state["usage"] + np.abs(token.query)}


def usage_start(sizes: Sizes) -> State:
    return {"S": np.zeros(sizes), "usage": np.zeros(sizes[:2])}


def run(rule: str, **options: float):
    """With the weights of a case, and a configuration of names and numbers only."""
    row = {name: values[0] for name, values in FACTORS.items()} | {"norm": "l2", "dtype": "float64"}
    case = build(row)
    fast = types.SimpleNamespace(**dataclasses.asdict(case.config.fast) | {"rule": rule} | options)
    config = types.SimpleNamespace(**dataclasses.asdict(case.config) | {"fast": fast})
    return reference_model.run(config, case.slow, TOKENS)


@pytest.fixture
def _usage(monkeypatch):
    monkeypatch.setitem(TWINS, "usage", Twin(usage, usage_start))


@pytest.mark.usefixtures("_usage")
def test_the_reference_runs_a_rule_with_state_of_its_own():
    logits, (final,), _ = run("usage", forget=0.0)
    plain, (expected,), _ = run("hebbian")
    np.testing.assert_array_equal(logits, plain)
    assert final.memory[0]["usage"].sum() > 0
    np.testing.assert_array_equal(final.memory[1]["S"], expected.memory[1]["S"])
    assert np.abs(run("usage", forget=1.0)[0] - plain).max() > 1e-3


def test_an_unknown_rule_has_no_twin():
    with pytest.raises(KeyError, match="unknown"):
        run("unknown")


def test_a_name_stands_for_one_rule():
    with pytest.raises(ValueError, match="'hebbian' already"):
        register("hebbian", RuleUnderTest({"rule": "hebbian"}, ("recurrent",)), Twin(hebbian))
