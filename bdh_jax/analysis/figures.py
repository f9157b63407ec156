"""One hand for all figures: the same colour for the same thing everywhere, chance and ceiling drawn, titles that say the finding.

    figure, (axes,) = figures.make(1)
    axes.plot(pairs, recall, **figures.lines(["fast weights"])["fast weights"])
    figures.reference(axes, 1 / 64, "chance")
    figures.say(axes, title="S holds the last sixteen pairs", x="pairs read since", y="recall")

The colours are those of Okabe and Ito, their yellow darkened so that lines of it are seen on white, which people with any kind of colour vision can tell apart; lines differ by their marker as
well, so that a print in grey is enough. matplotlib is an optional dependency: it is imported when a figure is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BLACK, _GREY, _BLUE, _SKY = "#000000", "#7f7f7f", "#0072b2", "#56b4e9"
_GREEN, _YELLOW, _ORANGE, _RED, _PURPLE = "#009e73", "#997700", "#e69f00", "#d55e00", "#cc79a7"
LOOKS: dict[str, tuple[str, str]] = {
    # Where something is kept.
    "fast weights": (_BLUE, "o"),
    "synapse": (_GREEN, "s"),
    "slow weights": (_ORANGE, "D"),
    "attention": (_PURPLE, "^"),
    # Models.
    "BDH": (_BLUE, "o"),
    "GPT": (_ORANGE, "s"),
    "GRU": (_PURPLE, "^"),
    "tiny-BDH": (_RED, "D"),
    "tiny-BDH, 128 neurons": (_GREEN, "v"),
    "without σ": (_GREY, "x"),
    # Rows of the lifelong benchmark.
    "none": (_GREY, "x"),
    "dense": (_BLUE, "o"),
    "row_topk": (_SKY, "s"),
    "delta": (_ORANGE, "v"),
    "mesa": (_YELLOW, "P"),
    "least_squares": (_GREEN, "D"),
    "kalman": (_PURPLE, "*"),
    "ridge": (_BLACK, "d"),
    "fine_tuning": (_GREY, ">"),
    "replay_synapse_sgd": (_SKY, "p"),
    # Write rules that are no row of it under the same name.
    "hebbian": (_BLUE, "o"),
    "longhorn": (_SKY, "h"),
    "oja": (_GREY, "<"),
    "limited": (_GREY, "h"),
}
"""Thing → its colour and its marker, in every figure that shows it. Red is for what is new there: yours."""

_OTHERS = (_RED, _ORANGE, _SKY, _PURPLE, _GREEN, _YELLOW, _BLUE, _GREY)
_OTHER_MARKERS = "X<>hp8"
HEAT = "cividis"
"""Colour map of matrices: even in lightness, and the same to all eyes."""
_LAYERS = "viridis"


def make(columns: int = 1, rows: int = 1, *, width: float = 4.2, height: float = 3.2, **options: Any) -> tuple[Any, Any]:
    """A figure with its panels.

    Args:
      columns, rows: of panels.
      width, height: of one panel, in inches.
      options: of ``Figure.subplots``, such as ``sharey=True``.

    Returns:
      The ``matplotlib.figure.Figure``, and its axes as a flat array [rows · columns].
    """
    from matplotlib.figure import Figure  # an optional dependency

    figure = Figure(figsize=(columns * width, rows * height), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, panels


def lines(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How the lines of a figure are drawn.

    Args:
      names: of all lines, keys of ``LOOKS`` or anything else. What has no look of its own takes the colours that are left, red first; when
        none is, it is dashed.

    Returns:
      Name → arguments of ``Axes.plot``, the label included.
    """
    taken = {LOOKS[name][0] for name in names if name in LOOKS}
    free = [colour for colour in _OTHERS if colour not in taken]
    palette = [(colour, "-") for colour in free] + [(colour, style) for style in ("--", ":") for colour in _OTHERS]
    styles: dict[str, dict[str, Any]] = {}
    number = 0
    for name in names:
        if name in LOOKS:
            (colour, marker), dashes = LOOKS[name], "-"
        else:
            colour, dashes = palette[number % len(palette)]
            marker = _OTHER_MARKERS[number % len(_OTHER_MARKERS)]
            number += 1
        styles[name] = {
            "color": colour,
            "marker": marker,
            "linestyle": dashes,
            "label": name,
            "linewidth": 1.4,
            "markersize": 4,
        }
    return styles


def layer(number: int, layers: int) -> str:
    """The colour of a layer, from 0: dark to light, in their order."""
    import matplotlib as mpl  # an optional dependency
    import matplotlib.colors

    return matplotlib.colors.to_hex(mpl.colormaps[_LAYERS](0.1 + 0.7 * number / max(1, layers - 1)))


def reference(axes: Any, value: float, name: str) -> None:
    """A line at a value that others are compared with, dotted for chance and dashed for a ceiling, its name written at its right end.

    Args:
      axes: of the panel.
      value: on the y axis.
      name: what it is; "chance" is dotted.
    """
    chance = name.startswith("chance")
    axes.axhline(value, color=_BLACK, linewidth=1, linestyle=":" if chance else "--", zorder=1)
    place = {"xy": (1, value), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(name, **place, xytext=(3, 0), ha="left", va="center", fontsize=8)


def say(axes: Any, *, title: str, x: str, y: str) -> None:
    """What a panel says, and what its axes are: name and unit.

    Args:
      axes: of the panel.
      title: the finding, as a sentence.
      x, y: of the axes.
    """
    axes.set_title(title, fontsize=10, loc="left", wrap=True)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def legend(figure: Any, axes: Any, names: Sequence[str] | None = None) -> None:
    """One legend for all panels, to their right.

    Args:
      figure: it belongs to.
      axes: whose lines it names.
      names: instead of the lines' own.
    """
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels if names is None else names, loc="outside right upper", fontsize=8, frameon=False)
