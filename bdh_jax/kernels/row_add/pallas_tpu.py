"""Row add for TPUs: blocks of chosen rows are copied into VMEM one by one, added, and copied back to where they came from.

W stays in HBM and is its own output. The ids of the rows are prefetched scalars, which address the copies.

Axis letters: see :mod:`bdh_jax.types`; R rows, G rows of a block.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK = 128
"""Rows that are on their way at once: 128 KB of W and as much of F at D 256."""


def problem(weights: jax.Array, change: jax.Array) -> str:
    """Why these arrays have no kernel here, or nothing."""
    if weights.dtype == change.dtype == jnp.float32:
        return ""
    return f"a TPU packs rows of {weights.dtype} and {change.dtype} into words, and copies one alone only of float32"


def moved(count: int, width: int) -> int:
    """Bytes that move: of each chosen row those of W and F in, those of W out, and its id."""
    return count * (3 * 4 * width + 4)


def row_add(
    weights: jax.Array, change: jax.Array, rows: jax.Array, rate: jax.Array | float, *, interpret: bool, block: int = BLOCK
) -> jax.Array:
    """W with rate · F_i added at each of ``rows``.

    Args:
      weights: W, [R, D].
      change: F, [R, D].
      rows: int32, distinct; one that is no row of W is passed over.
      rate: a scalar.
      interpret: run the kernel's interpreter, on any machine.
      block: G.

    Returns:
      [R, D].
    """
    size, width = weights.shape
    rows = jnp.pad(rows, (0, -rows.shape[0] % block), constant_values=size)

    def kernel(ids: Any, rate: Any, _: Any, change: Any, weights: Any, old: Any, new: Any, arrived: Any) -> None:
        first = pl.program_id(0) * block

        def each(do: Any) -> None:
            def body(place: jax.Array, carry: jax.Array) -> jax.Array:
                row = ids[first + place]
                pl.when(row < size)(lambda: do(row, place))
                return carry

            jax.lax.fori_loop(jnp.int32(0), jnp.int32(block), body, jnp.int32(0))

        def copies(row: Any, place: Any) -> tuple[Any, Any]:
            here = pl.ds(place, 1)
            source = pl.ds(row, 1)
            return (
                pltpu.make_async_copy(weights.at[source], old.at[here], arrived.at[0]),
                pltpu.make_async_copy(change.at[source], new.at[here], arrived.at[1]),
            )

        def back(row: Any, place: Any) -> Any:
            return pltpu.make_async_copy(old.at[pl.ds(place, 1)], weights.at[pl.ds(row, 1)], arrived.at[0])

        each(lambda row, place: [copy.start() for copy in copies(row, place)] and None)
        each(lambda row, place: [copy.wait() for copy in copies(row, place)] and None)
        old[...] = old[...] + rate[0] * new[...]
        each(lambda row, place: back(row, place).start())
        each(lambda row, place: back(row, place).wait())

    memory = pl.BlockSpec(memory_space=pltpu.HBM)
    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(rows.shape[0] // block,),
            in_specs=[memory, memory],
            out_specs=memory,
            scratch_shapes=[
                pltpu.VMEM((block, width), weights.dtype),
                pltpu.VMEM((block, width), change.dtype),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(weights.shape, weights.dtype),
        input_output_aliases={2: 0},
        cost_estimate=pl.CostEstimate(
            flops=2 * rows.shape[0] * width, transcendentals=0, bytes_accessed=moved(rows.shape[0], width)
        ),
        interpret=interpret,
        name="row_add",
    )
    if not interpret:  # where all of F fits into VMEM, XLA would copy it there first
        change = pltpu.with_memory_space_constraint(change, pltpu.HBM)
    return call(rows, jnp.asarray(rate, weights.dtype).reshape(1), weights, change)
