"""A mixture is causal whatever its experts are, carries what they need, and says of a token what is routed where."""

from __future__ import annotations

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import from_config_dict, rebuild, to_config_dict, to_dict
from bdh_jax.config.options import Options
from bdh_jax.fast_weights.masks import Masks
from bdh_jax.generation.sampling import Sampling, generate, prefill
from bdh_jax.layers.norm import layer_norm
from bdh_jax.models.base import Inputs, Setup
from bdh_jax.models.mixture import MixtureConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.compiled import apply, init
from tests.contract.causality import moved_by_later_tokens

VOCAB, LENGTH = 11, 8
BDH = Options(n_head=2, n_neurons=16, init_std=0.4, fast=Options(address="previous"))
CONFIG = MixtureConfig(
    vocab_size=VOCAB,
    n_layer=2,
    d_model=8,
    experts=Options(bdh=BDH, gpt=Options(n_head=1, init_std=0.4), wide=Options(architecture="gpt", n_head=2, init_std=0.4)),
    context=3,
    writes="routed",
    init_std=0.5,
    dtype="float64",
)
MODEL = CONFIG.build()
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH)).astype(np.int32)
NOTHING = Setup("none")
VALID = np.array([[0, 1, 1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 1, 0, 1, 1]], bool)
RESET = np.array([[0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]], bool)
ONE = dataclasses.replace(CONFIG, n_layer=1).build()
TWO = dataclasses.replace(CONFIG, experts=Options({name: CONFIG.experts[name] for name in ("bdh", "gpt")}))


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def slow(_float64):
    return init(MODEL, 1)


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-9)


def of_two(slow):
    """The weights without those of the third expert."""
    return {**{n: slow[n] for n in ("embed", "lm_head", "bdh", "gpt")}, "router": slow["router"][..., :2]}


def one_layer(slow):
    """Those of the first layer."""
    return {**slow, "router": slow["router"][:1], **{n: {"layer0": slow[n]["layer0"]} for n in ("gpt", "wide")}}


def test_every_expert_gets_some_tokens_here(slow):
    """Otherwise what follows says nothing of it."""
    route = np.asarray(apply(MODEL, slow, TOKENS, collect=("route",)).collected["route"])
    assert route.shape == (2, 2, LENGTH, 3)
    np.testing.assert_array_equal((route > 0).sum(-1), 1)
    assert ((route > 0).mean((0, 1, 2)) > 0.1).all()


@pytest.mark.parametrize("top_k", [1, pytest.param(2, marks=pytest.mark.full)])
@pytest.mark.parametrize("writes", ["routed", pytest.param("all", marks=pytest.mark.full)])
def test_later_tokens_move_nothing(slow, top_k, writes):
    model = dataclasses.replace(CONFIG, top_k=top_k, writes=writes).build()
    assert moved_by_later_tokens(lambda tokens: apply(model, slow, tokens, state="none").logits, TOKENS, VOCAB) == 0


@pytest.mark.parametrize("masks", [(np.ones_like(VALID), np.zeros_like(RESET)), (VALID, RESET)], ids=["none", "both"])
def test_any_split_into_calls_gives_the_same(slow, masks):
    """Segments of three tokens end within and between calls; single tokens go another way through BDH."""
    model, slow, (valid, reset) = TWO.build(), of_two(slow), masks
    whole = apply(model, slow, TOKENS, valid=valid, reset=reset)
    for cuts in ([5], range(1, LENGTH)):
        fast, pieces = model.init_fast(2), []
        for start, stop in itertools.pairwise([0, *cuts, LENGTH]):
            part = slice(start, stop)
            out = apply(model, slow, TOKENS[:, part], fast, valid=valid[:, part], reset=reset[:, part])
            fast = out.fast
            pieces.append(out.logits)
        close(np.where(valid[..., None], np.concatenate(pieces, axis=1), 0), np.where(valid[..., None], whole.logits, 0))
        close(fast, whole.fast)


def test_an_attention_begins_anew_with_each_segment(slow):
    experts = Options({n: o for n, o in CONFIG.experts.items() if n != "bdh"})
    gpts = dataclasses.replace(CONFIG, n_layer=1, experts=experts)
    weights = {name: slow[name] for name in ("embed", "lm_head")} | {n: one_layer(slow)[n] for n in ("gpt", "wide")}
    weights["router"] = slow["router"][:1, :, 1:]
    other = TOKENS.copy()
    other[:, :3] = (other[:, :3] + 1) % VOCAB
    a, b = (apply(gpts.build(), weights, tokens, state="none").logits for tokens in (TOKENS, other))
    np.testing.assert_array_equal(a[:, 3:], b[:, 3:])
    longer = dataclasses.replace(gpts, context=LENGTH).build()
    a, b = (apply(longer, weights, tokens, state="none").logits for tokens in (TOKENS, other))
    assert (np.abs(a - b)[:, 3:].max(-1) > 1e-6).any(axis=1).all()


