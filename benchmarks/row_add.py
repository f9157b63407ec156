"""Consolidation of chosen rows against the dense form, which adds every row.

    python benchmarks/row_add.py

Claims at R 32,768 rows, D 256 and a tenth of the rows: at least 3 times as fast as the dense form with the rows given, at least 1.8 times
with scoring and selection, and at most 60 % of its bytes. All sides overwrite their weights, and each has weights of its own, so that no
side finds another's in the cache. Bytes are counted:

    dense                   read F and W, write W                             3 · R·D
    rows given              the same of the chosen rows alone                 3 · k·D, and the mask
    selected                the same, and the rows chosen by scores that are there already: "strength" and "energy" of the activity
    scored and selected     read all of F first, to score its rows by their norm, the default    (R + 3·k) · D, scores and mask

The claim for scoring and selection is missed on two CPU cores, at 1.1 to 1.5: XLA's reduction runs on one core and the dense sum on both, so
that the scores alone take half of the dense time.

Less than a minute on two CPU cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measure
import numpy as np

from bdh_jax.kernels.row_add import row_add
from bdh_jax.layers.largest import largest

GIVEN, SELECTED, BYTES = 3.0, 1.8, 0.6
RATE = 0.5


def score(change: jax.Array) -> jax.Array:
    """Squared norm of every row."""
    return jnp.sum(jnp.square(change), axis=-1)


def sides(change: jax.Array, count: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Name → weights → next weights, overwritten."""
    chosen = jax.jit(lambda change: largest(score(change), count))(change)

    scores = jax.jit(score)(change)

    def selected(weights: jax.Array, change: jax.Array, scores: jax.Array | None = None) -> jax.Array:
        chosen = largest(score(change) if scores is None else scores, count)
        return row_add(weights, change, chosen, RATE, count=count)

    def sorted_(weights: jax.Array, change: jax.Array) -> jax.Array:
        _, index = jax.lax.top_k(score(change), count)
        return weights + jnp.where(jnp.zeros(len(change), bool).at[index].set(True)[:, None], RATE * change, 0)

    jitted = {
        "dense": jax.jit(lambda weights, change: weights + RATE * change, donate_argnums=0),
        "rows given": functools.partial(_given, chosen=chosen, count=count),
        "selected": functools.partial(jax.jit(selected, donate_argnums=0), scores=scores),
        "scored and selected": jax.jit(selected, donate_argnums=0),
        "sorted and masked": jax.jit(sorted_, donate_argnums=0),
    }
    return {name: lambda weights, f=function: f(weights, change) for name, function in jitted.items()}


@functools.partial(jax.jit, static_argnames="count", donate_argnums=0)
def _given(weights: jax.Array, change: jax.Array, chosen: jax.Array, count: int) -> jax.Array:
    return row_add(weights, change, chosen, RATE, count=count)


def check(change: jax.Array, calls: dict[str, Callable[[jax.Array], jax.Array]], count: int) -> None:
    """Whether every side returns what NumPy says.

    Raises:
      AssertionError: if one does not.
    """
    weights = np.asarray(jax.random.normal(jax.random.key(2), change.shape))
    moved = np.asarray(change)
    rows = np.zeros(len(moved), bool)
    rows[np.asarray(jax.lax.top_k(score(change), count)[1])] = True
    for name, call in calls.items():
        expected = weights + np.float32(RATE) * np.where((rows | (name == "dense"))[:, None], moved, 0)
        # One rounding of a sum of two numbers of order one, which may be fused.
        np.testing.assert_allclose(call(jnp.array(weights)), expected, rtol=1e-6, atol=1e-6, err_msg=name)


def main() -> None:
    parser = measure.arguments(__doc__.splitlines()[0], rounds=101)
    parser.add_argument("--rows", type=int, default=32768, help="R")
    parser.add_argument("--width", type=int, default=256, help="D")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the rows that is chosen")
    options = parser.parse_args()
    size, width = options.rows, options.width
    count = max(1, int(options.fraction * size))
    change = jax.random.normal(jax.random.key(1), (size, width))
    calls = sides(change, count)
    check(change, calls, count)
    weights = {name: jax.random.normal(jax.random.key(0), change.shape) for name in calls}

    def run(name: str) -> jax.Array:
        weights[name] = calls[name](weights[name])
        return weights[name]

    seconds = measure.interleave({name: lambda name=name: run(name) for name in calls}, options.rounds, "row_add")
    moved = {
        "dense": 4 * 3 * size * width,
        "rows given": 4 * 3 * count * width + size,
        "selected": 4 * 3 * count * width + 4 * size + size,
        "scored and selected": 4 * (size + 3 * count) * width + 4 * size + size,
        "sorted and masked": 4 * 4 * size * width + 4 * size + size,
    }
    claims = {"rows given": GIVEN, "scored and selected": SELECTED}
    rows, results = [], {}
    for name in calls:
        time, faster = measure.summary(seconds[name]), measure.ratios(seconds["dense"], seconds[name])
        share, claim = moved[name] / moved["dense"], claims.get(name)
        holds = (
            ""
            if claim is None
            else f"≥ {claim:g}, ≤ {BYTES:.0%}  " + ("holds" if faster.median >= claim and share <= BYTES else "MISSED")
        )
        rows.append([name, time.format(1e3, 2), faster.format(digits=2), f"{moved[name] / 1e6:.1f}", f"{share:.0%}", holds])
        results[name] = {
            "seconds": time._asdict(),
            "dense_over_this": faster._asdict(),
            "bytes": moved[name],
            "claim": claim,
        }
    measure.report(
        f"Consolidation of {count} of {size} rows, D {width}, float32, {jax.devices()[0].device_kind}",
        ["form", "ms", "dense ÷ this", "MB that move", "of dense", "claims"],
        rows,
        '"sorted and masked" is what row_topk did before: a sort of the scores, and zeros added to the other rows.',
    )
    measure.write_json(options.json, {"config": vars(options) | {"json": None}, "results": results})


if __name__ == "__main__":
    main()
