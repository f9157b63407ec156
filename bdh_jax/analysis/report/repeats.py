"""Repeats: does a layer need fewer neurons for a word that it has read before? After Fig. 14 of arXiv 2509.26507."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from bdh_jax.analysis.repeats import TAP, Fall, Reading, compare, letters_of, shares_by_reading
from bdh_jax.analysis.report.base import SIGNIFICANT, Finding, NotApplicable, Section, Subject
from bdh_jax.models.base import ModelConfig
from bdh_jax.tasks.repeats import RepeatsConfig

_SEQUENCES, _FLIPS = 32, 999
_LEAST = 3
"""Readings of a word, of which the first is compared with the others."""


def find(subject: Subject) -> list[Finding]:
    """See :class:`bdh_jax.analysis.report.base.Section`."""
    config, ids = subject.config, _letters(subject)
    neurons = _neurons(config)
    task = _sequence(subject.tokens.shape[1])
    count = max(8, round(_SEQUENCES * min(subject.budget, 8)))
    repeated, shuffled = (letters_of(task, ids, count, seed=0, shuffled=order) for order in (False, True))
    readings = {
        seed: Reading(
            trained=shares_by_reading(config, slow, repeated, task),
            shuffled=shares_by_reading(config, slow, shuffled, task),
            untrained=shares_by_reading(config, subject.untrained(seed), repeated, task),
        )
        for seed, slow in subject.seeds.items()
    }
    first = 1 if task.warm_up else 0
    flips = max(199, round(_FLIPS * min(subject.budget, 8)))
    falls = compare(list(readings.values()), first=first, neurons=neurons, flips=flips)
    return [_by_reading(readings, falls, task, first, count, flips), _by_layer(list(readings), falls, count, flips)]


def _letters(subject: Subject) -> np.ndarray:
    """[26], the token of each letter.

    Raises:
      NotApplicable: the model reads no letters, or not one by one.
    """
    if subject.encode is None:
        raise NotApplicable("Its tokens are no text, so it cannot be given a word.")
    tokens = [np.asarray(subject.encode(letter)) for letter in string.ascii_lowercase]
    if any(len(token) != 1 for token in tokens) or len({int(token[0]) for token in tokens}) < len(tokens):
        raise NotApplicable("Its tokenizer has no token of its own for every letter, so random words have no fixed length.")
    return np.array([int(token[0]) for token in tokens], np.int32)


def _neurons(config: ModelConfig) -> int:
    architecture = config.make_architecture()
    axes = architecture.taps.get(TAP, ())
    if not {"head", "neuron"} <= set(axes):
        name = type(config).__name__.removesuffix("Config")
        raise NotApplicable(f"A {name} has no code and gate, whose product is counted here: this asks for a BDH.")
    sizes = architecture.sizes(1).axes
    return sizes["head"] * sizes["neuron"]


def _sequence(length: int) -> RepeatsConfig:
    """The published sequence, as long as the model has read sequences; a shorter word where that is too short."""
    plain = RepeatsConfig()
    for word in range(plain.word, 1, -1):
        warm_up = plain.warm_up if word == plain.word else 0
        if warm_up + _LEAST * word <= length:
            return RepeatsConfig(warm_up=warm_up, word=word, length=min(length, plain.length))
    raise NotApplicable(f"It was trained on sequences of {length} tokens, in which no word fits three times.")


def _by_reading(
    readings: dict[int, Reading], falls: Fall, task: RepeatsConfig, first: int, count: int, flips: int
) -> Finding:
    rows: list[dict[str, Any]] = []
    for seed, reading in readings.items():
        for text, shares in _named(reading).items():
            for layer, by_reading in enumerate(shares.mean(axis=1), start=1):
                rows += [
                    {"seed": seed, "text": text, "layer": layer, "reading": number + 1 - first, "share": float(share)}
                    for number, share in enumerate(by_reading)
                ]
    layer, p = _chosen(falls)
    times, spread = float(np.exp(np.log(falls.trained[:, layer]).mean())), _range(falls.trained[:, layer])
    shares = np.mean([reading.trained[layer].mean(axis=0) for reading in readings.values()], axis=0)
    before, after = float(shares[first]), float(shares[first + 1 :].mean())
    controls = ", ".join(
        f"{_mean(values[:, layer]):.2f} × {what}"
        for what, values in (("with shuffled repeats", falls.shuffled), ("before training", falls.untrained))
    )
    found = p < SIGNIFICANT and times > 1
    moved = f"{before:.1%} at first reading and {after:.1%} in repeats, a fall of {times:.2f} ×{spread}; {controls}"
    if found:
        says = f"In layer {layer + 1} the active share of gated code is {moved}: p = {p:.2g}."
    elif p < SIGNIFICANT:
        says = (
            f"No layer's share both falls and differs from that with shuffled repeats. The largest difference, in layer {layer + 1}, is one of rising "
            f"shares: {moved} (p = {p:.2g})."
        )
    else:
        says = (
            "No layer's share falls more in repeats than with shuffled repeats: not distinguishable "
            f"(p = {p:.2g}; layer {layer + 1}: {moved})."
        )
    return Finding(
        name="share_by_reading",
        title=(
            f"A word that repeats needs {times:.1f} times fewer neurons of layer {layer + 1}"
            if found
            else "No layer falls silent for the word that repeats"
            if p < SIGNIFICANT
            else "That a layer falls silent for the word that repeats: not distinguishable"
        ),
        says=says,
        null=(
            "The order of the letters does not matter: signs of the paired differences between each sequence and the same with every repeat's "
            f"letters in a new order, flipped {flips} times; corrected for layers (Westfall and Young)."
        ),
        caption=(
            f"Share of the neurons of a layer whose gated code is not zero, over readings of one random word of {task.word} letters"
            + (f" after {task.warm_up} random ones (reading 0)" if task.warm_up else "")
            + f"; means over its letters and {count} words, a line a seed. Shuffled: every repeat has the same letters in another order. "
            "Untrained: the same model before its first step."
        ),
        alternative=f"Active share over readings of a word, by layer. {says}",
        rows=rows,
        chart={
            "height": 110,
            "mark": {"type": "line", "opacity": 0.85, "point": {"size": 18}},
            "encoding": {
                "row": {
                    "field": "layer",
                    "type": "ordinal",
                    "header": {"labelExpr": "'layer ' + datum.value", "title": None},
                },
                "x": {
                    "field": "reading",
                    "type": "quantitative",
                    "title": "reading of the word",
                    "axis": {"tickMinStep": 1},
                },
                "y": {"field": "share", "type": "quantitative", "title": "active", "axis": {"format": ".0%"}},
                "color": {"field": "text", "type": "nominal", "title": None, "sort": ["repeated", "shuffled", "untrained"]},
                "detail": {"field": "seed"},
                "tooltip": [
                    *({"field": name} for name in ("seed", "text", "layer", "reading")),
                    {"field": "share", "format": ".2%"},
                ],
            },
        },
        effect=times,
        p_value=p,
    )


def _by_layer(seeds: Sequence[int], falls: Fall, count: int, flips: int) -> Finding:
    rows = [
        {
            "seed": seed,
            "layer": layer + 1,
            "repeated": float(falls.trained[number, layer]),
            "shuffled": float(falls.shuffled[number, layer]),
            "untrained": float(falls.untrained[number, layer]),
            "p_value": float(falls.p_value[layer]),
        }
        for layer in range(falls.trained.shape[1])
        for number, seed in enumerate(seeds)
    ]
    means = [_mean(falls.trained[:, layer]) for layer in range(falls.trained.shape[1])]
    several = [layer + 1 for layer, fall in enumerate(means) if falls.p_value[layer] < SIGNIFICANT and fall > 1]
    halved = [layer + 1 for layer in range(falls.trained.shape[1]) if (falls.trained[:, layer] >= 2).all()]
    says = (
        f"The share falls with p < 0.05 in {_layers(several)}, and to half or less in every seed in {_layers(halved)}."
        if several
        else "In no layer does the share fall, and more than with shuffled repeats: a fall is not distinguishable from none."
    )
    return Finding(
        name="fall_by_layer",
        title=f"{len(several)} of {falls.trained.shape[1]} layers fall silent in repeats"
        if several
        else "A fall in repeats: in no layer distinguishable from none",
        says=says,
        null=f"As above: {flips} flips, corrected for layers. A fall of 1 is none. The effect is the largest fall, the p-value the smallest of layers that fall.",
        caption=(
            f"Share of active gated code at first reading ÷ share in repeats, the geometric mean over {count} words, by layer and seed: of the "
            "trained model on repeats, on shuffled repeats, and of the untrained model on repeats."
        ),
        alternative=f"A table of falls by layer and seed. {says}",
        rows=rows,
        p_value=min((float(falls.p_value[layer]) for layer, fall in enumerate(means) if fall > 1), default=None),
        effect=max(means),
    )


def _chosen(falls: Fall) -> tuple[int, float]:
    """The layer with the largest fall beyond that of shuffled repeats, and its p-value."""
    layer = int(np.argmax(np.mean(np.log(falls.trained) - np.log(falls.shuffled), axis=0)))
    return layer, float(falls.p_value[layer])


def _named(reading: Reading) -> dict[str, np.ndarray]:
    return {"repeated": reading.trained, "shuffled": reading.shuffled, "untrained": reading.untrained}


def _mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _range(values: np.ndarray) -> str:
    return f" ({values.min():.2f} to {values.max():.2f} over {len(values)} seeds)" if len(values) > 1 else ""


def _layers(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no layer"
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


SECTION = Section(
    title="Repeats",
    asks=(
        "The paper reports that a layer falls silent when a word repeats: what is known already needs fewer neurons. Is that so here, and is "
        "it the word that counts, or only that its letters come again?"
    ),
    find=find,
    place=25,
)
