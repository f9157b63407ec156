"""What a task says of a model: the scores of its evaluation sets, over one seed or several, and their tables."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich import box
from rich.table import Table

from bdh_jax.config import require


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of one evaluation set of questions with answers. All numbers but ``count`` are fractions."""

    COLUMNS: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "credit": "credit",
        "ceiling": "ceiling",
        "ratio": "credit ÷ ceiling",
    }
    """Number → its heading in a table."""
    COUNTED: ClassVar[str] = "sequences"
    LOGGED: ClassVar[str] = "credit"
    """The number that a line of the log shows."""
    COMPARED: ClassVar[str] = "ratio"
    """The number that is listed seed by seed."""
    OVERFITS: ClassVar[str | None] = None
    """The number that rises when what is trained on is learned by heart; None of a task whose sequences are always new."""

    name: str
    count: int
    """Sequences scored."""
    accuracy: float
    """Share of sequences whose answer was the expected one."""
    credit: float
    """Accuracy with luck taken out: what the given answers earn on average over all that the sequence leaves open."""
    ceiling: float
    """The best credit any causal model can reach on these very sequences."""
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    """Further numbers of the task, by name."""

    @property
    def ratio(self) -> float:
        """credit ÷ ceiling, in [0, 1]."""
        return self.credit / self.ceiling

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, ``ratio`` included."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


@dataclasses.dataclass(frozen=True)
class TextScore:
    """How well a text is predicted, token after token."""

    COLUMNS: ClassVar[Mapping[str, str]] = {
        "bits_per_byte": "bits per byte",
        "loss": "nats per token",
        "accuracy": "accuracy",
    }
    COUNTED: ClassVar[str] = "bytes"
    LOGGED: ClassVar[str] = "bits_per_byte"
    COMPARED: ClassVar[str] = "bits_per_byte"
    OVERFITS: ClassVar[str | None] = "bits_per_byte"

    name: str
    count: int
    """Bytes predicted."""
    bits_per_byte: float
    """Bits by which an arithmetic coder with these predictions would write the text, per byte of it."""
    loss: float
    """Mean cross-entropy of a token in nats."""
    accuracy: float
    """Share of tokens that were the most likely one."""
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    """Further numbers, by name."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return dataclasses.asdict(self)


AnyScore = Score | TextScore


def read_score(values: Mapping[str, Any]) -> AnyScore:
    """The score that ``to_dict`` made ``values`` of.

    Raises:
      ConfigError: if a number is missing.
    """
    kind = TextScore if "bits_per_byte" in values else Score
    missing = [field.name for field in dataclasses.fields(kind) if field.name not in values]
    require(
        not missing,
        f"a score of these results has no {', '.join(missing)}; restore results.json from a copy, or use another --workdir",
    )
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a task says of a model."""

    rows: tuple[AnyScore, ...]
    primary: float
    """In [0, 1], larger is better; decides which checkpoint is the best."""
    note: str = ""
    """Printed under the table."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {"primary": self.primary, "rows": [row.to_dict() for row in self.rows]}

    def table(self, title: str | None = None) -> Table:
        """The scores as a table that fits 80 columns, one row a set."""
        columns = _columns(self.rows)
        extras = list(dict.fromkeys(key for row in self.rows for key in row.extra))
        table = Table(title=title, caption=self.note or None, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("set")
        for header in (" or ".join(dict.fromkeys(row.COUNTED for row in self.rows)), *columns.values()):
            table.add_column(header, justify="right")
        for key in extras:
            table.add_column(key.replace("_", " "), justify="right")
        for row in self.rows:
            cells = [_fraction(getattr(row, name)) if name in row.COLUMNS else "" for name in columns]
            cells += [_fraction(row.extra[k]) if k in row.extra else "" for k in extras]
            table.add_row(row.name, str(row.count), *cells)
        return table


def _columns(rows: Sequence[AnyScore]) -> dict[str, str]:
    """The numbers of all rows and their headings; a row of another kind has none of some."""
    return {name: header for row in rows for name, header in row.COLUMNS.items()}


def summarise(results: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and spread (sample standard deviation) over seeds of the ``evaluation`` of each result.

    Returns:
      (mean, spread), set → number's name → value. The spread of a single seed is None.
    """
    mean: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for name, first in results[0]["evaluation"].items():
        scores = [{**r["evaluation"][name], **r["evaluation"][name]["extra"]} for r in results]
        keys = [*read_score(first).COLUMNS, *first["extra"]]
        mean[name] = {key: statistics.fmean(s[key] for s in scores) for key in keys}
        spread[name] = {key: statistics.stdev(s[key] for s in scores) if len(scores) > 1 else None for key in keys}
    return mean, spread


def results_table(results: Mapping[str, Any]) -> Table:
    """The table of a ``results.json``, of one seed or of several."""
    if "runs" not in results:
        rows = tuple(read_score(score) for score in results["evaluation"].values())
        evaluation = Evaluation(rows=rows, primary=results["primary"], note=results["note"])
        return evaluation.table(title=f"seed {results['seed']}, {results['steps']} steps, {results['seconds']:.0f} s")

    seeds = results["seeds"]
    table = Table(
        title=f"seeds {', '.join(map(str, seeds))}: mean ± standard deviation", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("set")
    scores = {name: read_score(score) for name, score in results["runs"][str(seeds[0])]["evaluation"].items()}
    columns = _columns(list(scores.values()))
    for header in columns.values():
        table.add_column(header, justify="right")
    for name, mean in results["mean"].items():
        spread = results["spread"][name]
        own = scores[name].COLUMNS
        table.add_row(name, *(mean_and_spread(mean[key], spread[key]) if key in own else "" for key in columns))
    lines = [", ".join(dict.fromkeys(score.COLUMNS[score.COMPARED] for score in scores.values()))]
    for seed, run in results["runs"].items():
        compared = (f"{name} {run['evaluation'][name][score.COMPARED]:.4f}" for name, score in scores.items())
        lines.append(f"seed {seed}: " + "  ".join(compared))
    table.caption = "\n".join(lines)
    return table


def mean_and_spread(mean: float, spread: float | None) -> str:
    """A score of several seeds in a table; None is the spread of a single one."""
    # The ceiling is that of the evaluation set, which is the same for every seed.
    return f"{mean:.4f}" if not spread else f"{mean:.4f} ± {spread:.4f}"


def _fraction(value: float) -> str:
    return f"{value:.4f}" if value == 0 or not abs(value) < 1e-4 else f"{value:.1e}"
