"""Models that carry a state and are not BDH: causal, the same in any split into calls, each example and episode for itself."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.generation.sampling import Sampling, generate, prefill
from bdh_jax.models.attention import AttentionConfig
from bdh_jax.models.gated_deltanet import GatedDeltaNetConfig
from bdh_jax.models.gla import GLAConfig
from bdh_jax.models.gru import GRUConfig
from bdh_jax.models.mamba2 import Mamba2Config
from bdh_jax.models.tiny_bdh import TinyBDHConfig
from tests.compiled import apply, init

VOCAB, BATCH, LENGTH = 9, 3, 10
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
VALID = RNG.random((BATCH, LENGTH)) < 0.8
RESET = RNG.random((BATCH, LENGTH)) < 0.15
WRITE = RNG.random((BATCH, LENGTH)) < 0.7
# Float64: sums of a hundred terms, through a dozen tokens that each amplify what came before.
EXACT = 1e-11


def tiny(**changes):
    settings = {
        "vocab_size": VOCAB,
        "n_layer": 2,
        "n_neurons": 8,
        "d_model": 4,
        "interface": "tokens",
        "address_norm": "l2",
        "residual": True,
        "forget": 0.1,
        "learning_rate": 0.7,
        "init_std": 0.6,
        "init_std_outside": 1.0,
        "dtype": "float64",
    }
    return TinyBDHConfig(**settings | changes)


MIXER = {"vocab_size": VOCAB, "n_layer": 1, "d_model": 8, "dtype": "float64", "init_std": 0.7, "tied": False}
NO_LIMITS = {"clamp": None, "threshold": None, "row_norm": None}
LIMITS = {"clamp": 0.5, "threshold": 0.02, "row_norm": 0.8}
CONFIGS = {
    "mapped": tiny(address="mapped", **NO_LIMITS),
    "previous, token by token": tiny(address="previous", implementation="recurrent", **NO_LIMITS),
    "limits": tiny(address="previous", **LIMITS),
    "gru": GRUConfig(vocab_size=VOCAB, n_layer=2, d_model=6, dtype="float64", init_std=1.0),
    "attention": AttentionConfig(**MIXER | {"n_layer": 2}, window=LENGTH),
    "attention, short window": AttentionConfig(**MIXER | {"n_layer": 3}, window=3, gated_convolution=2, rope_theta=None),
    "gla": GLAConfig(**MIXER, d_key=3, d_value=4, gate_rank=2, d_ff=5),
    "gla, gated convolution": GLAConfig(**MIXER | {"n_layer": 2}, d_key=3, d_value=4, conv_size=0, gated_convolution=3),
    "gated deltanet": GatedDeltaNetConfig(**MIXER, d_key=4, d_value=3, conv_size=2),
    "gated deltanet, token by token": GatedDeltaNetConfig(**MIXER, d_key=4, d_value=3, implementation="recurrent"),
    "mamba2": Mamba2Config(**MIXER, d_state=5, d_head=4, conv_size=3),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


_DEAR = {"previous, token by token", "attention, short window", "gla, gated convolution", "gated deltanet, token by token"}


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.full] if name in _DEAR else []) for name in CONFIGS], scope="module"
)
def model(request):
    return CONFIGS[request.param].build()


@pytest.fixture(scope="module")
def slow(model):
    with jax.enable_x64(True):
        slow = init(model, 0)
        if "synapse" in slow:  # what consolidation left there is read as well
            slow = {**slow, "synapse": 0.3 * jax.random.normal(jax.random.key(5), slow["synapse"].shape)}
    return slow


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=EXACT, atol=EXACT)


def seen(logits, valid=VALID):
    return np.where(valid[..., None], logits, 0)


def test_later_tokens_change_nothing_before_them(model, slow):
    out = apply(model, slow, TOKENS, valid=VALID, reset=RESET)
    for t in (1, 5, LENGTH - 1):
        changed = TOKENS.copy()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        again = apply(model, slow, changed, valid=VALID, reset=RESET)
        np.testing.assert_array_equal(again.logits[:, :t], out.logits[:, :t])
        assert np.abs(again.logits[:, t:] - out.logits[:, t:]).max() > 1e-3


def test_any_split_into_calls_is_one_call(model, slow):
    masks = {"valid": VALID, "reset": RESET, "write": WRITE}
    whole = apply(model, slow, TOKENS, **masks)
    for cuts in ([4], list(range(1, LENGTH))):
        fast, logits = None, []
        for start, end in zip([0, *cuts], [*cuts, LENGTH], strict=True):
            part = apply(model, slow, TOKENS[:, start:end], fast, **{k: m[:, start:end] for k, m in masks.items()})
            fast = part.fast
            logits.append(part.logits)
        close(seen(np.concatenate(logits, axis=1)), seen(whole.logits))
        close(fast, whole.fast)


def test_a_reset_begins_an_episode_and_padding_is_nothing(model, slow):
    reset = np.zeros((BATCH, LENGTH), bool)
    reset[:, 6] = True
    packed = apply(model, slow, TOKENS, reset=reset)
    alone = apply(model, slow, TOKENS[:, 6:])
    close(packed.logits[:, 6:], alone.logits)
    close(packed.fast, alone.fast)
    assert np.abs(packed.logits[:, 6:] - apply(model, slow, TOKENS).logits[:, 6:]).max() > 1e-3
    padded, valid = np.zeros((BATCH, 2 * LENGTH), np.int32), np.zeros((BATCH, 2 * LENGTH), bool)
    padded[:, 1::2], valid[:, 1::2] = TOKENS, True
    out, plain = apply(model, slow, padded, valid=valid), apply(model, slow, TOKENS)
    close(out.logits[:, 1::2], plain.logits)
    close(out.fast, plain.fast)


def test_examples_do_not_see_each_other(model, slow):
    out, order = apply(model, slow, TOKENS), [2, 0, 1]
    other = apply(model, slow, np.concatenate([TOKENS[:1], (TOKENS[1:] + 1) % VOCAB]))
    np.testing.assert_array_equal(other.logits[0], out.logits[0])
    swapped = apply(model, slow, TOKENS[order])
    close(swapped.logits, out.logits[np.array(order)])
    close(swapped.fast, out.fast.select(jnp.array(order)))


def test_a_token_that_does_not_write_reads_and_leaves_the_memory(model, slow):
    start = apply(model, slow, TOKENS).fast
    frozen = apply(model, slow, TOKENS[:, :1], start, write=np.zeros((BATCH, 1), bool))
    close(frozen.logits, apply(model, slow, TOKENS[:, :1], start).logits)
    # Of tiny-BDH how much the rows were used still counts.
    before, after = ([getattr(layer, "memory", layer) for layer in fast.layers] for fast in (start, frozen.fast))
    chex.assert_trees_all_equal(after, before)
    assert frozen.fast.position.tolist() == [LENGTH + 1] * BATCH


def test_the_memory_has_a_gradient_from_the_future_to_the_past_alone(model, slow):
    def logits(table):
        embed = "embed" if "embed" in slow else "r_in"
        return model.apply({"params": {**slow, embed: table}}, np.arange(VOCAB, dtype=np.int32)[None]).logits[0]

    table = slow["embed" if "embed" in slow else "r_in"]
    influence = np.abs(jax.jit(jax.jacobian(lambda table: logits(table).sum(axis=-1)))(table)).sum(axis=-1)
    np.testing.assert_array_equal(influence[np.triu_indices(VOCAB, 1)], 0)
    assert (influence[np.tril_indices(VOCAB, -1)] > 0).mean() > 0.8


@pytest.mark.parametrize("name", ["gru", "attention", "gated deltanet", pytest.param("mapped", marks=pytest.mark.full)])
def test_it_generates_from_the_state_that_it_carries(name):
    """Greedily: every token is the most likely one after all before it, as one call over the whole text says."""
    with jax.enable_x64(False):
        model = dataclasses.replace(CONFIGS[name], dtype="float32").build()
        slow, prompts = init(model, 3), [[1, 2, 3, 4], [5, 6, 7, 8]]
        steps = generate(model, slow, prefill(model, slow, prompts), max_tokens=3, sampling=Sampling(temperature=0.0))
        text = np.concatenate([np.array(prompts, np.int32), np.array(list(steps), np.int32).T], axis=1)
        np.testing.assert_array_equal(apply(model, slow, text).logits[:, 3:-1].argmax(axis=-1), text[:, 4:])
