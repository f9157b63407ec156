"""The section on the graph: what it says of a model with a planted graph, and of one that has none."""

import dataclasses
import json
import re

import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis.report import graph
from bdh_jax.analysis.report.base import NotApplicable, Subject, sections
from bdh_jax.models.gpt import GPTConfig
from tests.compiled import init

CONFIG = BDHConfig(
    vocab_size=30, n_layer=1, d_model=16, n_head=2, n_neurons=160, fast=FastWeightConfig(enabled=False), init_std=0.1
)
EMPTY = np.zeros((1, 4), np.int32)


def planted():
    """Four groups of neurons write and read a direction each, and sixteen neurons are read far more than others."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4, 16))[np.arange(160) % 4] / 4
    loud = np.where(np.arange(160) % 40 < 4, 6, 1)
    decoder = directions + 0.05 * rng.normal(size=(160, 16))
    encoder = (directions * loud[:, None] + 0.05 * rng.normal(size=(160, 16))).T
    return {"encoder": encoder.reshape(16, 2, 80), "decoder": decoder.reshape(2, 80, 16)}


def subject(slow, config=CONFIG):
    return Subject("test", config, {0: slow}, lambda seed: init(BDH(config), seed), EMPTY, EMPTY == 0, budget=0.1)


@pytest.fixture(scope="module")
def findings():
    return {finding.name: finding for finding in graph.SECTION.find(subject(planted()))}


def test_it_is_a_section():
    assert sections()["graph"] is graph.SECTION


def test_planted_communities_and_hubs_are_said(findings):
    modularity, degrees = findings["modularity"], findings["degrees"]
    assert modularity.title == "The trained graph has communities that its degrees do not explain"
    assert modularity.p_value == pytest.approx(1 / 60)
    assert modularity.effect > 0.2
    assert re.search(r"the untrained model [+-]0\.\d+ \(z .*, not distinguishable\)", modularity.says)
    assert degrees.title.startswith("Training made hubs of incoming")
    assert degrees.p_value == pytest.approx(2 / 60), "of two directions"


def test_a_model_without_training_has_nothing_to_say():
    """Of as many coordinates as neurons: G of few has so low a rank that chance alone makes communities."""
    wide = dataclasses.replace(CONFIG, d_model=160)
    found = {finding.name: finding for finding in graph.SECTION.find(subject(init(BDH(wide), 3), wide))}
    assert "not distinguishable" in found["modularity"].title
    assert "not distinguishable" in found["degrees"].title
    assert found["tails"].title == "No heavy tail of in-degrees in every seed"
    assert "not distinguishable" in found["hubs"].title
    assert all(found[name].p_value > 0.05 for name in ("modularity", "degrees", "hubs"))


def test_findings_are_whole(findings):
    assert list(findings) == ["modularity", "degrees", "tails", "hubs"]
    for finding in findings.values():
        assert len({tuple(row) for row in finding.rows}) == 1, "all rows have the same keys"
        assert json.loads(json.dumps(list(finding.rows), allow_nan=False))
        assert all((finding.title, finding.says, finding.null, finding.caption, finding.alternative))
        assert finding.says.endswith(".")
    rows = findings["modularity"].rows
    assert {row["model"] for row in rows} == set(graph.MODELS)
    assert {row["density"] for row in rows} == set(graph.DENSITIES)


def test_other_models_have_no_graph():
    with pytest.raises(NotApplicable, match="this model has none"):
        graph.SECTION.find(subject({}, GPTConfig(vocab_size=30, n_layer=1, d_model=8, n_head=1)))
