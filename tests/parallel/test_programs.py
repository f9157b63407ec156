"""Collectives are read off a compiled program: kind, axes, bytes, and how often they run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from bdh_jax.parallel.programs import Collective, collectives, total

MESH = {"data": 2, "sequence": 1, "heads": 2, "neurons": 2}
LINES = {
    "%a = (f32[4,22]{1,0}, f32[3]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}": ("all-reduce", ("neurons",), 2, 4 * 91),
    "ROOT %b = ((bf16[5]{0}), bf16[40]{0}) all-gather-start(%z), replica_groups=[2,4]<=[8]": ("all-gather", ("heads", "neurons"), 4, 80),
    "%c = f32[6]{0} reduce-scatter(%z), replica_groups=[4,2]<=[2,4]T(1,0)": ("reduce-scatter", ("data",), 2, 48),
    "%d = (f32[9]{0}, f32[9]{0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,2},{4,6}}": (
        "collective-permute",
        ("heads",),
        2,
        36,
    ),
    "%e = f32[14]{0} all-reduce(%p), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}": ("all-reduce", ("data",), 2, 56),
    "%f = f32[14]{0} all-reduce(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}": ("all-reduce", ("data", "heads"), 4, 56),
    "%g = f32[13]{0} all-reduce(%n), replica_groups={}": ("all-reduce", ("data", "heads", "neurons"), 8, 52),
    "%h = f32[13]{0} all-reduce(%n), replica_groups={{0,3},{1,2},{4,7},{5,6}}": ("all-reduce", ("?",), 2, 52),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_collective_is_read(line):
    kind, axes, group, size = LINES[line]
    assert collectives(f"  {line}, to_apply=%j", MESH) == [Collective(kind, axes, group, size)]


@pytest.mark.parametrize(
    "line",
    [
        "%c = f32[7]{0} all-reduce-done(%d)",
        "%e = f32[9]{0} add(%f, %g)",
        "%h = f32[11]{0} all-reduce(%i), replica_groups={{0},{1},{2}}",
        "%k = f32[12]{0} all-reduce(%l), replica_groups=[8,1]<=[8]",
    ],
)
def test_what_moves_nothing_is_left_out(line):
    assert collectives(line, MESH) == []


def test_what_a_device_sends():
    assert Collective("all-reduce", ("data",), 4, 100).sent == 150
    assert Collective("all-gather", ("data",), 4, 100, times=3).sent == 225
    assert Collective("reduce-scatter", ("data",), 4, 100).sent == 75
    assert Collective("collective-permute", ("sequence",), 4, 100).sent == 100


def test_a_loop_counts_each_round():
    """Of a program that XLA compiled: a sum over an axis in every round of a scan, and one gather after it."""
    mesh = make_mesh(MeshConfig(data=2, heads=4))

    def body(x):
        def step(carry, _):
            return jax.lax.psum(jnp.sin(carry), "heads") * 0.1, None

        carry, _ = jax.lax.scan(step, x, None, length=5)
        return carry

    summed = jax.shard_map(body, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    program = jax.jit(
        lambda x: summed(x) + 1, in_shardings=NamedSharding(mesh, P("data")), out_shardings=replicated(mesh)
    ).lower(jnp.zeros((6, 7)))
    found = total(collectives(program.compile().as_text(), mesh.shape))
    assert found == {
        ("all-reduce", ("heads",)): 5 * 2 * (3 / 4) * 3 * 7 * 4,
        ("all-gather", ("data",)): (1 / 2) * 6 * 7 * 4,
    }
