"""XOR, copying, brackets and new rules: what a batch holds, what is scored, and that ceilings and nulls are what they are called."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.tasks import brackets, copying, new_rule, xor
from bdh_jax.tasks.brackets import BracketsConfig
from bdh_jax.tasks.copying import CopyingConfig
from bdh_jax.tasks.new_rule import NewRuleConfig
from bdh_jax.tasks.xor import XORConfig

CONFIGS = {
    "xor": XORConfig(),
    "copying": CopyingConfig(evaluation_lengths=(3, 6), evaluation_sequences=16),
    "brackets": BracketsConfig(evaluation_lengths=(8, 20), evaluation_sequences=24),
    "new_rule": NewRuleConfig(evaluation_sequences=16, shown=(1, 3)),
}


def make(name, seed=0, batch_size=16):
    return CONFIGS[name].make(seed=seed, batch_size=batch_size)


def one_hot(said, vocab):
    return np.eye(vocab, dtype=np.float32)[said]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_is_a_function_of_seed_and_step(name):
    task = make(name)
    batch = task.batch(3)
    assert all(array.shape == (16, task.sequence_length) for array in batch[:6])
    for array, again in zip(batch[:6], make(name).batch(3)[:6], strict=True):
        np.testing.assert_array_equal(array, again)
    if name != "xor":
        assert (batch.tokens != task.batch(4).tokens).any()
        assert (batch.tokens != make(name, seed=1).batch(3).tokens).any()
    for array in (batch.tokens, batch.targets):
        assert array.dtype == np.int32
        assert array.min() >= 0
        assert array.max() < task.vocab_size
    assert (batch.valid | (batch.loss_weights == 0)).all()
    assert (batch.valid | (batch.answer == 0)).all()
    assert (batch.answer.sum(axis=1) > 0).all()
    # Padding is at the end, and nothing but padding.
    assert (np.diff(batch.valid.astype(int), axis=1) <= 0).all()


def knows(name, task):
    """A model that knows the answers by the task's definition, from the tokens before."""

    def predict(tokens, valid):
        said = np.zeros(tokens.shape, np.int64)
        for row, (line, real) in enumerate(zip(tokens, valid, strict=True)):
            line = line[real].tolist()
            for t, token in enumerate(line):
                said[row, t] = ANSWERS[name](task, line[: t + 1], token)
        return one_hot(said, task.vocab_size)

    return predict


def _copied(task, before, token):
    if before.count(task.mark) < 2:
        return 0
    middle = len(before) - 1 - before[::-1].index(task.mark)
    return before[1:middle][len(before) - 1 - middle]


def _brackets(task, before, token):
    stack, broken = [], False
    for bracket in before:
        if bracket < brackets.KINDS:
            stack.append(bracket)
        elif bracket < brackets.QUERY:
            broken |= not stack or stack.pop() != bracket - brackets.KINDS
    if token == brackets.QUERY:
        return brackets.NO if broken or stack else brackets.YES
    if broken:
        return brackets.NO
    return brackets.KINDS + stack[-1] if stack else brackets.NONE


def _followed(task, before, token):
    if before[-2:-1] != [task.config.ask]:
        return 0
    return before[before.index(token) + 1]


ANSWERS = {
    "xor": lambda task, before, token: [0, 1, 1, 0][token],
    "copying": _copied,
    "brackets": _brackets,
    "new_rule": _followed,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_who_knows_reaches_the_ceiling_and_who_does_not_is_at_chance(name):
    task = make(name)
    evaluation = task.evaluate(knows(name, task))
    assert evaluation.primary == 1
    for row in evaluation.rows:
        assert row.ceiling == row.accuracy == row.credit == row.ratio == 1, row.name
    batch = task.batch(0)
    said = knows(name, task)(batch.tokens, batch.valid).argmax(axis=-1)
    asked = batch.loss_weights > 0
    np.testing.assert_array_equal(said[asked], batch.targets[asked])

    def always_the_same(tokens, valid):
        return one_hot(np.full(tokens.shape, 1 if name == "xor" else brackets.YES), task.vocab_size)

    for row in task.evaluate(always_the_same).rows:
        chance = row.extra["chance"]
        assert row.accuracy == pytest.approx(chance, abs=0.35 if name == "brackets" else 0.1), row.name
        if row.name.startswith("balanced"):
            assert row.accuracy == chance == 0.5


def test_what_xor_says_of_probabilities():
    logits = np.array([[2.0, 0, -9, -9], [0, 3, -9, -9], [0, 0.1, -9, -9], [1, 0, -9, -9]], np.float32)
    (row,) = make("xor").evaluate(lambda tokens, valid: logits[tokens]).rows
    assert row.extra["p00"] == pytest.approx(1 / (1 + np.exp(2)), rel=1e-3)
    assert row.extra["p01"] == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-3)
    loss = np.log1p(np.exp([-2, -3, -0.1, -1])).mean()
    assert row.extra["loss"] == pytest.approx(loss, rel=1e-3)


def test_pairs_that_do_not_suffice():
    words = np.array([[1, 2, 3], [1, 2, 1], [1, 1, 2], [9, 9, 9]])
    # 1 2 1: MARK → 1, 1 → 2, 2 → 1, and what follows the last is not asked. 1 1 2: 1 → 1 and 1 → 2.
    np.testing.assert_array_equal(copying.pairs_suffice(words, 20), [True, True, False, True])
    distinct = copying.sample(np.random.default_rng(0), 16, 50, 12, "distinct")
    assert all(len(set(row)) == 12 for row in distinct.tolist())
    assert copying.pairs_suffice(distinct, 16).all()


