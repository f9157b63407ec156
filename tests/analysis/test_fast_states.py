"""What is left of a state when a part of it is taken away: that part is gone, and nothing else is."""

import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis.fast_states import empty_memory, shuffle_rows
from tests.compiled import apply, init

CONFIG = BDHConfig(
    vocab_size=30,
    n_layer=2,
    d_model=16,
    n_head=2,
    n_neurons=48,
    dropout=0.0,
    init_std=0.3,
    fast=FastWeightConfig(learning_rate=0.7, decay=0.95, keep_gram=True),
)


@pytest.fixture(scope="module")
def fast():
    tokens = np.random.default_rng(0).integers(0, 30, (3, 6))
    state = apply(BDH(CONFIG), init(BDH(CONFIG), 0), tokens).fast
    assert all(np.asarray(array).any() for array in parts(state).values())
    return state


def parts(fast):
    """Everything in a state, by name."""
    activity = {name: getattr(fast.activity, name) for name in ("strength", "energy", "count")}
    names = ("memory", "gram", "attention", "previous_address", "position")
    return {**{name: getattr(fast, name) for name in names}, **activity}


def assert_left(fast, changed, names):
    """These parts are as they were, and the others are zero."""
    before, after = parts(fast), parts(changed)
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name] if name in names else np.zeros_like(before[name]), err_msg=name)


def test_the_memory_alone_is_emptied(fast):
    assert_left(fast, empty_memory(fast), set(parts(fast)) - {"memory"})


def test_the_memory_alone_goes_on(fast):
    assert_left(fast, fast.only_memory(), {"memory", "gram", "strength", "energy", "count"})


def test_rows_trade_places_and_nothing_else_changes(fast):
    shuffled = shuffle_rows(fast, seed=0)
    before, after = (np.asarray(state.memory).reshape(2, 3, 48, 16) for state in (fast, shuffled))
    orders = []
    for layer in range(2):
        order = [int(np.abs(before[layer] - row[:, None]).sum(axis=(0, 2)).argmin()) for row in after[layer].swapaxes(0, 1)]
        np.testing.assert_array_equal(after[layer], before[layer][:, order])
        sums = np.asarray(fast.gram)[layer][:, order][:, :, order]
        np.testing.assert_array_equal(np.asarray(shuffled.gram)[layer], sums)
        for rows in (before, after):
            assert len({tuple(row.ravel()) for row in rows[layer].swapaxes(0, 1)}) > 40
        orders.append(order)
    assert orders[0] != orders[1]
    assert orders[0] != list(range(48))
    old, new = parts(fast), parts(shuffled)
    for name in set(old) - {"memory", "gram"}:
        np.testing.assert_array_equal(new[name], old[name], err_msg=name)
