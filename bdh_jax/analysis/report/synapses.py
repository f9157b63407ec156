"""Synapses and neurons that tell sets of texts apart: what a search finds, what it finds in shuffled sets, and what holds elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.analysis import synapses
from bdh_jax.analysis.report.base import SIGNIFICANT, Finding, NotApplicable, Section, Subject
from bdh_jax.analysis.sample_texts import SAMPLE_TEXTS
from bdh_jax.analysis.synapses import FALSE_DISCOVERIES, MOST_ENTRIES, Entries, HeldOut, Kind, Search, Texts
from bdh_jax.console import Progress
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.types import Slow

PERMUTATIONS = 499
SHOWN = 3
"""Synapses, and neurons, of a seed that are put in words."""
_MODEL = {"field": "model", "type": "nominal", "scale": {"domain": ["trained", "untrained", "no model"]}, "title": None}
CALLED: Mapping[Kind, str] = {
    "rho": "entries of ρ",
    "S": "entries of S",
    "neuron": "neurons",
    "token": "shares of single tokens",
}


class Found(NamedTuple):
    """One search, of one model.

    Attributes:
      entries: what was searched.
      search: on the training texts.
      held: every entry that was discovered, or the best alone where none was, on the texts held out; the best first.
    """

    entries: Entries
    search: Search
    held: HeldOut

    @property
    def corrected(self) -> float:
        """The best's p-value."""
        contrast, entry = self.search.best
        return float(self.search.corrected[contrast[0], entry[0]])

    @property
    def effect(self) -> float:
        """The best's effect on the texts that were searched, in absolute value."""
        contrast, entry = self.search.best
        return float(abs(self.search.effects[contrast[0], entry[0]]))


def look(entries: Entries, texts: Texts, train: np.ndarray, test: np.ndarray, permutations: int) -> Found:
    """Search some of the texts, and ask the others about what was found."""
    search = synapses.search(entries.values[train], texts.labels[train], permutations)
    contrast, entry = search.best
    count = max(1, int(search.discovered.sum()))
    held = synapses.hold_out(entries.values[test], texts.labels[test], search, contrast[:count], entry[:count])
    return Found(entries, search, held)


class Asked(NamedTuple):
    """All searches: (seed, model, kind) → what was found, and which texts each seed searched."""

    found: Mapping[tuple[int, str, Kind], Found]
    splits: Mapping[int, tuple[np.ndarray, np.ndarray]]

    def of(self, model: str, kind: Kind) -> list[Found]:
        """Of all seeds."""
        return [found for (_, name, of), found in self.found.items() if (name, of) == (model, kind)]


def find(subject: Subject) -> Sequence[Finding]:
    """All findings about synapses and neurons.

    Raises:
      NotApplicable: for a model without them, or whose tokens are no text.
    """
    config = subject.config
    if not isinstance(config, BDHConfig):
        raise NotApplicable("Synapses are entries of a BDH's ρ and S; this model has none.")
    if subject.encode is None or subject.decode is None:
        raise NotApplicable("This model's tokens are no text, and sets of texts are what synapses are asked about.")
    sets = {name: [subject.encode(text) for text in texts] for name, texts in (subject.own or SAMPLE_TEXTS).items()}
    try:
        texts = synapses.as_texts(sets)
    except ValueError as error:
        raise NotApplicable(f"The sets of texts cannot be compared: {error}.") from None
    kinds: tuple[Kind, ...] = ("rho", "S", "neuron") if config.fast.enabled else ("rho", "neuron")
    asked = _ask(subject, config, texts, kinds)
    findings = [_separation(subject, texts, asked, kinds)]
    words = _in_words(subject, config, texts, asked, kinds)
    findings += [_listed(texts, asked, kind, words) for kind in kinds]
    findings.append(_values(subject, texts, asked))
    return findings


def _ask(subject: Subject, config: BDHConfig, texts: Texts, kinds: Sequence[Kind]) -> Asked:
    permutations = max(199, round(PERMUTATIONS * subject.budget))
    most = max(500, round(MOST_ENTRIES * min(1.0, subject.budget)))
    found: dict[tuple[int, str, Kind], Found] = {}
    splits = {}
    with Progress("synapses", len(subject.seeds) * (2 * len(kinds) + 1)) as progress:
        for seed, slow in subject.seeds.items():
            train, test = splits[seed] = synapses.split(texts.labels, seed)
            models: dict[str, Slow] = {"trained": slow, "untrained": subject.untrained(seed)}
            for name, weights in models.items():
                for kind in kinds:
                    entries = synapses.entries(kind, texts, train, (config, weights), most=most)
                    found[seed, name, kind] = look(entries, texts, train, test, permutations)
                    progress.advance(1, f"seed {seed}, {name}, {CALLED[kind]}")
            entries = synapses.entries("token", texts, train, most=most)
            found[seed, "no model", "token"] = look(entries, texts, train, test, permutations)
            progress.advance(1, f"seed {seed}, {CALLED['token']}")
    return Asked(found, splits)


