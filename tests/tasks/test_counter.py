"""The counter-benchmarks against their definition."""

import collections

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import from_config_dict, to_config_dict
from bdh_jax.tasks import CounterConfig, counter
from bdh_jax.tasks.scoring import ceiling

GAP = {"vargap1": 1, "vargap2": 2, "repeated8": 0, "n16": 0}
PAIRS = {"vargap1": 8, "vargap2": 8, "repeated8": 8, "n16": 16}


def task(**config):
    return CounterConfig(**config).make(seed=0, batch_size=8)


def parse(name, row):
    """Pairs and the key asked for of a row of ids."""
    width = 2 + GAP[name]
    *body, separator, key = row
    assert separator == 128
    assert len(body) == width * PAIRS[name]
    return [(body[i], body[i + width - 1]) for i in range(0, len(body), width)], key


def possible(name, row):
    """Values that the query may mean."""
    pairs, key = parse(name, row)
    if name == "repeated8":
        return [[v for k, v in pairs if k == key][-1]]
    return [v for k, v in pairs[-{8: 4, 16: 16}[len(pairs)] :] if k == key]


@pytest.mark.parametrize(
    ("name", "figure"), [("vargap1", 0.975), ("vargap2", 0.982), ("repeated8", 1.0), ("n16", 0.888833333)]
)
def test_evaluation_sets(name, figure):
    """Their ceilings depend on every draw before them, so they hold the order of draws as well."""
    data = task().evaluation_sets[name]
    assert ceiling(data.values, data.candidates).mean() == pytest.approx(figure, abs=1e-6)
    for row, answer, values, candidates in zip(
        data.encoded.tokens.tolist(), data.answers, data.values, data.candidates, strict=True
    ):
        assert answer in possible(name, row)
        assert sorted(values[candidates]) == sorted(possible(name, row))


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("vargap1", [32, 99, 105, 25, 46, 94]),
        ("vargap2", [24, 104, 47, 76, 38, 44]),
        ("repeated8", [35, 65, 41, 66, 57, 66]),
        ("n16", [34, 114, 53, 111, 46, 115]),
    ],
)
def test_first_evaluation_sequence_never_changes(name, start):
    assert task().evaluation_sets[name].encoded.tokens[0, : len(start)].tolist() == start


def test_fewer_evaluation_sequences_are_the_first_ones():
    few, all_of_them = task(evaluation_sequences=7).evaluation_sets, task().evaluation_sets
    for name in GAP:
        np.testing.assert_array_equal(few[name].encoded.tokens, all_of_them[name].encoded.tokens[:7])


def test_training_rows_hold_whole_episodes():
    train = task()
    names = {counter.length(kind): name for name, kind in counter.SETS.items() if name != "n16"}
    seen = collections.Counter()
    for step in range(8):
        batch = train.batch(step)
        assert batch.tokens.shape == (8, 34)
        for row in range(8):
            starts = [0, *np.flatnonzero(batch.reset[row]).tolist()]
            ends = [*starts[1:], int(batch.valid[row].sum())]
            for a, b in zip(starts, ends, strict=True):
                ids = batch.tokens[row, a:b].tolist()
                name = "n16" if b - a == 34 and row % 4 == 3 else names[b - a]
                seen[name] += 1
                assert batch.targets[row, b - 1] in possible(name, ids)
                assert batch.targets[row, a : b - 1].tolist() == ids[1:]
                assert batch.answer[row, a:b].sum() == batch.answer[row, b - 1] == 1
    assert set(seen) == set(GAP)


@pytest.mark.parametrize("name", GAP)
def test_both_generators_draw_from_the_same_distribution(name):
    """Mean and spread of keys, values, distractors and of which pair is asked for, within five standard errors."""
    kind = counter.SETS[name]
    ours = counter.sample_episodes(np.random.default_rng(0), kind, 4000)
    theirs = counter.published_episodes(kind._replace(evaluation_seed=1), count=4000)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.size:
            error = np.hypot(a.std(), b.std()) / np.sqrt(len(a))
            assert abs(a.mean() - b.mean()) < 5 * error
            assert (a.min(), a.max()) == (b.min(), b.max())
    places = [np.bincount(episodes.query[:, 0], minlength=16) for episodes in (ours, theirs)]
    assert np.abs(places[0] - places[1]).max() < 5 * np.sqrt(2 * 1000)


def test_repeated_keys_come_twice_and_the_later_value_counts():
    kind = counter.SETS["repeated8"]
    for episodes in (
        counter.sample_episodes(np.random.default_rng(0), kind, 300),
        counter.published_episodes(kind, count=300),
    ):
        for keys, query in zip(episodes.keys, episodes.query[:, 0], strict=True):
            assert sorted(collections.Counter(keys.tolist()).values()) == [2, 2, 2, 2]
            assert query == max(np.flatnonzero(keys == keys[query]))


@pytest.mark.parametrize("name", GAP)
def test_several_queries_ask_for_different_pairs(name):
    """Each is a sequence of its own with the other queries left out."""
    kind = counter.SETS[name]
    episodes = counter.sample_episodes(np.random.default_rng(0), kind, 50, queries=4)
    tokens, targets, answer, _ = counter.encode(episodes)
    assert tokens.shape == (50, counter.length(kind, 4))
    body = counter.length(kind, 0)
    asked = set()
    for row in range(50):
        assert len(set(episodes.query[row].tolist())) == 4
        assert np.flatnonzero(answer[row]).tolist() == [body + 1, body + 3, body + 5, body + 7]
        assert targets[row, :-1][~answer[row, :-1]].tolist() == tokens[row, 1:][~answer[row, :-1]].tolist()
        for i in range(body, body + 8, 2):
            ids = [*tokens[row, :body].tolist(), *tokens[row, i : i + 2].tolist()]
            assert targets[row, i + 1] in possible(name, ids)
        asked |= set(episodes.query[row].tolist())
    if name != "repeated8":
        assert asked == set(range(kind.pairs - kind.window, kind.pairs))


def test_a_perfect_model_scores_the_ceiling():
    train = task(evaluation_sequences=50)

    def predict(tokens, valid):
        logits = np.zeros((*tokens.shape, 130), np.float32)
        for row, ids in enumerate(tokens.tolist()):
            name = {26: "vargap1", 18: "repeated8"}.get(len(ids)) or (
                "n16" if all(i >= 64 for i in ids[1:32:2]) else "vargap2"
            )
            answer = collections.Counter(possible(name, ids)).most_common(1)[0][0]
            logits[row, -1, answer] = 1
        return logits

    evaluation = train.evaluate(predict)
    assert [row.name for row in evaluation.rows] == list(GAP)
    assert all(row.ratio == pytest.approx(1) for row in evaluation.rows)
    assert evaluation.primary == pytest.approx(1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mixture": ("n16", "n8")}, "'n8' is not a set.*vargap1"),
        ({"mixture": ()}, "no set is named"),
        ({"evaluation_sets": ("n16", "n16")}, "twice"),
        ({"evaluation_sequences": 501}, "501.*500"),
        ({"queries": 5}, "queries=5.*1 … 4"),
        ({"queries": 0}, "queries=0"),
    ],
)
def test_mistakes_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        CounterConfig(**keys)


def test_configuration_survives_the_config_dict():
    config = CounterConfig(mixture=("n16", "repeated8"))
    assert from_config_dict(CounterConfig, to_config_dict(config)) == config
