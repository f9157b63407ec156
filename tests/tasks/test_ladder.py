"""Every question of a ladder has one answer, which the context fixes, and nothing else gives away."""

from __future__ import annotations

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.tasks import ladder
from bdh_jax.tasks.ladder import MARK, SEPARATOR, LadderConfig, Sequences, sequences
from configs.latent import VARIANTS, get_config

COUNT, RUNGS = 400, np.arange(1, 5)


def make(kind, **changes):
    return LadderConfig(ladder=kind, rungs=4, variables=20, **changes)


def drawn(config, seed=0):
    return sequences(config, np.random.default_rng(seed), COUNT, RUNGS)


def facts(row: Sequences) -> dict[int, set[int]]:
    """Left → rights of a context, whose every third token separates."""
    context = row.tokens[row.write].reshape(-1, 3)
    assert (context[:, 2] == SEPARATOR).all()
    found: dict[int, set[int]] = {}
    for left, right, _ in context.tolist():
        found.setdefault(left, set()).add(right)
    return found


def rows(all_of_them):
    return [Sequences(*parts) for parts in zip(*all_of_them, strict=True)]


def walked(links, token, count):
    for _ in range(count):
        (token,) = links[token]
    return token


def test_binding_follows_its_links():
    config = make("binding")
    for row in rows(drawn(config)):
        links = facts(row)
        assert len(links) == config.chains * config.rungs
        for token, answer, rung in zip(*(array[~row.write] for array in row[:3]), strict=True):
            assert walked(links, token, rung) == answer
            assert config.first_letter <= answer < config.first_variable
            assert all(walked(links, token, fewer) >= config.first_variable for fewer in range(rung))
        assert sorted(row.rung[~row.write]) == RUNGS.tolist()


def test_binding_gives_nothing_away():
    config = make("binding")
    all_of_them = drawn(config)
    for row in rows(all_of_them)[:50]:
        values = row.tokens[(row.tokens >= config.first_letter) & (row.tokens < config.first_variable)]
        assert len(set(values)) == len(values) == config.chains
        tokens, counts = np.unique(row.tokens[row.write & (row.tokens >= config.first_variable)], return_counts=True)
        assert len(tokens) == config.chains * config.rungs
        assert sorted(counts) == [1] * config.chains + [2] * config.chains * (config.rungs - 1)
    asked = ~all_of_them.write
    context = all_of_them.tokens[:, : config.context]
    is_value = (context >= config.first_letter) & (context < config.first_variable)
    shown = context[is_value].reshape(COUNT, config.chains)
    # The answer is the value that is shown first, second, third equally often, at every rung and every place of a question.
    answers = all_of_them.answers[asked].reshape(COUNT, -1)
    place = (answers[:, :, None] == shown[:, None, :]).argmax(axis=-1)
    rung = all_of_them.rung[asked].reshape(COUNT, -1)
    tolerance = 4 * np.sqrt(1 / config.chains * (1 - 1 / config.chains) / COUNT)
    for split in (*(rung == r for r in RUNGS), *(np.arange(len(RUNGS)) == q for q in range(len(RUNGS)))):
        split = np.broadcast_to(split, place.shape)
        shares = np.bincount(place[split], minlength=config.chains) / split.sum()
        assert np.abs(shares - 1 / config.chains).max() < tolerance
    assert config.chance == pytest.approx(1 / 3)


def test_ordering_is_the_order_of_its_links():
    config = make("ordering")
    firsts = []
    for row in rows(drawn(config)):
        links = facts(row)
        chain = [walked(links, MARK, 1)]
        while chain[-1] in links:
            chain.append(walked(links, chain[-1], 1))
        assert len(set(chain)) == len(chain) == config.items == 2 * config.rungs == len(links)
        assert min(chain) >= config.first_variable
        for token, answer, rung in zip(*(array[~row.write] for array in row[:3]), strict=True):
            assert token == MARK + rung
            assert answer == chain[rung - 1]
        firsts.append(row.tokens[1 : config.context : 3].tolist().index(chain[0]))
    assert config.chance == 1 / config.items
    # Where the links of the answers stand is anywhere.
    shares = np.bincount(firsts, minlength=config.items) / COUNT
    assert np.abs(shares - 1 / config.items).max() < 4 * np.sqrt(1 / config.items / COUNT)


