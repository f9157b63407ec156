"""The n-back benchmark against its definition, written out again here in the plainest way."""

import collections
import dataclasses
import functools
import io
import json
import math
import random
import re
import time

import numpy as np
import pytest
from rich.console import Console

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import from_config_dict, to_config_dict
from bdh_jax.experiment import KINDS
from bdh_jax.tasks import Evaluation, NBackConfig, Score, TaskConfig, check_tokens, nback
from bdh_jax.tasks.scoring import ceiling

PAIRS = {"n2": 8, "n4": 16, "n8": 32}
WINDOW = {8: 2, 16: 4, 32: 8}
SEP = 128
FIRST_N2 = [51, 96, 48, 113, 25, 75, 22, 126, 29, 89, 31, 117, 17, 91, 11, 111, 128, 11]


@functools.cache
def definition(pairs, seed, count):
    """Tokens [count, 2·pairs + 2] and answers [count], as the benchmark is defined."""
    rng = random.Random(seed)
    tokens, answers = [], []
    for _ in range(count):
        keys = [rng.randint(0, 64) for _ in range(pairs)]
        values = [rng.randint(64, 128) for _ in range(pairs)]
        query = rng.randint(pairs - WINDOW[pairs], pairs - 1)
        row = []
        for key, value in zip(keys, values, strict=True):
            row += [key, value]
        tokens.append([*row, SEP, keys[query]])
        answers.append(values[query])
    return np.array(tokens), np.array(answers)


def consistent(row):
    """Values that the query of one integer row [T] may mean."""
    *pairs, _, key = row
    pairs = list(zip(pairs[0::2], pairs[1::2], strict=True))
    return [v for k, v in pairs[-WINDOW[len(pairs)] :] if k == key]


def best_value(row):
    return collections.Counter(consistent(row)).most_common(1)[0][0]


def integer_model(choose, vocab_size=130):
    """A model that answers ``choose(row)`` at the last position and nothing anywhere else."""

    def predict(tokens, valid):
        logits = np.zeros((*tokens.shape, vocab_size), np.float32)
        for row, ids in enumerate(tokens.tolist()):
            logits[row, -1, choose(ids)] = 1
        return logits

    return predict


def parse_text(text):
    """The integer row of '<bos>K012 V071 … <sep>K012<answer>'."""
    pairs, query = re.fullmatch(r"<bos>(.*)<sep>K(\d{3})<answer>", text).groups()
    row = []
    for pair in re.findall(r"K\d{3} V\d{3}(?: |$)", pairs):
        row += [int(pair[1:4]), int(pair[6:9])]
    assert len(pairs) == 5 * len(row) - 1
    return [*row, SEP, int(query)]


def text_model(choose):
    """A causal model that spells ``choose(row)``, whatever stands in the input after <answer>."""

    def predict(tokens, valid):
        logits = np.zeros((*tokens.shape, 260), np.float32)
        for row, ids in enumerate(tokens):
            start = int(np.flatnonzero(ids == nback.ANSWER)[0])
            word = f"V{choose(parse_text(nback.ids_to_text(ids[: start + 1]))):03d}"
            logits[row, start + np.arange(4), [ord(c) for c in word]] = 1
        return logits

    return predict


def leaky(tokens, valid):
    """Copies the next token of the input."""
    logits = np.zeros((*tokens.shape, 260), np.float32)
    np.put_along_axis(logits, np.roll(tokens, -1, axis=1)[..., None], 1, axis=2)
    return logits


def task(batch_size=8, seed=0, **config):
    return NBackConfig(**config).make(seed=seed, batch_size=batch_size)


# Evaluation sequences


@pytest.mark.parametrize("name", PAIRS)
def test_evaluation_sequences_are_the_published_ones(name):
    tokens, answers = definition(PAIRS[name], 99, 1000)
    data = task().evaluation_sets[name]
    np.testing.assert_array_equal(data.encoded.tokens, tokens)
    np.testing.assert_array_equal(data.answers, answers)
    np.testing.assert_array_equal(data.encoded.targets[:, :-1], tokens[:, 1:])
    np.testing.assert_array_equal(data.encoded.targets[:, -1], answers)
    assert (data.positions == tokens.shape[1] - 1).all()
    assert data.encoded.valid.all()


def test_first_evaluation_sequence_never_changes():
    # Python promises the same draws in every version only in part, so one sequence is written down.
    (row, *_), (answer, *_) = definition(8, 99, 1)
    assert row.tolist() == FIRST_N2
    assert answer == 111
    assert task().evaluation_sets["n2"].encoded.tokens[0].tolist() == FIRST_N2


def test_fewer_evaluation_sequences_are_the_first_ones():
    few, all_of_them = task(evaluation_sequences=30), task()
    np.testing.assert_array_equal(
        few.evaluation_sets["n4"].encoded.tokens, all_of_them.evaluation_sets["n4"].encoded.tokens[:30]
    )


