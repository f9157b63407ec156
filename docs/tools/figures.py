"""Draw the figures of the results, from the tables of the pages and the files of ``benchmarks/results``: ``python -m docs.tools.figures``.

What a page says in a table is read from there, so that figure and table cannot differ. What a report shows of a run is the report's own chart
(``docs/tools/report_figures.py``). Each figure is written as SVG, which the pages show, and as PNG.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdh_jax.analysis import figures
from bdh_jax.tasks.facts import VALUES
from docs.tools import report_figures

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
FOLDER = RESULTS / "figures"
CHANCE = 1 / VALUES
EPISODIC = ("dense", "delta", "least_squares", "kalman")
"""Rows of the lifelong benchmark that keep nothing but slow weights and a history."""


def table(page: str, *columns: str) -> list[list[str]]:
    """The rows of a page's one table that begins with these columns, without backticks and bold.

    Args:
      page: file name below ``docs/results``.
      columns: the first of its columns, as written.

    Raises:
      ValueError: if there is no such table, or several.
    """
    lines = (RESULTS / page).read_text(encoding="utf-8").splitlines()
    head = ("| " + " | ".join(columns) + " |").replace("|  |", "| |")
    (start,) = (number for number, line in enumerate(lines) if line.startswith(head))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("*").replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def number(cell: str) -> float:
    """A table's number, without its spread and thousands' commas; NaN for an empty cell."""
    found = re.match(r"[-−+]?[\d.,]+", cell)
    return float(found[0].replace(",", "").replace("−", "-")) if found else math.nan


def spread(cell: str) -> float:
    """What stands behind ±; 0 if nothing does."""
    found = re.search(r"± *([\d.]+)", cell)
    return float(found[1]) if found else 0.0


def lifelong() -> Any:
    """Recall by age, and along the stream."""
    ages = {
        row[0]: [number(cell) for cell in row[1:6]] for row in table("lifelong.md", "function", "0", "1–3", "4–15", "16–63")
    }
    course = {
        row[0]: [float(n) / 100 for n in row[1].split()]
        for row in table("lifelong.md", "function", "recall", "new value", "old value", "in episode")
    }
    names = [*EPISODIC, "replay_synapse_sgd", "fine_tuning"]
    figure, (along, by_age) = figures.make(2, width=4.6, height=3.7, sharey=True)
    for name, look in figures.lines(names).items():
        _band(along, _SHOWN, course[name], _BOUND_COURSE.get(name, 0.007), look)
        _band(by_age, range(5), ages[name], 0.03, look)
    for axes in (along, by_age):
        figures.reference(axes, CHANCE, "chance")
        figures.reference(axes, 1, "ceiling")
    by_age.set_xticks(range(5), ["0", "1–3", "4–15", "16–63", "64+"])
    along.set_ylim(-0.03, 1.06)
    figures.say(
        along,
        title="kalman keeps 0.96 of 1,024 facts,\nsums (dense) 0.07",
        x="facts shown so far",
        y="recall after the last reset",
    )
    figures.say(by_age, title="The delta rule forgets what is old", x="episodes since the fact was shown last", y="")
    figures.legend(figure, along)
    return figure


def lifelong_course() -> Any:
    """The scores along the stream, without never_reset, whose harm is a hundred times that of others."""
    rows = table("lifelong.md", "function", "recall", "new value", "old value", "in episode")
    names = [*EPISODIC, "replay_synapse_sgd", "fine_tuning"]
    panels = (
        ("recall", 1, "Least squares and kalman\nstay near the ceiling"),
        ("reassigned: new value, %", 2, "Delta, too, answers\nreassigned facts anew"),
        ("reassigned: old value, %", 3, "Few answer with\nthe value before"),
        ("in episode, %", 4, "Consolidation costs\nno recall in episodes"),
        ("lost in other episodes, points", 5, "Fine-tuning harms\nother episodes"),
        ("known facts lost, points", 6, "Replay and fine-tuning harm\nfacts learned by gradient"),
    )
    figure, axes = figures.make(3, 2, width=3.5, height=2.9, sharex=True)
    for panel, (label, column, title) in zip(axes, panels, strict=True):
        bound = {
            "recall": 0.7,
            "reassigned: new value, %": 2.6,
            "reassigned: old value, %": 1.5,
            "in episode, %": 0.3,
            "lost in other episodes, points": 0.4,
            "known facts lost, points": 0.7,
        }[label]
        for row in rows:
            if row[0] in names:
                values = [float(value) for value in row[column].split()]
                _band(panel, _SHOWN, values, 3.8 if row[0] == "fine_tuning" else bound, figures.lines(names)[row[0]])
        figures.say(
            panel, title=title, x="facts shown so far" if column > 3 else "", y="recall, %" if column == 1 else label
        )
        if column in (1, 2, 3):
            figures.reference(panel, 100 * CHANCE, "chance")
        if column in (1, 2, 4):
            figures.reference(panel, 100, "ceiling")
        panel.set_ylim((-3, 106) if column <= 3 else (90, 105) if column == 4 else (-1, 27))
    figures.legend(figure, axes[0], None)
    return figure


def lifelong_facts() -> Any:
    """Recall, and bits per byte, against the number of facts."""
    head = ("function", "64", "128", "256", "512", "1024")
    facts = np.array([64, 128, 256, 512, 1024, 2048, 4096, 8192])
    recall = {row[0]: np.array([number(cell) for cell in row[1:]]) for row in table("lifelong.md", *head)}
    kilobytes = {row[0]: number(row[10]) for row in _thousand_facts()}
    figure, (left, right) = figures.make(2, width=4.6, height=3.7)
    names = [*EPISODIC, "mesa", "ridge"]
    for name, look in figures.lines(names).items():
        _band(left, facts, recall[name], 0.026, look)
        bits = facts * np.log2(VALUES) * np.maximum(0, (recall[name] - CHANCE) / (1 - CHANCE))
        right.plot(facts, bits / (1000 * kilobytes[name]), **look)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(facts, [f"{count:,}" for count in facts], rotation=35)
        axes.axvline(1024, color="0.6", linestyle=":", linewidth=1)
        axes.minorticks_off()
    figures.reference(left, CHANCE, "chance")
    figures.reference(left, 1, "ceiling")
    left.set_ylim(-0.03, 1.06)
    figures.say(
        left,
        title="Least squares keeps up to K = 1,024 facts,\nsums (dense) keep few",
        x="facts (dotted line: K)",
        y="recall after the last reset",
    )
    figures.say(
        right,
        title="Per byte, rules without a history are ahead",
        x="facts (dotted line: K)",
        y="bits recalled above chance, per byte",
    )
    figures.legend(figure, left)
    return figure


def capacity() -> Any:
    """F95 against density and against rows, and facts per KiB."""
    entries = json.loads((ROOT / "benchmarks" / "results" / "capacity_cpu.json").read_text(encoding="utf-8"))["entries"]
    rules = ("hebbian", "delta", "longhorn", "mesa")
    figure, (by_active, by_rows, per_kib) = figures.make(3, width=3.6, height=3.7)
    looks = figures.lines(rules)

    def draw(
        axes: Any,
        rule: str,
        x: str,
        chosen: Callable[[Any], bool],
        size: Callable[[Any], float] = lambda entry: 1,
        **style: Any,
    ) -> None:
        line = sorted((e for e in entries if e["rule"] == rule and chosen(e)), key=lambda e: e[x])
        scale = np.array([size(entry) for entry in line])
        means, spreads = (np.array([of(e["f95"]) for e in line]) * scale for of in (np.mean, lambda f: np.std(f, ddof=1)))
        axes.errorbar([e[x] for e in line], means, spreads, capsize=2, **{**looks[rule], **style})
        theory = [e["theory"] for e in line]
        if None not in theory and x == "active":
            axes.plot([e[x] for e in line], theory, color=looks[rule]["color"], linestyle="--", linewidth=1)

    def kib(entry: Any) -> float:
        return entry["facts_per_kibibyte"] / np.mean(entry["f95"])

    for rule in rules:
        draw(by_active, rule, "active", lambda e: e["rows"] == 1024 and "active" in e["kind"])
        draw(by_rows, rule, "rows", lambda e: e["kind"] == "3.00% active")
        draw(per_kib, rule, "rows", lambda e: e["kind"] == "3.00% active", kib)
        draw(
            per_kib,
            rule,
            "rows",
            lambda e: e["kind"].startswith("dense"),
            kib,
            linestyle=":",
            markerfacecolor="white",
            label=None,
        )
    for axes in (by_active, by_rows, per_kib):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.25)
    by_active.set_xticks([0.01, 0.03, 0.1, 0.3, 1], ["1", "3", "10", "30", "100"])
    for axes in (by_rows, per_kib):
        axes.set_xticks([128, 256, 512, 1024], ["128", "256", "512", "1,024"])
    for axes in (by_active, by_rows, per_kib):
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    figures.say(
        by_active,
        title="Sums need sparse codes",
        x="active rows of 1,024, % (dashed: theory)",
        y="F95, facts at 95 % recall",
    )
    figures.say(by_rows, title="More rows hold more", x="rows K, 3 % of them active", y="F95, facts at 95 % recall")
    figures.say(
        per_kib,
        title="Dense codes of both signs\nhold more per byte",
        x="rows K (dotted: dense, both signs)",
        y="facts per KiB of state",
    )
    figures.legend(figure, by_active)
    return figure


def language_context() -> Any:
    """Bits per byte against what was read before."""
    rows = table("language.md", "tokens read before", "BDH", "GPT")
    ends = [int(row[0].split("–")[1].replace(",", "")) + 1 for row in rows]
    figure, (axes,) = figures.make(width=6.2, height=3.7)
    looks = figures.lines(["BDH", "GPT"])
    for column, name in ((1, "BDH"), (2, "GPT")):
        known = [(end, number(row[column]), spread(row[column])) for end, row in zip(ends, rows, strict=True) if row[column]]
        _band(axes, *zip(*known, strict=True), looks[name])
    (forgets,) = (
        row for row in table("language.md", "", "seeds", "empty state every 128 tokens") if row[0] == "attention_decay 0.98"
    )
    value, error = number(forgets[4]), spread(forgets[4])
    axes.errorbar(
        [4096],
        [value],
        [error],
        color="#009e73",
        marker="D",
        markersize=5,
        capsize=2,
        label="BDH, attention\nthat forgets (0.98)",
        linestyle="none",
    )
    axes.axvline(128, color="0.6", linestyle=":", linewidth=1)
    axes.text(134, 5.2, "training length", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ends, [f"{end:,}" for end in ends], rotation=35)
    axes.minorticks_off()
    axes.set_ylim(2, 5.7)
    title = "Beyond its training length a model predicts worse,\nunless its attention forgets"
    figures.say(axes, title=title, x="bytes read before, up to", y="bits per byte (band: ± std, 3 seeds)")
    figures.legend(figure, axes)
    return figure


def language_scores() -> Any:
    """Validation bits per byte of each seed."""
    ours = table("language.md", "", "trained parameters", "seed 0")
    official = table("language.md", "code", "seed 0")[1]
    rows = [
        ("BDH, official code", [number(cell) for cell in official[1:4]], "#56b4e9"),
        *((row[0], [number(cell) for cell in row[2:5]], "#e69f00" if row[0] == "GPT" else "#0072b2") for row in ours),
    ]
    rows = [rows[1], rows[0], *rows[2:]]
    figure, (axes,) = figures.make(width=6.5, height=2.9)
    for place, (_, values, colour) in enumerate(rows):
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=5, alpha=0.8)
        axes.plot([np.mean(values)] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=2)
    axes.set_yticks(range(len(rows)), [name.replace(", top", ",\ntop") for name, *_ in rows])
    axes.invert_yaxis()
    figures.say(
        axes,
        title="BDH is ahead of a GPT of equal size; write-back does not help here",
        x="validation bits per byte, less is better (points: seeds, bars: means)",
        y="",
    )
    return figure


def _tiny_bdh() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / "tiny_bdh_cpu.json").read_text(encoding="utf-8"))


def _seeds(row: dict[str, Any], names: Sequence[str], what: str = "accuracy") -> np.ndarray:
    """Scores of a row, [seeds, sets]."""
    return np.array([[run["scores"][name][what] for name in names] for run in row["runs"]])


def _curve(axes: Any, x: Sequence[float], y: np.ndarray, look: dict[str, Any]) -> None:
    """The mean of [seeds, ...] with a band from the least to the greatest."""
    axes.plot(x, y.mean(axis=0), **look)
    axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=look["color"], alpha=0.15, linewidth=0)


def tiny_bdh_brackets() -> Any:
    """Both questions against the length of the sequences."""
    parts, lengths = _tiny_bdh()["parts"], (20, 40, 60, 80, 100)
    rows = {**parts["brackets"], **parts["sizes"]}
    figure, panels = figures.make(2, width=4.4, height=3.8)
    looks = figures.lines(list(rows))
    for axes, question, null in zip(panels, ("balanced", "closing"), ("by counts", "by last"), strict=True):
        names = [f"{question}{length}" for length in lengths]
        for label, row in rows.items():
            _curve(axes, lengths, _seeds(row, names), looks[label])
        first = next(iter(rows.values()))
        axes.plot(
            lengths, _seeds(first, names, null)[0], color="0.3", linestyle="-.", linewidth=1, label="by counts; by last"
        )
        figures.reference(axes, 1 / 2 if question == "balanced" else 1 / 3, "chance")
        figures.reference(axes, 1, "ceiling")
        axes.axvline(40, color="0.6", linestyle=":", linewidth=1)
        axes.set_xticks(lengths)
        axes.set_ylim(0.28, 1.04)
    figures.say(
        panels[0],
        title="Three fields of σ tell balanced brackets\nup to the trained length, and less beyond",
        x="brackets (dotted line: longest in training)",
        y="balanced or not: accuracy",
    )
    figures.say(
        panels[1],
        title="The next closing bracket\nis known beyond it",
        x="brackets (dotted line: longest in training)",
        y="which bracket closes: accuracy",
    )
    figures.legend(figure, panels[0])
    return figure


def tiny_bdh_sigma() -> Any:
    """σ over the training of XOR, over an episode, and its strongest synapses."""
    found = _tiny_bdh()
    figure, (training, episode, strongest) = figures.make(3, width=3.8, height=3.5)
    runs = found["parts"]["xor"]["tiny-BDH"]["runs"]
    steps = [int(step) for step in runs[0]["synapse_norm"]]
    quantities = {"synapse_nonzero": "share ≠ 0", "synapse_norm": "norm", "synapse_largest": "strongest synapse"}
    looks = figures.lines([*quantities.values()])
    for name, label in quantities.items():
        _curve(training, steps, np.array([[run[name][str(step)] for step in steps] for run in runs]), looks[label])
    figures.say(training, title="XOR: σ stays,\nand does nothing", x="step of training", y="σ written after each step")
    figures.legend(figure, training, None)
    looks = figures.lines([*found["episode"]])
    for label, course in found["episode"].items():
        tokens = np.arange(2, 1 + len(course["norm"]))  # the first token has nothing before it to write under
        episode.plot(tokens, course["norm"][1:], **looks[label])
        episode.plot(tokens, course["nonzero"][1:], color=looks[label]["color"], linestyle=":", linewidth=1.4)
    episode.set_yscale("log")
    figures.say(
        episode, title="A new rule: without limits\nσ grows exponentially", x="token", y="norm of σ (dotted: share ≠ 0)"
    )
    episode.legend(fontsize=7, frameon=False)
    for number, course in enumerate(found["episode"]["no limits"]["strongest"]):
        strongest.plot(np.arange(1, 1 + len(course)), course, color=figures.layer(number, 8), linewidth=1.2)
    strongest.axhline(0, color="0.7", linewidth=0.8)
    figures.say(strongest, title="A few synapses outgrow\nall others", x="token", y="strength")
    return figure


def tiny_bdh_consolidation() -> Any:
    """Facts kept after a reset, and the price in later episodes."""
    found = _tiny_bdh()["consolidation"]
    figure, (kept, harm) = figures.make(2, width=4.4, height=3.5)
    looks = figures.lines([*found["kept"]])
    for name, by_facts in found["kept"].items():
        facts = [int(number) for number in by_facts]
        _curve(kept, facts, np.array([*by_facts.values()]).T, looks[name])
        if name in found["in_episode"]:
            _curve(harm, facts, np.array([*found["in_episode"][name].values()]).T, looks[name])
    for axes in (kept, harm):
        figures.reference(axes, 1 / 32, "chance")
        figures.reference(axes, 1, "ceiling")
        axes.set_xscale("log", base=2)
        axes.set_xticks(facts, [str(number) for number in facts])
        axes.minorticks_off()
        axes.set_ylim(-0.03, 1.06)
    figures.say(
        kept, title="What the synapse keeps\nwhen σ is reset", x="facts, one an episode", y="recall without σ's episode"
    )
    figures.say(
        harm, title="Adding it up costs\nlater episodes", x="facts consolidated before", y="recall of a rule shown once"
    )
    figures.legend(figure, kept, None)
    return figure


def mixture_routes() -> Any:
    """The share of each job's tokens that each expert reads, by layer."""
    found = json.loads((ROOT / "benchmarks" / "results" / "mixture_cpu.json").read_text(encoding="utf-8"))["routing"]
    routing = found["mixture"]
    shares = np.array(routing["shares"])  # [seeds, L, groups, E]
    names = {"bdh": "BDH", "gpt": "GPT", "slim": "SLIM, Oja's rule"}
    groups = {"key": "n-back:\nkeys", "value": "n-back:\nvalues", "question": "n-back:\nasked keys", "text": "text"}
    titles = [
        "Layer 0: keys go to the BDH,\ntext mostly to the GPT",
        "Layer 1: the same; values go\nwhere little is asked of them",
    ]
    figure, panels = figures.make(shares.shape[1], width=4.2, height=3.3, sharey=True)
    looks = figures.lines([names.get(name, name) for name in routing["experts"]])
    for layer, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        bottom = np.zeros(shares.shape[2])
        for expert, name in enumerate(routing["experts"]):
            mean, look = shares[:, layer, :, expert].mean(axis=0), looks[names.get(name, name)]
            error = shares[:, layer, :, expert].std(axis=0, ddof=1) if len(shares) > 1 else None
            axes.bar(
                range(len(mean)),
                mean,
                0.6,
                bottom,
                color=look["color"],
                label=look["label"],
                yerr=error,
                ecolor="0.25",
                capsize=3,
            )
            bottom += mean
        axes.set_xticks(range(len(bottom)), [groups[name] for name in routing["groups"]])
        axes.set_ylim(0, 1.1)
        figures.say(axes, title=title, x="tokens", y="" if layer else "share (error bars: ± std, 3 seeds)")
    figures.legend(figure, panels[0])
    return figure


