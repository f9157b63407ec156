"""Where a bar is drawn and where lines are logged."""

from __future__ import annotations

import importlib.util
import logging

import pytest
from rich.console import Console

from bdh_jax.runs import progress


@pytest.mark.parametrize(
    ("console", "widgets", "live"),
    [
        (Console(force_terminal=True), False, True),
        (Console(force_terminal=False), True, False),
        (Console(force_jupyter=True), True, True),
        (Console(force_jupyter=True), False, False),
    ],
    ids=["terminal", "file", "notebook with ipywidgets", "notebook without"],
)
def test_a_bar_is_drawn_where_it_can_be_drawn_again(console, widgets, live, monkeypatch, caplog, recwarn):
    """rich warns at every refresh in a notebook without ipywidgets."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    assert progress.is_live(console) == live
    if not live:
        with caplog.at_level(logging.INFO, "bdh_jax"), progress.Progress("work", 1, console) as bar:
            bar.advance("done")
        assert caplog.messages == ["1/1  done"]
        assert not recwarn.list
