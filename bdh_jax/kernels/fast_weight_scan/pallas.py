"""Pallas form of the scan, for TPUs: S of a head stays in VMEM from the first chunk to the last.

A program walks over the chunks of a head, and in each chunk over tiles of n neurons:

    scores += q_tile k_tileᵀ                                 once for all of D
    read   += λ^n (q_tile @ S_tile)
    S_tile  = λ^n S_tile + k_tileᵀ @ (coefficients ⊙ x)
    read   += (coefficients ⊙ scores) @ x                    after the last tile

so that q, k and x are read once, the read is written once, and S moves only at the beginning and the end. Where S of a head does not
fit, D is split, or the head into groups of neurons, whose reads are summed outside. Decay, validity and resets enter only as the
coefficients of ``stretch.coefficients``, made outside from [B, T] masks.

Products follow ``jax.default_matmul_precision``, as those of XLA do. The backward pass is that of the XLA form.

There is none for GPUs. S of a head is megabytes, and a multiprocessor holds 228 KB: it would have to be cut into tiles that each compute
all scores or each write a read of their own. The H100's compiler counts 268 MB of temporaries for such a kernel against 51 to 192 MB of
the XLA form, whose S stays in the L2 cache from chunk to chunk (T 512, K 32,768, D 256).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bdh_jax.config import ConfigError
from bdh_jax.kernels.fast_weight_scan import xla
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Final, Rate, Stretch, Wanted
from bdh_jax.kernels.fast_weight_scan.stretch import coefficients, safe_log

VMEM_FOR_STATE = 2**25
"""Bytes of VMEM that S may take: half of that of the smallest chip with more than 16 MB, which is a v5p."""
_TILES = (512, 384, 256, 128)
"""Neurons of a tile, the first that divides their number."""


def chunked(
    stretch: Stretch,
    state: jax.Array | None,
    decay: Rate,
    wanted: Wanted,
    chunk_size: int,
    *,
    interpret: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """The scan as a Pallas kernel; arguments and results as in :func:`xla.parallel`, η and β in keys or values already.

    Args:
      decay: λ, a scalar or [H].
      chunk_size: wanted tokens per chunk; the kernel takes the nearest size that its hardware multiplies well.
      interpret: run the kernel's interpreter, on any machine.

    Raises:
      ConfigError: if the kernel is to be compiled in float64, or by :func:`check_platform`.
    """
    if not interpret and stretch.query.dtype == jnp.float64:
        raise ConfigError('kernel="pallas" has no float64 on TPU; use kernel="xla" or dtype="float32"')
    decays = not (isinstance(decay, float) and decay == 1.0)
    options = _Options(wanted.final, wanted.sum_heads, chunk_size, interpret)
    rows = stretch.query, stretch.key, stretch.value
    return _scan(options, *rows, state, jnp.asarray(decay) if decays else None, stretch.valid, stretch.reset)


class _Options(NamedTuple):
    final: Final
    sum_heads: bool
    chunk_size: int
    interpret: bool


def check_platform() -> None:
    """Refuse a machine that the kernel is not for.

    Raises:
      ConfigError: if this machine has no TPU.
    """
    backend = jax.default_backend()
    if backend != "tpu":
        raise ConfigError(
            f'kernel="pallas" of this scan needs a TPU, and this machine has {backend}; use kernel="xla", or '
            'kernel="pallas_interpret" to run the kernel in its interpreter'
        )


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
    rows: int  # neurons of a tile
    columns: int  # of D that a program takes
    groups: int  # of a head's neurons
    length: int
    neurons: int
    width: int

    @property
    def tiles(self) -> int:
        """Of neurons, in a group."""
        return self.neurons // self.rows // self.groups

    @property
    def state_nbytes(self) -> int:
        """Of what a program keeps of S."""
        return self.neurons // self.groups * self.columns * 4


def _shape(length: int, neurons: int, width: int, chunk_size: int) -> _Shape:
    # Blocks of whole (16, 128) tiles: the smallest that hold both float32 and bfloat16.
    chunk = min(_round_up(chunk_size, 16), _round_up(length, 16), 256)
    rows = _largest_divisor(_round_up(neurons, 128), _TILES)
    width, neurons = _round_up(width, 128), _round_up(neurons, rows)
    per_row = VMEM_FOR_STATE // 4 // neurons // 128 * 128
    columns = _largest_divisor(width, tuple(range(min(max(per_row, 128), width), 0, -128)))
    groups = next(
        g for g in range(1, neurons // rows + 1) if neurons // rows % g == 0 and neurons // g * columns * 4 <= VMEM_FOR_STATE
    )
    return _Shape(chunk, rows, columns, groups, _round_up(length, chunk), neurons, width)


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
    shape = _shape(length, neurons, width, options.chunk_size)
    found = _of_chunks(shape, length, dtype, decay, valid, reset)

    query, key = (_pad(_pad(a, shape.length, -2), shape.neurons, -1) for a in (query, key))
    query, key = (a.reshape(batch * heads, shape.length, shape.neurons) for a in (query, key))
    value = _pad(_pad(value[:, 0], shape.length, -2), shape.width, -1)
    arrays = [query, key, value, *found]
    if state is not None:
        state = _pad(_pad(state, shape.neurons, -2), shape.width, -1).astype(dtype)
        arrays.append(state.reshape(batch * heads, shape.neurons, shape.width))
    arrays, varying = _vary_together(arrays)

    outputs = [jax.ShapeDtypeStruct((batch * heads * shape.groups, shape.length, shape.width), dtype, **varying)]
    if options.final == "full":
        outputs.append(jax.ShapeDtypeStruct((batch * heads, shape.neurons, shape.width), dtype, **varying))
    read, *next_state = _call(shape, heads, arrays, outputs, has_state=state is not None, interpret=options.interpret)(
        *arrays
    )

    read = read.reshape(batch, heads, shape.groups, shape.length, shape.width)[..., :length, :width]
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


def _call(
    shape: _Shape, heads: int, arrays: list[jax.Array], outputs: list[Any], *, has_state: bool, interpret: bool
) -> Callable[..., list[jax.Array]]:
    """Grid: groups of neurons of all heads × parts of D × chunks × tiles of neurons. The last two in order, with S in VMEM."""
    count, tiles, writes = shape.length // shape.chunk, shape.tiles, len(outputs) > 1

    def kernel(query: Any, key: Any, value: Any, *others: Any) -> None:
        *refs, state, scores = others
        found, first, read, last = (
            refs[:4],
            refs[4] if has_state else None,
            refs[4 + has_state],
            refs[5 + has_state] if writes else None,
        )
        causal, initial, written, kept = found
        chunk, tile = pl.program_id(2), pl.program_id(3)
        here = pl.ds(pl.multiple_of(tile * shape.rows, shape.rows), shape.rows)

        def dot(a: jax.Array, b: jax.Array, contract: tuple[tuple[int], tuple[int]]) -> jax.Array:
            return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=state.dtype)

        @pl.when(chunk == 0)
        def _() -> None:
            zeros = jnp.zeros((shape.rows, shape.columns), state.dtype)
            state[here, :] = zeros if first is None else first[...]

        @pl.when(tile == 0)
        def _() -> None:
            read[...] = jnp.zeros(read.shape, read.dtype)
            scores[...] = jnp.zeros(scores.shape, scores.dtype)

        before = state[here, :]
        scores[...] += dot(query[...], key[...], ((1,), (1,)))
        read[...] += initial[...] * dot(query[...].astype(state.dtype), before, ((1,), (0,)))
        after = kept[...] * before + dot(key[...], (written[...] * value[...]).astype(key.dtype), ((0,), (0,)))
        state[here, :] = after
        if last is not None:
            last[...] = after

        @pl.when(tile == tiles - 1)
        def _() -> None:
            read[...] += dot((scores[...] * causal[...]).astype(value.dtype), value[...], ((1,), (0,)))

    def found_spec(array: jax.Array) -> pl.BlockSpec:
        example, chunk, head = (size > 1 for size in array.shape[:3])

        def index(i: Any, d: Any, c: Any, n: Any) -> tuple[Any, ...]:
            of_head = i // shape.groups
            return of_head // heads if example else 0, c if chunk else 0, of_head % heads if head else 0, 0, 0

        return pl.BlockSpec((None, None, None, *array.shape[3:]), index)

    def tile_spec(chunk: int, otherwise: int) -> pl.BlockSpec:
        """A tile of S for each tile of one chunk. In the others it stays where it is, so that nothing moves."""

        def index(i: Any, d: Any, c: Any, n: Any) -> tuple[Any, ...]:
            return i // shape.groups, i % shape.groups * tiles + jnp.where(c == chunk, n, otherwise), d

        return pl.BlockSpec((None, shape.rows, shape.columns), index)

    rows = pl.BlockSpec(
        (None, shape.chunk, shape.rows), lambda i, d, c, n: (i // shape.groups, c, i % shape.groups * tiles + n)
    )
    blocks = 4 * (2 * shape.rows * (shape.chunk + 2 * shape.columns) + 2 * shape.chunk * (shape.columns + shape.chunk))
    return pl.pallas_call(
        kernel,
        grid=(arrays[0].shape[0] * shape.groups, shape.width // shape.columns, count, tiles),
        in_specs=[
            rows,
            rows,
            pl.BlockSpec((None, shape.chunk, shape.columns), lambda i, d, c, n: (i // shape.groups // heads, c, d)),
            *map(found_spec, arrays[3:7]),
            *[tile_spec(0, tiles - 1)] * has_state,
        ],
        out_specs=[
            pl.BlockSpec((None, shape.chunk, shape.columns), lambda i, d, c, n: (i, c, d)),
            *[tile_spec(count - 1, 0)] * writes,
        ],
        out_shape=outputs,
        scratch_shapes=[
            pltpu.VMEM((shape.neurons // shape.groups, shape.columns), outputs[0].dtype),
            pltpu.VMEM((shape.chunk, shape.chunk), outputs[0].dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=max(2**24, shape.state_nbytes + 4 * blocks),
        ),
        cost_estimate=_cost(shape, arrays, outputs),
        interpret=interpret,
        name="fast_weight_scan",
    )


def _cost(shape: _Shape, arrays: list[jax.Array], outputs: list[Any]) -> pl.CostEstimate:
    """What the products are and what moves: arrays once, queries and keys for every part of D."""
    parts, programs = shape.width // shape.columns, arrays[0].shape[0]
    per_token = shape.neurons * (2 * shape.width + parts * shape.chunk) + shape.chunk * shape.width
    moved = [array.size * array.dtype.itemsize for array in (*arrays, *outputs)]
    return pl.CostEstimate(
        flops=2 * programs * shape.length * per_token,
        transcendentals=0,
        bytes_accessed=sum(moved) + (parts - 1) * sum(moved[:2]) + (programs // arrays[2].shape[0] - 1) * moved[2],
    )
