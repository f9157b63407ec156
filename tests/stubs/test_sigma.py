"""A state without a batch axis: computed right, left alone by select and reset, saved and loaded."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.generation import GenerationState, StateError, load_state, save_state
from bdh_jax.parallel.axes import specs
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.compiled import apply, init
from tests.stubs.sigma import SigmaConfig

MODEL = SigmaConfig(vocab_size=7).build()
TOKENS = np.random.default_rng(0).integers(0, 7, (3, 6)).astype(np.int32)
WRITE = np.random.default_rng(1).random((3, 6)) < 0.6


@pytest.fixture(scope="module")
def slow():
    return init(MODEL, 0)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_it_computes_what_it_should(slow):
    """Layer by layer and token by token in NumPy."""
    embed, encoder, decoder, lm_head = (np.asarray(slow[n], np.float64) for n in ("embed", "encoder", "decoder", "lm_head"))
    x, expected = norm(embed[TOKENS]), []
    for _ in range(2):
        sigma, after = np.zeros((8, 8)), []
        for t in range(6):
            y = np.maximum(x[:, t] @ encoder, 0)
            after.append(norm(x[:, t] + y @ sigma @ decoder))
            sigma = 0.9 * sigma + sum(np.outer(y[b], y[b]) for b in range(3) if WRITE[b, t]) / 3
        x = np.stack(after, axis=1)
        expected.append(sigma)
    out = apply(MODEL, slow, TOKENS, write=jnp.asarray(WRITE))
    np.testing.assert_allclose(out.logits, x @ lm_head, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([layer.sigma for layer in out.fast.layers], expected, rtol=1e-4, atol=1e-4)


def test_a_split_into_calls_equals_one_call(slow):
    whole = apply(MODEL, slow, TOKENS)
    first = apply(MODEL, slow, TOKENS[:, :1])
    second = apply(MODEL, slow, TOKENS[:, 1:], first.fast)
    np.testing.assert_allclose(second.logits, whole.logits[:, 1:], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(second.fast, whole.fast, rtol=1e-5, atol=1e-6)


def test_select_and_reset_leave_it_alone(slow):
    fast = apply(MODEL, slow, TOKENS).fast
    chosen, cleared = fast.select(jnp.array([2, 0])), fast.reset(jnp.array([True, False, False]))
    assert np.abs(fast.layers[0].sigma).max() > 0.1
    for state in (chosen, cleared):
        chex.assert_trees_all_equal(state.layers, fast.layers)
    assert chosen.position.tolist() == [6, 6]
    assert cleared.position.tolist() == [0, 6, 6]
    assert fast.batch_size == 3
    assert fast.nbytes == 2 * 8 * 8 * 4 + 3 * 4
    # A batch of another size goes on with it.
    assert apply(MODEL, slow, TOKENS[:2], chosen).logits.shape == (2, 6, 7)


def test_it_is_whole_on_every_device_of_a_mesh():
    mesh = make_mesh(MeshConfig(data=2))
    found = specs(MODEL.declared_fast(4), mesh)
    assert [len(found.layers[0].sigma), set(found.layers[0].sigma)] == [2, {None}]
    assert tuple(found.position) == ("data",)


def test_it_is_saved_and_loaded(slow, tmp_path):
    out = apply(MODEL, slow, TOKENS)
    save_state(tmp_path / "state.safetensors", GenerationState(out.fast, out.logits[:, -1]), MODEL, slow)
    back = load_state(tmp_path / "state.safetensors", MODEL, slow)
    chex.assert_trees_all_equal(back.fast, out.fast)
    with pytest.raises(StateError, match="decay was 0.9 there and is 0.5 here"):
        load_state(tmp_path / "state.safetensors", SigmaConfig(vocab_size=7, decay=0.5).build(), slow)
