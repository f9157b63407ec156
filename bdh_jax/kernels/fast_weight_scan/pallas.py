"""Pallas form of the scan: one program keeps a tile of S on chip and walks over the chunks.

Each program owns a tile [n, d] of one head's S, so S never travels to memory between chunks:

    read   = (coefficients ⊙ q_tile k_tileᵀ) @ x + λ^n (q_tile @ S_tile)
    S_tile = λ^n S_tile + k_tileᵀ @ (coefficients ⊙ x)

Reads are linear in the neurons: each tile of neurons writes its part, and the parts are summed outside. Decay, validity and
resets enter only as the coefficients of ``stretch.coefficients``, made outside from [B, T] masks.

On GPU (Triton) a program loops over the chunks with its tile in registers; on TPU (Mosaic) the chunks are the last, sequential
axis of the grid and the tile is in VMEM. Products follow ``jax.default_matmul_precision``, as those of XLA do. The backward
pass is that of the XLA form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

from bdh_jax.config import ConfigError
from bdh_jax.kernels.fast_weight_scan import xla
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Final, Rate, Stretch, Wanted
from bdh_jax.kernels.fast_weight_scan.stretch import coefficients, safe_log

Platform = Literal["gpu", "tpu"]


def chunked(
    stretch: Stretch,
    state: jax.Array | None,
    decay: Rate,
    wanted: Wanted,
    chunk_size: int,
    *,
    interpret: bool,
    platform: Platform | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """The scan as a Pallas kernel; arguments and results as in :func:`xla.parallel`, η and β in keys or values already.

    Args:
      decay: λ, a scalar or [H].
      chunk_size: wanted tokens per chunk; the kernel takes the nearest size that its hardware multiplies well.
      interpret: run the kernel's interpreter, on any machine.
      platform: which of the two kernels to use; None means that of this machine ("gpu" when interpreted).

    Raises:
      ConfigError: if the kernel is to be compiled for a machine without GPU or TPU, or in float64 for a TPU.
    """
    if platform is None:
        platform = "gpu" if interpret else _platform()
    if platform == "tpu" and not interpret and stretch.query.dtype == jnp.float64:
        raise ConfigError('kernel="pallas" has no float64 on TPU; use kernel="xla" or dtype="float32"')
    decays = not (isinstance(decay, float) and decay == 1.0)
    options = _Options(wanted.final, wanted.sum_heads, chunk_size, interpret, platform)
    rows = stretch.query, stretch.key, stretch.value
    return _scan(options, *rows, state, jnp.asarray(decay) if decays else None, stretch.valid, stretch.reset)


class _Options(NamedTuple):
    final: Final
    sum_heads: bool
    chunk_size: int
    interpret: bool
    platform: Platform


def _platform() -> Platform:
    backend = jax.default_backend()
    if backend not in ("gpu", "tpu"):
        raise ConfigError(
            f'kernel="pallas" needs a GPU or TPU, and this machine has {backend}; use kernel="xla", or '
            'kernel="pallas_interpret" to run the kernel in its interpreter'
        )
    return backend


_Array = jax.Array | None
_Result = tuple[jax.Array, jax.Array | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(
    options: _Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: _Array,
    decay: _Array,
    valid: _Array,
    reset: _Array,
) -> _Result:
    read, next_state = _run(options, query, key, value, state, decay, valid, reset)
    if options.final == "mean":
        # One product for the whole batch, without S per example.
        stretch = Stretch(query, key, value, None, valid, reset)
        next_state = xla.mean_state(stretch, state, Dynamics(1.0, 1.0 if decay is None else decay))
    return read, next_state


def _scan_forward(options: _Options, *arguments: _Array) -> tuple[_Result, tuple[_Array, ...]]:
    return _scan(options, *arguments), arguments


def _scan_backward(options: _Options, arguments: tuple[_Array, ...], cotangents: _Result) -> tuple[_Array, ...]:
    *differentiable, valid, reset = arguments

    def scan(query: jax.Array, key: jax.Array, value: jax.Array, state: _Array, decay: _Array) -> _Result:
        stretch = Stretch(query, key, value, None, valid, reset)
        dynamics = Dynamics(1.0, 1.0 if decay is None else decay)
        return xla.chunked(stretch, state, dynamics, Wanted(options.final, options.sum_heads), options.chunk_size)

    _, transpose = jax.vjp(scan, *differentiable)
    return (*transpose(cotangents), None, None)


_scan.defvjp(_scan_forward, _scan_backward)


class _Shape(NamedTuple):
    """Tile sizes, each padded dimension a multiple of its tile."""

    chunk: int
    rows: int  # neurons of a tile of S
    columns: int  # of D in a tile of S
    length: int
    neurons: int
    width: int


def _shape(platform: Platform, length: int, neurons: int, width: int, chunk_size: int, item_size: int) -> _Shape:
    if platform == "gpu":
        # Powers of two of at least 16, as Triton's products want; the largest that leave a program's operands (in shared
        # memory) and its tile of S (in registers) room on any GPU of the last years.
        chunk = _power_of_two(min(chunk_size, length), largest={2: 64, 4: 32}.get(item_size, 16))
        rows = _power_of_two(neurons, largest=64 if item_size < 8 else 32)
        columns = _power_of_two(width, largest=128 if item_size < 8 else 32)
    else:
        # Blocks of whole (16, 128) tiles: the smallest that hold both float32 and bfloat16.
        chunk = min(_round_up(chunk_size, 16), _round_up(length, 16), 256)
        rows = _largest_divisor(_round_up(neurons, 128), (512, 384, 256, 128))
        columns = _largest_divisor(_round_up(width, 128), (512, 384, 256, 128))
    return _Shape(chunk, rows, columns, _round_up(length, chunk), _round_up(neurons, rows), _round_up(width, columns))


def _power_of_two(size: int, *, largest: int) -> int:
    return max(16, min(largest, pl.next_power_of_2(size)))


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _largest_divisor(size: int, candidates: tuple[int, ...]) -> int:
    return next(candidate for candidate in candidates if size % candidate == 0)


def _run(
    options: _Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: _Array,
    decay: _Array,
    valid: _Array,
    reset: _Array,
) -> _Result:
    batch, heads, length, neurons = query.shape
    width = value.shape[-1]
    dtype = jnp.promote_types(jnp.float32, query.dtype)
    shape = _shape(options.platform, length, neurons, width, options.chunk_size, query.dtype.itemsize)
    found = _of_chunks(shape, length, dtype, decay, valid, reset)

    query, key = (_pad(_pad(a, shape.length, -2), shape.neurons, -1) for a in (query, key))
    query, key = (a.reshape(batch * heads, shape.length, shape.neurons) for a in (query, key))
    value = _pad(_pad(value[:, 0], shape.length, -2), shape.width, -1)
    arrays = [query, key, value, *found]
    if state is not None:
        state = _pad(_pad(state, shape.neurons, -2), shape.width, -1).astype(dtype)
        arrays.append(state.reshape(batch * heads, shape.neurons, shape.width))
    arrays, varying = _vary_together(arrays)

    tiles = (shape.neurons // shape.rows, shape.width // shape.columns)
    outputs = [jax.ShapeDtypeStruct((batch * heads, tiles[0], shape.length, shape.width), dtype, **varying)]
    if options.final == "full":
        outputs.append(jax.ShapeDtypeStruct((batch * heads, shape.neurons, shape.width), dtype, **varying))
    build = _gpu_call if options.platform == "gpu" else _tpu_call
    call = build(shape, heads, arrays, outputs, has_state=state is not None, interpret=options.interpret)
    read, *next_state = call(*arrays)

    read = read.reshape(batch, heads, tiles[0], shape.length, shape.width)[..., :length, :width]
    read = jnp.sum(read, axis=(1, 2) if options.sum_heads else 2).reshape(batch, -1, length, width)
    if not next_state:
        return read, None
    return read, next_state[0].reshape(batch, heads, shape.neurons, shape.width)[:, :, :neurons, :width]


def _of_chunks(shape: _Shape, length: int, dtype: Any, decay: _Array, valid: _Array, reset: _Array) -> list[jax.Array]:
    """The coefficients of every chunk: scores [B', chunks', H', C, C], initial and written [..., C, 1], kept [..., 1, 1].

    Primed axes have length 1 where nothing depends on them. Padded tokens are invalid.
    """
    log_decay = jnp.zeros((1,), dtype) if decay is None else safe_log(decay.astype(dtype)).reshape(-1)
    if valid is None and reset is None and shape.length == length:
        valid = jnp.ones((1, 1, shape.chunk), bool)
    else:
        valid = jnp.ones((1, length), bool) if valid is None else valid
        rows = valid.shape[0] if reset is None else reset.shape[0]
        valid, reset = (
            None if mask is None else _pad(mask, shape.length, axis=1).reshape(mask.shape[0], -1, shape.chunk)
            for mask in (jnp.broadcast_to(valid, (rows, length)), reset)
        )

    def of_chunk(rate: jax.Array, valid: _Array, reset: _Array) -> list[jax.Array]:
        scores, initial, written, kept = coefficients(shape.chunk, dtype, rate, valid, reset)
        return [scores, initial[:, None], written[:, None], kept[None, None]]

    over_heads = jax.vmap(of_chunk, (0, None, None))
    return jax.vmap(jax.vmap(over_heads, (None, 0, 0)), (None, 0, 0))(log_decay, valid, reset)


def _pad(array: jax.Array, size: int, axis: int) -> jax.Array:
    """Zeros (or False) after the end of ``axis`` up to ``size``."""
    missing = size - array.shape[axis]
    return jnp.pad(array, [(0, missing if i == axis % array.ndim else 0) for i in range(array.ndim)]) if missing else array


def _vary_together(arrays: list[jax.Array]) -> tuple[list[jax.Array], dict[str, Any]]:
    """Inside ``jax.shard_map``, arrays that vary over the same mesh axes, and what the types of the outputs say about that."""
    axes = frozenset().union(*(jax.typeof(a).manual_axis_type.varying for a in arrays))
    if not axes:
        return arrays, {}
    missing = [tuple(axes - jax.typeof(a).manual_axis_type.varying) for a in arrays]
    arrays = [jax.lax.pcast(a, axes, to="varying") if axes else a for a, axes in zip(arrays, missing, strict=True)]
    return arrays, {"manual_axis_type": jax.typeof(arrays[0]).manual_axis_type}


def _chunk(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: jax.Array,
    initial: jax.Array,
    written: jax.Array,
    kept: jax.Array,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One chunk against one tile: query, key [C, n]; value [C, d]; state [n, d]. Returns its part of the read and the state."""

    def dot(a: jax.Array, b: jax.Array, contract: tuple[tuple[int], tuple[int]]) -> jax.Array:
        return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=state.dtype)

    scores = dot(query, key, ((1,), (1,))) * causal
    read = dot(scores.astype(value.dtype), value, ((1,), (0,)))
    read = read + initial * dot(query.astype(state.dtype), state, ((1,), (0,)))
    return read, kept * state + dot(key, (written * value).astype(key.dtype), ((0,), (0,)))


