"""Steps of one token by whatever version of this library is on the path: the other process of ``benchmarks/token_step.py --old``.

Knows nothing that a version may lack.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax import BDH, BDHConfig, FastWeightConfig


def keep_largest(module: types.ModuleType, count: int) -> None:
    """Make a model's module, of this version or another, keep the ``count`` largest of every token's code.

    What is kept is how much each exceeds the largest that is not, so that a rounding moves a code by a rounding and never exchanges two.
    """
    original = getattr(module.encode, "original", module.encode)

    def encode(x: jax.Array, encoder: jax.Array) -> jax.Array:
        code = original(x, encoder)
        rows = code.swapaxes(1, 2).reshape(-1, encoder.size // encoder.shape[0])
        if len(rows) == 1:
            # The barrier keeps XLA on CPUs from sorting all of them, which takes longer than the rest of a step.
            largest = jax.lax.optimization_barrier(jax.lax.top_k(rows[0], count + 1)[0])[-1].reshape(1, 1, 1, 1)
        else:
            largest = jax.lax.top_k(rows, count + 1)[0][:, -1].reshape(code.shape[0], 1, code.shape[2], 1)
        return code - largest

    encode.original = original
    module.encode = encode
    jax.clear_caches()


def by_model(config: BDHConfig, slow: dict[str, Any]) -> Callable[[np.ndarray], jax.Array]:
    """A function that reads so many tokens [T] and returns the logits of each, [T, V]."""
    model, slow = BDH(config), jax.device_put(slow)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(slow: Any, fast: Any, token: jax.Array) -> tuple[jax.Array, Any]:
        out = model.apply({"params": slow}, token[None, None], fast)
        return out.logits[0, 0], out.fast

    fast = [jax.tree.map(jnp.copy, model.init_fast(1))]

    def read(tokens: np.ndarray) -> jax.Array:
        logits = []
        for token in tokens:
            found, fast[0] = step(slow, fast[0], token)
            logits.append(found)
        jax.block_until_ready(fast[0])
        return jnp.stack(logits)

    return read


def main(folder: Path) -> None:
    """Read the tokens of every line of standard input, and leave the logits in a file."""
    for name in ("bdh_jax.commands._allocator", "bdh_jax.allocator"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name).keep_freed_memory()
    settings = json.loads((folder / "config.json").read_text())
    if settings["count"] is not None:
        keep_largest(sys.modules[BDH.__module__], settings["count"])
    known = {field.name for field in dataclasses.fields(FastWeightConfig)}
    fast = FastWeightConfig(**{name: value for name, value in settings["fast"].items() if name in known})
    config = BDHConfig(**settings["sizes"], dropout=0.0, fast=fast)
    read = by_model(config, dict(np.load(folder / "slow.npz")))
    print("ready", flush=True)
    for line in sys.stdin:
        np.save(folder / "logits.npy", read(np.array(line.split(), np.int32)))
        print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
