"""The public operation, its argument checks, and the choice between its forms.

Axis letters: see :mod:`bdh_jax.types`; R rows.
"""

from __future__ import annotations

import typing
from typing import Literal

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.kernels.row_add import pallas_gpu, pallas_tpu
from bdh_jax.kernels.token_step.xla import active_rows

Form = Literal["auto", "xla", "pallas", "pallas_interpret"]
_KERNELS = {"gpu": pallas_gpu, "tpu": pallas_tpu}


def row_add(
    weights: jax.Array,
    change: jax.Array,
    chosen: jax.Array,
    rate: jax.Array | float = 1.0,
    *,
    count: int | None = None,
    implementation: Form = "auto",
) -> jax.Array:
    """W_i + rate · F_i at the chosen rows i, and W elsewhere; in place where W is donated.

    Only chosen rows have to move: those of W and F are read, those of W written, where W + rate·F reads and writes everything. XLA for
    CPUs sees that a row that is not chosen keeps what it has; for GPUs and TPUs it would write all of W, and the Pallas kernels do not.

    Args:
      weights: W, [..., D].
      change: F, of the same shape.
      chosen: [...] bool, which rows.
      rate: a scalar.
      count: how many are chosen at most; the rows after that many are not written by a kernel. None: unknown, which only "xla" can do.
      implementation: "xla"; "pallas", the compiled kernel (GPU or TPU, arrays that lie on one device); "pallas_interpret", that of a TPU
        interpreted anywhere; "auto", today "xla": the kernels have not run on an accelerator yet.

    Returns:
      [..., D] in the dtype of W.

    Raises:
      ValueError: for shapes that do not fit each other.
      ConfigError: for a form that does not exist or cannot run here.
    """
    if weights.ndim < 2 or change.shape != weights.shape or chosen.shape != weights.shape[:-1]:
        raise ValueError(
            f"weights {weights.shape}, change {change.shape} and chosen {chosen.shape} must be [..., D], [..., D] and [...]"
        )
    if implementation not in typing.get_args(Form):
        raise ConfigError(f"implementation={implementation!r} is not one of {', '.join(map(repr, typing.get_args(Form)))}")
    platform = jax.default_backend()
    if implementation == "auto":
        implementation = "xla"
    if implementation == "xla":
        # The sum is within the choice, not the choice within the sum: nothing has to be written where nothing is chosen.
        scaled = jnp.asarray(rate, change.dtype) * change
        return jnp.where(chosen[..., None], (weights + scaled.astype(weights.dtype)), weights)
    if count is None:
        raise ConfigError(f'implementation={implementation!r} needs count, how many rows are chosen at most; use "xla"')
    interpret = implementation == "pallas_interpret"
    if not interpret and platform not in _KERNELS:
        raise ConfigError(
            f'implementation="pallas" needs a GPU or TPU, and this machine has {platform}; use "xla", or "pallas_interpret" to run the '
            "kernel in its interpreter"
        )
    kernel = pallas_tpu if interpret else _KERNELS[platform]
    problem = kernel.problem(weights, change)
    if problem and not interpret:
        raise ConfigError(f'implementation="pallas": {problem}; use "xla"')
    rows = active_rows(chosen.reshape(-1), count).index
    flat, added = (array.reshape(-1, array.shape[-1]) for array in (weights, change))
    return kernel.row_add(flat, added, rows, rate, interpret=interpret).reshape(weights.shape)
