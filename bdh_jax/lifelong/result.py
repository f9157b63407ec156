"""What the lifelong benchmark says: scores, tables and figures.

Axis letters: M models, R streams, C checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from bdh_jax.analysis import figures
from bdh_jax.console import show
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.lifelong.preconditions import Preconditions
from bdh_jax.lifelong.stream import StreamConfig
from bdh_jax.tasks.facts import VALUES

_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Row:
    """What one contestant did. Every score is an array [M, R], NaN where it is not defined."""

    name: str
    rate: float | None
    scores: dict[str, np.ndarray]
    course: dict[str, np.ndarray]
    """Score → [M, R, C], at each checkpoint, of the facts shown so far. NaN but for the last of what is made in the end only, and of
    kinds, ages and reassigned facts that have not come yet. ``in_episode`` is that of the episodes since the checkpoint before."""
    facts_so_far: np.ndarray
    """[R, C]."""

    def mean(self, score: str) -> float:
        """Mean over models and streams; NaN if it is not defined."""
        return float(np.mean(self.scores[score]))

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, with None for NaN."""
        return {
            "name": self.name,
            "rate": self.rate,
            "mean": {name: _plain(self.mean(name)) for name in self.scores},
            "scores": {name: _plain(array) for name, array in self.scores.items()},
            "course": {name: _plain(array) for name, array in self.course.items()},
            "facts_so_far": self.facts_so_far.tolist(),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Row:
        """The row that ``to_dict`` gave."""
        scores, course = (
            {name: np.array(values, float) for name, values in entry[part].items()} for part in ("scores", "course")
        )
        return cls(entry["name"], entry["rate"], scores, course, np.array(entry["facts_so_far"]))

    def along(self, score: str) -> np.ndarray:
        """Means [C] at every checkpoint, over the models and streams where the score is defined; NaN if it is nowhere."""
        values = self.course[score]
        defined = ~np.isnan(values)
        count = defined.sum(axis=(0, 1))
        return np.where(count > 0, np.where(defined, values, 0).sum(axis=(0, 1)) / np.maximum(count, 1), np.nan)


_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("recall", "recall", ".3f"),
    ("new_value", "new value", ".3f"),
    ("old_value", "old value", ".3f"),
    ("neither_value", "other value", ".3f"),
    ("in_episode", "in episode", ".3f"),
    ("harm", "harm", "+.3f"),
    ("harm_known", "harm to known", "+.3f"),
    ("kilobytes", "kB", ".0f"),
    ("bits_per_byte", "bits per byte", ".4f"),
    ("milliseconds", "ms", ".0f"),
)
_COURSE: tuple[tuple[str, str], ...] = (
    ("recall", "recall"),
    ("old_value", "old value"),
    ("in_episode", "in episode"),
    ("harm", "harm"),
    ("harm_known", "harm to known"),
)
PANELS: dict[str, tuple[str, tuple[float | None, float | None]]] = {
    "recall": ("recall after reset", (-0.02, 1.02)),
    "new_value": ("reassigned: the value that holds", (-0.02, 1.02)),
    "old_value": ("reassigned: the value before", (-0.02, 1.02)),
    "in_episode": ("recall within the episodes", (-0.02, 1.02)),
    "harm": ("harm in other episodes", (None, None)),
    "harm_known": ("harm to known facts", (None, None)),
}
"""Score → the label of its panel in :meth:`LifelongResult.plot_course`, and the limits of its axis."""
_PRECONDITIONS = (
    "dead: keys without an address. seen, held out, new ids: recall within an episode, by kind of key; new, raw: of new ids as training "
    "left them. ridge, written: recall by ridge regression of so many facts, on addresses of a fresh state and of an episode. cos: "
    "between the two, by layer"
)
_MET = "All are met: what a row below forgets, it forgets by its consolidation."
_NOT_MET = (
    "Such a model loses facts before anything is consolidated, and the rows below cannot tell one from the other. Train it for more steps, "
    "with more neurons, or on fewer facts an episode (task.pairs, and stream.pairs with it)."
)
_NOTE = (
    "recall: of all facts after the last reset. new, old, other value: of reassigned facts, answered with the value that holds, the one "
    "before, any other. in episode: recall within the episodes of the stream. harm: drop of recall in unrelated episodes; to known: of "
    "facts learned by gradient. kB: synapse and the function's history. bits per byte: recalled above chance. ms: of an episode. "
    "Δ: against {reference}, mean and half of its 95 % interval over models and streams"
)


