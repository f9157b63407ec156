"""The section on synapses: sets that differ are told apart, sets that do not are said to be not distinguishable."""

import dataclasses
import json

import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis.report import synapses
from bdh_jax.analysis.report.base import NotApplicable, Subject, sections
from bdh_jax.analysis.sample_texts import SAMPLE_TEXTS
from bdh_jax.models.gpt import GPTConfig
from tests.compiled import init

CONFIG = BDHConfig(
    vocab_size=128, n_layer=1, d_model=8, n_head=1, n_neurons=16, init_std=0.3, fast=FastWeightConfig(decay=1.0)
)
EMPTY = np.zeros((1, 4), np.int32)


def words(rng, letters, count=24):
    return ["".join(rng.choice(list(letters), 16)) for _ in range(count)]


def subject(**own):
    def untrained(seed):
        return init(BDH(CONFIG), 10 + seed)

    return Subject(
        name="test",
        config=CONFIG,
        seeds={0: init(BDH(CONFIG), 0)},
        untrained=untrained,
        tokens=EMPTY,
        valid=EMPTY == 0,
        encode=lambda text: np.frombuffer(text.encode(), np.uint8),
        decode=lambda ids: bytes(ids).decode(),
        own=own or None,
        budget=0.2,
    )


@pytest.fixture(scope="module")
def findings():
    rng = np.random.default_rng(0)
    # Set b has a letter that set a lacks.
    found = synapses.SECTION.find(subject(a=words(rng, "klmnop"), b=words(rng, "klmnopzzz")))
    return {finding.name: finding for finding in found}


def test_it_is_a_section():
    assert sections()["synapses"] is synapses.SECTION


def test_sets_that_differ_are_told_apart(findings):
    assert list(findings) == ["separation", "synapses", "synapses_of_S", "neurons", "best_synapse"]
    separation = findings["separation"]
    assert separation.title.startswith("Single")
    assert " tell a and b apart, no better than without training or model" in separation.title, "one letter does it as well"
    assert separation.p_value < 0.05
    assert separation.effect > 0.8
    for name in ("synapses", "synapses_of_S", "neurons"):
        assert findings[name].p_value < 0.05
        assert "not distinguishable" not in findings[name].title + findings[name].says
        assert findings[name].rows[0]["held_out"] > 0.5


def test_what_a_synapse_does_is_shown_by_the_letter_that_matters(findings):
    for name, column in (("synapses", "changes at"), ("synapses_of_S", "changes at"), ("neurons", "fires at")):
        best = findings[name].rows[0]
        assert best["larger_in"] in ("a", "b")
        assert "[" in best[column]
    assert "[z]" in findings["synapses"].rows[0]["changes at"] + findings["synapses"].rows[0]["is read at"]


def test_values_of_the_best_are_there_text_by_text(findings):
    rows = findings["best_synapse"].rows
    assert len(rows) == 48
    assert sum(row["texts"] == "held out" for row in rows) == 24
    assert max(abs(row["value"]) for row in rows) == 1


def test_sets_that_do_not_differ_are_not_told_apart():
    rng = np.random.default_rng(1)
    found = synapses.SECTION.find(subject(a=words(rng, "klmnop"), b=words(rng, "klmnop")))
    for finding in found:
        assert "not distinguishable" in finding.title
        assert finding.p_value > 0.05


def test_findings_are_whole(findings):
    for finding in findings.values():
        assert len({tuple(row) for row in finding.rows}) == 1, "all rows have the same keys"
        assert json.loads(json.dumps(list(finding.rows), allow_nan=False))
        assert all((finding.title, finding.says, finding.null, finding.caption, finding.alternative))


def test_texts_of_the_library_differ_in_nothing_simple():
    lengths = [np.mean([len(text) for text in texts]) for texts in SAMPLE_TEXTS.values()]
    assert abs(lengths[0] - lengths[1]) < 3
    everything = [text for texts in SAMPLE_TEXTS.values() for text in texts]
    assert len(set(everything)) == 80
    assert all(text.isascii() and not any(c.isdigit() or c in "$%" for c in text) for text in everything)


def test_what_cannot_be_asked_says_why():
    whole = subject(a=["one"], b=["two"])
    with pytest.raises(NotApplicable, match="set 'a' has 1 texts; give 8 or more"):
        synapses.SECTION.find(whole)
    with pytest.raises(NotApplicable, match="tokens are no text"):
        synapses.SECTION.find(dataclasses.replace(whole, encode=None))
    gpt = GPTConfig(vocab_size=30, n_layer=1, d_model=8, n_head=1)
    with pytest.raises(NotApplicable, match="this model has none"):
        synapses.SECTION.find(dataclasses.replace(whole, config=gpt))