def test_brackets_are_what_they_are_said_to_be():
    rng = np.random.default_rng(0)
    data = brackets.sample(rng, 120, 20, 5)
    assert data.balanced.sum() == 60
    for row, balanced in zip(data.brackets.tolist(), data.balanced, strict=True):
        assert (_brackets(None, [*row, brackets.QUERY], brackets.QUERY) == brackets.YES) == balanced
    depth = brackets.parse(data.brackets[data.balanced]).depth
    assert depth.max() == 5
    assert depth.max(axis=1).min() >= 2
    # Exchanged neighbours leave all counts; the other edits do not.
    fits = brackets.counts_fit(data.brackets)
    exchange = data.edit == brackets.EDITS.index("exchange")
    assert fits[data.balanced].all()
    assert fits[exchange].all()
    assert not fits[~data.balanced & ~exchange].any()
    assert [int((data.edit == number).sum()) for number in range(3)] == [20, 20, 20]


def test_where_no_exchange_unbalances_another_edit_does():
    changed, edits = brackets.edited(np.random.default_rng(0), np.array([[0, 0, 3, 3]] * 5), np.full(5, 2))
    assert not brackets.is_balanced(changed).any()
    assert (edits == 0).all()


def test_brackets_of_different_lengths_in_one_array():
    lengths = np.array([4, 40, 12, 6])
    rows = brackets.balanced_brackets(np.random.default_rng(0), lengths, 3)
    np.testing.assert_array_equal((rows != brackets.END).sum(axis=1), lengths)
    changed, _ = brackets.edited(np.random.default_rng(1), rows, np.array([0, 1, 2, 1]))
    np.testing.assert_array_equal(changed == brackets.END, rows == brackets.END)
    for row, broken in zip(rows.tolist(), changed.tolist(), strict=True):
        for line, verdict in ((row, brackets.YES), (broken, brackets.NO)):
            line = [bracket for bracket in line if bracket != brackets.END]
            assert _brackets(None, [*line, brackets.QUERY], brackets.QUERY) == verdict


@pytest.mark.parametrize("edit", range(3))
def test_one_edit_is_one_edit(edit):
    rng = np.random.default_rng(1)
    balanced = brackets.balanced_brackets(rng, np.full(40, 12), 4)
    changed, edits = brackets.edited(rng, balanced, np.full(40, edit))
    assert (edits == edit).all()
    differs = balanced != changed
    assert (differs.sum(axis=1) == (2 if edit == 2 else 1)).all()
    same_kind = balanced[differs] % 3 == changed[differs] % 3
    same_way = (balanced[differs] < 3) == (changed[differs] < 3)
    if edit == 0:
        assert (~same_kind & same_way).all()
    elif edit == 1:
        assert (same_kind & ~same_way).all()
    else:
        at = np.argwhere(differs)[::2]
        np.testing.assert_array_equal(changed[tuple(at.T)], balanced[at[:, 0], at[:, 1] + 1])


def test_held_out_rules_are_never_shown_in_training():
    task = make("new_rule", batch_size=64)
    held_out = task.held_out
    assert held_out.mean() == 0.25
    assert (held_out.sum(axis=0) == 8).all()
    assert (held_out.sum(axis=1) == 8).all()

    def pairs(tokens):
        found = np.zeros(held_out.shape, bool)
        for row in tokens:
            for a, b in itertools.pairwise(row):
                if a < 32 <= b < 64:
                    found[a, b - 32] = True
        return found

    trained = np.any([pairs(task.batch(step).tokens) for step in range(30)], axis=0)
    assert not (trained & held_out).any()
    assert (trained & ~held_out).sum() > 600
    for name, (tokens, answers) in task.evaluation_sets.items():
        last = (tokens != task.padding).sum(axis=1) - 1
        rules = tokens[np.arange(len(tokens)), last], answers - 32
        assert held_out[rules].all() == (name != "known1")
        shown = int(name[-1])
        for row, a, b in zip(tokens, *rules, strict=True):
            where = np.flatnonzero(row == a)
            assert len(where) == shown + 1  # shown, and asked for
            assert (row[where[:-1] + 1] == b + 32).all()


@pytest.mark.parametrize(
    ("make_config", "message"),
    [
        (lambda: XORConfig().make(seed=0, batch_size=6), "train.batch_size=6 must be a multiple of 4"),
        (lambda: CopyingConfig(symbols=6), "task.symbols=6 must be at least 12"),
        (lambda: CopyingConfig(lengths=(5, 3)), r"task.lengths=\(5, 3\)"),
        (lambda: BracketsConfig(lengths=(4, 7)), r"task.lengths=\(4, 7\) must be two even numbers"),
        (lambda: BracketsConfig(evaluation_sequences=3), "must be an even number"),
        (lambda: BracketsConfig(max_depth=1), "task.max_depth=1 must be at least 2"),
        (lambda: NewRuleConfig(held_out=0.0), "task.held_out=0.0 must leave each of the 32 input symbols"),
        (lambda: NewRuleConfig(others=32), r"task.others=32 must lie in 0 … 31"),
    ],
)
def test_what_cannot_be_is_refused(make_config, message):
    with pytest.raises(ConfigError, match=message):
        make_config()


def test_modules_name_their_configuration():
    for module in (xor, copying, brackets, new_rule):
        assert module.CONFIG().name == module.__name__.rpartition(".")[2]
