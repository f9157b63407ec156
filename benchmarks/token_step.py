"""What a token costs where it pays for what is active, beside steps that read and write everything.

    python benchmarks/token_step.py
    python benchmarks/token_step.py --old=CHECKOUT         # an older checkout of this library, in a process of its own
    python benchmarks/token_step.py --official=OFFICIAL    # https://github.com/pathwaycom/bdh; needs PyTorch
    python benchmarks/token_step.py --gpt                  # a GPT of equal size with a cache of keys and values
    python benchmarks/token_step.py --workdir=runs/text --text=FILE    # a trained model at its own activity
    python benchmarks/token_step.py --crossings            # at which share of active rows a gather stops to pay

One sequence, random weights of the published size, and a top-k code: of each layer's code only the so many largest are left, on every
side, so that the share of active rows is what the table says. Embeddings have a part in common, so that successive tokens share active
rows; how many is printed. Each side reads the same tokens in turn, 32 a round, which holds one write of all slots. Claims that with
write-back the token step is at least 3 × (2 % active) and 2.5 × (5 %) as fast as a plain dense step written by hand that copies
nothing; and 5 × and 4 × an older checkout, without write-back 3.5 × at 5 %. Every ratio is printed after both sides gave the same
logits. About ten minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from older_steps import keep_largest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.experiment import load_as, tokenizer_of
from bdh_jax.generation.token_steps import prefill_and_choose
from bdh_jax.kernels import token_step
from bdh_jax.kernels.fast_weight_scan.reference import once_read
from bdh_jax.layers.norm import layer_norm
from bdh_jax.layers.rotary import rope, rope_angles, rope_frequencies
from bdh_jax.models import bdh
from bdh_jax.models.base import count_parameters
from bdh_jax.models.gpt import GPT, GPTConfig

TOKENS = 32
"""Tokens of a round."""
CLAIMED = {("by hand", True, 0.02): 3.0, ("by hand", True, 0.05): 2.5}
CLAIMED |= {
    ("older", True, 0.02): 5.0,
    ("older", True, 0.05): 4.0,
    ("older", False, 0.05): 3.5,
    ("official", False, 0.05): 40.0,
}
CLOSE = 2e-3
"""Largest difference of logits, relative to the largest of them, in float32 after so many tokens."""


def random_weights(config: BDHConfig, common: float) -> dict[str, np.ndarray]:
    """Weights of the published scale; embeddings share the part ``common`` of their variance."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(BDH(config).init_slow, jax.random.key(0))
    slow = {name: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02) for name, leaf in shapes.items()}
    shared = rng.standard_normal(config.d_model).astype(np.float32) * 0.02
    slow["embed"] = np.sqrt(1 - common) * slow["embed"] + np.sqrt(common) * shared[None]
    return {name: array.astype(np.float32) for name, array in slow.items()}


# The sides. Each is a function that reads so many tokens and returns the logits of each, [T, V].


def by_model(config: BDHConfig, slow: dict[str, Any]) -> Callable[[np.ndarray], jax.Array]:
    """This library, with the token step that ``config`` says."""
    model = BDH(config)
    weights = {"params": jax.device_put(slow), "views": jax.jit(model.architecture.views)(slow)}

    @functools.partial(jax.jit, donate_argnums=1)
    def step(weights: Any, fast: Any, token: jax.Array) -> tuple[jax.Array, Any]:
        out = model.apply(weights, token[None, None], fast)
        return out.logits[0, 0], out.fast

    fast = [jax.tree.map(jnp.copy, model.init_fast(1))]

    def read(tokens: np.ndarray) -> jax.Array:
        logits = []
        for token in tokens:
            found, fast[0] = step(weights, fast[0], token)
            logits.append(found)
        jax.block_until_ready(fast[0])
        return jnp.stack(logits)

    read.fast = fast
    return read