def latent() -> Any:
    """Share of questions that are answered right by rung, a line for each R, and that of four layers."""
    found = json.loads((ROOT / "benchmarks" / "results" / "latent_cpu.json").read_text(encoding="utf-8"))["ladders"]
    layers, longer = "four layers", "four layers, 3 × the steps"
    panels_of = (
        ("binding", "fixed", {layers: "deep", longer: "deep, longer"}),
        ("binding", "fixed, half", {layers: "deep, half"}),
        ("ordering", "fixed", {layers: "deep"}),
    )
    figure, panels = figures.make(len(panels_of), width=3.3, height=3.1, sharey=True)
    looks = figures.lines([*(f"R = {passes}" for passes in (1, 2, 4, 8, 16)), layers, longer])
    looks[layers] |= {"color": "black", "linestyle": "--"}
    looks[longer] |= {"color": "black", "linestyle": ":"}
    panels[0].set_ylim(-0.03, 1.06)
    for axes, (ladder, model, deep), title in zip(panels, panels_of, _LATENT, strict=True):
        lines = {f"R = {passes}": (model, passes) for passes in found[ladder][model]["runs"]["0"]["accuracy"]}
        lines |= {name: (row, "0") for name, row in deep.items()}
        for name, (row, passes) in lines.items():
            shares = np.array([run["accuracy"][passes] for run in found[ladder][row]["runs"].values()])
            deviation = shares.std(axis=0, ddof=1) if len(shares) > 1 else np.zeros(shares.shape[1])
            _band(axes, range(1, shares.shape[1] + 1), shares.mean(axis=0), deviation, looks[name])
        figures.reference(axes, found[ladder][model]["chance"], "chance")
        figures.reference(axes, 1, "ceiling")
        x = "links to the value" if ladder == "binding" else "place of the item in the order"
        y = "share answered right (band: ± std)" if axes is panels[0] else ""
        figures.say(axes, title=title, x=x, y=y)
    figures.legend(figure, panels[0])
    return figure


