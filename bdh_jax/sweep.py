"""A sweep: rows that are compared, each with what suits it best on a grid, as one table and one figure.

    planned = sweep.plan(
        experiment,
        rows={"model.fast.rule": ("hebbian", "delta")},
        grid={"optimizer.learning_rate": (1e-3, 2e-3, 4e-3)},
    )
    result = sweep.run(planned, Path("runs/sweep"))
    result.table()

Every point of a row's grid is trained with a seed of its own, the validation seed. The point with the largest primary score
(:class:`bdh_jax.tasks.scores.Evaluation`) is the row's, the first of equal ones, and with it the row is trained with the seeds that are
reported. A run whose loss is not finite is a result, too.

The folder holds::

    sweep.json                          what is swept over
    ROW/POINT/                          a training run (docs/reference/run_folder.md) with the validation seed
    ROW/seeds-POINT/seed<k>/            and those with the seeds, of the point that was chosen; ROW/seeds/ without a grid
    results.json, table.md, figure.png  at the end; the last two are written by the command
    …/diverged.json                     in the folder of a run that ended so
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from rich import box
from rich.table import Table

from bdh_jax.analysis import figures
from bdh_jax.config import ConfigError, require
from bdh_jax.config.base import shown
from bdh_jax.config.convert import rebuild
from bdh_jax.config.options import Options
from bdh_jax.config.paths import check_writable
from bdh_jax.config.records import Schema
from bdh_jax.config.seeds import whole_seed
from bdh_jax.experiment import ExperimentConfig, check_memory, memory_available, record_of, setup_of, train
from bdh_jax.runs.folder import (
    BELOW,
    CHECKPOINTS,
    RESULTS,
    RUN,
    CheckpointError,
    changes,
    check_same_config,
    finished,
    read_record,
    seed_folders,
    write_json,
)
from bdh_jax.runs.lock import only_writer
from bdh_jax.runs.signals import name_of
from bdh_jax.tasks.scores import mean_and_spread, read_score, summarise
from bdh_jax.training.loop import Interrupted, NonFiniteError

SWEEP, DIVERGED, TABLE, FIGURE = "sweep.json", "diverged.json", "table.md", "figure.png"
SEEDS, VALIDATION_SEED = (0, 1, 2), 100
MOST = 100
"""Characters of a folder's name; a longer one ends in a hash of itself."""
_LOGGER = logging.getLogger("bdh_jax")


# What is planned.


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a row's grid."""

    name: str
    """Of its folder; empty if it is the only one that a grid without keys has."""
    values: Mapping[str, Any]
    """Key of the grid → value."""
    config: ExperimentConfig
    """With the validation seed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table."""

    name: str
    """In the table, and of its folder."""
    variant: str
    values: Mapping[str, Any]
    """Key of the rows → value."""
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is trained: made by :func:`plan`."""

    rows: tuple[Row, ...]
    grid: Mapping[str, tuple[Any, ...]]
    """Key → its values."""
    seeds: tuple[int, ...]
    """What is reported is of these."""
    validation_seed: int
    """A row's point is chosen by this one."""

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.rows[0].points) > 1

    @property
    def count(self) -> int:
        """How many runs it is made of, if no row diverges everywhere."""
        points = len(self.rows[0].points)
        return len(self.rows) * (points * self.chooses + len(self.seeds))

    def describe(self) -> str:
        """The runs in a line."""
        rows = _number(len(self.rows), "row")
        seeds = f"{rows} × {_number(len(self.seeds), 'seed')}"
        if not self.chooses:
            return f"{seeds} = {_number(self.count, 'run')}"
        return f"{rows} × {len(self.rows[0].points)} grid points, then {seeds} = {_number(self.count, 'run')}"


