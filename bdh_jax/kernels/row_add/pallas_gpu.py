"""Row add for GPUs (Mosaic GPU, of sm_90 and later): each program's warpgroup reads, adds and writes a few chosen rows.

W stays in the GPU's memory and is its own output.

Axis letters: see :mod:`bdh_jax.types`; R rows, G rows of a program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

BLOCK = 4
_THREADS = 128  # of a warpgroup


def problem(weights: jax.Array, change: jax.Array) -> str:
    """Why these arrays have no kernel here, or nothing."""
    width = weights.shape[-1]
    if width % _THREADS:
        return f"a warpgroup's {_THREADS} threads do not divide the D={width} numbers of a row"
    if weights.dtype != change.dtype or weights.dtype not in (jnp.float32, jnp.bfloat16):
        return f"there is none for {weights.dtype} and {change.dtype}, only for two of float32 or two of bfloat16"
    return ""


def row_add(
    weights: jax.Array, change: jax.Array, rows: jax.Array, rate: jax.Array | float, *, interpret: Any, block: int = BLOCK
) -> jax.Array:
    """W with rate · F_i added at each of ``rows``; arguments as in :func:`bdh_jax.kernels.row_add.pallas_tpu.row_add`."""
    size = weights.shape[0]
    rows = jnp.pad(rows, (0, -rows.shape[0] % block), constant_values=size)

    def kernel(ids: Any, rate: Any, _: Any, change: Any, weights: Any) -> None:
        first = pl.program_id(0) * block
        here = [ids[first + place] for place in range(block)]
        # All reads before the first write, so that they wait for the memory together.
        sums = []
        for row in here:
            source = jnp.minimum(row, size - 1)
            old, new = (array[source, :].astype(jnp.float32) for array in (weights, change))
            sums.append(old + rate[0] * new)
        for row, found in zip(here, sums, strict=True):

            @pl.when(row < size)
            def _(row: Any = row, found: Any = found) -> None:
                weights[row, :] = found.astype(weights.dtype)

    memory = pl.BlockSpec(memory_space=plgpu.GMEM)
    call = pl.pallas_call(
        kernel,
        grid=(rows.shape[0] // block,),
        in_specs=[memory] * 4,
        out_specs=memory,
        out_shape=jax.ShapeDtypeStruct(weights.shape, weights.dtype),
        input_output_aliases={2: 0},
        compiler_params=plgpu.CompilerParams(),
        interpret=interpret,
        name="row_add",
    )
    return call(rows, jnp.asarray(rate, jnp.float32).reshape(1), weights, change)