def _null(asked: Asked) -> str:
    permutations = len(next(iter(asked.found.values())).search.largest_in_shuffled)
    return (
        f"The same search where texts trade their sets, {permutations} times: p-values are for the largest statistic of everything "
        f"searched, and as many pass at a false discovery rate of {FALSE_DISCOVERIES:.0%} (Benjamini and Hochberg) in so many of them. "
        "Then the texts held out, half of every set, which took no part. The p-value is the largest over seeds."
    )


def _separation(subject: Subject, texts: Texts, asked: Asked, kinds: Sequence[Kind]) -> Finding:
    rows = []
    for (seed, model, kind), found in asked.found.items():
        search = found.search
        rows.append(
            {
                "seed": seed,
                "model": model,
                "what": CALLED[kind],
                "searched": search.effects.size,
                "of": found.entries.of,
                "discovered": int(search.discovered.sum()),
                "discovered_in_shuffled": round(float(search.discovered_in_shuffled.mean()), 2),
                "p_discovered": round(search.p_discovered, 4),
                "effect": round(found.effect, 3),
                "largest_in_shuffled": round(float(np.mean(search.largest_in_shuffled)), 3),
                "p_corrected": round(found.corrected, 4),
                "held_out": round(float(found.held.effects[0]), 3),
                "p_held_out": float(f"{found.held.p_values[0]:.2g}"),
                "held_out_of_all_discovered": round(float(np.mean(found.held.effects)), 3),
            }
        )
    parts = [_sentence(asked, "trained", kind) for kind in kinds]
    controls = [f"{CALLED[kind]} {_mean_held(asked, 'untrained', kind):.2f}" for kind in kinds]
    parts.append(
        f"the best of the same searches before training have there: {', '.join(controls)}; and of shares of single tokens, without a model, "
        f"{_mean_held(asked, 'no model', 'token'):.2f}"
    )
    p_values = {kind: max(found.corrected for found in asked.of("trained", kind)) for kind in kinds}
    best = min(kinds, key=lambda kind: p_values[kind])
    p_value = min(1.0, len(kinds) * p_values[best])
    compared: tuple[tuple[str, Kind], ...] = (("trained", best), ("untrained", best), ("no model", "token"))
    held = {(model, kind): _mean_held(asked, model, kind) for model, kind in compared}
    names = " and ".join(texts.names) if len(texts.names) == 2 else f"{len(texts.names)} sets"
    title = f"Single {'neurons' if best == 'neuron' else 'synapses'} tell {names} apart"
    if p_value >= SIGNIFICANT:
        title = f"Nothing in the model tells {names} apart: not distinguishable from shuffled sets"
    elif held["trained", best] <= max(held["untrained", best], held["no model", "token"]):
        title += ", no better than without training or model"
    says = "; ".join(parts) + "."
    return Finding(
        name="separation",
        title=title,
        says=says[0].upper() + says[1:],
        null=f"{_null(asked)} Times {len(kinds)}, since as many kinds of things were searched.",
        caption=(
            f"How well the best entry tells sets of texts apart ({', '.join(_counted(texts))}): rank-biserial correlation, 1 if it is larger in "
            "every text of one set than in all others, on texts held out (points), beside the largest that the search finds in shuffled sets "
            f"(ticks, the mean). Searched are at most {MOST_ENTRIES:,} entries a kind, those of the largest variance over the texts searched, "
            "as many in every layer. Beside the trained model the same model untrained, and how often single tokens stand in a text."
        ),
        alternative=says,
        rows=rows,
        chart={
            "encoding": {
                # A word a line: names of kinds are long, and pages of telephones narrow.
                "x": {
                    "field": "what",
                    "type": "nominal",
                    "title": None,
                    "axis": {"labelAngle": 0, "labelOverlap": False, "labelExpr": "split(datum.value, ' ')"},
                },
                "xOffset": {"field": "model", "scale": _MODEL["scale"]},
                "color": _MODEL,
                "tooltip": [
                    {"field": name} for name in ("seed", "model", "what", "effect", "held_out", "p_corrected", "discovered")
                ],
            },
            "layer": [
                {
                    "mark": {"type": "point", "filled": True, "size": 60},
                    "encoding": {
                        "y": {"field": "held_out", "type": "quantitative", "title": "effect on texts held out"},
                        "shape": _MODEL,
                    },
                },
                {
                    "mark": {"type": "tick", "thickness": 2},
                    "encoding": {"y": {"field": "largest_in_shuffled", "type": "quantitative"}},
                },
            ],
        },
        p_value=p_value,
        effect=held["trained", best],
    )


