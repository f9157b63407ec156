"""What is watched is what the state holds, and what is taken away is this token's read and nothing else."""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib

import jax
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis import writing
from bdh_jax.analysis.fast_states import empty_attention, empty_memory, shuffle_attention_by
from bdh_jax.analysis.nulls import p_of
from bdh_jax.analysis.report import watch as section
from bdh_jax.analysis.report.base import NotApplicable, Subject
from bdh_jax.config.seeds import key_of
from bdh_jax.models.gpt import GPTConfig
from tests.compiled import apply, init

CONFIG = BDHConfig(
    vocab_size=12,
    n_layer=2,
    d_model=8,
    n_head=2,
    n_neurons=32,
    dropout=0.0,
    init_std=0.3,
    fast=FastWeightConfig(learning_rate=2.0, decay=1.0),
)
PLAIN = dataclasses.replace(CONFIG, fast=FastWeightConfig(enabled=False))
TOKENS = np.random.default_rng(0).integers(0, 12, 10).astype(np.int32)


def logs(config, slow, token, fast):
    return np.asarray(jax.nn.log_softmax(apply(BDH(config), slow, np.array([[token]], np.int32), fast).logits[0, 0]))


@pytest.fixture(scope="module")
def watched():
    return writing.watch(CONFIG, init(BDH(CONFIG), 0), TOKENS, shuffles=3)


def test_norms_and_rows_are_those_of_the_state(watched):
    slow = init(BDH(CONFIG), 0)
    for count in (1, 6, 10):
        state = apply(BDH(CONFIG), slow, TOKENS[None, :count]).fast
        for which, matrix in (("S", state.memory), ("ρ", state.attention)):
            matrix, course = np.asarray(matrix)[:, 0], watched.course[which]
            np.testing.assert_allclose(course.norm[count - 1], np.sqrt((matrix**2).sum(axis=(1, 2, 3))), rtol=1e-4)
            rows = np.linalg.norm(matrix, axis=-1).reshape(2, -1)
            np.testing.assert_allclose(course.rows[count - 1], rows, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(course.nonzero[count - 1], (matrix != 0).mean(axis=(1, 2, 3)), atol=1e-6)


def test_the_rows_that_are_written_are_those_that_change(watched):
    for which in ("S", "ρ"):
        course = watched.course[which]
        before = np.concatenate([np.zeros_like(course.rows[:1]), course.rows[:-1]])
        # Without decay nothing else changes a row; a write may leave its norm as it was only by chance.
        np.testing.assert_array_equal(course.rows != before, course.written)
        assert 0.1 < course.written.mean() < 0.9
    # Under the address of the token before, which that token read with.
    np.testing.assert_array_equal(watched.course["S"].written[1:], watched.course["S"].read[:-1])
    assert not watched.course["S"].written[0].any()


@pytest.mark.parametrize(("which", "without"), [("S", empty_memory), ("ρ", empty_attention)])
def test_only_this_tokens_read_is_taken_away(watched, which, without):
    slow = init(BDH(CONFIG), 0)
    state = apply(BDH(CONFIG), slow, TOKENS[None, :6]).fast
    predictions = watched.predictions[which]
    np.testing.assert_allclose(predictions.normal[6], logs(CONFIG, slow, TOKENS[6], state), atol=1e-4)
    expected = logs(CONFIG, slow, TOKENS[6], without(state))
    np.testing.assert_allclose(predictions.without[6], expected, atol=1e-4)
    assert np.abs(predictions.normal[6] - predictions.without[6]).max() > 1e-2
    assert np.abs(predictions.shuffled[:, 6] - predictions.normal[6]).max(axis=1).min() > 1e-3
    # At the first token there is nothing to read.
    np.testing.assert_allclose(predictions.without[0], predictions.normal[0], atol=1e-6)


@pytest.mark.parametrize("which", ["S", "ρ"])
def test_the_last_read_of_many_texts_is_that_of_each(watched, which):
    slow = init(BDH(CONFIG), 0)
    read = writing.last_reads(CONFIG, slow, [TOKENS, TOKENS[:7]], which, shuffles=5)
    predictions = watched.predictions[which]
    for row, token in ((0, 9), (1, 6)):
        np.testing.assert_allclose(read.normal[row], predictions.normal[token], atol=1e-4)
        np.testing.assert_allclose(read.without[row], predictions.without[token], atol=1e-4)
    assert read.shuffled.shape == (5, 2, 12)
    assert np.abs(read.shuffled[0] - read.shuffled[1]).max() > 1e-3


def test_rows_of_the_attention_trade_places_and_nothing_else_changes():
    state = apply(BDH(CONFIG), init(BDH(CONFIG), 0), TOKENS[None]).fast
    shuffled = shuffle_attention_by(state, key_of(0))
    np.testing.assert_array_equal(shuffled.memory, state.memory)
    for before, after in zip(np.asarray(state.attention), np.asarray(shuffled.attention), strict=True):
        before, after = before.reshape(32, 8), after.reshape(32, 8)
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))
        assert (before != after).any(axis=1).mean() > 0.5


