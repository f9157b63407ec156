"""Equal tokens have equal codes in the first layer of a BDH; what is planted is found, and in noise nothing is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis import codes
from bdh_jax.analysis.nulls import p_of
from bdh_jax.analysis.report import codes as section
from bdh_jax.analysis.report.base import NotApplicable, Subject
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.models.gru import GRUConfig
from tests.compiled import apply, init

CONFIG = BDHConfig(
    vocab_size=9,
    n_layer=2,
    d_model=16,
    n_head=2,
    n_neurons=48,
    dropout=0.0,
    init_std=0.3,
    fast=FastWeightConfig(enabled=False),
)
GPT = GPTConfig(vocab_size=9, n_layer=2, d_model=8, n_head=2, dropout=0.0, init_std=0.3)
TOKENS = np.random.default_rng(0).integers(0, 9, (6, 24)).astype(np.int32)
VALID = np.ones(TOKENS.shape, bool)


def test_activations_are_those_of_the_model():
    slow = init(BDH(CONFIG), 0)
    found = codes.activations(CONFIG, slow, TOKENS, VALID, "code")
    code = np.asarray(apply(BDH(CONFIG), slow, TOKENS, collect=("code",)).collected["code"])
    np.testing.assert_allclose(found, np.moveaxis(code, 2, 3).reshape(2, 6, 24, 48), atol=1e-5)
    assert codes.taps(CONFIG) == ("code", "gated")
    assert codes.taps(GPT) == ("mlp_out.x",)
    assert codes.activations(GPT, init(GPT.build(), 0), TOKENS, VALID, "mlp_out.x").shape == (2, 6, 24, 32)


def test_equal_tokens_have_equal_codes_in_the_first_layer_wherever_they_stand():
    found = codes.equal_tokens(codes.activations(CONFIG, init(BDH(CONFIG), 0), TOKENS, VALID, "code"), TOKENS, VALID)
    assert found.difference[0] == 0  # to the bit
    assert found.difference[1] > 1e-2
    np.testing.assert_allclose(found.cosine[0, 0], 1, atol=1e-6)
    np.testing.assert_array_equal(found.jaccard[0, 0], 1)
    assert (found.cosine[0, 1] < 0.999).all()
    assert (found.cosine[1] < 0.9).all()
    # What attention found is no function of the token, also in the first layer; nor is anything in a GPT after its attention.
    for config, tap in ((CONFIG, "gated"), (GPT, "mlp_out.x")):
        other = codes.equal_tokens(codes.activations(config, init(config.build(), 0), TOKENS, VALID, tap), TOKENS, VALID)
        assert (other.difference > 1e-2).all(), tap


def test_pairs_are_counted_by_distance_and_padding_is_in_none():
    tokens = np.array([[1, 2, 1, 2, 1, 9, 9]])
    valid = np.arange(7)[None] < 5
    acts = np.eye(10)[tokens][None].astype(np.float32)
    found = codes.equal_tokens(acts, tokens, valid, groups=3, shuffles=5)
    np.testing.assert_array_equal(found.edges, [1, 2, 4, 7])
    # Two apart: 1 1, 2 2, 1 1. Four apart: 1 1.
    np.testing.assert_array_equal(found.pairs, [0, 3, 1])
    np.testing.assert_array_equal(found.cosine[0, 0, 1:], 1)
    np.testing.assert_array_equal(found.cosine[1, 0, :2], 0)
    assert np.isnan(found.cosine[0, 0, 0])


def test_what_is_near_is_not_taken_for_equal():
    """Codes that change slowly with the position, and tokens that come in threes: equal tokens are near, and that alone makes them alike."""
    rng = np.random.default_rng(2)
    tokens = np.repeat(rng.integers(0, 9, (6, 8)), 3, axis=1)
    drift = np.cumsum(rng.normal(size=(1, 6, 24, 12)), axis=2).astype(np.float32)
    found = codes.equal_tokens(drift, tokens, VALID, shuffles=199)
    assert p_of(found.excess, found.shuffled)[0] > 0.05
    own = rng.normal(size=(9, 12))[tokens]
    found = codes.equal_tokens((drift + 2 * own).astype(np.float32), tokens, VALID, shuffles=199)
    assert p_of(found.excess, found.shuffled)[0] == 1 / 200


def test_in_noise_p_values_are_uniform():
    rng = np.random.default_rng(3)
    p = np.array(
        [
            p_of(found.excess, found.shuffled)[0]
            for found in (
                codes.equal_tokens(
                    rng.normal(size=(1, 3, 12, 6)).astype(np.float32), TOKENS[:3, :12], VALID[:3, :12], shuffles=39, seed=n
                )
                for n in range(200)
            )
        ]
    )
    for level in (0.1, 0.5, 0.9):
        assert (p <= level).mean() == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 200))


def test_density_of_ones_and_of_one():
    acts = np.zeros((2, 1, 2, 8), np.float32)
    acts[0] = 1
    acts[1, :, :, 0] = 5
    acts[1, :, 1, 1] = -5
    found = codes.density(acts, np.array([[True, True]]))
    np.testing.assert_allclose(found.active, [1, 1 / 8])
    np.testing.assert_allclose(found.effective, [1, (1 / 8 + 2 / 8) / 2])


def test_a_probe_reads_what_was_planted_and_nothing_else():
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, 5, (20, 30))
    valid = np.ones(tokens.shape, bool)
    before = np.concatenate([np.full((20, 1), 0), tokens[:, :-1]], axis=1)
    acts = np.eye(5)[before] @ rng.normal(size=(5, 16)) + 0.1 * rng.normal(size=(20, 30, 16))
    found = codes.probe(acts[None].astype(np.float32), tokens, valid, shuffles=39)
    assert found.accuracy[0, 1] > 0.99
    assert (found.accuracy[0, [0, 2]] < 0.35).all()
    p = p_of(found.accuracy, found.shuffled)[0]
    assert p[1] == 1 / 40
    assert (p[[0, 2]] > 0.05).all()
    assert (np.abs(found.frequent - 0.2) < 0.1).all()


def subject(config, **changes):
    given = Subject(
        "tiny",
        config,
        seeds={seed: init(config.build(), seed) for seed in (0, 1)},
        untrained=lambda seed: init(config.build(), 5 + seed),
        tokens=TOKENS,
        valid=VALID,
    )
    return dataclasses.replace(given, **changes)


def test_the_section_speaks_of_a_bdh_and_of_a_gpt():
    found = {finding.name: finding for finding in section.find(subject(CONFIG))}
    assert [*found] == ["equal_tokens_code", "read_code", "equal_tokens_gated_code", "read_gated_code"]
    assert "equal to the bit" in found["equal_tokens_code"].says
    assert "equal to the bit" not in found["equal_tokens_gated_code"].says
    # Tokens are drawn: what comes next is not to be known, and it says so.
    assert "the next in layer 1" in found["read_code"].says.partition("not distinguishable")[2]
    assert {row["model"] for row in found["read_code"].rows} == {"trained", "untrained"}
    assert [finding.name for finding in section.find(subject(GPT))] == ["equal_tokens_hidden_layer", "read_hidden_layer"]


def test_who_has_no_such_activations_is_not_asked():
    gru = GRUConfig(vocab_size=9, n_layer=1, d_model=8)
    with pytest.raises(NotApplicable, match="A GRU has no activations that are known here"):
        section.find(subject(gru, seeds={}))
    with pytest.raises(NotApplicable, match="too few or too short"):
        section.find(subject(CONFIG, tokens=TOKENS[:1], valid=VALID[:1]))
