"""Chosen rows added in place: every form against NumPy, and the choice of rows against a sort."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bdh_jax.config import ConfigError
from bdh_jax.kernels.row_add import pallas_gpu, pallas_tpu, row_add
from bdh_jax.layers.largest import largest


def _arrays(*shape: int, dtype: jnp.dtype = jnp.float32) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    return tuple(jax.random.normal(key, shape, dtype) for key in keys)


def _chosen(shape: tuple[int, ...], count: int) -> jax.Array:
    """``count`` of all rows, the first and the last among them if there are two."""
    size = int(np.prod(shape))
    between = 1 + np.random.default_rng(0).permutation(size - 2)[: max(0, count - 2)]
    rows = np.concatenate([between, [0, size - 1][:count]]).astype(int)
    return jnp.zeros(size, bool).at[rows].set(True).reshape(shape)


@pytest.mark.parametrize("count", [0, 1, 2, 37, 130])
def test_every_form_writes_the_chosen_rows_and_no_other(count):
    weights, change = _arrays(2, 65, 128)
    chosen = _chosen((2, 65), count)
    expected = np.where(np.asarray(chosen)[..., None], np.asarray(weights) + 0.5 * np.asarray(change), np.asarray(weights))
    for form in ("auto", "xla", "pallas_interpret"):
        found = jax.jit(lambda w, f, form=form: row_add(w, f, chosen, 0.5, count=max(count, 1), implementation=form))(
            weights, change
        )
        np.testing.assert_array_equal(found, expected, err_msg=form)


@pytest.mark.parametrize("kernel", [pallas_tpu, pallas_gpu], ids=["tpu", "gpu"])
@pytest.mark.parametrize(("size", "width", "count"), [(1, 128, 1), (300, 128, 31), (300, 384, 257)])
def test_the_kernels_take_any_number_of_rows_and_pass_over_what_is_none(kernel, size, width, count):
    weights, change = _arrays(size, width)
    chosen = np.asarray(_chosen((size,), count)) if size > 1 else np.ones(1, bool)
    rows = np.concatenate([np.flatnonzero(chosen), [size, size]]).astype(np.int32)
    found = kernel.row_add(weights, change, jnp.asarray(rows), jnp.float32(2), interpret=True)
    np.testing.assert_array_equal(
        found, np.where(chosen[:, None], np.asarray(weights) + 2 * np.asarray(change), np.asarray(weights))
    )


def test_a_kernel_for_gpus_sums_in_float32():
    weights, change = (array.astype(jnp.bfloat16) for array in _arrays(40, 128))
    rows = jnp.arange(5, dtype=jnp.int32)
    found = pallas_gpu.row_add(weights, change, rows, 0.3, interpret=True)[:5]
    wide = weights[:5].astype(jnp.float32) + jnp.float32(0.3) * change[:5].astype(jnp.float32)
    np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("count", [1, 7, 99, 100])
def test_the_largest_are_those_of_top_k(dtype, count):
    with jax.enable_x64(dtype == jnp.float64):
        scores = jax.random.normal(jax.random.key(0), (3, 100), jnp.float32).astype(dtype)
        # Equal scores, none at all, and what is infinite.
        scores = jnp.stack(
            [jnp.round(scores[0] * 2), jnp.zeros((100,), dtype), scores[2].at[5:90].set(-jnp.inf).at[3].set(jnp.inf)]
        )
        _, index = jax.lax.top_k(scores, count)
        expected = np.zeros(scores.shape, bool)
        np.put_along_axis(expected, np.asarray(index), True, axis=1)
        np.testing.assert_array_equal(largest(scores, count), expected)


def test_the_largest_refuse_a_count_that_there_is_not():
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"count={count} must lie in"):
            largest(jnp.ones((2, 3)), count)


def test_on_a_mesh_no_row_moves_only_scores_and_counts():
    devices = np.asarray(jax.devices()[:8]).reshape(2, 4)
    mesh = jax.sharding.Mesh(devices, ("data", "rows"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = NamedSharding(mesh, P(None, "rows"))
    layers, rows, width = 2, 176, 11

    def consolidate(weights: jax.Array, change: jax.Array) -> jax.Array:
        chosen = largest(jnp.sum(jnp.square(change), axis=-1), 17)
        return row_add(weights, change, chosen, 0.5, count=layers * 17)

    matrix = jax.ShapeDtypeStruct((layers, rows, width), jnp.float32)
    jitted = jax.jit(consolidate, in_shardings=(split, split), out_shardings=split, donate_argnums=0)
    program = jitted.lower(matrix, matrix).compile().as_text()
    moved = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-\w+|collective-permute|reduce-scatter)(?:-start)?\(", program)
    assert moved
    assert max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in moved) <= layers * rows


def test_what_cannot_run_says_why():
    weights, change = _arrays(4, 100)
    chosen = jnp.ones((4,), bool)
    with pytest.raises(ValueError, match=r"weights \(4, 100\), change \(3, 100\)"):
        row_add(weights, change[:3], chosen)
    with pytest.raises(ConfigError, match="implementation='triton' is not one of"):
        row_add(weights, change, chosen, implementation="triton")
    with pytest.raises(ConfigError, match="needs count"):
        row_add(weights, change, chosen, implementation="pallas_interpret")
    assert "do not divide the D=100" in pallas_gpu.problem(weights, change)
    assert "only of float32" in pallas_tpu.problem(weights.astype(jnp.bfloat16), change)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="this machine has an accelerator, where the kernel compiles")
def test_a_kernel_that_cannot_run_here_says_why():
    weights, change = _arrays(4, 128)
    with pytest.raises(ConfigError, match="needs a GPU or TPU, and this machine has cpu"):
        row_add(weights, change, jnp.ones((4,), bool), count=4, implementation="pallas")