_LATENT = (
    "Binding, trained with R = 4:\none pass for each link",
    "Binding, trained up to 3 links:\neight passes reach all six",
    "Ordering, trained with R = 4:\nright at that R alone",
)


def merging_texts() -> Any:
    """Bits per byte of each text, by the models of one base and what was made of them."""
    found = json.loads((ROOT / "benchmarks" / "results" / "merging_cpu.json").read_text(encoding="utf-8"))
    runs, (_, *texts) = list(found["runs"].values()), found["texts"]
    rows = {
        "base": "base",
        "specialist of that text": "",
        "merged, neurons": "merged neurons",
        "merged, heads": "merged heads",
        "mean of weights": "merged average",
        "trained on all three": "joint short",
        "merged size, all texts": "large joint",
    }
    figure, (axes,) = figures.make(1, width=7.2, height=3.4)
    looks = figures.lines(list(rows))
    for place, (label, row) in enumerate(rows.items()):
        have = [run["scores"] for run in runs if (row or f"specialist {texts[0]}") in run["scores"]]
        bits = np.array([[scores[row or f"specialist {text}"][text] for text in texts] for scores in have])
        error = bits.std(axis=0, ddof=1) if len(bits) > 1 else None
        x = np.arange(len(texts)) + (place - (len(rows) - 1) / 2) * 0.1
        look = {**looks[label], "linestyle": "none"}
        axes.errorbar(x, bits.mean(axis=0), yerr=error, capsize=2, **look)
    axes.set_xticks(range(len(texts)), [_LANGUAGES.get(text, text) for text in texts])
    seeds = f"{len(runs)} seeds, ± std" if len(runs) > 1 else "one seed"
    figures.say(axes, title=_MERGED, x="held-out manual pages", y=f"bits per byte ({seeds})")
    figures.legend(figure, axes)
    return figure


