"""Calls of one token whose writes wait in slots: what carries over from call to call, and what it costs. That values, states and
gradients are those of every other form is in ``tests/contract``."""

from __future__ import annotations

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.models import token_step
from bdh_jax.models.token_step import TokenStepConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests import processes

BATCH, LENGTH, VOCAB, EXACT = 2, 11, 18, 1e-10
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
VALID, RESET = RNG.random((BATCH, LENGTH)) < 0.7, np.zeros((BATCH, LENGTH), bool)
RESET[0, 3] = RESET[1, 8] = True
MASKS = {
    "none": {},
    "both": {"valid": VALID, "reset": RESET},
    "frozen": {"valid": VALID, "reset": RESET, "write": RNG.random((BATCH, LENGTH)) < 0.6},
}
# Each number of tokens is a program: few of them.
SPLITS = {"one by one": range(1, LENGTH), "in turn": [1, 4, 5, 6, 7, 8], "late": [3, 4, 5, 8], "at the end": [10]}
PLAIN = BDHConfig(
    vocab_size=VOCAB,
    n_layer=2,
    d_model=8,
    n_head=2,
    n_neurons=64,
    dropout=0.0,
    dtype="float64",
    fast=FastWeightConfig(learning_rate=0.7, decay=0.8, synapse=True),
)
BUDGETS = TokenStepConfig(slots=3, attention=29, encoder_v=37, decoder=23, memory=37)
"""Some tokens exceed them."""


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def stepping(settings=BUDGETS, config=PLAIN) -> BDH:
    return BDH(dataclasses.replace(config, token_step=settings))


def weights(model):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init_slow, jax.random.key(0))
    slow = {name: rng.normal(size=leaf.shape) for name, leaf in shapes.items()}
    return {"params": slow, "views": model.architecture.views(slow)}


class Reader:
    """A model and its weights, compiled once for each number of tokens."""

    def __init__(self, model):
        self.model, self.weights = model, weights(model)
        self._apply = jax.jit(lambda weights, *rest, **masks: model.apply(weights, *rest, **masks))
        self._mean = jax.jit(functools.partial(model.apply, state="mean"))

    def __call__(self, tokens, fast=None, **masks):
        return self._apply(self.weights, tokens, fast, **masks)

    def mean(self, tokens, fast):
        return self._mean(self.weights, tokens, fast)

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def collected(self, fast, names):
        """What the first token gives where each of ``names`` is asked for by itself."""
        return {name: self.model.apply(self.weights, TOKENS[:, :1], fast, collect=(name,)).collected[name] for name in names}

    def in_pieces(self, cuts, masks, fast=None):
        fast, logits = self.model.init_fast(BATCH) if fast is None else fast, []
        for start, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True):
            out = self(TOKENS[:, start:stop], fast, **{n: m[:, start:stop] for n, m in masks.items()})
            fast = out.fast
            logits.append(out.logits)
        return np.concatenate(logits, axis=1), fast


@pytest.fixture(scope="module")
def plain():
    with jax.enable_x64(True):
        return Reader(BDH(PLAIN))


@pytest.fixture(scope="module")
def reader():
    with jax.enable_x64(True):
        return Reader(stepping())


without_slots = jax.jit(token_step.without_slots)


def close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("cuts", SPLITS)
@pytest.mark.parametrize("masks", MASKS)
def test_any_split_into_calls_equals_one_call(plain, reader, masks, cuts):
    masks = MASKS[masks]
    out = plain(TOKENS, **masks)
    logits, fast = reader.in_pieces(SPLITS[cuts], masks)
    seen = masks.get("valid", np.ones((BATCH, LENGTH), bool))[..., None]
    close(np.where(seen, logits, 0), np.where(seen, out.logits, 0))
    close(without_slots(fast), out.fast)
    ones = sum(b - a == 1 for a, b in zip([0, *SPLITS[cuts]], [*SPLITS[cuts], LENGTH], strict=True))
    assert fast.token_steps.taken == ones


def test_what_a_state_says_of_itself_sees_what_waits(plain, reader):
    out = plain(TOKENS)
    _, fast = reader.in_pieces(SPLITS["one by one"], {})
    assert fast.layers[0].recent.used == fast.layers[1].memory.recent.used == 2
    assert np.abs(out.fast.memory - np.stack([layer.memory.written.S for layer in fast.layers])).max() > 0.1

    @jax.jit
    def said(fast):
        of_itself = {name: getattr(fast, name) for name in ("attention", "memory", "previous_address", "activity")}
        doubled, alone = (without_slots(other) for other in (fast.map_memory(lambda S: 2 * S), fast.only_memory()))
        return of_itself, fast.effective_memory(), doubled, alone, fast.map_memory(jnp.zeros_like)

    # What is put in the place of S has nothing waiting beside it.
    (*have, emptied), (*want, expected) = said(fast), said(out.fast)
    close(have, want)
    close(reader(TOKENS[:, :1], emptied).logits, plain(TOKENS[:, :1], expected).logits)
    mean = reader(TOKENS[:, :1], fast).fast, reader.mean(TOKENS[:, :1], fast).fast
    close(mean[1].memory[:, 0], np.mean(mean[0].memory, axis=1))


