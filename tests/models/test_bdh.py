"""The model beside its contract (``tests/contract``): dropout, precision, what it returns, what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import json

import chex
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.models.token_step import TokenStepConfig
from tests import processes, reference_model
from tests.contract.cases import assert_close, from_reference, random_state, to_reference

IMPLEMENTATIONS = ("recurrent", "chunked", "parallel", "pallas_interpret")
VOCAB, LENGTH = 19, 8
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH)).astype(np.int32)
# Float64: sums of T·K = 128 terms, a few of them, after layer norms.
EXACT = 1e-11


@pytest.fixture
def _float64():
    with jax.enable_x64(True):
        yield


def make(implementation="auto", *, fast=(), **changes) -> BDHConfig:
    kernel = "auto"
    if implementation == "pallas_interpret":
        implementation, kernel = "chunked", implementation
    settings = {
        "vocab_size": VOCAB,
        "n_layer": 2,
        "d_model": 8,
        "n_head": 2,
        "n_neurons": 16,
        "dropout": 0.0,
        "chunk_size": 3,
    }
    settings |= {"implementation": implementation, "kernel": kernel}
    return BDHConfig(**settings | changes, fast=FastWeightConfig(**{"learning_rate": 0.7, "decay": 0.8} | dict(fast)))


@functools.cache
def weights(config: BDHConfig):
    """Random weights large enough that every part of the model matters; those of one seed agree between configurations."""
    shapes = jax.eval_shape(BDH(config).init_slow, jax.random.key(0))
    slow = {}
    for number, (name, leaf) in enumerate(sorted(shapes.items())):
        scale = 0.3 if name.startswith("encoder") else 1.0
        slow[name] = (scale * np.random.default_rng(number).normal(size=leaf.shape)).astype(leaf.dtype)
    return slow


def compiled(config: BDHConfig, **options):
    """``(slow, tokens, fast) -> output``."""
    return jax.jit(lambda slow, tokens, fast: BDH(config).apply({"params": slow}, tokens, fast, **options))


def test_fresh_weights_have_the_published_scale():
    config = make(n_neurons=1024, d_model=64, fast={"synapse": True, "learn_learning_rate": True, "learn_decay": True})
    slow = jax.jit(BDH(config).init)(jax.random.key(0), TOKENS)["params"]
    chex.assert_trees_all_equal(slow, jax.jit(BDH(config).init_slow)(jax.random.key(0)))
    shapes = {name: leaf.shape for name, leaf in slow.items()}
    assert shapes == {
        "embed": (VOCAB, 64),
        "encoder": (64, 2, 512),
        "encoder_v": (2, 64, 512),
        "decoder": (2, 512, 64),
        "lm_head": (64, VOCAB),
        "synapse": (2, 2, 512, 64),
        "fast_log_learning_rate": (2,),
        "fast_logit_decay": (2,),
    }
    for name in ("embed", "encoder", "encoder_v", "decoder", "lm_head"):
        # The standard deviation of n numbers is off by 1/√(2n): 2 % for the smallest, so five of those.
        np.testing.assert_allclose(np.std(slow[name]), 0.02, rtol=0.1)
    assert not slow["synapse"].any()
    np.testing.assert_allclose(np.exp(slow["fast_log_learning_rate"]), 0.7, rtol=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(slow["fast_logit_decay"]), 0.8, rtol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_drops_what_the_mask_says_in_every_form(implementation, monkeypatch, _float64):
    config = make(implementation, dropout=0.25, dtype="float64")
    kept = np.random.default_rng(5).random((2, 2, 2, LENGTH, 8)) < 0.75
    asked = []

    def bernoulli(key, p, shape):
        asked.append((p, shape))
        return jnp.asarray(kept)

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)
    run = compiled(config, deterministic=False, rngs={"dropout": jax.random.key(0)})
    out = run(weights(config), TOKENS, None)
    # One mask for the whole batch and all layers, so that neither form nor mesh changes it.
    assert asked == [(0.75, kept.shape)]
    expected, _, _ = reference_model.run(config, weights(config), TOKENS, kept=kept)
    assert_close(out.logits, expected, EXACT)
    assert np.abs(reference_model.run(config, weights(config), TOKENS)[0] - expected).max() > 0.01


def test_dropout_needs_a_key_and_changes_with_it():
    config = make(dropout=0.25)
    slow = weights(config)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        BDH(config).apply({"params": slow}, TOKENS, deterministic=False)

    @jax.jit
    def logits(seed):
        return (
            BDH(config).apply({"params": slow}, TOKENS, deterministic=False, rngs={"dropout": jax.random.key(seed)}).logits
        )

    a, b, c = (logits(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


@pytest.mark.parametrize(
    ("implementation", "scope", "length"),
    [
        ("recurrent", "layer", LENGTH),
        ("chunked", "layer", LENGTH),
        ("parallel", "layer", LENGTH),
        ("pallas_interpret", "layer", LENGTH),
        ("recurrent", "shared", LENGTH),
        ("recurrent", "layer", 1),
        ("parallel", "layer", 1),
    ],
)
def test_state_none_and_mean_change_nothing_else(implementation, scope, length, _float64):
    config = make(implementation, dtype="float64", n_layer=2 if scope == "shared" else 1, fast={"scope": scope})
    fast = random_state(BDH(config), np.random.default_rng(1), 2)
    tokens, slow = TOKENS[:, :length], weights(config)
    full, mean, none = (compiled(config, state=state)(slow, tokens, fast) for state in ("full", "mean", "none"))
    for other in (mean, none):
        assert_close(other.logits, full.logits, EXACT)
    assert none.fast is None
    assert none.activity is None
    assert_close(mean.fast.memory, np.mean(full.fast.memory, axis=1, keepdims=True), EXACT)
    assert_close(mean.activity.strength, np.mean(full.activity.strength, axis=1, keepdims=True), EXACT)
    assert_close(mean.activity.energy, np.mean(full.activity.energy, axis=1, keepdims=True), EXACT)
    assert_close(mean.activity.count, np.mean(full.activity.count, keepdims=True), EXACT)
    assert not hasattr(mean.fast, "attention")
    assert not hasattr(mean.fast, "position")


@pytest.mark.full
def test_every_form_has_the_same_gradients(_float64):
    """By every input, the initial state included, down to rounding; the contract has finite differences, for more settings."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(*TOKENS.shape, VOCAB))

    def number(slow, memory, attention, config, fast):
        layers = (fast.layers[0].replace(attention=attention[0]),)
        fast = fast.replace(layers=layers).map_memory(lambda _: memory[0])
        out = BDH(config).apply({"params": slow}, TOKENS, fast)
        return jnp.sum(out.logits * mix) + sum(jnp.sum(leaf**2) for leaf in (out.fast.memory, out.fast.attention))

    gradients = {}
    for implementation in IMPLEMENTATIONS:
        learned = {"synapse": True, "train_synapse": True, "learn_learning_rate": True, "learn_decay": True}
        config = make(implementation, dtype="float64", n_layer=1, fast=learned)
        fast = random_state(BDH(config), np.random.default_rng(1), 2)
        run = jax.jit(functools.partial(jax.grad(number, argnums=(0, 1, 2)), config=config, fast=fast))
        gradients[implementation] = run(weights(config), fast.memory, fast.attention)
    for implementation in IMPLEMENTATIONS[1:]:
        assert_close(gradients[implementation], gradients["recurrent"], EXACT, implementation)


