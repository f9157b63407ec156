"""The tables of MQAR: how they are asked, and what is said of the addresses."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mqar import get_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import mqar_reasons
import mqar_table


@pytest.mark.parametrize("part", mqar_table.PARTS)
def test_every_row_is_an_experiment_with_a_folder_of_its_own(part, tmp_path):
    class Options:
        workdir, smoke = tmp_path, False

    rows = mqar_table.PARTS[part]
    runs = [mqar_table.Run("grid" if part == "long" else part, row, 0, 0.01) for row in rows]
    assert len({run.folder(Options) for run in runs}) == len({row.label for row in rows}) == len(rows)
    for run in runs:
        config = run.config(Options)
        for key, value in run.row.changes:
            part_of = config.model
            for name in key.split("."):
                part_of = getattr(part_of, name)
            assert part_of == value


def test_the_state_grows_with_the_size(tmp_path):
    for family, (_, numbers) in mqar_table.SIZES.items():
        runs = [mqar_table.Run("grid", mqar_table.of_size(family, number), 0, 0.01) for number in range(len(numbers))]

        class Options:
            workdir, smoke = tmp_path, False

        sizes = [mqar_table.state_bytes(run.config(Options).model) for run in runs]
        assert sizes == sorted(set(sizes))


def test_a_long_sequence_read_in_calls_is_the_same(monkeypatch):
    monkeypatch.setattr(mqar_table, "CALL", 10)
    config = get_config("shift,smoke").model
    slow = config.build().init_slow(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 24)).astype(np.int32)
    whole = config.build().apply({"params": slow}, tokens).logits
    parts = mqar_table.in_calls(config, slow)(tokens, np.ones(tokens.shape, bool))
    # Sums of 24 terms of float32, in another order.
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_rates_are_tried_until_the_best_is_neither_the_smallest_nor_the_largest(monkeypatch):
    wanted = {"GLA": 3e-4, "Mamba-2": 1e-2, "BDH": 1.0}

    def results(runs, options):
        return {run: None if run.rate > 0.05 else {"primary": 1 - abs(run.rate - wanted[run.row.family])} for run in runs}

    monkeypatch.setattr(mqar_table, "results", results)

    class Options:
        models = tuple(wanted)

    tried = mqar_table.tried_rates([3e-3, 1e-2, 3e-2], Options)
    # Smaller ones until one is worse; no more where the best lies between; one that diverged is worse than all.
    assert {family: sorted(of_family) for family, of_family in tried.items()} == {
        "GLA": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
        "Mamba-2": [3e-3, 1e-2, 3e-2],
        "BDH": [3e-3, 1e-2, 3e-2, 1e-1],
    }
    assert [mqar_table.best(of_family) for of_family in tried.values()] == [3e-4, 1e-2, 3e-2]


def test_a_file_of_numbers_keeps_the_parts_that_were_not_asked_for():
    first = {"rates": {"GLA": 1}, "parts": {"grid": {"GLA": 2}, "long": {"GLA": 3}}}
    assert mqar_table.joined({}, **first) == first
    assert mqar_table.joined(first, {"BDH": 4}, {"grid": {"BDH": 5}}) == {
        "rates": {"GLA": 1, "BDH": 4},
        "parts": {"grid": {"GLA": 2, "BDH": 5}, "long": {"GLA": 3}},
    }


def test_a_row_by_its_name_has_the_rate_that_is_known(capsys):
    parser, known = argparse.ArgumentParser(), {"rates": {"GLA": {"0.01": 0.5, "0.003": 0.75}, "BDH": {"0.01": 1.0}}}
    options = argparse.Namespace(parts=["grid"], rows=["GLA, N 208"])
    assert mqar_table.given_rates(parser, known, options) == {"GLA": {0.01: 0.5, 0.003: 0.75}}
    for rows, said in ((["GLA, N 5"], "'GLA, N 5', which is no row of grid"), (["Mamba-2, N 8"], "the rates of Mamba-2")):
        with pytest.raises(SystemExit, match="2"):
            mqar_table.given_rates(parser, known, argparse.Namespace(parts=["grid"], rows=rows))
        assert said in capsys.readouterr().err


def test_overlap_and_directions_of_known_addresses():
    apart = np.eye(4)[None]
    assert mqar_reasons.geometry(apart) == pytest.approx((0, 4))
    assert mqar_reasons.geometry(np.ones((1, 4, 8))) == pytest.approx((1, 1))
    two = np.eye(4)[None, [0, 0, 1, 1]]
    assert mqar_reasons.geometry(two) == pytest.approx((1 / 3, 2))


@pytest.mark.parametrize("rule", ["hebbian", "delta", "least squares"])
def test_each_rule_recalls_under_addresses_that_do_not_overlap(rule):
    tokens = jnp.array([[1, 5, 2, 6, 0, 2, 0, 1, 0]])
    read = mqar_reasons.recalled(jnp.eye(8)[tokens], jnp.eye(8)[tokens], 2, rule)
    assert read[0, 5, 4:].argmax() + 4 == 6
    assert read[0, 7, 4:].argmax() + 4 == 5


def test_only_the_sum_is_confused_by_addresses_that_overlap():
    """Keys 1 and 2 have a cosine of .8; key 1 is shown twice as large."""
    address = jnp.zeros((8, 8)).at[1].set(jnp.eye(8)[1] * 2).at[2].set(0.8 * jnp.eye(8)[1] + 0.6 * jnp.eye(8)[2])
    tokens = jnp.array([[1, 5, 2, 6, 0, 2, 0, 0]])
    said = {
        rule: int(mqar_reasons.recalled(address[tokens], jnp.eye(8)[tokens], 2, rule)[0, 5, 4:].argmax()) + 4
        for rule in ("hebbian", "delta", "least squares")
    }
    assert said == {"hebbian": 5, "delta": 6, "least squares": 6}


def test_long_sequences_have_a_table_with_chance():
    rows = {"one": {"accuracy": {"T256P32": 0.5, "T1024P32": 0.25}, "chance": 0.125}, "diverged": None}
    assert mqar_table.of_long(rows).splitlines() == [
        "| model | T256P32 | T1024P32 |",
        "| --- | --- | --- |",
        "| one | 0.500 | 0.250 |",
        "| chance | 0.125 | 0.125 |",
    ]
    assert mqar_table.of_long({"diverged": None}) == "every run diverged"


def test_the_law_of_capacity_of_known_addresses():
    """Two pairs; key 2 is asked for at place 5, key 1 at 7, of 100 values of 4 numbers."""
    tokens, asked = np.array([[1, 5, 2, 6, 0, 2, 0, 1, 0]]), np.array([[5, 7]])
    assert mqar_reasons.law(jnp.eye(8)[tokens], tokens, asked, 4, 100) == pytest.approx(1)
    # All addresses alike: before place 5 there are 3 other writes, before 7 there are 5, each with a share of 1/4 of its size in any
    # direction.
    alike = [mqar_reasons.right_share(np.sqrt(4 / others), 100) for others in (3, 5)]
    assert mqar_reasons.law(jnp.ones((1, 9, 8)), tokens, asked, 4, 100) == pytest.approx(np.mean(alike), abs=1e-4)
    # Wide values are not confused by as many.
    assert mqar_reasons.law(jnp.ones((1, 9, 8)), tokens, asked, 400, 100) > 0.99
