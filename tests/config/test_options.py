"""Options: an immutable mapping that hashes, survives every conversion, and is checked against what takes it."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Literal

import pytest
from absl import flags

from bdh_jax.commands import _flags
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import from_config_dict, rebuild, to_config_dict, to_dict
from bdh_jax.config.options import Options, options_of


@dataclasses.dataclass(frozen=True)
class Part:
    function: str = "f"
    options: Options = Options()


@dataclasses.dataclass(frozen=True)
class Whole:
    part: Part = Part()


def test_they_are_a_dict_that_cannot_change():
    options = Options({"rate": 0.1, "layers": [0, [1]]}, seed=3)
    assert options == {"rate": 0.1, "layers": (0, (1,)), "seed": 3}
    assert hash(options) == hash(Options(seed=3, layers=(0, (1,)), rate=0.1))
    assert len({Part(options=options), Part(options=Options(options))}) == 1
    for change in (
        lambda: options.__setitem__("rate", 1),
        lambda: options.__delitem__("rate"),
        lambda: options.update(rate=1),
        lambda: options.setdefault("new", 1),
        lambda: options.pop("rate"),
        lambda: options.popitem(),
        lambda: options.clear(),
        lambda: options.__ior__({"rate": 1}),
    ):
        with pytest.raises(TypeError, match="options cannot be changed"):
            change()
    assert options | {"rate": 1} == Options(rate=1, layers=[0, [1]], seed=3)
    for same in (copy.copy(options), copy.deepcopy(options), pickle.loads(pickle.dumps(options)), options.copy()):
        assert same == options
        assert type(same) is Options


def test_they_survive_config_dict_and_json():
    whole = Whole(Part(options=Options(rate=0.1, layers=(0, 1), name=None, nested={"a": [1]})))
    assert rebuild(whole, to_config_dict(whole)) == whole
    assert from_config_dict(Whole, to_config_dict(whole)) == whole
    back = from_config_dict(Whole, json.loads(json.dumps(to_dict(whole))))
    assert back == whole
    assert hash(back) == hash(whole)
    with pytest.raises(ConfigError, match=r"config\.part\.options=3 should be a mapping"):
        from_config_dict(Whole, {"part": {"options": 3}})


def test_the_command_line_sets_those_that_are_there_and_others(monkeypatch):
    """A value is a Python literal, or else text."""
    monkeypatch.setattr(_flags, "load_experiment", lambda named: Whole(Part(options=Options(rate=1, seed=0))))
    command = ["program", "--config=x.py", "--config.part.options.rate=0.1", "--config.part.options.name=tall", "--rest"]
    more = ["--config.part.options.layers=(0,1)", "--config.part.options.limit=None", "--config.part.options.loud"]
    whole, rest = _flags.read_config([*command, *more])
    assert rest == ["program", "--config=x.py", "--rest"]
    expected = Options(rate=0.1, seed=0, name="tall", layers=(0, 1), limit=None, loud=True)
    assert whole == Whole(Part(options=expected))
    assert {name: type(value) for name, value in whole.part.options.items()} == {n: type(v) for n, v in expected.items()}
    with pytest.raises(ConfigError, match=r"config\.part\.options\.rate is a single value and has no keys"):
        _flags.read_config([*command, "--config.part.options.rate.x=1"])
    with pytest.raises(flags.Error):
        _flags.read_config([*command, "--config.part.options=3"])


@dataclasses.dataclass(frozen=True)
class Taker:
    ridge: float = 0.1
    steps: int = 3
    kind: Literal["a", "b"] = "a"
    limit: float | None = None
    layers: tuple[int, ...] = ()


def takes(slow, rate: float, *, name: str = "x", loud: bool = False): ...


def takes_anything(rate: float = 1.0, **more): ...


def test_what_is_taken_is_given():
    assert options_of(Taker, {"ridge": 1, "layers": [1], "limit": None}, "it") == {
        "ridge": 1.0,
        "layers": (1,),
        "limit": None,
    }
    assert type(options_of(Taker, {"ridge": 1}, "it")["ridge"]) is float
    assert type(options_of(Taker, {"limit": 1}, "it")["limit"]) is float
    assert options_of(takes, {"rate": 0.5, "name": "y"}, "it", leave_out=("slow",)) == {"rate": 0.5, "name": "y"}
    assert options_of(takes_anything, {"other": 1}, "it") == {"other": 1}
    assert options_of(None, {}, "it") == {}


@pytest.mark.parametrize(
    ("taker", "values", "message"),
    [
        (Taker, {"rigde": 1}, "it has no option 'rigde'. Its options: ridge, steps, kind, limit, layers"),
        (takes, {"slow": 1}, "it has no option 'slow'. Its options: rate, name, loud"),
        (None, {"x": 1}, "it has no option 'x'. Its options: none"),
        (Taker, {"ridge": "x"}, "it, option ridge='x' is a str, expected float"),
        (Taker, {"steps": 1.5}, "it, option steps=1.5 is a float, expected int"),
        (Taker, {"steps": True}, "it, option steps=True is a bool, expected int"),
        (Taker, {"kind": "c"}, "it, option kind='c' is not one of 'a', 'b'"),
        (Taker, {"limit": "x"}, "it, option limit='x' is a str, expected float"),
        (takes, {"loud": 1}, "it, option loud=1 is a int, expected bool"),
        (takes_anything, {"rate": "x"}, "it, option rate='x' is a str, expected float"),
    ],
)
def test_what_is_not_taken_is_named(taker, values, message):
    with pytest.raises(ConfigError) as error:
        options_of(taker, values, "it", leave_out=("slow",))
    assert str(error.value) == message
