"""Capacity: the search finds F95, theory and measurement agree where theory holds, and what cannot be measured is refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis import fact_capacity as capacity
from bdh_jax.analysis.fact_capacity import RULES, Addresses
from bdh_jax.config import ConfigError
from bdh_jax.tasks.facts import VALUES, VOCABULARY
from tests.compiled import init


@pytest.mark.parametrize("active", [None, 0.05, 1.0])
def test_addresses_have_length_one_and_the_overlap_that_theory_takes(active):
    kind = Addresses(256, active)
    drawn = kind.draw(np.random.default_rng(0), 2, 400)
    assert drawn.shape == (2, 400, 256)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), 1, rtol=1e-5)
    if active is not None:
        assert drawn.min() >= 0
        assert ((drawn > 0).sum(-1) == round(active * 256)).all()
    products = drawn[0] @ drawn[1].T  # independent addresses: 160,000 products
    assert np.mean(products**2) == pytest.approx(kind.mean_square_overlap, rel=0.03)


@pytest.mark.parametrize("rule", RULES)
def test_orthogonal_facts_are_all_recalled_and_invalid_ones_are_not_written(rule):
    addresses = jnp.asarray(np.eye(32)[None], jnp.float32)
    values = jnp.asarray(np.random.default_rng(0).integers(0, VALUES, (1, 32)))
    assert capacity.recall(rule, addresses, values, jnp.ones((1, 32), bool)) == 1
    # The second half has the first half's addresses and other values. It is not there.
    twice = jnp.concatenate([addresses[:, :16], addresses[:, :16]], axis=1)
    other = values.at[:, 16:].set((values[:, :16] + 1) % VALUES)
    valid = jnp.arange(32)[None] < 16
    assert capacity.recall(rule, twice, other, valid) == 1
    assert capacity.recall(rule, twice, other, jnp.ones((1, 32), bool)) <= 0.5
    # Nor does it change what many overlapping facts leave of each other.
    crowd = jnp.asarray(Addresses(16, None).draw(np.random.default_rng(1), 1, 256))
    values = jnp.asarray(np.random.default_rng(2).integers(0, VALUES, (1, 256)))
    alone = capacity.recall(rule, crowd[:, :96], values[:, :96], jnp.ones((1, 96), bool))
    assert 0.05 < alone < 0.95
    assert capacity.recall(rule, crowd, values, jnp.arange(256)[None] < 96) == alone


@pytest.mark.parametrize(
    ("rule", "active", "tolerance"), [("hebbian", None, 0.15), ("mesa", None, 0.15), ("hebbian", 0.1, 0.25)]
)
def test_theory_agrees_with_measurement(rule, active, tolerance):
    """The theory neglects that noise of a few facts is not normal; the search is exact to 5 %, and one trial varies by about as much."""
    kind = Addresses(256, active)
    result = capacity.measure([kind], rules=[rule], seeds=[0])
    [entry] = result.entries
    assert entry.theory == capacity.theory(rule, kind)
    assert entry.mean == pytest.approx(entry.theory, rel=tolerance)
    assert not entry.at_limit


def test_signal_to_noise_of_64_values():
    """Against a count: how often does the right of 64 normal numbers win that has this head start?"""
    signal = capacity._signal_to_noise()
    noise = np.random.default_rng(0).standard_normal((200_000, VALUES), dtype=np.float32)
    wins = np.mean(noise[:, 0] + signal > noise[:, 1:].max(axis=1))
    assert wins == pytest.approx(0.95, abs=0.003)  # six standard errors


def test_search_ends_at_its_limit_and_finds_a_known_crossing(monkeypatch):
    monkeypatch.setattr(capacity, "recall", lambda rule, addresses, values, valid: float(jnp.sum(valid) <= 300))
    found = capacity.facts_at_recall("hebbian", lambda count: np.zeros((1, count, 2)), start=7, most=1024, seed=0)
    assert found == pytest.approx(300, rel=0.05)
    found = capacity.facts_at_recall("hebbian", lambda count: np.zeros((1, count, 2)), start=900, most=1024, seed=0)
    assert found == pytest.approx(300, rel=0.05)
    found = capacity.facts_at_recall("hebbian", lambda count: np.zeros((1, count, 2)), start=7, most=256, seed=0)
    assert found == 256


def test_bytes_and_what_the_table_says():
    assert capacity.state_bytes("delta", 128) == 4 * 128 * 64
    assert capacity.state_bytes("mesa", 128) == 4 * 128 * (64 + 128)
    entry = capacity.Entry("delta", "dense ±", 128, 1.0, (100.0, 110.0), None, True)
    assert entry.per_kibibyte == pytest.approx(105 * 1024 / 32768)
    [row] = capacity.CapacityResult((entry,)).to_dict()
    assert row["f95"] == (100.0, 110.0)


@pytest.mark.parametrize(("rows", "active"), [(1, None), (64, 0.0), (64, 1.5), (64, 0.001)])
def test_addresses_that_cannot_be_drawn_are_refused(rows, active):
    with pytest.raises(ConfigError, match="must"):
        Addresses(rows, active)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="rule 'hopfield' is not one of hebbian"):
        capacity.measure([Addresses(64, None)], rules=["hopfield"])


def test_a_trained_model_has_rows_of_its_own():
    fast = FastWeightConfig(address_source="gated")
    model = BDH(BDHConfig(vocab_size=VOCABULARY, n_layer=1, d_model=8, n_head=1, n_neurons=32, dropout=0.0, fast=fast))
    slow = init(model, 0)
    result = capacity.measure([Addresses(32, 0.1)], rules=["hebbian"], seeds=[0], trained=[(model, slow), (model, slow)])
    drawn, trained = result.entries
    assert (drawn.kind, trained.kind) == ("10.00% active", "trained model")
    assert (trained.rows, len(trained.f95), trained.theory) == (32, 2, None)
    assert 0 < trained.active < 1
    assert 1 < trained.mean < 11264
    figure = result.plot()
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["facts at 95 % recall", "", "facts per KiB of state", ""]
    counts, per_kibibyte = (figure.axes[number].lines for number in (0, 2))
    for above, below in zip(counts, per_kibibyte, strict=True):
        np.testing.assert_allclose(below.get_ydata(), np.asarray(above.get_ydata()) / 8, rtol=1e-6)


@pytest.mark.parametrize("drawn", [[], [Addresses(32, None)]], ids=["trained only", "dense only"])
def test_the_figure_needs_no_sparse_row(drawn):
    fast = FastWeightConfig(address_source="gated")
    model = BDH(BDHConfig(vocab_size=VOCABULARY, n_layer=1, d_model=8, n_head=1, n_neurons=32, dropout=0.0, fast=fast))
    slow = init(model, 0)
    result = capacity.measure(drawn, rules=["hebbian"], seeds=[0], trained=() if drawn else [(model, slow)])
    _, _, by_rows, by_active = result.plot().axes
    assert by_rows.get_xlabel().startswith("rows K")
    assert by_active.get_xlabel() == "share of active rows at K = 32"
