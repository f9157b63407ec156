"""One token's read, gate and decode in one kernel for TPUs: of four matrices only active rows move.

    attended_h = before_h + scale_h Σ_p q_p ρ_p                            over the groups of rows where q is not zero
    gate_r     = relu(LN(attended) @ encoder_v_r)                          at the rows where the code is not zero
    y          = Σ_r code_r gate_r decoder_r,    read = Σ_r address_r S_r

The matrices stay in HBM. The ids of the rows are prefetched scalars, which address the copies into VMEM; the rows of a block are on their way
while those of the block before it are multiplied. Blocks of ρ come first, then those of the other three.

Axis letters: see :mod:`bdh_jax.types`; P groups and R rows that are read at most, G rows of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bdh_jax.kernels.token_step.arguments import Active, Matrices
from bdh_jax.layers.norm import layer_norm

BLOCK = 128
"""Rows of a matrix that are on their way at once."""


def problem(matrices: Matrices) -> str:
    """Why these matrices have no kernel here, or nothing."""
    wrong = [str(matrix.dtype) for matrix in matrices if matrix is not None and matrix.dtype != jnp.float32]
    return f"a TPU packs rows of {wrong[0]} into words, and copies one alone only of float32" if wrong else ""


def read_gate_decode(
    pairs: Active, code: Active, matrices: Matrices, before: jax.Array, *, interpret: bool, block: int = BLOCK
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """What one token of every example reads, gates and decodes.

    Args:
      pairs: groups of rows of ρ, and the query there, with each head's scale in it.
      code: rows of the other matrices, the code there, and the address, with S's scale in it.
      matrices: what is read.
      before: [B, H, D], what is read of writes that have not reached ρ.
      interpret: run the kernel's interpreter, on any machine.
      block: rows of a matrix that are copied together.

    Returns:
      y [B, D], the gate [B, R] and what is read of S [B, D] or None; float32.
    """
    batch, heads, width = before.shape
    group = pairs.values.shape[-1]
    queries, query_blocks = _by_head(pairs, matrices.attention.shape[1], heads, block // group)
    codes, code_blocks = _by_head(code, matrices.decoder.shape[0], heads, block)
    addresses = None if matrices.memory is None or code.address is None else _address(code.address, block)
    of_rows = [matrices.encoder_v, matrices.decoder]
    memory = addresses is not None
    per_copy = block // group

    def kernel(query_ids: Any, code_ids: Any, queries: Any, codes: Any, *refs: Any) -> None:
        addresses, refs = (refs[0], refs[1:]) if memory else (None, refs)
        before, attention, encoder_v, decoder, *others = refs
        matrix, others = (others[0], others[1:]) if memory else (None, others)
        y, gate, *others = others
        read, others = (others[0], others[1:]) if memory else (None, others)
        total, attended, rows, arrived = others
        example, step = pl.program_id(0), pl.program_id(1)
        steps = query_blocks + code_blocks
        sources = [encoder_v, decoder] + ([] if matrix is None else [matrix.at[example]])

        def copies(step: Any, do: Callable[[Any], None]) -> None:
            slot = jax.lax.rem(step, jnp.int32(2))

            def of_pairs(place: Any, carry: Any) -> Any:
                here = query_ids[example, step * per_copy + place]
                do(
                    pltpu.make_async_copy(
                        attention.at[example, pl.ds(here * group, group)],
                        rows.at[slot, 0, pl.ds(place * group, group)],
                        arrived.at[slot],
                    )
                )
                return carry

            def of_code(place: Any, carry: Any) -> Any:
                here = code_ids[example, (step - query_blocks) * block + place]
                for number, source in enumerate(sources):
                    target = rows.at[slot, number, pl.ds(place, 1)]
                    do(pltpu.make_async_copy(source.at[pl.ds(here, 1)], target, arrived.at[slot]))
                return carry

            zero = jnp.int32(0)

            @pl.when(step < query_blocks)
            def _() -> None:
                jax.lax.fori_loop(zero, jnp.int32(per_copy), of_pairs, zero)

            @pl.when(step >= query_blocks)
            def _() -> None:
                jax.lax.fori_loop(zero, jnp.int32(block), of_code, zero)

        @pl.when(step == 0)
        def _() -> None:
            copies(step, lambda copy: copy.start())
            total[...] = jnp.zeros(total.shape, total.dtype)
            y[...] = jnp.zeros(y.shape, y.dtype)
            if read is not None:
                read[...] = jnp.zeros(read.shape, read.dtype)

        @pl.when(step + 1 < steps)
        def _() -> None:
            copies(step + 1, lambda copy: copy.start())

        copies(step, lambda copy: copy.wait())
        slot = jax.lax.rem(step, jnp.int32(2))

        @pl.when(step < query_blocks)
        def _() -> None:
            total[...] += _dot(queries[...], rows[slot, 0], 0)

        @pl.when(step == query_blocks)
        def _() -> None:
            attended[...] = layer_norm(before[...] + total[...])

        @pl.when(step >= query_blocks)
        def _() -> None:
            found = jnp.maximum(
                _dot(attended[...], rows[slot, 0], 1), 0
            )  # [H, block], of which each row needs its own head's
            gate[...] = jnp.sum(jnp.where(codes[...] != 0, found, 0), axis=0, keepdims=True)
            y[...] += _dot(jnp.sum(found * codes[...], axis=0, keepdims=True), rows[slot, 1], 0)
            if read is not None and addresses is not None:
                read[...] += _dot(addresses[...], rows[slot, 2], 0)

    def of_step(first: int, count: int, height: int) -> pl.BlockSpec:
        """A block of a phase: before and after it the one at its end."""
        return pl.BlockSpec((None, None, height, block), lambda b, s, *_: (b, jnp.clip(s - first, 0, count - 1), 0, 0))

    def whole(height: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, height, width), lambda b, s, *_: (b, 0, 0))

    hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    inputs = [queries, codes, *([addresses] if memory else []), before.astype(jnp.float32)]
    large = [matrices.attention, *of_rows, *([matrices.memory] if memory else [])]
    if not interpret:  # what fits into VMEM, XLA would copy there whole
        large = [pltpu.with_memory_space_constraint(array, pltpu.HBM) for array in large]
    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, query_blocks + code_blocks),
            in_specs=[
                of_step(0, query_blocks, heads),
                of_step(query_blocks, code_blocks, heads),
                *[of_step(query_blocks, code_blocks, 1)] * memory,
                whole(heads),
                *[hbm] * len(large),
            ],
            out_specs=[whole(1), of_step(query_blocks, code_blocks, 1), *[whole(1)] * memory],
            scratch_shapes=[
                pltpu.VMEM((heads, width), jnp.float32),
                pltpu.VMEM((heads, width), jnp.float32),
                pltpu.VMEM((2, len(large) - 1, block, width), jnp.float32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, 1, width), jnp.float32),
            jax.ShapeDtypeStruct((batch, code_blocks, 1, block), jnp.float32),
            *[jax.ShapeDtypeStruct((batch, 1, width), jnp.float32)] * memory,
        ],
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * width * block * (query_blocks * heads + code_blocks * (heads + 1 + memory)),
            transcendentals=0,
            bytes_accessed=4 * batch * width * block * (query_blocks + code_blocks * (2 + memory)),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        interpret=interpret,
        name="token_step",
    )
    ids = _ids(pairs, matrices.attention.shape[1] // group, per_copy), _ids(code, matrices.decoder.shape[0], block)
    y, gate, *read = call(*ids, *inputs, *large)
    return y[:, 0], gate.reshape(batch, -1)[:, : code.index.shape[1]], read[0][:, 0] if read else None


def _dot(a: jax.Array, b: jax.Array, contract: int) -> jax.Array:
    """a [m, k] by b: contracting k with that axis of b."""
    return jax.lax.dot_general(
        a, b, (((1,), (contract,)), ((), ())), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _ids(active: Active, size: int, block: int) -> jax.Array:
    """[B, whole blocks] int32; what is no row is the last one, whose values are zeros."""
    ids = jnp.minimum(active.index, size - 1)
    return jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % block)), constant_values=size - 1)


def _by_head(active: Active, rows: int, heads: int, block: int) -> tuple[jax.Array, int]:
    """Values [B, blocks, H, block · G], zero in the heads that a row is not of; and how many blocks there are."""
    batch, count, group = active.values.shape
    head = active.index // (rows // group // heads)
    mine = (head[..., None] == jnp.arange(heads)[None, None])[..., None]
    values = jnp.where(mine, active.values[:, :, None], 0).astype(jnp.float32)
    values = jnp.pad(values, ((0, 0), (0, -count % block), (0, 0), (0, 0)))
    values = values.reshape(batch, -1, block, heads, group)
    return jnp.moveaxis(values, 3, 2).reshape(batch, values.shape[1], heads, block * group), values.shape[1]


def _address(address: jax.Array, block: int) -> jax.Array:
    """[B, R] → [B, blocks, 1, block] float32."""
    address = address.astype(jnp.float32)
    address = jnp.pad(address, ((0, 0), (0, -address.shape[1] % block)))
    return address.reshape(address.shape[0], -1, 1, block)
