"""The σ rule: each of its steps, and its published order (``tests/test_golden.py`` has the recorded vectors)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.fast_weights.sigma import sigma_update


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