@pytest.mark.parametrize("name", PAIRS)
def test_published_training_set_is_seed_42(name):
    tokens, answers = definition(PAIRS[name], 42, 8000)
    known = {(*row, answer) for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True)}
    train = task(batch_size=64, train_set="published", mixture=(name,))
    drawn = set()
    for step in range(4):
        batch = train.batch(step)
        # A row of n4's own length holds one episode, one of n2's too: the mixture has one set.
        drawn |= {(*row, target[-1]) for row, target in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True)}
    assert drawn <= known
    # 256 draws of 8000 hit about 4 twice.
    assert len(drawn) > 230


# Ceilings


@pytest.mark.parametrize(("name", "figure"), [("n2", 0.9945), ("n4", 0.9785), ("n8", 0.9455)])
def test_ceiling_of_the_evaluation_set(name, figure):
    data = task().evaluation_sets[name]
    per_sequence = ceiling(data.values, data.candidates)
    for row, value in zip(data.encoded.tokens.tolist(), per_sequence, strict=True):
        options = consistent(row)
        assert value == max(map(options.count, options)) / len(options)
    assert per_sequence.mean() == pytest.approx(figure, abs=1e-9)


@pytest.mark.parametrize(("window", "figure", "rounding"), [(2, 0.9923, 2e-4), (4, 0.977, 5e-4), (8, 0.948, 5e-4)])
def test_ceiling_in_the_limit_of_many_sequences(window, figure, rounding):
    # Only the last ``window`` pairs matter, and pairs are independent: so few pairs have the same limit.
    shape = nback.Shape(window, window)
    episodes = nback.sample_episodes(np.random.default_rng(0), shape, 150_000)
    per_sequence = ceiling(episodes.values, nback.candidates(episodes, window))
    # Four standard errors of the sample, and the figure's own rounding (n2's is itself the mean of a sample).
    noise = 4 * per_sequence.std() / math.sqrt(len(per_sequence))
    assert noise < 2e-3
    assert per_sequence.mean() == pytest.approx(figure, abs=noise + rounding)
    # With m further pairs of the same key: m = 0 leaves no doubt; m = 1 leaves half, and m = 2 a third of the credit at
    # least, more where values agree by chance; the rare m > 2 is bounded by 0 and 1.
    chance = [math.comb(window - 1, m) * (1 / 65) ** m * (64 / 65) ** (window - 1 - m) for m in range(window)]
    one = 1 / 65 + 64 / 65 / 2
    three_differ = (64 / 65) * (63 / 65)
    two = three_differ / 3 + (1 - three_differ - 1 / 65**2) * 2 / 3 + 1 / 65**2
    low = sum(p * c for p, c in zip(chance, (1, one, two), strict=False))
    high = low + sum(chance[3:])
    assert low - noise <= per_sequence.mean() <= high + noise


# Scores


def test_a_perfect_model_scores_exactly_the_ceiling():
    evaluation = task().evaluate(integer_model(best_value))
    assert [row.name for row in evaluation.rows] == list(PAIRS)
    for row in evaluation.rows:
        assert row.count == 1000
        assert row.credit == row.ceiling < 1
        assert row.ratio == 1
        # Of two equally good answers it takes the first; luck moves accuracy around the ceiling.
        assert row.accuracy != row.credit
        assert abs(row.accuracy - row.ceiling) < 0.02
        assert row.extra == {}
    assert evaluation.primary == 1


def test_luck_earns_no_credit():
    truth = {}
    for pairs in PAIRS.values():
        tokens, answers = definition(pairs, 99, 1000)
        truth |= {tuple(row): answer for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True)}
    for row in task().evaluate(integer_model(lambda ids: truth[tuple(ids)])).rows:
        assert row.accuracy == 1
        assert row.credit <= row.ceiling


def test_a_model_that_is_always_wrong_scores_nothing():
    evaluation = task().evaluate(integer_model(lambda ids: next(v for v in range(64, 129) if v not in consistent(ids))))
    assert evaluation.primary == 0
    assert all(row.accuracy == row.credit == row.ratio == 0 and row.ceiling > 0.9 for row in evaluation.rows)


def test_only_the_query_position_counts():
    def predict(tokens, valid):
        return np.roll(integer_model(best_value)(tokens, valid), -1, axis=1)

    assert task(evaluation_sequences=100).evaluate(predict).primary == 0


def test_older_pairs_with_the_query_key_do_not_count():
    def first_match(ids):
        return next(ids[i + 1] for i in range(0, len(ids) - 2, 2) if ids[i] == ids[-1])

    def last_match(ids):
        return consistent(ids)[-1]

    first, last = (task(evaluation_sets=("n8",)).evaluate(integer_model(f)).rows[0] for f in (first_match, last_match))
    assert first.credit < 0.8 * first.ceiling
    assert last.ratio == 1 or last.ratio > 0.99


