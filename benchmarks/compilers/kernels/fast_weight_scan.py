"""The chunked scan: the kernel for TPUs, and beside it the matrix products of XLA, which are all there is for GPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bdh_jax.kernels.fast_weight_scan import pallas, xla
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Stretch, Wanted
from benchmarks.compilers.cases import Case, lowering

CHUNK = 128
SIZES = {
    # B, H, T, N, D; masks
    "odd": ((2, 2, 250, 500, 60), True),
    "published, attention": ((1, 4, 512, 8192, 256), False),
    "published, fast weights": ((1, 1, 512, 32768, 256), False),
}


def _scan(form: str, *arrays: Any) -> tuple[jax.Array, jax.Array]:
    query, key, value, state, decay, *masks = arrays
    stretch, wanted = Stretch(query, key, value, None, *masks), Wanted("full", True)
    if form == "xla":
        return xla.chunked(stretch, state, Dynamics(1.0, decay), wanted, CHUNK)
    return pallas.chunked(stretch, state, decay, wanted, CHUNK, interpret=False)


def _loss(form: str, *arrays: Any) -> jax.Array:
    read, state = _scan(form, *arrays)
    return jnp.sum(jnp.square(read)) + jnp.sum(jnp.square(state))


def _programs(form: str) -> dict[str, Callable[..., Any]]:
    scan, loss = functools.partial(_scan, form), functools.partial(_loss, form)
    name = "fast_weight_scan, " + ("kernel" if form == "pallas" else "matrix products")
    return {name: scan, f"{name}, and backward": jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))}


def cases(platform: str) -> list[Case]:
    """Forward, and forward and backward. XLA's form only where its figures are to be compared."""
    found = []
    for label, (sizes, masked) in SIZES.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            arrays, size = _arguments(*sizes, dtype, masked=masked), f"{label}: {_say(*sizes)}, {jnp.dtype(dtype).name}"
            forms = ["pallas"] * (platform == "tpu") + ["xla"] * (not masked)
            for name, program in [item for form in forms for item in _programs(form).items()]:
                found.append(Case(name, size, lowering(program, arrays)))
    if platform == "tpu":
        found.append(_too_large())
    return found


def _arguments(
    batch: int, heads: int, length: int, neurons: int, width: int, dtype: Any, *, masked: bool
) -> tuple[Any, ...]:
    shape = jax.ShapeDtypeStruct
    rows = shape((batch, heads, length, neurons), dtype)
    state, mask = shape((batch, heads, neurons, width), jnp.float32), shape((batch, length), bool)
    masks = (mask, mask) if masked else (None, None)
    return rows, rows, shape((batch, 1, length, width), dtype), state, shape((heads,), jnp.float32), *masks


def _say(*sizes: int) -> str:
    return ", ".join(f"{letter} {size}" for letter, size in zip("BHTND", sizes, strict=True))


def _too_large() -> Case:
    """The kernel with a state larger than any chip's VMEM, which it would cut otherwise."""
    arrays = _arguments(1, 1, 256, 2**18, 256, jnp.bfloat16, masked=False)
    inner = lowering(functools.partial(_scan, "pallas"), arrays)

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        with mock.patch.object(pallas, "VMEM_FOR_STATE", 2**30):
            return inner(mesh)

    return Case("fast_weight_scan, kernel", "a state of 268 MB in VMEM", lower, refused="vmem")
