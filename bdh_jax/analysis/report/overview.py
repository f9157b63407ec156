"""What a run itself has written down, as findings without a null: curves of its training, and its scores beside ceilings and baselines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from bdh_jax.analysis.report.base import Finding
from bdh_jax.tasks.scores import AnyScore, TextScore, read_score

Lines = Mapping[int, Sequence[Mapping[str, Any]]]
"""Seed → the lines of its ``metrics.jsonl``."""
_SEED = {"field": "seed", "type": "nominal", "title": "seed", "legend": {"symbolOpacity": 1, "symbolStrokeWidth": 2.5}}
_STEP = {"field": "step", "type": "quantitative", "title": "training step", "axis": {"format": ",d", "tickMinStep": 1}}


def smoothed(values: Sequence[float], reach: int) -> np.ndarray:
    """The mean of each value and its neighbours: up to ``reach`` on each side, as many on the one as on the other.

    Args:
      values: [n].
      reach: 0 leaves them as they are.

    Returns:
      [n] float64.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    near = np.minimum(np.minimum(place, len(values) - 1 - place), reach)
    return (sums[place + near + 1] - sums[place - near]) / (2 * near + 1)


def curves(lines: Lines) -> list[Finding]:
    """The loss and the evaluations while a run was trained; nothing of a run that has not written any.

    Args:
      lines: of each seed.
    """
    return [*_loss(lines), *_evaluations(lines)]


