"""Time split over devices gives what one device gives: logits, states, activity, taps, losses, gradients. States are all that crosses.

Runs on the 8 CPU devices that ``tests/conftest.py`` asks for.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.parallel.test_mesh import collective_shapes

BATCH, LENGTH, WIDTH, HEADS, NEURONS, VOCAB = 2, 24, 8, 2, 10, 23
PLAIN = BDHConfig(
    vocab_size=VOCAB,
    n_layer=2,
    d_model=WIDTH,
    n_head=HEADS,
    n_neurons=HEADS * NEURONS,
    dropout=0.0,
    chunk_size=4,
    fast=FastWeightConfig(learning_rate=0.5, decay=0.9, synapse=True, learn_learning_rate=True, learn_decay=True),
)


def model_config(**changes) -> BDHConfig:
    names = {field.name for field in dataclasses.fields(FastWeightConfig)}
    fast = dataclasses.replace(PLAIN.fast, **{name: value for name, value in changes.items() if name in names})
    return dataclasses.replace(PLAIN, fast=fast, **{name: value for name, value in changes.items() if name not in names})


def numbers(config: BDHConfig, length: int = LENGTH, seed: int = 0):
    """Weights, a state to go on from, tokens and masks: parts of time without a valid token, and parts with a reset and nothing else."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(BDH(config).init_slow, jax.random.key(0))
    slow = jax.tree.map(lambda leaf: 0.4 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    fast = jax.tree.map(
        lambda leaf: (
            jnp.asarray(3 + np.arange(BATCH), leaf.dtype)
            if leaf.ndim == 1
            else jnp.asarray(0.1 * np.abs(rng.normal(size=leaf.shape)), leaf.dtype)
        ),
        jax.eval_shape(lambda: BDH(config).init_fast(BATCH)),
    )
    valid, reset = rng.random((BATCH, length)) < 0.7, np.zeros((BATCH, length), bool)
    valid[0, 6:14] = valid[1, 6:13] = False
    if length > 20:
        reset[0, 10] = reset[1, 18] = True
    return slow, fast, rng.integers(0, VOCAB, (BATCH, length)), {"valid": valid, "reset": reset}


def everything(config: BDHConfig, mesh, slow, fast, tokens, masks):
    """What a call can return, of one jitted program."""

    def run(slow, fast):
        model = BDH(config, mesh)
        collect = ("code", "address", "read") if config.fast.enabled else ("code",)
        out = model.apply({"params": slow}, tokens, fast, collect=collect, **masks)
        mean = model.apply({"params": slow}, tokens, fast, state="mean", **masks).fast if config.fast.enabled else None

        def cost(slow, fast):
            out = model.apply({"params": slow}, tokens, fast, state="full", **masks)
            weigh = jnp.asarray(masks.get("valid", np.ones(tokens.shape)), jnp.float32)[..., None]
            last = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(out.fast) if leaf.dtype == jnp.float32)
            return jnp.mean(jnp.square(out.logits) * weigh) + 1e-2 * last + sum(out.losses.values())

        return out, mean, jax.grad(cost, allow_int=True, argnums=(0,) if fast is None else (0, 1))(slow, fast)

    return jax.jit(run)(slow, fast)


def assert_same(got, expected, valid=None):
    leaves = zip(*map(jax.tree_util.tree_leaves_with_path, (got, expected)), strict=True)
    for (path, have), (_, want) in leaves:
        if want.dtype == jax.dtypes.float0:
            continue
        have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
        name = jax.tree_util.keystr(path)
        if valid is not None and name.endswith(".logits"):  # those of invalid tokens mean nothing
            have, want = have[valid], want[valid]
        # Sums of K = 20 or T = 24 float32 terms, normalised a few times.
        np.testing.assert_allclose(have, want, rtol=0, atol=3e-5 * (1e-3 + np.abs(want).max()), err_msg=name)


FORMS = {
    "parallel": {"implementation": "parallel", "attention_decay": (0.8, 0.95), "learn_attention_decay": True},
    "chunked": {"implementation": "chunked", "learn_decay": False, "decay": 1.0, "learn_learning_rate": False},
    "shift": {"attention": "shift", "address_norm": "sum", "attention_decay": (0.8, 0.95), "activity_penalty": 0.1},
    "gated": {"rule": "gated_hebbian", "address": "current", "write_gradient": "stop", "n_layer": 1},
    "without": {"enabled": False, "synapse": False, "learn_learning_rate": False, "learn_decay": False},
}