def test_padding_and_other_examples_change_nothing(slow):
    slow = one_layer(slow)
    out = apply(ONE, slow, TOKENS, valid=VALID)
    rubbish = np.where(VALID, TOKENS, (TOKENS + 3) % VOCAB)
    again = apply(ONE, slow, rubbish, valid=VALID)
    np.testing.assert_array_equal(np.asarray(again.logits)[VALID], np.asarray(out.logits)[VALID])
    chex.assert_trees_all_equal(again.fast, out.fast)
    # The valid tokens in front of all others.
    order = np.argsort(~VALID, axis=1, kind="stable")
    front, count = np.take_along_axis(TOKENS, order, axis=1), VALID.sum(axis=1)
    dense = apply(ONE, slow, front, valid=np.arange(LENGTH) < count[:, None])
    for row in range(2):
        close(dense.logits[row, : count[row]], np.asarray(out.logits)[row][VALID[row]])
    close(dense.fast, out.fast)
    other = TOKENS.copy()
    other[1] = (other[1] + 1) % VOCAB
    np.testing.assert_array_equal(apply(ONE, slow, other, valid=VALID).logits[0], out.logits[0])
    swapped = apply(ONE, slow, TOKENS[::-1].copy(), valid=VALID[::-1].copy())
    close(swapped.logits[::-1], out.logits)


def test_an_episode_that_is_reset_is_one_of_its_own(slow):
    """After a call before it, of which the same segment is kept, with the masks that make all calls one program."""
    slow, everything = one_layer(slow), np.ones(TOKENS.shape, bool)
    reset = np.zeros(TOKENS.shape, bool)
    zeros = ONE.init_fast(2)
    first = apply(ONE, slow, TOKENS, zeros, valid=everything, reset=reset).fast
    again = reset.copy()
    again[:, 1] = True
    packed = apply(ONE, slow, TOKENS, first, valid=everything, reset=again)
    tail = np.concatenate([TOKENS[:, 1:], TOKENS[:, :1]], axis=1)
    alone = apply(ONE, slow, tail, zeros, valid=np.arange(LENGTH)[None] < np.full((2, 1), 7), reset=reset)
    close(packed.logits[:, 1:], alone.logits[:, :7])
    close(packed.fast, alone.fast)


def layers(architecture, slow, x, masks, setup=NOTHING):
    return jax.jit(lambda slow, x: architecture.layers(slow, Inputs(x, None, masks), setup))(slow, x)


class Fixed(type(MODEL.architecture)):
    """Routes that are said."""

    chosen = np.zeros(0)

    def route(self, router, x, noise, valid):
        found = super().route(router, x, noise, valid)
        chosen = jnp.broadcast_to(jnp.asarray(self.chosen), found.chosen.shape)
        return found._replace(chosen=chosen, share=jnp.where(chosen, found.probability, 0))


def test_a_token_is_written_where_it_is_routed_and_counts_everywhere(slow):
    """One layer in full: each expert is its own model under the mask ``write``, and its output counts by the router's probability."""
    config = dataclasses.replace(CONFIG, n_layer=1, context=LENGTH)
    architecture = Fixed(config)
    architecture.chosen = np.eye(3, dtype=bool)[[0, 1, 2, 0, 1, 0, 2, 1]]
    slow = one_layer(slow)
    x = architecture.embed(slow, jnp.asarray(TOKENS))
    out, _, (taps, _, metrics) = layers(architecture, slow, x, Masks(), Setup("none", ("route", "bdh.code")))
    probability = jax.nn.softmax(x @ slow["router"][0])
    change = jnp.zeros_like(x)
    for number, (name, expert) in enumerate(architecture.experts.items()):
        write = jnp.broadcast_to(jnp.asarray(architecture.chosen[:, number]), TOKENS.shape)
        y, _, _ = layers(expert, slow[name], x, Masks(write=write))
        change += jnp.where(write, probability[..., number], 0)[..., None] * (y - x)
    close(out, layer_norm(x + change))
    close(taps["route"][0], jnp.where(jnp.asarray(architecture.chosen), probability, 0))
    assert taps["bdh.code"].shape == (1, 2, 2, LENGTH, 8)
    close([metrics[f"share_{n}"] for n in ("bdh", "gpt", "wide")], [3 / 8, 3 / 8, 2 / 8])


