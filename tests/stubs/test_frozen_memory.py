"""Frozen memory: extra steps that read and count but do not write, as thinking without remembering would take."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastState, FastWeightConfig
from bdh_jax.models.gpt import GPTConfig
from tests.compiled import apply, init

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 8)).astype(np.int32)
STEPS = 3


@functools.partial(jax.jit, static_argnums=(0, 4))
def think(model: BDH, slow: dict, token: jax.Array, fast: FastState, steps: int) -> tuple[jax.Array, FastState]:
    """``steps`` more steps with frozen memory, each of which reads what the one before found most likely.

    Returns the last logits [B, V] and the state.
    """

    def step(carry, _):
        token, fast = carry
        out = model.apply({"params": slow}, token[:, None], fast, write=jnp.zeros((len(token), 1), bool))
        return (jnp.argmax(out.logits[:, 0], axis=-1).astype(token.dtype), out.fast), out.logits[:, 0]

    (_, fast), logits = jax.lax.scan(step, (token, fast), length=steps)
    return logits[-1], fast


def make(rule="hebbian", **settings):
    fast = FastWeightConfig(rule=rule, address="previous", **settings.pop("fast", {}))
    config = BDHConfig(vocab_size=11, n_layer=2, d_model=8, n_head=2, n_neurons=16, dropout=0.0, init_std=0.4, fast=fast)
    model = BDH(dataclasses.replace(config, dtype="float64", attention_decay=(0.9,), chunk_size=4, **settings))
    return model, init(model, 0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("hebbian", {}),
        ("hebbian", {"fast": {"scope": "shared"}}),
        ("delta", {"fast": {"keep_gram": False}}),
        ("mesa", {}),
        ("hebbian", {"fast": {"keep_gram": True}}),
    ],
    ids=["hebbian", "shared", "delta", "mesa", "gram"],
)
def test_what_was_written_is_bit_identical_after_extra_steps(rule, settings):
    model, slow = make(rule, **settings)
    before = apply(model, slow, TOKENS).fast
    logits, after = think(model, slow, jnp.asarray(TOKENS[:, -1]), before, STEPS)
    np.testing.assert_array_equal(after.attention, before.attention)
    np.testing.assert_array_equal(after.memory, before.memory)
    if before.gram is not None:
        np.testing.assert_array_equal(after.gram, before.gram)
    np.testing.assert_array_equal(after.position, before.position + STEPS)
    np.testing.assert_array_equal(after.count, before.count + STEPS)
    # They read, and the address of the last one is what the next write goes to.
    assert np.abs(after.previous_address - before.previous_address).max() > 1e-3
    np.testing.assert_array_equal(after.activity.energy, before.activity.energy)
    assert (after.activity.strength >= before.activity.strength).all()
    assert np.isfinite(logits).all()


def test_without_the_mask_they_would_write():
    model, slow = make()
    before = apply(model, slow, TOKENS).fast
    after = apply(model, slow, TOKENS[:, :STEPS], before).fast
    assert np.abs(after.memory - before.memory).max() > 1e-3
    assert np.abs(after.attention - before.attention).max() > 1e-3


WRITE = np.random.default_rng(3).random((2, 8)) < 0.5


def test_frozen_tokens_leave_only_their_place():
    """Token by token with the matrices put back by hand where a token is frozen: all that such a token changes is beside S and ρ."""
    model, slow = make(fast={"decay": 0.8})
    out = apply(model, slow, TOKENS, write=jnp.asarray(WRITE)).fast
    fast = model.init_fast(2)
    for t in range(TOKENS.shape[1]):
        new = apply(model, slow, TOKENS[:, t : t + 1], fast).fast
        frozen = ~WRITE[:, t].reshape(2, 1, 1, 1)
        layers = tuple(
            n.replace(
                attention=jnp.where(frozen, o.attention, n.attention),
                memory=jax.tree.map(lambda a, b, frozen=frozen: jnp.where(frozen, a, b), o.memory, n.memory),
            )
            for o, n in zip(fast.layers, new.layers, strict=True)
        )
        fast = new.replace(layers=layers)
    np.testing.assert_allclose(out.memory, fast.memory, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(out.attention, fast.attention, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(out.position, fast.position)


@pytest.mark.parametrize("implementation", [pytest.param("chunked", marks=pytest.mark.full), "parallel"])
@pytest.mark.parametrize("rule", ["hebbian", pytest.param("delta", marks=pytest.mark.full)])
def test_forms_agree_on_frozen_tokens_among_others(rule, implementation):
    outs = [
        apply(model, slow, TOKENS, write=jnp.asarray(WRITE))
        for model, slow in (make(rule, implementation=form) for form in ("recurrent", implementation))
    ]
    np.testing.assert_allclose(outs[1].logits, outs[0].logits, rtol=1e-9, atol=1e-9)
    chex.assert_trees_all_close(outs[1].fast, outs[0].fast, rtol=1e-9, atol=1e-9)


def test_a_model_that_attends_does_not_see_what_was_not_written():
    """Changing a frozen token of a GPT changes what is said at that token, and nothing else."""
    model = GPTConfig(vocab_size=11, n_layer=2, d_model=16, n_head=2, dropout=0.0, init_std=0.3, dtype="float64").build()
    slow, write = init(model, 0), jnp.ones((2, 8), bool).at[:, 3].set(False)
    other = TOKENS.copy()
    other[:, 3] = (other[:, 3] + 1) % 11
    before, after = (apply(model, slow, tokens, write=write, state="none").logits for tokens in (TOKENS, other))
    np.testing.assert_array_equal(np.delete(before, 3, axis=1), np.delete(after, 3, axis=1))
    assert np.abs(before - after)[:, 3].max() > 1e-3
    written = apply(model, slow, other, state="none").logits - apply(model, slow, TOKENS, state="none").logits
    assert np.abs(written[:, 4:]).max() > 1e-3