LONG = (("parallel", False), ("chunked", True), ("shift", False), ("shift", True), ("gated", True), ("without", False))
"""In `make test-full` only."""


@pytest.mark.parametrize(
    ("form", "masked"),
    [
        pytest.param(form, masked, marks=[pytest.mark.full] if (form, masked) in LONG else [])
        for form in FORMS
        for masked in (False, True)
    ],
)
def test_time_in_parts_gives_the_same(form, masked):
    config = model_config(**FORMS[form])
    slow, fast, tokens, masks = numbers(config)
    given = (slow, fast, tokens, masks) if masked else (slow, None, tokens, {})
    mesh = make_mesh(MeshConfig(sequence=4, heads=2) if form == "parallel" else MeshConfig(data=2, sequence=4))
    assert_same(everything(config, mesh, *given), everything(config, None, *given), masks["valid"] if masked else None)


def test_a_window_that_the_parts_do_not_divide_is_padded():
    """Also one token, of which most parts have none."""
    config = model_config(activity_penalty=0.1, dropout=0.0, n_layer=1)
    mesh = make_mesh(MeshConfig(sequence=4))
    for length in (1, 22):
        slow, fast, tokens, masks = numbers(config, length)
        given = (slow, fast, tokens, {"reset": masks["reset"]} if length > 20 else {})
        assert_same(everything(config, mesh, *given), everything(config, None, *given))


def test_dropout_is_that_of_one_device():
    config = model_config(dropout=0.2, n_layer=1)
    slow, _, tokens, _ = numbers(config)

    def run(mesh):
        options = {"deterministic": False, "rngs": {"dropout": jax.random.key(3)}, "state": "none"}
        return jax.jit(lambda slow: BDH(config, mesh).apply({"params": slow}, tokens, **options).logits)(slow)

    np.testing.assert_allclose(run(make_mesh(MeshConfig(sequence=4))), run(None), atol=1e-5)


def test_states_are_all_that_crosses_the_axis():
    """Of a training step's layers: matrices like S, the last address, and sums of gradients; nothing as long as a part of time."""
    config = dataclasses.replace(model_config(n_layer=1, implementation="chunked"), n_neurons=2 * 22)
    length, prime = 4 * 4 * 13, 13
    tokens, mesh = np.zeros((1, length), np.int32), make_mesh(MeshConfig(sequence=4))
    slow = BDH(config).init_slow(jax.random.key(0))

    def cost(slow):
        return jnp.mean(jnp.square(BDH(config, mesh).apply({"params": slow}, tokens, state="none").logits))

    program = jax.jit(jax.grad(cost)).lower(slow).compile({"xla_backend_optimization_level": 3}).as_text()
    sizes = [math.prod(shape) for shape in collective_shapes(program)]
    assert 44 * WIDTH in sizes  # ρ or S
    assert [size for size in sizes if size % prime == 0] == []
    # ρ and S go to the next part and then double their way, in three rounds with four parts; forward and backward. Gradients of encoders and
    # decoder are as large.
    assert sizes.count(44 * WIDTH) <= 2 * 2 * 3 + 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rule": "delta"}, "model.fast.rule='delta' writes what S does not hold yet"),
        ({"scope": "shared"}, 'model.fast.scope="shared" goes token by token'),
        ({"clamp": 1.0}, "limits on S"),
        ({"keep_gram": True, "learn_decay": False, "learn_learning_rate": False}, "model.fast.keep_gram=True"),
        ({"implementation": "recurrent"}, 'model.implementation="recurrent" goes token by token'),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_depends_on_s_is_refused_by_its_name(changes, reason):
    with pytest.raises(ConfigError, match=f"mesh.sequence=2 splits time, and {reason}.*; set it to 1"):
        ExperimentConfig(model=model_config(**changes), mesh=MeshConfig(sequence=2))
    ExperimentConfig(model=model_config(**changes), mesh=MeshConfig(sequence=1))


def test_a_model_whose_time_is_whole_says_so():
    with pytest.raises(ConfigError, match="mesh.sequence=2 splits time, and a 'gpt' model needs all tokens in one place"):
        ExperimentConfig(model=GPTConfig(), mesh=MeshConfig(sequence=2))
