"""The baselines' mixers are those of the published implementations, values and gradients; the rest of their frame is what it says."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.experiment import ExperimentConfig, setup_of
from bdh_jax.fast_weights.masks import Masks
from bdh_jax.layers.convolution import short_convolution
from bdh_jax.models.attention import AttentionConfig
from bdh_jax.models.base import Inputs, Setup, count_parameters
from bdh_jax.models.gated_deltanet import GatedDeltaNetConfig
from bdh_jax.models.gla import GLAConfig
from bdh_jax.models.mamba2 import Mamba2Config
from bdh_jax.models.mixer import MixerConfig
from bdh_jax.models.registry import MODELS
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.tasks.base import Batch
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state
from bdh_jax.training.step import make_train_step, put_batch
from tests.compiled import apply, init
from tests.models.test_golden import TOLERANCE, error, load

WIDTH = 16
CONFIGS: dict[str, MixerConfig] = {
    "attention": AttentionConfig(d_model=WIDTH, rope_theta=None, window=70),
    "gated_convolution": AttentionConfig(d_model=WIDTH),
    "gla": GLAConfig(d_model=WIDTH, d_key=6, d_value=8, gate_rank=5),
    "gated_deltanet": GatedDeltaNetConfig(d_model=WIDTH, d_key=6, d_value=8),
    "mamba2": Mamba2Config(d_model=WIDTH, d_state=6, d_head=8),
}


def bias(array):
    return {"bias": array}


def kernel(*matrices):
    """Linear maps beside each other, of matrices that are [out, in]."""
    return {"kernel": np.concatenate([matrix.T for matrix in matrices], axis=1)}


def conv(*kernels):
    return {"kernel": np.concatenate([kernel[:, 0].T for kernel in kernels], axis=1)}


def attention(own):
    return {
        "in": kernel(own["Wqkv.weight"]) | bias(own["Wqkv.bias"]),
        "out": kernel(own["out_proj.weight"]) | bias(own["out_proj.bias"]),
    }


def gated_convolution(own):
    return {
        "conv": conv(own["conv.conv.weight"]) | bias(own["conv.conv.bias"]),
        "gate": kernel(own["projection.weight"]) | bias(own["projection.bias"]),
    }


def gla(own):
    return {
        "in": kernel(*(own[f"{name}_proj.weight"] for name in "qkv")),
        "conv": conv(*(own[f"{name}_conv1d.weight"] for name in "qkv")),
        "rates_in": kernel(own["gk_proj.0.weight"]),
        "rates_out": kernel(own["gk_proj.1.weight"]) | bias(own["gk_proj.1.bias"]),
        "gate": kernel(own["g_proj.weight"]),
        "norm": own["g_norm_swish_gate.weight"],
        "out": kernel(own["o_proj.weight"]),
    }


def gated_deltanet(own):
    # Head by head there, part by part here.
    by_head = own["in_proj_qkvz.weight"].reshape(2, -1, WIDTH)
    query, key, value, gate = (part.reshape(-1, WIDTH) for part in np.split(by_head, (6, 12, 20), axis=1))
    return {
        "in": kernel(query, key, value),
        "conv": conv(own["conv1d.weight"]),
        "rates": kernel(*own["in_proj_ba.weight"].reshape(2, 2, WIDTH).swapaxes(0, 1)),
        "a": own["A_log"],
        "dt": own["dt_bias"],
        "gate": kernel(gate),
        "norm": own["norm.weight"],
        "out": kernel(own["out_proj.weight"]),
    }


def mamba2(own):
    return {
        "in": kernel(own["in_proj.weight"]),
        "conv": conv(own["conv1d.weight"]) | bias(own["conv1d.bias"]),
        "a": own["A_log"],
        "d": own["D"],
        "dt": own["dt_bias"],
        "norm": own["norm.weight"],
        "out": kernel(own["out_proj.weight"]),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_published_values_and_gradients(name):
    golden, ours = load("mixers_published"), globals()[name]

    def part(kind):
        prefix = f"{name}.{kind}."
        return {key.removeprefix(prefix): array for key, array in golden.items() if key.startswith(prefix)}

    architecture, setup, weights = CONFIGS[name].make_architecture(), Setup("none"), ours(part("param"))
    index = 0 if name == "gated_convolution" else 1
    declared = architecture.weights()[f"layer{index}"]["convolution" if name == "gated_convolution" else "mixer"]
    shapes = jax.tree.map(lambda weight: weight.shape, declared, is_leaf=lambda weight: hasattr(weight, "init"))
    assert jax.tree.map(np.shape, weights) == shapes

    @jax.jit
    def run(weights, x):
        def total(weights, x):
            call = architecture.call({}, Inputs(x, None, Masks()), setup)
            if name == "gated_convolution":
                y, _ = architecture.convolve_gated(weights, x, None, call)
            else:
                y, _ = architecture.mix(weights, x, None, call, setup)
            return jnp.sum(y * golden[f"{name}.cotangent"]), y

        return jax.value_and_grad(total, (0, 1), has_aux=True)(weights, x)

    (_, y), (gradient, of_x) = run(weights, golden[f"{name}.x"])
    assert error(y, golden[f"{name}.y"]) < TOLERANCE
    expected = part("grad")
    assert error(of_x, expected.pop("x")) < TOLERANCE
    if name == "attention":
        # Softmax does not see what is added to all keys: the gradient of their bias is rounding alone.
        for of in (gradient["in"]["bias"], expected["Wqkv.bias"]):
            assert np.abs(of[WIDTH : 2 * WIDTH]).max() < 1e-4
        gradient["in"]["bias"] = gradient["in"]["bias"].at[WIDTH : 2 * WIDTH].set(expected["Wqkv.bias"][WIDTH : 2 * WIDTH])
    jax.tree.map_with_path(lambda path, a, b: check(a, b, path), gradient, ours(expected))


def check(actual, expected, path):
    assert error(actual, expected) < TOLERANCE, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["attention", "gla", "gated_deltanet", "mamba2"])
def test_bytes_of_state_are_those_of_its_matrices(name):
    """What is reported beside a score: keys and values of a window, or S, and the inputs of the convolutions."""
    config = dataclasses.replace(MODELS.get(name, "model")(), n_layer=2)
    inputs, numbers = {
        "attention": (2 * 64, 2 * 256 * 64 + 256 / 4),
        "gla": (3 * 2 * (16 + 16 + 32), 2 * 16 * 32),
        "gated_deltanet": (3 * 2 * (24 + 24 + 48), 2 * 24 * 48),
        "mamba2": (3 * (128 + 2 * 64), 128 * 64),
    }[name]
    position = 1
    expected = inputs + numbers + position if name == "attention" else 2 * (inputs + numbers) + position
    assert jax.eval_shape(lambda: config.build().init_fast(1)).nbytes == 4 * expected


@pytest.mark.parametrize("name", ["gla", "gated_deltanet", "mamba2"])
def test_a_convolution_of_one_token_keeps_nothing(name):
    """An array of no rows is none: a checkpoint could not hold it."""
    model = dataclasses.replace(CONFIGS[name], conv_size=1, n_layer=1, gated_convolution=0, vocab_size=9).build()
    slow, tokens = init(model, 0), np.arange(6, dtype=np.int32)[None]
    assert all(layer.past is None for layer in model.declared_fast(1).layers)
    whole, first = apply(model, slow, tokens), apply(model, slow, tokens[:, :4])
    assert all(leaf.size for leaf in jax.tree.leaves(whole.fast))
    second = apply(model, slow, tokens[:, 4:], first.fast)
    np.testing.assert_allclose(whole.logits[:, 4:], second.logits, rtol=1e-4, atol=1e-6)


FRAMES = {
    name: dataclasses.replace(CONFIGS[name], n_layer=2, vocab_size=11)
    for name in ("attention", "gla", "gated_deltanet", "mamba2")
}
TOKENS = np.random.default_rng(0).integers(0, 11, (8, 13)).astype(np.int32)


@functools.cache
def loss_and_gradient(name, **changes):
    """Of the next token, and the logits."""
    model = dataclasses.replace(FRAMES[name], **changes).build()

    def loss(slow):
        logits = model.apply({"params": slow}, TOKENS, state="none").logits
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:]).mean(), logits

    slow = init(FRAMES[name].build(), 0)
    # Larger weights than it begins with: the first logits of a model say little of what it computes.
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(
        jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim > 1 else leaf, slow)
    )


@pytest.mark.parametrize("name", FRAMES)
def test_computing_activations_again_changes_nothing(name):
    (loss, logits), gradient = loss_and_gradient(name)
    (again, same), other = loss_and_gradient(name, remat=True)
    # Compiled otherwise, so that sums of float32 may round otherwise.
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    np.testing.assert_allclose(same, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    for ours, expected in zip(jax.tree.leaves(other), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", FRAMES)
def test_bfloat16_rounds_and_does_not_overflow(name):
    (loss, logits), gradient = loss_and_gradient(name)
    (rough, rounded), other = loss_and_gradient(name, dtype="bfloat16")
    assert (rounded.dtype, rough.dtype) == (np.float32, np.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(other)} == {np.dtype(np.float32)}
    # 2⁻⁸ for each of some dozen roundings on the way, in random directions: a few parts of a hundred.
    assert 1e-4 < np.linalg.norm(rounded - logits) / np.linalg.norm(logits) < 0.05
    np.testing.assert_allclose(rough, loss, rtol=0.02)
    ours, expected = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (other, gradient))
    # Twice as many on the way back, and the rates of a decay add theirs up over the tokens.
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 0.15


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "gated_deltanet" else pytest.mark.full) for name in FRAMES]
)
def test_examples_split_over_devices_train_the_same(name):
    """A mesh along the batch: the mean of the gradients is a sum over devices, in another order."""
    losses = []
    for data in (1, 4):
        config = ExperimentConfig(
            model=FRAMES[name],
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
            train=TrainConfig(steps=3, batch_size=8, loss="all"),
            mesh=MeshConfig(data=data),
        )
        mesh = make_mesh(config.mesh)
        model = config.model.build(mesh if data > 1 else None)
        optimizer = make_optimizer(config.optimizer, 3)
        step = make_train_step(model, optimizer, setup_of(config), mesh)
        state = init_state(model, optimizer, mesh, jax.random.key(0))
        key = jax.device_put(jax.random.key(1), replicated(mesh))
        ones = np.ones((8, 12), np.float32)
        batch = put_batch(Batch(TOKENS[:, :-1], TOKENS[:, 1:], ones, ones, ones > 0, ones < 0), mesh)
        losses.append([])
        for _ in range(3):
            state, metrics = step(state, batch, key)
            losses[-1].append(float(metrics["loss"]))
    assert losses[0][-1] < 0.99 * losses[0][0]  # it learns, so that each step depends on the one before
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_rows_that_do_not_fit_a_convolution_are_named():
    rows, kernel = np.ones((2, 4, 3), np.float32), np.ones((3, 3), np.float32)
    for wrong in ((rows, kernel[:, :2], None), (rows, kernel, rows[:, :1]), (rows, kernel, rows[:1, :2])):
        with pytest.raises(AssertionError):
            short_convolution(*wrong)
    assert short_convolution(rows, kernel, rows[:, :2])[1].shape == (2, 2, 3)


def test_attention_counts_every_key_that_it_scores():
    """As a GPT does: all tokens of a call, masked or not."""
    config = AttentionConfig(vocab_size=10, d_model=8, n_head=2, window=4, gated_convolution=0, n_layer=1)
    matrices = 4 * 8 * 8 + 10 * 8
    assert [config.multiply_adds_per_token(length) - matrices for length in (3, 40)] == [2 * 8 * 3, 2 * 8 * 40]


@pytest.mark.parametrize(("config", "times"), [(GatedDeltaNetConfig(), 6), (GLAConfig(), 4)])
def test_the_default_widths_are_in_proportion_as_published(config, times):
    """The maps to keys, values and gate and the one back have 6·D² numbers a layer in a gated DeltaNet, 4·D² in a GLA."""
    declared = config.make_architecture().mixer_weights()
    assert count_parameters({name: declared[name] for name in ("in", "gate", "out")}) == times * config.d_model**2


def test_logits_are_read_with_the_embedding_where_it_is_tied():
    tokens = np.arange(6, dtype=np.int32)[None]
    config = Mamba2Config(vocab_size=9, n_layer=1, d_model=8, d_state=4, d_head=4)
    slow = init(config.build(), 0)
    assert "lm_head" not in slow
    untied = dataclasses.replace(config, tied=False).build()
    own = apply(untied, {**slow, "lm_head": slow["embed"].T}, tokens)
    np.testing.assert_allclose(apply(config.build(), slow, tokens).logits, own.logits, rtol=1e-5, atol=1e-7)
    assert count_parameters(untied.declared_slow()) == count_parameters(config.build().declared_slow()) + 8 * 9


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="d_head=24 does not divide expand · d_model = 128"):
        Mamba2Config(d_head=24)
    with pytest.raises(ConfigError, match="d_model=10 is not divisible by 4"):
        AttentionConfig(d_model=10)
    with pytest.raises(ConfigError, match="gated_convolution=1 must be 0, for none, or at least 2"):
        GLAConfig(gated_convolution=1)
    with pytest.raises(ConfigError, match="n_layer=1 with gated_convolution=3 leaves no layer"):
        AttentionConfig(n_layer=1)
    with pytest.raises(ConfigError, match="conv_size=0 must be at least 1"):
        GatedDeltaNetConfig(conv_size=0)
    with pytest.raises(ConfigError, match="a 'mamba2' model has no dropout"):
        Mamba2Config(dropout=0.1)
