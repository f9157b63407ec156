"""Training draws the same random numbers whatever implementation of them is JAX's default."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.experiment import load, setup_of
from bdh_jax.training import loop

DRAWS = ConsolidationConfig(function="row_random", options={"fraction": 0.5, "rate": 0.1})


@pytest.fixture(scope="module")
def trained(tiny, successor, tmp_path_factory):
    """What a run leaves that draws initial weights, dropout in slices and rows."""

    def train(implementation: str, seed: int = 0) -> dict[str, np.ndarray]:
        config = tiny(consolidation=DRAWS, accumulation=2, steps=3, seed=seed)
        workdir = tmp_path_factory.mktemp(implementation) / "run"
        with jax.default_prng_impl(implementation), jax.debug_nans(False):
            loop.train(setup_of(config), successor(config), workdir)
        return {name: np.asarray(leaf) for name, leaf in load(workdir, "last")[1].items()}

    return train


def test_a_run_does_not_depend_on_the_default_implementation(trained):
    expected = trained("threefry2x32")
    for implementation in ("rbg", "unsafe_rbg"):
        found = trained(implementation)
        for name, leaf in expected.items():
            np.testing.assert_array_equal(found[name], leaf, err_msg=f"{implementation} {name}")
    assert not np.array_equal(trained("rbg", seed=2**32 - 1)["encoder"], expected["encoder"])