@dataclasses.dataclass(frozen=True)
class LifelongResult:
    """What the benchmark says."""

    rows: tuple[Row, ...]
    preconditions: tuple[Preconditions, ...]
    """One for each model."""
    config: LifelongConfig

    def tables(self) -> list[Table]:
        """The preconditions, the scores, recall by age, and scores along the stream."""
        return [self.preconditions_table(), self.table(), self.retention_table(), self.course_table()]

    def table(self) -> Table:
        """The scores, means over models and streams."""
        reference = next((row for row in self.rows if row.name == self.config.reference), None)
        models, streams = self.rows[0].scores["recall"].shape
        stream = self.config.stream
        title = f"{stream.facts} facts, chance {1 / VALUES:.3f}; {models} model{'s' * (models > 1)} × {streams} stream{'s' * (streams > 1)}"
        table = Table(title=title, caption=self._caption(reference), box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("function", min_width=18)
        table.add_column("rate", justify="right")
        for number, (_, header, _) in enumerate(_COLUMNS):
            table.add_column(header, justify="right")
            if number == 0 and reference is not None:
                table.add_column("Δ recall", justify="right")
        for row in self.rows:
            cells = [_number(row.mean(score), form) for score, _, form in _COLUMNS]
            if reference is not None:
                cells.insert(1, _difference(row.scores["recall"] - reference.scores["recall"]))
            table.add_row(row.name, "" if row.rate is None else f"{row.rate:g}", *cells)
        return table

    def retention_table(self) -> Table:
        """Recall after the last reset by kind of key, and by age."""
        names = [name for name in self.rows[0].scores if name.startswith(("kind_", "age_"))]
        table = Table(
            title="recall by kind of key, and by episodes since the fact was shown last",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        table.add_column("function", min_width=18)
        for name in names:
            table.add_column(name.split("_", 1)[1].replace("_", " "), justify="right")
        for row in self.rows:
            table.add_row(row.name, *(_number(row.mean(name), ".3f") for name in names))
        return table

    def course_table(self) -> Table:
        """Scores at every checkpoint, in percent."""
        count = self.config.stream.checkpoints
        table = Table(
            title=f"along the stream, at {count} checkpoints: percent, and points of harm",
            caption="in episode: of the episodes since the checkpoint before. –: made in the end only, or not defined",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        table.add_column("function", overflow="fold")
        for _, header in _COURSE:
            table.add_column(header, justify="right", no_wrap=True)
        for row in self.rows:
            cells = [" ".join(_percent(x, score) for x in row.along(score)) for score, _ in _COURSE]
            table.add_row(row.name, *cells)
        return table

    def preconditions_table(self) -> Table:
        """The preconditions, one row a model."""
        failures = self._failures("NOT MET")
        table = Table(
            title="preconditions",
            caption="\n".join([*failures, _NOT_MET if failures else _MET, _PRECONDITIONS]),
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        first = self.preconditions[0]
        headers = ["model", "dead keys", *(k.replace("_", " ") for k in first.in_episode), "new, raw"]
        headers += [f"ridge {f}" for f in first.ridge] + [f"written {f}" for f in first.ridge_written]
        headers += [f"cosine {layer + 1}" for layer in range(len(first.drift))]
        for header in headers:
            table.add_column(header, justify="right")
        for number, model in enumerate(self.preconditions):
            values = [*model.in_episode.values(), model.in_episode_raw_ids, *model.ridge.values()]
            values += [*model.ridge_written.values(), *model.drift]
            table.add_row(str(number), str(model.dead_keys), *(f"{value:.3f}" for value in values))
        return table

    def print(self) -> None:
        """Print all tables; those that are too wide are split."""
        show(*self.tables())

    def plot(self) -> Any:
        """Recall of the facts so far along the stream, and recall by age at its end, with chance and 95 % intervals.

        Returns:
          A ``matplotlib.figure.Figure``.
        """
        figure, (along, by_age) = figures.make(2, width=5, height=4, sharey=True)
        ages = [name for name in self.rows[0].scores if name.startswith("age_")]
        looks = figures.lines([row.name for row in self.rows])
        for row in self.rows:
            facts = row.facts_so_far.mean(axis=0)
            along.plot(facts, row.along("recall"), **looks[row.name])
            low, high = zip(*(interval(row.course["recall"][..., c]) for c in range(len(facts))), strict=True)
            along.fill_between(facts, low, high, color=looks[row.name]["color"], alpha=0.2, linewidth=0)
            by_age.plot([name.removeprefix("age_") for name in ages], [row.mean(name) for name in ages], **looks[row.name])
        for axes in (along, by_age):
            figures.reference(axes, 1 / VALUES, "chance")
        figures.say(along, title=self._finding(), x="facts shown so far", y="recall after reset")
        figures.say(by_age, title=self._by_age(ages), x="episodes since the fact was shown last", y="")
        along.set_ylim(-0.02, 1.02)
        figures.legend(figure, along)
        return figure

    def _finding(self) -> str:
        """What the table says in a sentence: who keeps most, of the rows that see an episode at a time."""
        episodic = [row for row in self.rows if not np.isnan(row.along("recall")[0])]
        best = max(episodic or self.rows, key=lambda row: row.mean("recall"))
        return f"{best.name} recalls most: {best.mean('recall'):.2f} of {self.config.stream.facts} facts"

    def _by_age(self, ages: Sequence[str]) -> str:
        first = self.rows[0]
        young, old = first.mean(ages[0]), first.mean(ages[-1])
        return f"{first.name}: {young:.2f} of the newest facts, {old:.2f} of the oldest"

    def plot_course(self) -> Any:
        """The scores of ``PANELS`` at every checkpoint, against the facts shown so far.

        Returns:
          A ``matplotlib.figure.Figure``.
        """
        figure, panels = figures.make(3, 2, width=4, height=3.2, sharex=True)
        looks = figures.lines([row.name for row in self.rows])
        for axes, (score, (label, limits)) in zip(panels, PANELS.items(), strict=True):
            for row in self.rows:
                axes.plot(row.facts_so_far.mean(axis=0), row.along(score), **looks[row.name])
            axes.set(ylabel=label, ylim=limits)
        for axes in panels[3:]:
            axes.set_xlabel("facts shown so far")
        figures.legend(figure, panels[0])
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, every single score included; None where one is not defined."""
        rows = [row.to_dict() for row in self.rows]
        preconditions = [{**dataclasses.asdict(p), "failures": list(p.failures)} for p in self.preconditions]
        return {"config": dataclasses.asdict(self.config), "preconditions": preconditions, "rows": rows}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LifelongResult:
        """The result that ``to_dict`` gave, so that a results.json can be printed and drawn again.

        Raises:
          ValueError: for a record of something else.
        """
        # A file may call them gates.
        measured = record.get("preconditions", record.get("gates"))
        if "rows" not in record or measured is None:
            raise ValueError(f"a record with {', '.join(record) or 'nothing'} in it is no result of the lifelong benchmark")
        sizes = dict(record["config"])
        return cls(
            rows=tuple(Row.from_dict(row) for row in record["rows"]),
            preconditions=tuple(Preconditions.from_dict(entry) for entry in measured),
            config=LifelongConfig(**{**sizes, "stream": StreamConfig(**sizes["stream"])}),
        )

    def _failures(self, verdict: str) -> list[str]:
        """A line for each precondition that a model does not meet."""
        return [f"{verdict}, model {i}: {why}" for i, p in enumerate(self.preconditions) for why in p.failures]

    def _caption(self, reference: Row | None) -> str:
        note = _NOTE if reference else _NOTE.split(". Δ")[0]
        failures = self._failures("PRECONDITION NOT MET")
        failures += [
            f"WEIGHTS NaN OR INFINITE at the end of a stream: {row.name}"
            for row in self.rows
            if not row.scores["finite"].all()
        ]
        return "\n".join([*failures, note.format(reference=self.config.reference)])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Bounds of the 95 % bootstrap interval of a mean, each number drawn as a unit. NaN if any is, and of a single number, which
    says nothing of how much others would differ.

    Args:
      values: of any shape.
    """
    values = np.ravel(values)
    if len(values) < 2 or np.isnan(values).any():
        return np.nan, np.nan
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _difference(values: np.ndarray) -> str:
    if np.isnan(values).any() or not values.any():
        return ""
    low, high = interval(values)
    return f"{values.mean():+.3f}" + ("" if np.isnan(low) else f"±{(high - low) / 2:.3f}")


def _number(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)


def _percent(share: float, score: str) -> str:
    # Of small harm a tenth of a point matters.
    tenths = score in ("harm", "harm_known") and abs(share) < 0.0995
    return _number(100 * share, "z.1f" if tenths else "z.0f")


def _plain(value: Any) -> Any:
    """Lists of floats with None for NaN, which JSON does not know."""
    return np.where(np.isnan(value), np.array(None), np.asarray(value, object)).tolist()
