"""Damaged files of every kind that the library reads: one line of its own errors, or what was written to the bit.

Damage is of bytes, and of what JSON says: other types, missing keys, deep nesting, huge numbers, markup. Where the file's digest is made
anew, what it says is what somebody wrote: then it may be taken, and nothing else may happen than an error in one line.
"""

from __future__ import annotations

import functools
import json
import logging
import pickle
import shutil
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from bdh_jax.config import ConfigError
from bdh_jax.config.records import digest_of
from bdh_jax.experiment import ExperimentConfig, load_experiment
from bdh_jax.interop import files as interop
from bdh_jax.interop import read_pathway, to_pathway
from bdh_jax.runs.folder import CheckpointError, finished
from bdh_jax.runs.reporter import Reporter, read_rows
from bdh_jax.tasks.scores import results_table
from tests.faults import damage
from tests.faults.damage import ERRORS, SUBJECTS

QUICK, FULL = 10, 200

DEEP = "@deep@"
ODD: list[Any] = [
    *[None, True, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 2**31, 10**400, "", "x", "[bold]x[/y]", "\x1b[31m", "a\nb"],
    *["\udc80", "x" * 10_000, "../../x", "/", DEEP, [], {}, [[1], [2, 3]], {"a": {"b": None}}, ["x"], [1, 2]],
]


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, child in items for found in _paths(child, (*path, key)))]


def _change(draw: st.DrawFn, tree: Any) -> Any:
    """Something in it is other than it was."""
    path = draw(st.sampled_from(_paths(tree)))
    if not path:
        return draw(st.sampled_from(ODD))
    node = functools.reduce(lambda node, key: node[key], path[:-1], tree)
    how = draw(st.sampled_from(["replace", "replace", "delete", "add", "text"]))
    if how == "delete":
        del node[path[-1]]
    elif how == "add" and isinstance(node, dict):
        node[draw(st.sampled_from(["", "x", "digest", "config", "[/]"]))] = draw(st.sampled_from(ODD))
    elif how == "text":
        node[path[-1]] = json.dumps(node[path[-1]])
    else:
        node[path[-1]] = draw(st.sampled_from(ODD))
    return tree


def _write(tree: Any) -> bytes:
    return json.dumps(tree).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


def _json(draw: st.DrawFn, content: bytes, anew: bool) -> bytes:
    tree = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        tree = _change(draw, tree)
    if anew and isinstance(tree, dict) and DEEP not in json.dumps(tree):
        tree["digest"] = digest_of(tree)
    return _write(tree)


def _header(draw: st.DrawFn, content: bytes, anew: bool) -> bytes:
    """Of safetensors: a length, JSON, and arrays."""
    end = 8 + int.from_bytes(content[:8], "little")
    tree = _change(draw, json.loads(content[8:end]))
    meta = tree.get("__metadata__") if isinstance(tree, dict) else None
    if anew and isinstance(meta, dict) and DEEP not in json.dumps(meta):
        meta["digest"] = digest_of(meta)
    header = _write(tree)
    return len(header).to_bytes(8, "little") + header + content[end:]


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        how = draw(st.sampled_from(["flip", "flip", "cut", "insert", "zeros", "repeat"]))
        if how == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del changed[place:]
        elif how == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif how == "zeros":
            changed[place : place + 16] = bytes(len(changed[place : place + 16]))
        elif how == "repeat":
            changed[place:place] = changed[place : place + 40]
    return bytes(changed)


@functools.cache
def _sound(name: str) -> tuple[Path, Any, list[Path]]:
    """A subject's folder, what is read from it, and its files."""
    whole = Path(tempfile.mkdtemp(), "whole")
    whole.mkdir()
    SUBJECTS[name].write(whole)
    copy = shutil.copytree(whole, whole.with_name("copy"))
    found = [path.relative_to(whole) for path in sorted(whole.glob(SUBJECTS[name].files)) if path.is_file()]
    return whole, SUBJECTS[name].read(copy), [path for path in found if not path.name.startswith(".")]


def _one_line(error: BaseException) -> None:
    assert damage.is_short(error), str(error)


def _kept(name: str, data: st.DataObject) -> None:
    """Files that the library wrote."""
    whole, sound, paths = _sound(name)
    path = data.draw(st.sampled_from(paths))
    content = (whole / path).read_bytes()
    how = data.draw(st.sampled_from(["bytes", "said", "said anew"]))
    anew = how == "said anew"
    if how == "bytes":
        content = data.draw(damaged_bytes(content))
    elif path.suffix == ".safetensors":
        content = _header(data.draw, content, anew)
    elif path.suffix == ".json" or path.name == "metadata":
        content = _json(data.draw, content, anew)
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(whole, Path(temporary, "copy"))
        (copy / path).write_bytes(content)
        outcome, said = damage.outcome_of(SUBJECTS[name], copy, sound)
    assert outcome != "crash", said
    assert outcome != "silent" or anew, (path, said)