def manual_pages() -> Any:
    """Bits per byte of manual pages, by what of the window was read before and by whether the context stood in it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "manpages_cpu.json").read_text(encoding="utf-8"))["models"]
    found = {name: row for name, row in found.items() if any(row["runs"].values())}
    figure, panels = figures.make(2, width=3.6, height=3.2, sharey=True)
    for name, look in figures.lines(list(found)).items():
        runs = [run["normal"] for run in found[name]["runs"].values() if run]
        for axes, kind in zip(panels, ("place", "context"), strict=True):
            labels = [label for label in runs[0][kind] if label not in ("short", "plain")]
            bits = np.array([[run[kind][label]["bits_per_byte"] for label in labels] for run in runs])
            error = bits.std(axis=0, ddof=1) if len(bits) > 1 else None
            axes.errorbar(range(len(labels)), bits.mean(axis=0), yerr=error, capsize=2, **look)
            axes.set_xticks(range(len(labels)), labels)
    for axes, title, x in zip(
        panels, _PAGES, ("bytes of the window read before", "the last 8 bytes stood in it"), strict=True
    ):
        seeds = max(len([run for run in row["runs"].values() if run]) for row in found.values())
        figures.say(axes, title=title, x=x, y=f"bits per byte (at most {seeds} seeds, ± std)" if axes is panels[0] else "")
    panels[1].set_xticks(range(3), ["never", "once", "more often"])
    figures.legend(figure, panels[0])
    return figure


def _mqar(part: str) -> dict[str, Any]:
    """The rows of a part of MQAR."""
    return json.loads((ROOT / "benchmarks" / "results" / "mqar_cpu.json").read_text(encoding="utf-8"))["parts"][part]


def mqar_state() -> Any:
    """What each model recalls, by its state."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import mqar_table  # draws the same of anybody's runs

    return mqar_table.draw(_mqar("grid"), _STATE)


