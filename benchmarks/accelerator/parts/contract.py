"""Every kernel on the device, compiled, against plain NumPy or the same in float64: values, gradients and states.

On a machine without an accelerator kernels run in Pallas' interpreter, which their rows say. Products of float32 are made in float32
here, not in the shorter numbers that a GPU or TPU may take for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.kernels import fast_weight_scan, row_add
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Stretch
from bdh_jax.kernels.row_add import pallas_gpu, pallas_tpu
from bdh_jax.kernels.token_step import flush, project, read, step
from bdh_jax.kernels.token_step.arguments import Recent
from bdh_jax.layers.largest import largest
from benchmarks.accelerator import layer_token
from benchmarks.accelerator.part import Part, Work
from benchmarks.accelerator.timing import assert_alike

TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2}
"""Of values and states, relative to the largest: sums of thousands of products; in bfloat16 scores are rounded to 2⁻⁸."""
OF_GRADIENTS = {"float32": 1e-4, "bfloat16": 5e-2}
OF_ROWS = 1e-4
"""Of a token's reads in float32, with a norm between two of them."""
SCANS = ("recurrent", "chunked", "parallel")
RATES = {"learning_rate": 0.7, "decay": 0.95}


def run(work: Work) -> None:
    """Plain XLA first: after a kernel that spoils its context nothing else runs in this process."""
    platform = jax.default_backend()
    work.note(tolerances={"values": TOLERANCES, "gradients": OF_GRADIENTS, "rows": OF_ROWS})
    with jax.default_matmul_precision("highest"):
        for dtype in TOLERANCES:
            for form in SCANS:
                _scan(work, form, dtype, "odd")
                if form != "recurrent":
                    _scan(work, form, dtype, "attention")
                    _scan(work, form, dtype, "fast weights")
        work.attempt("token_step, slots and budgets", 8, lambda: _token_steps(work.tiny))
        work.attempt("row_add, which rows", 4, lambda: _largest(work.tiny))
        for dtype in ("float32", "bfloat16"):
            for label in ("odd", "published"):
                _rows(work, "xla", dtype, label)
        kernels = [platform] if platform in ("gpu", "tpu") else ["gpu", "tpu"]
        for kernel in kernels:
            for dtype in ("float32", "bfloat16") if kernel == "gpu" else ("float32",):
                for label in ("odd", "published"):
                    _rows(work, kernel, dtype, label)
                _one_token(work, kernel, dtype, "odd", 3, True)
                _one_token(work, kernel, dtype, "odd", 3, False)
                _one_token(work, kernel, dtype, "published", 1, True)
                _one_token(work, kernel, dtype, "published", 16, False)
        if platform != "gpu":
            for dtype in TOLERANCES:
                _scan(work, "pallas" if platform == "tpu" else "pallas_interpret", dtype, "odd")


def _say(kernel: str) -> str:
    """How a kernel runs."""
    return "compiled" if kernel in (jax.default_backend(), "xla") else "interpreted"


# The scan.


def _sizes(label: str, tiny: bool) -> tuple[int, int, int, int, int]:
    """B, H, T, N, D."""
    if tiny:
        return {"odd": (2, 2, 37, 50, 20), "attention": (1, 4, 32, 64, 32), "fast weights": (1, 1, 32, 256, 32)}[label]
    published = {"attention": (1, 4, 512, 8192, 256), "fast weights": (1, 1, 512, 32768, 256)}
    return ({"odd": (2, 2, 250, 500, 60)} | published)[label]


def _scan(work: Work, form: str, dtype: str, label: str) -> None:
    sizes = _sizes(label, work.tiny)
    how = "interpreted" if form == "pallas_interpret" else "compiled"
    check = _odd_scan if label == "odd" else _published_scan
    name = f"fast_weight_scan, {form.removesuffix('_interpret')}, {label}, {dtype}"
    work.attempt(name, 6, lambda: {"how": how, "B, H, T, N, D": list(sizes), **check(form, dtype, sizes)})