def _loss(lines: Lines) -> list[Finding]:
    rows, reach = [], 0
    for seed, of_seed in lines.items():
        logged = [line for line in of_seed if "loss" in line]
        reach = max(1, len(logged) // 40)
        rows += [
            {"seed": seed, "step": line["step"], "loss": line["loss"], "smoothed": float(mean)}
            for line, mean in zip(logged, smoothed([line["loss"] for line in logged], reach), strict=True)
        ]
    if not rows:
        return []
    last = [
        [row["smoothed"] for row in rows if row["seed"] == seed][-1]
        for seed in lines
        if any(r["seed"] == seed for r in rows)
    ]
    steps = max(row["step"] for row in rows)
    says = f"After {steps:,} steps the loss of a batch is {_spread(last)} nats, {_over(len(last))}."
    return [
        Finding(
            name="loss",
            title=f"Trained for {steps:,} steps, to a loss of {statistics.fmean(last):.3g} nats",
            says=says,
            null="",
            caption=(
                f"Loss of training batches, as it was written down (thin) and in the mean of up to {2 * reach + 1} neighbouring values (thick); one "
                "colour a seed."
            ),
            alternative=f"The loss over training steps, a line a seed. {says}",
            rows=rows,
            chart={
                "height": 240,
                "encoding": {"x": _STEP, "color": _SEED},
                "layer": [
                    {
                        "mark": {"type": "line", "opacity": 0.25, "strokeWidth": 1, "tooltip": None},
                        "encoding": {
                            "y": {"field": "loss", "type": "quantitative", "title": "loss (nats)", "scale": {"zero": False}}
                        },
                    },
                    {
                        "mark": {"type": "line", "strokeWidth": 2.5},
                        "encoding": {
                            "y": {"field": "smoothed", "type": "quantitative", "title": "loss (nats)"},
                            "tooltip": [
                                {"field": "seed", "type": "nominal"},
                                {"field": "step", "type": "quantitative"},
                                {"field": "loss", "type": "quantitative", "format": ".4"},
                                {"field": "smoothed", "type": "quantitative", "format": ".4"},
                            ],
                        },
                    },
                ],
            },
        )
    ]


def _evaluations(lines: Lines) -> list[Finding]:
    rows, names = [], {}
    for seed, of_seed in lines.items():
        for line in of_seed:
            for name, values in line.get("evaluation", {}).items():
                if not isinstance(values, Mapping):
                    continue  # the score that decides which checkpoint is the best
                score = read_score(values)
                names[name] = score.COLUMNS[score.COMPARED]
                rows.append({"seed": seed, "step": line["step"], "set": name, "score": getattr(score, score.COMPARED)})
    if len({row["step"] for row in rows}) < 2:
        return []
    what = " or ".join(dict.fromkeys(names.values()))
    last = max(row["step"] for row in rows)
    said = "; ".join(
        f"{name} {_spread([r['score'] for r in rows if r['set'] == name and r['step'] == last])}" for name in names
    )
    return [
        Finding(
            name="evaluations",
            title=f"Evaluations while it was trained: {what}",
            says=f"At step {last:,}: {said} ({what}).",
            null="",
            caption=f"{what[:1].upper()}{what[1:]} of held-out sequences at each evaluation during training, by evaluation set; a line a seed.",
            alternative=f"{what[:1].upper()}{what[1:]} over training steps, by evaluation set and seed. At step {last:,}: {said}.",
            rows=rows,
            chart={
                "height": 200,
                "mark": {"type": "line", "point": True},
                "encoding": {
                    "x": _STEP,
                    "y": {"field": "score", "type": "quantitative", "title": what, "scale": {"zero": False}},
                    "color": {"field": "set", "type": "nominal", "title": None},
                    "detail": {"field": "seed"},
                    "tooltip": [
                        {"field": "set", "type": "nominal"},
                        {"field": "seed", "type": "nominal"},
                        {"field": "step", "type": "quantitative"},
                        {"field": "score", "type": "quantitative", "format": ".4"},
                    ],
                },
            },
        )
    ]


def scores(evaluations: Mapping[int, Mapping[str, Any]], baselines: Mapping[str, float]) -> list[Finding]:
    """The scores of a run beside what bounds them.

    Args:
      evaluations: seed → set → what ``Score.to_dict`` made.
      baselines: name → bits per byte of a text that something simple reaches; of other tasks none: their scores know their ceiling.

    Returns:
      A finding of the scores of questions with answers and one of texts, as far as there are any.
    """
    found: dict[int, list[AnyScore]] = {
        seed: [read_score(score) for score in of_seed.values() if isinstance(score, Mapping)]
        for seed, of_seed in evaluations.items()
    }
    questions = {seed: [s for s in of_seed if not isinstance(s, TextScore)] for seed, of_seed in found.items()}
    texts = {seed: [s for s in of_seed if isinstance(s, TextScore)] for seed, of_seed in found.items()}
    findings = []
    if any(questions.values()):
        findings.append(_questions(questions))
    if any(texts.values()):
        findings.append(_texts(texts, baselines))
    return findings


def retention(rows: Sequence[Mapping[str, Any]], chance: float) -> list[Finding]:
    """What is left of facts after consolidation, as the lifelong benchmark measured it; nothing of no rows.

    Args:
      rows: a mapping each for a row of its table, a number of facts, a model and a stream: "function", "facts", "model", "stream", "recall",
        "harm", which is NaN where it is not defined.
      chance: recall of a guess.
    """
    if not rows:
        return []
    numbers = sorted({row["facts"] for row in rows})
    names = list(dict.fromkeys(row["function"] for row in rows))
    last = {
        name: {
            score: [row[score] for row in rows if (row["function"], row["facts"]) == (name, numbers[-1])] for score in _KEPT
        }
        for name in names
    }
    best = max(names, key=lambda name: statistics.fmean(last[name]["recall"]))
    recall, harm = (statistics.fmean(last[best][score]) for score in _KEPT)
    harmed = "" if np.isnan(harm) else f" with a harm of {harm:+.3f}"
    says = f"Of {numbers[-1]:,} facts `{best}` recalls {recall:.3f} after the last reset{harmed}, the most of {len(names)} rows; a guess {chance:.3f}"
    null, effect, bounds = "", None, None
    if "none" in names and best != "none":
        differences = np.subtract(last[best]["recall"], last["none"]["recall"])
        effect, bounds = float(differences.mean()), _widened(differences, len(names) - 1)
        says += f", nothing consolidated {statistics.fmean(last['none']['recall']):.3f}"
        null = (
            "Consolidation keeps nothing: the same streams with the row `none`. The interval is Student's t of the difference over "
            f"{len(differences)} pairs of model and stream, widened for the choice of the best of {len(names) - 1} rows (Bonferroni)."
        )
        if bounds is not None and bounds[0] <= 0:
            says += ": not distinguishable"
    several = len(numbers) > 1
    return [
        Finding(
            name="retention",
            title=f"Of {numbers[-1]:,} facts of a stream {100 * recall:.1f} % are kept by {best}",
            says=f"{says}.",
            null=null,
            caption=(
                "The lifelong benchmark: recall of all facts of a stream after the last reset"
                + (
                    " over the number of facts, by row of its table, in the mean over models and streams; bars are their standard deviation. "
                    if several
                    else ", and harm, the recall lost in later episodes, by row of its table; a mark for each model and stream. "
                )
                + "The dashed line is chance."
            ),
            alternative=f"Recall by row of the benchmark's table{' and number of facts' if several else ''}. {says}.",
            rows=_by_facts(rows) if several else _by_score(rows),
            chart=_facts_chart(chance, names, numbers) if several else _retention_chart(chance),
            effect=effect,
            interval=bounds,
        )
    ]


_KEPT = ("recall", "harm")


def _widened(differences: np.ndarray, choices: int) -> tuple[float, float] | None:
    """The interval of a mean, 95 % after a choice among so many; None of one number, which says nothing of others."""
    if len(differences) < 2:
        return None
    mean, half = differences.mean(), stats.sem(differences) * stats.t.isf(0.025 / choices, len(differences) - 1)
    return float(mean - half), float(mean + half)


def _by_score(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: row[name] for name in ("function", "model", "stream")} | {"score": score, "value": row[score]}
        for row in rows
        for score in _KEPT
        if not np.isnan(row[score])
    ]