LEARNED = {"learn_attention_decay": True, "attention_decay": (0.5, 0.9), "n_layer": 1, "dtype": "float64"}
"""Of the next three tests."""


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "token_step"])
@pytest.mark.parametrize("attention", ["rope", "shift"])
def test_a_learned_decay_of_the_attention_is_that_of_the_equations(implementation, attention, _float64):
    form = "recurrent" if implementation == "token_step" else implementation
    config = make(form, attention=attention, **LEARNED, fast={"enabled": False})
    slow = weights(config) | {"attention_logit_decay": np.array([-0.5, 2.0])}
    expected, states, _ = reference_model.run(config, slow, TOKENS)
    if implementation == "token_step":
        step = compiled(dataclasses.replace(config, implementation="auto", token_step=TokenStepConfig(slots=3)))
        fast, logits = None, []
        for t in range(LENGTH):
            out = step(slow, TOKENS[:, t : t + 1], fast)
            fast = out.fast
            logits.append(out.logits)
        assert_close(np.concatenate(logits, axis=1), expected, EXACT)
        return
    out = compiled(config)(slow, TOKENS, None)
    assert_close(out.logits, expected, EXACT)
    assert_close(out.fast, from_reference(states, out.fast), EXACT)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_gradient_of_a_learned_decay_is_that_of_finite_differences(implementation, _float64):
    config = make(implementation, **LEARNED, fast={"enabled": False})
    mix = np.random.default_rng(3).normal(size=(*TOKENS.shape, VOCAB))

    def number(logits_of_decay):
        slow = weights(config) | {"attention_logit_decay": logits_of_decay}
        return jnp.sum(BDH(config).apply({"params": slow}, TOKENS).logits * mix)

    at = jnp.array([-0.5, 2.0])
    value, gradient = jax.jit(number), jax.jit(jax.grad(number))(at)
    for head in range(2):
        # The error of central differences is of order h², beside rounding of 1e-16 ÷ h.
        step = 1e-5 * jnp.eye(2)[head]
        slope = (value(at + step) - value(at - step)) / 2e-5
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(gradient[head], slope, rtol=1e-6)


