"""The graph of neurons: its edges are what neurons pass on, and planted communities, hubs and tails are found, others are not."""

import igraph
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis import graph
from tests.compiled import init

CONFIG = BDHConfig(n_layer=1, d_model=8, n_head=2, n_neurons=64, fast=FastWeightConfig(enabled=False))


@pytest.fixture(scope="module")
def slow():
    return init(BDH(CONFIG), 0)


def blocks(rng, groups=4, size=12, within=0.35, between=0.03):
    """A stochastic block model, as weights: present edges are 1 to 2, others negative."""
    member = np.repeat(np.arange(groups), size)
    chance = np.where(member[:, None] == member[None], within, between)
    present = rng.random(chance.shape) < chance
    np.fill_diagonal(present, False)
    return np.where(present, 1 + rng.random(chance.shape), -1), member


def test_an_edge_is_what_one_neuron_adds_to_another(slow):
    weights = graph.edge_weights(slow)
    assert weights.shape == (64, 64)
    output = np.zeros((2, 32))
    output[1, 5] = 1.0  # neuron 37 alone is active
    received = np.einsum("hn,hnd,dgm->gm", output, slow["decoder"], slow["encoder"])
    np.testing.assert_allclose(weights[37], received.ravel(), rtol=1e-5, atol=1e-7)
    chosen = np.array([3, 37, 60])
    np.testing.assert_allclose(graph.edge_weights(slow, chosen), weights[np.ix_(chosen, chosen)], rtol=1e-6)


def test_the_largest_entries_are_edges_and_loops_are_not():
    weights = np.array([[9, 3, -1], [5, 9, 2], [1, 4, 9.0]])
    found = graph.strongest(weights, 0.5, np.array([10, 20, 30]))
    assert found.edges.tolist() == [[1, 0], [2, 1], [0, 1]]
    assert found.weights.tolist() == [5, 4, 3]
    assert found.threshold == 3
    assert found.nodes == 3
    assert found.degrees("in").tolist() == [1, 2, 0]
    assert found.degrees("out").tolist() == [1, 1, 1]
    assert found.strengths("in").tolist() == [5, 7, 0]
    assert len(graph.strongest(weights, 1.0).edges) == 5, "what is negative is no edge"


@pytest.mark.parametrize("density", [0, 1.5])
def test_a_density_is_a_share(density):
    with pytest.raises(ValueError, match=r"density=.* must lie in \(0, 1\]"):
        graph.strongest(np.ones((3, 3)), density)


def test_of_many_neurons_some_are_drawn(slow):
    assert graph.draw_neurons(5, 8).tolist() == [0, 1, 2, 3, 4]
    drawn = graph.draw_neurons(100, 8, seed=1)
    assert len(set(drawn.tolist())) == 8
    assert drawn.tolist() == sorted(drawn)
    assert drawn.tolist() != graph.draw_neurons(100, 8, seed=2).tolist()
    found = graph.neuron_graph(slow, 0.1, most=20)
    assert found.nodes == 20
    assert found.neurons.max() > 20
    weights = graph.edge_weights(slow)
    source, target = found.neurons[found.edges[0]]
    assert found.weights[0] == pytest.approx(weights[source, target])


def test_shuffled_weights_are_the_same_numbers_elsewhere(slow):
    shuffled = graph.shuffle_weights(slow, 0)
    for name in ("encoder", "decoder"):
        before, after = np.asarray(slow[name]), shuffled[name]
        assert after.shape == before.shape
        np.testing.assert_array_equal(np.sort(after.ravel()), np.sort(before.ravel()))
        assert np.mean(after == before) < 0.1


def test_hubs_have_the_most_edges():
    degrees = np.array([1, 1, 1, 5, 0, 1, 0, 0, 0, 1])
    assert graph.hub_share(degrees, 0.1) == 0.5
    assert graph.hub_share(np.full(10, 3), 0.2) == pytest.approx(0.2)
    assert graph.hub_share(np.zeros(10)) == 0
    star = graph.NeuronGraph(np.arange(4), np.array([[1, 0], [2, 0], [1, 3], [3, 2]]), np.array([1, 2, 4, 3], np.float32))
    assert graph.hubs(star, "in", 3).tolist() == [0, 3, 2], "of equal degrees the stronger first"
    assert graph.hubs(star, "out", 1).tolist() == [1]


def test_hubs_of_one_neuron_that_grew_are_found(slow):
    """A neuron whose encoder grew collects edges, which the same numbers at other places do not."""
    grown = {name: np.array(slow[name]) for name in ("encoder", "decoder")}
    grown["encoder"][:, 0, 7] *= 8
    share = graph.hub_share(graph.neuron_graph(grown, 0.05).degrees("in"))
    shuffled = graph.shuffled_hub_shares(grown, 19, 0.05)
    assert share > shuffled["in"].max()
    assert len(shuffled["out"]) == 19


