"""Keys say what they are: from the dataclasses, and from what these refuse."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from bdh_jax.config import require
from bdh_jax.config.reference import field_texts, sections
from bdh_jax.experiment import ExperimentConfig, load_experiment
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.lifelong.aware import AwareFactsConfig
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.registry import MODELS
from bdh_jax.tasks import TASKS


def keys(config, name=""):
    return {key.name: key for section in sections(config, name) for key in section.keys}


CONFIGURATIONS = [
    ExperimentConfig(task=TASKS.get("nback", "task")()),
    *(TASKS.get(name, "task")() for name in TASKS.names()),
    *(MODELS.get(name, "model")() for name in MODELS.names()),
    AwareFactsConfig(),
    LifelongConfig(),
]


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda config: type(config).__name__)
def test_every_key_has_a_docstring(config):
    assert [key.name for key in keys(config).values() if not key.text] == []
    assert all(section.text for section in sections(config))


def test_keys_have_the_names_and_values_of_the_command_line():
    experiment = load_experiment("nback:text")
    found = keys(experiment)
    assert found["model.fast.rule"].value == "delta"
    assert found["model.fast.rule"].to_dict()["type"] == "str"
    assert found["seed"].value == 0
    assert [section.name for section in sections(experiment)][:5] == ["", "task", "data", "model", "model.fast"]
    assert keys(experiment.model.fast, "fast").keys() == {"fast." + key.name for key in sections(FastWeightConfig())[0].keys}


@pytest.mark.parametrize(
    ("config", "name", "kind", "accepted"),
    [
        (FastWeightConfig(), "decay", "float", "in (0, 1]"),
        (FastWeightConfig(), "clamp", "float or None", "positive, or None for no limit"),
        (FastWeightConfig(), "scope", "str", "'layer', 'shared'"),
        (FastWeightConfig(), "enabled", "bool", ""),
        (FastWeightConfig(rule="mesa"), "options", "options", "its options: ridge"),
        (BDHConfig(), "n_layer", "int", "at least 1, below 2**31"),
        (BDHConfig(), "attention_decay", "several float", "numbers in (0, 1]"),
        (ExperimentConfig(task=TASKS.get("nback", "task")()), "seeds", "several int", "not negative, below 2**32"),
        (ExperimentConfig(task=TASKS.get("nback", "task")()), "optimizer.b2", "float", "in [0, 1)"),
        (TASKS.get("nback", "task")(), "mixture", "several str", "'n2', 'n4', 'n8'"),
    ],
)
def test_types_and_ranges(config, name, kind, accepted):
    found = keys(config)[name]
    assert (found.type, found.range) == (kind, accepted)


def test_names_of_a_table_are_its_range():
    assert keys(FastWeightConfig())["rule"].range.startswith("delta, gated_delta")
    assert keys(FastWeightConfig())["rule"].range.endswith("or module:name for your own")


@dataclasses.dataclass(frozen=True)
class Base:
    """A base."""

    first: int = 1
    """Of the
    base."""
    second: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Derived(Base):
    """Another one.

    With more to say.
    """

    second: Literal["a", "b"] = "b"
    """Its own."""
    third: float = 0.5

    def __post_init__(self) -> None:
        if self.third == 2.0:
            raise KeyError("a class of one's own may fail as it likes")
        require(self.first != -1, f"third={self.third} must not be beside first={self.first}")


def test_docstrings_of_bases_and_classes_that_fail_otherwise():
    assert field_texts(Derived) == {"first": "Of the base.", "second": "Its own."}
    ((section,), found) = sections(Derived()), keys(Derived())
    assert section.text == "Another one."
    assert [key.range for key in found.values()] == ["", "'a', 'b'", ""]


def test_a_class_without_source_has_no_docstrings():
    made = dataclasses.make_dataclass("Made", [("size", int, 3)])
    assert [(key.name, key.value, key.text) for key in keys(made()).values()] == [("size", 3, "")]