def _by_facts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["function"], row["facts"]), []).append(row)
    table = []
    for (function, facts), same in found.items():
        recall, harm = (np.array([row[score] for row in same]) for score in _KEPT)
        spread = float(recall.std(ddof=1)) if len(recall) > 1 else 0.0
        table.append(
            {"function": function, "facts": facts, "recall": float(recall.mean()), "harm": float(harm.mean())}
            | {"low": float(recall.mean()) - spread, "high": float(recall.mean()) + spread, "streams": len(recall)}
        )
    return table


def _facts_chart(chance: float, names: Sequence[str], numbers: Sequence[int]) -> dict[str, Any]:
    recall = {"type": "quantitative", "title": "recall after the last reset"}
    # With one scale for both, colours and shapes share a legend.
    function = {"field": "function", "type": "nominal", "scale": {"domain": list(names)}, "title": None}
    return {
        "height": 280,
        "encoding": {
            "x": {
                "field": "facts",
                "type": "quantitative",
                "scale": {"type": "log", "base": 2, "nice": False, "padding": 14},
                "axis": {"values": list(numbers), "format": ",d"},
                "title": "facts of a stream",
            },
            "color": function,
        },
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [2, 3]}, "encoding": {"y": {"datum": chance}, "x": None, "color": None}},
            {"mark": "rule", "encoding": {"y": {"field": "low", **recall}, "y2": {"field": "high"}}},
            {"mark": "line", "encoding": {"y": {"field": "recall", **recall}}},
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {
                    "y": {"field": "recall", **recall},
                    "shape": function,
                    "tooltip": [
                        *({"field": name} for name in ("function", "facts", "streams")),
                        {"field": "recall", "format": ".3f"},
                        {"field": "harm", "format": "+.3f"},
                    ],
                },
            },
        ],
    }


def _retention_chart(chance: float) -> dict[str, Any]:
    return {
        "height": {"step": 22},
        "encoding": {
            "y": {"field": "function", "type": "nominal", "sort": None, "title": None},
            "x": {"field": "value", "type": "quantitative", "title": "share of facts"},
        },
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [2, 3]}, "encoding": {"x": {"datum": chance}, "y": None}},
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.7},
                "encoding": {
                    "color": {"field": "score", "type": "nominal", "title": None, "sort": list(_KEPT)},
                    "tooltip": [
                        *({"field": name, "type": "nominal"} for name in ("function", "model", "stream", "score")),
                        {"field": "value", "type": "quantitative", "format": "+.3f"},
                    ],
                },
            },
        ],
    }


def _rows(found: Mapping[int, Sequence[AnyScore]]) -> list[dict[str, Any]]:
    return [
        {"set": score.name, "seed": seed, score.COUNTED: score.count}
        | {name: getattr(score, name) for name in score.COLUMNS}
        | dict(score.extra)
        for seed, of_seed in found.items()
        for score in of_seed
    ]