def test_all_is_written_everywhere_where_routes_choose_outputs_alone(slow):
    """Each expert is its own model of the whole text."""
    config = dataclasses.replace(CONFIG, n_layer=1, context=LENGTH, writes="all")
    slow, architecture = one_layer(slow), config.make_architecture()
    x = architecture.embed(slow, jnp.asarray(TOKENS))
    outputs = [layers(expert, slow[name], x, Masks())[0] for name, expert in architecture.experts.items()]
    weights = jax.nn.softmax(x @ slow["router"][0])
    weights = jnp.where(weights == weights.max(-1, keepdims=True), weights, 0)
    change = sum(weights[..., i, None] * (y - x) for i, y in enumerate(outputs))
    close(apply(config.build(), slow, TOKENS).logits, architecture.readout(slow, layer_norm(x + change)))


def test_with_all_experts_it_is_their_mean_by_the_router(slow):
    """And masks are the caller's: nothing is held back from any of them."""
    config = dataclasses.replace(CONFIG, n_layer=1, top_k=3, context=LENGTH)
    slow = one_layer(slow)
    architecture = config.make_architecture()
    x = architecture.embed(slow, jnp.asarray(TOKENS))
    outputs = [layers(expert, slow[name], x, Masks())[0] for name, expert in architecture.experts.items()]
    weights = jax.nn.softmax(x @ slow["router"][0])
    mixed = sum(weights[..., i, None] * y for i, y in enumerate(outputs))
    close(apply(config.build(), slow, TOKENS).logits, architecture.readout(slow, layer_norm(mixed)))


def test_the_balance_is_the_share_times_the_probability(slow):
    """Of the tokens that count; its gradient reaches the router."""
    config = dataclasses.replace(CONFIG, n_layer=1, balance=0.5)
    slow = one_layer(slow)
    model = config.build()
    x = np.asarray(model.architecture.embed(slow, jnp.asarray(TOKENS)))[VALID]
    probability = np.asarray(jax.nn.softmax(x @ slow["router"][0]))
    share = np.eye(3)[probability.argmax(-1)].mean(0)
    expected = 0.5 * 3 * (share * probability.mean(0)).sum()
    close(apply(model, slow, TOKENS, valid=VALID, state="none").losses["balance"], expected)
    gradient = jax.jit(
        jax.grad(lambda slow: model.apply({"params": slow}, TOKENS, valid=VALID, state="none").losses["balance"])
    )(slow)
    assert np.abs(gradient["router"]).max() > 1e-3


def test_one_expert_a_token_still_teaches_the_router(slow):
    quiet = dataclasses.replace(ONE.config, balance=0.0).build()

    def number(slow):
        return jnp.sum(jnp.square(quiet.apply({"params": slow}, TOKENS, state="none").logits))

    assert np.abs(jax.jit(jax.grad(number))(one_layer(slow))["router"]).max() > 1e-3


