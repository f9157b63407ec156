"""Where there is nothing, p-values are uniform: the nulls of the graph, of synapses and of what a read is worth, over 200 shuffles each.

A p-value of S permutations lies on the grid 1/(S + 1), …, 1, so that the distance of its distribution to the uniform one (Kolmogorov and
Smirnov) is at most that of 200 uniform numbers and one step of the grid. 200 uniform numbers stay below ``BOUND`` in all but one of
1,000 cases.
"""

import jax
import numpy as np
import pytest
from scipy import stats

from bdh_jax.analysis import graph, synapses, writing
from bdh_jax.analysis.fast_states import shuffle_attention_by, shuffle_rows_by
from bdh_jax.analysis.nulls import p_of
from bdh_jax.config.seeds import key_of
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from tests.compiled import init

SHUFFLES = 200
BOUND = stats.kstwo.isf(1e-3, SHUFFLES)
"""0.137."""


def distance(p_values):
    return stats.kstest(p_values, "uniform").statistic


def assert_uniform(p_values, permutations):
    assert len(p_values) == SHUFFLES
    assert distance(p_values) <= BOUND + 1 / (permutations + 1)


def most_of(chance):
    """As many of 200 as chance has in all but one of 1,000 cases."""
    return stats.binom.isf(1e-3, SHUFFLES, chance)


def test_the_bound_is_below_what_another_distribution_has():
    assert pytest.approx(0.137, abs=0.001) == BOUND
    assert distance(np.random.default_rng(0).random(SHUFFLES) ** 3) > BOUND + 0.1


def test_modularity_of_graphs_with_given_degrees():
    """Graphs of the null itself: a scale-free one, rewired."""
    rng = np.random.default_rng(0)
    degrees = np.minimum(rng.zipf(2.0, 40), 12)
    chance = np.outer(degrees, degrees) / degrees.sum()
    start = graph.strongest(np.where(rng.random((40, 40)) < chance, 1.0, -1.0), 1.0)
    p_values = [graph.modularity_test(graph.rewire(start, seed), 39, 1000 + seed).p_value for seed in range(SHUFFLES)]
    assert_uniform(p_values, 39)


def test_hubs_of_shuffled_weights():
    rng = np.random.default_rng(1)
    slow = {"encoder": rng.normal(size=(6, 2, 30)) ** 3, "decoder": rng.normal(size=(2, 30, 6))}
    p_values = []
    for seed in range(SHUFFLES):
        one = graph.shuffle_weights(slow, 10_000 + seed)
        share = graph.hub_share(graph.neuron_graph(one, 0.1).degrees("in"), 0.05)
        others = [graph.neuron_graph(graph.shuffle_weights(one, 100 * seed + n), 0.1) for n in range(19)]
        shares = np.array([graph.hub_share(other.degrees("in"), 0.05) for other in others])
        # Shares are tied: a small part of a chance decides between equals.
        shares, share = shares + rng.uniform(0, 1e-9, 19), share + rng.uniform(0, 1e-9)
        p_values.append(float(graph.p_of(share, shares)))
    assert_uniform(p_values, 19)


def test_pairing_of_hubs():
    rng = np.random.default_rng(2)
    p_values = []
    for seed in range(SHUFFLES):
        edges = np.stack([rng.integers(0, 80, 600), rng.integers(0, 80, 600)], axis=1)
        found = graph.NeuronGraph(np.arange(80), edges, np.ones(600, np.float32))
        p_values.append(graph.hub_pairing(found, 199, seed, share=0.1).p_value)
    assert_uniform(p_values, 99)


@pytest.mark.parametrize("draw", ["geometric", pytest.param("poisson", marks=pytest.mark.full)])
def test_light_tails_are_not_called_heavy(draw):
    rng = np.random.default_rng(3)
    heavy = 0
    for _ in range(SHUFFLES):
        values = rng.geometric(0.1, 150) if draw == "geometric" else rng.poisson(10, 150)
        tail = graph.fit_tail(values)
        heavy += tail is not None and tail.heavy
    assert heavy <= most_of(0.05 / 2), "half of a two-sided test at 5 %"


