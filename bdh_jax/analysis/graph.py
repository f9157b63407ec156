"""The graph of neurons of a BDH, G = D_x E (arXiv 2509.26507): what a neuron's output adds to what another one receives.

Neuron i writes its row of the decoder into the width D, and neuron j reads its column of the encoder from there:

    G[i, j] = decoder_i · encoder_j        an edge from i to j, over all heads; layer norms between are left out, as in the paper

All layers have the same weights, so there is one graph of K = H·N nodes. Of its K (K − 1) entries off the diagonal the M largest are
edges, if they are positive: a stated density instead of a stated weight, so that models of any scale can be compared.

Communities and rewirings are igraph's, fits of tails powerlaw's (the extra ``report``).

Axis letters: see :mod:`bdh_jax.types`; K = H·N neurons, n nodes, M edges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import warnings
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from bdh_jax.analysis.nulls import p_of
from bdh_jax.types import Slow

DENSITY = 0.01
"""The share of pairs of neurons that have an edge, unless another is asked for."""
DENSITIES = (0.0025, 0.005, 0.01, 0.02)
"""Those over which it is swept."""
MOST_NODES = 4096
"""Of larger models so many neurons are drawn, and the graph is that among them."""
HUBS = 0.01
"""The share of nodes that :func:`hub_share` calls hubs: those of the largest degree."""
SIGNIFICANT = 0.05

Direction = Literal["in", "out"]
DIRECTIONS: tuple[Direction, ...] = ("in", "out")


@dataclasses.dataclass(frozen=True)
class NeuronGraph:
    """A directed graph without loops.

    Attributes:
      neurons: int64 [n], which neuron of K each node is; head and neuron of a head are ``divmod(neuron, N)``.
      edges: int64 [M, 2], source and target, as nodes.
      weights: float32 [M], positive, the largest first.
    """

    neurons: np.ndarray
    edges: np.ndarray
    weights: np.ndarray

    @property
    def nodes(self) -> int:
        """n."""
        return len(self.neurons)

    @property
    def threshold(self) -> float:
        """The smallest weight that is an edge."""
        return float(self.weights[-1]) if len(self.weights) else 0.0

    def degrees(self, direction: Direction) -> np.ndarray:
        """Edges that end ("in") or begin ("out") at each node, int64 [n]."""
        return np.bincount(self.edges[:, _END[direction]], minlength=self.nodes)

    def strengths(self, direction: Direction) -> np.ndarray:
        """The sum of their weights, float64 [n]."""
        return np.bincount(self.edges[:, _END[direction]], self.weights.astype(np.float64), minlength=self.nodes)


_END = {"out": 0, "in": 1}


def draw_neurons(total: int, most: int = MOST_NODES, seed: int = 0) -> np.ndarray:
    """All of ``total`` neurons, or ``most`` of them drawn without replacement, in ascending order: int64 [min(total, most)]."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng((seed, total)).choice(total, most, replace=False))


def edge_weights(slow: Slow, neurons: np.ndarray | None = None) -> np.ndarray:
    """G among some neurons.

    Args:
      slow: weights of a BDH: ``encoder`` [D, H, N] and ``decoder`` [H, N, D].
      neurons: which of K; None: all.

    Returns:
      float32 [n, n], from row to column.
    """
    encoder, decoder = (np.asarray(slow[name], np.float32) for name in ("encoder", "decoder"))
    readers, writers = encoder.reshape(encoder.shape[0], -1), decoder.reshape(-1, decoder.shape[-1])
    return writers @ readers if neurons is None else writers[neurons] @ readers[:, neurons]