def by_hand(config: BDHConfig, slow: dict[str, Any]) -> Callable[[np.ndarray], jax.Array]:
    """A plain dense step: all weights and states read, all states written, in separate arrays that are given up."""
    heads, neurons, width = config.n_head, config.neurons_per_head, config.d_model
    frequencies = rope_frequencies(jnp.arange(neurons), neurons, config.rope_theta, jnp.float32)
    fast, (rate, decay) = config.fast.enabled, (config.fast.learning_rate, config.fast.decay)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(slow: dict[str, Any], state: Any, token: jax.Array, position: jax.Array) -> tuple[jax.Array, Any]:
        cos, sin = rope_angles(position[None, None], jnp.arange(neurons), frequencies)
        x, after = layer_norm(slow["embed"][token])[None], []
        for rho, S, previous in state:
            code = jax.nn.relu(bdh.encode(x[None], slow["encoder"]))
            query = rope(code, cos, sin)[0, :, 0]
            code = code[0, :, 0]
            found = jnp.einsum("hn,hnd->hd", query, rho)
            rho = once_read(rho, found) + query[..., None] * x[None]
            gate = jax.nn.relu(jnp.einsum("hd,hdn->hn", layer_norm(found), slow["encoder_v"]))
            y = (code * gate).reshape(1, -1) @ slow["decoder"].reshape(-1, width)
            if fast:
                address = code * jax.lax.rsqrt(jnp.sum(jnp.square(code)) + 1e-12)
                read = jnp.einsum("hn,hnd->hd", address, S)
                S = decay * once_read(S, read) + rate * previous[..., None] * x[None]
                y, previous = y + jnp.sum(read, axis=0, keepdims=True), address
            x = layer_norm(x + layer_norm(y))
            after.append((rho, S, previous))
        return (x @ slow["lm_head"])[0], after

    def zeros(*shape: int) -> jax.Array | None:
        return jnp.zeros((heads, neurons, *shape))

    state = [[(zeros(width), zeros(width) if fast else None, zeros() if fast else None) for _ in range(config.n_layer)]]
    weights, position = jax.device_put(slow), [0]
    compiled = step.lower(weights, state[0], jnp.int32(0), jnp.int32(0)).compile()
    if (copied := compiled.memory_analysis().temp_size_in_bytes) > 2**25:
        sys.exit(f"error: the step by hand copies {copied} bytes; it was to copy nothing")

    def read(tokens: np.ndarray) -> jax.Array:
        logits = []
        for token in tokens:
            found, state[0] = compiled(weights, state[0], jnp.int32(token), jnp.int32(position[0]))
            position[0] += 1
            logits.append(found)
        jax.block_until_ready(state[0])
        return jnp.stack(logits)

    return read


class Older:
    """An older checkout, in a process that works only when it is asked to."""

    def __init__(self, checkout: Path, config: BDHConfig, slow: dict[str, np.ndarray], count: int | None):
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        np.savez(folder / "slow.npz", **slow)
        fast = {name: value for name, value in dataclasses.asdict(config.fast).items() if name != "options"}
        sizes = {name: getattr(config, name) for name in ("vocab_size", "n_layer", "d_model", "n_head", "n_neurons")}
        (folder / "config.json").write_text(json.dumps({"sizes": sizes, "fast": fast, "count": count}))
        command = [sys.executable, Path(__file__).with_name("older_steps.py"), folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(checkout)}, **pipes)
        self._expect("ready")

    def _expect(self, word: str) -> None:
        line = self._process.stdout.readline().strip()
        if line != word:
            sys.exit(f"error: the older checkout said {line!r}")

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        print(" ".join(map(str, tokens)), file=self._process.stdin, flush=True)
        self._expect("done")
        return np.load(Path(self._folder.name) / "logits.npy")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