def mqar_long() -> Any:
    """What is recalled from sequences that are longer than those of training."""
    rows = {label: row for label, row in _mqar("long").items() if row}
    figure, (axes,) = figures.make(1, width=6.2, height=3.4)
    looks = figures.lines([label.rpartition(", ")[0] for label in rows])
    for label in rows:
        look = {**looks[label.rpartition(", ")[0]], "label": label}
        lengths = [int(name[1:].split("P")[0]) for name in rows[label]["accuracy"]]
        axes.plot(lengths, list(rows[label]["accuracy"].values()), **look)
    figures.reference(axes, next(iter(rows.values()))["chance"], "chance")
    figures.reference(axes, 1, "ceiling")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,g}")
    figures.say(axes, title=_LONGER, x="tokens (trained on at most 256)", y="share of asked values that are right")
    figures.legend(figure, axes)
    return figure


_STATE = "At equal state BDH is behind"
_LONGER = "What a delta rule has written\nstays for 16,384 tokens"
_PAGES = (
    "After 64 bytes a longer context\nhardly helps these small models",
    "Bytes behind a string that recurs\nare hard for every model",
)
_LANGUAGES = {"man_en": "English", "man_de": "German", "man_fr": "French", "man_es": "Spanish"}
_MERGED = "Merged models read every text better than the base,\nand none as well as its specialist"


