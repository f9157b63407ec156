"""One token's read, gate and decode in two kernels for GPUs (Mosaic GPU, of sm_90 and later): of four matrices only active rows move.

The formulas are those of :mod:`bdh_jax.kernels.token_step.pallas_tpu`. Blocks of a GPU's grid run side by side, and all of them need the norm of
what all have read: the first kernel reads ρ, the second one gates, decodes and reads S. Each block is a warpgroup that walks over a few rows,
adds up in registers, and writes a sum of its own; these are added outside, 4 KB a block of the first kernel at H 4, D 256.

Axis letters: see :mod:`bdh_jax.types`; R rows that are read at most, G rows of a group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.kernels.mosaic_gpu import THREADS, call, row
from bdh_jax.kernels.token_step.arguments import Active, Matrices
from bdh_jax.layers.norm import layer_norm

BLOCK = 8
"""Groups or rows of a program: hundreds of programs at a few per cent of 32,768 rows, for 132 multiprocessors."""


def problem(matrices: Matrices) -> str:
    """Why these matrices have no kernel here, or nothing."""
    width = matrices.attention.shape[-1]
    if width % THREADS:
        return f"a warpgroup's {THREADS} threads do not divide the D={width} numbers of a row"
    wrong = [
        str(matrix.dtype) for matrix in matrices if matrix is not None and matrix.dtype not in (jnp.float32, jnp.bfloat16)
    ]
    return f"there is none for {wrong[0]}, only for float32 and bfloat16" if wrong else ""


def read_gate_decode(
    pairs: Active, code: Active, matrices: Matrices, before: jax.Array, *, interpret: bool, block: int = BLOCK
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """What one token of every example reads, gates and decodes: as :func:`bdh_jax.kernels.token_step.pallas_tpu.read_gate_decode`."""
    attended = layer_norm(before.astype(jnp.float32) + _read(pairs, matrices.attention, before, block, interpret))
    return _gate_and_decode(code, matrices, attended, block, interpret)


def _read(pairs: Active, matrix: jax.Array, before: jax.Array, block: int, interpret: bool) -> jax.Array:
    """Σ_p q_p ρ_p of each head, [B, H, D]."""
    heads, width = before.shape[1:]
    group = pairs.values.shape[-1]
    ids, values = _blocks(pairs.index, block, matrix.shape[1] // group), _blocks(pairs.values, block, 0)
    per_head = matrix.shape[1] // group // heads

    def kernel(place: tuple[Any, Any], ids: Any, values: Any, matrix: Any, sums: Any) -> None:
        example = place[0]
        parts: list[list[Any]] = [[] for _ in range(heads)]
        # Written out, not as a loop: the reads of all rows wait for the memory together.
        for index in range(block):
            here = jnp.minimum(ids[(*place, index)], per_head * heads - 1)
            head = here // per_head
            for member in range(group):
                found = row(matrix, (example, here * group + member), interpret)
                value = values[(*place, index, member)]
                for number in range(heads):
                    parts[number].append(jnp.where(head == number, value, jnp.float32(0)) * found)
        for number in range(heads):
            sums[(*place, number, slice(None))] = functools.reduce(jnp.add, parts[number])

    shape = (*ids.shape[:2], heads, width)
    return jnp.sum(_call(kernel, (ids, values, matrix), [shape], interpret)[0], axis=1)


def _gate_and_decode(
    code: Active, matrices: Matrices, attended: jax.Array, block: int, interpret: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    heads, width = attended.shape[1:]
    rows = matrices.decoder.shape[0]
    ids, values = _blocks(code.index, block, rows), _blocks(code.values[..., 0], block, 0)
    addresses = []
    if matrices.memory is not None and code.address is not None:
        addresses = [_blocks(code.address, block, 0), matrices.memory]
    memory = bool(addresses)
    inputs = (ids, values, attended, matrices.encoder_v, matrices.decoder, *addresses)

    def kernel(
        place: tuple[Any, Any], ids: Any, values: Any, attended: Any, encoder_v: Any, decoder: Any, *refs: Any
    ) -> None:
        addresses, matrix = refs[:2] if memory else (None, None)
        y, gates, *read = refs[2:] if memory else refs
        example = place[0]
        parts: list[list[Any]] = [[] for _ in range(1 + memory)]
        for index in range(block):
            here = jnp.minimum(ids[(*place, index)], rows - 1)
            seen = row(attended, (example, here // (rows // heads)), interpret)
            gate = jnp.maximum(jnp.sum(seen * row(encoder_v, (here,), interpret)), jnp.float32(0))
            gates[(*place, index)] = gate
            parts[0].append(values[(*place, index)] * gate * row(decoder, (here,), interpret))
            if addresses is not None:
                parts[1].append(addresses[(*place, index)] * row(matrix, (example, here), interpret))
        for sums, part in zip((y, *read), parts, strict=True):
            sums[(*place, slice(None))] = functools.reduce(jnp.add, part)

    of_blocks = ids.shape[:2]
    shapes = [(*of_blocks, width), ids.shape, *[(*of_blocks, width)] * memory]
    y, gate, *read = _call(kernel, inputs, shapes, interpret)
    gate = gate.reshape(len(gate), -1)[:, : code.index.shape[1]]
    return jnp.sum(y, axis=1), gate, jnp.sum(read[0], axis=1) if read else None


def _blocks(array: jax.Array, block: int, fill: int) -> jax.Array:
    """[B, R, ...] → [B, blocks, block, ...]."""
    missing = -array.shape[1] % block
    array = jnp.pad(array, [(0, missing if axis == 1 else 0) for axis in range(array.ndim)], constant_values=fill)
    return array.reshape(array.shape[0], -1, block, *array.shape[2:])


def _call(
    kernel: Callable[..., None], inputs: tuple[jax.Array, ...], shapes: list[tuple[int, ...]], interpret: bool
) -> list[jax.Array]:
    """A program for each block of each example."""
    outputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return call(kernel, inputs, outputs, inputs[0].shape[:2], name="token_step", interpret=interpret)
