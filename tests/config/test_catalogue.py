"""Experiments are found by name, wherever the package lies, and say which variants they have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bdh_jax.config import ConfigError, catalogue
from bdh_jax.config.files import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_file_is_an_experiment_with_a_line():
    found = catalogue.experiments()
    assert set(found) == {path.stem for path in CONFIGS.glob("[a-z]*.py")}
    assert {experiment.path.parent for experiment in found.values()} == {CONFIGS}
    assert all(re.fullmatch(r"[A-Z].*\.", experiment.line) for experiment in found.values())


@pytest.mark.parametrize("name", catalogue.experiments())
def test_the_variants_described_are_those_there_are(name):
    with pytest.raises(ConfigError) as error:
        load_config(f"{name}:?")
    valid = str(error.value).split("Valid variants: ")[1].split(", ")
    assert list(catalogue.experiments()[name].variants) == valid
    assert load_config(f"{name}:{valid[-1]}") == load_config(str(CONFIGS / f"{name}.py") + f":{valid[-1]}")


def _write(folder: Path, name: str, docstring: str) -> None:
    folder.mkdir(parents=True)
    (folder / f"{name}.py").write_text(f'"""{docstring}"""\nraise RuntimeError("it was executed")\n')


def test_what_is_installed_comes_before_what_lies_beside_it_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "bdh_jax")
    with pytest.raises(ConfigError, match="the experiments of the package are missing"):
        catalogue.folder()
    _write(
        tmp_path / "configs", "beside", "Beside.\n\n    one  first\n        and more\n    two words\n\n    two    second\n"
    )
    (experiment,) = catalogue.experiments().values()
    assert experiment.line == "Beside."
    assert experiment.variants == {"one": "first and more", "two": "second"}
    _write(tmp_path / "bdh_jax" / "configs", "within", "Within.")
    assert list(catalogue.experiments()) == ["within"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nbak", "there is no experiment 'nbak'. Did you mean nback? Experiments: consolidation, counter"),
        ("nbak:smoke", "or a file of your own, such as mine.py"),
        ("nback.py", "there is no file 'nback.py'"),
        ("./nback", "there is no file './nback'"),
        ("nback:foo", "--config=nback:foo: unknown variant 'foo'"),
    ],
)
def test_mistakes_are_named(named, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config(named)
    assert message in str(error.value)
