"""Meshes do not change the function, arrays lie where the table says, and no collective moves an array as wide as the neurons.

Runs on the 8 CPU devices that ``tests/conftest.py`` asks for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax import BDH, BDHConfig, ConfigError, FastWeightConfig
from bdh_jax.experiment import ExperimentConfig, setup_of
from bdh_jax.parallel import axes as sharding
from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.tasks.base import Batch
from bdh_jax.training.config import OptimizerConfig, TrainConfig
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.state import init_state
from bdh_jax.training.step import make_train_step, put_batch

MESHES = ((1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 1, 4), (2, 2, 2), (1, 4, 2), (1, 1, 8))
"""data × heads × neurons: examples alone, whole heads, the neurons within heads, and both."""
CHOSEN = [
    pytest.param(mesh, marks=[pytest.mark.full] if mesh in ((1, 4, 2), (2, 1, 4), (2, 4, 1)) else []) for mesh in MESHES
]
# Eleven divides the size of an array exactly if one of its axes comes from N, however it is split, merged or transposed.
PRIME = 11
BATCH, LENGTH, WIDTH, HEADS, NEURONS, VOCAB, LAYERS, STEPS = 16, 10, 12, 4, 16 * PRIME, 37, 1, 20
# Tests compile without optimisation. Collectives are looked for in the program that users get, too, on the mesh that has all kinds.
OPTIMISED, OPTIMISED_MESH = {"xla_backend_optimization_level": 3}, (2, 2, 2)


def experiment(data: int = 1, heads: int = 1, neurons: int = 1) -> ExperimentConfig:
    return ExperimentConfig(
        model=BDHConfig(
            vocab_size=VOCAB,
            n_layer=LAYERS,
            d_model=WIDTH,
            n_head=HEADS,
            n_neurons=HEADS * NEURONS,
            dropout=0.1,
            fast=FastWeightConfig(synapse=True, learn_learning_rate=True, learn_decay=True),
        ),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=2),
        train=TrainConfig(steps=STEPS, batch_size=BATCH, loss="all"),
        mesh=MeshConfig(data=data, heads=heads, neurons=neurons),
    )


def batch(step: int) -> Batch:
    """A text to learn by heart, with padding and packed episodes."""
    rng = np.random.default_rng(step % 3)
    text = rng.integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    valid, reset = rng.random((BATCH, LENGTH)) < 0.8, rng.random((BATCH, LENGTH)) < 0.1
    ones = np.ones((BATCH, LENGTH), np.float32)
    return Batch(text[:, :-1], text[:, 1:], ones, ones, valid, reset)


@functools.cache
def trained(data: int, heads: int, neurons: int):
    """Losses of the steps, the state before and after them, and the program."""
    config = experiment(data, heads, neurons)
    mesh = make_mesh(config.mesh)
    model = BDH(config.model, mesh if mesh.size > 1 else None)
    optimizer = make_optimizer(config.optimizer, STEPS)
    step = make_train_step(model, optimizer, setup_of(config), mesh)
    state = init_state(model, optimizer, mesh, jax.random.key(0))
    start = jax.tree.map(np.asarray, state)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    options = OPTIMISED if (data, heads, neurons) == OPTIMISED_MESH else None
    program = step.lower(state, put_batch(batch(0), mesh), key).compile(options)
    losses = []
    for number in range(STEPS):
        state, metrics = program(state, put_batch(batch(number), mesh), key)
        losses.append(float(metrics["loss"]))
    return np.array(losses), start, state, program.as_text()


@pytest.mark.parametrize("mesh", CHOSEN[1:], ids=str)
def test_the_mesh_does_not_change_the_losses(mesh):
    """Sums over shards round in another order: √(B·T·K) · 6e-8 = 1.4e-5 at worst for one sum, far less for their mean."""
    losses, start, state, _ = trained(*mesh)
    expected, expected_start, expected_state, _ = trained(1, 1, 1)
    assert expected[-1] < 0.9 * expected[0]  # it learns, so that each step depends on the steps before
    chex.assert_trees_all_equal(start, expected_start)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # Adam divides by the gradient's size, so single weights may differ by more; the rates get gradients of their own.
    for name in ("fast_log_learning_rate", "fast_logit_decay"):
        moved = np.abs(expected_state.slow[name] - expected_start.slow[name])
        assert (moved > 1e-3).all()
        np.testing.assert_allclose(state.slow[name], expected_state.slow[name], atol=1e-3 * moved.max())


def test_dropout_is_on():
    _, start, _state, _ = trained(1, 1, 1)
    config = experiment().model
    run = jax.jit(
        lambda slow, key: BDH(config).apply(
            {"params": slow}, batch(0).tokens, state="none", deterministic=False, rngs={"dropout": key}
        )
    )
    a, b = (run(start.slow, jax.random.key(seed)).logits for seed in (0, 1))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, run(start.slow, jax.random.key(0)).logits)


@pytest.mark.parametrize("mesh", CHOSEN, ids=str)
def test_parameters_and_optimiser_state_lie_in_shards(mesh):
    _, _start, state, _ = trained(*mesh)
    _, heads, neurons = mesh
    rows = (HEADS // heads, NEURONS // neurons)
    local = {
        "embed": (VOCAB, WIDTH),
        "encoder": (WIDTH, *rows),
        "encoder_v": (rows[0], WIDTH, rows[1]),
        "decoder": (*rows, WIDTH),
        "lm_head": (WIDTH, VOCAB),
        "synapse": (LAYERS, *rows, WIDTH),
        "fast_log_learning_rate": rows[:1],
        "fast_logit_decay": rows[:1],
    }
    assert shard_shapes(state.slow) == local
    moments = {name: shape for name, shape in local.items() if name != "synapse"}
    (adam,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(part))
    assert shard_shapes(adam.mu) == shard_shapes(adam.nu) == moments
    assert shard_shapes({"step": state.step, "count": adam.count}) == {"step": (), "count": ()}


def is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def shard_shapes(tree):
    """Shape of each leaf's part on a device, which is the same on all of them."""
    for leaf in jax.tree.leaves(tree):
        assert len({shard.data.shape for shard in leaf.addressable_shards}) == 1
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, tree)