class Official:
    """The official PyTorch code, which reads all of its context anew for every token.

    Args:
      folder: a checkout of it.
      config: sizes.
      slow: weights.
      count: of a code's values that are kept where ``sparse`` asks for it. It is timed as it is.
    """

    def __init__(self, folder: Path, config: BDHConfig, slow: dict[str, np.ndarray], count: int):
        import torch

        if not (folder / "bdh.py").is_file():
            sys.exit(
                f"error: {folder / 'bdh.py'} does not exist; --official names a checkout of https://github.com/pathwaycom/bdh"
            )
        spec = importlib.util.spec_from_file_location("official_bdh", folder / "bdh.py")
        self._module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._module)
        self._torch, self._count, self._calls = torch, count, 0
        sizes = {
            "n_layer": config.n_layer,
            "n_embd": config.d_model,
            "n_head": config.n_head,
            "vocab_size": config.vocab_size,
        }
        factor = config.n_neurons // config.d_model
        settings = self._module.BDHConfig(**sizes, mlp_internal_dim_multiplier=factor, dropout=0.0)
        self._model = self._module.BDH(settings).eval()
        arrays = {
            "embed.weight": slow["embed"],
            "encoder": slow["encoder"].transpose(1, 0, 2),
            "encoder_v": slow["encoder_v"],
            "decoder": slow["decoder"].reshape(-1, config.d_model),
            "lm_head": slow["lm_head"],
        }
        arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self._model.load_state_dict(arrays, strict=False)

    def _relu(self, rows: Any) -> Any:
        """Of a code, which is every second call, only the largest."""
        self._calls += 1
        if self._calls % 2:
            tokens = rows.transpose(1, 2)
            rows = rows - self._torch.topk(tokens.flatten(2), self._count + 1, dim=-1).values[..., -1][:, None, :, None]
        return self._torch.nn.functional.relu(rows)

    def __call__(self, context: np.ndarray, sparse: bool = False) -> np.ndarray:
        functions = self._torch.nn.functional
        self._module.F = types.SimpleNamespace(relu=self._relu) if sparse else functions
        with self._torch.no_grad():
            return self._model(self._torch.from_numpy(context[None].astype(np.int64)))[0][0, -1].numpy()


def gpt_by_hand(config: GPTConfig, slow: Any, length: int) -> Callable[[int, int, Any], tuple[jax.Array, Any]]:
    """One token of a GPT beside the keys and values of ``length`` places: (token, position, cache) → (logits, cache)."""
    architecture, width = GPT(config).architecture, config.d_model // config.n_head
    frequencies = rope_frequencies(jnp.arange(width), width, config.rope_theta, jnp.float32)

    @functools.partial(jax.jit, donate_argnums=3)
    def step(slow: Any, token: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        cos, sin = rope_angles(position[None, None], jnp.arange(width), frequencies)
        seen = jnp.arange(length) <= position
        x, after = architecture.embed(slow, token[None, None])[0], []
        for index, (keys, values) in enumerate(cache):
            weights = slow[f"layer{index}"]
            rows = architecture._norm(weights["attention_norm"], x) @ weights["attention_in"]["kernel"]
            query, key, value = rows.reshape(3, config.n_head, 1, width)
            query, key = (rope(part[None], cos, sin)[0] for part in (query, key))
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, new, position, 1) for old, new in ((keys, key), (values, value))
            )
            scores = jnp.einsum("hqd,htd->hqt", query, keys) / np.sqrt(width)
            shares = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1)
            x = x + jnp.einsum("hqt,htd->qhd", shares, values).reshape(1, -1) @ weights["attention_out"]["kernel"]
            hidden = jax.nn.gelu(architecture._norm(weights["mlp_norm"], x) @ weights["mlp_in"]["kernel"])
            x = x + hidden @ weights["mlp_out"]["kernel"]
            after.append((keys, values))
        return architecture.readout(slow, x[None])[0, 0], after

    return functools.partial(step, slow)


# What is compared.