def noise(rng):
    """Entries that depend on each other, some of them with ties, and nothing to do with any set."""
    values = rng.normal(size=(32, 4)) @ rng.normal(size=(4, 30)) + rng.normal(size=(32, 30))
    values[:, 20:] = np.maximum(0, values[:, 20:])
    return values.astype(np.float32)


@pytest.mark.parametrize("groups", [2, 3])
def test_the_best_of_a_search_in_noise(groups):
    """The corrected p-value of the best is uniform, and the uncorrected one is far from it; what passes the false discovery rate, passes
    in no more than 5 % of shuffles; and texts held out know nothing of it."""
    rng = np.random.default_rng(4)
    labels = np.arange(32) % groups
    corrected, alone, any_passed, as_many, held_out = [], [], 0, [], []
    for seed in range(SHUFFLES):
        values = noise(rng)
        train, test = synapses.split(labels, seed)
        found = synapses.search(values[train], labels[train], 99, seed)
        contrast, entry = found.best
        corrected.append(found.corrected.min())
        alone.append(found.p_values.min())
        any_passed += bool(found.discovered.any())
        as_many.append(found.p_discovered)
        held = synapses.hold_out(values[test], labels[test], found, contrast[:1], entry[:1])
        held_out.append(held.p_values[0])
    assert_uniform(corrected, 99)
    assert distance(alone) > BOUND + 0.1
    assert any_passed <= most_of(synapses.FALSE_DISCOVERIES)
    assert np.mean(np.array(as_many) <= 0.05) * SHUFFLES <= most_of(0.05)
    # Ranks of 16 texts, some tied, are few numbers: the largest gap between two p-values is a step of the grid.
    assert_uniform(held_out, 15)


def test_a_planted_synapse_is_found_nearly_always_and_holds():
    rng = np.random.default_rng(5)
    labels = np.arange(32) % 2
    right = held = 0
    for seed in range(SHUFFLES):
        values = noise(rng)
        values[:, 3] += 10 * labels
        train, test = synapses.split(labels, seed)
        found = synapses.search(values[train], labels[train], 99, seed)
        contrast, entry = found.best
        right += entry[0] == 3 and found.corrected[0, 3] <= 0.05
        held += synapses.hold_out(values[test], labels[test], found, contrast[:1], entry[:1]).p_values[0] < 0.05
    assert right >= 0.9 * SHUFFLES
    assert held >= 0.9 * SHUFFLES


WRITING = BDHConfig(
    vocab_size=12,
    n_layer=2,
    d_model=8,
    n_head=2,
    n_neurons=32,
    dropout=0.0,
    init_std=0.3,
    fast=FastWeightConfig(learning_rate=2.0),
)


@pytest.mark.parametrize(("which", "shuffle", "spoken"), [("S", shuffle_rows_by, True), ("ρ", shuffle_attention_by, False)])
def test_what_a_read_of_shuffled_rows_is_worth(which, shuffle, spoken):
    """States of the null itself: rows already in another order. As it was written, a state is told from them where those tokens come that
    gain most by the order of its rows."""
    rng = np.random.default_rng(6)
    slow = init(WRITING.build(), 0)
    tokens = rng.integers(0, 12, (6, 12)).astype(np.int32)
    last = rng.integers(0, 12, (6, 1)).astype(np.int32)
    fast = jax.jit(lambda: WRITING.build().apply({"params": slow}, tokens).carried)()
    shuffled = jax.jit(lambda key: shuffle(fast, key))
    came = rng.integers(0, 12, 6) if spoken else None

    def p_value(state, seed, came):
        read = writing.reads(WRITING, slow, state, last, which, shuffles=39, seed=seed)
        return float(p_of(*writing.worth(read, came)))

    p_values = [p_value(shuffled(key_of(10_000 + seed)), seed, came) for seed in range(SHUFFLES)]
    assert_uniform(p_values, 39)
    chosen = writing.reads(WRITING, slow, fast, last, which, shuffles=39, seed=1000)
    gains = (chosen.normal - chosen.shuffled.mean(axis=0)).argmax(axis=1)
    assert p_value(fast, 0, gains) == 1 / 40