@pytest.mark.parametrize("mesh", CHOSEN, ids=str)
def test_no_collective_of_the_step_moves_neurons(mesh):
    """But for the gradients: over ``data``, the local shards of the three neuron-wide parameters are summed, each once."""
    _, _, _, program = trained(*mesh)
    moved = [math.prod(shape) for shape in collective_shapes(program)]
    assert bool(moved) == (mesh != (1, 1, 1))  # the parser finds them
    wide = [size for size in moved if size % PRIME == 0]
    shard = WIDTH * HEADS * NEURONS // (mesh[1] * mesh[2])
    assert sum(wide) == (3 * shard if mesh[0] > 1 else 0)
    assert all(size <= shard for size in wide)


def test_whole_heads_leave_nothing_of_a_head_to_sum():
    """With heads split and two of them on a shard, what crosses the mesh in a layer is D wide, a scalar a token, or a gradient.

    Of 16 examples a shard has 8. A read [B, H, T, D] of both heads would be twice as large as y.
    """
    config = experiment(2, 2)
    mesh = make_mesh(config.mesh)
    model, optimizer = BDH(config.model, mesh), make_optimizer(config.optimizer, STEPS)
    step = make_train_step(model, optimizer, setup_of(config), mesh)
    state = init_state(model, optimizer, mesh, jax.random.key(0))
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    program = step.lower(state, put_batch(batch(0), mesh), key).compile(OPTIMISED).as_text()
    shapes = collective_shapes(program)
    y, read = BATCH // 2 * LENGTH * WIDTH, BATCH // 2 * 2 * LENGTH * WIDTH
    activations = [math.prod(shape) for shape in shapes if math.prod(shape) % (BATCH // 2 * LENGTH) == 0]
    assert y in activations
    assert read not in activations
    assert set(activations) <= {y, y // WIDTH}
    # y forward, and the gradient of the layer's input backward; nothing else that is D wide.
    assert activations.count(y) <= 2 * LAYERS
    neurons = [math.prod(shape) for shape in collective_shapes(trained(2, 2, 2)[3])]
    assert read in neurons  # within a head, where the axis of heads is too short


def collective_shapes(program: str) -> list[tuple[int, ...]]:
    """Shapes of all results of all collectives of a compiled program, also of those grouped into tuples or run asynchronously.

    A collective between groups of one device each moves nothing and is left out.
    """
    names = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast|ragged-all-to-all"
    shapes = []
    # What an asynchronous wrapper calls is written out as a computation of its own, so it is found there.
    for results, rest in re.findall(rf"= (.*?) (?:{names})(?:-start)?\((.*)", program):
        if not re.search(r"replica_groups=(\{(\{\d+\},?)+\}|\[\d+,1\]<=)", rest) and not _over_axes_of_length_one(rest):
            shapes += [tuple(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([\d,]*)\]", results)]
    return shapes


def _over_axes_of_length_one(rest: str) -> bool:
    """Newer versions write the groups as a mesh and the axes of it that a collective goes over."""
    found = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest)
    if found is None:
        return False
    lengths = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return all(lengths[axis] == "1" for axis in re.findall(r"'(\w+)'", found[2]))


def test_the_parser_sees_gathers_grouped_and_asynchronous_collectives():
    mesh = make_mesh(MeshConfig(data=1, neurons=8))
    spread, whole = NamedSharding(mesh, P("neurons")), replicated(mesh)
    gather = jax.jit(lambda x: x * 2, in_shardings=spread, out_shardings=whole)
    assert (NEURONS, 3) in collective_shapes(gather.lower(jnp.zeros((NEURONS, 3))).compile().as_text())
    lines = """
      %a = (f32[4,22]{1,0}, f32[3]{0}) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1},{2,3}}
      ROOT %b = ((f32[5]{0}), f32[40]{0}) all-gather-start(%z), dimensions={0}, replica_groups=[2,4]<=[8]
      %c = f32[7]{0} all-reduce-done(%d)
      %e = f32[9]{0} add(%f, %g)
      %h = f32[11]{0} all-reduce(%i), channel_id=2, replica_groups={{0},{1},{2}}, to_apply=%j
      %k = f32[12]{0} all-reduce(%l), channel_id=3, replica_groups=[8,1]<=[8], to_apply=%j
      %o = f32[14]{0} all-reduce(%p), channel_id=5, replica_groups=mesh['data'=1,'neurons'=8] {'data'}, to_apply=%j
      %q = f32[15]{0} all-reduce(%r), channel_id=6, replica_groups=mesh['data'=2,'neurons'=4] {'data','neurons'}, to_apply=%j
      %m = f32[13]{0} all-reduce(%n), channel_id=4, replica_groups={}, to_apply=%j
    """
    assert collective_shapes(lines) == [(4, 22), (3,), (5,), (40,), (15,), (13,)]


FORMS = {
    "parallel": {"implementation": "parallel", "n_layer": 2},
    "chunked": {"implementation": "chunked"},
    "shared": {"scope": "shared", "n_layer": 2},  # token by token
    "shift": {"attention": "shift", "address_norm": "sum"},
    # What these predict is a sum over the rows of all shards.
    "longhorn": {
        "implementation": "chunked",
        "rule": "longhorn",
        "learning_rate": 0.5,
        "address_norm": "none",
    },
    "gated delta": {"implementation": "recurrent", "rule": "gated_delta", "address_norm": "centred"},
    "oja": {"implementation": "parallel", "rule": "oja", "address_norm": "kwta", "address_active": 30},
}

LONG = ("chunked", "shift", "gated delta", "oja")
"""In `make test-full` only: what they say of a mesh the others say, too, but for their own rules, which the contract holds."""


@pytest.mark.parametrize(
    "form", [pytest.param(form, id=name, marks=[pytest.mark.full] if name in LONG else []) for name, form in FORMS.items()]
)
def test_every_form_gives_the_same_on_a_mesh(form):
    """Logits, final state, its batch mean, what ``collect`` returns, gradients; and every leaf of the state lies in shards."""
    fast_names = {field.name for field in dataclasses.fields(FastWeightConfig)}
    config = dataclasses.replace(
        experiment().model,
        dropout=0.0,
        chunk_size=4,
        fast=FastWeightConfig(synapse=True, **{k: v for k, v in form.items() if k in fast_names}),
        **{k: v for k, v in form.items() if k not in fast_names},
    )
    mesh = make_mesh(MeshConfig(data=2, heads=2, neurons=2))
    data = batch(0)

    def run(slow, fast, mesh):
        options = {"valid": data.valid, "reset": data.reset}
        out = BDH(config, mesh).apply({"params": slow}, data.tokens, fast, collect=("code", "gate", "address"), **options)
        mean = BDH(config, mesh).apply({"params": slow}, data.tokens, fast, state="mean", **options)

        def cost(slow):
            return jnp.mean(
                jnp.square(BDH(config, mesh).apply({"params": slow}, data.tokens, fast, state="none", **options).logits)
            )

        return out, mean.fast, jax.grad(cost)(slow)

    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(BDH(config).init_slow, jax.random.key(0))
    slow = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    fast = jax.tree.map(
        lambda leaf: (
            jnp.asarray(3 + np.arange(BATCH), leaf.dtype)
            if leaf.ndim == 1
            else jnp.asarray(0.1 * np.abs(rng.normal(size=leaf.shape)), leaf.dtype)
        ),
        jax.eval_shape(lambda: BDH(config).init_fast(BATCH)),
    )
    jitted = jax.jit(run, static_argnums=2)
    expected = jitted(slow, fast, None)
    declared = BDH(config).declared_slow(), BDH(config).declared_fast(BATCH)
    placed = (jax.device_put(t, sharding.shardings(d, mesh)) for t, d in zip((slow, fast), declared, strict=True))
    got = jitted(*placed, mesh)
    for (path, have), (_, want) in zip(*map(jax.tree_util.tree_leaves_with_path, (got, expected)), strict=True):
        # Sums of K = 352 float32 terms, normalised a few times.
        scale = 1e-3 + np.abs(want).max()
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-5 * scale, err_msg=jax.tree_util.keystr(path))

    out, *_ = got
    rows = (BATCH // 2, HEADS // 2, NEURONS // 2)
    layer = out.fast.layers[0]
    memory = (layer.memory or out.fast.shared).written.S
    assert layer.attention.addressable_shards[0].data.shape == memory.addressable_shards[0].data.shape == (*rows, WIDTH)
    assert layer.use.strength.addressable_shards[0].data.shape == rows
    assert layer.use.energy.addressable_shards[0].data.shape == rows
    assert layer.previous_address.addressable_shards[0].data.shape == rows
    assert out.fast.position.addressable_shards[0].data.shape == (BATCH // 2,)
    if config.attention == "shift":
        assert layer.previous_code.addressable_shards[0].data.shape == rows


def test_no_collective_of_generation_moves_neurons():
    """One token with its state, on a mesh of neurons only: no array as wide as the neurons leaves its shard."""
    config = dataclasses.replace(experiment().model, dropout=0.0)
    mesh = make_mesh(MeshConfig(data=1, heads=2, neurons=4))
    model = BDH(config, mesh)

    def abstract(declared):
        return jax.tree.map(
            lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
            declared,
            sharding.shardings(declared, mesh),
            is_leaf=sharding.is_leaf,
        )

    slow, fast = abstract(model.declared_slow()), abstract(model.declared_fast(1))
    step = jax.jit(lambda slow, fast, token: model.apply({"params": slow}, token, fast))
    program = step.lower(slow, fast, jax.ShapeDtypeStruct((1, 1), jnp.int32)).compile(OPTIMISED).as_text()
    moved = [math.prod(shape) for shape in collective_shapes(program)]
    assert moved
    assert not [size for size in moved if size % PRIME == 0]


@pytest.mark.parametrize(("attention", "rule"), [("rope", "hebbian"), ("shift", "gated_delta"), ("rope", "mesa")])
def test_declarations_are_what_the_model_makes(attention, rule):
    """Every weight and every leaf of a state is declared with axes of the lengths that it has."""
    rates = {} if rule != "mesa" else {"learn_learning_rate": False, "learn_decay": False}
    fast_config = dataclasses.replace(experiment().model.fast, rule=rule, **rates)
    model = BDH(dataclasses.replace(experiment().model, attention=attention, fast=fast_config))
    lengths = {"neuron": NEURONS, "model": WIDTH, "head": HEADS, "vocab": VOCAB, "layer": LAYERS, "batch": 2}
    lengths["row"] = HEADS * NEURONS
    made = jax.eval_shape(model.init_slow, jax.random.key(0)), jax.eval_shape(lambda: model.init_fast(2))
    for declared, tree in zip((model.declared_slow(), model.declared_fast(2)), made, strict=True):
        leaves = jax.tree.leaves(declared, is_leaf=sharding.is_leaf)
        for leaf, array in zip(leaves, jax.tree.leaves(tree), strict=True):
            assert leaf.shape == array.shape == tuple(lengths[axis] for axis in leaf.axes)
            assert leaf.dtype == array.dtype


def test_rules_that_solve_for_all_rows_refuse_to_split_them():
    config = dataclasses.replace(experiment().model, fast=FastWeightConfig(rule="mesa"))
    model = BDH(config, make_mesh(MeshConfig(data=1, neurons=2)))
    with pytest.raises(ConfigError, match="mesh.heads=1 and mesh.neurons=2 split the rows that model.fast.rule='mesa'"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    with pytest.raises(ConfigError, match="mesh.heads=1 and mesh.neurons=2 split the rows that model.fast.rule='mesa'"):
        ExperimentConfig(model=config, mesh=MeshConfig(neurons=2))


def test_rotary_pairs_are_not_split():
    config = dataclasses.replace(experiment().model, n_head=2, n_neurons=12)
    model = BDH(config, make_mesh(MeshConfig(data=1, neurons=2)))
    with pytest.raises(ConfigError, match="mesh.neurons=2 does not divide the 6 neurons of a head .* into even parts"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    with pytest.raises(ConfigError, match="mesh.neurons=2 does not divide the 6 neurons of a head .* into even parts"):
        ExperimentConfig(model=config, mesh=MeshConfig(neurons=2))
    ExperimentConfig(model=dataclasses.replace(config, attention="shift"), mesh=MeshConfig(neurons=2))


def test_heads_are_split_whole():
    config = dataclasses.replace(experiment().model, n_head=2, n_neurons=48)
    with pytest.raises(ConfigError, match="mesh.heads=4 does not divide the heads of model.n_head=2"):
        ExperimentConfig(model=config, mesh=MeshConfig(heads=4))
    with pytest.raises(ConfigError, match="mesh.sequence=0 must be at least 1"):
        MeshConfig(sequence=0)


def test_arrays_lie_where_their_axes_say():
    """Whatever an array is called: a leaf of a user's own that has a known name is not laid out as another's."""
    mesh = make_mesh(MeshConfig(data=2, heads=2, neurons=2))
    declared = {
        "decoder": sharding.Leaf(("vocab", "model"), (4, 3), jnp.float32),
        "rows": sharding.Leaf(("batch", "head", "neuron"), (4, 2, 4), jnp.float32),
    }
    assert sharding.specs(declared, mesh) == {"decoder": P(None, None), "rows": P("data", "heads", "neurons")}
    assert sharding.specs(declared, mesh, batched=False)["rows"] == P(None, "heads", "neurons")
    # An axis of length one splits nothing.
    assert sharding.specs(declared, make_mesh(MeshConfig(heads=2)))["rows"] == P(None, "heads", None)
    with pytest.raises(ConfigError, match="the axis 'feature', which is not one of batch, head"):
        sharding.spec_of(("feature",), mesh)


def test_make_mesh_takes_what_it_is_asked_for():
    mesh = make_mesh(MeshConfig(data=-1, neurons=2))
    assert mesh.shape == {"data": len(jax.devices()) // 2, "sequence": 1, "heads": 1, "neurons": 2}
    assert make_mesh(MeshConfig()).size == 1
    with pytest.raises(
        ConfigError,
        match=r"mesh.data=3 × mesh.sequence=1 × mesh.heads=1 × mesh.neurons=4 needs 12 devices, but there are 8 \(cpu\)",
    ):
        make_mesh(MeshConfig(data=3, neurons=4))
    with pytest.raises(
        ConfigError, match=r"mesh.data=-1 × mesh.sequence=1 × mesh.heads=1 × mesh.neurons=16 needs 16 devices"
    ):
        make_mesh(MeshConfig(data=-1, neurons=16))
