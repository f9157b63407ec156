"""The checks of causality themselves: they must flag the published write-back, which reads the future, and pass this one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.tasks import scoring
from tests.contract import leaky_toy
from tests.contract.causality import allowed, at_once, influence, moved_by_later_tokens

LENGTH, VOCAB = 8, 18
TOKENS = np.random.default_rng(0).permutation(VOCAB)[: 2 * LENGTH].reshape(2, LENGTH).astype(np.int32)


def weights(neurons: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"embed": (VOCAB, 8), "encoder": (8, 2, neurons // 2), "encoder_v": (2, 8, neurons // 2)}
    shapes |= {"decoder": (2, neurons // 2, 8), "lm_head": (8, VOCAB)}
    return {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}


@functools.cache
def toy(layers: int, stop_gradient: bool = True):
    return jax.jit(functools.partial(leaky_toy.logits, layers=layers, learning_rate=0.05, stop_gradient=stop_gradient))


def causal_model(implementation: str):
    kernel = implementation if implementation == "pallas_interpret" else "xla"
    config = BDHConfig(
        vocab_size=VOCAB,
        n_layer=2,
        d_model=8,
        n_head=2,
        n_neurons=16,
        dropout=0.0,
        dtype="float64",
        implementation="auto" if kernel == "pallas_interpret" else implementation,
        kernel=kernel,
        chunk_size=3,
        fast=FastWeightConfig(learning_rate=0.05, decay=1.0, address_norm="none"),
    )
    return lambda slow, tokens: BDH(config).apply({"params": slow}, tokens, state="none").logits


def test_perturbation_flags_the_toy_with_two_layers_and_not_with_one():
    slow = weights()
    assert moved_by_later_tokens(lambda tokens: toy(2)(slow, tokens)[0], TOKENS, VOCAB) > 1e-3
    assert moved_by_later_tokens(lambda tokens: toy(1)(slow, tokens)[0], TOKENS, VOCAB) == 0


def test_gradient_flags_the_toy_with_two_layers_and_not_with_one():
    slow, future = weights(), ~allowed(TOKENS, None, None)

    def seen(layers, stop_gradient):
        def logits(embed, slow):
            return leaky_toy.logits(
                {**slow, "embed": embed}, TOKENS, layers=layers, learning_rate=0.05, stop_gradient=stop_gradient
            )[0]

        return influence(at_once(logits, slow["embed"], slow), TOKENS, VOCAB)

    assert seen(2, stop_gradient=False)[future].max() > 1e-3
    assert seen(1, stop_gradient=False)[future].max() == 0
    # As published the writes carry no gradient: then this check is blind, which is why there are two.
    assert seen(2, stop_gradient=True)[future].max() == 0


@pytest.mark.parametrize("implementation", ["recurrent", "chunked", "parallel", "pallas_interpret"])
def test_gradient_sees_no_future_where_no_state_is_formed(implementation):
    """As in training; the contract suite asks for the final state."""
    slow = weights()

    def logits(embed, slow):
        return causal_model(implementation)({**slow, "embed": embed}, TOKENS)

    seen, may = influence(at_once(logits, slow["embed"], slow), TOKENS, VOCAB), allowed(TOKENS, None, None)
    np.testing.assert_array_equal(seen[~may], 0)
    assert seen[may].min() > 0


def test_perturbation_refuses_a_function_of_nothing():
    with pytest.raises(AssertionError, match="no influence"):
        moved_by_later_tokens(lambda tokens: jnp.zeros((*tokens.shape, VOCAB)), TOKENS, VOCAB)


def test_the_toy_with_one_layer_is_this_model():
    """So the checks see the difference between the two orders of layers and tokens, and no other."""
    slow = weights()
    np.testing.assert_allclose(toy(1)(slow, TOKENS)[0], one_layer_model()(slow, TOKENS), rtol=0, atol=1e-11)


def one_layer_model():
    config = BDHConfig(
        vocab_size=VOCAB,
        n_layer=1,
        d_model=8,
        n_head=2,
        n_neurons=16,
        dropout=0.0,
        dtype="float64",
        fast=FastWeightConfig(learning_rate=0.05, decay=1.0, address_norm="none"),
    )
    return jax.jit(lambda slow, tokens: BDH(config).apply({"params": slow}, tokens).logits)


def answers_swapped(predict):
    """Sequences whose last three tokens but one are an answer, scored with it replaced in the input."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, VOCAB, (8, LENGTH)).astype(np.int32)
    positions = np.tile(np.arange(LENGTH - 5, LENGTH - 2), (8, 1))
    swapped = tokens.copy()
    swapped[:, LENGTH - 4 : LENGTH - 1] = (tokens[:, LENGTH - 4 : LENGTH - 1] + rng.integers(1, VOCAB, (8, 3))) % VOCAB
    return scoring.answer_swap(predict, tokens, swapped, np.ones(tokens.shape, bool), positions)


@pytest.mark.parametrize("implementation", ["recurrent", "chunked", "parallel", "pallas_interpret"])
def test_swapping_answers_never_changes_their_own_prediction(implementation):
    slow, model = weights(), jax.jit(causal_model(implementation))
    assert answers_swapped(lambda tokens, valid: model(slow, tokens)) == (1.0, 0.0)


def test_swapping_answers_flags_the_toy():
    slow = weights()
    assert answers_swapped(lambda tokens, valid: toy(2)(slow, tokens)[0]).change > 1e-3
    assert answers_swapped(lambda tokens, valid: toy(1)(slow, tokens)[0]) == (1.0, 0.0)