def streams(
    calls: dict[str, Callable[[np.ndarray], Any]], tokens: np.ndarray
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Calls that each read the next ``TOKENS`` of the same tokens, again from the start where they end; and the logits of their last."""
    last: dict[str, Any] = {}

    def of(name: str, read: Callable[[np.ndarray], Any]) -> Callable[[], Any]:
        place = [0]

        def call() -> Any:
            chosen = np.take(tokens, range(place[0], place[0] + TOKENS), mode="wrap")
            place[0] += TOKENS
            last[name] = read(chosen)
            return last[name]

        return call

    return {name: of(name, read) for name, read in calls.items()}, last


def assert_alike(last: dict[str, Any], of: str) -> float:
    """The largest difference between the logits of one side and of the others; exits where there is more than a rounding."""
    reference, worst = np.asarray(last[of], np.float64), 0.0
    for name, logits in last.items():
        difference = float(np.max(np.abs(np.asarray(logits, np.float64) - reference)) / np.max(np.abs(reference)))
        if not difference <= CLOSE:
            sys.exit(f"error: the logits of {name!r} and {of!r} differ by {difference:.1e}; no ratio is printed")
        worst = max(worst, difference)
    return worst


def overlap_of(config: BDHConfig, slow: dict[str, Any], tokens: np.ndarray) -> float:
    """The share of active rows of the code that the next token has too, over tokens and layers."""
    model = BDH(config.without_slots())
    apply = jax.jit(lambda slow, tokens: model.apply({"params": slow}, tokens, state="none", collect=("code",)).collected)
    active = np.asarray(apply(slow, tokens[None, :TOKENS])["code"] != 0)[:, 0]
    both = np.sum(active[:, :, 1:] & active[:, :, :-1], axis=(1, 3))
    return float(np.mean(both / np.sum(active[:, :, :-1], axis=(1, 3))))


def with_token_step(config: BDHConfig, slow: dict[str, Any], tokens: np.ndarray) -> BDHConfig:
    """The configuration with the token step that ``bdh generate`` would choose after these tokens."""
    _, settings = prefill_and_choose(BDH(config), jax.device_put(slow), [tokens.tolist()])
    return dataclasses.replace(config, token_step=settings)


def table(config: BDHConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios at every activity, with and without write-back."""
    rows, results = [], {}
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 4096).astype(np.int32)
    for activity in options.activity:
        for fast in (True, False):
            here = dataclasses.replace(config, fast=FastWeightConfig(enabled=fast))
            slow, count = random_weights(here, options.common), max(1, round(activity * config.n_neurons))
            keep_largest(bdh, count)
            settings = with_token_step(here, slow, tokens[:64])
            sides = {"token step": by_model(settings, slow), "default": by_model(here, slow), "by hand": by_hand(here, slow)}
            older = Older(options.old, here, slow, count) if options.old else None
            if older is not None:
                sides["older"] = older
            state, plain = sides["token step"].fast[0], sides["default"].fast[0]
            alone = plain.attention.nbytes + (plain.memory.nbytes if fast else 0)
            calls, last = streams(sides, tokens)
            name = f"{activity:.0%}, {'with' if fast else 'without'} write-back"
            seconds = measure.interleave(calls, options.rounds, name)
            difference = assert_alike(last, "token step")
            if older is not None:
                older.close()
            ratios = {side: measure.ratios(times, seconds["token step"]) for side, times in seconds.items()}
            exceeded = sides["token step"].fast[0].token_steps
            claims = {
                side: limit for (side, f, a), limit in CLAIMED.items() if f == fast and a == activity and side in ratios
            }
            overlap = overlap_of(here, slow, tokens)
            verdict = [
                f"{side} ≥ {limit:g} {'holds' if ratios[side].median >= limit else 'MISSED'}"
                for side, limit in claims.items()
            ]
            rows.append(
                [
                    name,
                    f"{overlap:.0%}",
                    measure.summary([s / TOKENS for s in seconds["token step"]]).format(1e3),
                    *(ratios[side].format(digits=2) if side in ratios else "" for side in ("by hand", "default", "older")),
                    f"{state.nbytes / alone:.3f}",
                    "; ".join(verdict),
                ]
            )
            results[name] = {
                "seconds": seconds,
                "ratios": {side: ratio._asdict() for side, ratio in ratios.items()},
                "overlap": overlap,
                "token_step": dataclasses.asdict(settings.token_step),
                "state_over_attention_and_memory": state.nbytes / alone,
                "largest_difference": difference,
                "over_budget": int(exceeded.over_budget) / int(exceeded.taken),
                "claims": claims,
            }
    measure.report(
        f"One token, L {config.n_layer}, D {config.d_model}, K {config.n_neurons}, float32; other sides ÷ token step, {TOKENS} tokens a round",
        ["active", "overlap", "ms, token step", "by hand", "default", "older", "state", "claims"],
        rows,
        "Median (min–max); ratios are of rounds taken in turn. state: bytes, slots and all, ÷ those of ρ and S.",
    )
    return results


