"""Kernels of programs over arrays that stay in a GPU's memory, for Mosaic GPU (sm_90 and later), on every JAX that is supported.

JAX 0.10 takes such a kernel as a ``pallas_call`` alone where it writes in place, and from 0.11 on as a ``plgpu.kernel`` alone. Pallas'
interpreter knows the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

THREADS = 128
"""Of a warpgroup, which every program is."""
_IS_KERNEL = jax.__version_info__ >= (0, 11)


def call(
    body: Callable[..., None],
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    *,
    name: str,
    interpret: bool,
    in_place: Mapping[int, int] | None = None,
) -> list[jax.Array]:
    """Run ``body(place, *inputs, *outputs)`` for every place of a grid, side by side.

    Args:
      body: gets its place, a tuple of int32, and references to whole arrays.
      inputs: arrays.
      outputs: shapes and dtypes.
      grid: how many programs there are along each axis.
      name: of the kernel.
      interpret: run it in Pallas' interpreter, on any machine.
      in_place: number of an input → number of the output that is the same memory. The body reads and writes it as that output.

    Returns:
      The outputs.
    """
    in_place = dict(in_place or {})
    if interpret or not _IS_KERNEL:
        memory = pl.BlockSpec(memory_space=pl.ANY if interpret else plgpu.GMEM)

        def kernel(*refs: Any) -> None:
            body(tuple(pl.program_id(axis) for axis in range(len(grid))), *refs)

        return pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=[memory] * len(inputs),
            out_specs=[memory] * len(outputs),
            out_shape=list(outputs),
            input_output_aliases=in_place,
            compiler_params=None if interpret else plgpu.CompilerParams(),
            interpret=interpret,
            name=name,
        )(*inputs)

    held = {number: jax.new_ref(inputs[number]) for number in in_place}
    new = [number for number in range(len(outputs)) if number not in in_place.values()]
    axes = tuple(f"axis_{number}" for number in range(len(grid)))

    def kernel(*refs: Any) -> None:
        given, made = refs[: len(inputs)], dict(zip(new, refs[len(inputs) :], strict=True))
        made |= {output: given[number] for number, output in in_place.items()}
        body(tuple(jax.lax.axis_index(axis) for axis in axes), *given, *(made[number] for number in range(len(outputs))))

    found = plgpu.kernel(kernel, out_type=[outputs[number] for number in new], grid=grid, grid_names=axes, kernel_name=name)(
        *(held.get(number, array) for number, array in enumerate(inputs))
    )
    made = dict(zip(new, found, strict=True)) | {output: jax.freeze(held[number]) for number, output in in_place.items()}
    return [made[number] for number in range(len(outputs))]


def row(array: Any, place: tuple[Any, ...], interpret: bool) -> jax.Array:
    """A row of a reference in float32, laid over the threads as float32 is: left to itself, a row of bfloat16 is laid in longer pieces,
    and does not go together with one of float32.

    Args:
      array: [..., D].
      place: indices of all axes but the last.
      interpret: as of :func:`call`.
    """
    if interpret:
        return array[(*place, slice(None))].astype(jnp.float32)
    width = array.shape[-1]
    layout = plgpu.Layout.WG_STRIDED((width,), vec_size=1 if width % (2 * THREADS) else 2)
    index = () if _IS_KERNEL else ((),)
    return plgpu.load(array.at[place], *index, layout=layout, optimized=False).astype(jnp.float32)