def test_examples_are_chosen_and_reset_with_what_waits(plain, reader):
    (_, fast), out = reader.in_pieces(SPLITS["one by one"], {}), plain(TOKENS)
    indices, where = jnp.array([1, 1, 0]), jnp.array([True, False])
    close(without_slots(fast.select(indices)), out.fast.select(indices))
    cleared = fast.reset(where)
    close(without_slots(cleared), out.fast.reset(where))
    close(reader(TOKENS[:, :1], cleared).logits, plain(TOKENS[:, :1], out.fast.reset(where)).logits)
    close(reader(TOKENS[:, :1], fast.reset()).logits, plain(TOKENS[:, :1]).logits)


def test_tokens_over_a_budget_are_counted(reader):
    _, fast = reader.in_pieces(SPLITS["one by one"], {})
    assert 0 < fast.token_steps.over_budget < fast.token_steps.taken == LENGTH
    roomy = Reader(stepping(TokenStepConfig(slots=3, attention=32, encoder_v=64, decoder=64, memory=64)))
    assert roomy.in_pieces(SPLITS["one by one"], {})[1].token_steps.over_budget == 0
    out = reader(TOKENS[:, :1], fast)
    np.testing.assert_array_equal(
        out.metrics["over_budget"] > 0, out.fast.token_steps.over_budget > fast.token_steps.over_budget
    )


def test_a_whole_gate_is_read_where_it_is_asked_for(plain, reader):
    fast = plain.model.init_fast(BATCH), reader.model.init_fast(BATCH)
    names = ("code", "gate", "address", "decoded", "read")
    found, expected = (side.collected(fast, names) for side, fast in zip((reader, plain), fast[::-1], strict=True))
    assert found.keys() == set(names)
    close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rule": "delta"},
            r"token_step.slots=3 needs writes that can wait: fast.rule='delta' writes what S does not hold yet",
        ),
        ({"rule": "mesa"}, "fast.rule='mesa'"),
        ({"clamp": 1.0}, "limits on S"),
        ({"scope": "shared"}, 'fast.scope="shared"'),
        ({"keep_gram": True}, "fast.keep_gram=True"),
    ],
)
def test_what_cannot_wait_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PLAIN, token_step=BUDGETS, fast=FastWeightConfig(**change))


def test_settings_out_of_range_are_refused():
    for settings, message in (
        ({"slots": -1}, "token_step.slots=-1 must be ≥ 0"),
        ({"slots": 2, "decoder": 0}, "token_step.decoder=0 must be at least 1"),
        ({"memory": 3}, "token_step.memory=3 needs token_step.slots of at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            TokenStepConfig(**settings)
    with pytest.raises(ConfigError, match="must be a TokenStepConfig"):
        dataclasses.replace(PLAIN, token_step=3)
    model = BDH(stepping().config, make_mesh(MeshConfig(data=2)))
    with pytest.raises(ConfigError, match="token_step.slots=3 runs on one device"):
        model.init_slow(jax.random.key(0))
    with pytest.raises(ValueError, match="is missing for this model configuration"):
        stepping().apply(weights(stepping()), TOKENS[:, :1], BDH(PLAIN).init_fast(BATCH))


def test_slots_are_an_eighth_of_the_state_at_the_published_size():
    config = BDHConfig()
    plain = jax.eval_shape(lambda: BDH(config).init_fast(1))
    slots = jax.eval_shape(lambda: BDH(dataclasses.replace(config, token_step=TokenStepConfig(slots=32))).init_fast(1))
    matrices = sum(4 * (layer.attention.size + layer.memory.written.S.size) for layer in plain.layers)
    assert plain.nbytes < slots.nbytes <= 1.15 * matrices


def test_a_step_copies_neither_state_nor_slots(monkeypatch):
    """Neither where all slots may have to be written nor where a budget may be exceeded. In a process of its own: the flags of these tests
    make another program."""
    monkeypatch.delenv("XLA_FLAGS")
    status, output, errors = processes.run_text("tests.models.one_token", "waiting")
    assert status == 0, errors
    waiting = json.loads(output)
    # A copy of the keys of one layer's S or ρ would add an eighth. Where the gate's encoder is read whole, a head of it is on its way.
    assert waiting["slots"] < 1.12
    assert waiting["slots and budgets"] < 0.2
