"""A table finds what a package's files contribute, and a user's own; whatever is wrong with a name is one line."""

from __future__ import annotations

import sys

import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.table import Table

FILES = {
    "__init__": "",
    "alpha": "THING = 1",
    "beta": "THING = 2",
    "helper": "OTHER = 3",
    "_hidden": "raise RuntimeError('a module that begins with _ is not looked at')",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``package(**files)`` makes a package of these modules and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(name="things", **files):
        name = f"{name}_{tmp_path.name}".replace("-", "_")
        (tmp_path / name).mkdir()
        for module, text in files.items():
            (tmp_path / name / f"{module}.py").write_text(text)
        made.append(name)
        return name

    yield make
    for name in list(sys.modules):
        if name.partition(".")[0] in made:
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path_factory, monkeypatch):
    """``folder(**files)`` starts the test in a folder with these modules, which is not on the path."""
    path = tmp_path_factory.mktemp("mine")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def make(**files):
        for module, text in files.items():
            (path / f"{module}.py").write_text(text)
        monkeypatch.chdir(path)

    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_every_module_that_has_the_attribute_is_an_entry(package):
    table = Table("thing", package=package(**FILES), attribute="THING")
    assert table.names() == ("alpha", "beta")
    assert table.get("beta", "part.thing") == 2
    assert "alpha" in table
    assert "helper" not in table


def test_a_module_may_have_several(package):
    functions = "def one(): ...\ndef two(): ...\nMANY = (one, two)"
    named = "import typing\nclass Pair(typing.NamedTuple):\n    a: int\nMANY = Pair(3)"
    table = Table("thing", package=package(a=functions, b="MANY = {'x': 1, 'y': 2}", c=named, __init__=""), attribute="MANY")
    assert table.names() == ("one", "two", "x", "y", "c")
    assert table.get("one", "").__name__ == "one"
    assert table.get("y", "") == 2
    assert table.get("c", "").a == 3


def test_two_entries_of_one_name_are_noticed(package):
    table = Table("thing", package=package(a="MANY = {'x': 1}", b="MANY = {'x': 2}", __init__=""), attribute="MANY")
    with pytest.raises(ValueError, match="have a thing called 'x'"):
        table.names()


def test_nothing_is_imported_before_the_first_look(package):
    name = package(a="THING = 1", __init__="")
    table = Table("thing", package=name, attribute="THING")
    assert name not in sys.modules
    assert table.names() == ("a",)
    assert f"{name}.a" in sys.modules


def test_an_unknown_name_lists_the_valid_ones_and_the_closest(package):
    table = Table("thing", package=package(**FILES), attribute="THING")
    with pytest.raises(ConfigError) as error:
        table.get("alpa", "part.thing")
    assert str(error.value) == (
        "part.thing='alpa' is not a thing. Did you mean 'alpha'? Valid names: alpha, beta; or module:name for your own"
    )
    with pytest.raises(ConfigError, match="part.thing=None is not a thing. Valid names: alpha, beta"):
        table.get(None, "part.thing")


def test_ones_own_is_imported_from_the_current_folder(package, folder):
    folder(mine="MY_THING = 7\n")

    def check(entry):
        if entry != 7:
            raise ConfigError(f"{entry!r} is no thing")

    table = Table("thing", package=package(**FILES), attribute="THING", check=check)
    assert table.get("mine:MY_THING", "part.thing") == 7
    with pytest.raises(ConfigError, match="part.thing='mine:__name__': 'mine' is no thing"):
        table.get("mine:__name__", "part.thing")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "nowhere:X", "part.thing='nowhere:X': there is no module 'nowhere' on the Python path"),
        (
            "import nowhere",
            "mine:X",
            r"module 'mine' cannot be imported: ModuleNotFoundError: No module named 'nowhere' \(mine.py, line 1\)",
        ),
        ("\n\ndef f(:", "mine:X", r"cannot be imported: SyntaxError: .* \(mine.py, line 3\)"),
        ("a = 1\nb = 1 / 0", "mine:X", r"cannot be imported: ZeroDivisionError: division by zero \(mine.py, line 2\)"),
        ("import sys\nsys.exit(3)", "mine:X", r"cannot be imported: SystemExit: 3 \(mine.py, line 2\)"),
        ("raise ValueError('one\\ntwo')", "mine:X", "cannot be imported: ValueError: one "),
        ("Y = 1", "mine:X", "part.thing='mine:X': module 'mine' has no 'X'"),
        ("", "mine:", "part.thing='mine:' must be module:name"),
        ("", ":X", "part.thing=':X' must be module:name"),
        ("", ".mine:X", "part.thing='.mine:X': module '.mine' cannot be imported: TypeError"),
    ],
)
def test_what_is_wrong_with_ones_own_is_one_line(package, folder, text, name, message):
    folder(mine=text)
    table = Table("thing", package=package(**FILES), attribute="THING")
    with pytest.raises(ConfigError, match=message) as error:
        table.get(name, "part.thing")
    assert "\n" not in str(error.value)
