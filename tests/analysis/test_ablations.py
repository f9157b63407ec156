"""Each ablation against the same thing done by hand: token by token, with the state changed between the tokens."""

import dataclasses
import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.analysis import ablations
from bdh_jax.analysis.fast_states import empty_memory, shuffle_rows
from bdh_jax.tasks import CounterConfig, NBackConfig
from bdh_jax.tasks.facts import FactsConfig
from tests.compiled import apply, init

CONFIG = BDHConfig(
    vocab_size=130,
    n_layer=1,
    d_model=16,
    n_head=2,
    n_neurons=48,
    dropout=0.0,
    init_std=0.3,
    fast=FastWeightConfig(learning_rate=0.7, decay=0.95, synapse=True),
)

DEEP = dataclasses.replace(CONFIG, n_layer=2)


def with_fast(**changes):
    return dataclasses.replace(CONFIG, fast=dataclasses.replace(CONFIG.fast, **changes))


def weights(config, seed=0):
    """Random weights; the synapse and what is learned of the rates too, so that leaving one out is noticed."""
    slow = init(BDH(config), seed)
    if "synapse" in slow:
        slow["synapse"] = jax.random.normal(jax.random.key(1), slow["synapse"].shape)
    return slow


def nback(**config):
    return NBackConfig(**{"evaluation_sequences": 10, **config}).make(seed=0, batch_size=4)


@pytest.fixture(scope="module")
def tokens():
    return nback().evaluation_sets["n2"].encoded.tokens


@pytest.fixture(scope="module")
def slow():
    return weights(CONFIG)


@pytest.fixture(scope="module")
def deep():
    """Weights of two layers."""
    return weights(DEEP)


@functools.partial(jax.jit, static_argnames="config")
def step(config, slow, fast, token):
    return BDH(config).apply({"params": slow}, token, fast)


def by_hand(config, slow, tokens, change=lambda fast, left: fast, fast=None):
    """Token by token; ``change(fast, left)`` sees the state before each token and how many tokens are left."""
    fast = BDH(config).init_fast(len(tokens)) if fast is None else fast
    for i in range(tokens.shape[1]):
        output = step(config, slow, change(fast, tokens.shape[1] - i), tokens[:, i : i + 1])
        fast = output.fast
    return np.asarray(output.logits[:, 0]), fast


def assert_same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def assert_different(a, b):
    assert np.abs(a - b).max() > 0.01


def test_mesa_is_carried_and_shuffled_with_its_sums(tokens):
    """S of rule "mesa" means nothing without the sums k ⊗ k beside it."""
    config = with_fast(rule="mesa", synapse=False)
    slow = weights(config)
    _, fast = by_hand(config, slow, tokens[:1, :6])
    shuffled = shuffle_rows(fast, seed=0)
    rows, moved = (np.asarray(state.effective_memory()).reshape(-1, config.d_model) for state in (fast, shuffled))
    assert np.abs(rows - moved).max() > 0.01
    np.testing.assert_allclose(np.sort(rows, axis=0), np.sort(moved, axis=0), rtol=1e-4, atol=1e-5)
    first, _ = by_hand(config, slow, tokens[:1])
    _, after = by_hand(config, slow, tokens[:1])
    second, _ = by_hand(config, slow, tokens[1:2], fast=after.only_memory())
    assert_same(ablations.carry_fast_state(config, slow, streams=1)(tokens[:2]), np.concatenate([first, second]))


def test_normal_is_the_model(tokens, slow):
    assert_same(ablations.normal(CONFIG, slow)(tokens), by_hand(CONFIG, slow, tokens)[0])


def test_fast_off_has_neither_memory_nor_synapse(tokens, slow):
    plain = with_fast(enabled=False)
    expected = by_hand(plain, {k: v for k, v in slow.items() if k != "synapse"}, tokens)[0]
    assert_same(ablations.fast_off(CONFIG, slow)(tokens), expected)
    assert_different(ablations.fast_write_off(CONFIG, slow)(tokens), expected)


def test_write_off_reads_the_synapse_alone(tokens, slow):
    expected = by_hand(CONFIG, slow, tokens, lambda fast, left: empty_memory(fast))[0]
    assert_same(ablations.fast_write_off(CONFIG, slow)(tokens), expected)


