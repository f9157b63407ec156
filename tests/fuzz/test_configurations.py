"""Configurations with values of any kind for any key: what cannot be used is one line that names the key, the rest is a model.

Nothing else may happen: no other exception, and no work, so that a mistake costs a second and not an hour.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import typing
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change, from_config_dict, rebuild, to_config_dict, to_dict
from bdh_jax.config.options import Options
from bdh_jax.consolidation import FUNCTIONS, as_consolidation, make_function
from bdh_jax.experiment import ExperimentConfig, check_memory, experiment_from, setup_of
from bdh_jax.fast_weights.rules import RULES
from bdh_jax.generation.sampling import Sampling
from bdh_jax.lifelong.aware import AwareFactsConfig
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.models.registry import MODELS
from bdh_jax.tasks import TASKS

QUICK, FULL = 10, 400
MEMORY = 2**34
"""Bytes of the machine that configurations are for: what needs more is refused."""

NUMBERS = [0, 1, 2, 3, 7, 64, 2**31, 2**63, 10**30, -1, 0.0, 0.5, 1.0, 1e-300, 1e308, -0.5, math.nan, math.inf, -math.inf]
OF_NUMPY = [np.int64(3), np.float32(0.5), np.float64("nan"), np.bool_(True), np.array(2), np.array([1, 2]), np.uint8(4)]
TEXTS = [
    "",
    "3",
    "None",
    "text",
    "[bold red]",
    "[/x]",
    "\x1b[31m",
    "a\nb",
    "ü\udc80",
    "../x",
    "os:system",
    "no_such:name",
    ":",
    "x" * 5000,
]
OTHERS = [
    None,
    True,
    False,
    (),
    (1,),
    [],
    [0.5, "1"],
    {},
    {"a": {"b": []}},
    {1: 2},
    b"x",
    1j,
    object(),
    int,
    {1, 2},
    range(3),
]
ANY = st.sampled_from([*NUMBERS, *OF_NUMPY, *TEXTS, *OTHERS]) | st.integers() | st.floats() | st.text(max_size=8)

TASKS_UNDER_TEST = [TASKS.get(name, "")() for name in TASKS.names()] + [AwareFactsConfig()]
MODELS_UNDER_TEST = [MODELS.get(name, "")(vocab_size=512) for name in MODELS.names()]


def keys(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every key of a configuration with its annotation, dots between the parts."""
    hints = typing.get_type_hints(type(config))
    found = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        found.append((name, hints[field.name]))
        if dataclasses.is_dataclass(value):
            found += keys(value, f"{name}.")
    return found


@st.composite
def values(draw: st.DrawFn, key: str, annotation: Any) -> Any:
    """Half of them of the key's own type, which may be valid."""
    kinds = [kind for kind in (typing.get_args(annotation) or (annotation,)) if kind not in (type(None), ...)]
    if typing.get_origin(annotation) is typing.Literal:
        right = st.sampled_from(kinds)
    elif key.endswith("fast.rule"):
        right = st.sampled_from(RULES.names())
    elif key.endswith("consolidation.function"):
        right = st.sampled_from(FUNCTIONS.names())
    elif annotation is Options:
        names = st.sampled_from(["ridge", "rate", "fraction", "seed", "layers", "target", "drift", "score", "", "x"])
        right = st.dictionaries(names, ANY, max_size=2)
    else:
        by_kind = {
            bool: st.booleans(),
            int: st.integers(0, 16) | st.sampled_from([64, 128, 512, 2**20]),
            float: st.floats(0, 1) | st.floats(0, 100),
            str: st.sampled_from(TEXTS),
        }
        right = by_kind.get(kinds[0], ANY)
        if typing.get_origin(annotation) is tuple:
            right = st.lists(right, max_size=3).map(tuple)
    return draw(right | ANY)


def _one_line(error: ConfigError, *names: str) -> None:
    message = str(error)
    assert message.isprintable(), message
    assert len(message) < 3000
    assert any(name.rpartition(".")[2] in message for name in names), (message, names)


def _same(a: Any, b: Any) -> bool:
    """Equal, and of the same types: 1 and 1.0 are not stored alike."""
    return a == b and json.dumps(to_dict(a), sort_keys=True) == json.dumps(to_dict(b), sort_keys=True)


