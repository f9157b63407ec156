"""The operation by itself: every form against a loop in NumPy, gradients against finite differences of that loop.

``tests/contract`` holds the model to the same; here are what the model does not use (merged heads, other widths, a chunk size
of any length) and the messages.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.fast_weights.rules import scan_rule
from bdh_jax.kernels import fast_weight_scan
from bdh_jax.kernels.fast_weight_scan.dispatch import choose_form

FORMS = ("recurrent", "chunked", "parallel", "pallas_interpret")
SHAPE = B, H = 2, 3
T, N, D = 10, 4, 5
# Sums of up to T·N = 5,000 float64 terms, twice.
TOLERANCE = np.sqrt(5000) * 2.0**-52 * 100

VARIANTS = {
    "plain": {"state": False, "learning_rate": 1.0, "decay": 1.0},
    "attention with a state": {"state": True, "learning_rate": 1.0, "decay": 1.0},
    "scalars": {"state": True, "learning_rate": 0.3, "decay": 0.9},
    "per head": {"state": True, "learning_rate": "head", "decay": "head", "valid": True, "reset": True},
    "one rate per head": {"state": False, "learning_rate": 0.5, "decay": "head", "valid": True},
    "resets": {"state": True, "learning_rate": "head", "decay": 0.8, "reset": True},
    "one head of one example": {
        "state": True,
        "learning_rate": 0.5,
        "decay": "head",
        "valid": True,
        "reset": True,
        "shape": (1, 1),
    },
    "one head": {"state": True, "learning_rate": "head", "decay": 0.8, "valid": True, "shape": (2, 1)},
    "one example": {"state": False, "learning_rate": 0.5, "decay": 0.8, "reset": True, "shape": (1, 3)},
    # The Pallas kernel works on at least 16 tokens and 128 neurons at a time.
    "long and wide": {"state": True, "learning_rate": 0.5, "decay": "head", "valid": True, "reset": True, "size": (37, 133)},
}


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


def inputs(variant):
    rng = np.random.default_rng(0)
    batch, heads = variant.get("shape", SHAPE)
    length, neurons = variant.get("size", (T, N))
    rates = {}
    for name in ("learning_rate", "decay"):
        rates[name] = rng.uniform(0.5, 0.95, heads) if variant[name] == "head" else np.asarray(variant[name])
    arrays = {
        "query": rng.normal(size=(batch, heads, length, neurons)),
        "key": rng.normal(size=(batch, heads, length, neurons)),
        "value": rng.normal(size=(batch, length, D)),
        "state": rng.normal(size=(batch, heads, neurons, D)) if variant["state"] else None,
    }
    masks = {
        "valid": rng.random((batch, length)) < 0.7 if "valid" in variant else None,
        "reset": rng.random((batch, length)) < 3 / length if "reset" in variant else None,
    }
    return arrays, rates, masks


def loop(arrays, rates, masks):
    """Read, then write, one example, head and token after the other."""
    *shape, length, neurons = arrays["query"].shape
    rate, decay = (np.broadcast_to(rates[name], shape[1]) for name in ("learning_rate", "decay"))
    start = np.zeros((*shape, neurons, D)) if arrays["state"] is None else arrays["state"]
    read, final = np.zeros((*shape, length, D)), np.zeros((*shape, neurons, D))
    for b, h in np.ndindex(*shape):
        state = start[b, h]
        for t in range(length):
            if masks["reset"] is not None and masks["reset"][b, t]:
                state = np.zeros_like(state)
            read[b, h, t] = arrays["query"][b, h, t] @ state
            if masks["valid"] is None or masks["valid"][b, t]:
                state = decay[h] * state + rate[h] * np.outer(arrays["key"][b, h, t], arrays["value"][b, t])
        final[b, h] = state
    return read, final


def scan(arrays, rates, masks, **options):
    """The operation, compiled. A rate that is a number stays one, since 1.0 takes a shorter way."""
    options = {"chunk_size": 4} | {name: float(rate) for name, rate in rates.items() if np.ndim(rate) == 0} | options
    rates = {name: rate for name, rate in rates.items() if np.ndim(rate)}
    return jax.jit(lambda arrays, rates, masks: fast_weight_scan(**arrays, **rates, **masks, **options))(
        arrays, rates, masks
    )


def gradient_of(arrays, rates, numbers, masks, weights, form):
    """Values, and gradients of a random mixture of them by every array."""

    def mixture(arrays, rates):
        read, final = fast_weight_scan(**arrays, **rates, **numbers, **masks, implementation=form, chunk_size=4)
        return jnp.sum(read * weights[0]) + jnp.sum(final * weights[1]), (read, final)

    return jax.value_and_grad(mixture, argnums=(0, 1), has_aux=True)(arrays, rates)


TITLES = {
    # Token by token nothing is shorter for one head or one example, or tiled.
    "recurrent": ("plain", "scalars", "per head", "one rate per head"),
    "chunked": VARIANTS,
    "parallel": VARIANTS,
    # tests/kernels/test_pallas.py holds the kernel to the chunked form with and without masks and a state.
    "pallas_interpret": ("plain", "one rate per head", "one head of one example", "one example", "long and wide"),
}


IN_THE_CONTRACT = ("one head", "one example")
"""Which tests/contract has in every form, each with its gradients; here in the parallel form only."""


def _cases():
    for form, titles in TITLES.items():
        for title in titles:
            repeated = title in IN_THE_CONTRACT and form != "parallel"
            yield pytest.param(form, title, marks=[pytest.mark.full] if repeated else [], id=f"{form}-{title}")


@pytest.mark.parametrize(("form", "title"), [*_cases()])
def test_values_and_gradients(form, title):
    variant = VARIANTS[title]
    arrays, rates, masks = inputs(variant)
    rng, (*shape, length, neurons) = np.random.default_rng(1), arrays["query"].shape
    weights = rng.normal(size=(*shape, length, D)), rng.normal(size=(*shape, neurons, D))
    numbers = {name: float(rate) for name, rate in rates.items() if rate.ndim == 0}
    learned = {name: rate for name, rate in rates.items() if rate.ndim}
    run = jax.jit(lambda arrays, learned: gradient_of(arrays, learned, numbers, masks, weights, form))
    (_, (read, final)), gradient = run(arrays, learned)
    expected = loop(arrays, rates, masks)
    for have, want in zip((read, final), expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE * np.abs(want).max())

    # Central differences of a polynomial of low degree: the rounding error, 1e-16 · |mixture| / step, is what remains.
    step = 1e-5

    def mixture(arrays, rates):
        return sum(np.sum(out * weight) for out, weight in zip(loop(arrays, rates, masks), weights, strict=True))

    for group, have in zip((arrays, learned), gradient, strict=True):
        for name, array in group.items():
            if array is None:
                continue
            direction = rng.normal(size=array.shape)
            changes = ({name: array + step * direction}, {name: array - step * direction})
            sides = [mixture({**arrays, **change}, {**rates, **change}) for change in changes]
            slope = (sides[0] - sides[1]) / (2 * step)
            assert abs(np.sum(np.asarray(have[name]) * direction) - slope) < 1e-7 * np.linalg.norm(have[name]) + 1e-8, name


@pytest.mark.parametrize("form", FORMS)
def test_merged_heads_sum_their_reads(form):
    """[B, T, K] inputs are H equal parts of K when rates are per head, and one head otherwise."""
    for variant in (VARIANTS["per head"], VARIANTS["scalars"]):
        arrays, rates, masks = inputs(variant)
        read, final = loop(arrays, rates, masks)
        merged = {
            "query": np.swapaxes(arrays["query"], 1, 2).reshape(B, T, H * N),
            "key": np.swapaxes(arrays["key"], 1, 2).reshape(B, T, H * N),
            "value": arrays["value"],
            "state": arrays["state"].reshape(B, H * N, D),
        }
        got = scan(merged, rates, masks, implementation=form)
        for have, want in zip(got, (read.sum(axis=1), final.reshape(B, H * N, D)), strict=True):
            np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
    # The same of unmerged heads, with the rates of the last.
    got = scan(arrays, rates, masks, implementation=form, sum_heads=True)
    for have, want in zip(got, (read.sum(axis=1), final), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


@pytest.mark.parametrize("chunk_size", [1, 5, 64])
@pytest.mark.parametrize("form", ["chunked", "pallas_interpret"])
def test_any_chunk_size(form, chunk_size):
    arrays, rates, masks = inputs(VARIANTS["per head"])
    got = scan(arrays, rates, masks, implementation=form, chunk_size=chunk_size)
    for have, want in zip(got, loop(arrays, rates, masks), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_final_mean_and_none(form, state):
    arrays, rates, masks = inputs({**VARIANTS["per head"], "state": state})
    read, final = loop(arrays, rates, masks)
    (with_mean, mean), (with_none, none) = (
        scan(arrays, rates, masks, implementation=form, final=kind) for kind in ("mean", "none")
    )
    for have in (with_mean, with_none):
        np.testing.assert_allclose(have, read, rtol=0, atol=TOLERANCE * np.abs(read).max())
    np.testing.assert_allclose(mean, final.mean(axis=0, keepdims=True), rtol=0, atol=TOLERANCE * np.abs(final).max())
    assert none is None


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_inputs_give_float32_results(form):
    """Every product of bfloat16 numbers is exact in float32, but scores and scaled keys are rounded: 2⁻⁸ each."""
    arrays, rates, masks = inputs(VARIANTS["scalars"])
    half = {name: jnp.asarray(arrays[name], jnp.bfloat16) for name in ("query", "key", "value")}
    state = jnp.asarray(arrays["state"], jnp.float32)
    read, final = scan({**half, "state": state}, rates, masks, implementation=form)
    assert read.dtype == final.dtype == jnp.float32
    rounded = {name: np.asarray(array, np.float64) for name, array in half.items()} | {
        "state": np.asarray(state, np.float64)
    }
    for have, want in zip((read, final), loop(rounded, rates, masks), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=4 * 2.0**-8 * np.abs(want).max())


@pytest.mark.parametrize("form", FORMS)
def test_a_bfloat16_state_is_widened(form):
    arrays = {name: jnp.ones(shape, jnp.bfloat16) for name, shape in {"query": (1, 1, 2, 4), "key": (1, 1, 2, 4)}.items()}
    arrays |= {"value": jnp.ones((1, 2, 3), jnp.bfloat16), "state": jnp.ones((1, 1, 4, 3), jnp.bfloat16)}
    read, final = jax.eval_shape(functools.partial(fast_weight_scan, implementation=form), **arrays)
    assert read.dtype == final.dtype == jnp.float32


def test_auto_is_the_cheapest_form():
    assert choose_form(1, 64, 16) == "recurrent"
    assert choose_form(128, 64, 16) == "parallel"
    assert choose_form(129, 64, 16) == "chunked"
    assert choose_form(129, 64, 256) == "parallel"
    arrays, rates, masks = inputs(VARIANTS["scalars"])
    read, final = scan(arrays, rates, masks)
    for have, want in zip((read, final), loop(arrays, rates, masks), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


def sizes_of(function, *arguments) -> list[int]:
    """Sizes of all intermediate arrays of a program, those of its loops included."""

    def inside(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    yield from inside(inner)

    return list(inside(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.parametrize(
    ("form", "final", "allowed", "forbidden"),
    [
        ("parallel", "none", "scores", "one S"),
        ("parallel", "mean", "one S", "S of each example"),
        ("parallel", "full", "S of each example", "S at each token"),
        ("chunked", "full", "S of each example", "S at each token"),
    ],
)
def test_no_array_is_larger_than_it_must_be(form, final, allowed, forbidden):
    """No S at each token, no S of each example for the mean, and none at all where none is asked for; nor in the gradient."""
    batch, heads, length, neurons, width = 2, 3, 5, 23, 29
    size = {"scores": batch * heads * length * width, "one S": heads * neurons * width}
    size |= {"S of each example": batch * size["one S"], "S at each token": length * size["one S"]}
    assert size[allowed] < size[forbidden]
    arrays = [jnp.ones((batch, heads, length, neurons))] * 2 + [jnp.ones((batch, length, width))]
    masks = {"valid": jnp.ones((batch, length), bool), "reset": jnp.zeros((batch, length), bool)}
    decay = jnp.full(heads, 0.9)

    def run(*arrays):
        return fast_weight_scan(*arrays, decay=decay, **masks, implementation=form, chunk_size=2, final=final)

    def number(*arrays):
        return sum(jnp.sum(out) for out in run(*arrays) if out is not None)

    for program in (run, jax.grad(number, argnums=(0, 1, 2))):
        assert size[allowed] <= max(sizes_of(program, *arrays)) < size[forbidden]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": np.zeros((B, H, T, N + 1))}, r"query \(2, 3, 10, 4\) and key \(2, 3, 10, 5\)"),
        ({"value": np.zeros((B, T + 1, D))}, r"value has shape \(2, 11, 5\).*must be \[2, 10, D\]"),
        ({"state": np.zeros((B, H, N, D + 1))}, r"state has shape \(2, 3, 4, 6\).*must be \(2, 3, 4, 5\)"),
        ({"valid": np.ones((B, T - 1), bool)}, r"valid has shape \(2, 9\)"),
        ({"valid": np.ones((B, T))}, "valid has shape.*float64; it must be bool"),
        ({"reset": np.ones((B + 1, T), bool)}, r"reset has shape \(3, 10\)"),
        ({"decay": np.ones(H + 1)}, r"decay has shape \(4,\).*one rate per head \[3\]"),
        ({"learning_rate": np.ones((H, 1))}, r"learning_rate has shape \(3, 1\)"),
        ({"final": "sum"}, "final='sum' is not one of"),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"implementation": "fastest"}, "implementation='fastest' is not one of 'auto', 'recurrent'"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arrays, _, _ = inputs(VARIANTS["scalars"])
    with pytest.raises(ValueError, match=message):
        fast_weight_scan(**{**arrays, **change})


def test_an_explicit_form_that_cannot_run_here_is_an_error():
    arrays, _, _ = inputs(VARIANTS["plain"])
    with pytest.raises(ConfigError, match="pallas"):
        fast_weight_scan(**arrays, implementation="pallas")


def general_loop(arrays, learning_rate, decay, masks):
    """As the loop above, with rates for each example, head, token and row, and values for each head."""
    query, key, value = (np.asarray(arrays[name]) for name in ("query", "key", "value"))
    batch, heads, length, neurons = query.shape
    full = (batch, heads, length, neurons)
    rate, kept = (np.broadcast_to(array, full) for array in (learning_rate, decay))
    read, state = np.zeros((batch, heads, length, value.shape[-1])), np.array(arrays["state"])
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                if masks["reset"] is not None and masks["reset"][b, t]:
                    state[b, h] = 0
                read[b, h, t] = query[b, h, t] @ state[b, h]
                if masks["valid"] is None or masks["valid"][b, t]:
                    x = value[b, h, t] if value.ndim == 4 else value[b, t]
                    state[b, h] = kept[b, h, t][:, None] * state[b, h] + np.outer(rate[b, h, t] * key[b, h, t], x)
    return read, state


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("shape", "forms"),
    [
        ((B, H, T, 1), ("recurrent", "chunked", "parallel")),  # for each token of each head
        ((B, 1, T, 1), ("recurrent", "chunked", "parallel")),  # for each token
        ((1, H, 1, N), ("recurrent",)),  # for each row
        ((B, H, T, N), ("recurrent",)),  # for all that there is
    ],
)
def test_rates_of_tokens_and_rows(shape, forms, masked):
    rng = np.random.default_rng(1)
    arrays, _, masks = inputs({"learning_rate": 1.0, "decay": 1.0, "state": True, "valid": True, "reset": True})
    masks = masks if masked else {"valid": None, "reset": None}
    rates = {"learning_rate": rng.uniform(0.2, 1.5, shape), "decay": rng.uniform(0.5, 1, shape)}
    expected = general_loop(arrays, **rates, masks=masks)
    for form in forms:
        for sum_heads in (False, True):
            run = functools.partial(fast_weight_scan, implementation=form, chunk_size=3, sum_heads=sum_heads)
            read, state = jax.jit(run)(*arrays.values(), **rates, **masks)
            want = expected[0].sum(axis=1) if sum_heads else expected[0]
            np.testing.assert_allclose(read, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
            np.testing.assert_allclose(state, expected[1], rtol=0, atol=TOLERANCE * np.abs(expected[1]).max())


@pytest.mark.parametrize("shape", [(B, H, T, 1), (B, 1, T, 1)])
def test_rates_of_tokens_of_a_rule_that_predicts_what_it_writes(shape):
    rng = np.random.default_rng(1)
    arrays, _, masks = inputs({"learning_rate": 1.0, "decay": 1.0, "state": True, "valid": True, "reset": True})
    arrays["key"] = arrays["key"] / np.linalg.norm(arrays["key"], axis=(1, 3), keepdims=True)
    rates = {"learning_rate": rng.uniform(0.2, 1, shape), "decay": rng.uniform(0.5, 1, shape)}
    found = {}
    for form in ("recurrent", "chunked", "parallel"):
        run = functools.partial(fast_weight_scan, implementation=form, chunk_size=3, rule=scan_rule("delta"))
        found[form] = jax.jit(run)(*arrays.values(), **rates, **masks)
    for form in ("chunked", "parallel"):
        for one, expected in zip(found[form], found["recurrent"], strict=True):
            np.testing.assert_allclose(one, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel"])
def test_values_of_heads(form):
    rng = np.random.default_rng(2)
    arrays, _, masks = inputs({"learning_rate": 1.0, "decay": 1.0, "state": True, "valid": True, "reset": True})
    arrays["value"] = rng.normal(size=(B, H, T, D))
    expected = general_loop(arrays, 0.5, 0.9, masks)
    for sum_heads in (False, True):
        run = functools.partial(fast_weight_scan, implementation=form, chunk_size=3, sum_heads=sum_heads)
        read, state = jax.jit(run)(*arrays.values(), learning_rate=0.5, decay=0.9, **masks)
        want = expected[0].sum(axis=1) if sum_heads else expected[0]
        np.testing.assert_allclose(read, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
        np.testing.assert_allclose(state, expected[1], rtol=0, atol=TOLERANCE * np.abs(expected[1]).max())


def test_what_only_some_forms_have_is_refused_by_the_others():
    arrays, _, _ = inputs({"learning_rate": 1.0, "decay": 1.0, "state": True})
    by_row, by_token = np.full((1, H, 1, N), 0.9), np.full((B, 1, T, 1), 0.9)
    of_heads = {**arrays, "value": np.zeros((B, H, T, D))}
    for given, options, message in (
        (arrays, {"decay": by_row, "implementation": "chunked"}, "no decay for each row"),
        (arrays, {"decay": by_token, "implementation": "pallas_interpret"}, "cannot take a decay for each token"),
        (of_heads, {"implementation": "pallas_interpret"}, "cannot take values for each head"),
    ):
        with pytest.raises(ConfigError, match=message):
            fast_weight_scan(*given.values(), **options)
    read, _ = fast_weight_scan(*arrays.values(), decay=by_row)  # "auto" takes the form that there is
    assert read.shape == (B, H, T, D)
    with pytest.raises(
        ValueError, match=r"decay has shape \(2, 3\).*it must be a scalar, one rate per head \[3\], or \[B or 1"
    ):
        fast_weight_scan(*arrays.values(), decay=np.ones((2, 3)))