def test_write_off_gives_up_a_learned_rate(tokens, slow):
    config = with_fast(learn_learning_rate=True)
    learned = {**slow, "fast_log_learning_rate": jnp.array([1.0, -1.0])}
    assert_same(ablations.fast_write_off(config, learned)(tokens), ablations.fast_write_off(CONFIG, slow)(tokens))
    query = by_hand(config, learned, tokens, lambda fast, left: empty_memory(fast) if left <= 2 else fast)[0]
    assert_same(ablations.fast_read_off(config, learned)(tokens), query)


def test_read_off_empties_the_memory_for_the_query_alone(tokens, deep):
    """Two layers: only what a layer above attends to tells this from a memory that is never filled."""
    expected = by_hand(DEEP, deep, tokens, lambda fast, left: empty_memory(fast) if left <= 2 else fast)[0]
    answers = ablations.fast_read_off(DEEP, deep)(tokens)
    assert_same(answers, expected)
    assert_different(answers, ablations.fast_write_off(DEEP, deep)(tokens))


def test_slow_read_off_is_a_model_without_a_synapse(tokens, slow):
    expected = by_hand(with_fast(synapse=False), {k: v for k, v in slow.items() if k != "synapse"}, tokens)[0]
    assert_same(ablations.slow_read_off(CONFIG, slow)(tokens), expected)
    assert_different(ablations.normal(CONFIG, slow)(tokens), expected)


def test_rows_are_shuffled_between_prefix_and_query(tokens, slow):
    def change(fast, left):
        return shuffle_rows(fast, seed=3) if left == 2 else fast

    expected = by_hand(CONFIG, slow, tokens, change)[0]
    assert_same(ablations.fast_rows_shuffled(CONFIG, slow, seed=3)(tokens), expected)
    assert_different(ablations.normal(CONFIG, slow)(tokens), expected)


def test_streams_carry_memory_and_nothing_else(tokens, slow):
    expected = np.zeros((10, 130), np.float32)
    for first in (0, 4, 8):
        fast = None
        for row in range(first, min(first + 4, 10)):
            expected[row], fast = by_hand(CONFIG, slow, tokens[row : row + 1], fast=fast)
            fast = fast.only_memory()
    carried = ablations.carry_fast_state(CONFIG, slow, streams=3)(tokens)
    assert_same(carried, expected)
    normal = ablations.normal(CONFIG, slow)(tokens)
    assert_same(carried[[0, 4, 8]], normal[[0, 4, 8]])
    assert_different(carried[1], normal[1])


@pytest.mark.parametrize(("name", "width"), [("repeated8", 2), ("vargap1", 3)])
def test_the_last_pairs_and_the_query_are_left(slow, name, width):
    task = CounterConfig(evaluation_sequences=10).make(seed=0, batch_size=4)
    tokens = task.evaluation_sets[name].encoded.tokens
    rows = [[*row[-2 - 4 * width : -2], 128, row[-1]] for row in tokens.tolist()]
    expected = ablations.normal(CONFIG, slow)(np.array(rows, np.int32))
    assert_same(ablations.context_last(CONFIG, slow, 4, width)(tokens), expected)
    assert_different(ablations.normal(CONFIG, slow)(tokens), expected)
    assert_same(ablations.context_last(CONFIG, slow, 8, width)(tokens), ablations.normal(CONFIG, slow)(tokens))


def test_the_address_comes_from_another_source(tokens, slow):
    expected = by_hand(with_fast(address_source="gated"), slow, tokens)[0]
    assert_same(ablations.other_address_source(CONFIG, slow, "gated")(tokens), expected)
    assert_different(ablations.normal(CONFIG, slow)(tokens), expected)


def test_batches_are_of_one_shape_and_in_order():
    shapes = []

    def first_column(tokens):
        shapes.append(tokens.shape)
        return tokens[:, :1]

    tokens = np.arange(30, dtype=np.int32).reshape(10, 3)
    np.testing.assert_array_equal(ablations._in_batches(first_column, tokens, 4), tokens[:, :1])
    assert set(shapes) == {(4, 3)}


