"""A BDH that thinks: BDH where nothing thinks, R passes on a memory that stays as it is, and no token sees more than it should."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.fast_weights.masks import Masks
from bdh_jax.interop.huggingface import not_published
from bdh_jax.models.base import Inputs, Setup
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.latent import LatentConfig
from bdh_jax.models.token_step import TokenStepConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.compiled import apply, init

VOCAB, BATCH, LENGTH, ASKED = 9, 3, 8, 3
SHAPE = {"vocab_size": VOCAB, "n_layer": 2, "d_model": 8, "n_head": 2, "n_neurons": 16, "dropout": 0.0, "init_std": 0.4}
CONFIG = LatentConfig(**SHAPE, dtype="float64", fast=FastWeightConfig(decay=0.9), attention_decay=(0.9,), thinking=3)
AT_ONCE = dataclasses.replace(CONFIG, most_thinking=ASKED)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
VALID = RNG.random((BATCH, LENGTH)) < 0.8
RESET = RNG.random((BATCH, LENGTH)) < 0.15
ANY = RNG.random((BATCH, LENGTH)) < 0.6
LAST = np.broadcast_to(np.arange(LENGTH) < LENGTH - ASKED, TOKENS.shape)
"""Masks of what is written: anything, and all but the last tokens."""


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def slow():
    with jax.enable_x64(True):
        return init(CONFIG.build(), 0)


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-9)


def plain(config):
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(BDHConfig)}
    return BDHConfig(**shared | {"architecture": "bdh"})


@pytest.mark.parametrize("config", [dataclasses.replace(CONFIG, thinking=1), CONFIG], ids=["R = 1", "nothing thinks"])
def test_it_is_bdh_to_the_bit(slow, config):
    masks = {"valid": VALID, "reset": RESET, "write": ANY if config.thinking == 1 else None}
    if config.thinking > 1:
        config = dataclasses.replace(config, most_thinking=ASKED)
    ours, theirs = (apply(c.build(), slow, TOKENS, **masks) for c in (config, plain(config)))
    chex.assert_trees_all_equal(ours, theirs)


def thinking_by_hand(slow, masks):
    """Token by token, each pass a call of BDH's own layers on the state that the token found."""
    config, states, logits = plain(CONFIG), None, []
    model, parts = config.build(), config.make_architecture()
    setup = Setup("none", by_token=True)

    @jax.jit
    def token(tokens, fast, masks):
        after = model.apply({"params": slow}, tokens, fast, **masks._asdict()).fast
        found = fast if masks.reset is None else fast.reset(masks.reset[:, 0])
        x = parts.embed(slow, tokens)
        for number in range(CONFIG.thinking):
            again, _, _ = parts.layers(slow, Inputs(x, found, masks._replace(reset=None)), setup)
            x = again if number == 0 else jnp.where(masks.write[..., None], x, again)
        return parts.readout(slow, x), after

    fast = model.init_fast(BATCH)
    for t in range(LENGTH):
        here = jax.tree.map(lambda mask, t=t: mask[:, t : t + 1], masks)
        said, fast = token(TOKENS[:, t : t + 1], fast, here)
        logits.append(said)
        states = fast
    return np.concatenate(logits, axis=1), states


def test_each_pass_is_one_through_the_layers_on_the_state_that_the_token_found(slow):
    masks = Masks(VALID, RESET, ANY)
    logits, fast = thinking_by_hand(slow, masks)
    out = apply(CONFIG.build(), slow, TOKENS, **masks._asdict())
    close(np.where(VALID[..., None], out.logits, 0), np.where(VALID[..., None], logits, 0))
    close(out.fast, fast)
    once = apply(dataclasses.replace(CONFIG, thinking=1).build(), slow, TOKENS, **masks._asdict())
    thinks = VALID & ~ANY
    assert np.abs(once.logits - out.logits)[thinks].min(axis=-1).max() > 1e-3
    close(once.logits[VALID & ANY], out.logits[VALID & ANY])


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_thinking_at_once_is_thinking_token_by_token(slow, padded):
    valid = VALID if padded else np.ones_like(VALID)
    masks = {"valid": valid, "write": LAST}
    ours, theirs = (apply(config.build(), slow, TOKENS, **masks) for config in (AT_ONCE, CONFIG))
    close(np.where(valid[..., None], ours.logits, 0), np.where(valid[..., None], theirs.logits, 0))
    close(ours.fast, theirs.fast)


def test_a_row_that_cannot_think_at_once_says_so(slow):
    """A write behind a question in one row, more questions than may be in another; the third thinks."""
    write = np.array(LAST)
    write[0] = [1, 1, 1, 1, 1, 0, 1, 0]
    write[1] = [1, 1, 1, 0, 0, 0, 0, 1]
    with jax.debug_nans(False):
        logits = np.asarray(apply(AT_ONCE.build(), slow, TOKENS, write=write).logits)
    assert np.isnan(logits[:2][~write[:2]]).all()
    assert np.isfinite(logits[:2][write[:2]]).all()
    assert np.isfinite(logits[2]).all()


