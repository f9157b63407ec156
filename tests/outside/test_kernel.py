"""A kernel from outside the package, as docs/how-to/kernel.md shows it: held to the operation token by token by the page's own tests."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.pages import import_module

PAGE = "docs/how-to/kernel.md"
import_module(PAGE, "scores")
_checked = import_module(PAGE, "test_scores")

test_values = _checked.test_values
test_gradients = _checked.test_gradients
test_causal = _checked.test_causal


@pytest.mark.parametrize("diagonal", [0, 1])
def test_a_kernel_that_sees_its_own_token_or_the_next_is_noticed(monkeypatch, diagonal):
    """The page's tests are no decoration."""

    def early(query, key, value):
        return jnp.tril(query @ key.mT, diagonal) @ value

    monkeypatch.setattr(_checked, "scan", early)
    for test in (_checked.test_values, _checked.test_gradients, _checked.test_causal):
        with pytest.raises(AssertionError):
            test()


def test_the_page_is_what_is_tested():
    assert {name for name in vars(_checked) if name.startswith("test_")} == {"test_values", "test_gradients", "test_causal"}
    assert np.sqrt(24 * 16) * 2.0**-23 * 100 == _checked.TOLERANCE
