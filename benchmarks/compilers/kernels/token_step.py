"""One token's read, gate and decode of active rows."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp

from bdh_jax.kernels.token_step import pallas_gpu, pallas_tpu
from bdh_jax.kernels.token_step.arguments import Active, Matrices
from benchmarks.compilers.cases import Case, lowering

SIZES = {
    # B, H, N, D; groups of two rows of ρ, rows of the others
    "odd": (3, 2, 300, 384, 37, 41),
    "published, 5 %": (1, 4, 8192, 256, 1638, 1638),
    "published, 16 examples": (16, 4, 8192, 256, 1638, 1638),
}
KERNELS = {"tpu": pallas_tpu, "gpu": pallas_gpu}


def cases(platform: str) -> list[Case]:
    """With and without S."""
    run = functools.partial(KERNELS[platform].read_gate_decode, interpret=False)
    found = []
    # Rows of ρ and S are float32; a GPU takes the weights also as a cast left them.
    dtypes = (jnp.float32,) if platform == "tpu" else (jnp.float32, jnp.bfloat16)
    for (label, sizes), dtype in itertools.product(SIZES.items(), dtypes):
        batch, heads, neurons, width, pairs, rows = sizes
        for with_memory in (False, True):
            matrix, state = _shape(heads * neurons, width, dtype=dtype), _shape(batch, heads * neurons, width)
            arguments = (
                Active(_shape(batch, pairs, dtype=jnp.int32), _shape(batch, pairs, 2)),
                Active(
                    _shape(batch, rows, dtype=jnp.int32),
                    _shape(batch, rows, 1),
                    _shape(batch, rows) if with_memory else None,
                ),
                Matrices(state, matrix, matrix, state if with_memory else None),
                _shape(batch, heads, width),
            )
            size = (
                f"{label}: B {batch}, H {heads}, N {neurons}, D {width}, {pairs} pairs, {rows} rows, {jnp.dtype(dtype).name}"
            )
            found.append(Case("token_step" + ", and fast weights" * with_memory, size, lowering(run, arguments)))
    return found


def _shape(*sizes: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)