ROWS = [{"step": step, "loss": 1.5, "evaluation": {"primary": 0.5}} for step in range(1, 6)]


def _metrics(data: st.DataObject) -> None:
    """Whole lines stay, whatever became of the others, or the file is refused."""
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    where = data.draw(st.integers(0, len(lines) - 1))
    if data.draw(st.booleans()):
        changed = data.draw(damaged_bytes(lines[where]))
    else:
        changed = _write(_change(data.draw, json.loads(lines[where]))) + b"\n"
    content = b"".join([*lines[:where], changed, *lines[where + 1 :]])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "metrics.jsonl")
        path.write_bytes(content)
        try:
            rows = read_rows(path, until=100)
            assert [row for row in rows if row in ROWS][:where] == ROWS[:where]
            Reporter(Path(temporary), steps=9, start=100, title="", accuracy_name="accuracy").close()
        except CheckpointError as error:
            _one_line(error)
            try:
                Reporter(Path(temporary), steps=9, start=100, title="", accuracy_name="accuracy").close()
            except CheckpointError as again:
                _one_line(again)
                assert path.read_bytes() == content
                return
            assert path.with_name("metrics.jsonl.damaged").read_bytes() == content
        left = path.read_bytes()
        assert all(line in left for line in [*lines[:where], *lines[where + 2 :]])


def _results(data: st.DataObject) -> None:
    """Results that are printed once more."""
    whole, _, _ = _sound("run")
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(whole, Path(temporary, "copy"))
        content = _json(data.draw, (whole / "results.json").read_bytes(), True)
        (copy / "results.json").write_bytes(content)
        try:
            results_table(finished(copy, damage.record_of(damage.CONFIG)) or {})
        except ERRORS as error:
            _one_line(error)


CONFIG_FILE = b"""from bdh_jax.experiment import ExperimentConfig
from bdh_jax.tasks import NBackConfig
VARIANTS = {"a": 1}
def get_config(variant: str = ""):
    return ExperimentConfig(task=NBackConfig(queries=1), seed=VARIANTS.get(variant, 0))
"""


def _config_file(data: st.DataObject) -> None:
    """Of the user's own: a program, which may say anything."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "config.py")
        path.write_bytes(data.draw(damaged_bytes(CONFIG_FILE)))
        try:
            assert isinstance(load_experiment(str(path)), ExperimentConfig)
        except ConfigError as error:
            _one_line(error)


class _Tensor(np.ndarray):
    """The part of a tensor that is used."""

    def element_size(self) -> int:
        return self.dtype.itemsize

    def numpy(self, force: bool) -> np.ndarray:
        return np.asarray(self)


def _load(path: Path, **settings: Any) -> Any:
    return pickle.loads(path.read_bytes())


def _pytorch(data: st.DataObject) -> None:
    """PyTorch is no dependency of the tests: its file is a pickle here, whose damage raises errors of any kind, as there."""
    arrays = {name: np.asarray(array).view(_Tensor) for name, array in to_pathway(damage._weights(0)).items()}
    whole = pickle.dumps({"model": arrays, "step": 3})
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setattr(interop, "_torch", lambda path: types.SimpleNamespace(Tensor=_Tensor, load=_load))
        path = Path(temporary, "weights.pt")
        path.write_bytes(data.draw(damaged_bytes(whole)))
        try:
            config, slow = read_pathway(path)
            assert config.d_model == slow["embed"].shape[1]
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slow))
        except interop.WeightsError as error:
            _one_line(error)


CHECKS: dict[str, Callable[[st.DataObject], None]] = {
    **{name: functools.partial(_kept, name) for name in SUBJECTS},
    "metrics": _metrics,
    "results": _results,
    "configuration file": _config_file,
    "PyTorch file": _pytorch,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("draws", [QUICK, pytest.param(FULL, marks=pytest.mark.full)])
def test_damaged_files(check, draws, monkeypatch):
    monkeypatch.setattr(logging.getLogger("bdh_jax"), "propagate", False)

    def holds(data: st.DataObject) -> None:
        CHECKS[check](data)

    seeded = settings(max_examples=draws, derandomize=True, deadline=None, database=None)
    seeded(given(data=st.data())(holds))()
