"""Scores of codes among themselves, given to the scan and moved to the token before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.fast_weights.addresses import scores_of_previous, shift_to_previous
from bdh_jax.kernels.fast_weight_scan import fast_weight_scan, own_scores, xla

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(2, 2, 6, 8))
CARRIED = RNG.normal(size=(2, 2, 8))
VALUE = RNG.normal(size=(2, 6, 4))
VALID, RESET = RNG.random((2, 6)) < 0.6, np.zeros((2, 6), bool)
RESET[0, 2] = RESET[1, 4] = True
EXACT = 1e-13


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def plain(rows):
    return jnp.einsum("bhtn,bhsn->bhts", rows, rows)


def test_own_scores_and_their_derivatives_are_those_of_the_product():
    mixture, change = RNG.normal(size=(2, 2, 6, 6)), RNG.normal(size=ROWS.shape)

    def number(function):
        return lambda rows: jnp.sum(jnp.sin(function(rows)) * mixture)

    np.testing.assert_allclose(own_scores(ROWS), plain(ROWS), rtol=EXACT)
    for of in (jax.grad, lambda function: jax.grad(lambda rows: jnp.sum(jax.grad(function)(rows) * change))):
        np.testing.assert_allclose(of(number(own_scores))(ROWS), of(number(plain))(ROWS), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(
        jax.jvp(own_scores, (ROWS,), (change,))[1], jax.jvp(plain, (ROWS,), (change,))[1], rtol=EXACT, atol=EXACT
    )


def test_few_large_examples_are_multiplied_one_by_one_to_the_same(monkeypatch):
    rows = ROWS[:, :1]
    wanted = plain(rows)
    monkeypatch.setattr(xla, "_LARGE", rows[0].size)
    assert str(jax.make_jaxpr(own_scores)(rows)).count("dot_general") == len(rows)
    np.testing.assert_allclose(own_scores(rows), wanted, rtol=EXACT)


def test_their_gradient_is_one_product():
    gradient = jax.jit(jax.grad(lambda rows: jnp.sum(jnp.sin(own_scores(rows)))))
    products = str(gradient.trace(ROWS).jaxpr).count("dot_general")
    assert products == 2  # the scores, and what their gradient makes of the rows


@pytest.mark.parametrize("carried", [None, CARRIED], ids=["empty", "carried"])
@pytest.mark.parametrize(
    "masks", [(None, None), (VALID, None), (None, RESET), (VALID, RESET)], ids=["none", "valid", "reset", "both"]
)
def test_scores_of_the_token_before_are_those_of_shifted_rows(carried, masks):
    masks = tuple(None if mask is None else jnp.asarray(mask) for mask in masks)
    key, _ = shift_to_previous(jnp.asarray(ROWS), carried, *masks)
    moved = scores_of_previous(own_scores(ROWS), jnp.asarray(ROWS), carried, *masks)
    np.testing.assert_allclose(moved, jnp.einsum("bhtn,bhsn->bhts", ROWS, key), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("rate", [0.7, (0.7, 0.2)], ids=["one", "heads"])
def test_a_scan_reads_by_the_scores_that_it_is_given(rate):
    rate = rate if isinstance(rate, float) else jnp.asarray(rate)
    options = {"learning_rate": rate, "decay": 0.9, "implementation": "parallel", "sum_heads": True}
    wanted, state = fast_weight_scan(ROWS, ROWS, VALUE, **options)
    given = {"each": own_scores(ROWS)}
    if isinstance(rate, float):
        given["summed"] = jnp.sum(given["each"], axis=1, keepdims=True)
    for scores in given.values():
        found, other = fast_weight_scan(ROWS, ROWS, VALUE, scores=scores, **options)
        np.testing.assert_allclose(found, wanted, rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(other, state, rtol=EXACT, atol=EXACT)
    twice, _ = fast_weight_scan(ROWS, ROWS, VALUE, scores=2 * given["each"], **options)
    np.testing.assert_allclose(twice, 2 * wanted, rtol=EXACT, atol=EXACT)


def test_scores_that_cannot_be_used_are_refused():
    scores = own_scores(ROWS)
    with pytest.raises(ValueError, match="for the parallel form of a linear rule, not for implementation='chunked'"):
        fast_weight_scan(ROWS, ROWS, VALUE, scores=scores, implementation="chunked")
    with pytest.raises(ValueError, match=r"they must be \[B, H, T, T\]"):
        fast_weight_scan(ROWS, ROWS, VALUE, scores=scores[..., :-1], implementation="parallel")
    with pytest.raises(ValueError, match="a learning_rate for each row"):
        fast_weight_scan(ROWS, ROWS, VALUE, scores=scores, implementation="parallel", learning_rate=jnp.ones((1, 1, 1, 8)))
    with pytest.raises(ValueError, match="summed over heads, which values, rates or the read tell apart"):
        fast_weight_scan(ROWS, ROWS, VALUE, scores=scores[:, :1], implementation="parallel")