def _questions(found: Mapping[int, Sequence[AnyScore]]) -> Finding:
    rows = _rows(found)
    sets = list(dict.fromkeys(row["set"] for row in rows))

    def of(name: str, key: str) -> list[float]:
        return [row[key] for row in rows if row["set"] == name]

    said = "; ".join(f"{name} {_spread(of(name, 'credit'))} of {statistics.fmean(of(name, 'ceiling')):.4f}" for name in sets)
    worst = min(sets, key=lambda name: statistics.fmean(of(name, "ratio")))
    says = f"Credit, and the most that any causal model can have on the same sequences: {said}; {_over(len(found))}."
    return Finding(
        name="answers",
        title=f"{100 * statistics.fmean(of(worst, 'ratio')):.1f} % of the ceiling or more, in every evaluation set",
        says=says,
        null="",
        caption=(
            "Credit for answers on each evaluation set (dots, one a seed) and its ceiling (bars): the best credit that any causal model can have on "
            f"these very sequences. {sum(row['sequences'] for row in rows) // max(1, len(found)):,} sequences in all."
        ),
        alternative=f"Credit beside its ceiling, by evaluation set. {says}",
        rows=rows,
        chart={
            "height": {"step": 34},
            "encoding": {
                "y": {"field": "set", "type": "nominal", "sort": None, "title": None},
                "tooltip": [
                    {"field": "set", "type": "nominal"},
                    {"field": "seed", "type": "nominal"},
                    *(
                        {"field": name, "type": "quantitative", "format": ".4f"}
                        for name in ("credit", "ceiling", "accuracy")
                    ),
                ],
            },
            "layer": [
                {
                    "mark": {"type": "tick", "thickness": 3, "size": 24},
                    "encoding": {
                        "x": {
                            "field": "ceiling",
                            "type": "quantitative",
                            "title": "credit, and its ceiling",
                            "scale": {"zero": False},
                        },
                        "color": {"datum": "ceiling"},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.8},
                    "encoding": {"x": {"field": "credit", "type": "quantitative"}, "color": {"datum": "credit"}},
                },
            ],
        },
    )


def _texts(found: Mapping[int, Sequence[AnyScore]], baselines: Mapping[str, float]) -> Finding:
    rows = [{"what": row["set"], **row} for row in _rows(found)]
    values = [row["bits_per_byte"] for row in rows]
    beside = "; ".join(f"{name} {value:.4f}" for name, value in baselines.items())
    says = f"{_spread(values)} bits per byte, {_over(len(found))}{f'. Beside it: {beside}' if beside else ''}."
    rows += [{"what": name, "seed": None, "bits_per_byte": value} for name, value in baselines.items()]
    return Finding(
        name="text",
        title=f"{statistics.fmean(values):.3g} bits for a byte of text that it has not seen",
        says=says,
        null="",
        caption=(
            "Bits per byte of the validation text, read in windows from an empty state (dots, one a seed), beside what something simple reaches "
            "on the same text (bars). Fewer is better."
        ),
        alternative=f"Bits per byte beside baselines. {says}",
        rows=rows,
        chart={
            "height": {"step": 34},
            "encoding": {
                "y": {"field": "what", "type": "nominal", "sort": None, "title": None},
                "x": {"field": "bits_per_byte", "type": "quantitative", "title": "bits per byte", "scale": {"domainMin": 0}},
                "tooltip": [
                    {"field": "what", "type": "nominal"},
                    {"field": "seed", "type": "nominal"},
                    {"field": "bits_per_byte", "type": "quantitative", "format": ".4f"},
                ],
            },
            "layer": [
                {
                    "transform": [{"filter": "!isValid(datum.seed)"}],
                    "mark": {"type": "tick", "thickness": 3, "size": 24},
                    "encoding": {"color": {"datum": "baseline"}},
                },
                {
                    "transform": [{"filter": "isValid(datum.seed)"}],
                    "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.8},
                    "encoding": {"color": {"datum": "this model"}},
                },
            ],
        },
    )


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.4f}" if len(values) < 2 else f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def _over(count: int) -> str:
    return "of one seed" if count == 1 else f"mean and standard deviation over {count} seeds"