def _mean_held(asked: Asked, model: str, kind: Kind) -> float:
    return float(np.mean([found.held.effects[0] for found in asked.of(model, kind)]))


def _counted(texts: Texts) -> list[str]:
    return [f"{count} {name}" for name, count in zip(texts.names, np.bincount(texts.labels), strict=True)]


def _sentence(asked: Asked, model: str, kind: Kind) -> str:
    found = asked.of(model, kind)
    p_value = max(each.corrected for each in found)
    passed = np.mean([each.search.discovered.sum() for each in found])
    by_chance = np.mean([each.search.discovered_in_shuffled.mean() for each in found])
    effect, largest = (
        float(np.mean(values))
        for values in ([each.effect for each in found], [each.search.largest_in_shuffled.mean() for each in found])
    )
    held = [float(each.held.effects[0]) for each in found]
    spread = f" ± {np.std(held, ddof=1):.2f}" if len(held) > 1 else ""
    p_held = max(float(each.held.p_values[0]) for each in found)
    who = f"{CALLED[kind]} without a model" if kind == "token" else f"{CALLED[kind]}, {model}"
    verdict = "" if p_value < SIGNIFICANT else ", not distinguishable from shuffled sets"
    return (
        f"{who}: {passed:.1f} discovered (in shuffled sets {by_chance:.1f}), the best's effect {effect:.2f} (in shuffled sets {largest:.2f}; "
        f"p {p_value:.2g}{verdict}), on texts held out {np.mean(held):.2f}{spread} (p {p_held:.2g})"
    )


Words = Mapping[tuple[int, Kind], Sequence[Mapping[str, str]]]


def _in_words(subject: Subject, config: BDHConfig, texts: Texts, asked: Asked, kinds: Sequence[Kind]) -> Words:
    """Contexts of the best of every seed, from texts held out."""
    assert subject.decode is not None
    words: dict[tuple[int, Kind], list[Mapping[str, str]]] = {}
    with Progress("contexts", len(subject.seeds) * len(kinds)) as progress:
        for seed, slow in subject.seeds.items():
            others = texts.select(asked.splits[seed][1])
            for kind in kinds:
                index = _best_entries(asked.found[seed, "trained", kind])
                if kind == "neuron":
                    fires = synapses.codes(config, slow, others, index)
                    parts = {"fires at": fires}
                else:
                    traces = synapses.trace(kind, config, slow, others, index)
                    parts = {"changes at": traces.change, "is read at": traces.read}
                words[seed, kind] = [
                    {
                        name: " · ".join(synapses.top_contexts(array[..., number], others, subject.decode))
                        for name, array in parts.items()
                    }
                    for number in range(len(index))
                ]
                progress.advance(1, f"seed {seed}, {CALLED[kind]}")
    return words


def _best_entries(found: Found) -> np.ndarray:
    _, entry = found.search.best
    return found.entries.index[list(dict.fromkeys(entry.tolist()))[:SHOWN]]