def test_primary_is_the_worst_set():
    def predict(tokens, valid):
        bad = tokens.shape[1] == 34
        return integer_model((lambda ids: best_value(ids) if ids[0] < 32 else 0) if bad else best_value)(tokens, valid)

    evaluation = task().evaluate(predict)
    assert [row.ratio == 1 for row in evaluation.rows] == [True, False, True]
    assert evaluation.primary == evaluation.rows[1].ratio


def test_predict_sees_one_shape_per_set():
    shapes = collections.Counter()

    def predict(tokens, valid):
        shapes[tokens.shape] += 1
        assert valid.shape == tokens.shape
        return np.zeros((*tokens.shape, 130))

    task().evaluate(predict)
    assert shapes == {(256, 18): 4, (256, 34): 4, (256, 66): 4}


def test_predict_sees_one_shape_per_set_in_text():
    shapes = collections.Counter()

    def predict(tokens, valid):
        shapes[tokens.shape] += 1
        return np.zeros((*tokens.shape, 260), np.float32)

    task(encoding="text", evaluation_sequences=20).evaluate(predict)
    # Four tokens of an answer one by one, the teacher-forced pass, the swapped one.
    assert shapes == {(24, 90): 6, (24, 170): 6, (24, 330): 6}


# Clean variant


def test_clean_variant_has_one_answer_per_query():
    clean = task(clean=True)
    for data in clean.evaluation_sets.values():
        assert (ceiling(data.values, data.candidates) == 1).all()
        keys, values = data.encoded.tokens[:, :-2:2], data.encoded.tokens[:, 1:-2:2]
        assert all(len(set(row)) == len(row) for row in keys.tolist())
        assert keys.min() == 0
        assert keys.max() == 63
        assert values.min() == 64
        assert values.max() == 127
    evaluation = clean.evaluate(integer_model(best_value))
    assert all(row.accuracy == row.credit == row.ceiling == 1 for row in evaluation.rows)


@pytest.mark.parametrize("train_set", ["fresh", "published"])
def test_clean_training_ids_are_disjoint(train_set):
    train = task(clean=True, mixture=("n8",), train_set=train_set, batch_size=200)
    tokens = train.batch(0).tokens
    keys, values, separators = tokens[:, :-2:2], tokens[:, 1:-2:2], tokens[:, -2]
    assert set(keys.ravel().tolist()) == set(range(64))
    assert set(values.ravel().tolist()) == set(range(64, 128))
    assert set(separators.tolist()) == {SEP}
    assert all(len(set(row)) == len(row) for row in keys.tolist())


# Training batches


