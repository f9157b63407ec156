"""Generation with a token step: the text is the same, whatever waits and whatever is read by itself."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, FastWeightConfig
from bdh_jax.generation import token_steps
from bdh_jax.generation.sampling import Sampling, generate, prefill
from bdh_jax.generation.state_files import load_state, save_state
from bdh_jax.generation.token_steps import Pays, choose, prefill_and_choose, worthwhile
from bdh_jax.models.token_step import TokenStepConfig, without_slots
from tests.generation.small import CONFIG, GREEDY, PROMPTS, make, text_from

HEBBIAN = dataclasses.replace(CONFIG, d_model=16, fast=FastWeightConfig(learning_rate=0.7, decay=0.8, synapse=True))
SETTINGS = TokenStepConfig(slots=3, attention=10, encoder_v=17, decoder=9, memory=17)


@pytest.fixture
def always(monkeypatch):
    """A machine where everything pays."""
    shares = dict.fromkeys(("attention", "encoder_v", "decoder", "memory"), 2.0)
    monkeypatch.setitem(token_steps.PAYS, jax.default_backend(), Pays(1, shares))


@pytest.fixture
def plain():
    return make(HEBBIAN)


def with_step(model, settings=SETTINGS):
    return BDH(dataclasses.replace(model.config, token_step=settings))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_k=9)])
def test_the_text_is_that_of_the_model_without(plain, sampling):
    model, slow = plain
    texts = []
    for other in (model, with_step(model), with_step(model, TokenStepConfig(slots=2))):
        steps = generate(other, slow, prefill(model, slow, PROMPTS), max_tokens=9, sampling=sampling, seeds=[5, 6, 7])
        texts.append(list(steps))
    assert texts[0] == texts[1] == texts[2]
    assert len(set(np.ravel(texts[0]))) > 3


def test_a_prompt_goes_on_from_what_waits(plain):
    model, slow = plain
    newest = []
    for other in (model, with_step(model)):
        state = prefill(other, slow, [PROMPTS[0]])
        kept = [state]
        text = list(
            generate(other, slow, state, max_tokens=4, sampling=GREEDY, on_state=lambda s, kept=kept: kept.__setitem__(0, s))
        )
        state = prefill(other, slow, [PROMPTS[2]], kept[0])
        newest.append((text, text_from(other, slow, state)))
    assert newest[0] == newest[1]


def test_files_are_the_same_with_slots_and_without(plain, tmp_path):
    model, slow = plain
    texts = []
    for writer in (model, with_step(model)):
        kept = [None]
        state = prefill(model, slow, PROMPTS)
        list(
            generate(
                writer, slow, state, max_tokens=5, sampling=GREEDY, on_state=lambda s, kept=kept: kept.__setitem__(0, s)
            )
        )
        path = tmp_path / f"{writer.config.slots}.safetensors"
        save_state(path, kept[0], writer, slow)
        for reader in (model, with_step(model)):
            state = load_state(path, reader, slow)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
                without_slots(state.fast),
                without_slots(kept[0].fast),
            )
            texts.append(text_from(reader, slow, state))
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize(
    "prompts", [PROMPTS, [PROMPTS[1]], [list(range(20)) * 4, [3], list(range(20)) * 2]], ids=["few", "one", "long"]
)
def test_choosing_reads_the_prompts_as_prefill_does(plain, always, prompts):
    model, slow = plain
    seen = []
    state, settings = prefill_and_choose(model, slow, prompts, progress=lambda *numbers: seen.append(numbers))
    expected = prefill(model, slow, prompts)
    chex.assert_trees_all_close(state, expected, rtol=1e-9, atol=1e-9)
    longest = max(map(len, prompts))
    assert seen[-1] == (longest, longest)
    assert settings.slots == 2
    assert all(budget >= 1 for budget in settings.budgets.values())
    assert text_from(with_step(model, settings), slow, state) == text_from(model, slow, expected)


def test_a_budget_is_what_was_active_and_some_more():
    pairs, code, gated, address = (
        np.array([[[3, 4, -1]]]),
        np.array([[[6, 8, -1]]]),
        np.array([[[1, 0, -1]]]),
        np.array([[[7, 8, -1]]]),
    )
    counts = {"attention": pairs, "encoder_v": code, "decoder": gated, "memory": address}
    fifth = dict.fromkeys(counts, 0.2)
    for shares, expected in ((dict.fromkeys(counts, 1.0), (5, 10, 2, 10)), (fifth, (None, None, 2, None))):
        try:
            token_steps.PAYS["nowhere"] = Pays(1, shares)
            settings = choose(HEBBIAN, "nowhere", counts)
        finally:
            del token_steps.PAYS["nowhere"]
        assert settings == TokenStepConfig(2, *expected)


def test_without_a_token_there_are_slots_and_no_budgets(plain, always):
    model, slow = plain
    state = prefill(model, slow, [PROMPTS[0]])
    expected = text_from(model, slow, jax.tree.map(jnp.copy, state))
    state, settings = prefill_and_choose(model, slow, [[]], state)
    assert settings == TokenStepConfig(slots=2)
    assert text_from(with_step(model, settings), slow, state) == expected


def test_where_it_does_not_pay_nothing_is_chosen(plain):
    model, slow = plain
    assert not worthwhile(HEBBIAN, "cpu")  # a model this small is in a cache
    assert not worthwhile(dataclasses.replace(HEBBIAN, n_neurons=2**20), "a machine that nobody measured")
    assert worthwhile(dataclasses.replace(HEBBIAN, n_neurons=2**20), "cpu")
    assert not worthwhile(dataclasses.replace(CONFIG, n_neurons=2**20), "cpu")  # the delta rule cannot wait
    assert prefill_and_choose(model, slow, PROMPTS)[1] == TokenStepConfig()
    chosen = with_step(model)
    assert prefill_and_choose(chosen, slow, PROMPTS)[1] == SETTINGS