def _listed(texts: Texts, asked: Asked, kind: Kind, words: Words) -> Finding:
    rows: list[dict[str, Any]] = []
    for (seed, model, of), found in asked.found.items():
        if (model, of) != ("trained", kind):
            continue
        contrast, entry = found.search.best
        first = {int(m): number for number, m in reversed(list(enumerate(entry)))}
        _, test = asked.splits[seed]
        for number, index in enumerate(_best_entries(found)):
            m = int(np.flatnonzero((found.entries.index == index).all(axis=1))[0])
            c = int(contrast[first[m]])
            held = synapses.hold_out(
                found.entries.values[test], texts.labels[test], found.search, np.array([c]), np.array([m])
            )
            name = texts.names[found.search.contrasts[c]]
            if found.search.effects[c, m] < 0:
                name = texts.names[1] if len(texts.names) == 2 else f"all but {name}"
            rows.append(
                {
                    "seed": seed,
                    **dict(
                        zip(
                            ("layer", "head", "neuron", "coordinate"),
                            [int(index[0]) + 1, *map(int, index[1:])],
                            strict=False,
                        )
                    ),
                    "larger_in": name,
                    "effect": round(abs(float(found.search.effects[c, m])), 3),
                    "p_corrected": round(float(found.search.corrected[c, m]), 4),
                    "held_out": round(float(held.effects[0]), 3),
                    "p_held_out": float(f"{held.p_values[0]:.2g}"),
                    **words[seed, kind][number],
                }
            )
    found = asked.of("trained", kind)
    p_value, held = max(each.corrected for each in found), _mean_held(asked, "trained", kind)
    alike = p_value >= SIGNIFICANT
    what = {"rho": "Synapses in ρ", "S": "Synapses in S", "neuron": "Neurons"}[kind]
    says = _sentence(asked, "trained", kind) + "."
    shown = (
        "where its code is largest"
        if kind == "neuron"
        else "at which tokens it changes most, and at which it is read most, which is its row's query times its value"
    )
    return Finding(
        name={"rho": "synapses", "S": "synapses_of_S", "neuron": "neurons"}[kind],
        title=f"{what}: not distinguishable from shuffled sets"
        if alike
        else f"{what} that tell the sets apart, and what they do",
        says=says[0].upper() + says[1:],
        null=_null(asked),
        caption=(
            f"The best {SHOWN} of each seed, from the smallest p-value: where it is (layers from 1, all else from 0), in which set its values are larger and by "
            "what effect (rank-biserial correlation), corrected for everything searched, the same on texts held out, and, in words from "
            f"those texts, {shown}; the token is in brackets."
        ),
        alternative=says,
        rows=rows,
        p_value=p_value,
        effect=held,
    )


def _values(subject: Subject, texts: Texts, asked: Asked) -> Finding:
    """The best synapse of the first seed, text by text."""
    assert subject.decode is not None
    seed = next(iter(subject.seeds))
    found, (train, test) = asked.found[seed, "trained", "rho"], asked.splits[seed]
    contrast, entry = found.search.best
    index, values = found.entries.index[entry[0]], found.entries.values[:, entry[0]]
    scale = float(np.max(np.abs(values))) or 1.0
    rows = [
        {
            "text": subject.decode(texts.tokens[row][texts.valid[row]].tolist()),
            "set": texts.names[texts.labels[row]],
            "texts": part,
            "value": float(f"{values[row] / scale:.3g}"),
        }
        for part, rows_of in (("searched", train), ("held out", test))
        for row in rows_of.tolist()
    ]
    where = f"layer {index[0] + 1}, head {index[1]}, neuron {index[2]}, coordinate {index[3]}"
    name = texts.names[found.search.contrasts[contrast[0]]]
    larger = found.search.effects[contrast[0], entry[0]] >= 0
    held = float(found.held.effects[0])
    alike = found.corrected >= SIGNIFICANT
    says = (
        f"In seed {seed} the entry of ρ at {where} is {'larger' if larger else 'smaller'} in {name}: effect {found.effect:.2f} on the texts "
        f"searched (p {found.corrected:.2g}{', not distinguishable from shuffled sets' if alike else ''}), {held:.2f} on those held out "
        f"(p {found.held.p_values[0]:.2g})."
    )
    return Finding(
        name="best_synapse",
        title="The best synapse, text by text" + (": not distinguishable from shuffled sets" if alike else ""),
        says=says,
        null=_null(asked),
        caption=(
            f"One entry of ρ after each text, {where} (layers from 1, all else from 0) of seed {seed}, per token of the text and in parts of its largest value; texts that were "
            "searched beside those held out."
        ),
        alternative=says,
        rows=rows,
        chart={
            "mark": {"type": "tick", "thickness": 2},
            "encoding": {
                "x": {"field": "value", "type": "quantitative", "title": "value of the synapse, parts of the largest"},
                "y": {"field": "set", "type": "nominal", "title": None},
                "row": {
                    "field": "texts",
                    "type": "nominal",
                    "sort": ["searched", "held out"],
                    "title": None,
                    "header": {"labelAngle": 0, "labelAlign": "left", "labelOrient": "top", "labelAnchor": "start"},
                },
                "color": {"field": "set", "type": "nominal"},
                "tooltip": [{"field": "text"}, {"field": "value"}],
            },
        },
        p_value=found.corrected,
        effect=held,
    )


SECTION = Section(
    title="Synapses that mean something",
    asks=(
        "The paper calls an entry of the state a synapse, and finds single ones that stand for one subject. Here entries and neurons are asked "
        "which of two or more sets of texts they belong to; is there more than a search finds where there is nothing, and does it hold on "
        "other texts?"
    ),
    find=find,
    place=50,
)