def _experiments(data: st.DataObject) -> None:
    base = ExperimentConfig(
        task=data.draw(st.sampled_from(TASKS_UNDER_TEST)), model=data.draw(st.sampled_from(MODELS_UNDER_TEST))
    )
    chosen = data.draw(st.lists(st.sampled_from(keys(base)), min_size=1, max_size=3, unique_by=lambda pair: pair[0]))
    if data.draw(st.integers(0, 3)) == 0:  # what depends on another key
        pairs = [("consolidation.function", "consolidation.options"), ("model.fast.rule", "model.fast.options")]
        pair = data.draw(st.sampled_from(pairs))
        chosen += [(key, annotation) for key, annotation in keys(base) if key in pair and key not in dict(chosen)]
    named = {key: data.draw(values(key, annotation), label=key) for key, annotation in chosen}
    try:
        config = base
        for key, value in named.items():
            path, _, name = key.rpartition(".")
            config = change(config, path, **{name: value})
        assert _same(rebuild(base, to_config_dict(config)), config)
        assert _same(experiment_from(json.loads(json.dumps(to_dict(config)))), config)
        setup_of(config)
        check_memory(config, MEMORY)
        model = config.model.build()
        slow = jax.eval_shape(model.init_slow, jax.random.key(0))
    except ConfigError as error:
        # A combination is refused by one of its keys or by what it contradicts.
        _one_line(error, *named, *(key for key, _ in keys(base)))
        return
    assert all(leaf.size for leaf in jax.tree.leaves(slow))
    for key, annotation in keys(config):
        if typing.get_origin(annotation) is typing.Literal:
            assert functools.reduce(getattr, key.split("."), config) in typing.get_args(annotation), key


def _json(data: st.DataObject) -> None:
    """As read from a file: a mapping in which something is other than it was."""
    base = ExperimentConfig(
        task=data.draw(st.sampled_from(TASKS_UNDER_TEST)), model=data.draw(st.sampled_from(MODELS_UNDER_TEST))
    )
    key, annotation = data.draw(st.sampled_from(keys(base)))
    tree = json.loads(json.dumps(to_dict(base)))
    *parents, last = key.split(".")
    node = tree
    for name in parents:
        node = node[name]
    node[last] = data.draw(values(key, annotation))
    try:
        config = experiment_from(tree)
    except ConfigError as error:
        _one_line(error, key, *(name for name, _ in keys(base)))
        return
    assert _same(experiment_from(json.loads(json.dumps(to_dict(config)))), config)


def _parts(data: st.DataObject) -> None:
    """Each class made by hand, as in a notebook: beside those of an experiment, those that are arguments of functions."""
    made = data.draw(st.sampled_from([Sampling(), LifelongConfig(), BDHConfig(), GPTConfig(), BDHConfig().fast]))
    own = [(name, annotation) for name, annotation in keys(made) if "." not in name]
    key, annotation = data.draw(st.sampled_from(own))
    value = data.draw(values(key, annotation))
    try:
        config = dataclasses.replace(made, **{key: value})
    except ConfigError as error:
        _one_line(error, key, *(name for name, _ in own))
        return
    hash(config)
    assert _same(from_config_dict(type(made), json.loads(json.dumps(to_dict(config)))), config)


def _functions(data: st.DataObject) -> None:
    """Consolidation functions and write rules with an option of theirs, of any value."""
    name = data.draw(st.sampled_from(FUNCTIONS.names()))
    options = sorted(set(inspect.signature(FUNCTIONS.get(name, "")).parameters) - {"example_weights"}) or ["rate"]
    option, value = data.draw(st.sampled_from(options)), data.draw(ANY | st.floats(0, 1) | st.integers(0, 3))
    try:
        as_consolidation(make_function(name, **{option: value}))
    except ConfigError as error:
        _one_line(error, option)


CHECKS = {"experiments": _experiments, "from JSON": _json, "by hand": _parts, "functions": _functions}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("draws", [QUICK, pytest.param(FULL, marks=pytest.mark.full)])
def test_configurations(check, draws):
    seeded = settings(max_examples=draws, derandomize=True, deadline=None, database=None)
    seeded(given(data=st.data())(CHECKS[check]))()


@pytest.mark.parametrize("made", [BDHConfig, GPTConfig])
def test_a_model_of_more_layers_than_can_be_traced_is_refused(made):
    """Describing a million of them takes minutes, before anything else is checked."""
    with pytest.raises(ConfigError, match="n_layer=1048576 must be at most 4096"):
        made(n_layer=2**20)