def strongest(weights: np.ndarray, density: float = DENSITY, neurons: np.ndarray | None = None) -> NeuronGraph:
    """The graph of the M = density · n (n − 1) largest entries off the diagonal, or of all positive ones where those are fewer.

    Args:
      weights: [n, n], from row to column.
      density: in (0, 1].
      neurons: what each node is called; None: its number.

    Raises:
      ValueError: for a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density={density} must lie in (0, 1]: the share of pairs of neurons that have an edge")
    nodes = len(weights)
    flat = np.array(weights, np.float32)
    np.fill_diagonal(flat, -np.inf)
    flat = flat.ravel()
    count = max(1, round(density * nodes * (nodes - 1)))
    kept = np.argpartition(flat, len(flat) - count)[len(flat) - count :]
    kept = kept[flat[kept] > 0]
    kept = kept[np.argsort(-flat[kept], kind="stable")]
    edges = np.stack(np.divmod(kept, nodes), axis=1)
    return NeuronGraph(np.arange(nodes) if neurons is None else neurons, edges, flat[kept])


def neuron_graph(slow: Slow, density: float = DENSITY, *, most: int = MOST_NODES, seed: int = 0) -> NeuronGraph:
    """:func:`strongest` of :func:`edge_weights`, of at most ``most`` neurons."""
    encoder = slow["encoder"]
    neurons = draw_neurons(encoder.shape[1] * encoder.shape[2], most, seed)
    return strongest(edge_weights(slow, neurons), density, neurons)


def shuffle_weights(slow: Slow, seed: int) -> dict[str, np.ndarray]:
    """The same numbers at other places: the entries of the encoder are permuted among themselves, those of the decoder likewise.

    Returns:
      ``encoder`` [D, H, N] and ``decoder`` [H, N, D], float32. Neurons differ no more than by chance.
    """
    rng = np.random.default_rng((seed, 1))
    arrays = {name: np.asarray(slow[name], np.float32) for name in ("encoder", "decoder")}
    return {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in arrays.items()}


# Degrees.


def hub_share(degrees: np.ndarray, share: float = HUBS) -> float:
    """The share of all edges that the nodes of the largest degree have; ``share`` itself if all are alike. 0 without edges."""
    count = max(1, round(share * len(degrees)))
    total = degrees.sum()
    return float(np.sort(degrees)[-count:].sum() / total) if total else 0.0


def hubs(graph: NeuronGraph, direction: Direction, count: int = 10) -> np.ndarray:
    """The nodes of the largest degree, int64 [count]; of equal ones the stronger first."""
    return np.lexsort((-graph.strengths(direction), -graph.degrees(direction)))[:count]


class HubPairing(NamedTuple):
    """Whether neurons at which many edges end are those at which many begin.

    Attributes:
      out_degree: the mean of the nodes of the largest in-degree.
      shuffled: float64 [S], the same where the nodes that have an edge trade their out-degrees.
    """

    out_degree: float
    shuffled: np.ndarray

    @property
    def p_value(self) -> float:
        """Two-sided, by permutation."""
        more, fewer = p_of(self.out_degree, self.shuffled), p_of(-self.out_degree, -self.shuffled)
        return min(1.0, 2 * float(min(more, fewer)))


def hub_pairing(graph: NeuronGraph, shuffles: int = 999, seed: int = 0, share: float = HUBS) -> HubPairing:
    """The out-degree of in-hubs, against chance among the nodes that have an edge."""
    rng = np.random.default_rng((seed, 2))
    ends, begins = graph.degrees("in"), graph.degrees("out")
    at = np.flatnonzero(ends + begins)
    first = np.isin(at, hubs(graph, "in", max(1, round(share * graph.nodes))))
    # What hubs have after a permutation of all is a draw without replacement.
    drawn = [float(np.mean(rng.choice(begins[at], first.sum(), replace=False))) for _ in range(shuffles)]
    return HubPairing(float(np.mean(begins[at][first])), np.array(drawn))


class Ratio(NamedTuple):
    """Two distributions of the same tail, by Vuong's test.

    Attributes:
      log_likelihood: of the first less that of the second, over all of the tail; above zero the first fits better.
      p_value: of no difference between them.
    """

    log_likelihood: float
    p_value: float

    @property
    def better(self) -> int:
        """1 or −1: the first or the second is significantly better. 0: they are not distinguishable."""
        return 0 if not self.p_value < SIGNIFICANT else 1 if self.log_likelihood > 0 else -1


class Tail(NamedTuple):
    """What fits the large values of a sample (Clauset, Shalizi and Newman, 2009; Alstott, Bullmore and Plenz, 2014).

    Attributes:
      alpha: the exponent of the power law.
      smallest: where the tail begins: there the power law fits best (Kolmogorov–Smirnov).
      size: how many values are in it.
      power_log_normal: a power law against a log-normal.
      power_exponential: a power law against an exponential.
    """

    alpha: float
    smallest: float
    size: int
    power_log_normal: Ratio
    power_exponential: Ratio

    @property
    def heavy(self) -> bool:
        """Whether a power law is significantly better than an exponential. That a log-normal is says nothing: it can also fall faster."""
        return self.power_exponential.better == 1

    @property
    def verdict(self) -> str:
        """What it is, of the three."""
        if self.power_exponential.better == -1:
            return "not heavy: exponential rather than power law"
        if not self.heavy:
            return "not heavy: power law and exponential not distinguishable"
        if self.power_log_normal.better == 0:
            return "heavy: power law and log-normal not distinguishable"
        return "heavy: power law" if self.power_log_normal.better == 1 else "heavy: log-normal rather than power law"


STEEPEST = 20
"""The largest α that is tried."""
LEAST_TAIL = 20
"""Fewer positive values are no sample of which a tail could be told."""


def fit_tail(values: np.ndarray) -> Tail | None:
    """Fit the tail of degrees (integers) or strengths; values of zero are left out.

    Returns:
      None if fewer than ``LEAST_TAIL`` values are positive, all are equal, or none is left beyond where the library lets a tail begin.

    Raises:
      ImportError: without the library powerlaw (the extra ``report``).
    """
    import powerlaw  # an optional dependency

    positive = np.asarray(values)[np.asarray(values) > 0]
    if len(positive) < LEAST_TAIL or len(np.unique(positive)) < 3:
        return None
    discrete = bool(np.issubdtype(positive.dtype, np.integer))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of fits whose tail is short, which the p-values say as well
        # The library's own limit, α ≤ 3, makes every power law lose that falls faster.
        fit: Any = powerlaw.Fit(positive, discrete=discrete, verbose=0, parameter_ranges={"alpha": [1, STEEPEST]})
        # Neither of two contains the other: Vuong's ratio is normal if there is nothing between them.
        compare = functools.partial(fit.distribution_compare, "power_law", nested=False)
        try:
            ratios = [Ratio(*(float(value) for value in compare(other))) for other in ("lognormal", "exponential")]
        except ValueError:  # "No data points in defined range of the distribution"
            return None
        return Tail(float(fit.power_law.alpha), float(fit.xmin), int(np.sum(positive >= fit.xmin)), *ratios)


def shuffled_hub_shares(
    slow: Slow, shuffles: int, density: float = DENSITY, *, most: int = MOST_NODES, seed: int = 0
) -> dict[Direction, np.ndarray]:
    """:func:`hub_share` of models whose weights are shuffled: what norms that differ by chance alone make of hubs.

    Returns:
      Direction → float64 [S], of the same shuffles.
    """
    graphs = [neuron_graph(shuffle_weights(slow, seed + number), density, most=most) for number in range(shuffles)]
    return {direction: np.array([hub_share(graph.degrees(direction)) for graph in graphs]) for direction in DIRECTIONS}


# Communities.


class Communities(NamedTuple):
    """Groups of nodes that have more edges among themselves than their degrees make expect.

    Attributes:
      modularity: Q of the directed graph (Leicht and Newman, 2008), the best that Leiden found.
      of_node: int64 [n].
    """

    modularity: float
    of_node: np.ndarray


def communities(graph: NeuronGraph, seed: int = 0) -> Communities:
    """By Leiden (Traag, Waltman and van Eck, 2019) for directed modularity.

    Raises:
      ImportError: without the library igraph (the extra ``report``).
    """
    with _seeded(seed):
        return _leiden(_as_igraph(graph))


class ModularityTest(NamedTuple):
    """Modularity against graphs with the same degrees.

    Attributes:
      found: in the graph itself.
      rewired: float64 [S], Q of each rewired graph.
    """

    found: Communities
    rewired: np.ndarray

    @property
    def p_value(self) -> float:
        """The share of rewired graphs that are at least as modular, by permutation."""
        return float(p_of(self.found.modularity, self.rewired))

    @property
    def z(self) -> float:
        """Standard deviations of rewired graphs above their mean; 0 where they do not differ from it."""
        spread = float(np.std(self.rewired, ddof=1)) if len(self.rewired) > 1 else 0.0
        above = self.found.modularity - float(np.mean(self.rewired))
        return above / spread if spread else 0.0


def modularity_test(graph: NeuronGraph, shuffles: int, seed: int = 0) -> ModularityTest:
    """Leiden on the graph and on ``shuffles`` rewirings, each of 10 M attempted swaps of two edges' targets, which keep every node's
    degree in and out and make no loop and no double edge.

    Raises:
      ImportError: without the library igraph (the extra ``report``).
    """
    with _seeded(seed):
        whole = _as_igraph(graph)
        found = _leiden(whole)
        return ModularityTest(found, np.array([_leiden(_rewire(whole)).modularity for _ in range(shuffles)]))


def rewire(graph: NeuronGraph, seed: int = 0) -> NeuronGraph:
    """One graph with the same degrees. Its weights are in no order of meaning."""
    with _seeded(seed):
        edges = np.array(_rewire(_as_igraph(graph)).get_edgelist(), np.int64).reshape(-1, 2)
    return dataclasses.replace(graph, edges=edges)


def _as_igraph(graph: NeuronGraph) -> Any:
    import igraph  # an optional dependency

    return igraph.Graph(n=graph.nodes, edges=graph.edges, directed=True)


def _rewire(whole: Any) -> Any:
    other = whole.copy()
    other.rewire(n=10 * whole.ecount())
    return other


def _leiden(whole: Any) -> Communities:
    if not whole.ecount():
        return Communities(0.0, np.arange(whole.vcount()))
    found = whole.community_leiden(objective_function="modularity", n_iterations=2)
    return Communities(float(whole.modularity(found.membership, directed=True)), np.array(found.membership, np.int64))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """igraph draws from one generator for the whole process: it is the seed's own within, and Python's again afterwards."""
    import igraph  # an optional dependency

    igraph.set_random_number_generator(random.Random(seed))
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)
