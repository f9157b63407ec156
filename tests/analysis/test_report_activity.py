"""The section on activity: it finds what was planted, says so when there is nothing, and refuses what has no neurons."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from bdh_jax.analysis.report.activity import SECTION
from bdh_jax.analysis.report.base import Finding, NotApplicable, Subject
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig

CONFIG = BDHConfig(vocab_size=13, n_layer=2, d_model=8, n_head=2, n_neurons=32)
TOKENS = np.random.default_rng(0).integers(0, 13, (12, 16)).astype(np.int32)


def untrained(seed: int):
    return CONFIG.build().init_slow(jax.random.key(seed))


def half_dead(slow):
    """The model with every other neuron silenced."""
    encoder = np.array(slow["encoder"])
    encoder[:, :, ::2] = 0
    return {**slow, "encoder": encoder}


def subject(seeds, **changes) -> Subject:
    plain = Subject("tiny", CONFIG, seeds, untrained, TOKENS, np.ones(TOKENS.shape, bool), budget=0.2)
    return dataclasses.replace(plain, **changes)


def found(subject: Subject) -> dict[str, Finding]:
    return {finding.name: finding for finding in SECTION.find(subject)}


@pytest.fixture(scope="module")
def planted() -> dict[str, Finding]:
    """Three seeds of a model whose every other neuron died in training, with a checkpoint of before."""
    seeds = {seed: half_dead(untrained(seed)) for seed in range(3)}
    kept = {seed: {5: lambda seed=seed: untrained(seed), 9: lambda slow=slow: slow} for seed, slow in seeds.items()}
    return found(subject(seeds, checkpoints=kept, decode=lambda tokens: "".join(chr(97 + token) for token in tokens)))


@pytest.fixture(scope="module")
def nothing() -> dict[str, Finding]:
    """One seed of a model that nothing was done to."""
    return found(subject({0: untrained(0)}))


NAMES = ["share_by_layer", "share_over_training", "share_by_position", "fresh_and_repeated", "neurons", "tokens"]


def test_every_finding_has_rows_and_what_it_was_held_against(planted, nothing):
    assert list(planted) == list(nothing) == NAMES
    for finding in [*planted.values(), *(nothing[name] for name in NAMES if name != "share_over_training")]:
        assert finding.rows
        assert finding.null
        assert (finding.p_value is None) != (finding.interval is None)
        assert len({tuple(row) for row in finding.rows}) == 1


def test_neurons_that_died_are_found_in_every_measure(planted):
    by_layer = planted["share_by_layer"]
    shares = {
        model: np.mean([row["share"] for row in by_layer.rows if row["model"] == model and row["kind"] == "code"])
        for model in ("trained", "untrained")
    }
    assert by_layer.effect == pytest.approx(shares["trained"] - shares["untrained"], abs=1e-6)
    assert by_layer.interval[1] < 0
    assert "percentage points below that before training" in by_layer.says
    assert "over 3 seeds" in by_layer.null
    dead = [row["neurons"] for row in planted["neurons"].rows if row["model"] == "trained" and row["active at"] == "never"]
    assert min(dead) >= 0.5
    assert "above that before training" in planted["neurons"].says
    assert {row["step"] for row in planted["share_over_training"].rows} == {0, 5, 9}
    assert planted["share_over_training"].title.endswith("still falls")


def test_what_was_not_changed_is_not_distinguishable(nothing):
    for name in ("share_by_layer", "neurons"):
        assert "not distinguishable" in nothing[name].says
        assert nothing[name].effect == 0
    assert "one seed, which says nothing of another" in nothing["share_by_layer"].null
    assert "was not recorded" in nothing["share_over_training"].title


def test_the_first_layer_knows_its_token_and_nothing_else(planted):
    """So that what was read before changes nothing there, and the token explains all."""
    rows = planted["fresh_and_repeated"].rows
    assert [row["change"] for row in rows if row["kind"] == "code" and row["layer"] == 1] == [0, 0]
    assert any(row["change"] != 0 for row in rows)
    assert "and 100 and" in planted["tokens"].says
    assert {row["token"] for row in planted["tokens"].rows} <= {repr(chr(97 + token)) for token in range(13)}


def test_what_the_run_wrote_down_is_shown_where_no_checkpoints_are():
    lines = [{"step": step, "loss": 1.0, "model/activity": 0.5 / step} for step in (1, 2)]
    finding = found(subject({0: untrained(0)}, metrics={0: lines}))["share_over_training"]
    assert [row["value"] for row in finding.rows] == [0.5, 0.25]
    assert "model/activity" in finding.says


def test_short_sequences_leave_out_what_needs_long_ones():
    names = list(found(subject({0: untrained(0)}, tokens=TOKENS[:, :3], valid=np.ones((12, 3), bool))))
    assert names == [name for name in NAMES if name not in ("share_by_position", "fresh_and_repeated")]


def test_a_model_without_neurons_is_refused():
    gpt = GPTConfig(vocab_size=13, n_layer=1, d_model=8, n_head=2)
    with pytest.raises(NotApplicable, match="A GPT has no neurons with a code and a gate"):
        SECTION.find(subject({}, config=gpt))
