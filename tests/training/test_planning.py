"""Declared bytes are those of the arrays, on every mesh; and what a step sends is what its program sends.

Runs on the 8 CPU devices that ``tests/conftest.py`` asks for.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from bdh_jax import BDHConfig
from bdh_jax.commands._plan_step import compiled
from bdh_jax.commands._plans import describe_mesh, with_mesh
from bdh_jax.config.convert import change
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.experiment import ExperimentConfig, load_experiment, setup_of
from bdh_jax.parallel.chips import read_topology
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.parallel.programs import total
from bdh_jax.runs.folder import config_json
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.planning import declared_collectives, needs
from bdh_jax.training.state import abstract_state, init_state
from bdh_jax.training.step import put_batch

ROOT = Path(__file__).parents[2]
MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=4, heads=2, fsdp=True),
    MeshConfig(data=2, heads=2, neurons=2),
    MeshConfig(sequence=4, heads=2),
    MeshConfig(data=8, fsdp=True),
]


def _experiment(name: str, mesh: MeshConfig) -> ExperimentConfig:
    config = change(load_experiment(name), "train", batch_size=16)
    if isinstance(config.model, BDHConfig) and config.model.n_head < mesh.heads:
        config = change(config, "model", n_head=mesh.heads)
    return dataclasses.replace(config, mesh=mesh)


def _part(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _bytes(tree) -> int:
    return sum(map(_part, jax.tree.leaves(tree)))


CASES = [
    ("nback", MESHES[0]),
    ("text:gpt", MESHES[4]),
    ("text:fast", MESHES[2]),
    ("text:tbptt", MESHES[1]),
    ("text:tbptt", MESHES[3]),
    ("consolidation", MESHES[1]),
]


@pytest.mark.parametrize(
    ("name", "mesh"), CASES, ids=lambda value: value if isinstance(value, str) else describe_mesh(value)
)
def test_declared_bytes_are_those_of_the_shards(name, mesh):
    """Where a training state is to lie says how large each device's part is; nothing is computed."""
    config = _experiment("nback" if name == "consolidation" else name, mesh)
    if name == "consolidation":
        config = change(config, "model.fast", synapse=True)
        config = dataclasses.replace(config, consolidation=ConsolidationConfig(function="tfidf_rows"))
    setup, devices = setup_of(config), make_mesh(mesh)
    model = setup.model.build(devices)
    hooks, optimizer = make_hooks(setup.hooks, model), make_optimizer(setup.optimizer, setup.train.steps)
    rows = 16 if setup.train.carry_state else None
    state = abstract_state(model, optimizer, devices, hooks, rows, mesh.fsdp)
    found = needs(setup, config.task.shapes(16), mesh.shape)
    assert found.parameters == _bytes(state.slow)
    assert found.optimizer == _bytes(state.opt_state)
    assert found.state == _bytes((state.history, state.fast))
    assert (found.state > 0) == (name in ("text:tbptt", "consolidation"))


def test_arrays_that_are_there_take_the_declared_bytes():
    mesh = MeshConfig(data=4, heads=2, fsdp=True)
    config = _experiment("nback:smoke", mesh)
    setup, devices = setup_of(config), make_mesh(mesh)
    state = init_state(setup.model.build(devices), make_optimizer(setup.optimizer, 9), devices, jax.random.key(0), fsdp=True)
    shards = [
        shard.data.nbytes for leaf in jax.tree.leaves((state.slow, state.opt_state)) for shard in leaf.addressable_shards
    ]
    found = needs(setup, config.task.shapes(16), mesh.shape)
    assert sum(shards) == 8 * (found.parameters + found.optimizer)
    task = config.task.make(seed=0, batch_size=16)
    placed = put_batch(task.batch(0), devices)
    assert sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed)) == found.batch


def test_a_text_says_the_shapes_of_its_batches_without_being_read(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be. " * 100)
    config = change(load_experiment("text:smoke"), "data", path=str(tmp_path / "text.txt"))
    batch = config.task.make(seed=0, batch_size=4, data=config.data).batch(0)
    shapes = config.task.shapes(4)
    assert all(np.all(mask) == (name == "valid") for name, mask in (("valid", batch.valid), ("reset", batch.reset)))
    for name in ("tokens", "targets", "answer", "loss_weights"):
        array, shape = getattr(batch, name), getattr(shapes, name)
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype), name
    assert shapes.valid is shapes.reset is None


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=2, heads=2, fsdp=True), pytest.param(MeshConfig(sequence=4), marks=pytest.mark.full)], ids=describe_mesh
)  # fmt: skip
def test_a_compiled_step_takes_and_sends_what_is_declared(mesh):
    """In two layers: arguments to the byte but for step, key and counts; sums of a layer and gradients, without scalars of norms."""
    config = _experiment("text:smoke", mesh)
    setup, batch = setup_of(config), config.task.shapes(16)
    answer = compiled({"config": config_json(config), "topology": "cpu:4"})
    found = needs(setup, batch, mesh.shape)
    assert abs(answer["arguments"] - found.arguments) <= 64
    sent = {(one["kind"], tuple(one["axes"])): one["bytes"] for one in answer["collectives"]}
    declared = total(declared_collectives(setup, batch, mesh.shape) or [])
    over = ("heads",) if mesh.heads > 1 else ("sequence",)
    kind = "all-reduce" if mesh.heads > 1 else "collective-permute"
    assert 1 <= sent[kind, over] / declared[kind, over] < 1.5
    assert sum(sent.values()) < 1.6 * sum(declared.values())
    assert sum(sent.values()) > 0.9 * sum(declared.values())


COMMITTED = ROOT / "benchmarks" / "results" / "plans.json"


@pytest.mark.parametrize(
    "row", json.loads(COMMITTED.read_text())["checked"] if COMMITTED.exists() else [], ids=lambda row: row["name"]
)
def test_declarations_are_those_of_the_chips_compiler(row):
    """Arguments within 2 %, temporaries within 25 %. The committed side is a compiler's; this side has never seen it."""
    config = change(
        change(load_experiment(row["experiment"]), "train", batch_size=row["batch_size"]), "model", n_layer=row["layers"]
    )
    config = with_mesh(config, read_topology(row["topology"]), row["mesh"])
    found = needs(setup_of(config), config.task.shapes(row["batch_size"]), config.mesh.shape)
    assert found.temporaries is not None
    assert abs(found.arguments / row["compiled"]["arguments"] - 1) <= 0.02
    assert abs(found.temporaries / row["compiled"]["temporaries"] - 1) <= 0.25
