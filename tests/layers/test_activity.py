"""The largest numbers of an axis, a code limited to them, and how many neurons it uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.layers.activity import above_the_rest, active_share
from bdh_jax.layers.largest import kth_largest


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_kth_largest_is_that_of_a_sort(dtype, k):
    with jax.enable_x64(dtype == jnp.float64):
        numbers = np.random.default_rng(k).normal(size=(3, 40))
        numbers[0, ::3] = numbers[0, 0]  # equal ones
        numbers[1] = -np.abs(numbers[1])
        numbers[2, :30] = 0
        numbers = jnp.asarray(numbers, dtype)
        found = kth_largest(numbers, k)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, jnp.sort(numbers, axis=-1)[:, -k])


def test_a_split_axis_gives_the_kth_of_all_its_parts():
    numbers = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
    parts = jax.vmap(lambda part: kth_largest(part, 9, lambda count: jax.lax.psum(count, "parts")), axis_name="parts")(
        numbers
    )
    whole = np.sort(numbers.swapaxes(0, 1).reshape(5, 24), axis=-1)[:, -9]
    np.testing.assert_array_equal(parts, np.broadcast_to(whole, (2, 5)))


def test_what_is_left_of_a_code_is_what_it_has_above_the_rest():
    code = np.maximum(np.random.default_rng(0).normal(size=(2, 2, 3, 8)), 0).astype(np.float32)
    code[0, :, 0] = 0.5  # all equal: none exceeds the rest
    code[1, :, 1, 2:] = 0  # fewer are active than may be: all stay as they are
    found = np.asarray(above_the_rest(code, 5))
    for example, token in np.ndindex(2, 3):
        rows = code[example, :, token]
        np.testing.assert_array_equal(found[example, :, token], np.maximum(rows - np.sort(rows, axis=None)[-6], 0))
    assert np.max(np.sum(found > 0, axis=(1, 3))) == 5
    np.testing.assert_array_equal(found[1, :, 1], code[1, :, 1])


def test_the_limit_of_a_code_carries_no_gradient():
    code = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 2, 1, 8)), jnp.float32)
    weights = jnp.arange(1.0, 17.0).reshape(code.shape)
    gradient = jax.grad(lambda code: jnp.sum(weights * above_the_rest(code, 3)))(code)
    np.testing.assert_array_equal(gradient, np.where(above_the_rest(code, 3) > 0, weights, 0))


def test_the_share_of_equally_active_neurons_is_how_many_there_are():
    code = np.zeros((1, 2, 4, 8), np.float32)
    for token, active in enumerate((0, 1, 4, 16)):
        rows = np.zeros(16, np.float32)
        rows[:active] = 0.3
        code[0, :, token] = rows.reshape(2, 8)
    np.testing.assert_allclose(active_share(code, 16), [[0, 1 / 16, 4 / 16, 1]], rtol=1e-6)
    uneven = np.random.default_rng(0).uniform(size=code.shape).astype(np.float32)
    np.testing.assert_allclose(active_share(7 * uneven, 16), active_share(uneven, 16), rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda code: jnp.sum(active_share(code, 16)))(jnp.asarray(code))))
