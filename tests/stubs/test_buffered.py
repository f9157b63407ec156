"""A state of W buffered writes: any split of a text into calls equals one call, and folding is a call of its own."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.parallel.axes import shardings
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.compiled import apply, init
from tests.stubs.buffered import BufferedConfig, flush

CONFIG = BufferedConfig(vocab_size=9, dtype="float64")
MODEL = CONFIG.build()
LENGTH, EXACT = 11, 1e-12
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 9, (2, LENGTH)).astype(np.int32)
VALID = RNG.random((2, LENGTH)) < 0.7
RESET = np.zeros((2, LENGTH), bool)
RESET[0, 3] = RESET[1, 8] = True
MASKS = {
    "none": {},
    "valid": {"valid": VALID},
    "reset": {"reset": RESET},
    "both": {"valid": VALID, "reset": RESET},
    "frozen": {"valid": VALID, "reset": RESET, "write": RNG.random((2, LENGTH)) < 0.6},
}
# Each number of tokens is a program: few of them.
SPLITS = [range(1, LENGTH), [1], [4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 7], [10]]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def slow():
    return init(MODEL, 0)


def run(cuts, masks, fast=None):
    """Logits and state of a text that is cut there. Slots are folded when all are in use."""
    fast, logits, used = MODEL.init_fast(2) if fast is None else fast, [], 0
    for start, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        if used == CONFIG.slots:
            fast, used = flush(fast), 0
        out = apply(MODEL, slow(), TOKENS[:, start:stop], fast, **{n: m[:, start:stop] for n, m in masks.items()})
        fast, used = out.fast, used + 1 if stop - start == 1 else 0
        logits.append(out.logits)
    return np.concatenate(logits, axis=1), fast


def close(a, b, tolerance=EXACT):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cuts", SPLITS, ids=lambda cuts: "-".join(map(str, cuts)))
@pytest.mark.parametrize("masks", MASKS)
def test_any_split_into_calls_equals_one_call(masks, cuts):
    expected, whole = run([], MASKS[masks])
    logits, fast = run(cuts, MASKS[masks])
    seen = MASKS[masks].get("valid", np.ones((2, LENGTH), bool))[..., None]
    close(np.where(seen, logits, 0), np.where(seen, expected, 0))
    for one, other in zip(fast.layers, whole.layers, strict=True):
        assert np.abs(other.effective()).max() > 0.1
        close(one.effective(), other.effective())
    np.testing.assert_array_equal(fast.position, whole.position)


def test_it_computes_what_it_should():
    """In NumPy: S ← λ S + code ⊗ x, and nothing of slots."""
    weights = {name: np.asarray(weight) for name, weight in slow().items()}

    def norm(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    logits, fast = run(range(1, LENGTH), MASKS["both"])
    for b in range(2):
        matrices = np.zeros((2, 2, 8, 6))
        for t in range(LENGTH):
            x = norm(weights["embed"][TOKENS[b, t]])
            for S in matrices:
                S *= not RESET[b, t]
                code = np.maximum(np.einsum("d,dhn->hn", x, weights["encoder"]), 0)
                read = np.einsum("hn,hnd->d", code, S)
                if VALID[b, t]:
                    S[:] = 0.9 * S + code[..., None] * x
                x = norm(x + read)
            if VALID[b, t]:
                close(logits[b, t], x @ weights["lm_head"], 1e-10)
        close(np.stack([layer.effective()[b] for layer in fast.layers]), matrices, 1e-10)


def test_slots_are_filled_and_folded():
    one_by_one = {"valid": np.array([[True] * 3, [True, False, True]])}
    fast = MODEL.init_fast(2)
    for t in range(3):
        fast = apply(MODEL, slow(), TOKENS[:, t : t + 1], fast, valid=one_by_one["valid"][:, t : t + 1]).fast
    layer = fast.layers[1]
    assert layer.used == 3
    close(layer.weight[:, :, 0], np.array([[0.81, 0.9, 1, 0], [0.9, 0, 1, 0]]))
    np.testing.assert_array_equal(layer.S, 0)
    before, fast = layer.effective(), jax.tree.map(jnp.copy, fast)  # which nothing else holds
    given = fast.layers[1].S
    flush.clear_cache()
    with jax.debug_nans(False):  # which keeps what is given up
        after = flush(fast).layers[1]
    assert given.is_deleted()
    assert after.used == 0
    np.testing.assert_array_equal(after.weight, 0)
    close(after.S, before)


def test_choosing_and_resetting_examples_follow_from_the_declaration():
    _, fast = run([8, 9, 10], {})
    chosen, cleared = fast.select(jnp.array([1, 1, 0])), fast.reset(jnp.array([True, False]))
    layer = cleared.layers[0]
    assert layer.used == fast.layers[0].used == 3
    for array in (layer.scale[0], layer.weight[0], layer.S[0]):
        np.testing.assert_array_equal(array, 0)
    close(layer.effective()[1], fast.layers[0].effective()[1])
    close(chosen.layers[1].effective(), fast.layers[1].effective()[jnp.array([1, 1, 0])])
    # A new episode goes on in the slots that are left.
    out = apply(MODEL, slow(), TOKENS[:, :1], cleared)
    fresh = apply(MODEL, slow(), TOKENS[:, :1], MODEL.init_fast(2))
    close(out.logits[0], fresh.logits[0])
    close(out.fast.layers[1].effective()[0], fresh.fast.layers[1].effective()[0])


def test_its_axes_lay_it_on_a_mesh():
    declared = shardings(MODEL.declared_fast(4), make_mesh(MeshConfig(data=2)))
    assert tuple(declared.layers[0].used.spec) == ()
    assert tuple(declared.layers[0].key.spec) == ("data", None, None, None)
