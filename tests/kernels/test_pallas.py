"""The Pallas kernel: the same function as the XLA chunked form, and lowered for TPU without having one."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from bdh_jax.config import ConfigError
from bdh_jax.kernels import fast_weight_scan
from bdh_jax.kernels.fast_weight_scan import pallas, xla
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Stretch, Wanted

BATCH, HEADS, LENGTH, NEURONS, WIDTH = 2, 2, 37, 24, 10


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# Every two of the three in every combination.
@pytest.mark.parametrize(
    ("masked", "sum_heads", "with_state"),
    [(False, False, False), (False, True, True), (True, False, True), (True, True, False)],
)
def test_values_and_gradients_are_those_of_the_chunked_form(float64, masked, sum_heads, with_state):
    inputs = {
        "query": _normal(0, BATCH, HEADS, LENGTH, NEURONS),
        "key": _normal(1, BATCH, HEADS, LENGTH, NEURONS),
        "value": _normal(2, BATCH, LENGTH, WIDTH),
        "learning_rate": jnp.array([0.5, 1.5]),
        "decay": jnp.array([0.9, 0.7]),
    }
    if with_state:
        inputs["state"] = _normal(3, BATCH, HEADS, NEURONS, WIDTH)
    masks = {}
    if masked:
        masks = {
            "valid": jax.random.bernoulli(jax.random.key(5), 0.7, (BATCH, LENGTH)),
            "reset": jax.random.bernoulli(jax.random.key(6), 0.15, (BATCH, LENGTH)),
        }

    def run(implementation):
        def loss(inputs):
            read, state = fast_weight_scan(
                **inputs, **masks, implementation=implementation, chunk_size=16, sum_heads=sum_heads
            )
            return jnp.sum(jnp.sin(read)) + jnp.sum(jnp.cos(state)), (read, state)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)

    expected, found = run("chunked"), run("pallas_interpret")
    # Sums of some hundred terms of order one in float64: 1e-13 of rounding in values, a little more in gradients.
    chex.assert_trees_all_close(expected, found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("room", "columns", "groups"),
    [(2**25, 256, 1), (4 * 384 * 128, 128, 1), (4 * 128 * 128, 128, 3)],
    ids=["whole", "parts of D", "parts of D and groups of neurons"],
)
def test_a_state_too_large_for_vmem_is_cut(float64, monkeypatch, room, columns, groups):
    monkeypatch.setattr(pallas, "VMEM_FOR_STATE", room)
    monkeypatch.setattr(pallas, "_TILES", (128,))
    length, neurons, width = 40, 300, 200
    assert pallas._shape(length, neurons, width, 16)[2:4] == (columns, groups)
    arrays = (_normal(0, 2, length, neurons), _normal(1, 2, length, neurons), _normal(2, 2, length, width))
    query, key, value = (array[:, None] for array in arrays)
    state = _normal(3, 2, 1, neurons, width)
    reset = jnp.zeros((2, length), bool).at[0, 20].set(True)
    stretch, wanted = Stretch(query, key, value, reset=reset), Wanted("full", False)
    expected = jax.jit(lambda *a: xla.chunked(*a, Dynamics(1.0, 0.9), wanted, 16))(stretch, state)
    found = jax.jit(lambda *a: pallas.chunked(*a, 0.9, wanted, 16, interpret=True))(stretch, state)
    chex.assert_trees_all_close(expected, found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_tpus(dtype):
    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype)

    arguments = (
        shape(2, 2, 250, 500),
        shape(2, 2, 250, 500),
        shape(2, 1, 250, 64),
        shape(2, 2, 500, 64, dtype=jnp.float32),
        shape(2, dtype=jnp.float32),
        shape(2, 250, dtype=bool),
        shape(2, 250, dtype=bool),
    )

    def scan(query, key, value, state, decay, valid, reset):
        stretch, wanted = Stretch(query, key, value, valid=valid, reset=reset), Wanted("full", False)
        return pallas.chunked(stretch, state, decay, wanted, 128, interpret=False)

    device = AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=device)
    with use_abstract_mesh(mesh):
        traced = jax.jit(scan).trace(*arguments)
        program = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in program


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="this machine has a TPU, where the kernel compiles")
def test_an_explicit_kernel_that_cannot_run_here_says_why():
    arrays = (jnp.ones((1, 4, 8)), jnp.ones((1, 4, 8)), jnp.ones((1, 4, 4)))
    with pytest.raises(ConfigError, match="needs a TPU, and this machine has"):
        fast_weight_scan(*arrays, implementation="pallas")