def test_a_learned_decay_begins_where_it_is_told_to():
    config = make(**LEARNED | {"attention_decay": (0.9, 0.999), "dtype": "float32"}, fast={"enabled": False})
    slow = jax.jit(BDH(config).init_slow)(jax.random.key(0))
    np.testing.assert_allclose(jax.nn.sigmoid(slow["attention_logit_decay"]), (0.9, 0.999), rtol=1e-6)
    fixed = dataclasses.replace(config, learn_attention_decay=False)
    rest = {name: array for name, array in slow.items() if name != "attention_logit_decay"}
    assert_close(compiled(config)(slow, TOKENS, None).logits, compiled(fixed)(rest, TOKENS, None).logits, 1e-5)
    with pytest.raises(ConfigError, match=r"learn_attention_decay needs attention_decay=\(0.5, 1.0\) below 1"):
        make(learn_attention_decay=True, attention_decay=(0.5, 1.0))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_split_into_calls(implementation, _float64):
    """Ten ways to cut eight tokens into calls of one to three."""
    config = make(implementation, dtype="float64", n_layer=1)
    run, slow, rng = compiled(config), weights(config), np.random.default_rng(0)
    start = random_state(BDH(config), rng, 2)
    expected, states, _ = reference_model.run(config, slow, TOKENS, to_reference(config, start))
    for _ in range(10):
        fast, logits, at = start, [], 0
        while at < LENGTH:
            size = min(int(rng.integers(1, 4)), LENGTH - at)
            out = run(slow, TOKENS[:, at : at + size], fast)
            fast, at = out.fast, at + size
            logits.append(out.logits)
        assert_close(np.concatenate(logits, axis=1), expected, EXACT)
        assert_close(fast, from_reference(states, fast), EXACT)


def test_without_fast_weights_the_state_is_that_of_attention():
    config = make(fast={"enabled": False})
    out = compiled(config)(weights(config), TOKENS, None)
    assert set(weights(config)) == {"embed", "encoder", "encoder_v", "decoder", "lm_head"}
    assert out.activity is None
    assert out.fast.memory is None
    assert out.fast.attention.shape == (2, 2, 2, 8, 8)
    with pytest.raises(ValueError, match="fast.enabled=False"):
        out.fast.effective_memory()
    with pytest.raises(ValueError, match="fast.enabled=False"):
        BDH(config).apply({"params": weights(config)}, TOKENS, state="mean")


