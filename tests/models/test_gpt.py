"""The baseline sees the past only, one document only, and is as large as it is said to be."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.models.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=11, n_layer=2, d_model=16, n_head=2, dropout=0.0, init_std=0.3, dtype="float64")
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 11, (2, 12)).astype(np.int32)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _slow(config=CONFIG):
    return jax.jit(GPT(config).init)(jax.random.key(0), jnp.asarray(TOKENS))["params"]


def _logits(slow, tokens, config=CONFIG, **masks):
    return np.asarray(jax.jit(lambda s, t: GPT(config).apply({"params": s}, t, **masks).logits)(slow, tokens))


def test_it_reads_the_past_only():
    slow, changed = _slow(), TOKENS.copy()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    before, after = _logits(slow, TOKENS), _logits(slow, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (np.abs(before - after)[:, 7:].max(axis=-1) > 1e-6).all()


def test_a_reset_hides_what_was_before_and_counts_positions_anew():
    slow = _slow()
    reset = np.zeros(TOKENS.shape, bool)
    reset[:, 5] = True
    packed = _logits(slow, TOKENS, reset=jnp.asarray(reset))
    # Softmax over a masked row is that over the row without what is masked, up to rounding in float64.
    np.testing.assert_allclose(packed[:, 5:], _logits(slow, TOKENS[:, 5:]), atol=1e-12)
    np.testing.assert_allclose(packed[:, :5], _logits(slow, TOKENS[:, :5]), atol=1e-12)
    assert np.abs(packed[:, 5:] - _logits(slow, TOKENS)[:, 5:]).max() > 1e-3


def test_padding_changes_nothing():
    slow = _slow()
    padded = np.concatenate([RNG.integers(0, 11, (2, 3)).astype(np.int32), TOKENS], axis=1)
    valid = np.ones(padded.shape, bool)
    valid[:, :3] = False
    np.testing.assert_allclose(_logits(slow, padded, valid=jnp.asarray(valid))[:, 3:], _logits(slow, TOKENS), atol=1e-12)
    assert np.isfinite(_logits(slow, padded, valid=jnp.asarray(valid))).all()


def test_recomputing_layers_changes_no_gradient():
    slow = _slow()

    def gradient(config):
        def loss(slow):
            out = GPT(config).apply({"params": slow}, TOKENS, deterministic=False, rngs={"dropout": jax.random.key(1)})
            return jnp.sum(jnp.square(out.logits))

        return jax.jit(jax.grad(loss))(slow)

    config = dataclasses.replace(CONFIG, dropout=0.2)
    # The same operations in another order of fusion.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        gradient(config),
        gradient(dataclasses.replace(config, remat=True)),
    )


def test_parameters_are_twelve_times_width_squared_a_layer():
    slow = _slow()
    matrices = sum(leaf.size for leaf in jax.tree.leaves(slow) if leaf.ndim == 2)
    assert matrices == 12 * 2 * 16**2 + 2 * 11 * 16


def test_what_it_lacks_is_said():
    with pytest.raises(ValueError, match='state="mean" is the batch mean of the fast weights, and this model has none'):
        GPT(CONFIG).apply({"params": _slow()}, TOKENS, state="mean")
    with pytest.raises(ValueError, match="a GPT keeps no state from call to call"):
        GPT(CONFIG).init_fast(2)
    with pytest.raises(ValueError, match="keeps no state from call to call; leave it out"):
        GPT(CONFIG).apply({"params": _slow()}, TOKENS, BDH(BDHConfig()).declared_fast(2))
    assert jax.eval_shape(lambda slow: GPT(CONFIG).apply({"params": slow}, TOKENS), _slow()).fast is None
    with pytest.raises(ConfigError, match="d_model=10 is not divisible by 2 · n_head=4"):
        GPTConfig(d_model=10, n_head=2)
    with jax.enable_x64(False), pytest.raises(ConfigError, match="needs JAX's 64-bit mode"):
        GPT(CONFIG).init(jax.random.key(0), jnp.asarray(TOKENS))
