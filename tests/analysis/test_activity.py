"""Which part of a model is active: counts against a plain count, and nulls that find what was planted and nothing else."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bdh_jax.analysis import activity
from bdh_jax.analysis.nulls import p_of_largest
from bdh_jax.models.bdh import BDH, BDHConfig

CONFIG = BDHConfig(vocab_size=11, n_layer=2, d_model=8, n_head=2, n_neurons=16)
TOKENS = np.random.default_rng(0).integers(0, 11, (5, 7)).astype(np.int32)
VALID = np.arange(7)[None] < np.array([7, 3, 7, 5, 1])[:, None]


@pytest.fixture(scope="module")
def slow():
    return BDH(CONFIG).init(jax.random.key(0), TOKENS)["params"]


@pytest.fixture(scope="module")
def measured(slow):
    return activity.measure(CONFIG, slow, TOKENS, VALID)


def test_shares_are_those_of_a_plain_count(slow, measured):
    out = BDH(CONFIG).apply({"params": slow}, TOKENS, valid=VALID, state="none", collect=("code", "gate"))
    code, gate = (np.asarray(out.collected[name]) != 0 for name in ("code", "gate"))  # [L, B, H, T, N]
    for kind, active in {"code": code, "gate": gate, "gated": code & gate}.items():
        by_place = np.moveaxis(active, 3, 2).reshape(2, 5, 7, 16)
        np.testing.assert_allclose(measured.by_token[kind], np.where(VALID[None], by_place.mean(axis=-1), np.nan), rtol=1e-6)
        np.testing.assert_allclose(measured.by_neuron[kind], by_place[:, VALID].mean(axis=1), rtol=1e-6)
    assert 0 < np.nanmean(measured.by_token["code"]) < 1


def test_calls_of_few_sequences_change_nothing(slow, measured, monkeypatch):
    monkeypatch.setattr(activity, "_BYTES", 2 * 8 * 2 * 7 * 16)  # two sequences a call, and one that is left over
    parts = activity.measure(CONFIG, slow, TOKENS, VALID)
    for kind in activity.KINDS:
        np.testing.assert_allclose(parts.by_token[kind], measured.by_token[kind], rtol=1e-6)
        np.testing.assert_allclose(parts.by_neuron[kind], measured.by_neuron[kind], rtol=1e-6)


def test_means_of_sequences_leave_padding_out(measured):
    found = activity.sequence_means(measured.by_token["gate"], VALID)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found[:, 1], measured.by_token["gate"][:, 1, :3].mean(axis=1), rtol=1e-6)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    values = np.random.default_rng(0).normal(2.0, 1.0, (400, 5))
    ends = np.array([activity.interval_of_mean(row) for row in values])
    held = np.mean((ends[:, 0] <= 2) & (ends[:, 1] >= 2))
    assert 0.92 <= held <= 0.98
    assert activity.interval_of_mean(np.array([3.0, 3.0])) == (3.0, 3.0)
    assert activity.interval_of_mean(np.array([3.0])) == (-np.inf, np.inf)


def trend_p(values: np.ndarray, seed: int) -> float:
    """Of B sequences of one thing [B, T]."""
    trend = activity.over_positions([row[None] for row in values], 99, np.random.default_rng(seed))
    return float(p_of_largest(np.abs(trend.change), np.abs(trend.shuffled))[0])


def test_a_trend_over_positions_is_found_and_measured():
    place = np.linspace(0, 1, 40)
    noise = np.random.default_rng(0).normal(0, 0.1, (12, 40))
    trend = activity.over_positions([(3 * place + row)[None] for row in noise], 99, np.random.default_rng(0))
    assert trend.change[0] == pytest.approx(3, abs=0.1)
    assert trend_p(3 * place + noise, 1) == pytest.approx(0.01)


def test_without_a_trend_p_values_over_positions_are_uniform():
    """Neighbours are alike, as in a text: shuffled tokens would call that a trend."""
    generator = np.random.default_rng(0)
    p_values = []
    for trial in range(200):
        noise = generator.normal(0, 1, (6, 60))
        smooth = sum(np.roll(noise, shift, axis=1) for shift in range(6))
        p_values.append(trend_p(smooth, trial))
    shares = [float(np.mean(np.array(p_values) <= level)) for level in (0.05, 0.25, 0.5, 0.75)]
    # Four standard deviations of a share of 200.
    assert shares == pytest.approx([0.05, 0.25, 0.5, 0.75], abs=0.14)
    assert shares[0] <= 0.12


def test_repeats_differ_in_what_came_before_and_in_nothing_else():
    tokens = np.arange(60, dtype=np.int32).reshape(6, 10)
    valid = np.ones((6, 10), bool)
    valid[5, 4:] = False  # too short for a half
    repeated, fresh = activity.repeats(tokens, valid, 4, np.random.default_rng(0))
    assert repeated.shape == fresh.shape == (4, 10)
    np.testing.assert_array_equal(repeated[:, :5], repeated[:, 5:])
    np.testing.assert_array_equal(fresh[:, 5:], repeated[:, 5:])
    assert (fresh[:, :5] != fresh[:, 5:]).all()
    assert not np.isin(repeated, tokens[5]).any()


def test_what_cannot_be_repeated_is_refused():
    with pytest.raises(ValueError, match="1 different sequences of 2 tokens; a repeat needs two"):
        activity.repeats(np.ones((3, 4), np.int32), np.ones((3, 4), bool), 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="0 different sequences of 1 tokens"):
        activity.repeats(np.ones((3, 2), np.int32), np.ones((3, 2), bool), 3, np.random.default_rng(0))


def test_sign_flips_find_a_difference_and_nothing_in_noise():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 1, (3, 20))
    noise[0] = 0  # never a difference, as in the code of the first layer
    planted = noise + np.array([[0.0], [2.0], [0.0]])
    observed, flipped = activity.sign_flips(planted, 199, generator)
    assert observed[0] == 0
    assert not flipped[:, 0].any()
    p_values = p_of_largest(observed, flipped)
    assert p_values[1] == pytest.approx(1 / 200)
    assert p_values[2] > 0.05
    found = []
    for _ in range(200):
        observed, flipped = activity.sign_flips(generator.normal(0, 1, (3, 12)), 99, generator)
        found.append(p_of_largest(observed, flipped).min())
    assert float(np.mean(np.array(found) <= 0.05)) <= 0.10


def test_what_a_token_explains():
    tokens = np.repeat(np.arange(5), 8)
    own = np.array([1.0, 4.0, 2.0, 8.0, 5.0])[tokens]
    noise = np.random.default_rng(0).normal(0, 1, 40)
    found = activity.explained_by_token(np.stack([own, noise, np.ones(40)]), tokens)
    assert found[0] == pytest.approx(1)
    assert found[1] < 0.4
    assert found[2] == 0