def test_collect_returns_what_it_names_for_every_layer_and_token(_float64):
    for implementation in ("parallel", "recurrent"):
        config = make(implementation, dtype="float64")
        slow = weights(config)
        out = compiled(config, collect=("code", "address", "gate", "decoded", "read"))(slow, TOKENS, None)
        code, address, gate = (np.asarray(out.collected[name]) for name in ("code", "address", "gate"))
        assert code.shape == address.shape == gate.shape == (2, 2, 2, LENGTH, 8)
        x = slow["embed"][TOKENS]
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        assert_close(code[0], np.maximum(np.einsum("btd,dhn->bhtn", x, slow["encoder"]), 0), EXACT)
        assert_close(address, code / np.sqrt(np.sum(code**2, axis=(2, 4), keepdims=True) + 1e-12), EXACT)
        assert (gate >= 0).all()
        assert 0.2 < np.mean(gate[:, :, :, 1:] > 0) < 0.8
        assert not gate[:, :, :, 0].any()  # the first token has nothing to attend to
        assert_close(np.asarray(out.activity.strength), address.sum(axis=3), EXACT)
        decoded, read = (np.asarray(out.collected[name]) for name in ("decoded", "read"))
        assert_close(decoded, np.einsum("lbhtn,hnd->lbtd", code * gate, slow["decoder"]), EXACT)
        # The first layer's reads, token by token from its input.
        memory = np.zeros((2, 2, 8, x.shape[-1]))
        for t in range(LENGTH):
            assert_close(read[0, :, t], np.einsum("bhn,bhnd->bd", address[0, :, :, t], memory), EXACT)
            if t:
                write = np.einsum("bhn,bd->bhnd", address[0, :, :, t - 1], x[:, t])
                memory = config.fast.decay * memory + config.fast.learning_rate * write
    assert jax.eval_shape(compiled(config), slow, TOKENS, None).collected == {}


@pytest.mark.parametrize("fast", [{"learn_decay": True}, {"keep_gram": True, "scope": "shared"}])
def test_remat_changes_neither_values_nor_gradients(fast, _float64):
    plain = make(dtype="float64", n_layer=2 if "scope" in fast else 1, fast=fast)
    slow = weights(plain)

    def number(slow, config):
        out = BDH(config).apply({"params": slow}, TOKENS)
        return jnp.sum(jnp.sin(out.logits)) + sum(jnp.sum(a) for a in (out.fast.memory, out.fast.gram) if a is not None)

    configs = [dataclasses.replace(plain, remat=remat) for remat in (False, True)]
    values = [jax.jit(lambda slow, config=config: jax.value_and_grad(number)(slow, config))(slow) for config in configs]
    assert_close(values[1], values[0], EXACT)
    program = jax.make_jaxpr(number, static_argnums=1)(slow, dataclasses.replace(plain, remat=True))
    assert "remat" in str(program) or "checkpoint" in str(program)


def test_bfloat16_keeps_weights_state_and_logits_wide():
    config = make(dtype="bfloat16", fast={"synapse": True})
    slow = jax.eval_shape(BDH(config).init_slow, jax.random.key(0))
    assert {leaf.dtype for leaf in slow.values()} == {jnp.dtype("float32")}
    out = jax.eval_shape(compiled(config), slow, TOKENS, None)
    assert out.logits.dtype == out.fast.memory.dtype == out.fast.attention.dtype == jnp.float32
    assert out.activity.strength.dtype == out.activity.energy.dtype == jnp.float32
    assert out.fast.previous_address.dtype == jnp.bfloat16


