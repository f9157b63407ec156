"""Float64 for the tests of this folder, where exactness is claimed."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield
