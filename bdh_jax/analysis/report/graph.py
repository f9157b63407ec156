"""The graph of neurons: are there hubs, is its tail heavy, has it communities, and would a graph without learning have them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from bdh_jax.analysis import graph
from bdh_jax.analysis.graph import (
    DENSITIES,
    DENSITY,
    DIRECTIONS,
    HUBS,
    SIGNIFICANT,
    Direction,
    ModularityTest,
    NeuronGraph,
    Tail,
)
from bdh_jax.analysis.nulls import p_of
from bdh_jax.analysis.report.base import Finding, NotApplicable, Section, Subject
from bdh_jax.console import Progress
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.types import Slow

REWIRINGS = 99
SHUFFLES = 99
LEAST = 59
"""Of both, however small a report's budget: with fewer than 40 no p-value for two directions would lie below 5 %."""
OTHER_REWIRINGS = 9
"""At densities beside the first, where they say how large a z is and no p-value is given."""
MODELS = ("trained", "untrained", "shuffled")
SHOWN_HUBS = 8
_MODEL = {"field": "model", "type": "nominal", "scale": {"domain": list(MODELS)}, "title": None}
_SIDE = {"xOffset": {"field": "model", "scale": {"domain": list(MODELS)}}}


class Asked(NamedTuple):
    """What is known of the graph of one model.

    Attributes:
      graph: at the first density.
      tails: of the degrees; None where too few neurons have an edge.
      strength_tails: of the summed weights.
      modularity: density → the test.
    """

    graph: NeuronGraph
    tails: Mapping[Direction, Tail | None]
    strength_tails: Mapping[Direction, Tail | None]
    modularity: Mapping[float, ModularityTest]


def ask(slow: Slow, rewirings: int, others: int, seed: int = 0) -> Asked:
    """Everything about the graph of one model.

    Args:
      slow: its weights.
      rewirings: at the density of all other questions.
      others: at each of the other densities.
      seed: of all draws.
    """
    graphs = {density: graph.neuron_graph(slow, density) for density in DENSITIES}
    first = graphs[DENSITY]
    tests = {
        density: graph.modularity_test(each, rewirings if density == DENSITY else others, seed)
        for density, each in graphs.items()
    }
    tails: dict[Direction, Tail | None] = {direction: graph.fit_tail(first.degrees(direction)) for direction in DIRECTIONS}
    strengths: dict[Direction, Tail | None] = {
        direction: graph.fit_tail(first.strengths(direction)) for direction in DIRECTIONS
    }
    return Asked(first, tails, strengths, tests)


def find(subject: Subject) -> Sequence[Finding]:
    """All findings about the graph.

    Raises:
      NotApplicable: for a model without one.
    """
    if not isinstance(subject.config, BDHConfig):
        raise NotApplicable(
            "The graph G = D_x E is that of a BDH, whose encoder reads what its decoder wrote; this model has none."
        )
    rewirings, others, shuffles = (
        max(least, round(count * subject.budget))
        for least, count in ((LEAST, REWIRINGS), (3, OTHER_REWIRINGS), (LEAST, SHUFFLES))
    )
    asked: dict[tuple[int, str], Asked] = {}
    shuffled: dict[int, Mapping[Direction, np.ndarray]] = {}
    with Progress("graph", len(subject.seeds) * (len(MODELS) + 1)) as progress:
        for seed, slow in subject.seeds.items():
            models = {"trained": slow, "untrained": subject.untrained(seed), "shuffled": graph.shuffle_weights(slow, seed)}
            for name, weights in models.items():
                asked[seed, name] = ask(weights, rewirings, others, seed)
                progress.advance(1, f"seed {seed}, {name}")
            shuffled[seed] = graph.shuffled_hub_shares(slow, shuffles, seed=1000 * (seed + 1))
            progress.advance(1, f"seed {seed}, shuffled weights")
    return [
        _modularity(asked, rewirings, others),
        _degrees(asked, shuffled),
        _tails(asked),
        _hubs(subject, asked),
    ]


def _of(asked: Mapping[tuple[int, str], Asked], model: str) -> list[Asked]:
    return [found for (_, name), found in asked.items() if name == model]


def _modularity(asked: Mapping[tuple[int, str], Asked], rewirings: int, others: int) -> Finding:
    rows = []
    for (seed, model), found in asked.items():
        for density, test in found.modularity.items():
            sizes = np.bincount(test.found.of_node)
            rows.append(
                {
                    "seed": seed,
                    "model": model,
                    "density": density,
                    "modularity": round(test.found.modularity, 4),
                    "rewired_mean": round(float(np.mean(test.rewired)), 4),
                    "rewired_sd": round(float(np.std(test.rewired, ddof=1)), 4),
                    "z": round(test.z, 2),
                    "p_value": round(test.p_value, 4) if density == DENSITY else None,
                    "rewirings": len(test.rewired),
                    "communities_of_10_or_more": int(np.sum(sizes >= 10)),
                    "largest": int(sizes.max()),
                }
            )
    tests = {model: [found.modularity[DENSITY] for found in _of(asked, model)] for model in MODELS}
    p = {model: max(test.p_value for test in each) for model, each in tests.items()}
    excess = {
        model: float(np.mean([t.found.modularity - np.mean(t.rewired) for t in each])) for model, each in tests.items()
    }
    modular = p["trained"] < SIGNIFICANT
    z = [test.z for test in tests["trained"]]
    says = (
        f"At a density of {DENSITY:.0%} the trained graph has modularity {_spread([t.found.modularity for t in tests['trained']])}, "
        f"{excess['trained']:+.3f} against graphs with the same degrees (z {_range(z)}, p ≤ {p['trained']:.3g} in every "
        "seed)"
        if modular
        else f"The trained graph's modularity is not distinguishable from that of graphs with the same degrees (largest p over seeds "
        f"{p['trained']:.2g})"
    )
    controls = []
    for model in MODELS[1:]:
        each = tests[model]
        # Whether any of the seeds shows anything: Fisher's combination, which is quicker to say so than the largest p-value.
        combined: Any = stats.combine_pvalues([test.p_value for test in each])
        together = float(combined.pvalue)
        alike = together >= SIGNIFICANT
        controls.append(
            f"the {model} model {excess[model]:+.3f} (z {_range([test.z for test in each])}, p {together:.2g} over seeds"
            f"{', not distinguishable' if alike else ''})"
        )
    title = "Communities: not distinguishable from a graph with the same degrees"
    if modular:
        title = "The trained graph has communities that its degrees do not explain"
        if excess["trained"] <= max(excess[model] for model in MODELS[1:]):
            title += ", but no more than without training"
    return Finding(
        name="modularity",
        title=title,
        says=f"{says}; {'; '.join(controls)}.",
        null=(
            f"Graphs in which pairs of edges trade their targets until nothing but every neuron's degrees is left: {rewirings} of each "
            f"graph at a density of {DENSITY:.0%}, {others} at others, where no p-value is given. The p-value is the largest over seeds; those of the "
            "controls are combined over seeds (Fisher)."
        ),
        caption=(
            "Modularity by Leiden of the directed graph G = D_x E against its density (the share of pairs of neurons with an edge: the "
            "largest entries of G are edges), of the trained model, the same model untrained, and the trained model with the entries of its "
            "weights shuffled. Bars reach from the mean of graphs with the same degrees to the graph itself. One mark a seed."
        ),
        alternative=says + ". " + "; ".join(controls) + ".",
        rows=rows,
        chart={
            "encoding": {
                "x": {
                    "field": "density",
                    "type": "ordinal",
                    "axis": {"labelExpr": "format(datum.value, '.2~%')", "labelAngle": 0},
                    "title": "density: share of pairs of neurons with an edge",
                },
                "color": _MODEL,
                **_SIDE,
                "tooltip": [{"field": name} for name in ("seed", "model", "modularity", "rewired_mean", "z", "p_value")],
            },
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 2},
                    "encoding": {
                        "y": {"field": "rewired_mean", "type": "quantitative", "title": "modularity"},
                        "y2": {"field": "modularity"},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 50},
                    "encoding": {
                        "y": {"field": "modularity", "type": "quantitative"},
                        "shape": _MODEL,
                    },
                },
            ],
        },
        p_value=p["trained"],
        effect=excess["trained"],
    )


def _degrees(asked: Mapping[tuple[int, str], Asked], shuffled: Mapping[int, Mapping[Direction, np.ndarray]]) -> Finding:
    rows = []
    for (seed, model), found in asked.items():
        for direction in DIRECTIONS:
            degrees = np.sort(found.graph.degrees(direction))
            values, first = np.unique(degrees, return_index=True)
            shares = 1 - first / len(degrees)
            for value, share in zip(values, shares, strict=True):
                if value:
                    rows.append(
                        {
                            "seed": seed,
                            "model": model,
                            "direction": direction,
                            "degree": int(value),
                            "share": round(float(share), 5),
                        }
                    )
    share = {
        (model, direction): [graph.hub_share(found.graph.degrees(direction)) for found in _of(asked, model)]
        for model in MODELS
        for direction in DIRECTIONS
    }
    seeds = list(shuffled)
    # Twice, since both directions are asked.
    p_values = {
        direction: min(
            1.0,
            2
            * max(
                float(p_of(share["trained", direction][number], shuffled[seed][direction]))
                for number, seed in enumerate(seeds)
            ),
        )
        for direction in DIRECTIONS
    }
    random = {direction: float(np.mean([shuffled[seed][direction] for seed in seeds])) for direction in DIRECTIONS}
    parts = []
    for direction in DIRECTIONS:
        numbers = (
            f"{_percent(share['trained', direction])} of edges {'end at' if direction == 'in' else 'begin at'} the first "
            f"{HUBS:.0%} of neurons, untrained {_percent(share['untrained', direction])}, of shuffled weights {random[direction]:.1%}"
        )
        alike = p_values[direction] >= SIGNIFICANT
        parts.append(f"{numbers} ({'not distinguishable, ' if alike else ''}largest p over seeds {p_values[direction]:.2g})")
    some = [direction for direction in DIRECTIONS if p_values[direction] < SIGNIFICANT]
    says = "; ".join(parts) + "."
    where = " and ".join(f"{direction}coming" if direction == "in" else "outgoing" for direction in some)
    return Finding(
        name="degrees",
        title=f"Training made hubs of {where} edges" if some else "Hubs: not distinguishable from those of shuffled weights",
        says=says[0].upper() + says[1:],
        null=(
            f"The same numbers at other places: entries of encoder and decoder permuted, {len(shuffled[seeds[0]]['in'])} times a seed. "
            "The p-values are the largest over seeds, times two directions; that of the figure is the smaller one."
        ),
        caption=(
            f"The share of neurons with at least so many edges that end (in) or begin (out) at them, in the graph of the largest "
            f"{DENSITY:.0%} of entries of G = D_x E; both axes logarithmic, so that a power law is a straight line. Trained model, the same "
            "model untrained, and the trained model with shuffled weights; one line a seed."
        ),
        alternative=says,
        rows=rows,
        chart={
            "mark": {"type": "line", "interpolate": "step-before", "opacity": 0.8},
            "encoding": {
                "x": {
                    "field": "degree",
                    "type": "quantitative",
                    "scale": {"type": "log", "nice": False},
                    "title": "edges of a neuron, at least",
                },
                "y": {
                    "field": "share",
                    "type": "quantitative",
                    "scale": {"type": "log", "nice": False},
                    "title": "share of neurons",
                },
                "color": _MODEL,
                "strokeDash": _MODEL,
                "detail": {"field": "seed"},
                "column": {"field": "direction", "type": "nominal", "title": None},
                "tooltip": [{"field": name} for name in ("seed", "model", "degree", "share")],
            },
        },
        p_value=min(p_values.values()),
        effect=float(np.mean(share["trained", "in"])),
    )


def _tails(asked: Mapping[tuple[int, str], Asked]) -> Finding:
    rows: list[dict[str, Any]] = []
    for (seed, model), found in asked.items():
        for what, tails in (("degree", found.tails), ("strength", found.strength_tails)):
            for direction, tail in tails.items():
                row: dict[str, Any] = {"seed": seed, "model": model, "of": f"{direction}-{what}"}
                if tail is None:
                    row |= dict.fromkeys(
                        ("alpha", "from", "neurons", "R_log_normal", "p_log_normal", "R_exponential", "p_exponential")
                    )
                    row["verdict"] = "too few neurons with an edge"
                else:
                    row |= {
                        "alpha": round(tail.alpha, 2),
                        "from": round(tail.smallest, 2),
                        "neurons": tail.size,
                        "R_log_normal": round(tail.power_log_normal.log_likelihood, 1),
                        "p_log_normal": float(f"{tail.power_log_normal.p_value:.2g}"),
                        "R_exponential": round(tail.power_exponential.log_likelihood, 1),
                        "p_exponential": float(f"{tail.power_exponential.p_value:.2g}"),
                        "verdict": tail.verdict,
                    }
                rows.append(row)
    parts = []
    for direction in DIRECTIONS:
        heavy = {model: _heavy(_of(asked, model), direction) for model in MODELS}
        total = len(_of(asked, "trained"))
        verdicts = sorted({tail.verdict for found in _of(asked, "trained") if (tail := found.tails[direction])})
        controls = ", ".join(f"{model} {heavy[model]}" for model in MODELS[1:])
        parts.append(
            f"the {direction}-degrees of {heavy['trained']} of {total} seeds have a heavy tail ({' / '.join(verdicts)}; {controls})"
        )
    trained = [tail for found in _of(asked, "trained") if (tail := found.tails["in"])]
    everywhere = bool(trained) and _heavy(_of(asked, "trained"), "in") == len(_of(asked, "trained"))
    power = all(tail.power_log_normal.better == 1 for tail in trained)
    title = "No heavy tail of in-degrees in every seed"
    if everywhere:
        title = (
            "In-degrees have a heavy tail, and a power law fits it best"
            if power
            else "In-degrees have a heavy tail; that it is a power law does not follow"
        )
    says = "; ".join(parts) + "."
    return Finding(
        name="tails",
        title=title,
        says=says[0].upper() + says[1:],
        null=(
            "Vuong's test of a power law against an exponential, where heavy means that the power law is better at p < 0.05, and against "
            "a log-normal; not distinguishable where p is larger. R is the difference of log-likelihoods, above zero for the power law. "
            "The p-value is the largest over seeds, of in-degrees, one-sided for heavier than an exponential."
        ),
        caption=(
            "Fits to the tails of degrees and of strengths (sums of the weights of a neuron's edges) of the graph, in and out, of the trained "
            "model and its two controls: the exponent alpha, where the tail begins (from), how many neurons are in it, and both tests."
        ),
        alternative=says,
        rows=rows,
        p_value=max((_one_sided(tail) for tail in trained), default=1.0),
        effect=float(np.mean([tail.alpha for tail in trained])) if trained else None,
    )


