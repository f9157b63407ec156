"""Scores of texts: what is carried, what is cut, and what each distance costs."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.analysis import language
from bdh_jax.data.corpus import Corpus
from bdh_jax.data.documents import DataError
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig
from tests.compiled import apply, init

VOCAB = 11
CONFIG = BDHConfig(
    vocab_size=VOCAB,
    n_layer=1,
    d_model=8,
    n_head=2,
    n_neurons=16,
    dropout=0.0,
    init_std=0.3,
    fast=FastWeightConfig(synapse=True),
)
GPT = GPTConfig(vocab_size=VOCAB, n_layer=1, d_model=8, n_head=2, init_std=0.3)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 401).astype(np.uint8)
CORPUS = Corpus(TOKENS, np.array([0]))
ONES = np.ones(VOCAB, np.int64)


def _slow(config=CONFIG):
    return init(config.build(), 0)


def _bits(config, slow, first, last):
    """Bits of tokens first + 1 … last, read from an empty state at ``first``."""
    # Zeros after them change nothing before, and one length compiles once.
    tokens = np.zeros((1, 200), np.int32)
    tokens[0, : last - first] = TOKENS[first:last]
    logits = apply(config.build(), slow, tokens, state="none").logits[0, : last - first]
    logp = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)))
    return -np.take_along_axis(logp, TOKENS[first + 1 : last + 1, None].astype(int), axis=1)[:, 0] / math.log(2)


# The same sums of a few hundred float32 numbers, in other chunks.
CLOSE = {"rtol": 1e-5}


def test_a_carried_state_reads_on(monkeypatch):
    slow = _slow()
    expected = np.concatenate([_bits(CONFIG, slow, first, first + 200) for first in (0, 200)])
    for chunk in (128, 33):
        monkeypatch.setattr(language, "CHUNK", chunk)
        score = language.carried(CONFIG, slow, CORPUS, ONES, rows=2)
        np.testing.assert_allclose(score.bits_per_byte, expected.mean(), **CLOSE)
        assert (score.count, score.last) == (400, 199)


@pytest.mark.parametrize("chunk", [128, 24])
@pytest.mark.parametrize("config", [CONFIG, GPT], ids=["bdh", "gpt"])
def test_distances_are_from_the_start_of_a_context(config, chunk, monkeypatch):
    monkeypatch.setattr(language, "CHUNK", chunk)
    slow = _slow(config)
    each = np.stack([_bits(config, slow, first, first + 100) for first in (0, 100, 200, 300)])
    scores = language.by_position(config, slow, CORPUS, ONES, context=100, rows=2)
    assert [(s.first, s.last, s.count) for s in scores] == [(0, 63, 256), (64, 99, 144)]
    np.testing.assert_allclose([s.bits_per_byte for s in scores], [each[:, :64].mean(), each[:, 64:].mean()], **CLOSE)


@pytest.mark.parametrize("config", [CONFIG, GPT], ids=["bdh", "gpt"])
def test_logits_are_held_in_parts(config, monkeypatch):
    """Where those of a chunk or a context would be more than the limit; what is left over at the end counts once."""
    slow = _slow(config)
    whole = language.by_position(config, slow, CORPUS, ONES, context=200, rows=2)
    shapes = []
    readout = type(config.make_architecture()).readout

    def measured(self, slow, x):
        shapes.append(x.shape[:2])
        return readout(self, slow, x)

    monkeypatch.setattr(type(config.make_architecture()), "readout", measured)
    monkeypatch.setattr(language, "LOGITS_BYTES", 2 * VOCAB * 4 * 33)
    jax.clear_caches()
    parts = language.by_position(config, slow, CORPUS, ONES, context=200, rows=2)
    assert shapes
    assert max(rows * time for rows, time in shapes) == 2 * 33
    assert [(p.first, p.last, p.count) for p in parts] == [(p.first, p.last, p.count) for p in whole]
    np.testing.assert_allclose([p.bits_per_byte for p in parts], [p.bits_per_byte for p in whole], **CLOSE)


def test_distances_are_counted_within_documents(monkeypatch):
    monkeypatch.setattr(language, "CHUNK", 24)
    slow = _slow()
    starts = [0, 30, 110, 320]
    scores = language.by_position(CONFIG, slow, Corpus(TOKENS, np.array(starts)), ONES, context=200)
    cuts = [0, 30, 110, 200, 320, 400]  # of documents and of contexts
    costs = {False: [], True: []}
    for first, last in itertools.pairwise(cuts):
        bits = _bits(CONFIG, slow, first, last)
        for distance, cost in enumerate(bits):
            if first + distance + 1 not in starts:  # a document's first token is not predicted
                costs[distance >= 64].append(cost)
    assert [(s.first, s.last) for s in scores] == [(0, 63), (64, 127)]
    assert [s.count for s in scores] == [len(costs[False]), len(costs[True])]
    np.testing.assert_allclose([s.bits_per_byte for s in scores], [np.mean(costs[False]), np.mean(costs[True])], **CLOSE)


def test_bytes_are_those_of_the_tokens():
    slow = _slow()
    twice = language.carried(CONFIG, slow, CORPUS, 2 * ONES)
    once = language.carried(CONFIG, slow, CORPUS, ONES)
    assert twice.count == 2 * once.count
    np.testing.assert_allclose(2 * twice.bits_per_byte, once.bits_per_byte, rtol=1e-12)


def test_a_cache_is_as_large_as_the_state_after_so_many_tokens():
    config = dataclasses.replace(CONFIG, n_layer=2)
    # Keys and values, two layers, eight wide, four bytes.
    assert language.cache_bytes(config, 10) == 2 * 2 * 8 * 4 * 10
    state = language.state_bytes(config)
    assert state == config.build().init_fast(1).nbytes
    equal = language.equal_context(config)
    assert language.cache_bytes(config, equal - 1) < state <= language.cache_bytes(config, equal)


def test_parts_are_switched_off():
    slow = _slow()
    slow = {**slow, "synapse": jax.random.normal(jax.random.key(1), slow["synapse"].shape)}
    variants = language.ablations(CONFIG, slow)
    assert list(variants) == ["normal", "fast_write_off", "fast_off", "slow_read_off"]
    bits = {
        name: language.carried(config, weights, CORPUS, ONES).bits_per_byte for name, (config, weights) in variants.items()
    }
    assert len({round(b, 6) for b in bits.values()}) == 4
    plain = dataclasses.replace(CONFIG, fast=FastWeightConfig(enabled=False))
    rest = {name: leaf for name, leaf in slow.items() if name != "synapse"}
    assert bits["fast_off"] == language.carried(plain, rest, CORPUS, ONES).bits_per_byte
    assert list(language.ablations(plain, rest)) == ["normal"]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="a 'gpt' model has no state to carry; by_position needs none"):
        language.carried(GPT, _slow(GPT), CORPUS, ONES)
    with pytest.raises(DataError, match="401 tokens in 1 rows are fewer than a context of 500 needs"):
        language.by_position(CONFIG, _slow(), CORPUS, ONES, context=500)


def test_table_and_figure():
    scores = {"one": (language.PositionScore(0, 63, 10, 2.5), language.PositionScore(64, 99, 5, 2.25))}
    table = language.positions_table(scores, "title")
    assert list(table.columns[1].cells) == ["2.5000", "2.2500"]
    (axes,) = language.plot_positions(scores, 50).axes
    assert axes.lines[0].get_xdata().tolist() == [64, 100]