@pytest.mark.parametrize("name", ["n8", "repeated8"])
def test_cosines_of_addresses(deep, name):
    """Sequence by sequence, from the same addresses."""
    task = nback() if name == "n8" else CounterConfig(evaluation_sequences=10).make(seed=0, batch_size=4)
    data = task.evaluation_sets[name]
    rows = ablations.address_cosines(DEEP, deep, name, data)
    tokens, pairs = data.encoded.tokens, data.values.shape[1]
    window = 8
    address = apply(BDH(DEEP), deep, tokens, collect=("address",)).collected["address"]
    address = np.asarray(address).transpose(0, 1, 3, 2, 4).reshape(2, len(tokens), tokens.shape[1], 48)
    for layer in range(2):
        means = []
        for row, ids in enumerate(tokens.tolist()):
            keys, asked = ids[: 2 * pairs : 2], ids[-1]
            places = [p for p in range(pairs - window, pairs) if keys[p] == asked]
            if name == "repeated8":
                places = places[-1:]
            if len(places) > 1:
                continue
            query = address[layer, row, -1]
            cosine = [a @ query / np.linalg.norm(a) / np.linalg.norm(query) for a in address[layer, row, : 2 * pairs : 2]]
            others = [c for c, key in zip(cosine, keys, strict=True) if key != asked]
            means.append([cosine[places[0]], np.mean(others), max(others)])
        assert rows[layer][:3] == (name, layer + 1, len(means))
        np.testing.assert_allclose(rows[layer][3:], np.mean(means, axis=0), rtol=1e-4)
    # A code of the first layer depends on nothing but the token.
    assert rows[0].own == pytest.approx(1, abs=1e-5)
    assert rows[1].own < 0.999


def test_an_address_of_zeros_has_cosine_zero(slow):
    silent = {**slow, "encoder": jnp.zeros_like(slow["encoder"])}
    rows = ablations.address_cosines(CONFIG, silent, "n2", nback().evaluation_sets["n2"])
    assert [(row.own, row.others, row.nearest) for row in rows] == [(0, 0, 0)]


def test_one_run_has_every_ablation_and_its_normal_row_is_the_evaluation():
    task, slow = nback(evaluation_sets=("n4",), evaluation_sequences=20), weights(CONFIG)
    result = ablations.run(CONFIG, slow, task)
    assert list(result.scores) == [
        "normal",
        "fast_off",
        "fast_read_off",
        "fast_write_off",
        "slow_read_off",
        "fast_rows_shuffled",
        "carry_fast_state",
        *(f"context_last_{n}" for n in (1, 2, 4, 8)),
        "address_source_gated",
        "address_source_gate",
    ]
    evaluation = task.evaluate(lambda tokens, valid: apply(BDH(CONFIG), slow, tokens).logits)
    assert tuple(result.scores["normal"].values()) == evaluation.rows
    assert [(row.name, row.layer) for row in result.addresses] == [("n4", 1)]
    saved = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert saved["scores"]["fast_off"]["n4"]["ceiling"] == pytest.approx(evaluation.rows[0].ceiling)
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(result.table())
    console.print(result.address_table())
    text = console.file.getvalue()
    for expected in ("n4", "fast_off", f"{evaluation.rows[0].ratio:.4f}", "its own", f"{result.addresses[0].own:.3f}"):
        assert expected in text


def test_a_model_without_fast_weights_has_only_what_concerns_it():
    config = with_fast(enabled=False)
    result = ablations.run(config, weights(config), nback(evaluation_sets=("n2", "n4")))
    assert list(result.scores) == ["normal", *(f"context_last_{n}" for n in (1, 2, 4, 8))]
    assert list(result.scores["context_last_4"]) == ["n2", "n4"]
    assert list(result.scores["context_last_8"]) == ["n4"]
    assert result.addresses == ()


def test_what_does_not_fit_is_named(slow):
    with pytest.raises(ConfigError, match=r"'nback'.*has no sequences of pairs.*integer"):
        ablations.run(dataclasses.replace(CONFIG, vocab_size=300), slow, nback(encoding="text"))
    facts = FactsConfig(evaluation_sequences=4, known=0, known_rows=0).make(seed=0, batch_size=4)
    with pytest.raises(ConfigError, match=r"'facts'.*has no sequences of pairs"):
        ablations.run(dataclasses.replace(CONFIG, vocab_size=facts.vocab_size), slow, facts)
    with pytest.raises(ConfigError, match="up to 129.*vocab_size=100"):
        ablations.run(dataclasses.replace(CONFIG, vocab_size=100), slow, nback())
