"""A call that JAX exports is the same call, also when it is read back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.generation.sampling import Sampling, generate, prefill
from tests.compiled import apply, init

CONFIG = BDHConfig(vocab_size=11, n_layer=2, d_model=8, n_head=2, n_neurons=32, dropout=0.0)
FAST = {
    "hebbian": FastWeightConfig(synapse=True),
    "mesa": FastWeightConfig(rule="mesa", options={"ridge": 0.5}),  # its state has a static field
    "shared": FastWeightConfig(rule="delta", scope="shared"),
    "none": FastWeightConfig(enabled=False),
}
TOKENS = np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]], np.int32)


@pytest.mark.parametrize("name", FAST)
def test_a_step_of_decoding_is_exported_and_read_back(name):
    model = BDH(dataclasses.replace(CONFIG, fast=FAST[name]))
    slow = init(model, 0)
    fast = apply(model, slow, TOKENS).fast

    @jax.jit
    def step(slow, tokens, fast):
        return model.apply({"params": slow}, tokens, fast)

    content = export.export(step)(slow, TOKENS[:, :1], fast).serialize()
    have = export.deserialize(content).call(slow, TOKENS[:, :1], fast)
    want = step(slow, TOKENS[:, :1], fast)
    assert jax.tree.structure(have) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_parallel_form_is_exported_for_any_length():
    model = BDH(dataclasses.replace(CONFIG, implementation="parallel"))
    slow = init(model, 0)
    (length,) = export.symbolic_shape("T")
    exported = export.export(jax.jit(lambda slow, tokens: model.apply({"params": slow}, tokens)))(
        slow, jax.ShapeDtypeStruct((2, length), TOKENS.dtype)
    )
    for tokens in (TOKENS, TOKENS[:, :3]):
        have, want = exported.call(slow, tokens), apply(model, slow, tokens)
        np.testing.assert_allclose(have.logits, want.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(have.fast.memory, want.fast.memory, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["recurrent", "chunked", "parallel"])
@pytest.mark.parametrize("rule", ["hebbian", "delta", "oja", "longhorn", "gated_delta", "gated_hebbian"])
def test_no_dtype_is_promoted_unasked(rule, implementation):
    fast = FastWeightConfig(rule=rule, synapse=True)
    if fast.token_by_token and implementation != "recurrent":
        implementation = "auto"
    model = BDH(dataclasses.replace(CONFIG, n_layer=1, fast=fast, implementation=implementation, chunk_size=2))
    with jax.numpy_dtype_promotion("strict"):
        slow = jax.eval_shape(model.init_slow, jax.random.key(0))
        masks = {"valid": TOKENS > 1, "reset": TOKENS == 3}
        jax.eval_shape(lambda slow: model.apply({"params": slow}, TOKENS, **masks), slow)
        jax.eval_shape(jax.grad(lambda slow: jnp.sum(model.apply({"params": slow}, TOKENS).logits)), slow)


def test_nor_in_generation():
    model = BDH(CONFIG)
    slow = init(model, 0)
    with jax.numpy_dtype_promotion("strict"):
        sampling = Sampling(0.9, 5, 0.9, 0.1, vocab_size=10)
        assert len(list(generate(model, slow, prefill(model, slow, [[1, 2], [3]]), max_tokens=2, sampling=sampling))) == 2


def test_a_weight_that_a_configuration_declares_and_a_run_has_not_is_named():
    slow = init(BDH(CONFIG), 0)
    other = BDH(dataclasses.replace(CONFIG, fast=FAST["hebbian"]))
    with pytest.raises(
        ValueError,
        match=r"have no 'synapse' \(2, 2, 16, 8\), .* add the one .*model.init_slow\(jax.random.key\(0\)\)\['synapse'\]",
    ):
        other.apply({"params": slow}, TOKENS)
    slow["synapse"] = init(other, 0)["synapse"]
    assert apply(other, slow, TOKENS).logits.shape == (2, 5, 11)