def _heavy(found: Sequence[Asked], direction: Direction) -> int:
    return sum(tail is not None and tail.heavy for tail in (each.tails[direction] for each in found))


def _one_sided(tail: Tail) -> float:
    ratio = tail.power_exponential
    return ratio.p_value / 2 if ratio.log_likelihood > 0 else 1 - ratio.p_value / 2


def _hubs(subject: Subject, asked: Mapping[tuple[int, str], Asked]) -> Finding:
    config = subject.config
    assert isinstance(config, BDHConfig)
    rows = []
    for (seed, model), found in asked.items():
        if model != "trained":
            continue
        degrees = {direction: found.graph.degrees(direction) for direction in DIRECTIONS}
        for direction in DIRECTIONS:
            for node in graph.hubs(found.graph, direction, SHOWN_HUBS):
                head, neuron = divmod(int(found.graph.neurons[node]), config.neurons_per_head)
                rows.append(
                    {
                        "seed": seed,
                        "hub": direction,
                        "head": head,
                        "neuron": neuron,
                        "in": int(degrees["in"][node]),
                        "out": int(degrees["out"][node]),
                        "strength": round(float(found.graph.strengths(direction)[node]), 2),
                    }
                )
    pairings = [graph.hub_pairing(found.graph, seed=seed) for (seed, model), found in asked.items() if model == "trained"]
    found, chance = (
        float(np.mean(each)) for each in zip(*((p.out_degree, np.mean(p.shuffled)) for p in pairings), strict=True)
    )
    p_value = max(pairing.p_value for pairing in pairings)
    above = {pairing.out_degree > np.mean(pairing.shuffled) for pairing in pairings}
    alike = p_value >= SIGNIFICANT or len(above) > 1
    says = (
        f"The {HUBS:.0%} of neurons at which most edges end have {found:.1f} edges that begin there, where {chance:.1f} are expected by "
        f"chance (largest p over seeds {p_value:.2g}{', not distinguishable' if alike else ''})."
    )
    title = "Hubs in and hubs out: not distinguishable from chance pairing"
    if not alike:
        title = f"Neurons that many write to write to {'many' if above == {True} else 'few'} themselves"
    return Finding(
        name="hubs",
        title=title,
        says=says,
        null=(
            "Neurons that have an edge trade their out-degrees, 999 times; two-sided. The p-value is the largest over seeds, and seeds must "
            "agree in direction."
        ),
        caption=(
            f"The {SHOWN_HUBS} neurons of each seed at which most edges end (hub: in) and begin (out), with both degrees and the sum of the "
            "weights of those edges. Neurons are numbered within their head."
        ),
        alternative=says,
        rows=rows,
        p_value=p_value,
        effect=found - chance,
    )


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.1f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _percent(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1%}"


SECTION = Section(
    title="The graph of neurons",
    asks=(
        "BDH's neurons form a graph: what one adds to the stream that all share, others read. Has training given it hubs and communities, as "
        "the paper reports, and would the same weights at other places, or a model before training, have them too?"
    ),
    find=find,
    place=40,
)
