"""Scoring against toy models whose answers are known: causal ones, and ones that read the future."""

import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.tasks.scoring import ROWS, answer_logits, answer_swap, autoregressive, ceiling, credit, teacher_forced

VOCAB = 50
PADDING = 49


def one_hot(ids):
    return np.eye(VOCAB, dtype=np.float32)[ids]


def successor(tokens, valid):
    """Causal: the token after 7 is 8."""
    return one_hot((tokens + 1) % VOCAB)


def copier(tokens, valid):
    """Reads the future: predicts whatever comes next in the input."""
    return one_hot(np.roll(tokens, -1, axis=1))


def sequences(count=300, length=12, answer=3, seed=0):
    """Random tokens below PADDING; each answer's positions start somewhere else, the last may be the end of the row."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, PADDING, (count, length)).astype(np.int32)
    positions = rng.integers(2, length - answer, (count, 1)) + np.arange(answer)
    return tokens, np.ones(tokens.shape, bool), positions


@pytest.mark.parametrize("count", [1, 7, 8, 256, 257, 700])
def test_logits_come_in_calls_of_one_shape_and_in_order(count):
    tokens, valid, positions = sequences(count)
    shapes = []

    def predict(tokens, valid):
        assert tokens.dtype == np.int32
        assert valid.dtype == bool
        shapes.append(tokens.shape)
        return one_hot(tokens) * np.arange(12, dtype=np.float32)[:, None]

    logits = answer_logits(predict, tokens, valid, positions)
    assert len(set(shapes)) == 1
    assert shapes[0][0] <= ROWS
    assert shapes[0][0] % 8 == 0
    assert len(shapes) == -(-count // ROWS)
    for row in range(count):
        for i, position in enumerate(positions[row]):
            np.testing.assert_array_equal(logits[row, i], one_hot(tokens[row, position]) * position)


def test_jax_arrays_and_bfloat16_are_fine():
    tokens, valid, positions = sequences(5)
    logits = answer_logits(lambda t, v: jnp.asarray(successor(t, v), jnp.bfloat16), tokens, valid, positions)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, answer_logits(successor, tokens, valid, positions))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_have_no_largest_are_not_scored(bad):
    def predict(tokens, valid):
        logits = np.zeros((*tokens.shape, 7), np.float32)
        logits[tokens[:, 0] == 3, 4, 2] = bad
        return logits

    tokens, valid = np.arange(5, dtype=np.int32)[:, None].repeat(6, axis=1), np.ones((5, 6), bool)
    positions = np.tile([3, 4], (5, 1))
    with pytest.raises(ConfigError, match="logits of sequence 3, position 4, are not finite"):
        teacher_forced(predict, tokens, valid, positions)
    # Where no answer is asked for, they may be anything, and a token may be ruled out.
    assert teacher_forced(predict, tokens, valid, positions - 1).tolist() == [[0, 0]] * 5
    ruled_out = np.array([-np.inf, 0, 0, 0], np.float32)
    assert (
        teacher_forced(lambda tokens, valid: np.broadcast_to(ruled_out, (*tokens.shape, 4)), tokens, valid, positions) == 1
    ).all()


def test_teacher_forced_sees_the_true_answer():
    tokens, valid, positions = sequences()
    at = np.take_along_axis(tokens, positions, axis=1)
    np.testing.assert_array_equal(teacher_forced(successor, tokens, valid, positions), (at + 1) % VOCAB)


def test_autoregressive_feeds_its_own_answers():
    tokens, valid, positions = sequences()
    question = np.take_along_axis(tokens, positions[:, :1], axis=1)
    answers = autoregressive(successor, tokens, valid, positions, padding=PADDING)
    np.testing.assert_array_equal(answers, (question + 1 + np.arange(3)) % VOCAB)
    assert (answers != teacher_forced(successor, tokens, valid, positions)).any()


def test_autoregressive_hides_the_answer_and_what_follows():
    tokens, valid, positions = sequences(20)
    seen = []

    def predict(tokens, valid):
        seen.append((tokens[:20].copy(), valid[:20].copy()))
        return copier(tokens, valid)

    before = tokens.copy()
    answers = autoregressive(predict, tokens, valid, positions, padding=PADDING)
    np.testing.assert_array_equal(tokens, before)
    assert (answers == PADDING).all(), "a model that copies the future must find nothing there"
    time = np.arange(tokens.shape[1])
    assert len(seen) == 3
    for i, (shown, visible) in enumerate(seen):
        np.testing.assert_array_equal(visible, time <= positions[:, i : i + 1])
        question = time <= positions[:, :1]
        np.testing.assert_array_equal(shown[question], tokens[question])
        assert (shown[~question] == PADDING).all()


def test_autoregressive_keeps_padding_invalid():
    tokens, valid, positions = sequences(10)
    valid[:, 0] = False
    masks = []

    def predict(tokens, valid):
        masks.append(valid)
        return successor(tokens, valid)

    autoregressive(predict, tokens, valid, positions, padding=PADDING)
    assert not any(mask[:, 0].any() for mask in masks)
    assert masks[0][:, 1].all()


def test_autoregressive_wants_consecutive_positions():
    tokens, valid, positions = sequences(4)
    with pytest.raises(ValueError, match="consecutive"):
        autoregressive(successor, tokens, valid, positions * 2, padding=PADDING)


def swap_from(tokens, positions, first):
    """Replace the answer from its token ``first`` on."""
    swapped = tokens.copy()
    here = np.arange(tokens.shape[1]) > positions[:, :1] + first
    swapped[here] = (tokens[here] + 1) % PADDING
    return swapped


@pytest.mark.parametrize("first", [0, 1, 2])
def test_answer_swap_passes_a_causal_model(first):
    tokens, valid, positions = sequences()
    swap = answer_swap(successor, tokens, swap_from(tokens, positions, first), valid, positions)
    assert swap == (1.0, 0.0)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_answer_swap_flags_a_model_that_reads_the_future(first):
    tokens, valid, positions = sequences()
    swapped = swap_from(tokens, positions, first)
    reference = answer_logits(copier, tokens, valid, positions)
    for swap in (
        answer_swap(copier, tokens, swapped, valid, positions),
        answer_swap(copier, tokens, swapped, valid, positions, reference=reference),
    ):
        assert swap == (0.0, 1.0)


def test_answer_swap_measures_a_leak_too_small_to_change_a_prediction():
    tokens, valid, positions = sequences()

    def predict(tokens, valid):
        return successor(tokens, valid) + 1e-3 * copier(tokens, valid)

    swap = answer_swap(predict, tokens, swap_from(tokens, positions, 0), valid, positions)
    assert swap.unchanged == 1.0
    assert swap.change == pytest.approx(1e-3, rel=1e-3)


def test_answer_swap_counts_the_sequences_that_moved():
    tokens, valid, positions = sequences(8)

    def predict(tokens, valid):
        return np.where((np.arange(8) < 2)[:, None, None], copier(tokens, valid), successor(tokens, valid))

    assert answer_swap(predict, tokens, swap_from(tokens, positions, 0), valid, positions).unchanged == 0.75


def test_answer_swap_refuses_what_it_cannot_compare():
    tokens, valid, positions = sequences(6)
    swapped = swap_from(tokens, positions, 0)
    swapped[4] = tokens[4]
    with pytest.raises(ValueError, match="sequence 4 is the same"):
        answer_swap(successor, tokens, swapped, valid, positions)
    swapped[4, 0] = (tokens[4, 0] + 1) % PADDING
    with pytest.raises(ValueError, match="sequence 4 was changed at position 0"):
        answer_swap(successor, tokens, swapped, valid, positions)


# Values at the candidate positions → the share of the most frequent.
CEILINGS = [([5], 1), ([5, 6], 1 / 2), ([5, 5], 1), ([5, 6, 5], 2 / 3), ([5, 6, 7], 1 / 3), ([5, 6, 6, 5], 1 / 2)]


def ambiguous(values):
    """One sequence whose candidates lie between positions that do not count, though they hold the same values."""
    row = [5, 6, *values, 6, 6]
    return np.array([row]), np.array([[False, False, *[True] * len(values), False, False]])


@pytest.mark.parametrize(("values", "expected"), CEILINGS)
def test_ceiling_is_the_share_of_the_most_frequent_candidate(values, expected):
    assert ceiling(*ambiguous(values)) == [expected]


@pytest.mark.parametrize(("values", "_"), CEILINGS)
def test_credit_is_the_share_of_the_given_answer(values, _):
    row, candidates = ambiguous(values)
    for answer in (4, 5, 6, 7, -1):
        assert credit(np.array([answer]), row, candidates) == [values.count(answer) / len(values)]


def test_credit_never_exceeds_the_ceiling_and_the_best_answer_attains_it():
    rng = np.random.default_rng(0)
    values, candidates = rng.integers(0, 3, (500, 6)), rng.random((500, 6)) < 0.5
    candidates[:, 0] = True
    credits = np.stack([credit(np.full(500, v), values, candidates) for v in range(3)])
    np.testing.assert_array_equal(credits.max(axis=0), ceiling(values, candidates))
    np.testing.assert_allclose(credits.sum(axis=0), 1, rtol=1e-15)