def plan(
    experiments: ExperimentConfig | Mapping[str, ExperimentConfig],
    *,
    rows: Mapping[str, Sequence[Any]] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] | None = None,
    validation_seed: int = VALIDATION_SEED,
) -> Sweep:
    """Say what a sweep trains. All of its configurations are built and checked here.

    Args:
      experiments: what is changed; or several, by the name that their rows get: variants of one experiment. "" is the default.
      rows: key of the configuration ("model.fast.rule") → values: a row for each of them; of several keys, for all their combinations.
      grid: the same of what each row chooses from. Without it, nothing is chosen.
      seeds: of the runs that are reported; by default those of the experiments, or 0, 1 and 2.
      validation_seed: of the runs by which is chosen.

    Returns:
      The plan.

    Raises:
      ConfigError: for a key that does not exist, is named twice or has no values; a value that is ill-typed, out of range or there twice;
        two rows that are the same, or whose folders would be; seeds that are none, or among which is the validation seed.
    """
    named = {"": experiments} if isinstance(experiments, ExperimentConfig) else dict(experiments)
    require(bool(named), "a sweep needs an experiment")
    rows, grid = dict(rows or {}), dict(grid or {})
    both = next((key for key in rows if key in grid), None)
    require(both is None, f"{both} is a key of the rows and of the grid; it can be one of them")
    for key, values in (rows | grid).items():
        _check_values(key, values)
    chosen_seeds = _check_seeds(named, seeds, validation_seed)
    short = short_names((*rows, *grid))
    planned = []
    for variant, experiment in named.items():
        for values in _product(rows):
            prefix = [variant.replace(",", "-")] if variant else []
            given = _folder_name(prefix, values, short) or "default"
            points = tuple(
                _point(given, experiment, values, point, short, validation_seed=validation_seed) for point in _product(grid)
            )
            # As the configuration has them: 1 where a float belongs is 1.0.
            read = _values_in(points[0].config, rows)
            name = _folder_name(prefix, read, short) or "default"
            _check_distinct(points, grid, f"row {name}")
            planned.append(Row(name, variant, read, points))
    _check_rows(planned)
    values_of = {key: tuple(dict.fromkeys(point.values[key] for point in planned[0].points)) for key in grid}
    return Sweep(tuple(planned), values_of, chosen_seeds, validation_seed)


def _check_values(key: str, values: Sequence[Any]) -> None:
    require(key not in ("seed", "seeds"), f"{key} is no key to sweep over: name the seeds of the sweep instead")
    require(not isinstance(values, str) and len(values) > 0, f"{key}={shown(values)} must be a list of one value or more")


def _check_seeds(
    named: Mapping[str, ExperimentConfig], seeds: Sequence[int] | None, validation_seed: int
) -> tuple[int, ...]:
    first = next(iter(named.values()))
    for experiment in named.values():
        require(
            experiment.seed == ExperimentConfig.seed,
            f"seed={experiment.seed}: a sweep names its seeds itself, several and one to choose by; leave config.seed at {ExperimentConfig.seed}",
        )
        require(
            experiment.seeds == first.seeds,
            f"the experiments have seeds={first.seeds} and seeds={experiment.seeds}; a sweep has the same for all rows",
        )
        require(
            not experiment.mesh.distributed,
            "mesh.distributed=True: a sweep runs in one process; train its rows with bdh train, or set it to False",
        )
    chosen = tuple(seeds) if seeds is not None else first.seeds or SEEDS
    require(len(chosen) > 0, "seeds: a sweep needs one seed or more")
    require(
        not first.seeds or chosen == first.seeds,
        f"seeds={_joined(chosen)} of the sweep and config.seeds={_joined(first.seeds)} differ; give one of them",
    )
    chosen = tuple(whole_seed(seed, "seeds") for seed in chosen)
    whole_seed(validation_seed, "validation_seed")
    require(len(set(chosen)) == len(chosen), f"seeds={_joined(chosen)} names a seed twice")
    require(
        validation_seed not in chosen,
        f"validation_seed={validation_seed} is among the seeds {_joined(chosen)}: what is chosen by a seed cannot be reported with it; name "
        "another one",
    )
    return chosen


