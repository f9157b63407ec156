"""Consolidation of a tenth of the rows against the dense form, which adds every row.

Bytes are counted as in ``benchmarks/row_add.py``: W and F read and W written, of all rows or of the chosen ones; with scoring, all of F
read once more. Several additions run within one program, so that no side waits for Python; each starts from the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.kernels.row_add import row_add
from bdh_jax.layers.largest import largest
from benchmarks.accelerator import timing
from benchmarks.accelerator.part import Part, Work

RATE, FRACTION, ROUNDS, REPEATS = 0.5, 0.1, 7, 20
CLAIM = 0.6
"""Largest share of the dense bytes."""
CLOSE = 1e-6


def run(work: Work) -> None:
    """A layer's rows, and those of six layers, which no cache holds."""
    rates = timing.bandwidth(work.tiny)
    work.note(bandwidth=rates, fraction=FRACTION, claim=CLAIM)
    kernel = ("pallas",) if jax.default_backend() in ("gpu", "tpu") else ()
    for label, rows, width in (
        (("tiny", 2048, 128),) if work.tiny else (("six layers", 6 * 32768, 256), ("a layer", 32768, 256))
    ):
        rng = np.random.default_rng(0)
        change = jnp.asarray(rng.standard_normal((rows, width), np.float32))
        for form in ("xla", *kernel):
            for scored in (False, True):
                name = (
                    f"{label}, {'XLA' if form == 'xla' else 'kernel'}, {'scored and selected' if scored else 'rows given'}"
                )
                work.attempt(name, 4, lambda f=form, s=scored, c=change: _compare(f, s, c, max(rates.values())))


def _score(change: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(change), axis=-1)


def _compare(form: str, scored: bool, change: jax.Array, best: float) -> dict[str, Any]:
    rows, width = change.shape
    count = round(FRACTION * rows)
    chosen = jax.jit(lambda change: largest(_score(change), count))(change)

    def some(weights: jax.Array, change: jax.Array, chosen: jax.Array) -> jax.Array:
        here = largest(_score(change), count) if scored else chosen
        return row_add(weights, change, here, RATE, count=count, implementation=form)

    programs = {"dense": _repeated(lambda weights, change, _: weights + RATE * change), "rows": _repeated(some)}
    weights = {name: jnp.ones(change.shape, jnp.float32) for name in programs}

    def call(name: str, times: int) -> jax.Array:
        weights[name] = programs[name](weights[name], change, chosen, jnp.int32(times))
        return weights[name]

    found, all_ = np.asarray(call("rows", 1)), np.asarray(call("dense", 1))
    where = np.asarray(chosen)[:, None]
    error = timing.assert_alike(found, np.where(where, all_, 1), CLOSE, "weights")
    calls = {name: lambda name=name: call(name, REPEATS) for name in programs}
    seconds, ratios = timing.ratio_in_turn(calls, ROUNDS, f"row_add, {form}", "rows")
    taken = {name: times["median"] / REPEATS for name, times in seconds.items()}
    dense, moved = 12 * rows * width, 12 * count * width + rows + scored * 4 * (rows * width + rows)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (change, change, chosen, jnp.int32(0))]
    return {
        "faster": ratios["dense"]["median"],
        "us": 1e6 * taken["rows"],
        "us_dense": 1e6 * taken["dense"],
        "bytes": moved,
        "share_of_bytes": moved / dense,
        "claim_holds": moved / dense <= CLAIM,
        "share_of_bandwidth": moved / taken["rows"] / best,
        "share_of_bandwidth_dense": dense / taken["dense"] / best,
        "difference": error,
        "ratio": ratios["dense"],
        "temporaries": programs["rows"].lower(*shapes).compile().memory_analysis().temp_size_in_bytes,
    }


def _repeated(form: Callable[..., jax.Array]) -> Any:
    """Several additions in one program, with the weights given up."""

    def run(weights: jax.Array, change: jax.Array, chosen: jax.Array, times: jax.Array) -> jax.Array:
        def body(_: Any, weights: jax.Array) -> jax.Array:
            # Nothing is computed once for all of them.
            return form(*jax.lax.optimization_barrier((weights, change, chosen)))

        return jax.lax.fori_loop(0, times, body, weights)

    return jax.jit(run, donate_argnums=0)


PART = Part(place=2, minutes=0.4, least=15, run=run)
