"""Codes: are they a token's own, wherever it stands, and what else can be read from them?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bdh_jax.analysis.codes import ASKED, TAPS, Density, EqualTokens, Probed, activations, density, equal_tokens, probe, taps
from bdh_jax.analysis.nulls import p_of_largest
from bdh_jax.analysis.report.base import SIGNIFICANT, Finding, NotApplicable, Section, Subject, verdict

_SEQUENCES, _SHUFFLES, _PROBES = 16, 199, 39
_SEEDS = 3
_NUMBERS = 2**25
"""Activations that are held at one time."""
_KINDS = ("equal tokens", "different tokens")


class Asked(NamedTuple):
    """One model's activations of one kind, asked everything."""

    equal: EqualTokens
    density: Density
    probed: Probed


def ask(subject: Subject, tap: str, seed: int, *, trained: bool = True) -> Asked:
    """Ask the model of one seed; its activations are let go before others are made.

    Args:
      subject: of the report.
      tap: of :func:`bdh_jax.analysis.codes.taps`.
      seed: of the subject's seeds.
      trained: or as it was before training.
    """
    slow = subject.seeds[seed] if trained else subject.untrained(seed)
    architecture = subject.config.make_architecture()
    sizes, axes = architecture.sizes(1).axes, architecture.taps[tap]
    width = int(np.prod([sizes.get(axis, subject.config.widest) for axis in axes if axis not in ("batch", "time")]))
    numbers = subject.config.n_layer * width * subject.tokens.shape[1]
    count = min(len(subject.tokens), max(2, min(round(_SEQUENCES * subject.budget), _NUMBERS // numbers)))
    tokens, valid = subject.tokens[:count], subject.valid[:count]
    acts = activations(subject.config, slow, tokens, valid, tap)
    shuffles, probes = (max(least, round(least * subject.budget)) for least in (_SHUFFLES, _PROBES))
    return Asked(
        equal_tokens(acts, tokens, valid, shuffles=shuffles),
        density(acts, valid),
        probe(acts, tokens, valid, shuffles=probes),
    )


def find(subject: Subject) -> list[Finding]:
    """See :class:`bdh_jax.analysis.report.base.Section`."""
    known = taps(subject.config)
    if not known:
        name = type(subject.config).__name__.removesuffix("Config")
        raise NotApplicable(f"A {name} has no activations that are known here: this asks for a BDH or a GPT.")
    if len(subject.tokens) < 2 or subject.valid.sum(axis=1).max() < 3:
        raise NotApplicable("Its held-out sequences are too few or too short to compare tokens.")
    seeds = sorted(subject.seeds)[:_SEEDS]
    findings = []
    for tap in known:
        found = {seed: ask(subject, tap, seed) for seed in seeds}
        before = ask(subject, tap, seeds[0], trained=False)
        findings += [_equal(tap, found), _read(tap, found, before)]
    return findings


def _equal(tap: str, found: dict[int, Asked]) -> Finding:
    name, layers = TAPS[tap], len(next(iter(found.values())).equal.excess)
    rows: list[dict[str, Any]] = []
    for seed, asked in found.items():
        equal = asked.equal
        for layer in range(layers):
            for group, (low, high) in enumerate(zip(equal.edges[:-1], equal.edges[1:], strict=True)):
                rows += [
                    {
                        "seed": seed,
                        "layer": layer + 1,
                        "distance": int(low),
                        "to": int(high) - 1,
                        "pair": kind,
                        "cosine": float(equal.cosine[which, layer, group]),
                        "jaccard": float(equal.jaccard[which, layer, group]),
                        "pairs of equal tokens": int(equal.pairs[group]),
                    }
                    for which, kind in enumerate(_KINDS)
                ]
    excess = np.mean([asked.equal.excess for asked in found.values()], axis=0)
    shuffled = np.mean([asked.equal.shuffled for asked in found.values()], axis=0)
    spread = np.maximum(shuffled.std(axis=0), 1e-12)
    p = float(p_of_largest(excess / spread, shuffled / spread).max())
    first = max(float(asked.equal.difference[0]) for asked in found.values())
    weights = next(iter(found.values())).equal.pairs
    same, other = (_by_layer(found, which, weights) for which in range(2))
    exact = (
        "In the first layer equal tokens are equal to the bit wherever they stand"
        if first == 0
        else f"In the first layer equal tokens differ by rounding ({first:.0e} of the largest activation)"
        if first < 1e-5
        else f"In the first layer equal tokens differ by up to {first:.0%} of the largest activation"
    )
    says = f"{exact}; their cosine is {_list(same)}, layer by layer, and that of different tokens {_list(other)}: "
    says += f"{verdict(p, found=' in every layer', other=' in some layer')}."
    return Finding(
        name=f"equal_tokens_{_slug(name)}",
        title=(
            f"Equal tokens have an equal {name} in the first layer, and a cosine of {same[-1]:.2f} in the last"
            if first < 1e-5
            else f"Equal tokens have a cosine of {same[0]:.2f} in the {name} of the first layer and {same[-1]:.2f} in the last"
        ),
        says=says,
        null=(
            "Which token it is does not matter: tokens in another order within their sequences, "
            f"{len(shuffled)} times, with the mean at each distance taken off first; corrected for layers (Westfall and Young)."
        ),
        caption=(
            f"Cosine between the {name} of two positions of a held-out sequence over their distance, by layer: of equal tokens and of different "
            "ones. The table has the overlap of the active sets (Jaccard) as well. A line a seed."
        ),
        alternative=f"Cosine over distance, by layer, of equal and of different tokens. {says}",
        rows=rows,
        chart={
            "height": 110,
            "mark": {"type": "line", "point": True, "opacity": 0.85},
            "encoding": {
                "row": {
                    "field": "layer",
                    "type": "ordinal",
                    "header": {"labelExpr": "'layer ' + datum.value", "title": None},
                },
                "x": {
                    "field": "distance",
                    "type": "quantitative",
                    "title": "tokens apart",
                    "scale": {"type": "log", "base": 2},
                },
                "y": {"field": "cosine", "type": "quantitative", "title": "cosine"},
                "color": {"field": "pair", "type": "nominal", "title": None, "sort": list(_KINDS)},
                "detail": {"field": "seed"},
                "tooltip": [
                    *({"field": name} for name in ("seed", "layer", "distance", "to", "pair", "pairs of equal tokens")),
                    *({"field": name, "format": ".3f"} for name in ("cosine", "jaccard")),
                ],
            },
        },
        effect=float(excess.min()),
        p_value=p,
    )


def _by_layer(found: dict[int, Asked], which: int, weights: np.ndarray) -> np.ndarray:
    """The cosine over all distances, weighted by the pairs of equal tokens at each, so that both kinds have the same distances."""
    cosine = np.mean([asked.equal.cosine[which] for asked in found.values()], axis=0)
    there = (weights > 0) & np.isfinite(cosine).all(axis=0)
    return np.average(cosine[:, there], axis=1, weights=weights[there]) if there.any() else cosine[:, :0].sum(axis=1)


def _read(tap: str, found: dict[int, Asked], before: Asked) -> Finding:
    name = TAPS[tap]
    rows: list[dict[str, Any]] = []
    models = {**{(seed, "trained"): asked for seed, asked in found.items()}, (min(found), "untrained"): before}
    for (seed, model), asked in models.items():
        for layer in range(len(asked.density.active)):
            rows.append(
                {
                    "seed": seed,
                    "model": model,
                    "layer": layer + 1,
                    "active": float(asked.density.active[layer]),
                    "effective": float(asked.density.effective[layer]),
                    **{what: float(asked.probed.accuracy[layer, column]) for column, what in enumerate(ASKED)},
                    **{
                        f"{what}, labels shuffled": float(asked.probed.shuffled[:, layer, column].mean())
                        for column, what in enumerate(ASKED)
                    },
                    **{f"{what}, most frequent": float(asked.probed.frequent[column]) for column, what in enumerate(ASKED)},
                }
            )
    accuracy = np.mean([asked.probed.accuracy for asked in found.values()], axis=0)  # [L, 3]
    shuffled = np.mean([asked.probed.shuffled for asked in found.values()], axis=0)  # [S, L, 3]
    spread = np.maximum(shuffled.std(axis=0), 1e-3)
    p_values = p_of_largest(
        ((accuracy - shuffled.mean(axis=0)) / spread).ravel(),
        ((shuffled - shuffled.mean(axis=0)) / spread).reshape(len(shuffled), -1),
    ).reshape(accuracy.shape)
    p = float(p_values.max())
    frequent = next(iter(found.values())).probed.frequent
    parts = [
        f"{what} {', '.join(f'{share:.0%}' for share in accuracy[:, column])} (most frequent token: {frequent[column]:.0%})"
        for column, what in enumerate(ASKED)
    ]
    unread = [
        f"{what} in layer {layer + 1}" for layer, column in np.argwhere(p_values >= SIGNIFICANT) for what in (ASKED[column],)
    ]
    verdict = (
        f"p = {p:.2g} or less in all of {accuracy.size}."
        if not unread
        else f"not distinguishable from shuffled labels: {', '.join(unread)}."
    )
    says = f"A linear probe of the {name} reads, layer by layer, {'; '.join(parts)}: {verdict}"
    return Finding(
        name=f"read_{_slug(name)}",
        title=f"What a linear probe reads from the {name}",
        says=says,
        null=(
            f"Activations say nothing of the token: probes fitted to labels in another order, {len(shuffled)} times, corrected for layers and "
            "questions (Westfall and Young). The untrained model says what training adds."
        ),
        caption=(
            f"Of the {name} at a token, by layer: the share of neurons that is active (above zero); the effective share, "
            "(Σ|a|)² ÷ (K Σ a²); and how often a ridge regression, fitted to half of the sequences, names this token, the one before and the "
            "next one in the other half; beside it, of shuffled labels, and of always naming the most frequent token."
        ),
        alternative=f"A table by layer. {says}",
        rows=rows,
        effect=float((accuracy - shuffled.mean(axis=0)).min()),
        p_value=p,
    )


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _slug(name: str) -> str:
    return name.replace(" ", "_")


SECTION = Section(
    title="Codes",
    asks=(
        "Is the code of a token its own, wherever it stands? By how much do later layers tell equal tokens apart, and what can be read from "
        "their activations?"
    ),
    find=find,
    place=30,
)
