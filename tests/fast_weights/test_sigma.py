"""The σ rule: each of its steps, and its published order (``tests/test_golden.py`` has the recorded vectors)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.fast_weights.masks import Masks
from bdh_jax.fast_weights.sigma import SigmaRates, SigmaTokens, sigma_scan, sigma_update


def update(sigma, post, pre, *, forget=0.0, learning_rate=1.0, clamp=100.0, threshold=0.0):
    arrays = (jnp.asarray(array, jnp.float32) for array in (sigma, post, pre))
    return np.asarray(sigma_update(*arrays, forget=forget, learning_rate=learning_rate, clamp=clamp, threshold=threshold))


def test_it_forgets_and_writes_the_mean_over_the_batch():
    got = update([[0.4, 0.0], [0.0, 0.2]], [[1, 0], [3, 0]], [[0, 0.1], [0, 0.1]], forget=0.5)
    np.testing.assert_allclose(got, [[0.2, 0.2], [0.0, 0.1]], rtol=1e-6)


def test_it_clamps_before_it_looks_at_the_rows_norm():
    # 3 is clamped to 0.6, so the row has norm 1 and stays.
    np.testing.assert_allclose(update([[3.0, 0.8]], [[0]], [[0, 0]], clamp=0.6), [[0.6, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(update([[3.0, 4.0]], [[0]], [[0, 0]]), [[0.6, 0.8]], rtol=1e-6)


def test_small_entries_become_zero_before_rows_are_divided():
    # 0.02 is above the threshold and stays, although the division makes it smaller than that.
    got = update([[0.02, 4.0, -0.009]], [[0]], [[0, 0, 0]], threshold=0.01)
    np.testing.assert_allclose(got, [[0.005, 1.0, 0.0]], rtol=1e-4)


def test_a_row_shorter_than_one_is_not_lengthened():
    np.testing.assert_allclose(update([[0.3, 0.4]], [[0]], [[0, 0]]), [[0.3, 0.4]], rtol=1e-6)


def test_a_silent_neuron_has_a_gradient():
    post = jnp.array([[1.0, 0.0]])

    def size(pre):
        zeros = jnp.zeros((2, 3))
        sigma = sigma_update(zeros, post, pre, forget=0.0, learning_rate=1.0, clamp=100.0, threshold=0.0)
        return jnp.sum(sigma * jnp.arange(3.0)[None])

    gradient = jax.grad(size)(jnp.ones((1, 3)))
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient)


def test_it_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"sigma \(2, 3\), post \(4, 3\) and pre \(4, 2\)"):
        update(np.zeros((2, 3)), np.zeros((4, 3)), np.zeros((4, 2)))


def test_no_limit_leaves_its_step_out():
    got = sigma_update(
        jnp.array([[3.0, 0.001]]),
        *[jnp.zeros((1, n)) for n in (1, 2)],
        forget=0.5,
        learning_rate=1.0,
        clamp=None,
        threshold=None,
        row_norm=None,
    )
    np.testing.assert_allclose(got, [[1.5, 0.0005]], rtol=1e-6)
    np.testing.assert_allclose(
        sigma_update(
            jnp.array([[3.0, 4.0]]),
            *[jnp.zeros((1, n)) for n in (1, 2)],
            forget=0.0,
            learning_rate=1.0,
            clamp=None,
            threshold=None,
            row_norm=2.0,
        ),
        [[1.2, 1.6]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("form", ["recurrent", "parallel"])
def test_sigma_is_a_stack(form):
    """A bracket that opens halves what lies in the direction u and adds its kind; one that closes doubles it and takes its kind off.

    y = drive + σ u is read before the write, and y ⊗ k is written: σ u becomes (1 + u · k) σ u + (u · k) drive.
    """
    text = "([{}]())[]{}"
    u, kinds = np.eye(4)[3], {"()": 0, "[]": 1, "{}": 2}
    kind = [next(n for pair, n in kinds.items() if bracket in pair) for bracket in text]
    opens = [bracket in "([{" for bracket in text]
    push, pop = -0.5, 1.0
    key = np.array([(push if up else pop) * u for up in opens])
    # What is left of the drive in σ u is (u · k) drive: +1 of the kind for an opening bracket, −2 for a closing one.
    drive = np.array([np.eye(3)[k] * (1 / push if up else -2 / pop) for k, up in zip(kind, opens, strict=True)])
    tokens = SigmaTokens(*(jnp.asarray(a[None], jnp.float32) for a in (drive, np.tile(u, (len(text), 1)), key)))
    rates = SigmaRates(forget=0.0, learning_rate=1.0, clamp=None, threshold=None, row_norm=None)
    y, sigma = sigma_scan(tokens, jnp.zeros((1, 3, 4)), Masks(), rates, form)
    before, stack = np.asarray(y[0]) - drive, []
    for t, (k, up) in enumerate(zip(kind, opens, strict=True)):
        expected = np.zeros(3)
        for depth, on in enumerate(reversed(stack)):
            expected[on] += 0.5**depth
        np.testing.assert_allclose(before[t], expected, atol=1e-5)
        if stack:
            assert before[t].argmax() == stack[-1]
        stack = [*stack, k] if up else stack[:-1]
    np.testing.assert_allclose(sigma, 0, atol=1e-5)


def test_all_at_once_has_no_limits():
    zeros = jnp.zeros((1, 2, 3))
    with pytest.raises(ValueError, match="the parallel form of σ has no limits"):
        sigma_scan(SigmaTokens(zeros, zeros, zeros), jnp.zeros((1, 3, 3)), Masks(), SigmaRates(), "parallel")
