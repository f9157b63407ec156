"""Which token step a model takes where it generates: chosen from what is active in the prompt, and from what pays on the machine.

    state, settings = prefill_and_choose(model, slow, prompts)
    model = BDH(dataclasses.replace(model.config, token_step=settings))
    for tokens in generate(model, slow, state, max_tokens=100):
        ...

Settings change speed, never the text. Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.generation.sampling import GenerationState, Prompts, begin, padded, prefill
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.models.token_step import TokenStepConfig
from bdh_jax.types import Slow

MEASURED = 32
"""Tokens at the end of each prompt that are looked at."""
SLOTS = 32
"""At most; D / 8 of a narrower model, so that slots take about an eighth of what the state takes without them."""
QUANTILE, MARGIN = 0.99, 1.15
"""A budget is this quantile of what was active over layers and tokens, times this margin."""


class Pays(NamedTuple):
    """Where a token step is faster than reading and writing everything.

    Attributes:
      smallest: numbers of a matrix, K·D; smaller ones are in a cache.
      shares: name of each budget → the largest share of active rows at which reading them by themselves is faster than reading all.
    """

    smallest: int
    shares: Mapping[str, float]


PAYS = {"cpu": Pays(2**20, {"attention": 0.5, "encoder_v": 0.5, "decoder": 0.3, "memory": 0.4})}
"""Platform → where it pays (``benchmarks/token_step.py --crossings``). On others it was not measured, and none is chosen."""


def prefill_and_choose(
    model: BDH,
    slow: Slow,
    prompts: Prompts,
    state: GenerationState | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[GenerationState, TokenStepConfig]:
    """:func:`bdh_jax.generation.sampling.prefill`, and the token step for what comes after.

    Args:
      model: the model.
      slow: its weights.
      prompts: as of ``prefill``.
      state: to go on from; None starts anew.
      progress: as of ``prefill``.

    Returns:
      The state after the prompts, as ``model`` keeps it, and the settings. They are those of the model where it has slots already or a
      token step is not worth while (:func:`worthwhile`), and have no budgets where no prompt has a token.

    Raises:
      ValueError: as ``prefill``.
    """
    config, platform = model.config, jax.default_backend()
    if config.token_step.slots or not worthwhile(config, platform):
        return prefill(model, slow, prompts, state, progress=progress), config.token_step
    arrays, reached = begin(model, prompts, state)
    longest = max(len(array) for array in arrays)
    heads, tails = [array[:-MEASURED] for array in arrays], [array[-MEASURED:] for array in arrays]
    if longest > MEASURED:
        so_far = None if progress is None else lambda done, _: progress(done, longest)
        reached = prefill(model, slow, heads, reached, progress=so_far)
    counts = None
    if longest:
        width = min(longest, MEASURED)
        reached, counts = _read_and_count(model, slow, reached, *padded(tails, 0, width))
        if progress is not None:
            progress(longest, longest)
    return reached, choose(config, platform, counts)


def worthwhile(config: BDHConfig, platform: str) -> bool:
    """Whether a token step can be faster than a plain one, at any activity."""
    pays = PAYS.get(platform)
    return pays is not None and config.no_token_step is None and config.n_neurons * config.d_model >= pays.smallest


def choose(config: BDHConfig, platform: str, counts: Mapping[str, jax.Array] | None) -> TokenStepConfig:
    """The settings for what was active.

    Args:
      config: of the model, for which a token step is :func:`worthwhile`.
      platform: of JAX.
      counts: name of each budget → how much was active, [L, B, T], −1 at tokens that do not count; None where nothing is known.
    """
    slots, shares = max(1, min(SLOTS, config.d_model // 8)), PAYS[platform].shares
    budgets: dict[str, int | None] = {}
    for name, count in ({} if counts is None else counts).items():
        seen = np.asarray(count)
        rows = config.n_neurons // (2 if name == "attention" and config.attention == "rope" else 1)
        active = float(np.quantile(seen[seen >= 0], QUANTILE))
        budgets[name] = max(1, math.ceil(MARGIN * active)) if active <= shares[name] * rows else None
    return TokenStepConfig(slots, **budgets)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read_and_count(
    model: BDH, slow: Slow, state: GenerationState, tokens: jax.Array, valid: jax.Array
) -> tuple[GenerationState, dict[str, jax.Array]]:
    """One call of the model on the end of the prompts, and what was active: name of each budget → [L, B, T]."""
    config = model.config
    taps = ("code", "gate", "address") if config.fast.enabled else ("code", "gate")
    out = model.apply({"params": slow}, tokens, state.fast, valid=valid, collect=taps)
    state = GenerationState(out.carried, jnp.where(valid[:, -1:], out.logits[:, -1], state.logits))
    code = out.collected["code"] != 0
    pairs = jnp.any(code.reshape(*code.shape[:-1], -1, 2), axis=-1) if config.attention == "rope" else code
    active = {"attention": pairs, "encoder_v": code, "decoder": code & (out.collected["gate"] != 0)}
    if config.fast.enabled:
        active["memory"] = out.collected["address"] != 0
    if config.fast.enabled and config.fast.address_source == "gate":
        del active["encoder_v"]  # all of the gate is wanted
    return state, {name: jnp.where(valid[None], jnp.sum(rows, axis=(2, 4)), -1) for name, rows in active.items()}
