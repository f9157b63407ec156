"""One token: what a step that reads active rows saves, over the share of active rows, for 1 and 16 examples.

Two tables. The whole model at the published size, with write-back: the token step (``BDHConfig.token_step``) against a plain dense step
written here, which reads all weights and both states and writes both states in place. And what one layer reads through its code, as
``layer_token`` has it: whole, gathered by XLA, by the kernel.

How many rows are active is set by a threshold under the code, on both sides, the same in every layer: of the initial weights' scale codes
have a standard deviation of 0.02 · √D. Tokens run within one program, so that no side waits for Python.

Bytes that must move: the encoder whole, everything else at active rows. Of what all examples share (encoder_v, decoder) a row that several
of them want moves once. Everything is float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from bdh_jax.kernels.fast_weight_scan.reference import once_read
from bdh_jax.layers.norm import layer_norm
from bdh_jax.layers.rotary import rope, rope_angles, rope_frequencies
from bdh_jax.models import bdh
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.models.token_step import TokenStepConfig
from benchmarks.accelerator import layer_token, timing
from benchmarks.accelerator.part import Part, Work
from benchmarks.accelerator.sizes import generating
from benchmarks.accelerator.steps import abstract, random_weights

SHARES = (0.05, 0.02, 0.1, 0.01, 0.2, 0.5, 1.0)
"""Of the rows of the code, the most telling first."""
BATCHES = (1, 16)
CLOSE = 2e-3
"""Largest difference of logits after so many tokens, in float32."""
OF_LAYER = 1e-4
CLAIM = (0.05, 8.0, 0.6)
"""At this share: how many times as fast, and what share of the bandwidth."""
ROUNDS, REPEATS = 5, 20


def run(work: Work) -> None:
    """The model first, then the layer."""
    rates = timing.bandwidth(work.tiny)
    work.note(
        bandwidth=rates, tokens=_tokens(work.tiny), claim=dict(zip(("share", "faster", "bandwidth"), CLAIM, strict=True))
    )
    best = max(rates.values())
    # Sums of products are of float32 on both sides; what bounds them are bytes.
    with jax.default_matmul_precision("highest"):
        batches = (1, 2) if work.tiny else BATCHES
        shares = (0.05, 1.0) if work.tiny else SHARES
        for batch in batches:
            _model(work, batch, shares, best)
        for batch in batches:
            for share in shares:
                work.attempt(f"layer, {share:.0%}, batch {batch}", 6, lambda b=batch, s=share: _layer(work, b, s, best))


def _tokens(tiny: bool) -> int:
    """Tokens of a program: as many as fill all slots twice."""
    return 8 if tiny else 64


# The model.


def _model(work: Work, batch: int, shares: tuple[float, ...], best: float) -> None:
    """All shares at one batch. Their programs are compiled side by side, since each budget is one of its own."""
    config, length = generating(work.tiny), _tokens(work.tiny)
    settings = {share: _settings(config, share, length // 2) for share in shares}
    weights = {"params": jax.device_put(random_weights(config))}
    weights["views"] = jax.jit(BDH(settings[shares[0]]).architecture.views)(weights["params"])
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (length, batch)).astype(np.int32)
    state = jax.eval_shape(lambda: _dense_state(config, batch))
    dense = jax.jit(_dense(config), donate_argnums=1)
    lowered = {"dense": dense.lower(abstract(weights["params"]), state, abstract(tokens), jnp.int32(0), jnp.float32(0))}
    for share in shares:
        with _threshold(_level(config, share)):
            fast = jax.eval_shape(lambda share=share: BDH(settings[share]).init_fast(batch))
            lowered[f"{share:.0%}"] = _steps(settings[share]).lower(abstract(weights), fast, abstract(tokens))
    if not work.tiny and work.left < 60:
        work.leave_out(f"model, batch {batch}", f"{max(0.0, work.left):.0f} s left, about 60 s needed")
        return
    programs = timing.compile_all(lowered)
    for share in shares:

        def row(share: float = share) -> dict[str, Any]:
            step, whole = timing.compiled(programs[f"{share:.0%}"]), timing.compiled(programs["dense"])
            return _compare(settings[share], share, weights, tokens, step, whole, best)

        work.attempt(f"model, {share:.0%}, batch {batch}", 4, row)


def _compare(
    config: BDHConfig, share: float, weights: Any, tokens: np.ndarray, step: Any, whole: Any, best: float
) -> dict[str, Any]:
    length, batch = tokens.shape
    level, place = jnp.float32(_level(config, share)), [0]
    fast = [jax.tree.map(jnp.copy, BDH(config).init_fast(batch))]
    state = [jax.tree.map(jnp.copy, _dense_state(config, batch))]

    def by_rows() -> jax.Array:
        logits, fast[0] = step(weights, fast[0], tokens)
        return logits

    def dense() -> jax.Array:
        logits, state[0] = whole(weights["params"], state[0], tokens, jnp.int32(place[0]), level)
        place[0] += length
        return logits

    found, wanted = by_rows(), dense()
    error = timing.assert_alike(found, wanted, CLOSE, "logits")
    seconds, ratios = timing.ratio_in_turn(
        {"token step": by_rows, "dense": dense}, ROUNDS, f"{share:.0%}, batch {batch}", "token step"
    )
    steps, seconds = fast[0].token_steps, {name: times["median"] / length for name, times in seconds.items()}
    must, moved, all_ = _bytes(config, share, batch)
    faster, of_bandwidth = ratios["dense"]["median"], must / seconds["token step"] / best
    figures = {
        "faster": faster,
        "ms": 1e3 * seconds["token step"],
        "ms_dense": 1e3 * seconds["dense"],
        "bytes_that_must_move": must,
        "bytes_with_slots": moved,
        "bytes_dense": all_,
        "share_of_bandwidth": of_bandwidth,
        "share_of_bandwidth_dense": all_ / seconds["dense"] / best,
        "difference": error,
        "over_budget": int(steps.over_budget) / int(steps.taken),
        "ratio": ratios["dense"],
        "temporaries": step.memory_analysis().temp_size_in_bytes,
        "temporaries_dense": whole.memory_analysis().temp_size_in_bytes,
    }
    if share == CLAIM[0]:
        figures["claim_holds"] = faster >= CLAIM[1] and of_bandwidth >= CLAIM[2]
    return figures


def _level(config: BDHConfig, share: float) -> float:
    """What is taken off every code so that this share of it stays positive."""
    spread = config.init_std * math.sqrt(config.d_model)
    return float(spread * scipy.stats.norm.isf(min(share, 1 - 1e-9)))


def _settings(config: BDHConfig, share: float, slots: int) -> BDHConfig:
    """Budgets for a share of active rows, with room for five standard deviations and for codes that differ a little from normal ones."""

    def budget(share: float, size: int) -> int:
        return min(size, math.ceil(size * share * 1.15 + 5 * math.sqrt(size * share * (1 - share)) + 8))

    rows = config.n_neurons
    pairs = budget(1 - (1 - share) ** 2, rows // 2)
    code = budget(share, rows)
    return dataclasses.replace(
        config,
        token_step=TokenStepConfig(slots, attention=pairs, encoder_v=code, decoder=budget(share * 0.6, rows), memory=code),
    )


def _bytes(config: BDHConfig, share: float, batch: int) -> tuple[int, int, int]:
    """Bytes of a token of all examples: that must move, that this way of writing moves beside, and of the dense step."""
    rows, slots = config.n_neurons, config.token_step.slots
    shared = [
        1 - (1 - active) ** batch for active in (share, share / 2)
    ]  # encoder_v; decoder, of which the gate leaves half
    own = (1 - (1 - share) ** 2) + share  # of ρ and of S
    must = rows * (1 + sum(shared) + batch * own)
    # Keys of half of the slots on average, of both states; and both states read and written once for all slots.
    beside = rows * batch * 2 * (slots / 2) / config.d_model + rows * batch * 4 / slots
    dense = rows * (3 + 4 * batch)
    unit = 4 * config.n_layer * config.d_model
    return round(unit * must), round(unit * (must + beside)), unit * dense


@contextlib.contextmanager
def _threshold(level: float) -> Iterator[None]:
    """Models that are traced in the block take ``level`` off every code."""
    original = bdh.encode

    def encode(x: jax.Array, encoder: jax.Array) -> jax.Array:
        return original(x, encoder) - jnp.asarray(level, x.dtype)

    bdh.encode = encode
    try:
        yield
    finally:
        bdh.encode = original


def _steps(config: BDHConfig) -> Any:
    """(weights, state, tokens [T, B]) → (logits [T, B, V], state), with the state given up."""
    model = BDH(config)

    def steps(weights: Any, fast: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        def one(fast: Any, token: jax.Array) -> tuple[Any, jax.Array]:
            out = model.apply(weights, token[:, None], fast)
            return out.fast, out.logits[:, 0]

        fast, logits = jax.lax.scan(one, fast, tokens)
        return logits, fast

    return jax.jit(steps, donate_argnums=1)


def _dense_state(config: BDHConfig, batch: int) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """ρ, S and the address before, of each layer."""
    rows = (batch, config.n_head, config.neurons_per_head)
    wide = (*rows, config.d_model)
    return [(jnp.zeros(wide), jnp.zeros(wide), jnp.zeros(rows)) for _ in range(config.n_layer)]


def _dense(config: BDHConfig) -> Callable[..., Any]:
    """(weights, state, tokens [T, B], position, level) → (logits [T, B, V], state): everything read, both states written."""
    heads, neurons, width = config.n_head, config.neurons_per_head, config.d_model
    frequencies = rope_frequencies(jnp.arange(neurons), neurons, config.rope_theta, jnp.float32)
    rate, decay = config.fast.learning_rate, config.fast.decay

    def one(slow: Any, state: Any, token: jax.Array, position: jax.Array, level: jax.Array) -> tuple[Any, jax.Array]:
        cos, sin = rope_angles(position[None, None], jnp.arange(neurons), frequencies)
        x, after = layer_norm(slow["embed"][token]), []
        for rho, memory, previous in state:
            code = jax.nn.relu(x @ slow["encoder"].reshape(width, -1) - level).reshape(-1, heads, neurons)
            query = rope(code[:, :, None], cos, sin)[:, :, 0]
            found = jnp.einsum("bhn,bhnd->bhd", query, rho)
            rho = once_read(rho, found) + query[..., None] * x[:, None, None]
            gate = jax.nn.relu(jnp.einsum("bhd,hdn->bhn", layer_norm(found), slow["encoder_v"]))
            y = (code * gate).reshape(len(x), -1) @ slow["decoder"].reshape(-1, width)
            address = code * jax.lax.rsqrt(jnp.sum(jnp.square(code), axis=(1, 2), keepdims=True) + 1e-12)
            read = jnp.einsum("bhn,bhnd->bhd", address, memory)
            memory = decay * once_read(memory, read) + rate * previous[..., None] * x[:, None, None]
            y = y + jnp.sum(read, axis=1)
            x = layer_norm(x + layer_norm(y))
            after.append((rho, memory, address))
        return after, x @ slow["lm_head"]

    def steps(slow: Any, state: Any, tokens: jax.Array, position: jax.Array, level: jax.Array) -> tuple[jax.Array, Any]:
        def body(carry: Any, token: jax.Array) -> tuple[Any, jax.Array]:
            state, position = carry
            state, logits = one(slow, state, token, position, level)
            return (state, position + 1), logits

        (state, _), logits = jax.lax.scan(body, (state, position), tokens)
        return logits, state

    return steps


# A layer.


def _layer(work: Work, batch: int, share: float, best: float) -> dict[str, Any]:
    config = generating(work.tiny)
    sizes = (batch, config.n_head, config.neurons_per_head, config.d_model)
    token, budgets = layer_token.make(sizes, share, memory=True)
    platform = jax.default_backend()
    forms = {"whole": layer_token.whole, "rows gathered": layer_token.gathered(budgets)}
    if platform in ("gpu", "tpu"):
        forms["kernel"] = layer_token.by_kernel(budgets, platform)
    programs = {name: _repeated(form) for name, form in forms.items()}
    once = {name: program(token, 1) for name, program in programs.items()}
    errors = {
        name: timing.assert_alike(found, once["whole"], OF_LAYER, name) for name, found in once.items() if name != "whole"
    }
    calls = {name: (lambda program=program: program(token, REPEATS)) for name, program in programs.items()}
    active = jnp.sum(token.code != 0) / token.code.size
    of_pairs = float(jnp.sum(token.query != 0) / token.query.size)
    shared, own = 1 - (1 - float(active)) ** batch, of_pairs + float(active)
    must = 4 * config.n_neurons * config.d_model * (2 * shared + batch * own)
    figures: dict[str, Any] = {"bytes_that_must_move": round(must), "active": float(active), "differences": errors}
    for name in errors:
        seconds, ratios = timing.ratio_in_turn({n: calls[n] for n in ("whole", name)}, ROUNDS, f"{share:.0%}, {name}", name)
        taken = seconds[name]["median"] / REPEATS
        figures[name] = {"faster": ratios["whole"]["median"], "us": 1e6 * taken, "share_of_bandwidth": must / taken / best}
        figures["us_whole"] = 1e6 * seconds["whole"]["median"] / REPEATS
        figures[f"faster, {name}"] = ratios["whole"]["median"]
    return figures


def _repeated(form: Callable[[layer_token.Token], Any]) -> Callable[[layer_token.Token, int], Any]:
    """The last of several calls in one program, each of which waits for the one before."""

    @jax.jit
    def run(token: layer_token.Token, times: jax.Array) -> Any:
        found = jax.eval_shape(form, token)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found)

        def body(_: Any, last: Any) -> Any:
            here, last = jax.lax.optimization_barrier((token, last))
            return form(here)

        return jax.lax.fori_loop(0, times, body, start)

    return run


PART = Part(place=1, minutes=1.6, least=60, run=run)
