"""Seeds: which numbers are some, and the stream of random numbers that each begins.

Keys are of one implementation, whatever ``JAX_DEFAULT_PRNG_IMPL`` says: a seed means the same stream in every process, also in one that
goes on with what another began. With "rbg" a row under ``vmap`` depends on its neighbours, and with "unsafe_rbg" folding in 2 and then 1
gives what 1 and then 2 do, so that slices of different steps would share their dropout.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.config.base import ConfigError, require, shown

KEYS = "threefry2x32"
"""The implementation."""


def whole_seed(seed: Any, name: str = "seed", *, below: int = 2**32) -> int:
    """A seed as a number of Python.

    Args:
      seed: a whole number, of Python or NumPy.
      name: for messages.
      below: no seed is as large. JAX and others cut off what is above 32 bits, and such a seed would begin as another does.

    Raises:
      ConfigError: for what is no whole number, negative, or too large.
    """
    try:
        require(not isinstance(seed, bool | np.bool_), f"{name}={shown(seed)} must be a whole number")
        number = operator.index(seed)
    except TypeError:
        raise ConfigError(f"{name}={shown(seed)} must be a whole number") from None
    require(0 <= number < below, f"{name}={shown(number)} must lie in 0 to 2**{below.bit_length() - 1} - 1")
    return number


def key_of(seed: int) -> jax.Array:
    """The typed key of a seed: every seed has its own, whatever implementation of random numbers is the default.

    Args:
      seed: 0 to 2⁶⁴ − 1, of Python or NumPy.

    Raises:
      ConfigError: for any other.
    """
    number = whole_seed(seed, below=2**64)
    bits = jnp.asarray(np.array([number >> 32, number & 0xFFFFFFFF], np.uint32))
    return jax.random.wrap_key_data(bits, impl=KEYS)
