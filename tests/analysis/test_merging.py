"""Merged models are the function that they are made of, and grown models the one that they grew from."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.analysis.merging import MODES, grow, merge, merge_states
from bdh_jax.config import ConfigError
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.models.tiny_bdh import TinyBDHConfig
from tests.compiled import apply, init
from tests.reference_model import run as reference

SIZES = {"vocab_size": 16, "n_layer": 2, "d_model": 8, "n_head": 2, "n_neurons": 24, "dropout": 0.0, "init_std": 0.3}
OFF = FastWeightConfig(enabled=False)
SETTINGS = {
    "plain": {},
    "sparse": {"code_top_k": 5},
    "shift": {"attention": "shift"},
    "damped": {"attention_decay": (0.9, 0.99), "learn_attention_decay": True},
    "write-back": {"fast": FastWeightConfig(synapse=True)},
    "delta": {"fast": FastWeightConfig(synapse=True, rule="delta", address="current", address_source="gate")},
    "winners": {"fast": FastWeightConfig(address_norm="kwta", address_active=4, learn_decay=True, scope="shared")},
}
CHEAP = {("plain", "neurons"), ("plain", "heads"), ("plain", "average"), ("write-back", "neurons"), ("winners", "heads")}
"""What is asked at every commit; the rest nightly."""
TOLERANCE = 1e-12
"""Of logits in float64, whose size is about 1."""


@pytest.fixture
def doubles():
    with jax.enable_x64(True):
        yield


def made(seed=0, dtype="float64", **settings):
    config = BDHConfig(**{**SIZES, "fast": OFF, "dtype": dtype, **settings})
    slow = init(config.build(), seed)
    if "synapse" in slow:
        slow["synapse"] = jax.random.normal(jax.random.key(7), slow["synapse"].shape, slow["synapse"].dtype)
    return config, slow


def tokens(length=12):
    return jax.random.randint(jax.random.key(1), (2, length), 0, SIZES["vocab_size"], jnp.int32)


def logits(model, given=None, fast=None):
    config, slow = model
    return apply(config.build(), slow, tokens() if given is None else given, fast)


def distance(a, b):
    return float(jnp.max(jnp.abs(a.logits - b.logits)))


@pytest.mark.parametrize(
    ("setting", "mode"),
    [
        pytest.param(setting, mode, marks=[] if (setting, mode) in CHEAP else pytest.mark.full)
        for setting in SETTINGS
        for mode in MODES
    ],
)
def test_a_model_merged_with_itself_is_the_same_function(setting, mode, doubles):
    model = made(**SETTINGS[setting])
    merged = merge([model] * 3, mode)
    assert merged[0].n_neurons == (1 if mode == "average" else 3) * model[0].n_neurons
    assert distance(logits(model), logits(merged)) < TOLERANCE
    # So that the tolerance says something.
    other = merge([model, made(1, **SETTINGS[setting])], mode)
    assert distance(logits(model), logits(other)) > 1e-2


@pytest.mark.parametrize("along", ["neurons", "heads"])
@pytest.mark.parametrize("setting", ["write-back", "shift"])
def test_a_merged_state_goes_on(setting, along, doubles):
    model = made(**SETTINGS[setting])
    before = logits(model)
    merged = merge([model] * 2, along)
    state = merge_states([model[0]] * 2, [before.carried] * 2, along)
    assert distance(logits(model, fast=before.carried), logits(merged, fast=state)) < TOLERANCE
    assert distance(logits(model), logits(merged, fast=state)) > 1e-3


def test_states_of_other_lengths_do_not_become_one(doubles):
    model = made()
    states = [logits(model, tokens(length)).carried for length in (3, 4)]
    with pytest.raises(ConfigError, match=r"the states differ in position \(\[3 3\], \[4 4\]\)"):
        merge_states([model[0]] * 2, states)


@pytest.mark.parametrize("mode", ["neurons", "heads"])
def test_neurons_keep_their_weights_and_the_rest_is_the_mean(mode):
    first, second = (made(seed, "float32") for seed in (0, 1))
    config, slow = merge([first, second], mode)
    np.testing.assert_allclose(slow["embed"], (first[1]["embed"] + second[1]["embed"]) / 2, rtol=1e-6)
    old = second[1]["encoder_v"]
    there = slow["encoder_v"][:, :, 12:] if mode == "neurons" else slow["encoder_v"][2:]
    np.testing.assert_array_equal(there, old)
    assert (config.n_head, config.neurons_per_head) == ((2, 24) if mode == "neurons" else (4, 12))
    again = merge([(config, slow), first], mode)[0] if mode == "heads" else merge([first, (config, slow)], mode)[0]
    assert again.n_neurons == 72


def test_neurons_of_the_second_model_keep_their_phases(doubles):
    """The merged model with the first one's encoder at zero reads by the second's attention alone."""
    first, second = made(), made(1)
    config, slow = merge([first, second])
    assert config.rope_period == 12
    slow |= {"embed": second[1]["embed"], "lm_head": second[1]["lm_head"], "encoder": slow["encoder"].at[:, :, :12].set(0)}
    # The factor of the scores that LN's epsilon sees.
    alone = {**second[1], "encoder": second[1]["encoder"] / np.sqrt(2), "decoder": second[1]["decoder"] / np.sqrt(2)}
    assert distance(logits((second[0], alone)), logits((config, slow))) < TOLERANCE
    other = dataclasses.replace(config, rope_period=None)
    assert distance(logits((second[0], alone)), logits((other, slow))) > 1e-2


def test_a_rotary_period_is_what_the_reference_makes_of_it(doubles):
    config, slow = merge([made(), made(1)])
    expected = reference(config, jax.tree.map(np.asarray, slow), np.asarray(tokens()))[0]
    np.testing.assert_allclose(logits((config, slow)).logits, expected, atol=1e-10)


def test_a_period_of_all_neurons_is_none_to_the_bit():
    model = made(dtype="float32")
    same = dataclasses.replace(model[0], rope_period=model[0].neurons_per_head)
    np.testing.assert_array_equal(logits(model).logits, logits((same, model[1])).logits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_new_heads_change_nothing_to_the_bit_and_can_learn(dtype, doubles):
    model = made(dtype=dtype)
    wider = grow(*model, 48, jax.random.key(3))
    assert (wider[0].n_head, wider[0].n_neurons) == (4, 48)
    np.testing.assert_array_equal(logits(model).logits, logits(wider).logits)

    def loss(slow):
        return jnp.sum(jnp.square(logits((wider[0], slow)).logits))

    gradient = jax.grad(loss)(wider[1])
    assert float(jnp.max(jnp.abs(gradient["decoder"][2:]))) > 0
    # Once the decoder reads them, all weights of the new neurons learn.
    gradient = jax.grad(loss)({**wider[1], "decoder": wider[1]["decoder"] + 0.1})
    assert float(jnp.max(jnp.abs(gradient["encoder"][:, 2:]))) > 0
    assert float(jnp.max(jnp.abs(gradient["encoder_v"][2:]))) > 0


def test_new_neurons_of_a_head_leave_the_phases_of_the_old_ones(doubles):
    """With silent new neurons the model is the old one to the bit; without a period all old ones would turn at other speeds."""
    model = made()
    config, slow = grow(*model, 48, jax.random.key(3), "neurons")
    assert (config.rope_period, config.neurons_per_head) == (12, 24)
    assert distance(logits(model), logits((config, slow))) > 1e-3, "they take part in the attention at once"
    silent = {**slow, "encoder": slow["encoder"].at[:, :, 12:].set(0)}
    np.testing.assert_array_equal(logits(model).logits, logits((config, silent)).logits)
    naive = dataclasses.replace(config, rope_period=None)
    assert distance(logits(model), logits((naive, silent))) > 1e-2


@pytest.mark.parametrize(
    ("models", "mode", "message"),
    [
        ([{}], "neurons", "1 model is none to merge"),
        ([{}, {"d_model": 16}], "neurons", "model 1 has d_model=8 and model 2 d_model=16"),
        ([{}, {"n_neurons": 48}], "average", "model 1 has n_neurons=24 and model 2 n_neurons=48"),
        ([{}, {"n_neurons": 48}], "neurons", "rotary periods of 12, 24 in heads of 12, 24 neurons"),
        ([{}, {"n_neurons": 48}], "heads", "heads of 12, 24 neurons cannot stand side by side"),
        ([{"fast": FastWeightConfig(address_norm="sum")}] * 2, "neurons", "fast.address_norm='sum'"),
        ([{"fast": FastWeightConfig(clamp=1.0)}] * 2, "neurons", "limits on S"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(models, mode, message):
    with pytest.raises(ConfigError, match=message):
        merge([made(dtype="float32", **settings) for settings in models], mode)


def test_models_without_neurons_side_by_side_are_refused_by_name():
    gpt = GPTConfig(vocab_size=16, n_layer=1, d_model=8, n_head=2, dropout=0.0)
    model = gpt, init(gpt.build(), 0)
    with pytest.raises(ConfigError, match="models of the architecture 'gpt' cannot be put side by side"):
        merge([model] * 2)
    with pytest.raises(ConfigError, match="a model of the architecture 'gpt' cannot grow"):
        grow(*model, 64, jax.random.key(0))
    with pytest.raises(ConfigError, match="model 1 has the architecture 'gpt' and model 2 'bdh'"):
        merge([model, made(dtype="float32")], "average")
    tiny = TinyBDHConfig()
    with pytest.raises(ConfigError, match="'tiny_bdh'"):
        merge([(tiny, init(tiny.build(), 0))] * 2, "heads")
    mean = merge([model, (gpt, init(gpt.build(), 1))], "average")
    assert mean[0] == gpt


@pytest.mark.parametrize(
    ("settings", "n_neurons", "message"),
    [
        ({}, 24, "must be more than the 24"),
        ({}, 30, "no multiple of the 12 neurons of a head; use 36"),
        ({"fast": FastWeightConfig()}, 48, "fast.enabled=True"),
        ({"code_top_k": 4}, 48, "code_top_k=4"),
        ({"attention_decay": (0.9, 0.8)}, 48, "a number for each head"),
    ],
)
def test_what_cannot_grow_is_refused_by_name(settings, n_neurons, message):
    with pytest.raises(ConfigError, match=message):
        grow(*made(dtype="float32", **settings), n_neurons, jax.random.key(0))


@pytest.mark.parametrize("period", [0, 3, -2])
def test_a_rotary_period_is_a_number_of_pairs(period):
    with pytest.raises(ConfigError, match=f"rope_period={period} must be an even number"):
        BDHConfig(rope_period=period)
