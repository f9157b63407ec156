"""Figures by one hand: the same look for the same thing, and no two lines of a figure alike."""

import matplotlib.colors
import numpy as np
import pytest

from bdh_jax.analysis import figures
from bdh_jax.lifelong.contestants import CONTESTANTS


def luminance(colour):
    """Relative luminance, 0 … 1."""
    channel = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("names", [["none", "mine", "dense", "yours too"], list(CONTESTANTS)], ids=["few", "all"])
def test_lines_differ_and_known_things_keep_their_look(names):
    looks = figures.lines(names)
    assert list(looks) == names
    assert [look["label"] for look in looks.values()] == names
    assert len({(look["color"], look["linestyle"], look["marker"]) for look in looks.values()}) == len(names)
    for name in set(names) & set(figures.LOOKS):
        assert (looks[name]["color"], looks[name]["marker"]) == figures.LOOKS[name]


def test_what_is_new_is_red_and_shares_no_colour_with_what_is_known():
    looks = figures.lines(["dense", "mine", "ridge", "another"])
    assert looks["mine"]["color"] == "#d55e00"
    assert len({look["color"] for look in looks.values()}) == 4


def test_layers_go_from_dark_to_light():
    lightness = [luminance(figures.layer(number, 6)) for number in range(6)]
    assert lightness == sorted(lightness)
    assert min(np.diff(lightness)) > 0.01
    assert figures.layer(0, 1) == figures.layer(0, 6)


def test_a_figure_says_what_it_shows():
    figure, panels = figures.make(2, 3, sharey=True)
    assert panels.shape == (6,)
    axes = panels[0]
    axes.plot([1, 2], [0.5, 0.6], **figures.lines(["dense"])["dense"])
    figures.reference(axes, 1 / 64, "chance")
    figures.reference(axes, 1, "ceiling")
    figures.say(axes, title="It rises", x="step", y="recall")
    figures.legend(figure, axes)
    _, chance, ceiling = axes.get_lines()
    assert (chance.get_linestyle(), ceiling.get_linestyle()) == (":", "--")
    assert [text.get_text() for text in axes.texts] == ["chance", "ceiling"]
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == ("It rises", "step", "recall")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense"]