def test_a_plain_bdh_has_its_attention_to_watch():
    assert writing.matrices(CONFIG) == ("S", "ρ")
    assert writing.matrices(PLAIN) == ("ρ",)


def test_certainty_is_minus_the_entropy_in_bits():
    log = np.log(np.array([[0.25] * 4, [0.97, 0.01, 0.01, 0.01]]))
    np.testing.assert_allclose(writing.certainty(log), [-2, -0.2419], atol=1e-3)


def test_addresses_read_what_attention_reads():
    """With unit values, what attention reads of ρ is the sum of the scores, which are products of addresses."""
    slow = init(BDH(PLAIN), 0)
    valid = np.ones((1, 10), bool)
    unit = writing.addresses(PLAIN, slow, TOKENS[None], valid, "ρ")[0, :, 0]
    code = np.asarray(apply(BDH(PLAIN), slow, TOKENS[None], collect=("code",)).collected["code"])[0, 0]
    size = np.linalg.norm(code.transpose(1, 0, 2).reshape(10, -1), axis=1)
    one_step = writing.watch(PLAIN, slow, TOKENS, shuffles=1).course["ρ"]
    x = np.asarray(apply(BDH(PLAIN), slow, TOKENS[None], collect=("input",)).collected["input"])[0, 0]
    rho = (unit * size[:, None])[:, :, None] * x[:, None]
    np.testing.assert_allclose(np.linalg.norm(rho.sum(axis=0), axis=-1), one_step.rows[-1, 0], rtol=1e-3, atol=1e-4)


def test_a_token_that_comes_back_is_told_from_others():
    rng = np.random.default_rng(0)
    tokens, valid = rng.integers(0, 6, (4, 30)), np.ones((4, 30), bool)
    valid[3, 20:] = False
    own = rng.normal(size=(6, 64))
    address = np.stack([own[tokens], rng.normal(size=(4, 30, 64))], axis=2)
    address /= np.linalg.norm(address, axis=-1, keepdims=True)
    found = writing.asked_again(address, tokens, valid, shuffles=99)
    assert found.same.shape == (len(found.distance), 2)
    np.testing.assert_allclose(found.same[:, 0], 1)
    assert np.abs(found.other.mean(axis=0)).max() < 0.1
    planted, noise = p_of(found.excess, found.shuffled)
    assert planted == 1 / 100
    assert noise > 0.05
    expected = sum(len(line) - len(set(line.tolist())) for line in (row[t] for row, t in zip(tokens, valid, strict=True)))
    assert len(found.distance) == expected
    first = np.flatnonzero(tokens[0] == tokens[0, 0])
    assert first[1] - first[0] in found.distance
    empty = writing.asked_again(address[:1, :6], np.arange(6)[None], np.ones((1, 6), bool))
    assert empty.same.shape == (0, 2)