def test_hubs_in_that_are_hubs_out_are_told_from_those_that_are_not():
    rng = np.random.default_rng(0)
    ends = np.repeat(np.arange(60), [30] * 3 + [1] * 57)
    for begins, larger in ((ends, True), (59 - ends, False)):
        edges = np.stack([rng.permutation(begins), rng.permutation(ends)], axis=1)
        found = graph.hub_pairing(graph.NeuronGraph(np.arange(60), edges, np.ones(len(edges), np.float32)), share=0.05)
        assert (found.out_degree > found.shuffled.mean()) == larger
        assert (found.p_value < 0.05) == larger, (
            "57 of 60 neurons have one edge that begins there: three with one are no surprise"
        )


def test_planted_communities_are_found_and_rewiring_ends_them():
    weights, member = blocks(np.random.default_rng(1))
    found = graph.strongest(weights, 1.0)
    test = graph.modularity_test(found, 39)
    assert test.p_value == pytest.approx(1 / 40)
    assert test.z > 5
    same = member[:, None] == member[None]
    together = test.found.of_node[:, None] == test.found.of_node[None]
    assert np.mean(same == together) > 0.9
    rewired = graph.rewire(found, 1)
    for direction in ("in", "out"):
        assert rewired.degrees(direction).tolist() == found.degrees(direction).tolist()
    assert len({tuple(edge) for edge in rewired.edges.tolist()}) == len(found.edges)
    assert np.all(rewired.edges[:, 0] != rewired.edges[:, 1])
    assert graph.modularity_test(rewired, 39).p_value > 0.05


def test_draws_are_those_of_their_seed_and_leave_others_alone():
    found = graph.strongest(np.random.default_rng(2).normal(size=(40, 40)), 0.1)
    before = graph.modularity_test(found, 5, seed=3)
    igraph.Graph.Erdos_Renyi(n=20, p=0.5)
    again = graph.modularity_test(found, 5, seed=3)
    assert before.rewired.tolist() == again.rewired.tolist()
    assert before.found.of_node.tolist() == again.found.of_node.tolist()
    assert before.rewired.tolist() != graph.modularity_test(found, 5, seed=4).rewired.tolist()


def test_a_graph_without_edges_has_no_communities():
    found = graph.strongest(-np.ones((5, 5)), 0.5)
    assert len(found.edges) == 0
    test = graph.modularity_test(found, 3)
    assert (test.found.modularity, test.z, test.p_value) == (0, 0, 1)


def test_a_planted_power_law_is_found():
    tail = graph.fit_tail(np.random.default_rng(0).zipf(2.5, 400))
    assert tail.heavy
    assert tail.alpha == pytest.approx(2.5, abs=0.25)
    assert tail.power_exponential.log_likelihood > 0
    assert tail.verdict in ("heavy: power law", "heavy: power law and log-normal not distinguishable")


def test_a_steep_power_law_is_not_cut_off():
    tail = graph.fit_tail(np.random.default_rng(0).zipf(3.6, 3000))
    assert tail.alpha == pytest.approx(3.6, abs=0.4)


def test_an_exponential_is_not_heavy():
    tail = graph.fit_tail(np.random.default_rng(0).geometric(0.1, 400))
    assert not tail.heavy
    assert tail.verdict.startswith("not heavy")


def test_strengths_are_fitted_as_real_numbers():
    tail = graph.fit_tail(np.append(np.random.default_rng(0).pareto(1.5, 200) + 1, np.zeros(50)))
    assert tail.heavy
    assert tail.alpha == pytest.approx(2.5, abs=0.4)
    assert tail.size <= 200


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ((1, 1), "heavy: power law"),
        ((0, 1), "heavy: power law and log-normal not distinguishable"),
        ((-1, 1), "heavy: log-normal rather than power law"),
        ((-1, -1), "not heavy: exponential rather than power law"),
        ((1, 0), "not heavy: power law and exponential not distinguishable"),
    ],
)
def test_what_the_two_tests_say_together(better, verdict):
    ratios = [graph.Ratio(float(sign), 0.01 if sign else 0.5) for sign in better]
    assert graph.Tail(2.0, 1.0, 50, *ratios).verdict == verdict


def test_too_few_values_have_no_tail():
    assert graph.fit_tail(np.arange(10)) is None
    assert graph.fit_tail(np.full(100, 3)) is None