def _local() -> Any:
    """What benchmarks/local_rules_table.py found."""
    return json.loads((ROOT / "benchmarks" / "results" / "local_rules_cpu.json").read_text(encoding="utf-8"))["parts"]


def _uncertain(axes: Any, x: float, row: Any, look: dict[str, Any]) -> None:
    """A point with the interval of its difference."""
    error = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
    axes.errorbar([x], [row["difference"]], error, **{**look, "linestyle": "none"}, capsize=2)


def local_failure() -> Any:
    """Validation loss over the steps, by mode and rate."""
    found = _local()["failure"]
    figure, panels = figures.make(2, width=4.3, height=3.4, sharey=True)
    rates = ("0.0001", "0.001", "0.01")
    looks = figures.lines(["backprop", *rates])
    for axes, mode, title in zip(
        panels,
        ("hybrid", "hebbian"),
        ("Beside the gradient Hebb's rule ruins the loss\nfrom η = 0.001 on", LOCAL_TITLES["hebbian"]),
        strict=True,
    ):
        axes.plot(found["steps"], found["table"]["backprop"]["course"], **looks["backprop"])
        for rate in rates:
            for every, style in ((1, "-"), (8, ":")):
                row = found["table"].get(f"{mode} {float(rate):g} every {every}")
                if row is None:
                    continue
                label = {"label": f"η {rate}"} if every == 1 else {"label": None}
                axes.plot(
                    found["steps"][: len(row["course"])], row["course"], **{**looks[rate], **label, "linestyle": style}
                )
        axes.set_yscale("log")
        axes.set_yticks([2.5, 3, 4, 5, 6], ["2.5", "3", "4", "5", "6"])
        axes.minorticks_off()
        figures.say(
            axes, title=title, x="steps (dotted: update every 8)", y="validation loss, nats" if mode == "hybrid" else ""
        )
    figures.legend(figure, panels[0])
    return figure