def test_noise_and_dropout_are_of_training_alone(slow):
    slow = one_layer(slow)
    noisy = dataclasses.replace(ONE.config, router_noise=3.0, dropout=0.5)
    assert noisy.draws_in_training
    assert dataclasses.replace(noisy, dropout=0.0).draws_in_training
    assert not CONFIG.draws_in_training
    collect = ("route",)

    @jax.jit
    def train(slow, key):
        return noisy.build().apply(
            {"params": slow}, TOKENS, state="none", deterministic=False, rngs={"dropout": key}, collect=collect
        )

    one, same, other = (train(slow, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.logits, same.logits)
    routes = [np.asarray(out.collected["route"]) > 0 for out in (one, other)]
    assert (routes[0] != routes[1]).any()
    plain = apply(ONE, slow, TOKENS, state="none", collect=collect)
    # Where a token goes as it does without noise, its expert still drops something out.
    alike = (routes[0] == (np.asarray(plain.collected["route"]) > 0)).all(-1)[0]
    assert alike.any()
    assert np.abs(one.logits - plain.logits).max(-1)[alike].max() > 1e-3
    close(apply(noisy.build(), slow, TOKENS, state="none").logits, plain.logits)
    fast, dropping = ONE.init_fast(2), dataclasses.replace(noisy, router_noise=0.0).build()
    with pytest.raises(ConfigError, match=r"dropout=0\.5: the expert 'gpt' reads its segment again from the state"):
        jax.eval_shape(
            lambda slow: dropping.apply(
                {"params": slow}, TOKENS, fast, deterministic=False, rngs={"dropout": jax.random.key(1)}
            ),
            slow,
        )


def test_generation_goes_on_as_one_text_would(slow):
    """Prompts of several lengths, read in chunks, beyond a segment's end."""
    model, slow = TWO.build(), of_two(slow)
    state = prefill(model, slow, [[1, 2, 3, 4], [6, 7]], chunk=2)
    written = [list(tokens) for tokens in generate(model, slow, state, max_tokens=4, sampling=Sampling(temperature=0))]
    for row, prompt in enumerate(([1, 2, 3, 4], [6, 7])):
        text = [*prompt, *(tokens[row] for tokens in written)]
        read = np.array([text + text], np.int32)[:, :8]
        best = np.asarray(apply(model, slow, read, state="none").logits[0]).argmax(-1)
        assert text[len(prompt) :] == best[len(prompt) - 1 : len(text) - 1].tolist()


def test_a_mesh_changes_nothing(slow):
    mesh = make_mesh(MeshConfig(data=8))
    tokens = np.random.default_rng(2).integers(0, VOCAB, (8, 4)).astype(np.int32)

    config, slow = dataclasses.replace(CONFIG, n_layer=1), one_layer(slow)

    def gradient(model):
        def number(slow):
            return jnp.sum(jnp.square(model.apply({"params": slow}, tokens, state="none").logits))

        return jax.jit(jax.grad(number))(slow)

    close(gradient(config.build(mesh)), gradient(config.build()))
    with pytest.raises(ConfigError, match="mesh.neurons=2: a 'mixture' model has no rows to spread"):
        CONFIG.check_mesh({"data": 1, "heads": 1, "neurons": 2})


def test_configurations_survive_json_and_the_command_line():
    assert from_config_dict(MixtureConfig, to_dict(CONFIG)) == CONFIG
    values = to_config_dict(CONFIG)
    assert rebuild(CONFIG, values) == CONFIG
    values.experts.bdh.n_neurons = 32
    changed = rebuild(CONFIG, values)
    assert changed.parts["bdh"].n_neurons == 32
    assert list(changed.parts) == ["bdh", "gpt", "wide"]
    # The order in which experts are named does not matter.
    turned = dataclasses.replace(CONFIG, experts=Options(dict(reversed(CONFIG.experts.items()))))
    assert list(turned.make_architecture().experts) == ["bdh", "gpt", "wide"]


def test_a_model_that_does_not_think_is_an_expert():
    once = Options({**BDH, "architecture": "latent", "thinking": 1})
    changed = dataclasses.replace(CONFIG, experts=Options(thinks=once, gpt=Options(n_head=1)))
    assert changed.parts["thinks"].no_part is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": Options(bdh=BDH)}, "names 1; a mixture has at least two"),
        ({"top_k": 4}, "top_k=4 is more than the 3 experts"),
        ({"experts": Options(bdh=BDH, other=Options())}, "experts.other.architecture='other' is not a model"),
        ({"experts": Options(bdh=BDH, gpt=Options(d_model=4))}, "experts.gpt.d_model: all experts have the mixture's"),
        (
            {"experts": Options(bdh=BDH, gpt=Options(heads=4))},
            r"experts\.gpt\.heads does not exist.*Valid keys of experts\.gpt",
        ),
        ({"experts": Options(bdh=BDH, router=Options())}, "the name 'router', which must be a word other than"),
        ({"experts": Options(bdh=BDH, again=Options(architecture="mixture"))}, "a mixture is no expert of another"),
        (
            {"experts": Options(bdh=Options({**BDH, "fast": Options(scope="shared")}), gpt=Options(n_head=1))},
            r"experts\.bdh has a state that all layers share \(fast\.scope\)",
        ),
        (
            {"experts": Options(bdh=Options({**BDH, "token_step": Options(slots=2)}), gpt=Options(n_head=1))},
            r"experts\.bdh has writes that wait in slots",
        ),
        (
            {"experts": Options(thinks=Options({**BDH, "architecture": "latent", "thinking": 2}), gpt=Options(n_head=1))},
            r"experts\.thinks: thinking=2 goes through all layers again.*set thinking to 1",
        ),
        ({"balance": -1.0}, "balance=-1.0 must be ≥ 0"),
        ({"context": 0}, "context=0 must be at least 1"),
    ],
)
def test_what_is_no_mixture_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)
