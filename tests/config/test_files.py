"""Configuration files: executed once a call, and what is wrong with one is one line."""

from __future__ import annotations

import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import to_config_dict
from bdh_jax.config.files import import_file, load_config
from bdh_jax.experiment import ExperimentConfig, load_experiment

OWN_TASK = """
from __future__ import annotations
import dataclasses
from bdh_jax.experiment import ExperimentConfig
from bdh_jax.tasks import TaskConfig

@dataclasses.dataclass(frozen=True)
class OwnConfig(TaskConfig):
    name: str = "own:OwnConfig"
    sizes: tuple[int, ...] = (1, 2)

def get_config(variant="3"):
    return ExperimentConfig(task=OwnConfig(sizes=(int(variant),)))
"""


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        ("", "", "has no function get_config"),
        ("get_config = 3", "", "has no function get_config"),
        ("def get_config(): return 3", ":x", "get_config of .* takes no variant; leave out ':x'"),
        ("def get_config(", "", r"own.py cannot be executed: SyntaxError: .* \(own.py, line 1\)"),
        ("x = 1\nraise ValueError('no')", "", r"own.py cannot be executed: ValueError: no \(own.py, line 2\)"),
        ("import sys; sys.exit(1)", "", "cannot be executed: SystemExit: 1"),
        (
            "def get_config():\n    return 1 / 0",
            "",
            r"get_config failed: ZeroDivisionError: division by zero \(own.py, line 2\)",
        ),
        ("def get_config(): return {}", "", "get_config returned a dict; it should return an ExperimentConfig"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, text, variant, message):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_experiment(f"{tmp_path / 'own.py'}{variant}")
    assert str(error.value).startswith(f"--config={tmp_path / 'own.py'}{variant}: ")
    assert "\n" not in str(error.value)


def test_a_file_may_bring_a_class_of_its_own(tmp_path):
    """Whose annotations are found in the file, and which its variant sets."""
    (tmp_path / "own.py").write_text(OWN_TASK)
    config = load_experiment(f"{tmp_path / 'own.py'}:5")
    assert config.task.sizes == (5,)
    assert to_config_dict(config).task.sizes == (5,)
    assert load_experiment(f"{tmp_path / 'own.py'}").task.sizes == (3,)


def test_a_config_dict_is_an_experiment_too(tmp_path):
    (tmp_path / "own.py").write_text(
        "from bdh_jax.config.convert import to_config_dict\n"
        "from bdh_jax.experiment import ExperimentConfig\n"
        "from bdh_jax.tasks import NBackConfig\n"
        "def get_config(): return to_config_dict(ExperimentConfig(task=NBackConfig(), seed=3))\n"
    )
    config = load_experiment(f"{tmp_path / 'own.py'}")
    assert type(config) is ExperimentConfig
    assert config.seed == 3


def test_a_file_is_executed_once_a_call(tmp_path):
    """Anew, so that one that was edited meanwhile is read; files of one name in two folders are two."""
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(f"def get_config(): return {value}")
    assert load_config(f"{tmp_path}/a/own.py") == 1
    assert load_config(f"{tmp_path}/b/own.py") == 2
    counts = tmp_path / "counts.py"
    counts.write_text(f"open({str(tmp_path / 'count')!r}, 'a').write('.')")
    import_file(counts)
    assert (tmp_path / "count").read_text() == "."