def episodes_of(batch):
    """(row, first, last + 1) of every packed episode, read off ``reset`` and ``valid`` alone."""
    for row in range(len(batch.tokens)):
        starts = [0, *np.flatnonzero(batch.reset[row]).tolist()]
        ends = [*starts[1:], int(batch.valid[row].sum())]
        yield from ((row, a, b) for a, b in zip(starts, ends, strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_packed_integer_rows_hold_whole_episodes(batch_size):
    train = task(batch_size=batch_size)
    assert train.vocab_size == 130
    assert train.sequence_length == 66
    lengths = collections.Counter()
    for step in range(6):
        batch = train.batch(step)
        assert all(x.shape == (batch_size, 66) for x in batch[:6])
        assert [x.dtype for x in batch[:6]] == [np.int32, np.int32, np.float32, np.float32, np.bool_, np.bool_]
        assert batch.extra is None
        answers = np.zeros_like(batch.answer)
        for row, a, b in episodes_of(batch):
            ids, targets = batch.tokens[row, a:b].tolist(), batch.targets[row, a:b].tolist()
            assert b - a in (18, 34, 66)
            lengths[b - a] += 1
            keys, values = ids[:-2:2], ids[1:-2:2]
            assert min(keys) >= 0
            assert max(keys) <= 64
            assert min(values) >= 64
            assert max(values) <= 128
            assert ids[-2] == SEP
            assert targets[:-1] == ids[1:]
            assert targets[-1] in consistent(ids)
            answers[row, b - 1] = 1
        np.testing.assert_array_equal(batch.answer, answers)
        # Padding only at the end, with an id that means nothing else.
        assert (np.diff(batch.valid.astype(int), axis=1) <= 0).all()
        assert (batch.tokens[~batch.valid] == 129).all()
        assert (batch.targets[~batch.valid] == 129).all()
        assert not batch.reset[~batch.valid].any()
        assert not batch.reset[:, 0].any()
    # Rows take turns: n8 alone, n2 and n4 together.
    assert lengths == {18: 4 * batch_size, 34: 4 * batch_size, 66: 2 * batch_size}


def test_rows_are_filled_with_what_fits():
    train = task(batch_size=2, mixture=("n2", "n8"))
    starts = np.flatnonzero(train.batch(0).reset[0]).tolist()
    assert starts == [18, 36]
    assert train.batch(0).valid.sum(axis=1).tolist() == [54, 66]
    twice = task(batch_size=4, mixture=("n8", "n8", "n2", "n8"))
    assert twice.batch(0).reset.sum(axis=1).tolist() == [0, 0, 2, 0]


def test_weights_give_every_set_its_share():
    batch = task(batch_size=32, mixture=("n2", "n8")).batch(0)
    share = collections.Counter()
    for row, a, b in episodes_of(batch):
        share[b - a] += float(batch.loss_weights[row, a:b].sum())
    assert share[18] == pytest.approx(share[66])
    assert sum(share.values()) == pytest.approx(batch.answer.sum())
    assert ((batch.loss_weights > 0) == (batch.answer == 1)).all()


@pytest.mark.parametrize(("encoding", "lengths"), [("integer", (18, 34, 66)), ("text", (90, 170, 330))])
def test_curriculum_adds_one_set_after_another(encoding, lengths):
    train = task(encoding=encoding, curriculum=(2, 5))
    for step in range(9):
        batch = train.batch(step)
        assert batch.tokens.shape == (8, max(lengths))
        known = lengths[: 1 + (step >= 2) + (step >= 5)]
        assert {b - a for _, a, b in episodes_of(batch)} == set(known)
    # Once all sets have joined, batches are those without a curriculum.
    for here, there in zip(train.batch(8), task(encoding=encoding).batch(8), strict=True):
        np.testing.assert_array_equal(here, there)


def test_curriculum_of_lengths():
    train = task(train_pairs=(4, 16), curriculum=(3,), queries=8, batch_size=2)
    assert train.config.training_shapes == ((4, 4), (16, 8))
    assert train.sequence_length == 2 * (16 + 8)
    lengths = [{b - a for _, a, b in episodes_of(train.batch(step))} for step in range(6)]
    # Four keys give at most four different queries; a sequence that lacks some is shorter by that many.
    assert all(max(found) <= 16 for found in lengths[:3])
    assert all(max(found) > 32 for found in lengths[3:])


def test_training_on_long_sequences_only():
    train = task(train_pairs=(12,), train_window=3, batch_size=50)
    batch = train.batch(0)
    assert batch.tokens.shape == (50, 26)
    assert batch.valid.all()
    assert not batch.reset.any()
    for row, target in zip(batch.tokens, batch.targets[:, -1], strict=True):
        assert target in [row[i + 1] for i in range(18, 24, 2) if row[i] == row[-1]]
    assert task(train_pairs=(12,)).evaluation_sets.keys() == PAIRS.keys()


def test_training_on_easier_shapes_before_those_that_are_asked_for():
    train = task(train_pairs=(4, 8, 8), train_window=(8, 8, 2), curriculum=(2, 4), clean=True, batch_size=32)
    assert train.config.training_shapes == ((4, 4), (8, 8), (8, 2))
    asked = [collections.Counter(places_asked(train, range(a, b))) for a, b in ((0, 2), (2, 4), (4, 60))]
    assert set(asked[0]) == {(4, back) for back in range(1, 5)}
    assert set(asked[1]) == set(asked[2]) == set(asked[0]) | {(8, back) for back in range(1, 9)}
    # The third shape asks for the last two keys only, the second for all eight: (2/8 + 1) / 2 = 0.625.
    recent, older = (sum(asked[2][8, back] for back in backs) for backs in (range(1, 3), range(3, 9)))
    assert recent + older > 1000
    assert 0.57 < recent / (recent + older) < 0.68


def places_asked(train, steps):
    """(pairs, how many pairs back the answer stands) of every episode of some batches, whose keys are distinct."""
    for step in steps:
        batch = train.batch(step)
        for row, a, b in episodes_of(batch):
            keys = batch.tokens[row, a : b - 2 : 2].tolist()
            yield len(keys), len(keys) - keys.index(batch.tokens[row, b - 1])


@pytest.mark.parametrize("clean", [False, True])
def test_alike_values_are_told_apart_by_some_of_their_digits(clean):
    last = 127 if clean else 128
    values = np.full((6000, 6), 1000, np.int32)
    drawn = nback.alike_values(np.random.default_rng(0), values, 0.5, clean=clean)
    assert drawn.dtype == np.int32
    changed = drawn[(drawn != 1000).all(axis=1)]
    assert (drawn == 1000).all(axis=1).sum() == 6000 - len(changed)
    assert abs(len(changed) / 6000 - 0.5) < 0.03
    assert set(np.unique(changed)) == set(range(64, last + 1))
    same_start = (changed // 10 == changed[:, :1] // 10).all(axis=1)
    same_end = (changed % 10 == changed[:, :1] % 10).all(axis=1)
    assert (same_start | same_end).all()
    assert abs(same_start.mean() - 0.5) < 0.05
    assert abs(same_end.mean() - 0.5) < 0.05
    for kind, shared in ((same_start, changed // 10), (same_end, changed % 10)):
        names, counts = np.unique(shared[kind, 0], return_counts=True)
        np.testing.assert_array_equal(names, np.unique(np.arange(64, last + 1) // 10 if shared.max() > 9 else np.arange(10)))
        assert counts.min() > 0.7 * counts.max()
    np.testing.assert_array_equal(nback.alike_values(np.random.default_rng(0), values, 0.0), values)


def test_training_on_alike_values():
    for share in (0.0, 0.5, 1.0):
        train = task(encoding="text", train_pairs=(16,), train_alike=share, batch_size=400)
        tokens = train.batch(0).tokens
        values = tokens[:, 1 : 1 + 160].reshape(400, 16, 10)[..., 6:9]  # the digits
        start = (values[..., :2] == values[:, :1, :2]).all(axis=(1, 2))
        end = (values[..., 2] == values[:, :1, 2]).all(axis=1)
        for alike in (start, end):
            assert abs(alike.mean() - share / 2) <= 0.1 * share
        assert (values[start, :, 2] != values[start, :1, 2]).any(axis=1).all()
        assert (values[end, :, :2] != values[end, :1, :2]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("config", [{}, {"encoding": "text", "queries": 2}, {"train_set": "published"}, {"clean": True}])
def test_batches_are_a_pure_function_of_seed_and_step(config):
    one, two = task(seed=3, **config), task(seed=3, **config)
    for step in (0, 1, 2, 1000):
        one.batch(step)
    for step in (1000, 1):
        first = one.batch(step)
        first.tokens[:] = 0
        first.reset[:] = True
        for x, y in zip(one.batch(step), two.batch(step), strict=True):
            np.testing.assert_array_equal(x, y)
    # Three steps apart, so that the rows' turns are the same.
    base = one.batch(3).tokens
    for other in (one.batch(6), task(seed=4, **config).batch(3)):
        assert (base != other.tokens).any(axis=1).all()


def test_no_two_steps_or_seeds_share_a_batch():
    tokens = [task(seed=seed, mixture=("n8",)).batch(step).tokens for seed in range(4) for step in range(25)]
    assert len({row.tobytes() for x in tokens for row in x}) == 100 * 8


def test_training_batches_are_fast():
    for config in ({}, {"encoding": "text"}, {"clean": True, "queries": 8}):
        train = task(batch_size=32, **config)
        times = []
        for step in range(40):
            start = time.perf_counter()
            train.batch(step)
            times.append(time.perf_counter() - start)
        # The fastest of many, for machines that are busy: about 0.2 ms.
        assert min(times) < 2e-3


def chi_square(counts):
    """Excess of the chi-square statistic over its mean, in standard deviations, for equally likely cells."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (statistic - (counts.size - 1)) / math.sqrt(2 * (counts.size - 1))


@pytest.mark.parametrize("source", ["python", "numpy"])
def test_both_generators_draw_from_the_same_distribution(source):
    shape = nback.SETS["n8"]
    if source == "python":
        keys, values, query = nback.published_episodes(shape, seed=7, count=4000)
    else:
        keys, values, query = nback.sample_episodes(np.random.default_rng(7), shape, 4000)
    assert keys.shape == values.shape == (4000, 32)
    assert query.shape == (4000, 1)
    assert (keys.min(), keys.max(), values.min(), values.max()) == (0, 64, 64, 128)
    assert (query.min(), query.max()) == (24, 31)
    assert abs(chi_square(np.bincount(keys.ravel()))) < 4
    assert abs(chi_square(np.bincount(values.ravel() - 64))) < 4
    assert abs(chi_square(np.bincount(query.ravel() - 24))) < 4
    # Independence: key and its value, neighbouring keys, query and its key.
    joint = np.bincount((keys // 13 * 5 + (values - 64) // 13).ravel(), minlength=25)
    assert abs(chi_square(joint)) < 4
    neighbours = np.bincount((keys[:, 1:] // 13 * 5 + keys[:, :-1] // 13).ravel(), minlength=25)
    # Overlapping pairs are not independent cells: wider bound.
    assert abs(chi_square(neighbours)) < 6
    asked = np.take_along_axis(keys, query, axis=1).ravel()
    assert abs(chi_square(np.bincount(asked))) < 4
    same = (keys[:, 24:] == asked[:, None]).sum(axis=1)
    assert same.mean() == pytest.approx(1 + 7 / 65, abs=4 * same.std() / math.sqrt(4000))


def test_clean_keys_are_uniform_and_unordered():
    keys, values, _query = nback.sample_episodes(np.random.default_rng(1), nback.SETS["n4"], 4000, clean=True)
    assert abs(chi_square(np.bincount(keys.ravel()))) < 4
    assert abs(chi_square(np.bincount(keys[:, 0]))) < 4
    assert abs(chi_square(np.bincount(values.ravel() - 64))) < 4
    assert (keys[:, 1:] > keys[:, :-1]).mean() == pytest.approx(0.5, abs=0.01)


# Several queries


def test_several_queries_ask_for_different_keys():
    train = task(batch_size=64, mixture=("n8",), queries=4)
    batch = train.batch(0)
    assert batch.tokens.shape == (64, 72)
    for row in range(64):
        ids, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
        recent = [(ids[i], ids[i + 1]) for i in range(48, 64, 2)]
        assert ids[64::2] == [SEP] * 4
        asked = ids[65::2]
        assert len(set(asked)) == 4
        for key, answer in zip(asked, targets[65::2], strict=True):
            assert answer in [v for k, v in recent if k == key]
        assert targets[:65] == ids[1:66]
        assert targets[66::2] == asked[1:]
        assert np.flatnonzero(batch.answer[row]).tolist() == [65, 67, 69, 71]
    assert batch.valid.all()


@pytest.mark.parametrize("encoding", ["integer", "text"])
def test_queries_that_an_episode_lacks_are_invalid(encoding):
    keys = np.array([[1, 7, 7], [2, 7, 8]])
    values = np.array([[90, 100, 101], [91, 102, 103]])
    query = nback._distinct_queries(np.random.default_rng(0), keys[:, 1:], 2)
    assert query[0, 0] in (0, 1)
    assert query[0, 1] == -1
    assert sorted(query[1]) == [0, 1]
    encode = nback.ENCODINGS[encoding].encode
    encoded = encode(nback.Episodes(keys, values, np.array([[1, -1], [2, 1]])))
    if encoding == "integer":
        assert encoded.tokens.tolist() == [
            [1, 90, 7, 100, 7, 101, 128, 7, 129, 129],
            [2, 91, 7, 102, 8, 103, 128, 8, 128, 7],
        ]
        assert encoded.targets[0].tolist() == [90, 7, 100, 7, 101, 128, 7, 100, 129, 129]
        assert encoded.targets[1, 6:].tolist() == [8, 103, 7, 102]
        assert encoded.valid.sum(axis=1).tolist() == [8, 10]
        assert [np.flatnonzero(a).tolist() for a in encoded.answer] == [[7], [7, 9]]
    else:
        assert nback.ids_to_text(encoded.tokens[0]) == "<bos>K001 V090 K007 V100 K007 V101<sep>K007<answer>V100" + "\0" * 10
        assert nback.ids_to_text(encoded.tokens[1]).endswith("<sep>K008<answer>V103<sep>K007<answer>V102")
        assert encoded.valid.sum(axis=1).tolist() == [40, 50]
        assert encoded.targets[0, 39] == nback.EOS
        assert (encoded.targets[0, 40:] == 0).all()
        assert encoded.targets[1, 39] == nback.SEP
        assert encoded.targets[1, -1] == nback.EOS
        assert encoded.answer.sum(axis=1).tolist() == [4, 8]


def test_every_pair_is_asked_for_equally_often():
    keys, _, query = nback.sample_episodes(np.random.default_rng(0), nback.SETS["n4"], 6000, queries=2)
    assert abs(chi_square(np.bincount(query[:, 0] - 12))) < 4
    second = query[:, 1][query[:, 1] >= 0]
    assert abs(chi_square(np.bincount(second - 12))) < 4
    assert len(second) == 6000 - sum(len(set(row)) == 1 for row in keys[:, 12:].tolist())


def test_queries_are_capped_by_a_set_s_window():
    batch = task(batch_size=3, queries=8, clean=True).batch(0)
    assert batch.tokens.shape == (3, 80)
    counts = sorted(int(batch.answer[row, a:b].sum()) for row, a, b in episodes_of(batch))
    # Rows: n2 n4 n2, n4 n4, n8.
    assert counts == [2, 2, 4, 4, 4, 8]


# Text


def test_text_of_the_evaluation_sequences():
    tokens, answers = definition(8, 99, 1000)
    data = task(encoding="text").evaluation_sets["n2"]
    for ids, targets, row, answer in zip(data.encoded.tokens, data.encoded.targets, tokens, answers, strict=True):
        pairs = " ".join(f"K{k:03d} V{v:03d}" for k, v in zip(row[:-2:2], row[1:-2:2], strict=True))
        text = f"<bos>{pairs}<sep>K{row[-1]:03d}<answer>V{answer:03d}<eos>"
        full = nback.text_to_ids(text)
        np.testing.assert_array_equal(ids, full[:-1])
        np.testing.assert_array_equal(targets, full[1:])
    assert text.startswith("<bos>K")
    assert ids.max() < 260


def test_text_round_trip():
    text = "<bos>K012 V071 naïve <sep>K012<answer>V071<eos>"
    ids = nback.text_to_ids(text)
    assert ids.dtype == np.int32
    assert ids[0] == 256
    assert ids[-1] == 259
    assert ids[1] == ord("K")
    assert nback.ids_to_text(ids) == text
    batch = task(encoding="text", mixture=("n4",)).batch(0)
    for row in batch.tokens:
        np.testing.assert_array_equal(nback.text_to_ids(nback.ids_to_text(row)), row)


def test_packed_text_rows_hold_whole_episodes():
    train = task(encoding="text", batch_size=6)
    assert train.vocab_size == 260
    assert train.sequence_length == 330
    batch = train.batch(0)
    seen = collections.Counter()
    for row, a, b in episodes_of(batch):
        ids, targets = batch.tokens[row, a:b], batch.targets[row, a:b]
        text = nback.ids_to_text(ids)
        question, answer = text[:-4], text[-4:]
        integers = parse_text(question)
        seen[len(integers)] += 1
        assert int(answer[1:]) in consistent(integers)
        assert answer[0] == "V"
        np.testing.assert_array_equal(targets, [*ids[1:], nback.EOS])
        assert np.flatnonzero(batch.answer[row, a:b]).tolist() == [b - a - 5, b - a - 4, b - a - 3, b - a - 2]
        assert nback.ids_to_text(targets[-5:-1]) == answer
    assert seen == {18: 4, 34: 4, 66: 2}
    assert (batch.tokens[~batch.valid] == 0).all()
    assert batch.answer.sum() == 40


@pytest.mark.parametrize("clean", [False, True])
def test_a_perfect_model_of_text_scores_the_ceiling(clean):
    text = task(encoding="text", clean=clean, evaluation_sequences=200).evaluate(text_model(best_value))
    integer = task(clean=clean, evaluation_sequences=200).evaluate(integer_model(best_value))
    for row, same in zip(text.rows, integer.rows, strict=True):
        assert dataclasses.replace(row, extra={}) == same
        assert row.credit == row.ceiling
        assert row.ratio == 1
        assert row.extra == {"teacher_forced": row.accuracy, "swap_unchanged": 1.0, "swap_change": 0.0}
        assert row.accuracy == 1 or not clean


def test_reading_the_answer_from_the_input_is_flagged():
    for row in task(encoding="text", evaluation_sequences=100).evaluate(leaky).rows:
        assert row.extra["teacher_forced"] == 1
        assert row.accuracy == row.credit == 0
        assert row.extra["swap_unchanged"] == 0
        assert row.extra["swap_change"] == 1


@pytest.mark.parametrize("digit", [1, 2, 3])
def test_reading_a_single_digit_ahead_is_flagged(digit):
    def predict(tokens, valid):
        logits = text_model(best_value)(tokens, valid)
        position = (tokens == nback.ANSWER).argmax(axis=1) + digit
        rows = np.arange(len(tokens))
        logits[rows, position] = leaky(tokens, valid)[rows, position]
        return logits

    (row,) = task(encoding="text", evaluation_sequences=48, evaluation_sets=("n2",)).evaluate(predict).rows
    # One sequence in three changes this digit first.
    assert row.extra["swap_unchanged"] == pytest.approx(2 / 3)
    assert row.extra["swap_change"] == 1


@pytest.mark.parametrize("turn", range(3))
def test_every_value_has_another_for_the_swap(turn):
    values = np.repeat(np.arange(64, 129), 3)
    others = nback._other_values(values)
    for i, (value, other) in enumerate(zip(values.tolist(), others.tolist(), strict=True)):
        assert 64 <= other <= 127
        a, b = f"{value:03d}", f"{other:03d}"
        assert next(j for j in range(3) if a[j] != b[j]) == i % 3


@pytest.mark.parametrize("spelt", ["K071", "V07K", "V063", "V129", "V000", "    "])
def test_what_is_no_value_earns_nothing(spelt):
    values = nback.ENCODINGS["text"].values(np.stack([nback.text_to_ids(spelt), nback.text_to_ids("V071")]))
    assert values.tolist() == [-1, 71]


# Configuration, tables, token ids


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"encoding": "bytes"}, "encoding='bytes'"),
        ({"train_set": "old"}, "train_set='old'"),
        ({"mixture": ("n2", "n3")}, "mixture.*'n3'.*n2.*n4.*n8"),
        ({"mixture": ()}, "mixture.*no set"),
        ({"evaluation_sets": ("n2", "n2")}, "evaluation_sets.*twice"),
        ({"evaluation_sequences": 0}, "evaluation_sequences=0"),
        ({"evaluation_sequences": 1001}, "evaluation_sequences=1001.*1000"),
        ({"queries": 0}, "queries=0"),
        ({"queries": 3, "mixture": ("n2",)}, "queries=3.*1 … 2"),
        ({"queries": 2, "train_set": "published"}, "queries=2.*fresh"),
        ({"curriculum": (5,)}, r"curriculum=\(5,\) must name 2 steps"),
        ({"curriculum": (5, 2)}, r"curriculum=\(5, 2\).*fall"),
        ({"curriculum": (-1, 2)}, r"curriculum=\(-1, 2\)"),
        ({"curriculum": (1, 2), "train_pairs": (16,)}, r"curriculum=.*must name 0 steps.*train_pairs=\(16,\)"),
        ({"train_pairs": (8, 0)}, r"train_pairs=\(8, 0\)"),
        ({"train_pairs": (65,), "clean": True}, r"train_pairs=\(65,\).*64"),
        ({"train_window": (0,)}, r"train_window=\(0,\)"),
        ({"train_window": (2, 4)}, r"train_window=\(2, 4\) must be one number for all of task.train_pairs=\(\)"),
        (
            {"train_window": (2, 4, 8), "train_pairs": (8, 16)},
            r"train_window=\(2, 4, 8\).*train_pairs=\(8, 16\).*each of them",
        ),
        ({"train_alike": 1.5, "encoding": "text"}, "train_alike=1.5 must lie in"),
        ({"train_alike": 0.5}, 'train_alike=0.5 needs task.encoding="text"'),
        ({"train_alike": 0.5, "encoding": "text", "train_set": "published"}, "train_alike=0.5 needs"),
    ],
)
def test_bad_configuration_is_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        NBackConfig(**keys)
    # The strict conversion may find the same fault first, and always says where.
    with pytest.raises(ConfigError, match=f"^config.*{next(iter(keys)) if len(keys) == 1 else ''}"):
        from_config_dict(TaskHolder, {"task": {"name": "nback", **keys}}, kinds=KINDS)


@dataclasses.dataclass(frozen=True)
class TaskHolder:
    task: TaskConfig


def test_configuration_survives_the_config_dict():
    config = NBackConfig(encoding="text", mixture=("n8", "n2"), train_pairs=(16,), queries=2)
    values = to_config_dict(TaskHolder(config))
    assert from_config_dict(TaskHolder, values, kinds=KINDS).task == config
    values.task.train_pairs = ()
    assert from_config_dict(TaskHolder, values, kinds=KINDS).task.training_shapes == (nback.SETS["n8"], nback.SETS["n2"])


def test_unknown_tasks_are_refused():
    with pytest.raises(ConfigError, match=r"task.name='': TaskConfig makes no task"):
        TaskConfig().make(seed=0, batch_size=1)


def test_table_fits_80_columns():
    extra = {"teacher_forced": 0.5, "swap_unchanged": 1.0, "swap_change": 1.25e-7}
    evaluation = Evaluation(
        (Score("n2", 1000, 0.987, 0.986, 0.9945), Score("vargap1", 500, 0.9, 0.8, 1.0, extra)), 0.8, "note"
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation.table("n-back"))
    text = console.export_text()
    assert "…" not in text
    for word in (
        "set",
        "sequences",
        "accuracy",
        "credit",
        "ceiling",
        "÷",
        "unchanged",
        "n-back",
        "note",
        "1.2e-07",
        "0.9915",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


def test_evaluation_becomes_json():
    evaluation = task(encoding="text", evaluation_sequences=3, evaluation_sets=("n2",)).evaluate(leaky)
    values = json.loads(json.dumps(evaluation.to_dict()))
    assert values["primary"] == 0
    (row,) = values["rows"]
    assert row["name"] == "n2"
    assert row["count"] == 3
    assert row["ratio"] == 0
    assert row["extra"]["teacher_forced"] == 1


def test_check_tokens_names_id_position_and_vocabulary():
    check_tokens(np.array([[0, 129]]), 130)
    check_tokens([], 130)
    with pytest.raises(ValueError, match=r"token id 130 at position \[1, 2\] is outside .*vocab_size=130 has ids 0 to 129"):
        check_tokens(np.array([[0, 1, 2], [3, 4, 130]]), 130)
    with pytest.raises(ValueError, match=r"token id -1 at position \[0\] \(and 1 more\)"):
        check_tokens([-1, 999], 130)