_CAUSES = ("backprop", "hebb", "top direction removed", "x centred", "renormalised")


def _over_maps(course: Any, measure: str) -> list[float]:
    return np.mean([own[measure] for own in course["maps"].values()], axis=0).tolist()


def local_explanation() -> Any:
    """Ranks, directions and attention over training, means over all layers."""
    found = _local()["explanation"]
    figure, panels = figures.make(3, 2, width=3.4, height=2.8, sharex=True)
    looks = figures.lines(_CAUSES)
    shown = (
        ("rank", "effective rank of W", "Hebb collapses the weights"),
        ("norm", "norm of W", "It lets them grow"),
        ("output_rank", "effective rank of y", "The activities collapse first"),
        ("to_top", "|cos| of Δ with the top pair of C W", "Its change is one direction,"),
        ("to_gradient", "cos of Δ with −gradient", "and not the gradient's"),
    )
    for axes, (name, label, title) in zip(panels, shown, strict=False):
        for row in _CAUSES:
            axes.plot(found["steps"], _over_maps(found["course"][row], name), **looks[row])
        figures.say(axes, title=title, x="", y=label)
    panels[1].set_yscale("log")
    panels[1].set_yticks([2, 4, 8], ["2", "4", "8"])
    panels[1].minorticks_off()
    for row in _CAUSES:
        panels[5].plot(found["steps"], np.mean(found["course"][row]["entropy"], axis=0), **looks[row])
    figures.say(panels[5], title="Attention becomes sharp", x="steps", y="entropy, nats")
    figures.legend(figure, panels[0], ["gradient alone", "Hebb, η 0.001", *_CAUSES[2:]])
    return figure