def trained(options: argparse.Namespace) -> dict[str, Any]:
    """A trained model at its own activity, on a text."""
    config, slow = load_as(BDHConfig, options.workdir, "best")
    config = dataclasses.replace(config, dropout=0.0)
    tokens = np.array(tokenizer_of(options.workdir).encode(options.text.read_bytes()), np.int32)[:4096]
    if len(tokens) < 2 * TOKENS:
        sys.exit(f"error: {options.text} holds {len(tokens)} tokens; at least {2 * TOKENS} are read")
    slow = jax.tree.map(np.asarray, slow)
    settings = with_token_step(config, slow, tokens[:256])
    sides = {"token step": by_model(settings, slow), "default": by_model(config, slow)}
    older = Older(options.old, config, slow, None) if options.old else None
    if older is not None:
        sides["older"] = older
    calls, last = streams(sides, tokens)
    seconds = measure.interleave(calls, options.rounds, "trained")
    difference = assert_alike(last, "token step")
    if older is not None:
        older.close()
    ratios = {side: measure.ratios(times, seconds["token step"]) for side, times in seconds.items()}
    steps = sides["token step"].fast[0].token_steps
    over = None if steps is None else int(steps.over_budget) / int(steps.taken)
    columns = [side for side in ("default", "older") if side in ratios]
    measure.report(
        f"One token of a trained model, L {config.n_layer}, D {config.d_model}, K {config.n_neurons}, at its own activity",
        ["ms, token step", *columns, "over budget", "token step"],
        [
            [
                measure.summary([s / TOKENS for s in seconds["token step"]]).format(1e3, 2),
                *(ratios[side].format(digits=2) for side in columns),
                "" if over is None else f"{over:.1%}",
                ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(settings.token_step).items()),
            ]
        ],
        "Median (min–max); other sides ÷ token step. Slots 0: none is chosen for a model this small.",
    )
    return {
        "seconds": seconds,
        "ratios": {side: ratio._asdict() for side, ratio in ratios.items()},
        "token_step": dataclasses.asdict(settings.token_step),
        "over_budget": over,
        "largest_difference": difference,
    }


