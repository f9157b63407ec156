"""Synapses that tell texts apart: what is planted is found and holds on other texts, what is not is not, and writes add up to states."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis import synapses
from bdh_jax.layers.rotary import rope, rope_angles, rope_frequencies
from tests.compiled import apply, init

CONFIG = BDHConfig(
    vocab_size=20,
    n_layer=2,
    d_model=8,
    n_head=2,
    n_neurons=16,
    dropout=0.5,
    init_std=0.5,
    fast=FastWeightConfig(learning_rate=0.7, decay=0.9),
)


def drawn_texts(rng, count=8, lengths=(5, 12)):
    return [rng.integers(0, 20, rng.integers(*lengths)) for _ in range(count)]


@pytest.fixture(scope="module")
def slow():
    return init(BDH(CONFIG), 0)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return synapses.as_texts({"a": drawn_texts(rng), "b": drawn_texts(rng, 9)})


def planted(rng, count=24, entries=60, effect=3.0, labels=None):
    """Values of which entry 7 is larger in set 1."""
    labels = np.repeat([0, 1], count // 2) if labels is None else labels
    values = rng.normal(size=(len(labels), entries)).astype(np.float32)
    values[:, 7] += effect * (labels == 1)
    return values, labels


def test_texts_are_padded_and_named(texts):
    assert texts.names == ("a", "b")
    assert texts.tokens.shape == (17, 32)
    assert np.bincount(texts.labels).tolist() == [8, 9]
    assert not texts.tokens[~texts.valid].any()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"a": [[1]] * 8}, "1 set of texts: nothing to tell apart"),
        ({"a": [[n] for n in range(8)], "b": [[1, 2]]}, "set 'b' has 1 texts; give 8 or more"),
        ({"a": [[n] for n in range(8)], "b": [[n, n] for n in range(7)] + [[]]}, "text 7 of set 'b' is empty"),
        ({"a": [[n] for n in range(8)], "b": [[n, n] for n in range(7)] + [[3]]}, "text 7 of set 'b' is in set 'a' as well"),
    ],
    ids=["one set", "few texts", "empty", "twice"],
)
def test_texts_that_cannot_be_asked_are_refused(sets, message):
    with pytest.raises(ValueError, match=message):
        synapses.as_texts(sets)


def test_half_of_every_set_is_held_out():
    labels = np.repeat([0, 1, 2], [8, 9, 10])
    train, test = synapses.split(labels, 3)
    assert sorted([*train, *test]) == list(range(27))
    assert np.bincount(labels[train]).tolist() == [4, 4, 5]
    assert train.tolist() != synapses.split(labels, 4)[0].tolist()


def test_a_state_is_that_of_the_text_alone_per_token(slow, texts):
    """Padding and other texts leave no trace; what does not decay is divided by the number of tokens."""
    train, _ = synapses.split(texts.labels)
    rho = synapses.entries("rho", texts, train, (CONFIG, slow), most=10**6)
    assert rho.values.shape == (17, rho.of)
    assert rho.of == 2 * 16 * 8
    fast = synapses.entries("S", texts, train, (CONFIG, slow), most=10**6)
    neuron = synapses.entries("neuron", texts, train, (CONFIG, slow), most=10**6)
    share = synapses.entries("token", texts, train)
    for row in (0, 11):
        line = texts.tokens[row][texts.valid[row]]
        out = apply(BDH(CONFIG), slow, line[None], collect=("code",))
        at = tuple(rho.index.T)
        np.testing.assert_allclose(rho.values[row], np.asarray(out.fast.attention)[:, 0][at] / len(line), atol=1e-5)
        np.testing.assert_allclose(fast.values[row], np.asarray(out.fast.memory)[:, 0][tuple(fast.index.T)], atol=1e-5)
        mean = np.asarray(out.collected["code"])[:, 0].mean(axis=2)
        np.testing.assert_allclose(neuron.values[row], mean[tuple(neuron.index.T)], atol=1e-5)
        np.testing.assert_allclose(share.values[row], np.bincount(line, minlength=20)[share.index[:, 0]] / len(line))


def test_entries_of_the_largest_variance_over_training_texts_are_searched(slow, texts):
    train, test = synapses.split(texts.labels)
    whole = synapses.entries("rho", texts, train, (CONFIG, slow), most=10**6)
    some = synapses.entries("rho", texts, train, (CONFIG, slow), most=20)
    assert np.bincount(some.index[:, 0]).tolist() == [10, 10], "as many in every layer"
    variance = whole.values[train].var(axis=0)
    for layer in (0, 1):
        here = whole.index[:, 0] == layer
        best = {tuple(index) for index in whole.index[here][np.argsort(-variance[here])[:10]]}
        assert {tuple(index) for index in some.index[some.index[:, 0] == layer]} == best
    # What is held out changes nothing, and batches are one pass after another.
    other = texts._replace(tokens=np.where(np.isin(np.arange(17), test)[:, None], texts.tokens[::-1], texts.tokens))
    assert synapses.entries("rho", other, train, (CONFIG, slow), most=20).index.tolist() == some.index.tolist()


def test_batches_do_not_matter(slow, texts, monkeypatch):
    train, _ = synapses.split(texts.labels)
    whole = synapses.entries("rho", texts, train, (CONFIG, slow), most=20)
    monkeypatch.setattr(synapses, "_BYTES", 5 * 2 * 16 * (8 + 32) * 4)
    parts = synapses.entries("rho", texts, train, (CONFIG, slow), most=20)
    assert parts.index.tolist() == whole.index.tolist()
    np.testing.assert_allclose(parts.values, whole.values, atol=1e-6)


def test_s_of_a_model_without_fast_weights_is_refused(slow, texts):
    config = BDHConfig(n_layer=1, d_model=8, n_head=1, n_neurons=8, fast=FastWeightConfig(enabled=False))
    with pytest.raises(ValueError, match="no fast weights"):
        synapses.entries("S", texts, np.arange(4), (config, slow))


def test_a_planted_synapse_is_found_and_holds_on_other_texts():
    values, labels = planted(np.random.default_rng(0))
    found = synapses.search(values, labels, permutations=199)
    (contrast, *_), (entry, *_) = found.best
    assert (contrast, entry) == (0, 7)
    assert found.effects[0, 7] < -0.9, "set 0 has the smaller values"
    assert found.corrected[0, 7] == pytest.approx(1 / 200)
    assert found.discovered.sum() == 1
    assert found.p_discovered < 0.05
    other, labels = planted(np.random.default_rng(1), 30)
    held = synapses.hold_out(other, labels, found, np.array([0]), np.array([7]))
    assert held.effects[0] > 0.9
    assert held.p_values[0] < 1e-4


def test_one_of_three_sets_is_told_from_the_others():
    labels = np.repeat([0, 1, 2], 8)
    values, _ = planted(np.random.default_rng(2), labels=labels)
    found = synapses.search(values, labels, permutations=199)
    assert [int(part[0]) for part in found.best] == [1, 7]
    assert found.effects[1, 7] > 0.9
    assert found.effects.shape == (3, 60)


def test_the_statistic_is_scipys_also_with_ties():
    rng = np.random.default_rng(3)
    values, labels = rng.integers(0, 4, (20, 9)).astype(np.float32), np.repeat([0, 1], [8, 12])
    values[:, 4] = 1.0
    found = synapses.search(values, labels, permutations=19)
    expected = stats.mannwhitneyu(values[:8], values[8:], axis=0, method="asymptotic")
    np.testing.assert_allclose(found.effects[0], 2 * expected.statistic / 96 - 1, atol=1e-6)
    keep = np.arange(9) != 4
    np.testing.assert_allclose(found.p_values[0, keep], expected.pvalue[keep], rtol=1e-5)
    assert found.p_values[0, 4] == 1, "all texts alike"
    assert found.corrected[0, 4] == 1


def test_changes_add_up_to_the_state_and_are_keys_times_values(slow, texts):
    some = texts.select(np.arange(3))
    index = np.array([[0, 0, 3, 2], [1, 1, 5, 7]])
    traces = synapses.trace("rho", CONFIG, slow, some, index)
    out = apply(BDH(CONFIG), slow, some.tokens, valid=some.valid, collect=("code", "input"))
    at = tuple(index.T)
    rho = jnp.moveaxis(out.fast.attention, 1, -1)[at]  # [S, B]
    np.testing.assert_allclose(traces.change.sum(axis=1), rho.T, atol=1e-5)
    turns = rope_frequencies(jnp.arange(8), 8, CONFIG.rope_theta, jnp.float32)
    angles = (table[None] for table in rope_angles(jnp.arange(32)[None], jnp.arange(8), turns))
    key = rope(out.collected["code"], *angles)  # [L, B, H, T, N]
    for number, (layer, head, neuron, width) in enumerate(index):
        written = key[layer, :, head, :, neuron] * out.collected["input"][layer, :, :, width] * some.valid
        np.testing.assert_allclose(traces.change[..., number], written, atol=1e-5)
        before = np.cumsum(written, axis=1) - written
        np.testing.assert_allclose(traces.read[..., number], key[layer, :, head, :, neuron] * before * some.valid, atol=1e-5)


def test_changes_of_s_add_up_with_decay(slow, texts, monkeypatch):
    monkeypatch.setattr(synapses, "_BYTES", 1)  # one text after another
    some = texts.select(np.arange(2))
    index = np.array([[1, 0, 2, 3]])
    traces = synapses.trace("S", CONFIG, slow, some, index)
    fast = apply(BDH(CONFIG), slow, some.tokens, valid=some.valid).fast
    np.testing.assert_allclose(traces.change.sum(axis=1)[:, 0], np.asarray(fast.memory)[1, :, 0, 2, 3], atol=1e-5)
    assert not traces.read[:, 0].any(), "S is empty before the first token"
    assert traces.read.any()


def test_codes_are_those_of_the_model(slow, texts):
    code = apply(BDH(CONFIG), slow, texts.tokens, valid=texts.valid, collect=("code",)).collected["code"]
    found = synapses.codes(CONFIG, slow, texts, np.array([[1, 0, 4]]))
    np.testing.assert_allclose(found[..., 0], np.asarray(code)[1, :, 0, :, 4] * texts.valid, atol=1e-6)


def test_the_strongest_places_are_shown_one_a_text():
    tokens = np.array([[1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 0, 0]], np.int32)
    texts = synapses.Texts(tokens, tokens > 0, np.zeros(3, int), ("a",))
    strength = np.array([[0.0, 2, -5, 1], [0, 0.5, 0, 9], [0, 0, 0, 0]])
    shown = synapses.top_contexts(strength, texts, lambda ids: "".join(map(str, ids)), before=2)
    assert shown == ["12[3]4", "5[6]7"]
