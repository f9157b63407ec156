"""Models compiled whole: outside ``jit`` JAX compiles every operation on its own, which takes most of a test's time."""

from __future__ import annotations

import functools
from typing import Any

import jax


@functools.partial(jax.jit, static_argnums=0)
def init(model: Any, seed: int) -> dict[str, jax.Array]:
    """The slow weights that ``model`` starts from."""
    return model.init_slow(jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("state", "collect"))
def apply(model: Any, slow: dict[str, jax.Array], tokens: jax.Array, fast: Any = None, **keywords: Any) -> Any:
    """``model.apply`` with those slow weights."""
    return model.apply({"params": slow}, tokens, fast, **keywords)