def test_the_memory_is_the_same_to_the_bit(slow):
    """After thinking as before it, in one call and in two, however long."""
    cut = LENGTH - ASKED
    context = apply(AT_ONCE.build(), slow, TOKENS[:, :cut]).fast
    frozen, left = np.zeros((BATCH, ASKED), bool), []
    for passes in (1, 3, 16):
        model = dataclasses.replace(AT_ONCE, thinking=passes).build()
        after = apply(model, slow, TOKENS[:, cut:], context, write=frozen)
        np.testing.assert_array_equal(after.fast.attention, context.attention)
        np.testing.assert_array_equal(after.fast.memory, context.memory)
        np.testing.assert_array_equal(after.fast.position, context.position + ASKED)
        whole = apply(model, slow, TOKENS, write=LAST)
        close(whole.logits[:, cut:], after.logits)
        left.append(whole.fast)
    for fast in left[1:]:
        chex.assert_trees_all_equal(fast, left[0])


def test_no_token_sees_the_future_and_no_question_another(slow):
    model = AT_ONCE.build()
    out = apply(model, slow, TOKENS, write=LAST).logits
    for t in (2, LENGTH - ASKED, LENGTH - 2):
        changed = TOKENS.copy()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        again = apply(model, slow, changed, write=LAST).logits
        np.testing.assert_array_equal(again[:, :t], out[:, :t])
        moved = np.abs(again - out).max(axis=-1) > 1e-6
        assert moved[:, t].all()
        assert moved[:, t + 1 :].all() if t < LENGTH - ASKED else not moved[:, t + 1 :].any()


def test_what_is_thought_has_a_gradient_to_what_was_read(slow):
    tokens = np.arange(LENGTH, dtype=np.int32)[None]

    def influence(thinking):
        model = dataclasses.replace(AT_ONCE, thinking=thinking).build()

        def last(table):
            return model.apply({"params": {**slow, "embed": table}}, tokens, write=LAST[:1]).logits[0, -1, 0]

        return jax.jit(jax.grad(last))(slow["embed"])

    thought, read = influence(3), influence(1)
    size = np.abs(thought).sum(axis=-1)
    assert (size[: LENGTH - ASKED] > 0).all()
    np.testing.assert_array_equal(size[LENGTH - ASKED : LENGTH - 1], 0)
    assert np.abs(thought - read).max() > 1e-3


def test_on_a_mesh_it_is_the_same(slow):
    """Heads and rows on devices of their own, thinking at once."""
    plain_model, spread = AT_ONCE.build(), AT_ONCE.build(make_mesh(MeshConfig(heads=2)))
    ours, theirs = (apply(model, slow, TOKENS, write=LAST) for model in (spread, plain_model))
    close(ours.logits, theirs.logits)
    close(jax.device_get(ours.fast), jax.device_get(theirs.fast))


def test_in_training_each_token_draws_how_often_it_thinks(slow):
    drawn = dataclasses.replace(AT_ONCE, thinking_drawn=True).build()
    said = jax.jit(
        lambda slow, key: (
            drawn.apply({"params": slow}, TOKENS, write=LAST, deterministic=False, rngs={"dropout": key}).logits
        )
    )(slow, jax.random.key(3))
    fixed = [
        apply(dataclasses.replace(AT_ONCE, thinking=passes).build(), slow, TOKENS, write=LAST).logits for passes in (1, 2, 3)
    ]
    is_of = np.stack([np.isclose(said, logits, atol=1e-9).all(axis=-1) for logits in fixed])
    asked = ~LAST
    assert (is_of[:, asked].sum(axis=0) == 1).all()
    assert (is_of[:, asked].sum(axis=1) > 0).all()
    close(apply(drawn, slow, TOKENS, write=LAST).logits, fixed[2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thinking": 0}, "thinking=0 must be at least 1"),
        ({"most_thinking": 0}, "most_thinking=0 must be at least 1, or None"),
        ({"thinking": 1, "thinking_drawn": True}, "thinking_drawn=True with thinking=1: there is one number to draw"),
        ({"dropout": 0.1}, "dropout=0.1 with thinking=3: there are masks for one pass.*set it to 0"),
        (
            {"token_step": TokenStepConfig(slots=2)},
            "token_step.slots=2 needs writes that can wait: thinking=3 .*set it to 0",
        ),
    ],
)
def test_what_cannot_run_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(CONFIG, **changes)


def test_time_that_is_split_is_refused():
    with pytest.raises(ConfigError, match=r"mesh.sequence=2 splits time, and model.thinking=3 reads the memory"):
        CONFIG.check_time({"sequence": 2})
    dataclasses.replace(CONFIG, thinking=1).check_time({"sequence": 2})


def test_the_published_layout_does_not_hold_it():
    published = BDHConfig(n_layer=1, d_model=8, n_neurons=32, fast=FastWeightConfig(enabled=False))
    assert not_published(published) is None
    shared = {field.name: getattr(published, field.name) for field in dataclasses.fields(BDHConfig)}
    thinks = LatentConfig(**shared | {"architecture": "latent", "dropout": 0.0})
    assert not_published(thinks) == "it is of the architecture 'latent'"


def test_passes_are_counted():
    once, more = (dataclasses.replace(AT_ONCE, thinking=passes) for passes in (1, 4))
    extra = more.multiply_adds_per_token(LENGTH) - once.multiply_adds_per_token(LENGTH)
    width, neurons = SHAPE["d_model"], SHAPE["n_neurons"]
    one_pass = 2 * (3 * width * neurons + 2 * (width + ASKED) * neurons)
    assert extra == -(-3 * ASKED * one_pass // LENGTH)
    assert once.multiply_adds_per_token(LENGTH) == plain(once).multiply_adds_per_token(LENGTH)
