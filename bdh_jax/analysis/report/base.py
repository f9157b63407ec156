"""What a report is made of: the subject that is asked, sections that ask, and findings, each with its null.

A section is one file of this package with ``SECTION = Section(...)``; :func:`sections` finds it there. It sees a :class:`Subject`
and nothing else, and returns :class:`Finding`s; what it cannot be asked it refuses by :class:`NotApplicable`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.models.base import ModelConfig
from bdh_jax.types import Slow

SIGNIFICANT = 0.05
"""A p-value below it is called a finding."""
Rows = Sequence[Mapping[str, Any]]
"""A tidy table: one mapping a row, all with the same keys; text, numbers or truth values."""


class NotApplicable(Exception):
    """A section has nothing to ask of this subject. The message says why, as one sentence of the page."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model, and what it has not seen.

    Attributes:
      name: of the experiment.
      config: of the model.
      seeds: training seed → trained slow weights.
      untrained: seed → the same model before its first step.
      tokens: int32 [B, T], sequences of its own task that it was not trained on.
      valid: bool [B, T], tokens that are no padding.
      encode: text → int32 [T] as the model reads it; None where its tokens are no text.
      decode: tokens → text; None where its tokens are no text.
      own: two or more named sets of texts that the user asks about; None: none were given.
      budget: 1.0 is what a report of minutes affords; a section scales its draws, shuffles and sequences with it.
      checkpoints: seed → step → reads the weights of a checkpoint that was kept.
      metrics: seed → what the run wrote down while it trained, a mapping a line.
    """

    name: str
    config: ModelConfig
    seeds: Mapping[int, Slow]
    untrained: Callable[[int], Slow]
    tokens: np.ndarray
    valid: np.ndarray
    encode: Callable[[str], np.ndarray] | None = None
    decode: Callable[[Sequence[int]], str] | None = None
    own: Mapping[str, Sequence[str]] | None = None
    budget: float = 1.0
    checkpoints: Mapping[int, Mapping[int, Callable[[], Slow]]] = dataclasses.field(default_factory=dict)
    metrics: Mapping[int, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One figure, what it shows, and what it was held against.

    Attributes:
      name: of its CSV and its anchor, unique in the section, such as "share_by_layer".
      title: says the finding, as a headline.
      says: one sentence, which says "not distinguishable from …" where the null was not rejected.
      null: what the same numbers would be if there were nothing, in one sentence, and how it was drawn; empty where nothing is claimed, as of
        a curve of training.
      caption: what is plotted, of what, against which null: the figure stands alone with it.
      alternative: what a reader who does not see the figure needs.
      rows: the numbers of the figure and of the sentence; they are the CSV.
      chart: a Vega-Lite specification without its data (``{"mark": …, "encoding": …}``) over ``rows``; None: the rows as a table.
      p_value: of the null, corrected for everything that was searched; None where an interval says it.
      interval: of the effect, 95 %; None where a p-value says it.
      effect: the number that p_value or interval belong to.
      html: a fragment that needs no script and no network instead of a chart, such as text coloured by token; already escaped.
    """

    name: str
    title: str
    says: str
    null: str
    caption: str
    alternative: str
    rows: Rows
    chart: Mapping[str, Any] | None = None
    p_value: float | None = None
    interval: tuple[float, float] | None = None
    effect: float | None = None
    html: str | None = None


class Section(NamedTuple):
    """A question that every report asks.

    Attributes:
      title: as a heading, such as "Activity".
      asks: the question in one or two sentences, for a reader who has not read the paper.
      find: the answer.
      place: where it stands in the page; lower comes first.
    """

    title: str
    asks: str
    find: Callable[[Subject], Sequence[Finding]]
    place: int


def verdict(p: float, *, found: str = "", other: str = "") -> str:
    """How a sentence about a null ends, for all sections alike.

    Args:
      p: the p-value, corrected for what was searched.
      found: what follows it where the null is rejected, such as " in every layer".
      other: from what the effect is not distinguishable otherwise, such as " from none".

    Returns:
      "p = 0.01…", or "not distinguishable… (p = 0.2)".
    """
    return f"p = {p:.2g}{found}" if p < SIGNIFICANT else f"not distinguishable{other} (p = {p:.2g})"


def sections() -> dict[str, Section]:
    """Name → section, as they stand in the page: every module of this package that has a ``SECTION``."""
    package = importlib.import_module(__package__ or "")
    modules = {
        info.name: importlib.import_module(f"{package.__name__}.{info.name}")
        for info in pkgutil.iter_modules(package.__path__)
    }
    found = {name: module.SECTION for name, module in modules.items() if hasattr(module, "SECTION")}
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))
