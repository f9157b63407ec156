"""Activity in repeats: it is counted rightly, a planted fall is found, and where there is none nothing is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis.nulls import p_of_largest
from bdh_jax.analysis.repeats import Reading, compare, fall, letters_of, shares_by_reading
from bdh_jax.analysis.report import repeats as section
from bdh_jax.analysis.report.base import NotApplicable, Subject
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.tasks.repeats import RepeatsConfig
from tests.compiled import apply, init

CONFIG = BDHConfig(
    vocab_size=128,
    n_layer=2,
    d_model=8,
    n_head=2,
    n_neurons=32,
    dropout=0.0,
    init_std=0.3,
    fast=FastWeightConfig(enabled=False),
)
TASK = RepeatsConfig(warm_up=5, word=4, length=30)
LETTERS = np.arange(97, 123, dtype=np.int32)


def subject(config=CONFIG, **changes):
    def encode(text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    model = config.build()
    tokens = np.random.default_rng(0).integers(97, 123, (16, 40)).astype(np.int32)
    given = Subject(
        "tiny",
        config,
        seeds={0: init(model, 0), 1: init(model, 1)},
        untrained=lambda seed: init(model, 5 + seed),
        tokens=tokens,
        valid=np.ones(tokens.shape, bool),
        encode=encode,
        decode=lambda ids: bytes(int(token) for token in ids).decode(),
    )
    return dataclasses.replace(given, **changes)


def test_shares_are_those_of_the_gated_code_reading_by_reading():
    tokens = letters_of(TASK, LETTERS, 20, seed=0)
    slow = init(BDH(CONFIG), 0)
    gated = np.asarray(apply(BDH(CONFIG), slow, tokens, state="none", collect=("gated",)).collected["gated"])
    shares = shares_by_reading(CONFIG, slow, tokens, TASK)
    assert shares.shape == (2, 20, 7)
    for reading, (first, end) in enumerate([(0, 5), (5, 9), (9, 13), (13, 17), (17, 21), (21, 25), (25, 29)]):
        expected = (gated[:, :, :, first:end] != 0).mean(axis=(2, 3, 4))
        np.testing.assert_allclose(shares[:, :, reading], expected, atol=1e-6)
    assert 0.05 < shares.min() < shares.max() < 0.95


def test_a_fall_is_the_first_reading_by_the_repeats():
    shares = np.array([[[0.9, 0.4, 0.1, 0.1], [0.9, 0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(fall(shares, 1, 10**6), [[np.log(4), 0]], atol=1e-4)


def planted(rng, layer, size):
    """Shares without structure, but that repeats of the trained model have fewer in one layer."""
    parts = {name: rng.uniform(0.2, 0.3, (3, 24, 6)) for name in ("trained", "shuffled", "untrained")}
    if layer is not None:
        parts["trained"][layer, :, 2:] /= size
    return Reading(**parts)


def test_a_planted_fall_is_found_in_its_layer_and_nowhere_else():
    rng = np.random.default_rng(0)
    falls = compare([planted(rng, 1, 2.5) for _ in range(3)], first=1, neurons=1000)
    assert falls.p_value[1] < 0.01
    assert (falls.p_value[[0, 2]] > 0.05).all()
    assert ((falls.trained[:, 1] > 2.2) & (falls.trained[:, 1] < 2.8)).all()
    for control in (falls.shuffled, falls.untrained):
        assert (np.abs(control - 1) < 0.1).all()


def test_where_there_is_nothing_p_values_are_uniform():
    rng = np.random.default_rng(1)
    p = np.array(
        [compare([planted(rng, None, 1)], first=1, neurons=1000, flips=99, seed=n).p_value.min() for n in range(300)]
    )
    # The smallest of three corrected p-values: uniform, within three standard errors of 300.
    for level in (0.05, 0.2, 0.5, 0.8):
        assert (p <= level).mean() == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 300))
    assert p_of_largest(np.zeros(2), np.zeros((9, 2))).tolist() == [1, 1]


def test_the_section_says_when_there_is_nothing():
    by_reading, by_layer = section.find(subject())
    assert "not distinguishable" in by_reading.says
    assert by_reading.p_value is not None
    assert by_reading.p_value >= 0.05
    assert {row["text"] for row in by_reading.rows} == {"repeated", "shuffled", "untrained"}
    # 40 tokens: a warm-up of 13 and three readings of 8.
    assert {row["reading"] for row in by_reading.rows} == {0, 1, 2, 3}
    assert len(by_layer.rows) == 4


def test_a_share_that_rises_is_no_fall_however_clear_the_difference(monkeypatch):
    parts = {name: np.full((2, 32, 4), 0.2) for name in ("trained", "shuffled", "untrained")}
    parts["trained"][:, :, 2:] = 0.25
    parts["shuffled"][:, :, 2:] = 0.3
    made = iter(parts.values())
    monkeypatch.setattr(section, "shares_by_reading", lambda *arguments: next(made))
    by_reading, by_layer = section.find(subject(seeds={0: None}))
    assert by_reading.p_value < 0.01
    assert "rising shares" in by_reading.says
    assert by_reading.title == "No layer falls silent for the word that repeats"
    assert "not distinguishable from none" in by_layer.says


def test_a_short_context_gets_a_short_word_and_a_very_short_one_none():
    tokens = np.full((2, 13), 97, np.int32)
    by_reading, _ = section.find(subject(tokens=tokens, valid=np.ones(tokens.shape, bool)))
    assert {row["reading"] for row in by_reading.rows} == {1, 2, 3}
    assert "of 4 letters;" in by_reading.caption
    tokens = tokens[:, :5]
    with pytest.raises(NotApplicable, match="sequences of 5 tokens, in which no word fits three times"):
        section.find(subject(tokens=tokens, valid=np.ones(tokens.shape, bool)))


def test_who_cannot_be_asked_is_not():
    with pytest.raises(NotApplicable, match="tokens are no text"):
        section.find(subject(encode=None))
    with pytest.raises(NotApplicable, match="no token of its own for every letter"):
        section.find(subject(encode=lambda text: np.array([1, 2])))
    gpt = GPTConfig(vocab_size=128, n_layer=1, d_model=8, n_head=2, dropout=0.0)
    with pytest.raises(NotApplicable, match="A GPT has no code and gate"):
        section.find(subject(gpt))
