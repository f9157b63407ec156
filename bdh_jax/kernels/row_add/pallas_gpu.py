"""Row add for GPUs (Mosaic GPU, of sm_90 and later): each program's warpgroup reads, adds and writes a few chosen rows.

W stays in the GPU's memory and is its own output.

Axis letters: see :mod:`bdh_jax.types`; R rows, G rows of a program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bdh_jax.kernels.mosaic_gpu import THREADS, call, row

BLOCK = 4


def problem(weights: jax.Array, change: jax.Array) -> str:
    """Why these arrays have no kernel here, or nothing."""
    width = weights.shape[-1]
    if width % THREADS:
        return f"a warpgroup's {THREADS} threads do not divide the D={width} numbers of a row"
    if not all(dtype in (jnp.float32, jnp.bfloat16) for dtype in (weights.dtype, change.dtype)):
        return f"there is none for {weights.dtype} and {change.dtype}, only for float32 and bfloat16"
    return ""


def row_add(
    weights: jax.Array, change: jax.Array, rows: jax.Array, rate: jax.Array | float, *, interpret: bool, block: int = BLOCK
) -> jax.Array:
    """W with rate · F_i added at each of ``rows``; arguments as in :func:`bdh_jax.kernels.row_add.pallas_tpu.row_add`."""
    size = weights.shape[0]
    rows = jnp.pad(rows, (0, -rows.shape[0] % block), constant_values=size)

    def kernel(place: tuple[Any], ids: Any, rate: Any, _: Any, change: Any, weights: Any) -> None:
        here = [ids[place[0] * block + number] for number in range(block)]
        # All reads before the first write, so that they wait for the memory together.
        sums = []
        for index in here:
            source = jnp.minimum(index, size - 1)
            sums.append(row(weights, (source,), interpret) + rate[0] * row(change, (source,), interpret))
        for index, found in zip(here, sums, strict=True):

            @pl.when(index < size)
            def _(index: Any = index, found: Any = found) -> None:
                weights[index, :] = found.astype(weights.dtype)

    inputs = (rows, jnp.asarray(rate, jnp.float32).reshape(1), weights, change)
    output = jax.ShapeDtypeStruct(weights.shape, weights.dtype)
    grid = (rows.shape[0] // block,)
    return call(kernel, inputs, [output], grid, name="row_add", interpret=interpret, in_place={2: 0})[0]