def _scan_arrays(dtype: str, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Query, key, value and state, as ``dtype`` holds them but for the state."""
    batch, heads, length, neurons, width = sizes
    rng = np.random.default_rng(0)

    def code() -> np.ndarray:
        return np.maximum(rng.standard_normal((batch, heads, length, neurons)) - 1, 0) / np.sqrt(neurons)

    arrays = [code(), code(), rng.standard_normal((batch, length, width))]
    arrays = [np.asarray(jnp.asarray(array, dtype).astype(jnp.float32)) for array in arrays]
    return [*arrays, rng.standard_normal((batch, heads, neurons, width)).astype(np.float32)]


def _odd_scan(form: str, dtype: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """With invalid tokens, new episodes and rates of each head; gradients of all arrays too."""
    batch, heads, length = sizes[:3]
    arrays, rng = _scan_arrays(dtype, sizes), np.random.default_rng(1)
    masks = {"valid": rng.random((batch, length)) < 0.8, "reset": rng.random((batch, length)) < 0.05}
    rates = {"learning_rate": np.linspace(0.4, 1, heads), "decay": np.linspace(0.9, 1, heads)}
    expected, state = _by_numpy(*arrays, **rates, **masks)
    seen = masks["valid"][:, None, :, None]

    def scan(form: str, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        given = {name: jnp.asarray(rate, arrays[3].dtype) for name, rate in rates.items()}
        found, state = fast_weight_scan(*arrays, **given, **masks, implementation=form, chunk_size=32)
        return jnp.where(seen, found, 0), state

    def number(form: str, *arrays: jax.Array) -> jax.Array:
        found, state = scan(form, *arrays)
        return jnp.sum(jnp.sin(found)) + jnp.sum(jnp.square(state))

    narrow = [jnp.asarray(array, dtype) for array in arrays[:3]] + [jnp.asarray(arrays[3])]
    found = jax.jit(lambda *arrays: scan(form, *arrays))(*narrow)
    error = assert_alike(found, (np.where(seen, expected, 0), state), TOLERANCES[dtype], "values and state")
    gradient = jax.jit(jax.grad(lambda *arrays: number(form, *arrays), (0, 1, 2, 3)))(*narrow)
    if jax.default_backend() == "tpu":
        return {"difference": error}
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in arrays]
        wanted = jax.device_get(jax.jit(jax.grad(lambda *a: number("recurrent", *a), (0, 1, 2, 3)))(*wide))
    of_gradients = assert_alike(gradient, wanted, OF_GRADIENTS[dtype], "gradients")
    return {"difference": error, "difference_of_gradients": of_gradients}


def _published_scan(form: str, dtype: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Against the form token by token, which the odd sizes hold to NumPy."""
    arrays = _scan_arrays(dtype, sizes)

    def scan(form: str, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return fast_weight_scan(*arrays, **RATES, implementation=form)

    narrow = [jnp.asarray(array, dtype) for array in arrays[:3]] + [jnp.asarray(arrays[3])]
    found = jax.jit(lambda *arrays: scan(form, *arrays))(*narrow)
    wanted = jax.jit(lambda *arrays: scan("recurrent", *arrays))(*map(jnp.asarray, arrays))
    return {"difference": assert_alike(found, wanted, TOLERANCES[dtype], "values and state")}


def _by_numpy(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    state: np.ndarray,
    *,
    learning_rate: np.ndarray,
    decay: np.ndarray,
    valid: np.ndarray,
    reset: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Token by token in float64."""
    query, key, value, state = (array.astype(np.float64) for array in (query, key, value, state))
    reads = []
    for t in range(query.shape[2]):
        state = np.where(reset[:, t, None, None, None], 0, state)
        reads.append(np.einsum("bhn,bhnd->bhd", query[:, :, t], state))
        write = np.einsum("bhn,bd->bhnd", key[:, :, t], value[:, t])
        after = decay[:, None, None] * state + learning_rate[:, None, None] * write
        state = np.where(valid[:, t, None, None, None], after, state)
    return np.stack(reads, axis=2), state


# One token.


def _token_steps(tiny: bool) -> dict[str, Any]:
    """Tokens through slots, which are written when they are full, with a budget that some tokens exceed; and the reads by themselves."""
    batch, heads, neurons, width, slots, length = (2, 2, 64, 32, 3, 8) if tiny else (3, 4, 2048, 256, 16, 40)
    rng, budget = np.random.default_rng(0), neurons // 4
    codes = rng.random((length, batch, heads, neurons))
    # Some tokens have twice as many active rows as the budget allows.
    share = np.where(rng.random(length) < 0.5, 0.05, 0.5)[:, None, None, None]
    codes = (np.where(codes < share, codes, 0) / np.sqrt(neurons)).astype(np.float32)
    values, matrix = rng.standard_normal((length, batch, width)), rng.standard_normal((batch, heads, neurons, width))
    values, matrix = values.astype(np.float32), matrix.astype(np.float32)

    @jax.jit
    def one(matrix: jax.Array, recent: Recent, code: jax.Array, value: jax.Array) -> Any:
        matrix, recent = jax.lax.cond(recent.used >= slots, lambda: flush(matrix, recent), lambda: (matrix, recent))
        token = Stretch(code[:, :, None], code[:, :, None], value[:, None, None])
        found, recent, over = step(token, matrix, recent, Dynamics(*RATES.values()), budget=budget)
        return found[:, :, 0], matrix, recent, over

    recent = Recent(
        jnp.zeros((batch, heads, slots, neurons)),
        jnp.zeros((batch, slots, width)),
        jnp.zeros((batch, heads, slots)),
        jnp.ones((batch, heads)),
        jnp.int32(0),
    )
    state, here, worst, exceeded = matrix.astype(np.float64), jnp.asarray(matrix), 0.0, 0
    for code, value in zip(codes, values, strict=True):
        found, here, recent, over = one(here, recent, code, value)
        worst = max(worst, assert_alike(found, np.einsum("bhn,bhnd->bhd", code, state), OF_ROWS, "reads"))
        state = RATES["decay"] * state + RATES["learning_rate"] * np.einsum("bhn,bd->bhnd", code, value)
        exceeded += int(jnp.sum(over))
    last, _ = jax.jit(flush)(here, recent)
    worst = max(worst, assert_alike(last, state, OF_ROWS, "the matrix, all written"))
    wanted = int(np.sum(np.sum(codes != 0, axis=(2, 3)) > budget))
    if not exceeded == wanted > 0:
        raise AssertionError(f"{exceeded} tokens are said to exceed the budget, and {wanted} do")
    shared = matrix[0]
    for at_most in (None, 1, budget, heads * neurons):
        found, _ = jax.jit(lambda code, budget=at_most: read(code, shared, budget, sum_heads=True))(codes[0])
        worst = max(worst, assert_alike(found, np.einsum("bhn,hnd->bd", codes[0], shared), OF_ROWS, "read"))
    x, active = values[0][:, None].repeat(heads, axis=1), codes[0] != 0
    for at_most in (1, budget, heads * neurons):
        found, _ = jax.jit(lambda x, active, budget=at_most: project(x, shared, active, budget))(x, active)
        wanted_rows = np.where(active, np.einsum("bhd,hnd->bhn", x, shared), 0)
        worst = max(worst, assert_alike(found, wanted_rows, OF_ROWS, "project"))
    return {"how": "compiled", "difference": worst, "over_budget": exceeded, "tokens": length * batch}


def _one_token(work: Work, kernel: str, dtype: str, label: str, batch: int, memory: bool) -> None:
    if work.tiny:
        sizes = (batch, 2, 26, 384) if label == "odd" else (batch, 2, 64, 128)
    else:
        sizes = (batch, 2, 300, 384) if label == "odd" else (batch, 4, 8192, 256)

    def check() -> dict[str, Any]:
        token, budgets = layer_token.make(sizes, 0.05, memory, dtype)
        wanted = _in_float64(layer_token.whole, token)
        figures: dict[str, Any] = {"how": _say(kernel), "B, H, N, D": list(sizes), "budgets": list(budgets)}
        for name, form in (
            ("rows gathered", layer_token.gathered(budgets)),
            ("kernel", layer_token.by_kernel(budgets, kernel)),
        ):
            figures[f"difference, {name}"] = assert_alike(jax.jit(form)(token), wanted, OF_ROWS, name)
        return figures

    name = f"token_step, kernel for {kernel}, {label}, batch {batch}, {dtype}" + ", S" * memory
    work.attempt(name, 5, check)


def _in_float64(function: Callable[[Any], Any], argument: Any) -> Any:
    """On the device, but for a TPU, which has none: there in float32."""
    with jax.enable_x64(jax.default_backend() != "tpu"):
        wide = jnp.float64 if jax.default_backend() != "tpu" else jnp.float32
        return jax.device_get(jax.jit(function)(jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), wide), argument)))


# Rows added in place.


def _rows(work: Work, form: str, dtype: str, label: str) -> None:
    """One addition is exact to a rounding, and rows that are not chosen keep every bit."""
    rows, width, count = (1001, 384, 37) if label == "odd" else (512, 128, 51) if work.tiny else (32768, 256, 3276)
    kernels = {"gpu": pallas_gpu, "tpu": pallas_tpu}

    def check() -> dict[str, Any]:
        rng = np.random.default_rng(0)
        weights, change = (jnp.asarray(rng.standard_normal((rows, width)), dtype) for _ in range(2))
        chosen = np.zeros(rows, bool)
        chosen[rng.permutation(rows)[:count]] = True
        index = jnp.asarray(np.append(np.flatnonzero(chosen), [rows, rows]), jnp.int32)
        before, moved = (np.asarray(array, np.float64) for array in (weights, change))
        if form == "xla":
            program = jax.jit(lambda w, f: row_add(w, f, jnp.asarray(chosen), 0.3, count=count), donate_argnums=0)
        else:
            interpret = _say(form) == "interpreted"
            program = jax.jit(lambda w, f: kernels[form].row_add(w, f, index, 0.3, interpret=interpret), donate_argnums=0)
        found = np.asarray(program(weights, change), np.float64)
        np.testing.assert_array_equal(found[~chosen], before[~chosen])
        rounding = {"float32": 2.0**-22, "bfloat16": 2.0**-6}[dtype]
        expected = before[chosen] + 0.3 * moved[chosen]
        return {"how": _say(form), "R, D, rows": [rows, width, count]} | {
            "difference": assert_alike(found[chosen], expected, rounding, "chosen rows")
        }

    work.attempt(f"row_add, {'XLA' if form == 'xla' else f'kernel for {form}'}, {label}, {dtype}", 4, check)


def _largest(tiny: bool) -> dict[str, Any]:
    rows = 512 if tiny else 32768
    scores = np.random.default_rng(0).standard_normal((3, rows)).astype(np.float32)
    scores[1] = np.round(scores[1], 1)  # many are equal
    count = rows // 10
    found = np.asarray(jax.jit(lambda scores: largest(scores, count))(scores))
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :count]
    wanted = np.zeros(scores.shape, bool)
    np.put_along_axis(wanted, order, True, axis=1)
    np.testing.assert_array_equal(found, wanted)
    return {"how": "compiled", "difference": 0.0}


PART = Part(place=0, minutes=1.4, least=30, run=run)