def _product(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """All combinations; one without anything of no keys."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _point(
    row: str,
    experiment: ExperimentConfig,
    values: Mapping[str, Any],
    point: Mapping[str, Any],
    short: Mapping[str, str],
    *,
    validation_seed: int,
) -> Point:
    try:
        changed = rebuild(experiment, _nested(experiment, {**values, **point}))
        config = dataclasses.replace(changed, seed=validation_seed, seeds=())
        # What training would say of it, before the first of all runs.
        setup_of(config)
        check_memory(config, memory_available())
    except ConfigError as error:
        where = ", ".join([f"row {row}", *(f"{key}={shown(value)}" for key, value in point.items())])
        raise ConfigError(f"{where}: {error}") from None
    read = _values_in(config, point)
    return Point(_folder_name([], read, short), read, config)


def _nested(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of keys with dots as the mapping that :func:`bdh_jax.config.convert.rebuild` takes."""
    changed: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if rest:
            parts.setdefault(name, {})[rest] = value
        else:
            changed[name] = value
    for name, inner in parts.items():
        part = config.get(name) if isinstance(config, Options) else getattr(config, name, None)
        # An option is one of many: the others stay.
        changed[name] = {**part, **_nested(part, inner)} if isinstance(part, Options) else _nested(part, inner)
    return changed


def _values_in(config: ExperimentConfig, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the configuration holds them."""
    found = {}
    for key in keys:
        value: Any = config
        for name in key.split("."):
            value = value[name] if isinstance(value, Options) else getattr(value, name)
        found[key] = value
    return found


def _check_distinct(points: Sequence[Point], grid: Mapping[str, Sequence[Any]], where: str) -> None:
    for key, values in grid.items():
        read = [point.values[key] for point in points]
        twice = next((value for value in read if read.count(value) * len(values) > len(points)), None)
        require(twice is None, f"{key}={shown(twice)} is in the grid twice")
    _check_names([point.name for point in points], where)


def _check_rows(rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows):
        same = next((other for other in rows[:number] if other.points[0].config == row.points[0].config), None)
        require(same is None, f"the rows {same and same.name} and {row.name} are the same; leave out one of them")
    _check_names([row.name for row in rows], "the rows")


def _check_names(names: Sequence[str], where: str) -> None:
    """Refuse names that a file system may take for one: not every one tells A from a."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(name.casefold(), name)
        require(
            other is name,
            f"{where}: two folders would be called {other!r} and {name!r}; the values differ only in what no folder's name can hold: leave "
            "out one of them",
        )


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key → as many of its last parts as tell it from the others: "learning_rate"."""
    short = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        short[key] = next((e for e in endings if not any(f".{other}".endswith(f".{e}") for other in others)), key)
    return short


def _folder_name(prefix: Sequence[str], values: Mapping[str, Any], short: Mapping[str, str]) -> str:
    name = ",".join([*prefix, *(f"{short[key]}={shown_value(value)}" for key, value in values.items())])
    name = re.sub(r"[^\w.,+=-]+", "-", name, flags=re.ASCII).lstrip(".-")
    if len(name) <= MOST:
        return name
    return f"{name[: MOST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shown_value(value: Any) -> str:
    """A value in a table and in a folder's name: as it is written on the command line."""
    return "-".join(map(shown_value, value)) if isinstance(value, tuple | list) else str(value)


def _joined(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


# What came of it.


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    primary: float | None
    """The score by which is chosen, larger is better; None of a run that diverged."""
    diverged_at: int | None = None
    """The step at which its loss or gradient was not finite."""
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What ``results.json`` of the run holds; empty of a run that diverged."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        kept = ("steps", "seconds", "evaluation")
        results = {key: self.results[key] for key in kept if key in self.results}
        return {"primary": self.primary, "diverged_at": self.diverged_at, **results}


@dataclasses.dataclass(frozen=True)
class RowResult:
    """What became of a row."""

    row: Row
    validation: tuple[Outcome, ...]
    """Of each point, with the validation seed; empty if there was nothing to choose."""
    chosen: Point | None
    """None if all points diverged."""
    runs: Mapping[int, Outcome]
    """Seed → its run."""

    @property
    def finite(self) -> dict[int, Outcome]:
        """Those of ``runs`` that came to their end."""
        return {seed: outcome for seed, outcome in self.runs.items() if outcome.primary is not None}

    @property
    def mean(self) -> float | None:
        """Of the primary score over seeds that came to their end; None if there are none."""
        return statistics.fmean(self._scores) if self._scores else None

    @property
    def spread(self) -> float | None:
        """Its sample standard deviation; None of fewer than two seeds."""
        return statistics.stdev(self._scores) if len(self._scores) > 1 else None

    @property
    def _scores(self) -> list[float]:
        return [outcome.primary for outcome in self.runs.values() if outcome.primary is not None]

    def notes(self) -> list[str]:
        """What is to be known of the row besides its numbers, each in a line."""
        name = self.row.name
        if self.chosen is None:
            steps = ", ".join(f"at step {outcome.diverged_at}" for outcome in self.validation)
            return [f"{name}: every point of the grid diverged ({steps})"]
        said = [f"{name}: seed {s} diverged at step {o.diverged_at}" for s, o in self.runs.items() if o.primary is None]
        for key, side in self.edges().items():
            other = {"smallest": "smaller", "largest": "larger"}[side]
            said.append(
                f"{name}: {key}={shown_value(self.chosen.values[key])} is the {side} of its grid; try {other} ones as well"
            )
        return said

    def edges(self) -> dict[str, str]:
        """Keys of which a number was chosen at an edge of its grid → "smallest" or "largest"."""
        found = {}
        for key, value in self.chosen.values.items() if self.chosen else ():
            values = [point.values[key] for point in self.row.points]
            if all(map(_is_number, values)) and len(set(values)) > 1 and value in (min(values), max(values)):
                found[key] = "smallest" if value == min(values) else "largest"
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        finite = [outcome.results for outcome in self.finite.values()]
        mean, spread = summarise(finite) if finite else (None, None)
        points = zip(self.row.points, self.validation, strict=False)
        return {
            "name": self.row.name,
            "variant": self.row.variant,
            "values": dict(self.row.values),
            "chosen": None if self.chosen is None else dict(self.chosen.values),
            "validation": [{"values": dict(point.values), **outcome.to_dict()} for point, outcome in points],
            "runs": {str(seed): outcome.to_dict() for seed, outcome in self.runs.items()},
            "primary": {"mean": self.mean, "spread": self.spread},
            "mean": mean,
            "spread": spread,
            "notes": self.notes(),
        }


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What became of a sweep."""

    sweep: Sweep
    rows: tuple[RowResult, ...]

    def tables(self) -> list[Table]:
        """The rows, and, where there was something to choose, the scores by which it was."""
        return [self.table(), *([self.validation_table()] if self.sweep.chooses else [])]

    def table(self) -> Table:
        """The rows with the values that were chosen: mean and sample standard deviation over seeds.

        Of several evaluation sets there is the number that seeds are compared by, of one all of its numbers.
        """
        short = short_names((*self.rows[0].row.values, *self.sweep.grid))
        scored = [outcome.results["evaluation"] for row in self.rows for outcome in row.finite.values()]
        sets = {name: read_score(score) for evaluation in scored for name, score in evaluation.items()}
        columns = [(name, score.COMPARED, name) for name, score in sets.items()]
        title = "".join(f"{number}, " for number in dict.fromkeys(s.COLUMNS[s.COMPARED] for s in sets.values()))
        if len(sets) == 1:
            ((name, score),) = sets.items()
            title, columns = f"{name}: ", [(name, number, header) for number, header in score.COLUMNS.items()]
        seeds = ", ".join(map(str, self.sweep.seeds))
        table = Table(title=f"{title}mean ± standard deviation over seeds {seeds}", box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column("row")
        for header in (*(short[key] for key in self.sweep.grid), "seeds", *(header for _, _, header in columns)):
            table.add_column(header, justify="right")
        for result in self.rows:
            table.add_row(result.row.name, *self._cells(result, columns))
        table.caption = "\n".join(note for row in self.rows for note in row.notes()) or None
        return table

    def _cells(self, result: RowResult, columns: Sequence[tuple[str, str, str]]) -> Iterator[str]:
        for key in self.sweep.grid:
            yield "all diverged" if result.chosen is None else shown_value(result.chosen.values[key])
        count = len(self.sweep.seeds)
        yield str(count) if len(result.finite) == count else f"{len(result.finite)} of {count}"
        finite = [outcome.results for outcome in result.finite.values()]
        mean, spread = summarise(finite) if finite else ({}, {})
        for name, number, _ in columns:
            yield mean_and_spread(mean[name][number], spread[name][number]) if name in mean else "–"

    def validation_table(self) -> Table:
        """The primary score of every point: a column for each value of the grid's first key."""
        first, *others = self.sweep.grid
        short = short_names((*self.rows[0].row.values, *self.sweep.grid))
        table = Table(
            title=f"primary score of seed {self.sweep.validation_seed} by {short[first]}",
            box=box.SIMPLE_HEAD,
            show_edge=False,
        )
        table.add_column("row")
        for key in others:
            table.add_column(short[key], justify="right")
        for value in self.sweep.grid[first]:
            table.add_column(shown_value(value), justify="right")
        for result in self.rows:
            lines: dict[tuple[Any, ...], list[str]] = {}
            for point, outcome in zip(result.row.points, result.validation, strict=True):
                lines.setdefault(tuple(point.values[key] for key in others), []).append(
                    _cell(outcome, point is result.chosen)
                )
            for values, cells in lines.items():
                table.add_row(result.row.name, *map(shown_value, values), *cells)
        table.caption = "larger is better; * is what was chosen"
        return table

    @property
    def key_columns(self) -> int:
        """Columns at the left of the tables that say what a line is, for :func:`bdh_jax.console.show`."""
        return max(1, len(self.sweep.grid))

    def markdown(self) -> str:
        """The tables, for a page."""
        return "\n".join(map(_markdown, self.tables()))

    def finding(self) -> str:
        """What the rows say, as a sentence: one is best only if it is so by more than the spreads of both."""
        scored = [(row.mean, row.spread, row.row.name) for row in self.rows if row.mean is not None]
        if not scored:
            return "Every row diverged"
        (mean, spread, best), *others = sorted(scored, key=lambda row: -row[0])
        score = f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
        if not others:
            return f"{best}: {score}"
        near = []
        for other, own_spread, name in others:
            if spread is None or own_spread is None:
                return f"{best} has the highest score: {score}, without a spread"
            if mean - other <= spread + own_spread:
                near.append(name)
        if not near:
            return f"{best} is the best: {score}"
        return f"{best}: {score}; {near[0] if len(near) == 1 else _number(len(near), 'row')} within the spread of seeds"

    def plot(self) -> Any:
        """The primary score against the grid's first key with numbers, a line a row, the chosen points ringed. Without a grid, by row.

        Returns:
          A ``matplotlib.figure.Figure``.
        """
        figure, (axes,) = figures.make(1, width=6.4, height=4.0)
        looks = _looks([result.row for result in self.rows])
        if not self.sweep.chooses:
            self._plot_rows(axes, looks)
            return figure
        keys = [key for key, values in self.sweep.grid.items() if all(map(_is_number, values)) and len(values) > 1]
        key = keys[0] if keys else next(key for key, values in self.sweep.grid.items() if len(values) > 1)
        values = sorted(self.sweep.grid[key]) if keys else list(self.sweep.grid[key])
        places = {value: value if keys else number for number, value in enumerate(values)}
        for result in self.rows:
            self._plot_row(axes, result, looks[result.row.name], key, places)
        if keys and _is_geometric(values):
            axes.set_xscale("log")
        axes.set_xticks(list(places.values()), [shown_value(value) for value in places])
        axes.minorticks_off()
        best = "" if len(self.sweep.grid) == 1 else ", the best of the other keys"
        marks = f"○ chosen, with mean ± sd over {_number(len(self.sweep.seeds), 'seed')}; × diverged"
        score = f"primary score, seed {self.sweep.validation_seed}{best}"
        figures.say(axes, title=self.finding(), x=f"{key}\n{marks}", y=score)
        figures.legend(figure, axes)
        return figure

    def _plot_row(
        self, axes: Any, result: RowResult, look: Mapping[str, Any], key: str, places: Mapping[Any, float]
    ) -> None:
        best: dict[Any, float] = {}
        for point, outcome in zip(result.row.points, result.validation, strict=True):
            best[point.values[key]] = max(
                best.get(point.values[key], -math.inf), -math.inf if outcome.primary is None else outcome.primary
            )
        line = {value: best[value] for value in places if best[value] > -math.inf}
        axes.plot([places[value] for value in line], list(line.values()), **look)
        for value in places:
            if best[value] == -math.inf:
                bottom = {"transform": axes.get_xaxis_transform(), "color": look["color"], "clip_on": False}
                axes.plot([places[value]], [0], marker="x", linestyle="none", **bottom)
        if result.chosen is None:
            return
        place, ring = places[result.chosen.values[key]], {"linestyle": "none", "color": look["color"]}
        axes.plot([place], [best[result.chosen.values[key]]], marker="o", markersize=11, markerfacecolor="none", **ring)
        if result.mean is not None:
            axes.errorbar([place], [result.mean], yerr=[result.spread or 0.0], marker="_", capsize=4, **ring)

    def _plot_rows(self, axes: Any, looks: Mapping[str, Mapping[str, Any]]) -> None:
        for number, result in enumerate(self.rows):
            look = looks[result.row.name]
            if result.mean is not None:
                axes.errorbar(
                    [number],
                    [result.mean],
                    yerr=[result.spread or 0.0],
                    marker=look["marker"],
                    color=look["color"],
                    capsize=4,
                )
        axes.set_xticks(range(len(self.rows)), [row.row.name for row in self.rows], rotation=20, ha="right")
        seeds = _number(len(self.sweep.seeds), "seed")
        figures.say(axes, title=self.finding(), x="row", y=f"primary score, mean ± sd over {seeds}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {**identity(self.sweep), "results": [row.to_dict() for row in self.rows]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_geometric(values: Sequence[float]) -> bool:
    """Whether sorted numbers are more evenly spaced by their logarithms; two are, if one is twice the other."""
    if values[0] <= 0:
        return False
    steps = [b - a for a, b in itertools.pairwise(values)]
    ratios = [math.log(b / a) for a, b in itertools.pairwise(values)]
    if len(values) == 2:
        return values[1] >= 2 * values[0]
    return max(ratios) / min(ratios) < max(steps) / min(steps)


def _cell(outcome: Outcome, is_chosen: bool) -> str:
    if outcome.primary is None:
        return f"diverged at step {outcome.diverged_at}"
    return f"{outcome.primary:.4f}{' *' if is_chosen else ''}"


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """How the line of each row is drawn: what has a colour in every figure has it here as well."""
    known = [
        next((str(v) for v in (row.variant, *row.values.values()) if str(v) in figures.LOOKS), row.name) for row in rows
    ]
    if len(set(known)) < len(rows):
        known = [row.name for row in rows]
    styles = figures.lines(known)
    return {row.name: {**styles[name], "label": row.name} for row, name in zip(rows, known, strict=True)}


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    columns = [list(column.cells) for column in table.columns]
    aligned = ["---" if number == 0 else "---:" for number in range(len(columns))]
    lines = [f"{table.title}:", "", line([str(column.header) for column in table.columns]), "|" + "|".join(aligned) + "|"]
    lines += [line(cells) for cells in zip(*columns, strict=True)]
    notes = [f"- {note}" for note in str(table.caption or "").split("\n") if note]
    return "\n".join([*lines, "", *notes, *([""] * bool(notes))])


# How it is run.


class _Diverged(Schema):
    """``diverged.json`` of a run."""

    config: dict[str, Any]
    step: pydantic.NonNegativeInt
    message: str
    digest: str | None = None


class _StoredRow(Schema):
    variant: str
    values: dict[str, Any]
    config: dict[str, Any]


class _SweepFile(Schema):
    """``sweep.json``."""

    rows: dict[str, _StoredRow]
    grid: dict[str, list[Any]]
    seeds: list[int]
    validation_seed: int
    digest: str | None = None


def run(sweep: Sweep, workdir: Path) -> SweepResult:
    """Train what is missing of a sweep, and write ``results.json``.

    Args:
      sweep: made by :func:`plan`.
      workdir: its folder. One of the same sweep is gone on with, also with more rows, values or seeds.

    Returns:
      What became of it.

    Raises:
      ConfigError: if a run cannot start here, or another process writes to the folder.
      CheckpointError: if the folder holds something else, another sweep, or more than this one.
      Interrupted: after a signal, once everything is saved.
    """
    with only_writer(workdir):
        check_folder(sweep, workdir)
        runs = _Runs(sweep, workdir)
        write_json(workdir / SWEEP, identity(sweep))
        _LOGGER.info("%s; finished already: %d", sweep.describe(), runs.number)
        try:
            result = SweepResult(sweep, tuple(runs.row(row) for row in sweep.rows))
        except BaseException:
            if not any(workdir.rglob(RUN)):
                # No run has begun, so that another sweep may take the folder: what the first one lacks is told by training only.
                (workdir / SWEEP).unlink(missing_ok=True)
            raise
        write_json(workdir / RESULTS, result.to_dict())
    for row in result.rows:
        for note in row.notes():
            _LOGGER.warning("%s", note)
    return result


def identity(sweep: Sweep) -> dict[str, Any]:
    """What ``sweep.json`` holds."""
    rows = {
        row.name: {"variant": row.variant, "values": dict(row.values), "config": record_of(row.points[0].config).config}
        for row in sweep.rows
    }
    grid = {key: list(values) for key, values in sweep.grid.items()}
    return {"rows": rows, "grid": grid, "seeds": list(sweep.seeds), "validation_seed": sweep.validation_seed}


def check_folder(sweep: Sweep, workdir: Path) -> None:
    """Refuse a folder of something else, or of a sweep that this one does not go on with.

    Raises:
      CheckpointError: names the difference and the remedy.
    """
    path = workdir / SWEEP
    if not path.exists():
        names = [name for name in (RUN, CHECKPOINTS, RESULTS, TABLE, FIGURE) if (workdir / name).exists()]
        names += [folder.name for folder in seed_folders(workdir)]
        if names:
            raise CheckpointError(
                f"{workdir} holds {', '.join(names)} of something else, and no {SWEEP}; use another --workdir"
            )
        check_writable(path, BELOW + 3 * MOST)
        return
    stored = read_record(path, _SweepFile)
    now = json.loads(json.dumps(identity(sweep)))
    found = [f"{key}: there {old}, now {new}" for key, old, new in _settings(stored, now, set(sweep.grid)) if old != new]
    left_out = [f"row {name}" for name in stored.rows if name not in now["rows"]]
    for key, values in stored.grid.items():
        left_out += [f"{key}={shown_value(value)}" for value in values if value not in now["grid"].get(key, values)]
    left_out += [f"seed {seed}" for seed in stored.seeds if seed not in sweep.seeds]
    for row in sweep.rows:
        if row.name in stored.rows:
            different = changes(stored.rows[row.name].config, record_of(row.points[0].config)).result
            found += [f"{key}: there {a}, now {b}" for key, (a, b) in different.items() if key not in ("seed", *sweep.grid)]
    if found:
        raise CheckpointError(
            f"{workdir} holds another sweep: {'; '.join(dict.fromkeys(found))}. Use another --workdir, or the settings that made it; rows, values "
            "and seeds may be added. Nothing was changed"
        )
    if left_out:
        raise CheckpointError(
            f"{workdir} holds a sweep that has more than this one: {', '.join(left_out)}. Name them as well, or use another --workdir; nothing "
            "was changed"
        )


def _settings(stored: _SweepFile, now: Mapping[str, Any], keys: set[str]) -> Iterator[tuple[str, Any, Any]]:
    """What may not be changed: (what, there, now)."""
    yield "keys of the grid", ", ".join(sorted(stored.grid)) or "none", ", ".join(sorted(keys)) or "none"
    yield "validation_seed", stored.validation_seed, now["validation_seed"]


class _Runs:
    """The runs of a sweep, one after the other, and how many there are."""

    def __init__(self, sweep: Sweep, workdir: Path):
        self._sweep, self._workdir = sweep, workdir
        self._total = sweep.count
        self.number = sum(map(self._finished, sweep.rows))
        """How many are finished."""

    def row(self, row: Row) -> RowResult:
        """Train what is missing of a row."""
        folder = self._workdir / row.name
        validation = ()
        if self._sweep.chooses:
            validation = tuple(self._run(point.config, folder / point.name, _label(row, point)) for point in row.points)
        chosen = _choose(row, validation)
        if chosen is None:
            self._total -= len(self._sweep.seeds)
            _LOGGER.info("%s: every point of the grid diverged, so that there is nothing to report seeds of", row.name)
            return RowResult(row, validation, None, {})
        seeds = _seeds_folder(folder, chosen)
        runs = {
            seed: self._run(dataclasses.replace(chosen.config, seed=seed), seeds / f"seed{seed}", _label(row, chosen))
            for seed in self._sweep.seeds
        }
        result = RowResult(row, validation, chosen, runs)
        if result.finite:
            # All are finished: this writes their results.json, as of any run over several seeds.
            together = dataclasses.replace(chosen.config, seed=ExperimentConfig.seed, seeds=tuple(result.finite))
            train(together, seeds)
        return result

    def _finished(self, row: Row) -> int:
        """How many runs of a row are finished, as far as what is chosen is known."""
        folder = self._workdir / row.name
        validation = [outcome_in(folder / point.name, point.config) for point in row.points if self._sweep.chooses]
        known = [outcome for outcome in validation if outcome is not None]
        done = len(known)
        if done < len(validation) or (chosen := _choose(row, known)) is None:
            return done
        configs = {seed: dataclasses.replace(chosen.config, seed=seed) for seed in self._sweep.seeds}
        seeds = _seeds_folder(folder, chosen)
        return done + sum(outcome_in(seeds / f"seed{seed}", config) is not None for seed, config in configs.items())

    def _run(self, config: ExperimentConfig, folder: Path, label: str) -> Outcome:
        outcome = outcome_in(folder, config)
        if outcome is not None:
            return outcome
        self.number += 1
        _LOGGER.info("run %d of %d: %s, seed %d", self.number, self._total, label, config.seed)
        try:
            results, late = train(config, folder)
        except NonFiniteError as error:
            # Its remedies are those of a run that stands alone.
            _LOGGER.warning("%s, seed %d diverged: %s", label, config.seed, str(error).partition(". ")[0])
            record = {"config": record_of(config).config, "step": error.step, "message": str(error)}
            write_json(folder / DIVERGED, record)
            return Outcome(None, error.step)
        except ConfigError as error:
            raise ConfigError(f"{label}, seed {config.seed}: {error}") from None
        if late is not None and self.number < self._total:
            raise Interrupted(
                f"{name_of(late)}: {self.number} of {self._total} runs are finished; the same command goes on in {self._workdir}",
                late,
            )
        return Outcome(results["primary"], results=results)


def _label(row: Row, point: Point) -> str:
    return ", ".join(filter(None, (row.name, point.name)))


def _seeds_folder(folder: Path, chosen: Point) -> Path:
    return folder / "-".join(filter(None, ("seeds", chosen.name)))


def _choose(row: Row, validation: Sequence[Outcome]) -> Point | None:
    """The point with the largest score, the first of equal ones; None if all diverged."""
    if not validation:
        return row.points[0]
    scored = [(outcome.primary, point) for point, outcome in zip(row.points, validation, strict=True)]
    finite = [(primary, point) for primary, point in scored if primary is not None]
    return max(finite, key=lambda pair: pair[0])[1] if finite else None


def outcome_in(folder: Path, config: ExperimentConfig) -> Outcome | None:
    """What a folder says of a run that is over; None of any other.

    Raises:
      CheckpointError: if the folder holds another run, or cannot be read.
    """
    record = record_of(config)
    if (folder / DIVERGED).exists():
        stored = read_record(folder / DIVERGED, _Diverged)
        check_same_config(folder, stored.config, record)
        return Outcome(None, stored.step)
    results = finished(folder, record)
    if results is None or changes(results["config"], record).where:
        return None  # where a text lies elsewhere now, training sees whether it is the same
    return Outcome(results["primary"], results=results)
