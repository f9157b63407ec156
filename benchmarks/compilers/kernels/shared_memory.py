"""A kernel that wants more shared memory than a GPU's multiprocessor has: the compiler has to refuse it, or it checks nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.compilers.cases import Case, lowering

_ROWS = 480  # of 128 float32: 245,760 bytes, where an H100 has 232,448


def cases(platform: str) -> list[Case]:
    """One, for GPUs. Those for TPUs are kernels of the package with blocks that are too large."""
    if platform == "tpu":
        return []
    rows = jax.ShapeDtypeStruct((_ROWS, 128), jnp.float32)
    refused = "shared memory|smem|shared_memory"
    return [Case("copy through shared memory", f"{_ROWS * 512} bytes of it", lowering(_copy, (rows,)), refused=refused)]


def _copy(rows: jax.Array) -> jax.Array:
    def kernel(source: Any, target: Any, scratch: Any, arrived: Any) -> None:
        half = _ROWS // 2  # a copy has at most 256 rows
        for start in (0, half):
            part = pl.ds(start, half)
            plgpu.copy_gmem_to_smem(source.at[part], scratch.at[part], arrived)
        plgpu.barrier_wait(arrived)
        plgpu.copy_smem_to_gmem(scratch.at[pl.ds(0, half)], target.at[pl.ds(0, half)])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(rows.shape, rows.dtype),
        scratch_types=(plgpu.SMEM(rows.shape, rows.dtype), plgpu.Barrier(num_arrivals=2)),
        kernel_name="too_large",
    )(rows)
