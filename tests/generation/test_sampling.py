"""Generation: filters, and what a prompt's cutting and a batch's company may not change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, ConfigError
from bdh_jax.config.seeds import key_of
from bdh_jax.generation.sampling import (
    GenerationState,
    Sampling,
    check_memory,
    filter_logits,
    generate,
    memory_needed,
    prefill,
    sample,
)
from tests.generation.small import CASES, CONFIG, GREEDY, PROMPTS, VOCAB, make, text_from


@pytest.fixture(params=CASES)
def model_and_slow(request):
    return make(CASES[request.param])


def text(model, slow, prompts, count=12, **options) -> list[list[int]]:
    steps = list(generate(model, slow, prefill(model, slow, prompts), max_tokens=count, **options))
    return [[step[row] for step in steps if step[row] is not None] for row in range(len(prompts))]


def by_recomputation(model, slow, prompt, count=12) -> list[int]:
    """The most likely continuation, with the whole prefix read anew for every token."""
    apply = jax.jit(lambda tokens: model.apply({"params": slow}, tokens, state="none").logits)
    ids = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, len(prompt) + count), np.int32)  # one shape to compile; what comes later is not seen
        padded[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(apply(padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


def test_greedy_text_is_that_of_recomputing_the_prefix(model_and_slow):
    model, slow = model_and_slow
    expected = by_recomputation(model, slow, PROMPTS[0], 5)
    assert text(model, slow, PROMPTS[:1], 5, sampling=GREEDY) == [expected]
    assert len(set(expected)) > 1


def test_the_cutting_of_a_prompt_changes_nothing(model_and_slow):
    model, slow = model_and_slow
    whole = prefill(model, slow, PROMPTS)
    for chunk in (1, 4):
        cut = prefill(model, slow, PROMPTS, chunk=chunk)
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
        assert text_from(model, slow, cut) == text(model, slow, PROMPTS, sampling=GREEDY)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_k=9)])
def test_prompts_in_a_batch_go_on_as_if_alone(sampling):
    model, slow = make(CONFIG)
    together = text(model, slow, PROMPTS, sampling=sampling, seeds=[5, 6, 7])
    for prompt, seed, expected in zip(PROMPTS, (5, 6, 7), together, strict=True):
        assert text(model, slow, [prompt], sampling=sampling, seeds=[seed]) == [expected]


def test_a_prompt_may_be_read_in_two_parts_and_an_empty_part_changes_nothing():
    model, slow = make(CONFIG)
    state = prefill(model, slow, [PROMPTS[0][:4], PROMPTS[2]])
    state = prefill(model, slow, [PROMPTS[0][4:], []], state)
    assert text_from(model, slow, state) == text(model, slow, [PROMPTS[0], PROMPTS[2]], sampling=GREEDY)


def test_seeds_decide_and_rows_differ():
    model, slow = make(CONFIG)
    prompts = [PROMPTS[0]] * 2
    hot = Sampling(temperature=3.0)
    one = text(model, slow, prompts, sampling=hot, seeds=1)
    assert one[0] != one[1]
    assert one == text(model, slow, prompts, sampling=hot, seeds=1)
    assert one[1] == text(model, slow, prompts, sampling=hot, seeds=2)[0]


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_row_does_not_depend_on_its_neighbours_whatever_the_default_keys(implementation):
    model, slow = make(CONFIG)
    hot = Sampling(temperature=3.0)
    with jax.default_prng_impl(implementation):
        together = text(model, slow, PROMPTS, sampling=hot, seeds=[5, 6, 7])
        alone = text(model, slow, PROMPTS[2:], sampling=hot, seeds=[7])
    assert together[2:] == alone
    assert together == text(model, slow, PROMPTS, sampling=hot, seeds=[5, 6, 7])
    logits, keys = jnp.zeros((2, VOCAB)), jax.random.split(jax.random.key(0, impl="rbg"), 2)
    with pytest.raises(ValueError, match="keys are of rbg, with which a row depends on its neighbours"):
        sample(logits, keys, jnp.zeros(2, jnp.int32), hot)


def test_numbers_of_numpy_are_numbers():
    model, slow = make(CONFIG)
    hot = Sampling(temperature=3.0, top_k=9, top_p=0.5, vocab_size=VOCAB)
    other = Sampling(np.float64(3), np.int64(9), np.float64(0.5), vocab_size=np.int32(VOCAB))
    assert other == hot
    assert [type(value) for value in (other.temperature, other.top_k)] == [float, int]
    expected = text(model, slow, PROMPTS[:2], sampling=hot, seeds=3)
    assert text(model, slow, PROMPTS[:2], sampling=other, seeds=np.int64(3)) == expected
    assert text(model, slow, PROMPTS[:2], sampling=other, seeds=np.array([3, 4])) == expected
    for change, message in (
        ({"top_k": "3"}, "top_k='3' must be a whole number"),
        ({"top_p": "1"}, "top_p='1' must be a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            Sampling(**change)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-46, 5e-324])
def test_a_tiny_temperature_takes_the_most_likely_token(dtype, temperature):
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(6, 40)) * 30, dtype)
    keys = jnp.stack([key_of(number) for number in range(6)])
    drawn = sample(logits, keys, jnp.zeros(6, jnp.int32), Sampling(temperature, vocab_size=39))
    np.testing.assert_array_equal(drawn, np.argmax(logits[:, :39], axis=-1))


def test_top_p_of_one_drops_nothing_and_near_one_only_what_it_says():
    logits = jnp.asarray(np.random.default_rng(4).normal(size=50_257) * 4, jnp.float32)
    kept = np.isfinite(filter_logits(jnp.append(logits, -2000.0), Sampling(top_p=1.0)))
    assert kept.all()
    chances = np.sort(np.asarray(jax.nn.softmax(logits.astype(jnp.float64))))
    dropped = np.sum(np.cumsum(chances) <= 1e-6)
    assert dropped > 100
    kept = np.isfinite(filter_logits(logits, Sampling(top_p=1 - 1e-6)))
    assert np.sum(~kept) == pytest.approx(dropped, rel=0.01)


def test_a_row_that_stops_yields_none_and_keeps_its_state():
    model, slow = make(CONFIG)
    free = text(model, slow, PROMPTS, sampling=GREEDY)
    states = []
    steps = list(
        generate(
            model,
            slow,
            prefill(model, slow, PROMPTS),
            max_tokens=6,
            sampling=GREEDY,
            stop=lambda row, tokens: row == 1 and len(tokens) == 2,
            on_state=lambda state: states.append(jax.tree.map(np.asarray, state)),
        )
    )
    assert [step[1] for step in steps] == [*free[1][:2], None, None, None, None]
    assert [step[0] for step in steps] == free[0][:6]
    np.testing.assert_array_equal(states[-1].fast.position, [len(PROMPTS[0]) + 6, 1 + 2, len(PROMPTS[2]) + 6])
    np.testing.assert_array_equal(states[-1].logits[1], states[1].logits[1])
    everything = list(generate(model, slow, prefill(model, slow, PROMPTS), max_tokens=9, stop=lambda row, tokens: True))
    assert len(everything) == 1


@pytest.mark.parametrize("top_k", [None, 1, 5, 100])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.6, 1.0])
@pytest.mark.parametrize("min_p", [None, 0.2, 1.0])
def test_filters_keep_what_their_definition_says(top_k, top_p, min_p):
    logits = np.random.default_rng(1).normal(size=(4, 30)) * 2
    out = np.asarray(filter_logits(jnp.asarray(logits), Sampling(0.7, top_k, top_p, min_p)))
    for row, have in zip(logits / 0.7, out, strict=True):
        kept = np.ones(30, bool)
        order = np.argsort(-row)
        if top_k is not None:
            kept[order[top_k:]] = False
        if top_p is not None:
            chances = np.where(kept, np.exp(row - row.max()), 0)
            chances /= chances.sum()
            count = 1 + int(np.searchsorted(np.cumsum(chances[order]), top_p * (1 - 1e-12)))
            kept[order[count:]] = False
        if min_p is not None:
            kept &= np.exp(row - row.max()) >= min_p
        np.testing.assert_array_equal(np.isfinite(have), kept)
        np.testing.assert_allclose(have[kept], row[kept] - row.max(), atol=1e-12)


def test_samples_have_the_probabilities_of_the_filtered_logits():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=5))
    sampling = Sampling(temperature=0.8, top_k=4)
    count = 20_000
    keys = jax.random.split(jax.random.key(0), count)
    drawn = sample(jnp.broadcast_to(logits, (count, 5)), keys, jnp.zeros(count, jnp.int32), sampling)
    expected = np.asarray(jax.nn.softmax(filter_logits(logits, sampling)))
    # Five standard errors of a share of 20,000.
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / count, expected, atol=5 * 0.5 / np.sqrt(count))
    later = sample(jnp.broadcast_to(logits, (count, 5)), keys, jnp.ones(count, jnp.int32), sampling)
    agree = np.mean(np.asarray(later) == np.asarray(drawn))  # as often as two independent draws
    assert agree == pytest.approx(np.sum(expected**2), abs=5 * 0.5 / np.sqrt(count))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be ≥ 0"),
        ({"temperature": float("nan")}, "temperature=nan must be finite"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"min_p": 1.5}, r"min_p=1.5 must lie in \(0, 1\]"),
    ],
)
def test_sampling_out_of_range_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**change)


def test_prompts_that_cannot_be_read_are_refused():
    model, slow = make(CONFIG)
    for prompts, message in (
        ([], "there are no prompts"),
        ([[1], []], "prompt 1 is empty"),
        ([1, 2], r"prompt 0 has shape \(\) and dtype int64; prompts are sequences of integers"),
        ([[[1, 2], [3, 4]]], r"prompt 0 has shape \(2, 2\)"),
        ([[1], [1.5, 2.5]], "prompt 1 has shape .* and dtype float64"),
        (["12"], "prompt 0 is a str, not token ids; encode it first"),
        ([b"12"], "prompt 0 is a bytes"),
        ([[1, VOCAB]], f"prompt 0 holds token id {VOCAB}, outside the vocabulary of vocab_size={VOCAB}"),
    ):
        with pytest.raises(ValueError, match=message):
            prefill(model, slow, prompts)
    state = prefill(model, slow, np.array([[1, 2], [3, 4]]))
    np.testing.assert_array_equal(state.logits, prefill(model, slow, [[1, 2], [3, 4]]).logits)
    with pytest.raises(ValueError, match="the state holds 1 sequences and there are 2 prompts"):
        prefill(model, slow, [[1], [2]], prefill(model, slow, [[1]]))
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        prefill(model, slow, [[1]], chunk=0)
    with pytest.raises(ValueError, match="max_tokens=-1 must be"):
        next(generate(model, slow, prefill(model, slow, [[1]]), max_tokens=-1))
    with pytest.raises(ValueError, match="seeds has 2 numbers and the state 1 sequences"):
        next(generate(model, slow, prefill(model, slow, [[1]]), max_tokens=1, seeds=[1, 2]))


def test_progress_counts_to_the_length_of_the_longest_prompt():
    model, slow = make(CONFIG)
    seen = []
    state = prefill(model, slow, PROMPTS, chunk=4, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(1, 9), (5, 9), (9, 9)]
    assert isinstance(state, GenerationState)


def test_more_prompts_than_memory_holds_are_refused_and_length_does_not_matter():
    needed = memory_needed(CONFIG, 3)
    assert needed == 3 * memory_needed(CONFIG, 1) > 3 * BDH(CONFIG).init_fast(1).nbytes
    check_memory(CONFIG, 3, needed)
    check_memory(CONFIG, 3, None)
    with pytest.raises(
        ConfigError, match=r"the state of 3 texts needs \d+\.\d\d GiB and 0\.00 GiB are free; give fewer prompts"
    ):
        check_memory(CONFIG, 3, needed - 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_a_tokenizer_does_not_know_are_not_drawn(temperature):
    logits = jnp.asarray(np.linspace(0, 5, 3 * VOCAB).reshape(3, VOCAB))
    keys = jnp.stack([jax.random.key(number) for number in range(3)])
    drawn = [sample(logits, keys, jnp.full(3, position), Sampling(temperature, vocab_size=6)) for position in range(20)]
    assert np.max(drawn) == 5
    assert (
        np.max([sample(logits, keys, jnp.full(3, position), Sampling(temperature)) for position in range(20)]) == VOCAB - 1
    )
    with pytest.raises(ConfigError, match="vocab_size=0 must be at least 1"):
        Sampling(vocab_size=0)