def official_table(config: BDHConfig, options: argparse.Namespace) -> dict[str, Any]:
    """The official code at some context, beside one token of this library."""
    activity, length = options.activity[-1], options.context
    here = dataclasses.replace(config, fast=FastWeightConfig(enabled=False))
    slow, count = random_weights(here, options.common), max(1, round(activity * config.n_neurons))
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, length + 4096).astype(np.int32)
    keep_largest(bdh, count)
    ours, official = by_model(with_token_step(here, slow, tokens[:64]), slow), Official(options.official, here, slow, count)
    difference = assert_alike(
        {"token step": ours(tokens[:length])[-1], "official": official(tokens[:length], sparse=True)}, "official"
    )
    place = [length]

    def next_tokens() -> Any:
        place[0] += TOKENS
        return ours(np.take(tokens, range(place[0] - TOKENS, place[0]), mode="wrap"))

    calls = {"token step": next_tokens, "official": lambda: official(tokens[:length])}
    seconds = measure.interleave(calls, max(3, options.rounds // 3), f"context {length}")
    ratio = measure.ratios([TOKENS * s for s in seconds["official"]], seconds["token step"])
    limit = CLAIMED.get(("official", False, activity))
    verdict = "" if limit is None else f"≥ {limit:g} {'holds' if ratio.median >= limit else 'MISSED'}"
    each = [
        measure.summary([s / n for s in seconds[side]]).format(1e3) for side, n in (("official", 1), ("token step", TOKENS))
    ]
    measure.report(
        f"A token after {length} others, {activity:.0%} active, no write-back",
        ["ms, official", "ms, token step", "official ÷ token step", "claim"],
        [[*each, ratio.format(), verdict]],
        "The official code reads its whole context for every token.",
    )
    return {"seconds": seconds, "ratio": ratio._asdict(), "context": length, "largest_difference": difference}


def gpt_table(config: BDHConfig, options: argparse.Namespace) -> dict[str, Any]:
    """A GPT of equal size at several contexts, beside token steps, which cost the same at all of them."""
    gpt = GPTConfig(vocab_size=config.vocab_size, n_layer=8, d_model=512, n_head=8, dropout=0.0)
    if options.small:
        gpt = dataclasses.replace(gpt, n_layer=2, d_model=32, n_head=2)
    model = GPT(gpt)
    slow = jax.jit(model.init_slow)(jax.random.key(0))
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 4096).astype(np.int32)

    def cache(length: int) -> Any:
        shape = (gpt.n_head, length, gpt.d_model // gpt.n_head)
        return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(gpt.n_layer)]

    short, kept, logits = gpt_by_hand(gpt, slow, TOKENS), cache(TOKENS), None
    for position, token in enumerate(tokens[:TOKENS]):
        logits, kept = short(jnp.int32(token), jnp.int32(position), kept)
    whole = jax.jit(lambda slow: model.apply({"params": slow}, tokens[None, :TOKENS]).logits[0, -1])(slow)
    assert_alike({"with a cache": logits, "whole": whole}, "whole")
    here, (activity, *_) = dataclasses.replace(config, fast=FastWeightConfig()), options.activity[::-1]
    weights, count = random_weights(here, options.common), max(1, round(activity * config.n_neurons))
    keep_largest(bdh, count)
    sides = {f"BDH, {activity:.0%} active": by_model(with_token_step(here, weights, tokens[:64]), weights)}
    for length in options.contexts:
        step, caches = gpt_by_hand(gpt, slow, length), [cache(length)]

        def read(chosen: np.ndarray, step=step, caches=caches, length=length) -> Any:
            found = []
            for number, token in enumerate(chosen):
                logits, caches[0] = step(jnp.int32(token), jnp.int32(length - len(chosen) + number), caches[0])
                found.append(logits)
            jax.block_until_ready(caches[0])
            return jnp.stack(found)

        sides[f"GPT after {length}"] = read
    calls, _ = streams(sides, tokens)
    seconds = measure.interleave(calls, options.rounds, "GPT")
    first = next(iter(sides))
    rows = [
        [
            name,
            measure.summary([s / TOKENS for s in times]).format(1e3),
            measure.ratios(times, seconds[first]).format(digits=2),
        ]
        for name, times in seconds.items()
    ]
    sizes = BDH(here).architecture.weights(), model.architecture.weights()
    millions = [count_parameters(declared) / 1e6 for declared in sizes]
    measure.report(
        f"One token of BDH with write-back ({millions[0]:.1f} M parameters) and of a GPT ({millions[1]:.1f} M) with a cache",
        ["", "ms a token", "÷ BDH"],
        rows,
        "Median (min–max). BDH costs the same at every context.",
    )
    return {"seconds": seconds, "parameters_in_millions": millions}


def crossings(config: BDHConfig, options: argparse.Namespace) -> dict[str, Any]:
    """For each read the largest share of rows at which a gather is faster than reading everything."""
    heads, neurons, width, layers = config.n_head, config.neurons_per_head, config.d_model, config.n_layer
    rng, shares = np.random.default_rng(0), (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
    # As many matrices as layers, so that none is in a cache when it is read.
    matrices = [jnp.asarray(rng.standard_normal((heads, neurons, width), np.float32)) for _ in range(layers)]
    transposed = [jnp.swapaxes(matrix, 1, 2) + 0 for matrix in matrices]

    def reads(name: str, budget: int | None) -> Callable[[Any, jax.Array, jax.Array], Any]:
        def one(matrix: jax.Array, other: jax.Array, query: jax.Array, x: jax.Array) -> jax.Array:
            if name == "encoder_v":
                if budget is None:
                    return jnp.stack([x[:, h] @ other[h] for h in range(heads)], axis=1)
                return token_step.project(x, matrix, query != 0, budget)[0]
            group = 2 if name == "attention" else 1
            return token_step.read(query, matrix, budget, group=group, sum_heads=name != "attention")[0]

        # Each read waits for the one before, as layers do.
        def chain(matrices: Any, others: Any, query: jax.Array, x: jax.Array) -> jax.Array:
            for matrix, other in zip(matrices, others, strict=True):
                found = one(matrix, other, query, x)
                zero = jnp.minimum(jnp.max(jnp.abs(found)), 0)
                query, x = query + zero, x + zero
            return found

        return jax.jit(chain)

    rows, results = [], {}
    for name in ("attention", "encoder_v", "decoder", "memory"):
        found, best = {}, 0.0
        for share in shares:
            active = rng.random((1, heads, neurons // 2 if name == "attention" else neurons)) < share
            active = np.repeat(active, 2, axis=2) if name == "attention" else active
            query = jnp.asarray(np.where(active, rng.random((1, heads, neurons)) + 0.5, 0), jnp.float32)
            x = jnp.asarray(rng.standard_normal((1, heads, width)), jnp.float32)
            budget = max(1, int(1.15 * np.sum(active) / (2 if name == "attention" else 1)))
            sides = {"rows": reads(name, budget), "all": reads(name, None)}
            values = {side: read(matrices, transposed, query, x) for side, read in sides.items()}
            if name == "encoder_v":
                values["all"] = jnp.where(query != 0, values["all"], 0)
            assert_alike(values, "all")
            calls = {side: functools.partial(read, matrices, transposed, query, x) for side, read in sides.items()}
            seconds = measure.interleave(calls, options.rounds, f"{name} {share:.0%}")
            found[share] = measure.ratios(seconds["all"], seconds["rows"])
            best = max(best, share) if found[share].median > 1 else best
        rows.append([name, *(f"{ratio.median:.2f}" for ratio in found.values()), f"{best:g}"])
        results[name] = {"ratios": {str(share): ratio._asdict() for share, ratio in found.items()}, "largest_share": best}
    measure.report(
        f"Reading all rows ÷ reading active ones, {heads} × {neurons} × {width}, {layers} matrices in turn",
        ["read", *(f"{share:.0%}" for share in shares), "pays up to"],
        rows,
        "Medians of rounds in turn; budgets 1.15 times what is active.",
    )
    return results


def main() -> None:
    parser = measure.arguments(__doc__.splitlines()[0], rounds=9)
    parser.add_argument("--activity", type=float, nargs="+", default=[0.02, 0.05], help="shares of the code that are kept")
    parser.add_argument("--common", type=float, default=0.5, help="of the variance of embeddings, what all tokens share")
    parser.add_argument("--old", type=Path, help="an older checkout of this library")
    parser.add_argument("--official", type=Path, help="a checkout of the official code")
    parser.add_argument("--context", type=int, default=512, help="of the official code")
    parser.add_argument("--gpt", action="store_true", help="compare with a GPT")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096, 16384], help="of the GPT")
    parser.add_argument("--workdir", type=Path, help="a trained model, to measure at its own activity, and nothing else")
    parser.add_argument("--text", type=Path, help="what the trained model reads")
    parser.add_argument("--crossings", action="store_true", help="measure where a gather stops to pay, and nothing else")
    parser.add_argument("--only", action="store_true", help="only what --official and --gpt ask for")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    config = BDHConfig(dropout=0.0)
    if options.small:
        config = dataclasses.replace(config, n_layer=2, d_model=32, n_neurons=2**15, n_head=2)
    results: dict[str, Any] = {}
    if options.workdir:
        if options.text is None:
            sys.exit("error: --workdir needs --text: a file of text for the model to read")
        results["trained"] = trained(options)
    elif options.crossings:
        results["crossings"] = crossings(config, options)
    elif not options.only:
        results["table"] = table(config, options)
    if options.official:
        results["official"] = official_table(config, options)
    if options.gpt:
        results["gpt"] = gpt_table(config, options)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    # Where checkouts lie is nobody's business.
    settings = {
        name: value for name, value in settings.items() if name not in ("json", "old", "official", "workdir", "text")
    }
    measure.write_json(options.json, {"config": settings, "results": results})


if __name__ == "__main__":
    main()
