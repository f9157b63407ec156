"""Every accepted seed has its own stream, on every implementation of random numbers; others are refused."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import consolidation
from bdh_jax.config import ConfigError
from bdh_jax.config.seeds import key_of, whole_seed
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.tasks import NBackConfig
from bdh_jax.tasks.facts import initialise_new_ids
from bdh_jax.training.setup import Setup

IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
SEEDS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
LARGE = [2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1]


def bits(key: jax.Array) -> tuple[int, ...]:
    return tuple(map(int, jax.random.bits(key, 4)))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_seed_has_its_own_stream(implementation, x64):
    with jax.enable_x64(x64), jax.default_prng_impl(implementation):
        assert len({bits(key_of(seed)) for seed in SEEDS + LARGE}) == len(SEEDS + LARGE)
        for seed in SEEDS:
            np.testing.assert_array_equal(
                jax.random.key_data(key_of(seed)), jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
            )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_folded_in_has_its_own_stream(implementation):
    """With "unsafe_rbg" step 2 of slice 1 would be step 1 of slice 2, and 2 folded in twice nothing."""
    with jax.default_prng_impl(implementation):
        folded = [jax.random.fold_in(jax.random.fold_in(key_of(0), a), b) for a, b in itertools.product(range(3), repeat=2)]
        assert len({bits(key) for key in [key_of(0), *folded]}) == 10


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", None, True, jnp.arange(2)])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ConfigError, match=r"seed=.* must (lie in 0 to 2\*\*64 - 1|be a whole number)"):
        key_of(seed)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64, 1.5, "1", True])
@pytest.mark.parametrize(
    "use",
    [
        lambda seed: ExperimentConfig(task=NBackConfig(), seed=seed),
        lambda seed: ExperimentConfig(task=NBackConfig(), seeds=(0, seed)),
        lambda seed: Setup(ExperimentConfig(task=NBackConfig()).model, seed=seed),
        lambda seed: LifelongConfig(seed=seed),
        lambda seed: consolidation.row_random(seed=seed),
        lambda seed: initialise_new_ids(np.zeros((400, 2)), seed=seed),
    ],
)
def test_every_place_that_takes_a_seed_refuses_the_same(use, seed):
    with pytest.raises(ConfigError, match=r"seeds?=.* must (lie in 0 to 2\*\*32 - 1|be a whole number)"):
        use(seed)


def test_seeds_of_numpy_are_seeds():
    assert type(whole_seed(np.int64(3))) is int
    assert type(Setup(ExperimentConfig(task=NBackConfig()).model, seed=np.uint32(2**32 - 1)).seed) is int
    assert bits(key_of(np.int64(3))) == bits(key_of(3))


def test_the_library_draws_from_no_key_of_the_default_implementation():
    """``jax.random.key`` makes one; only where shapes are asked for does it not matter."""
    for path in sorted((Path(__file__).parents[2] / "bdh_jax").rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if re.search(r"random\.(key|PRNGKey)\(", line):
                assert "eval_shape(" in line or line.lstrip().startswith('f"'), f"{path}, line {number}: {line.strip()}"
