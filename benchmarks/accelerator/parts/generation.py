"""Tokens a second of ``bdh generate``'s loop at the published size, after a prompt: without a token step, with the one that "auto" takes
here, and with budgets of what is active in the prompt, which "auto" takes where it is known to pay.

With the weights that the part ``text`` trained, where it did; of random ones half of every code is active.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any
from unittest import mock

import jax
import numpy as np

from bdh_jax.generation import Sampling, generate, prefill, token_steps
from bdh_jax.models.bdh import BDH
from benchmarks.accelerator import steps, timing
from benchmarks.accelerator.part import Part, Work
from benchmarks.accelerator.parts.text import TRAINED, made_up
from benchmarks.accelerator.sizes import generating

ROUNDS = 3
CLOSE = 5e-3
"""Largest difference of logits after a prompt and some tokens, in float32."""


def run(work: Work) -> None:
    """One sequence and sixteen."""
    config, path = generating(work.tiny), work.settings.scratch / TRAINED
    trained = path.exists()
    # Fast weights of fixed rates add no slow weight.
    slow = jax.device_put(dict(np.load(path)) if trained else steps.random_weights(config))
    work.note(weights="after the part text" if trained else "random")
    length, count = (40, 8) if work.tiny else (512, 64)
    text = list(made_up(16 * length))
    with jax.default_matmul_precision("highest"):
        for batch in (1, 2) if work.tiny else (1, 16):
            prompts = [text[row * length : (row + 1) * length] for row in range(batch)]
            work.attempt(
                f"batch {batch}, prompt of {length}", 30, lambda prompts=prompts: _compare(config, slow, prompts, count)
            )


def _compare(config: Any, slow: Any, prompts: list[list[int]], count: int) -> dict[str, Any]:
    model, settings = BDH(config), {"off": config.token_step}
    _, settings["auto"] = token_steps.prefill_and_choose(model, slow, prompts)
    # What "auto" would take if any share paid.
    pays = token_steps.Pays(0, dict.fromkeys(("attention", "encoder_v", "decoder", "memory"), 0.9))
    with mock.patch.dict(token_steps.PAYS, {jax.default_backend(): pays}):
        _, settings["budgets"] = token_steps.prefill_and_choose(model, slow, prompts)
    same = settings["auto"] == settings["off"]
    sides = {
        name: BDH(dataclasses.replace(config, token_step=chosen))
        for name, chosen in settings.items()
        if not (same and name == "auto")
    }
    logits: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    exceeded, seconds = {}, {name: [] for name in sides}
    for name, side in sides.items():
        _write(model, side, slow, prompts, count, logits[name])
    errors = {name: _difference(found, logits["off"]) for name, found in logits.items() if name != "off"}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            taken, state = _write(model, side, slow, prompts, count)
            seconds[name].append(taken / count)
            steps_ = state.fast.token_steps
            exceeded[name] = None if steps_ is None else int(steps_.over_budget) / int(steps_.taken)
    begin = time.perf_counter()
    jax.block_until_ready(prefill(model, slow, prompts))
    prompt = time.perf_counter() - begin
    return {
        **{f"tokens_per_second, {name}": len(prompts) / statistics.median(taken) for name, taken in seconds.items()},
        "faster, budgets": statistics.median(a / b for a, b in zip(seconds["off"], seconds["budgets"], strict=True)),
        "prompt_tokens_per_second": sum(map(len, prompts)) / prompt,
        "auto is off": same,
        "seconds": seconds,
        "settings": {name: dataclasses.asdict(chosen) for name, chosen in settings.items()},
        "over_budget": exceeded,
        "differences": errors,
    }


def _write(
    model: BDH, side: BDH, slow: Any, prompts: list[list[int]], count: int, logits: list[np.ndarray] | None = None
) -> tuple[float, Any]:
    """Seconds that so many tokens after the prompts take, and the state after them. Logits of every token go to a list if there is one."""
    state = prefill(model, slow, prompts)
    jax.block_until_ready(state)
    last = [state]

    def keep(state: Any) -> None:
        last[0] = state
        if logits is not None:
            logits.append(np.asarray(state.logits))

    begin = time.perf_counter()
    for _ in generate(side, slow, state, max_tokens=count, sampling=Sampling(temperature=0), on_state=keep):
        pass
    jax.block_until_ready(last[0])
    return time.perf_counter() - begin, last[0]


def _difference(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest of logits, token after token, of each row for as long as both sides have drawn the same.

    Raises:
      AssertionError: if one is more than a rounding.
    """
    same, worst = np.ones(len(wanted[0]), bool), 0.0
    for have, want in zip(found, wanted, strict=True):
        if np.any(same):
            worst = max(worst, timing.assert_alike(have[same], want[same], CLOSE, "logits"))
        same &= np.argmax(have, axis=-1) == np.argmax(want, axis=-1)
    return worst


PART = Part(place=6, minutes=0.6, least=30, run=run)