def _unpack(refs: tuple[Any, ...], has_state: bool, writes: bool) -> tuple[Any, Any, Any, Any]:
    """The kernel's arguments after query, key and value: four coefficients, the first state if any; the read, the last state if any."""
    first = refs[4] if has_state else None
    last = refs[5 + has_state] if writes else None
    return refs[:4], first, refs[4 + has_state], last


def _gpu_call(
    shape: _Shape, heads: int, arrays: list[jax.Array], outputs: list[Any], *, has_state: bool, interpret: bool
) -> Callable[..., list[jax.Array]]:
    """Grid: heads of all examples × tiles of N × tiles of D. Every program sees the whole sequence of its tile."""
    count = shape.length // shape.chunk

    def kernel(query: Any, key: Any, value: Any, *refs: Any) -> None:
        found, first, read, last = _unpack(refs, has_state, len(outputs) > 1)

        def body(index: jax.Array, state: jax.Array) -> jax.Array:
            here = pl.ds(index * shape.chunk, shape.chunk)
            here_found = [ref[index if ref.shape[0] > 1 else 0] for ref in found]
            read[here, :], state = _chunk(query[here, :], key[here, :], value[here, :], *here_found, state)
            return state

        state = jnp.zeros((shape.rows, shape.columns), read.dtype) if first is None else first[...]
        state = jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), body, state)
        if last is not None:
            last[...] = state

    def found_spec(array: jax.Array) -> pl.BlockSpec:
        example, _, head = (size > 1 for size in array.shape[:3])

        def index(i: Any, n: Any, d: Any) -> tuple[Any, ...]:
            return i // heads if example else 0, 0, i % heads if head else 0, 0, 0

        return pl.BlockSpec((None, array.shape[1], None, *array.shape[3:]), index)

    rows = pl.BlockSpec((None, shape.length, shape.rows), lambda i, n, d: (i, 0, n))
    tile = pl.BlockSpec((None, shape.rows, shape.columns), lambda i, n, d: (i, n, d))
    return pl.pallas_call(
        kernel,
        grid=(arrays[0].shape[0], shape.neurons // shape.rows, shape.width // shape.columns),
        in_specs=[
            rows,
            rows,
            pl.BlockSpec((None, shape.length, shape.columns), lambda i, n, d: (i // heads, 0, d)),
            *map(found_spec, arrays[3:7]),
            *[tile] * has_state,
        ],
        out_specs=[
            pl.BlockSpec((None, None, shape.length, shape.columns), lambda i, n, d: (i, n, 0, d)),
            *[tile] * (len(outputs) - 1),
        ],
        out_shape=outputs,
        compiler_params=pltriton.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name="fast_weight_scan",
    )


def _tpu_call(
    shape: _Shape, heads: int, arrays: list[jax.Array], outputs: list[Any], *, has_state: bool, interpret: bool
) -> Callable[..., list[jax.Array]]:
    """Grid: heads of all examples × tiles of N × tiles of D × chunks, the last one in order with S in VMEM."""
    count = shape.length // shape.chunk

    def kernel(query: Any, key: Any, value: Any, *refs: Any) -> None:
        *refs, state = refs
        found, first, read, last = _unpack(refs, has_state, len(outputs) > 1)
        index = pl.program_id(3)

        @pl.when(index == 0)
        def _() -> None:
            state[...] = jnp.zeros(state.shape, state.dtype) if first is None else first[...]

        read[...], state[...] = _chunk(query[...], key[...], value[...], *(ref[...] for ref in found), state[...])
        if last is not None:

            @pl.when(index == count - 1)
            def _() -> None:
                last[...] = state[...]

    def found_spec(array: jax.Array) -> pl.BlockSpec:
        example, chunk, head = (size > 1 for size in array.shape[:3])

        def index(i: Any, n: Any, d: Any, c: Any) -> tuple[Any, ...]:
            return i // heads if example else 0, c if chunk else 0, i % heads if head else 0, 0, 0

        return pl.BlockSpec((None, None, None, *array.shape[3:]), index)

    rows = pl.BlockSpec((None, shape.chunk, shape.rows), lambda i, n, d, c: (i, c, n))
    tile = pl.BlockSpec((None, shape.rows, shape.columns), lambda i, n, d, c: (i, n, d))
    return pl.pallas_call(
        kernel,
        grid=(arrays[0].shape[0], shape.neurons // shape.rows, shape.width // shape.columns, count),
        in_specs=[
            rows,
            rows,
            pl.BlockSpec((None, shape.chunk, shape.columns), lambda i, n, d, c: (i // heads, c, d)),
            *map(found_spec, arrays[3:7]),
            *[tile] * has_state,
        ],
        out_specs=[
            pl.BlockSpec((None, None, shape.chunk, shape.columns), lambda i, n, d, c: (i, n, c, d)),
            *[tile] * (len(outputs) - 1),
        ],
        out_shape=outputs,
        scratch_shapes=[pltpu.VMEM((shape.rows, shape.columns), outputs[0].dtype)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="fast_weight_scan",
    )
