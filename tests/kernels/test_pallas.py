"""The Pallas kernel: the same function as the XLA chunked form, and lowered for GPU and TPU without having one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
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
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), expected, found)


def test_the_kernel_for_tpus_computes_the_same(float64):
    arrays = (_normal(0, 2, LENGTH, NEURONS), _normal(1, 2, LENGTH, NEURONS), _normal(2, 2, LENGTH, WIDTH))
    query, key, value = (array[:, None] for array in arrays)
    reset = jnp.zeros((2, LENGTH), bool).at[0, 20].set(True)
    stretch, wanted = Stretch(query, key, value, reset=reset), Wanted("full", False)
    expected = jax.jit(lambda stretch: xla.chunked(stretch, None, Dynamics(1.0, 0.9), wanted, 16))(stretch)
    found = jax.jit(lambda stretch: pallas.chunked(stretch, None, 0.9, wanted, 16, interpret=True, platform="tpu"))(stretch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), expected, found)


@pytest.mark.parametrize(
    ("target", "kind", "cores", "mark"),
    [("gpu", "NVIDIA H100 80GB HBM3", None, "triton"), ("tpu", "TPU v5e", 1, "tpu_custom_call")],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_accelerators(target, kind, cores, mark, dtype):
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
        return pallas.chunked(stretch, state, decay, wanted, 128, interpret=False, platform=target)

    device = AbstractDevice(device_kind=kind, num_cores=cores, platform=target)
    mesh = AbstractMesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=device)
    with use_abstract_mesh(mesh):
        traced = jax.jit(scan).trace(*arguments)
        program = traced.lower(lowering_platforms=("cuda" if target == "gpu" else "tpu",)).as_text()
    assert mark in program


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="this machine has an accelerator, where the kernel compiles")
def test_an_explicit_kernel_that_cannot_run_here_says_why():
    arrays = (jnp.ones((1, 4, 8)), jnp.ones((1, 4, 8)), jnp.ones((1, 4, 4)))
    with pytest.raises(ConfigError, match="needs a GPU or TPU, and this machine has cpu"):
        fast_weight_scan(*arrays, implementation="pallas")
