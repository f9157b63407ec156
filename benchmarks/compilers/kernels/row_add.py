"""Chosen rows added in place: every form, at the sizes of a layer's consolidation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bdh_jax.kernels.row_add import pallas_gpu, pallas_tpu
from bdh_jax.kernels.token_step.xla import active_rows
from bdh_jax.layers.largest import largest
from benchmarks.compilers.cases import Case, lowering

SIZES = {"odd": (1001, 384, 37), "published": (32768, 256, 3276), "six layers": (6 * 32768, 256, 6 * 3276)}
KERNELS = {"tpu": (pallas_tpu, (jnp.float32,)), "gpu": (pallas_gpu, (jnp.float32, jnp.bfloat16))}


def cases(platform: str) -> list[Case]:
    """Rows given, and scored and selected first."""
    kernel, dtypes = KERNELS[platform]
    add = functools.partial(kernel.row_add, interpret=False)
    found = []
    for dtype in dtypes:
        for label, (rows, width, count) in SIZES.items():
            matrix, ids, rate = (
                jax.ShapeDtypeStruct((rows, width), dtype),
                jax.ShapeDtypeStruct((count,), jnp.int32),
                jax.ShapeDtypeStruct((), jnp.float32),
            )
            size = f"{label}: R {rows}, D {width}, {count} rows, {jnp.dtype(dtype).name}"
            found.append(Case("row_add", size, lowering(add, (matrix, matrix, ids, rate), donate=(0,))))

            def consolidate(weights: jax.Array, change: jax.Array, rate: jax.Array, count: int = count) -> jax.Array:
                chosen = largest(jnp.sum(jnp.square(change.astype(jnp.float32)), axis=-1), count)
                return add(weights, change, active_rows(chosen, count).index, rate)

            found.append(
                Case("row_add, scored and selected", size, lowering(consolidate, (matrix, matrix, rate), donate=(0,)))
            )
    if platform == "tpu":
        matrix, ids = jax.ShapeDtypeStruct((32768, 256), jnp.float32), jax.ShapeDtypeStruct((3276,), jnp.int32)
        large = functools.partial(add, rate=1.0, block=65536)
        found.append(
            Case("row_add", "blocks of 134 MB", lowering(large, (matrix, matrix, ids)), refused="RESOURCE_EXHAUSTED.*vmem")
        )
    return found