def local_causes() -> Any:
    """Loss with each cause taken away alone, by seed."""
    found = _local()["explanation"]["table"]
    backprop = _local()["rules"]["table"]["backprop"]
    rows = [("gradient alone", backprop), *((name, row) for name, row in found.items())]
    figure, (axes,) = figures.make(width=6.5, height=2.6)
    for place, (_, row) in enumerate(rows):
        axes.plot(row["losses"], [place] * len(row["losses"]), "o", color="#0072b2", markersize=5, alpha=0.8)
        axes.plot([row["loss"]] * 2, [place - 0.28, place + 0.28], color="#0072b2", linewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    figures.say(axes, title=LOCAL_TITLES["causes"], x="validation loss, nats (points: seeds, bars: means)", y="")
    return figure


def local_frontier() -> Any:
    """What a rule costs against what it does, at every rate tried."""
    rules, on_bdh = _local()["rules"]["sweep"], _local()["on_bdh"]["sweep"]
    hebb = [name for name in rules if name.startswith("hebb")]
    figure, panels = figures.make(3, width=3.7, height=3.6, sharey=True)
    for axes, found, names, part in zip(
        panels,
        (rules, rules, on_bdh),
        (hebb, [name for name in rules if name not in hebb], list(on_bdh)),
        ("hebb", "rules", "on_bdh"),
        strict=True,
    ):
        looks = figures.lines(names)
        for name in names:
            order = sorted(found[name], key=lambda entry: entry["rate"])
            axes.plot([e["share"] for e in order], [e["cost"] for e in order], **looks[name])
        axes.axvline(0.1, color="0.6", linestyle=":", linewidth=1)
        axes.axhline(0.02, color="black", linestyle="--", linewidth=1)
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_yticks([-0.1, 0, 0.02, 0.1, 1], ["−0.1", "0", "0.02", "0.1", "1"])
        axes.set_xscale("log")
        axes.set_xticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
        axes.minorticks_off()
        axes.legend(fontsize=8, frameon=False)
        y = "loss above gradient alone, nats" if axes is panels[0] else ""
        figures.say(axes, title=LOCAL_TITLES[part], x="local share of the change (dotted: 0.1)", y=y)
    return figure


def local_changes() -> Any:
    """Histogram of the entries of Hebb's change at the end of training."""
    ends = _local()["failure"]["ends"]
    figure, (axes,) = figures.make(width=5.5, height=3.0)
    names = {"backprop": "gradient alone", **{f"hybrid {rate:g} every 1": f"η {rate:g}" for rate in (1e-4, 1e-3, 1e-2)}}
    looks = figures.lines(list(names.values()))
    middle = np.arange(-6.0, 3.6, 0.5) + 0.25
    for name, label in names.items():
        axes.plot(middle, ends[name]["histogram"], **looks[label])
    axes.axvline(0, color="0.6", linestyle=":", linewidth=1)
    figures.say(
        axes, title=LOCAL_TITLES["changes"], x="log10 |Δ| before the clamp (dotted: the clamp)", y="share of entries"
    )
    figures.legend(figure, axes)
    return figure


def local_pruning() -> Any:
    """Loss against the share of weights that is pruned."""
    found = _local()["upkeep"]["table"]
    figure, panels = figures.make(2, width=4.0, height=3.2)
    shares = (0.0, 0.5, 0.8, 0.9, 0.95)
    looks = figures.lines(["BDH", "GPT"])
    for axes, model in zip(panels, ("BDH", "GPT"), strict=True):
        rows = [found[f"{model.lower()} pruned {share:g}"] for share in shares]
        for name, style, label in (("without", ":", "pruned"), ("loss", "-", "and trained for 100 more steps")):
            spread = [row["without_sd" if name == "without" else "sd"] for row in rows]
            axes.errorbar(
                shares,
                [row[name] for row in rows],
                spread,
                **{**looks[model], "linestyle": style, "label": label},
                capsize=2,
            )
        axes.set_xticks(shares, ["0", "50", "80", "90", "95"])
        axes.legend(fontsize=8, frameon=False)
        figures.say(axes, title=f"{model}: {LOCAL_TITLES[model]}", x="weights pruned, %", y="validation loss, nats")
    return figure


LOCAL_TITLES = {
    "hebbian": "Instead of the gradient it learns nothing",
    "causes": "Most of the harm is one direction: without it,\nor with x centred, most of the loss is back",
    "hebb": "Hebb's rule costs the more\nthe more it changes",
    "rules": "BCM's and the predictive rule\ncost little or nothing",
    "on_bdh": "On BDH they cost nothing\nat a quarter of the change",
    "changes": "Hebb's changes grow until the clamp holds them",
    "BDH": "most weights can go",
    "GPT": "fewer can",
}
"""Findings of the page on local learning."""


FIGURES: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (
        lifelong,
        lifelong_course,
        lifelong_facts,
        capacity,
        language_context,
        language_scores,
        tiny_bdh_brackets,
        tiny_bdh_sigma,
        tiny_bdh_consolidation,
        latent,
        mixture_routes,
        merging_texts,
        manual_pages,
        mqar_state,
        mqar_long,
        local_failure,
        local_explanation,
        local_causes,
        local_frontier,
        local_changes,
        local_pruning,
    )
}

_SHOWN = (415, 704, 911, 1024)
"""Facts shown at the checkpoints of the course."""
_BOUND_COURSE = {"fine_tuning": 0.038}


def _thousand_facts() -> list[list[str]]:
    """The large table of the page at 1,024 facts, which is the second of its kind."""
    text = (RESULTS / "lifelong.md").read_text(encoding="utf-8")
    *_, part = text.split("| function | rate | recall | Δ recall to dense |")
    lines = part.splitlines()[2:]
    rows = lines[: next(n for n, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in rows]


def _band(axes: Any, x: Sequence[float], y: Sequence[float], half: float | Sequence[float], look: dict[str, Any]) -> None:
    """A line with a band of this half width."""
    y, half = np.asarray(y), np.asarray(half)
    axes.plot(x, y, **look)
    axes.fill_between(x, y - half, y + half, color=look["color"], alpha=0.2, linewidth=0)


def main(folder: Path = FOLDER) -> None:
    """Write every figure into a folder."""
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "bdh_jax"  # the same figure is the same file
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
    for name, chart in report_figures.kept().items():
        svg, png = report_figures.draw(chart)
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        (folder / f"{name}.png").write_bytes(png)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
