"""The lifelong benchmark at several numbers of facts: where does each function stop keeping what it is shown?

    result = sweep.run(model, [slow], {"kalman": CONTESTANTS["kalman"]}, facts=(256, 1024, 4096))
    rich.print(result.table())

Axis letters: M models, F facts, K neurons of a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from bdh_jax.analysis import figures
from bdh_jax.config import ConfigError
from bdh_jax.lifelong.benchmark import benchmark
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.lifelong.contestants import Contestant
from bdh_jax.lifelong.finished_rows import FinishedRows
from bdh_jax.lifelong.result import LifelongResult, interval
from bdh_jax.models.bdh import BDH
from bdh_jax.types import Slow

SCORES: Mapping[str, tuple[str, str]] = {
    "recall": ("recall after the last reset", ".3f"),
    "bits_per_byte": ("bits recalled per byte", ".4f"),
    "harm": ("harm in other episodes", "+.3f"),
    "harm_known": ("harm to known facts", "+.3f"),
}
"""Score → what it is, and its form in a table."""


@dataclasses.dataclass(frozen=True)
class LifelongSweep:
    """What the benchmark says at several numbers of facts."""

    results: tuple[LifelongResult, ...]
    """One for each number of facts, ascending; all have the same rows."""
    neurons: int
    """K of a layer, which the figure marks."""

    @property
    def facts(self) -> tuple[int, ...]:
        """F of every result."""
        return tuple(result.config.stream.facts for result in self.results)

    def tables(self) -> list[Table]:
        """The preconditions, and a table for each of ``SCORES``."""
        return [self.results[0].preconditions_table(), *(self.table(score) for score in SCORES)]

    def table(self, score: str = "recall") -> Table:
        """One score, means over models and streams, by function and number of facts.

        Args:
          score: a key of ``SCORES``.
        """
        meaning, form = SCORES[score]
        models, streams = self.results[0].rows[0].scores[score].shape
        bounds = np.array([interval(row.scores[score]) for result in self.results for row in result.rows])
        caption = f"{models} model{'s' * (models > 1)} × {streams} stream{'s' * (streams > 1)}"
        if not np.isnan(bounds).all():
            caption += f", 95 % ± {np.nanmax(bounds[:, 1] - bounds[:, 0]) / 2:{form.strip('+')}} at most"
        table = Table(title=meaning, caption=caption, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("function", min_width=20)
        for facts in self.facts:
            table.add_column(str(facts), justify="right", min_width=7)
        for rows in zip(*(result.rows for result in self.results), strict=True):
            means = [row.mean(score) for row in rows]
            table.add_row(rows[0].name, *("–" if np.isnan(mean) else format(mean, form) for mean in means))
        return table

    def plot(self) -> Any:
        """Recall and recalled bits per byte against the number of facts, with 95 % intervals.

        Returns:
          A ``matplotlib.figure.Figure``.
        """
        figure, panels = figures.make(2, width=5, height=4)
        looks = figures.lines([row.name for row in self.results[0].rows])
        for axes, score in zip(panels, ("recall", "bits_per_byte"), strict=True):
            for rows in zip(*(result.rows for result in self.results), strict=True):
                look = looks[rows[0].name]
                axes.plot(self.facts, [row.mean(score) for row in rows], **look)
                low, high = zip(*(interval(row.scores[score]) for row in rows), strict=True)
                axes.fill_between(self.facts, low, high, color=look["color"], alpha=0.2, linewidth=0)
            axes.axvline(self.neurons, color="grey", linestyle=":", linewidth=1)
            axes.set_xscale("log", base=2)
            axes.set_xticks(self.facts, [str(facts) for facts in self.facts])
            axes.set_xlabel(f"facts (dotted line: K = {self.neurons})")
        panels[0].set(ylabel="recall after reset", ylim=(-0.02, 1.02))
        panels[1].set(ylabel="bits recalled per byte", ylim=(0, None))
        figures.legend(figure, panels[0])
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON: every result, as it would be alone."""
        return {"neurons": self.neurons, "results": [result.to_dict() for result in self.results]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LifelongSweep:
        """The sweep that ``to_dict`` gave.

        Raises:
          ValueError: for a record of something else.
        """
        if "results" not in record or "neurons" not in record:
            raise ValueError(f"a record with {', '.join(record) or 'nothing'} in it holds no several numbers of facts")
        return cls(tuple(LifelongResult.from_dict(result) for result in record["results"]), record["neurons"])


def run(
    model: BDH,
    slows: Sequence[Slow],
    contestants: Mapping[str, Contestant] | None = None,
    *,
    facts: Sequence[int],
    config: LifelongConfig | None = None,
    rates: Mapping[str, float] | None = None,
    new_ids: int | None = 0,
    finished: FinishedRows | None = None,
) -> LifelongSweep:
    """Benchmark contestants at several numbers of facts.

    Args:
      model: as of :func:`bdh_jax.lifelong.benchmark.benchmark`, like all that is not named here.
      slows: M parameter trees of it.
      contestants: by name.
      facts: numbers of facts, in any order. A rate that is not given is chosen anew for each of them.
      config: everything but the number of facts.
      rates: contestant → rate.
      new_ids: seed of new embeddings.
      finished: rows of an interrupted run.

    Raises:
      ConfigError: for a number of facts that no stream can have or that comes twice, or a model that cannot be used.
    """
    if not facts or len(set(facts)) < len(facts):
        raise ConfigError(f"facts={','.join(map(str, facts))} must be one number or several, each once")
    base = LifelongConfig() if config is None else config
    configs = [dataclasses.replace(base, stream=dataclasses.replace(base.stream, facts=number)) for number in sorted(facts)]
    shared = {"rates": rates, "new_ids": new_ids, "finished": finished}
    results = [benchmark(model, slows, contestants, config=each, **shared) for each in configs]
    return LifelongSweep(tuple(results), model.config.n_neurons)
