"""What a terminal shows: tables are split and whole, progress is a bar or log lines, messages break between words."""

from __future__ import annotations

import importlib.util
import io
import logging

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from bdh_jax import console

HEADERS = ["function", "rate", "recall after reset", *(f"score number {number}" for number in range(12))]


def table() -> Table:
    made = Table(
        title="a title", caption="a caption that says what the numbers are, at such length that it does not fit one line"
    )
    for number, header in enumerate(HEADERS):
        made.add_column(header, justify="left" if number == 0 else "right")
    for name in ("none", "a.module.with.a.long.name:function=0.25", "[bold]row[/bold]"):
        made.add_row(name, "0.1", *(f"+0.{number:03}±0.004" for number in range(13)))
    return made


@pytest.mark.parametrize("columns", ["20", "80", "120", "1000"])
def test_a_table_is_split_and_whole(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    console.show(table())
    printed = capsys.readouterr().out
    assert max(map(cell_len, printed.splitlines())) <= max(80, int(columns))
    assert "…" not in printed
    for number in range(13):
        assert printed.count(f"+0.{number:03}±0.004") == 3
    for word in ("a.module.with.a.long.name:", "function=0.25", "[bold]row[/bold]", "a title", "recall", "after", "reset"):
        assert word in printed
    parts = sum(line.startswith("function ") for line in printed.splitlines())
    assert (parts == 1) == (columns == "1000")
    assert printed.count("none") == parts


def test_several_columns_may_name_a_row(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    console.show(table(), keys=2)
    heads = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("function ")]
    assert len(heads) > 1
    assert all(head == ["function", "rate"] for head in heads)


def test_progress_is_log_lines_where_nobody_watches(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("bdh_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "bdh_jax")
    with console.Progress("work", 3, done=1) as progress:
        progress.advance(1, "second", keep=True)
        progress.advance()
        progress.say("a line")
    with console.Progress("words", None) as progress:
        progress.to(5, "more")
    with console.Progress("hidden", 1, shown=False) as progress:
        progress.advance(1, "hidden")
        progress.say("hidden")
    assert caplog.messages == ["work 2/3  second", "a line", "words 5  more"]


def test_errors_are_one_line_where_nobody_watches(capsys):
    console.show_error("word " * 40)
    assert capsys.readouterr().err == f"error: {'word ' * 40}\n"


@pytest.mark.parametrize(
    ("place", "widgets", "redrawn"),
    [
        (Console(force_terminal=True), False, True),
        (Console(force_terminal=False), True, False),
        (Console(force_jupyter=True), True, True),
        (Console(force_jupyter=True), False, False),
    ],
    ids=["terminal", "file", "notebook with ipywidgets", "notebook without"],
)
def test_a_bar_is_drawn_where_it_can_be_drawn_again(place, widgets, redrawn, monkeypatch, caplog, recwarn):
    """Rich warns at every refresh in a notebook without ipywidgets."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    monkeypatch.setattr(console, "messages", lambda: place)
    bar = console.Progress("work", 1)
    with caplog.at_level(logging.INFO, "bdh_jax"), bar:
        assert bar.is_bar == redrawn
        bar.advance(status="done")
    assert bool(caplog.messages) != redrawn
    assert redrawn or not recwarn.list


def test_a_bar_within_another_stands_below_it(monkeypatch):
    """Rich refuses two places that are drawn again and again."""
    screen = io.StringIO()
    monkeypatch.setattr(console, "messages", lambda: place)
    place = Console(force_terminal=True, file=screen, width=80)
    with console.Progress("outer", 2) as outer:
        with console.Progress("inner", 3) as inner:
            inner.advance(status="first")
            inner.advance()
            outer._bar.refresh()
        outer.advance(status="half")
        with console.Progress("next", 1):
            outer._bar.refresh()
    assert not console._bars
    shown = screen.getvalue()
    assert "inner" in shown
    assert "2/3" in shown
    assert "next" in shown
    with console.Progress("alone", 1) as alone:
        assert alone.is_bar
    assert not console._bars
