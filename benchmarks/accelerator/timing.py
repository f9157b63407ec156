"""Time taken in turn, and what the device does at best: numbers moved and multiplied a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure

_COMPILERS = 8


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int, title: str) -> dict[str, dict[str, float]]:
    """Seconds of each call, side after side within a round: name → median, low, high."""
    seconds = measure.interleave(dict(calls), rounds, title)
    return {name: measure.summary(values)._asdict() for name, values in seconds.items()}


def ratio_in_turn(
    calls: Mapping[str, Callable[[], Any]], rounds: int, title: str, over: str
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Seconds of each call as :func:`in_turn`, and those of every other call over those of ``over`` in the same round."""
    seconds = measure.interleave(dict(calls), rounds, title)
    ratios = {name: measure.ratios(values, seconds[over])._asdict() for name, values in seconds.items() if name != over}
    return {name: measure.summary(values)._asdict() for name, values in seconds.items()}, ratios


def bandwidth(tiny: bool) -> dict[str, float]:
    """Bytes a second of a large array that is copied (read and written) and of one that is read, in float32."""
    array = jnp.ones((1 << 20 if tiny else 1 << 29,), jnp.float32)
    copy, read = jax.jit(lambda x: x + 1), jax.jit(jnp.sum)
    taken = in_turn({"copy": lambda: copy(array), "read": lambda: read(array)}, 7, "bandwidth")
    return {"copy": 2 * array.nbytes / taken["copy"]["median"], "read": array.nbytes / taken["read"]["median"]}


def matrix_rate(tiny: bool, dtype: Any = jnp.bfloat16) -> float:
    """Operations a second of one large matrix product, two for each multiply-add."""
    size = 256 if tiny else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.dot)
    taken = in_turn({"product": lambda: product(matrix, matrix)}, 15, f"products in {jnp.dtype(dtype).name}")
    return 2 * size**3 / taken["product"]["median"]


def compile_all(lowered: Mapping[str, jax.stages.Lowered]) -> dict[str, jax.stages.Compiled | Exception]:
    """Programs compiled side by side; in the place of one that does not compile, why."""

    def one(program: jax.stages.Lowered) -> jax.stages.Compiled | Exception:
        try:
            return program.compile()
        except Exception as error:
            return error

    with ThreadPoolExecutor(_COMPILERS) as pool:
        return dict(zip(lowered, pool.map(one, lowered.values()), strict=True))


def compiled(found: jax.stages.Compiled | Exception) -> jax.stages.Compiled:
    """A program that compiled.

    Raises:
      Exception: what its compiler said, if it did not.
    """
    if isinstance(found, Exception):
        raise found
    return found


def difference(have: Any, want: Any) -> float:
    """The largest difference between two trees of arrays, relative to the largest number of each array of the second."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            raise AssertionError(f"shapes {a.shape} and {b.shape}")
        if a.size:
            error = float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))
            worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def assert_alike(have: Any, want: Any, tolerance: float, what: str) -> float:
    """The :func:`difference` of two sides.

    Raises:
      AssertionError: if it is larger than the tolerance.
    """
    found = difference(have, want)
    if not found <= tolerance:
        raise AssertionError(f"{what}: they differ by {found:.1e} of the largest number, more than {tolerance:.0e}")
    return found