def test_in_noise_no_token_comes_back_more_often_than_stated():
    """Addresses that have nothing to do with tokens: p-values are uniform."""
    rng = np.random.default_rng(5)
    p = []
    for number in range(200):
        tokens = rng.integers(0, 6, (2, 14))
        address = rng.normal(size=(2, 14, 1, 16))
        address /= np.linalg.norm(address, axis=-1, keepdims=True)
        found = writing.asked_again(address, tokens, np.ones(tokens.shape, bool), shuffles=39, seed=number)
        p.append(float(p_of(found.excess, found.shuffled)[0]))
    for level in (0.1, 0.5, 0.9):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 200))


def subject(config=CONFIG, spoken=False, **changes):
    tokens = np.random.default_rng(1).integers(0, 12, (8, 10)).astype(np.int32)
    given = Subject(
        "tiny",
        config,
        seeds={0: init(config.build(), 0)},
        untrained=lambda seed: init(config.build(), 5 + seed),
        tokens=tokens,
        valid=np.ones(tokens.shape, bool),
        decode=(lambda ids: "".join("ab<&\n c\"d'ef"[int(token)] for token in ids)) if spoken else None,
    )
    return dataclasses.replace(given, **changes)


def test_a_memory_that_nobody_writes_is_worth_nothing():
    silent = dataclasses.replace(CONFIG, fast=FastWeightConfig(learning_rate=0.0))
    found = {finding.name: finding for finding in section.find(subject(silent))}
    of_s = found["contribution_fast_weights"]
    assert of_s.effect == 0
    assert of_s.p_value == 1
    assert "not distinguishable" in of_s.says
    assert all(row["bits"] == 0 for row in of_s.rows)
    assert found["contribution_attention"].effect != 0


def test_every_token_has_a_frame_and_a_colour_and_text_is_escaped():
    found = {finding.name: finding for finding in section.find(subject(spoken=True))}
    assert [*found] == [
        "filling",
        "rows",
        "frames",
        "asked_again_fast_weights",
        "contribution_fast_weights",
        "asked_again_attention",
        "contribution_attention",
    ]
    frames = found["frames"].html
    assert frames.count('type="radio"') == frames.count("<label") == frames.count("data:image/png;base64,") == 10
    assert frames.count(" checked>") == 1
    ids = set(re.findall(r'<input[^>]* id="([^"]+)"', frames))
    assert ids == set(re.findall(r'<label for="([^"]+)"', frames))
    for finding in found.values():
        assert finding.html is None or not re.search(r"<script|https?://", finding.html)
    text = found["contribution_fast_weights"].html
    assert "&lt;" in text + frames or "&amp;" in text + frames
    assert "<&" not in text + frames
    # From the second token on: the first is not predicted. Of what is no text, the answer after the last is.
    assert len(found["contribution_fast_weights"].rows) == 9
    assert section.find(subject())[4].rows[-1]["token"] == "?"


def test_a_picture_is_a_png():
    index = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = section.png(index)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, parts = 8, {}
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size]) == (zlib.crc32(kind + body),)
        parts[kind], place = body, place + 12 + size
    assert struct.unpack(">II", parts[b"IHDR"][:8]) == (4, 3)
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(3, 5)
    np.testing.assert_array_equal(lines[:, 1:], index)
    assert max(index.ravel()) < len(parts[b"PLTE"]) // 3


def test_who_keeps_no_matrix_is_not_watched():
    gpt = GPTConfig(vocab_size=12, n_layer=1, d_model=8, n_head=2, dropout=0.0)
    with pytest.raises(NotApplicable, match="A GPT keeps no state from token to token"):
        section.find(subject(gpt))
    with pytest.raises(NotApplicable, match="one token long"):
        section.find(subject(tokens=np.zeros((2, 1), np.int32), valid=np.ones((2, 1), bool)))
