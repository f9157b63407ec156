"""What each write rule is for. That every form of it computes the same is held by ``tests/contract``."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.fast_weights import bound, delta, hebbian, longhorn_gate, mesa, oja, ridge_solution
from bdh_jax.fast_weights.rules import scan_rule
from bdh_jax.fast_weights.sigma import sigma_update
from bdh_jax.kernels import fast_weight_scan
from tests import processes as commands
from tests.compiled import apply, init

H, N, D = 2, 8, 4
# A few dozen float64 operations on numbers of order one.
EXACT = 1e-13


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


def pairs(count: int, *, seed: int = 0):
    """Addresses [count, H, N] of norm one, positive and overlapping, and values [count, 1, D] of norm √D."""
    rng = np.random.default_rng(seed)
    keys = rng.random((count, H, N))
    keys /= np.sqrt(np.sum(keys**2, axis=(1, 2), keepdims=True))
    values = rng.normal(size=(count, 1, D))
    return keys, values * np.sqrt(D / np.sum(values**2, axis=-1, keepdims=True))


def written(rule, keys, values, *, repeats=1, **options):
    def step(state, pair):
        key, value = pair
        return rule(state, key, key, value, learning_rate=1.0, decay=1.0, **options)[1], None

    pairs = (np.tile(array, (repeats, 1, 1)) for array in (keys, values))
    return jax.jit(lambda *pairs: jax.lax.scan(step, jnp.zeros((H, N, D)), pairs)[0])(*pairs)


def recalled(state, keys):
    return np.einsum("chn,hnd->cd", keys, state)


def test_delta_recalls_what_it_wrote_last_exactly():
    keys, values = pairs(5)
    state = written(delta, keys, values)
    np.testing.assert_allclose(recalled(state, keys[-1:]), values[-1], atol=EXACT)
    sums = written(hebbian, keys, values)
    assert np.abs(recalled(sums, keys[-1:]) - values[-1]).max() > 0.5


def test_delta_repeated_comes_to_recall_all_pairs():
    keys, values = pairs(5)
    np.testing.assert_allclose(recalled(written(delta, keys, values, repeats=4000), keys), values[:, 0], atol=1e-6)


def test_a_shut_gate_writes_nothing():
    keys, values = pairs(2)
    assert not np.any(written(delta, keys, values, gate=0.0))


def test_longhorn_minimises_distance_and_error_together():
    """A step of S that minimises ‖S − S₀‖²/η + ‖x − Sᵀk‖² has gradient zero there."""
    keys, values = pairs(2)
    before = written(hebbian, keys[:1], values[:1])
    rate = np.array([0.3, 2.0])
    gate = longhorn_gate(jnp.asarray(3 * keys[1]), rate)
    _, after = delta(before, keys[1], 3 * keys[1], values[1], learning_rate=rate, decay=1.0, gate=gate)

    def loss(state):
        error = values[1, 0] - jnp.einsum("hn,hnd->d", 3 * keys[1], state)
        return jnp.sum(jnp.square(state - before) / rate[:, None, None]) + jnp.sum(jnp.square(error))

    assert np.abs(jax.grad(loss)(after)).max() < 1e-12
    assert np.abs(jax.grad(loss)(before)).max() > 1


def test_no_rate_makes_longhorn_diverge():
    keys, values = (array[None] for array in pairs(30))
    keys = np.moveaxis(30 * keys, 1, 2)
    sizes = {}
    for rule in ("delta", "longhorn"):
        read, _ = fast_weight_scan(
            keys, keys, values[:, :, 0], learning_rate=50.0, rule=scan_rule(rule), implementation="recurrent", sum_heads=True
        )
        sizes[rule] = np.abs(read).max()
    assert sizes["longhorn"] < 100
    assert sizes["delta"] > 1e100


def test_oja_replaces_the_address_of_a_value():
    keys, values = pairs(2)
    values[1] = values[0]
    state = written(oja, keys, values)
    # The value is where the second pair put it: S x ÷ D gives its address back.
    np.testing.assert_allclose(np.einsum("hnd,d->hn", state, values[1, 0] / D), keys[1], atol=EXACT)
    assert np.linalg.norm(recalled(state, keys[1:])) > np.linalg.norm(recalled(state, keys[:1]))


def test_mesa_is_ridge_regression():
    keys, values = pairs(30)
    state, gram = jnp.zeros((H, N, D)), jnp.zeros((H * N, H * N))
    for key, value in zip(keys, values, strict=True):
        read, state, gram = mesa(state, gram, key, key, value, learning_rate=0.7, decay=0.9, ridge=0.05)
    weight = 0.7 * 0.9 ** np.arange(30)[::-1]
    flat = keys.reshape(30, -1)
    normal = np.einsum("ck,c,cl->kl", flat, weight, flat) + 0.05 * np.eye(H * N)
    expected = np.linalg.solve(normal, np.einsum("ck,c,cd->kd", flat, weight, values[:, 0])).reshape(H, N, D)
    np.testing.assert_allclose(ridge_solution(gram, state, 0.05), expected, atol=1e-11)
    assert read.shape == (H, D)


def test_limits_are_those_of_the_sigma_rule():
    rng = np.random.default_rng(0)
    state = jnp.asarray(rng.normal(size=(N, D)))
    expected = sigma_update(
        state, jnp.zeros((1, N)), jnp.zeros((1, D)), forget=0.0, learning_rate=1.0, clamp=0.8, threshold=0.3
    )
    limited = bound(state, clamp=0.8, threshold=0.3, row_norm=1.0)
    np.testing.assert_allclose(limited, expected, atol=EXACT)
    assert (np.asarray(limited) == 0).any()
    np.testing.assert_array_equal(bound(state, clamp=None, threshold=None, row_norm=None), state)
    zero = jax.grad(lambda s: jnp.sum(bound(s, clamp=None, threshold=None, row_norm=1.0)))(jnp.zeros((N, D)))
    np.testing.assert_array_equal(zero, 1)


def model_of(**fast) -> BDH:
    config = BDHConfig(
        vocab_size=11,
        n_layer=1,
        d_model=D,
        n_head=H,
        n_neurons=4 * N,
        dropout=0.0,
        dtype="float64",
        init_std=0.5,
        fast=FastWeightConfig(address="current", learning_rate=1.0, decay=1.0, synapse=True, **fast),
    )
    return BDH(config)


@pytest.mark.parametrize("rule", ["delta", "longhorn", "mesa"])
def test_what_the_synapse_knows_is_not_written_again(rule):
    """After an episode went into the synapse whole, the last token of the same episode has nothing left to write."""
    model = model_of(rule=rule)
    tokens = np.array([[3]])
    slow = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    run = jax.jit(lambda slow: model.apply({"params": slow}, tokens).fast.effective_memory()[:, 0])
    first = run(slow)
    again = run({**slow, "synapse": first})
    kept = np.linalg.norm(again) / np.linalg.norm(first)
    assert np.linalg.norm(first) > 0.1
    # Of norm one, an address leaves 0 of its value unwritten by the delta rule, a half by Longhorn, 0.01 ÷ 1.01 by mesa.
    assert kept == pytest.approx({"delta": 0, "longhorn": 0.5, "mesa": 0.01 / 1.01}[rule], abs=1e-9)


def test_hebbian_and_oja_do_not_look_at_the_synapse():
    for rule in ("hebbian", "oja"):
        model = model_of(rule=rule)
        tokens = np.array([[3, 4]])
        slow = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        filled = {**slow, "synapse": slow["synapse"] + 0.3}
        run = jax.jit(lambda slow, model=model, tokens=tokens: model.apply({"params": slow}, tokens).fast.memory)
        first, again = run(slow), run(filled)
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("rule", ["gated_delta", "gated_hebbian"])
def test_the_gate_is_learned_and_open_at_first(rule):
    model = model_of(rule=rule)
    tokens = np.array([[3, 4, 5]])
    slow = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    assert slow["fast_gate"].shape == (D,)
    assert jax.nn.sigmoid(slow["fast_gate_bias"]) > 0.8
    gradient = jax.jit(jax.grad(lambda slow: jnp.sum(model.apply({"params": slow}, tokens).logits ** 2)))(slow)
    assert np.all(gradient["fast_gate"] != 0)
    assert gradient["fast_gate_bias"] != 0
    shut = {**slow, "fast_gate_bias": jnp.asarray(-1e3)}
    assert not np.any(jax.jit(lambda slow: model.apply({"params": slow}, tokens).fast.memory)(shut))


def test_what_the_gate_keeps_out_is_not_in_the_sum_of_products_either():
    model = model_of(rule="gated_hebbian", keep_gram=True)
    tokens = np.array([[3, 4, 5]])
    slow = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    run = jax.jit(lambda slow: model.apply({"params": slow}, tokens).fast)
    gated, shut = run({**slow, "fast_gate_bias": jnp.zeros(())}), run({**slow, "fast_gate_bias": jnp.asarray(-1e3)})
    fully = run({**slow, "fast_gate_bias": jnp.asarray(1e3)})
    assert not np.any(shut.gram)
    assert np.any(fully.gram)
    np.testing.assert_allclose(gated.gram[0], fully.gram[0] / 2, rtol=1e-5, atol=1e-7)


def test_a_state_of_mesa_is_read_through_its_solution():
    model = model_of(rule="mesa", options={"ridge": 0.2})
    tokens = np.array([[3, 4, 5]])
    slow = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    fast = jax.jit(lambda slow: model.apply({"params": slow}, tokens).fast)(slow)
    assert fast.gram.shape == (1, 1, 4 * N, 4 * N)
    assert fast.memories()[0].written.ridge == 0.2
    expected = np.linalg.solve(fast.gram[0, 0] + 0.2 * np.eye(4 * N), np.reshape(fast.memory[0, 0], (4 * N, D)))
    np.testing.assert_allclose(fast.effective_memory()[0, 0].reshape(4 * N, D), expected, atol=1e-12)
    assert not np.any(fast.reset().effective_memory())


def shapes_of(fast, rest):
    model = BDH(dataclasses.replace(BDHConfig(n_neurons=64, n_layer=1), fast=FastWeightConfig(**fast), **rest))
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


@pytest.mark.parametrize(
    ("fast", "rest", "message"),
    [
        ({"rule": "hebb"}, {}, "fast.rule='hebb' is not a write rule. Did you mean 'hebbian'"),
        ({"rule": "mesa", "options": {"ridge": 0.0}}, {}, "fast.options: ridge=0.0 must be positive"),
        ({"clamp": 0.0}, {}, "fast.clamp=0.0 must be positive"),
        ({"rule": "mesa", "learn_decay": True}, {}, "one η and one λ"),
        ({"rule": "mesa", "row_norm": 1.0}, {}, "limits on them mean nothing"),
        ({"rule": "delta", "keep_gram": True}, {}, "fast.keep_gram=True with fast.rule='delta'"),
        ({"clamp": 1.0, "keep_gram": True}, {}, "fast.keep_gram=True with"),
        ({"keep_gram": True, "learn_decay": True}, {}, "fast.keep_gram=True sums over all rows"),
        ({"rule": "mesa"}, {"implementation": "chunked"}, "cannot run fast.rule='mesa'"),
        ({"clamp": 1.0}, {"implementation": "parallel"}, "cannot run limits on S"),
        ({"clamp": 1.0}, {"kernel": "pallas_interpret", "implementation": "recurrent"}, "is a chunked kernel"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(fast, rest, message):
    with pytest.raises(ConfigError, match=message):
        shapes_of(fast, rest)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rule": scan_rule("gated_delta")}, ValueError, "needs a write_gate"),
        ({"rule": scan_rule("delta"), "write_gate": np.ones((1, 3))}, ValueError, "takes no write_gate"),
        ({"rule": scan_rule("delta"), "implementation": "pallas_interpret"}, ConfigError, "cannot run rule 'delta'"),
        (
            {"rule": scan_rule("hebbian", limits={"clamp": 1.0}), "implementation": "chunked"},
            ConfigError,
            "cannot run rule 'hebbian': it has no matrix form",
        ),
    ],
)
def test_the_operation_refuses_what_it_cannot_do(options, error, message):
    array = np.ones((1, 3, 4))
    with pytest.raises(error, match=message):
        fast_weight_scan(array, array, array, **options)


def test_mesa_comes_to_an_end_on_several_threads(monkeypatch):
    """A process of its own, without the flags of the tests: with those of a user the runtime once waited forever."""
    monkeypatch.delenv("XLA_FLAGS")
    status, output, errors = commands.run_text("tests.fast_weights.test_rules")
    assert (status, output) == (0, "True\n"), errors


if __name__ == "__main__":
    _mesa = BDH(
        BDHConfig(
            vocab_size=9, n_layer=2, d_model=16, n_head=1, n_neurons=64, dropout=0.0, fast=FastWeightConfig(rule="mesa")
        )
    )
    _tokens = np.random.default_rng(1).integers(0, 9, (4, 35), dtype=np.int32)
    print(bool(apply(_mesa, init(_mesa, 0), _tokens).logits.any()))
