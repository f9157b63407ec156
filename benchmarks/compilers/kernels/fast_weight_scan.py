"""The chunked scan: the kernel, and beside it the matrix products that it competes with."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bdh_jax.kernels.fast_weight_scan import pallas, xla
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Stretch, Wanted
from benchmarks.compilers.cases import Case, lowering


class _Sizes:
    def __init__(self, batch, heads, length, neurons, width):
        self.all = batch, heads, length, neurons, width


def _run(form, platform, wanted, chunk, query, key, value, state, decay, valid, reset):
    stretch = Stretch(query, key, value, None, valid, reset)
    if form == "xla":
        return xla.chunked(stretch, state, Dynamics(1.0, decay), wanted, chunk)
    return pallas.chunked(stretch, state, decay, wanted, chunk, interpret=False, platform=platform)


def cases(platform: str) -> list[Case]:
    found = []
    for label, (b, h, t, n, d) in {
        "odd": (2, 2, 250, 500, 60),
        "published": (1, 4, 512, 8192, 256),
        "publishedK": (1, 1, 512, 32768, 256),
    }.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            S = jax.ShapeDtypeStruct
            masks = (S((b, t), bool), S((b, t), bool)) if label == "odd" else (None, None)
            args = (
                S((b, h, t, n), dtype),
                S((b, h, t, n), dtype),
                S((b, 1, t, d), dtype),
                S((b, h, n, d), jnp.float32),
                S((h,), jnp.float32),
                *masks,
            )
            for form in ("pallas", "xla"):
                run = functools.partial(_run, form, platform, Wanted("full", True), 128)

                def loss(*args, run=run):
                    read, state = run(*args)
                    return jnp.sum(read) + jnp.sum(state)

                size = f"{label} B {b} H {h} T {t} N {n} D {d} {jnp.dtype(dtype)}"
                found.append(Case(f"scan {form} forward", size, lowering(run, args)))
                if label != "publishedK":
                    found.append(Case(f"scan {form} grad", size, lowering(jax.grad(loss, argnums=(0, 1, 2, 3, 4)), args)))
    return found
