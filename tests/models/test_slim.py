"""BDH-SLIM is the published model, sees the past only, and goes on where it stopped."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.models.slim import LINEAR, SlimConfig
from tests.models.test_golden import TOLERANCE, error, load

PUBLISHED = {"query": "attn.w_q", "key": "attn.w_k", "value": "attn.w_v", "output": "attn.w_o"}
PUBLISHED |= {"ffn_in": "ffn.fc1", "ffn_out": "ffn.fc2"}
CONFIG = SlimConfig(vocab_size=11, n_layer=2, d_model=8, n_head=2, d_ff=12, max_length=5, init_std=0.4, dtype="float64")


def published(golden, prefix):
    """Slow weights of arrays under the names of the published code, whose matrices are [out, in]."""

    def array(name):
        return golden[f"{prefix}.{name}"]

    def norm(name):
        return {"scale": array(f"{name}.weight"), "bias": array(f"{name}.bias")}

    slow = {"embed": {"embedding": array("tok_emb.weight")}, "position": {"embedding": array("pos_emb.weight")}}
    for index in range(int(golden["config"][4])):
        own = f"layers.{index}"
        slow[f"layer{index}"] = {"attention_norm": norm(f"{own}.ln1"), "ffn_norm": norm(f"{own}.ln2")} | {
            name: {"kernel": array(f"{own}.{theirs}.weight").T, "bias": array(f"{own}.{theirs}.bias")}
            for name, theirs in PUBLISHED.items()
        }
    return slow | {"norm": norm("ln_f"), "lm_head": {"kernel": array("head.weight").T}}


def published_config(golden):
    vocab, width, heads, wide, layers, length = (int(n) for n in golden["config"])
    return SlimConfig(vocab_size=vocab, d_model=width, n_head=heads, d_ff=wide, n_layer=layers, max_length=length)


def test_published_logits_loss_and_gradients():
    golden = load("bdh_slim_published")
    model, counted = published_config(golden).build(), golden["labels"] != -100

    @jax.jit
    def run(slow):
        def loss(slow):
            logits = model.apply({"params": slow}, golden["tokens"].astype(np.int32), state="none").logits
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, golden["labels"], 0))
            return jnp.sum(losses * counted) / counted.sum(), logits

        return jax.value_and_grad(loss, has_aux=True)(slow)

    slow = published(golden, "param")
    assert jax.tree.map(jnp.shape, slow) == jax.tree.map(
        lambda w: w.shape, model.declared_slow(), is_leaf=lambda w: hasattr(w, "init")
    )
    (loss, logits), gradient = run(slow)
    assert error(logits, golden["logits"]) < TOLERANCE
    assert error(loss, golden["loss"]) < 1e-6
    expected = published(golden, "grad")
    for path, array in jax.tree_util.tree_leaves_with_path(gradient):
        there = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
        # Softmax does not see what is added to all keys: the gradient of their bias is rounding alone.
        scale = np.max(np.abs(there)) if "'key'" not in str(path) or "bias" not in str(path) else 1.0
        assert np.max(np.abs(array - there)) < TOLERANCE * scale, path


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def drawn(seed=0, length=13):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 11, (3, length)).astype(np.int32)), rng


@pytest.mark.usefixtures("float64")
def test_a_text_is_the_same_in_one_call_and_in_several():
    """With padding, episodes that begin inside, tokens that are not written, and more tokens than there are positions."""
    tokens, rng = drawn()
    slow = CONFIG.build().init_slow(jax.random.key(0))
    valid, write = (jnp.asarray(rng.random(tokens.shape) > 0.2) for _ in range(2))
    reset = jnp.asarray(rng.random(tokens.shape) < 0.1) & valid
    call = jax.jit(lambda *a, **k: CONFIG.build().apply({"params": slow}, *a, **k))
    whole = call(tokens, valid=valid, reset=reset, write=write)
    fast, pieces = CONFIG.build().init_fast(3), []
    for first, end in ((0, 1), (1, 7), (7, 8), (8, 13)):
        part = {name: mask[:, first:end] for name, mask in (("valid", valid), ("reset", reset), ("write", write))}
        out = call(tokens[:, first:end], fast, **part)
        fast = out.fast
        pieces.append(out.logits)
    counted = np.asarray(valid)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1)[counted], np.asarray(whole.logits)[counted], atol=1e-12)
    np.testing.assert_array_equal(fast.position, whole.fast.position)
    for kept, expected in zip(fast.layers, whole.fast.layers, strict=True):
        np.testing.assert_array_equal(kept.written, expected.written)
        there = np.asarray(kept.written)
        np.testing.assert_allclose(np.asarray(kept.key)[there], np.asarray(expected.key)[there], atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_it_reads_the_past_of_its_segment_only():
    slow, (tokens, _) = CONFIG.build().init_slow(jax.random.key(0)), drawn()
    call = jax.jit(lambda tokens: CONFIG.build().apply({"params": slow}, tokens, state="none").logits)
    before = np.asarray(call(tokens))
    changed = np.abs(before - np.asarray(call(tokens.at[:, 6].set((tokens[:, 6] + 1) % 11)))).max(axis=(0, 2))
    # Segments are the tokens 0–4, 5–9, 10–12.
    np.testing.assert_array_equal(changed > 1e-9, np.isin(np.arange(13), [6, 7, 8, 9]))


@pytest.mark.usefixtures("float64")
def test_taps_are_inputs_and_outputs_of_the_declared_weights():
    model, (tokens, _) = CONFIG.build(), drawn(length=4)
    slow = model.init_slow(jax.random.key(0))
    slow = jax.tree.map(lambda leaf: leaf + 0.1, slow)  # biases that are something
    maps = model.architecture.local_maps()
    assert len(maps) == 2 * len(LINEAR)
    names = tuple(model.architecture.taps)
    collected = jax.jit(lambda slow: model.apply({"params": slow}, tokens, state="none", collect=names).collected)(slow)
    for one in maps.values():
        layer, name, _ = one.path
        own = slow[layer][name]
        made = collected[one.x][one.layer] @ own["kernel"] + own["bias"][None, None]
        np.testing.assert_allclose(collected[one.y][one.layer], made, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_recomputing_layers_changes_no_gradient_and_dropout_drops():
    config, (tokens, _) = dataclasses.replace(CONFIG, dropout=0.3), drawn(length=5)
    slow = config.build().init_slow(jax.random.key(0))

    def gradient(config, seed):
        def loss(slow):
            out = config.build().apply({"params": slow}, tokens, deterministic=False, rngs={"dropout": jax.random.key(seed)})
            return jnp.sum(jnp.square(out.logits))

        return jax.jit(jax.grad(loss))(slow)

    first = gradient(config, 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        first,
        gradient(dataclasses.replace(config, remat=True), 1),
    )
    other = gradient(config, 2)
    assert np.abs(first["lm_head"]["kernel"] - other["lm_head"]["kernel"]).max() > 1e-3


def test_what_it_cannot_be_is_said():
    with pytest.raises(ConfigError, match="d_model=10 is not divisible by n_head=4"):
        SlimConfig(d_model=10)
    with pytest.raises(ConfigError, match="max_length=0"):
        SlimConfig(max_length=0)
