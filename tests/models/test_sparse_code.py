"""A top-k code and a penalty on activity: the same function in every form, on every mesh, and what training makes of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.analysis.activity import active_shares
from bdh_jax.models.token_step import TokenStepConfig, without_slots
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests import reference_model
from tests.compiled import apply

BATCH, LENGTH, VOCAB, TOP, PENALTY, EXACT = 2, 9, 18, 5, 0.3, 1e-10
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
VALID, RESET = RNG.random((BATCH, LENGTH)) < 0.7, np.zeros((BATCH, LENGTH), bool)
RESET[0, 3] = RESET[1, 6] = True
CONFIG = BDHConfig(
    vocab_size=VOCAB,
    n_layer=2,
    d_model=8,
    n_head=2,
    n_neurons=32,
    dropout=0.0,
    dtype="float64",
    code_top_k=TOP,
    activity_penalty=PENALTY,
    implementation="chunked",
    chunk_size=4,
    fast=FastWeightConfig(learning_rate=0.7, decay=0.8),
)
FORMS = ("recurrent", "chunked", "parallel")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def weights(config=CONFIG):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(BDH(config).init_slow, jax.random.key(0))
    return {name: rng.normal(size=leaf.shape) for name, leaf in shapes.items()}


def outputs(mesh=None, **changes):
    """Logits, the loss that the model names, and gradients of a number that depends on both."""
    config = dataclasses.replace(CONFIG, **changes)
    mixture = np.random.default_rng(2).normal(size=(BATCH, LENGTH, VOCAB))

    @jax.jit
    def run(slow):
        def number(slow):
            out = BDH(config, mesh).apply({"params": slow}, TOKENS, valid=VALID, reset=RESET, state="none")
            return jnp.sum(out.logits * mixture * VALID[..., None]) + 10 * out.losses["activity"], out

        gradient, out = jax.grad(number, has_aux=True)(slow)
        return out.logits, out.losses["activity"], gradient

    return jax.device_get(run(weights()))


def test_a_top_k_code_is_that_of_the_equations():
    config = dataclasses.replace(CONFIG, activity_penalty=0.0)
    out = jax.jit(lambda slow: BDH(config).apply({"params": slow}, TOKENS, valid=VALID, reset=RESET, collect=("code",)))(
        weights()
    )
    logits, _, _ = reference_model.run(config, weights(), TOKENS, valid=VALID, reset=RESET)
    np.testing.assert_allclose(np.asarray(out.logits)[VALID], logits[VALID], rtol=EXACT, atol=EXACT)
    active = np.sum(np.asarray(out.collected["code"]) > 0, axis=(2, 4))
    assert active.max() == TOP
    assert out.losses == {}


@pytest.mark.parametrize("form", FORMS[::2])
def test_no_form_changes_the_code_its_penalty_or_a_gradient(form):
    logits, loss, gradient = outputs()
    others = outputs(implementation=form)
    np.testing.assert_allclose(others[0][VALID], logits[VALID], rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(others[1], loss, rtol=EXACT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT), others[2], gradient)


def test_no_mesh_changes_the_code_its_penalty_or_a_gradient():
    logits, loss, gradient = outputs()
    others = outputs(mesh=make_mesh(MeshConfig(data=2, heads=2, neurons=2)))
    np.testing.assert_allclose(others[0][VALID], logits[VALID], rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(others[1], loss, rtol=EXACT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT), others[2], gradient)


def test_a_token_step_reads_no_more_rows_than_the_code_has():
    config = dataclasses.replace(CONFIG, activity_penalty=0.0, implementation="auto")
    plain, slow = BDH(config), weights()
    settings = TokenStepConfig(slots=3, attention=TOP, encoder_v=TOP, decoder=TOP, memory=TOP)
    model = BDH(dataclasses.replace(config, token_step=settings))
    variables = {"params": slow, "views": model.architecture.views(slow)}
    step, fast = jax.jit(model.apply), model.init_fast(BATCH)
    logits = []
    for token in TOKENS.T:
        out = step(variables, token[:, None], fast)
        logits.append(out.logits)
        fast = out.fast
    whole = jax.jit(plain.apply)({"params": slow}, TOKENS)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole.logits, rtol=EXACT, atol=EXACT)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT), jax.jit(without_slots)(fast), whole.fast
    )
    assert int(fast.token_steps.over_budget) == 0
    assert int(fast.token_steps.taken) == LENGTH


def test_the_penalty_is_the_share_of_active_neurons():
    config = dataclasses.replace(CONFIG, code_top_k=None)
    out = jax.jit(lambda slow: BDH(config).apply({"params": slow}, TOKENS, valid=VALID, collect=("code",)))(weights())
    code = np.asarray(out.collected["code"])
    shares = np.sum(code, axis=(2, 4)) ** 2 / (32 * np.sum(code**2, axis=(2, 4)))  # [L, B, T]
    np.testing.assert_allclose(out.losses["activity"], PENALTY * np.mean(shares * VALID), rtol=EXACT)


def test_shares_of_active_neurons_are_counted_where_tokens_count():
    slow = weights()
    found = active_shares(CONFIG, slow, TOKENS, VALID)
    out = apply(BDH(CONFIG), slow, TOKENS, valid=VALID, state="none", collect=("code", "gate"))
    for name in ("code", "gate", "gated"):
        active = {part: np.asarray(out.collected[part]) != 0 for part in ("code", "gate")}
        active["gated"] = active["code"] & active["gate"]
        share = np.mean(active[name], axis=(2, 4))[:, VALID].mean(axis=1)
        np.testing.assert_allclose(found[name], share, rtol=1e-6)


def test_what_cannot_be_is_refused():
    for top in (0, 32):
        with pytest.raises(ConfigError, match=rf"code_top_k={top} must lie in \[1, n_neurons − 1 = 31\]"):
            dataclasses.replace(CONFIG, code_top_k=top)
    with pytest.raises(ConfigError, match="activity_penalty=-0.1 must be ≥ 0"):
        dataclasses.replace(CONFIG, activity_penalty=-0.1)
