"""Streams of facts against what they promise."""

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.lifelong.stream import StreamConfig, make_stream
from bdh_jax.tasks.facts import FIRST_VALUE, KINDS, VALUES, combinations


@pytest.mark.parametrize("facts", [16, 50, 256])
def test_every_fact_is_shown_and_no_key_twice_in_an_episode(facts):
    stream = make_stream(StreamConfig(facts=facts), seed=1)
    assert len(stream.facts) % 4 == 0
    assert set(stream.facts.ravel().tolist()) == set(range(facts))
    for episode in stream.facts.tolist():
        assert len(set(episode)) == 16
    assert len(np.unique(stream.keys, axis=0)) == facts
    assert stream.written.min() >= FIRST_VALUE
    assert stream.written.max() < FIRST_VALUE + VALUES


@pytest.mark.parametrize(("facts", "episodes"), [(512, 64), (2048, 256)])
def test_all_streams_are_equally_long(facts, episodes):
    """Also where the most frequent facts cannot come as often as the law says, as they cannot among 2,048."""
    for seed in range(3):
        stream = make_stream(StreamConfig(facts=facts), seed=seed)
        assert len(stream.facts) == episodes
        assert all(len(set(episode)) == 16 for episode in stream.facts.tolist())


def test_truth_is_what_the_tokens_say():
    """Read from the tokens with a dictionary."""
    stream = make_stream(StreamConfig(facts=64), seed=3)
    now, before, last = {}, {}, {}
    for number, tokens in enumerate(stream.tokens.reshape(len(stream.facts), -1, 3).tolist()):
        if number == 5:
            early = dict(now)
        for a, b, value in tokens:
            if now.get((a, b), value) != value:
                before[a, b] = now[a, b]
            now[a, b], last[a, b] = value, number
    truth = stream.truth()
    for number, key in enumerate(map(tuple, stream.keys.tolist())):
        assert truth.value[number] == now[key]
        assert truth.previous[number] == before.get(key, -1)
        assert truth.last[number] == last[key]
        assert stream.truth(5).value[number] == early.get(key, -1)
    assert len(before) == 16


def test_kinds_are_mixed_evenly_and_right():
    stream = make_stream(StreamConfig(facts=300), seed=0)
    assert np.bincount(stream.kind).tolist() == [100, 100, 100]
    for number, kind in enumerate(KINDS):
        pool = set(map(tuple, getattr(combinations(), kind).tolist()))
        assert set(map(tuple, stream.keys[stream.kind == number].tolist())) <= pool


def test_a_kind_that_runs_out_leaves_its_share_to_the_others():
    stream = make_stream(StreamConfig(facts=4096, repeats=1.25), seed=0)
    assert np.bincount(stream.kind).tolist() == [1536, 1536, 1024]


def test_repeats_follow_a_law_and_not_chance():
    counts = np.sort(np.bincount(make_stream(StreamConfig(facts=256), seed=0).facts.ravel()))[::-1]
    assert counts[:5].sum() > 5 * 6
    assert np.median(counts) <= 2


def test_streams_are_functions_of_their_seed():
    config = StreamConfig(facts=32)
    stream, again = make_stream(config, seed=4), make_stream(config, seed=4)
    np.testing.assert_array_equal(stream.tokens, again.tokens)
    for other in (make_stream(config, seed=5), make_stream(config, seed=4, validation=True)):
        assert (other.keys != stream.keys).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": 15}, "facts=15 must lie in 16 … 16384"),
        ({"repeats": 1.2}, r"repeats=1.2 must be at least 1 \+ reassigned=1.25"),
        ({"reassigned": -0.1}, r"reassigned=-0.1 must lie in \[0, 1\]"),
        ({"checkpoints": 0}, "checkpoints=0 must be at least 1"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        StreamConfig(**change)