@pytest.mark.parametrize("norm", ["none", "l2", "sum"])
def test_a_token_without_active_neurons(norm):
    """Its address is zero: nothing is read, nothing is written under it, and no gradient is NaN."""
    config = make(n_layer=1, fast={"address_norm": norm})
    slow = {**weights(config), "encoder": -np.abs(weights(config)["encoder"])}
    width = config.d_model
    slow["embed"] = np.tile(np.linspace(0, 1, VOCAB)[:, None], (1, width)).astype(np.float32)
    slow["embed"][:, 0] += 1  # after the layer norm one entry is positive, all others negative
    slow["encoder"][1:] = 0

    def number(slow):
        out = BDH(config).apply({"params": slow}, TOKENS, collect=("address",))
        return jnp.sum(jnp.square(out.logits)), out

    (_, out), gradient = jax.jit(jax.value_and_grad(number, has_aux=True))(slow)
    assert not np.any(out.collected["address"][0])
    assert np.isfinite(out.logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_learned_decay_that_underflows_gives_numbers():
    """sigmoid(−120) is zero in float32; zero to the power of zero steps is still one."""
    for implementation in ("parallel", "chunked"):
        config = make(implementation, n_layer=1, fast={"learn_decay": True})
        slow = weights(config) | {"fast_logit_decay": np.full(2, -120, np.float32)}

        def number(slow, config=config):
            return jnp.sum(BDH(config).apply({"params": slow}, TOKENS).logits ** 2)

        gradient = jax.jit(jax.grad(number))(slow)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_numpy_weights_may_be_constants_of_a_compiled_function():
    config = make()
    slow = weights(config)
    logits = jax.jit(lambda tokens: BDH(config).apply({"params": slow}, tokens).logits)(TOKENS)
    # Float32 sums of T·K = 128 terms, of which the compiler may do some beforehand.
    assert_close(logits, compiled(config)(slow, TOKENS, None).logits, 1e-5)


def test_a_rule_that_is_switched_off_leaves_no_trace_in_the_state():
    """Fast weights are switched off by one setting; the others stay as they were."""
    config = make("recurrent", fast={"enabled": False, "rule": "mesa"})
    slow = weights(config)
    start = BDH(config).init_fast(2)
    after = compiled(config)(slow, TOKENS, start).fast
    assert jax.tree.structure(after) == jax.tree.structure(start)
    plain = make("recurrent", fast={"enabled": False})
    np.testing.assert_array_equal(compiled(plain)(slow, TOKENS, None).logits, compiled(config)(slow, TOKENS, None).logits)


def test_tokens_may_be_lists():
    config = make(n_layer=1)
    out = [
        jax.jit(lambda slow, tokens=tokens: BDH(config).apply({"params": slow}, tokens).logits)(weights(config))
        for tokens in (TOKENS, TOKENS.tolist())
    ]
    np.testing.assert_array_equal(*out)


def test_auto_takes_the_form_that_exists():
    for fast in ({"scope": "shared"}, {"scope": "layer"}):
        config = make("auto", fast=fast)
        out = compiled(config)(weights(config), TOKENS, None)
        recurrent = compiled(dataclasses.replace(config, implementation="recurrent"))(weights(config), TOKENS, None)
        # Float32 sums of T·K = 128 terms in another order.
        assert_close((out.logits, out.fast), (recurrent.logits, recurrent.fast), 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": np.full((2, 3), VOCAB)}, "token id 19 is outside the vocabulary of vocab_size=19"),
        ({"tokens": np.full((2, 3), -1)}, "token id -1 is outside"),
        ({"tokens": np.zeros((2, 3))}, r"tokens has shape \(2, 3\) and dtype float64; it must be integers"),
        ({"tokens": np.zeros(3, np.int32)}, r"tokens has shape \(3,\)"),
        ({"tokens": "ab"}, r"tokens is a str; it must be an array of integers, \[B, T\]"),
        ({"tokens": None}, "tokens is a NoneType"),
        ({"tokens": [[1, 2], [3]]}, "tokens is a list of rows of different lengths"),
        ({"valid": True}, "valid is a bool; it must be an array of bool"),
        ({"tokens": np.zeros((2, 0), np.int32)}, "T must be at least 1"),
        ({"tokens": np.zeros((0, 2), np.int32)}, r"tokens is empty, \(0, 2\): B and T must be at least 1"),
        ({"tokens": [[0.5, 1.5]]}, r"tokens has shape \(1, 2\) and dtype float64; it must be integers"),
        ({"valid": np.ones((2, LENGTH - 1), bool)}, r"valid has shape \(2, 7\).*bool \[2, 8\]"),
        ({"valid": np.ones((2, LENGTH))}, "valid has shape.*float64; it must be bool"),
        ({"reset": np.ones((1, LENGTH), bool)}, r"reset has shape \(1, 8\)"),
        ({"state": "last"}, "state='last' is not one of 'full', 'none', 'mean'"),
        (
            {"collect": ("codes",)},
            "collect names 'codes'; this model can return input, code, gate, gated, decoded, address, read",
        ),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    config = make()
    arguments = {"tokens": TOKENS} | arguments
    with pytest.raises(ValueError, match=message):
        BDH(config).apply({"params": weights(config)}, arguments.pop("tokens"), **arguments)


def test_a_state_of_another_model_is_refused():
    config = make()
    model, slow = BDH(config), {"params": weights(config)}
    with pytest.raises(ValueError, match=r"fast.layers.0.attention has shape \(3, 2, 8, 8\), but .* \(2, 2, 8, 8\)"):
        model.apply(slow, TOKENS, model.init_fast(3))
    mean = jax.eval_shape(compiled(config, state="mean"), slow["params"], TOKENS, None).fast
    with pytest.raises(ValueError, match="BatchMean.*cannot be continued"):
        jax.eval_shape(compiled(config), slow["params"], TOKENS, mean)
    with pytest.raises(ValueError, match="fast.layers.0.previous_address should be absent"):
        BDH(make(fast={"address": "current"})).apply(slow, TOKENS, model.init_fast(2))
    with pytest.raises(ValueError, match="fast is a ModelOutput and must be a FastState; pass its .fast"):
        model.apply(slow, TOKENS, jax.eval_shape(compiled(config), slow["params"], TOKENS, None))
    with pytest.raises(ValueError, match=r"fast.layers.0.attention is bfloat16, but this model carries float32"):
        model.apply(slow, TOKENS, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.init_fast(2)))
    mesa, other = (BDH(make(fast={"rule": "mesa", "options": {"ridge": ridge}})) for ridge in (0.1, 0.2))
    with pytest.raises(ValueError, match=r"fast.layers.0.memory.written.ridge is 0.2, but this model has 0.1"):
        mesa.apply(slow, TOKENS, other.init_fast(2))
    with pytest.raises(
        ValueError, match="collect names 'address'; this model can return input, code, gate, gated, decoded(?!,)"
    ):
        BDH(make(fast={"enabled": False})).apply(slow, TOKENS, collect=("address",))


def test_what_cannot_run_here_is_an_error_and_not_something_else():
    with pytest.raises(ConfigError, match="jax_enable_x64"):
        BDH(make(dtype="float64")).init(jax.random.key(0), TOKENS)
    with pytest.raises(ConfigError, match='cannot run fast.scope="shared" with n_layer=2'):
        make("parallel", fast={"scope": "shared"})
    for implementation in ("recurrent", "parallel"):
        config = dataclasses.replace(make(implementation), kernel="pallas_interpret")
        with pytest.raises(ConfigError, match="kernel='pallas_interpret' is a chunked kernel"):
            BDH(config).apply({"params": weights(config)}, TOKENS)
    for fast in ({"rule": "mesa"}, {"scope": "shared"}, {"clamp": 1.0}):
        config = dataclasses.replace(make(fast=fast), kernel="pallas_interpret")
        with pytest.raises(ConfigError, match='has only the form token by token; use kernel="xla"'):
            BDH(config).apply({"params": weights(make(fast=fast))}, TOKENS)
    config = dataclasses.replace(make(), kernel="pallas")
    with pytest.raises(ConfigError, match="pallas"):
        BDH(config).apply({"params": weights(make())}, TOKENS)


def test_one_token_copies_no_state(monkeypatch):
    """A donated state is written in place. In a process of its own: the flags of these tests make another program."""
    monkeypatch.delenv("XLA_FLAGS")
    status, output, errors = processes.run_text("tests.models.one_token", "rules")
    assert status == 0, errors
    # One buffer is for products on their way; copies of two layers' S and ρ would be four.
    for rule, buffers in json.loads(output).items():
        assert buffers < 1.5, rule