def test_copy_asks_for_every_letter():
    config = make("copy")
    lengths = set()
    for row in rows(drawn(config)):
        context, questions = row.tokens[row.write & row.valid], row.tokens[~row.write]
        length = len(context)
        lengths.add(length)
        np.testing.assert_array_equal(row.answers[~row.write], context)
        assert (questions == MARK + length // 2).all()
        assert (row.rung[~row.write] == length // 2).all()
        np.testing.assert_array_equal(np.flatnonzero(~row.write), np.arange(length, 2 * length))
        assert row.valid.sum() == 2 * length
        assert ((context >= config.first_letter) & (context < config.first_variable)).all()
    assert lengths == {2, 4, 6, 8}


@pytest.mark.parametrize("kind", ["copy", "binding", "ordering"])
def test_a_batch_is_a_function_of_seed_and_step_and_fits_what_is_said_of_it(kind):
    config = make(kind, trained=3)
    task, again, other = (config.make(seed=seed, batch_size=16) for seed in (0, 0, 1))
    batch = task.batch(5)
    np.testing.assert_array_equal(batch.tokens, again.batch(5).tokens)
    assert not np.array_equal(batch.tokens, task.batch(6).tokens)
    assert not np.array_equal(batch.tokens, other.batch(5).tokens)
    assert batch.tokens.shape == (16, task.sequence_length)
    assert batch.tokens.max() < task.vocab_size == config.vocab_size
    np.testing.assert_array_equal(batch.answer == 1, ~batch.write)
    assert batch.answer.sum(axis=1).max() <= task.most_answers


@pytest.mark.parametrize("kind", ["copy", "binding", "ordering"])
def test_who_knows_scores_one_and_who_guesses_scores_chance(kind):
    config = make(kind, evaluation_sequences=200)
    task = config.make(seed=0, batch_size=8)
    answers = {}
    for rungs in np.split(RUNGS, 4) if kind == "copy" else [RUNGS]:
        known = task.evaluation_set(rungs)
        answers |= {row.tobytes(): answer for row, answer in zip(known.tokens, known.answers, strict=True)}

    def knows(tokens, valid, *, write):
        assert write.shape == tokens.shape
        return np.eye(config.vocab_size)[np.stack([answers[row.tobytes()] for row in tokens])]

    def guesses(tokens, valid, *, write):
        return np.eye(config.vocab_size)[np.full(tokens.shape, config.first_letter if kind == "copy" else MARK)]

    for predict, expected in ((knows, 1.0), (guesses, config.chance if kind == "copy" else 0.0)):
        evaluation = task.evaluate(predict)
        assert [row.name for row in evaluation.rows] == [f"rung{rung}" for rung in RUNGS]
        for row in evaluation.rows:
            assert abs(row.accuracy - expected) <= (0 if expected in (0, 1) else 0.05)
            assert (row.ceiling, row.extra["chance"]) == (1.0, config.chance)


@pytest.mark.parametrize("kind", ["copy", "ordering"])
def test_logits_that_are_not_finite_are_an_error(kind):
    """As of a model with too small a ``most_thinking``: a question has none then. What nobody asked for may be anything."""
    config = make(kind, evaluation_sequences=8)
    task = config.make(seed=0, batch_size=8)

    def without(where):
        def predict(tokens, valid, *, write):
            nowhere = where(write)[..., None]
            return np.where(nowhere, np.nan, np.zeros((*tokens.shape, config.vocab_size)))

        return predict

    place = 2 if kind == "copy" else config.context
    with pytest.raises(ConfigError, match=rf"sequence 5, position {place}, a question of rung \d, .*most_thinking"):
        task.evaluate(without(lambda write: ~write & (np.arange(8) == 5)[:, None]))
    assert task.evaluate(without(lambda write: write)).primary == 0


def test_who_names_the_most_frequent_letter_scores_what_stands_beside_chance():
    config = make("copy", evaluation_sequences=200)

    def predict(tokens, valid, *, write):
        letters = np.eye(config.vocab_size)[tokens] * (valid & write)[..., None]
        return np.broadcast_to(letters.sum(axis=1, keepdims=True), letters.shape)

    rows = config.make(seed=0, batch_size=8).evaluate(predict).rows
    for row in rows:
        assert row.accuracy == pytest.approx(row.extra["most_frequent"], abs=1e-12)
    # Two letters: both are the same, or one of them is.
    assert abs(rows[0].extra["most_frequent"] - (1 + 1 / 16) / 2) < 0.05
    assert rows[0].extra["most_frequent"] > rows[3].extra["most_frequent"] > config.chance
    for kind in ("binding", "ordering"):
        evaluation = make(kind, evaluation_sequences=8).make(seed=0, batch_size=8).evaluate(predict)
        assert evaluation.rows[0].extra.keys() == {"chance"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ladder": "snake"}, "task.ladder='snake'"),
        ({"rungs": 0}, "task.rungs=0 must be at least 1"),
        ({"rungs": 4, "trained": 5}, r"task.trained=5 must lie in \[1, task.rungs = 4\], or be None"),
        ({"chains": 1}, "task.chains=1 must lie in"),
        ({"variables": 10}, "task.variables=10 are fewer than the 24 items"),
        ({"evaluation_sequences": 0}, "task.evaluation_sequences=0 must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        LadderConfig(**changes)


@pytest.mark.parametrize("variant", ["", *VARIANTS])
def test_every_variant_has_room_for_its_questions(variant):
    config = get_config(variant)
    assert config.model.vocab_size == config.task.vocab_size
    most = getattr(config.model, "most_thinking", None)
    assert most is None or most >= config.task.questions(config.task.rungs)
    assert ladder.CONFIG is type(config.task)
