"""Generation that carries its state: a prompt is read once, in chunks, and then every token costs the same.

    state = prefill(model, slow, [list(b"To be, or")])
    for tokens in generate(model, slow, state, max_tokens=100, sampling=Sampling(temperature=0.8, top_p=0.9)):
        ...

:class:`GenerationState` is all that is needed to go on: the fast state and the logits of the next token. It can be saved, loaded in
another process and continued (:mod:`bdh_jax.generation.state_files`).

Axis letters: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.config import ConfigError, check_types
from bdh_jax.config.seeds import KEYS, key_of, whole_seed
from bdh_jax.fast_weights.shapes import shapes
from bdh_jax.fast_weights.state import FastState, exportable
from bdh_jax.models.base import Model, ModelConfig
from bdh_jax.models.token_step import slots_of, with_slots, without_slots
from bdh_jax.types import Slow, Struct

PREFILL_CHUNK = 256
"""Tokens of a prompt that one call of the model reads."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters apply in the order of the fields; each keeps at least the most likely token."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token (greedy)."""
    top_k: int | None = None
    """Keep the k most likely tokens."""
    top_p: float | None = None
    """Keep the most likely tokens whose probabilities sum up to at least this (arXiv 1904.09751)."""
    min_p: float | None = None
    """Keep tokens at least this many times as likely as the most likely one (arXiv 2407.01082)."""
    vocab_size: int | None = None
    """Draw ids below this only, greedily too: a model may have more than its tokenizer knows. None: all."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.temperature >= 0:
            raise ConfigError(f"temperature={self.temperature} must be ≥ 0; 0 takes the most likely token")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1, or None to keep all tokens")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ConfigError(f"vocab_size={self.vocab_size} must be at least 1, or None to draw all ids")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ConfigError(f"{name}={share} must lie in (0, 1], or be None to keep all tokens")


Prompts = Sequence[Sequence[int] | np.ndarray]
"""Token ids, a sequence for each text."""


@exportable
@flax.struct.dataclass
class GenerationState(Struct):
    """What a model has read so far, for B sequences.

    Attributes:
      fast: :class:`FastState`.
      logits: [B, V], of the next token.
    """

    fast: FastState
    logits: jax.Array

    def __repr__(self) -> str:
        return shapes(self)


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [..., V], less the largest, divided by the temperature (> 0); −∞ where a filter drops the token."""
    logits = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
    limits = jnp.finfo(logits.dtype)
    # The largest is 0 however small the temperature: two that overflow to ∞ would be alike.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = logits / min(max(sampling.temperature, float(limits.tiny)), float(limits.max))
    dropped = jnp.array(-jnp.inf, logits.dtype)
    if sampling.top_k is not None:
        least = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits >= least, logits, dropped)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1)
        # Of a token and all less likely ones. Sums from the other end come out near 1, where thousands of tokens vanish in the rounding.
        share = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        kept = jnp.where(share > 1 - sampling.top_p, ordered, ordered[..., -1:])
        logits = jnp.where(logits >= jnp.min(kept, axis=-1, keepdims=True), logits, dropped)
    if sampling.min_p is not None:
        floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(jnp.asarray(sampling.min_p, logits.dtype))
        logits = jnp.where(logits >= floor, logits, dropped)
    return logits


def sample(logits: jax.Array, keys: jax.Array, positions: jax.Array, sampling: Sampling) -> jax.Array:
    """Draw one token for each sequence.

    The random numbers depend on a sequence's own key and position only, not on its neighbours in the batch nor on how the prompt
    was cut.

    Args:
      logits: [B, V].
      keys: [B] typed PRNG keys, one a sequence, of :func:`key_of`. Those of other implementations are refused: under ``vmap`` they
        draw from their neighbours' keys.
      positions: [B] integers, tokens read so far.
      sampling: see :class:`Sampling`.

    Returns:
      [B] int32.

    Raises:
      ValueError: for keys of another implementation.
    """
    if str(jax.random.key_impl(keys)) != KEYS:
        raise ValueError(
            f"keys are of {jax.random.key_impl(keys)}, with which a row depends on its neighbours; make {KEYS} keys (key_of)"
        )
    if sampling.vocab_size is not None:
        known = jnp.arange(logits.shape[-1]) < sampling.vocab_size
        logits = jnp.where(known[None], logits, jnp.array(-jnp.inf, logits.dtype))
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in)(keys, positions)
    return jax.vmap(jax.random.categorical)(keys, filter_logits(logits, sampling)).astype(jnp.int32)


def prefill(
    model: Model,
    slow: Slow,
    prompts: Prompts,
    state: GenerationState | None = None,
    *,
    chunk: int = PREFILL_CHUNK,
    progress: Callable[[int, int], None] | None = None,
) -> GenerationState:
    """Read prompts of any lengths. Memory does not grow with their length.

    Prompts are padded on the left with invalid tokens, so each is read as if it were alone.

    Args:
      model: the model.
      slow: its weights.
      prompts: B sequences of token ids. With ``state`` they may be empty; that sequence then stays where it is.
      state: to go on from; None starts anew. Its buffers are given up.
      chunk: tokens of one call of the model.
      progress: called with (tokens read, tokens in all) after each call, both of the longest prompt.

    Returns:
      The state after the prompts.

    Raises:
      ValueError: for no prompts, an empty one without a state, what is no sequence of integers, an id outside the vocabulary, or a
        state of another batch.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    arrays, reached = begin(model, prompts, state)
    longest = max(len(array) for array in arrays)
    # The first call takes what is left over, so that there are two lengths to compile at most.
    edges = [0, *range((longest - 1) % chunk + 1, longest + 1, chunk)] if longest else [0]
    for start, end in itertools.pairwise(edges):
        reached = _read(model, slow, reached, *padded(arrays, start, end))
        if progress is not None:
            progress(end, longest)
    return reached


def begin(model: Model, prompts: Prompts, state: GenerationState | None) -> tuple[list[np.ndarray], GenerationState]:
    """The prompts as arrays [T] of ids, and the state that they are read into: of zeros, or the one given. Raises as :func:`prefill`."""
    if len(prompts) == 0:
        raise ValueError("there are no prompts; give at least one sequence of token ids")
    arrays = [_ids(prompt, index, model.config.vocab_size) for index, prompt in enumerate(prompts)]
    for index, array in enumerate(arrays):
        if state is None and not len(array):
            raise ValueError(f"prompt {index} is empty: the first token needs something before it; give at least one token")
    if state is None:
        logits = jnp.zeros((len(arrays), model.config.vocab_size), model.config.state_dtype)
        # Copies, since leaves that share zeros could not be given up one by one.
        return arrays, GenerationState(jax.tree.map(jnp.copy, model.init_fast(len(arrays))), logits)
    if state.logits.shape[0] != len(arrays):
        raise ValueError(
            f"the state holds {state.logits.shape[0]} sequences and there are {len(arrays)} prompts; give as many"
        )
    return arrays, as_model_keeps_it(model, state)


def padded(arrays: Sequence[np.ndarray], start: int, end: int) -> tuple[jax.Array, jax.Array]:
    """Columns ``start`` to ``end`` of sequences that end at the same column: tokens [B, T] and which of them are there, [B, T] bool."""
    longest = max(len(array) for array in arrays)
    tokens = np.zeros((len(arrays), end - start), np.int32)
    valid = np.zeros(tokens.shape, bool)
    for row, array in enumerate(arrays):
        part = array[max(0, start - longest + len(array)) : max(0, end - longest + len(array))]
        if len(part):
            tokens[row, -len(part) :], valid[row, -len(part) :] = part, True
    return jnp.asarray(tokens), jnp.asarray(valid)


def as_model_keeps_it(model: Model, state: GenerationState) -> GenerationState:
    """The state with slots for writes that wait, or without, as the model has them. Its buffers may be given up."""
    if model.config.slots == slots_of(state.fast):
        return state
    return state.replace(fast=_with_other_slots(model, state.fast))


def generate(
    model: Model,
    slow: Slow,
    state: GenerationState,
    *,
    max_tokens: int,
    sampling: Sampling = Sampling(),
    seeds: Sequence[int] | int = 0,
    stop: Callable[[int, list[int]], bool] | None = None,
    on_state: Callable[[GenerationState], None] | None = None,
) -> Iterator[list[int | None]]:
    """Sample token after token, each read by the model before the next is drawn.

    Args:
      model: the model.
      slow: its weights.
      state: of :func:`prefill`, of a file or of an earlier call, of this model or of one with another ``token_step``. Its buffers are
        given up.
      max_tokens: of each sequence.
      sampling: how tokens are drawn.
      seeds: one for each sequence, or one that row b of the batch adds its number to; 0 to 2⁶⁴ − 1 each.
      stop: called with (row, tokens of that row so far) after each token; true ends that row, whose state then stays after
        that token.
      on_state: called with the state after every token; hold on to the last one only, the others are given up.

    Yields:
      For each step the B new tokens; None in rows that have ended. Ends when all rows have.

    Raises:
      ValueError: for max_tokens < 0, seeds that are not one for each sequence, or one out of range.
    """
    batch = state.logits.shape[0]
    if max_tokens < 0:
        raise ValueError(f"max_tokens={max_tokens} must be ≥ 0")
    given: Any = seeds
    numbers = list(given) if np.ndim(given) else [whole_seed(given, below=2**64) + row for row in range(batch)]
    if len(numbers) != batch:
        raise ValueError(f"seeds has {len(numbers)} numbers and the state {batch} sequences; give one for each")
    keys = jnp.stack([key_of(number) for number in numbers])
    state, views = as_model_keeps_it(model, state), model.architecture.views(slow)
    written: list[list[int]] = [[] for _ in range(batch)]
    going = np.ones(batch, bool)
    for _ in range(max_tokens):
        tokens, state = _step(model, (slow, views), state, keys, jnp.asarray(going), sampling)
        if on_state is not None:
            on_state(state)
        drawn = [int(token) if on else None for token, on in zip(np.asarray(tokens), going, strict=True)]
        for row, token in enumerate(drawn):
            if token is not None:
                written[row].append(token)
                if stop is not None and stop(row, written[row]):
                    going[row] = False
        yield drawn
        if not going.any():
            return


def memory_needed(config: ModelConfig, batch_size: int, chunk: int = PREFILL_CHUNK) -> int:
    """Bytes that reading takes beside the weights, about: the state, old and new, and the widest arrays of a chunk. The prompt's length
    does not matter."""
    one = jax.eval_shape(lambda: config.build().init_fast(1)).nbytes
    wide = 6 * chunk * config.widest * config.state_dtype.itemsize
    return batch_size * (2 * one + wide)


def check_memory(config: ModelConfig, batch_size: int, available: int | None) -> None:
    """Refuse more sequences than the memory holds, before anything is computed.

    Args:
      config: of the model.
      batch_size: sequences to be read at once.
      available: free bytes; None if they are not known.

    Raises:
      ConfigError: names both numbers of bytes.
    """
    needed = memory_needed(config, batch_size)
    if available is not None and needed > available:
        raise ConfigError(
            f"the state of {batch_size} texts needs {needed / 2**30:.2f} GiB and {available / 2**30:.2f} GiB are free; give fewer prompts at "
            "once. (A longer prompt needs no more: it is read in chunks)"
        )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _with_other_slots(model: Model, fast: FastState) -> FastState:
    plain = without_slots(fast)
    return with_slots(plain, model.declared_fast(fast.position.shape[0])) if model.config.slots else plain


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read(model: Model, slow: Slow, state: GenerationState, tokens: jax.Array, valid: jax.Array) -> GenerationState:
    out = model.apply({"params": slow}, tokens, state.fast, valid=valid)
    # Prompts end at the last column; a row whose prompt is empty keeps the logits it had.
    return GenerationState(out.carried, jnp.where(valid[:, -1:], out.logits[:, -1], state.logits))


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=2)
def _step(
    model: Model, weights: tuple[Slow, Slow], state: GenerationState, keys: jax.Array, going: jax.Array, sampling: Sampling
) -> tuple[jax.Array, GenerationState]:
    tokens = sample(state.logits, keys, state.fast.position, sampling)
    slow, views = weights
    out = model.apply({"params": slow, "views": views}, tokens[:, None], state.fast, valid=going[:, None])
    return tokens, GenerationState(out.carried, jnp.where(going[:, None], out.logits[:, 0], state.logits))


def _ids(prompt: Sequence[int] | np.ndarray, index: int, vocab_size: int) -> np.ndarray:
    if isinstance(prompt, str | bytes):
        raise ValueError(
            f"prompt {index} is a {type(prompt).__name__}, not token ids; encode it first with the tokenizer of the model (list(...) of bytes)"
        )
    array = np.asarray(prompt)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"prompt {index} has shape {array.shape} and dtype {array.dtype}; prompts are sequences of integers, one for each text"
        )
    array = array.astype(np.int64)
    wrong = array[(array < 0) | (array >= vocab_size)]
    if len(wrong):
        raise ValueError(f"prompt {index} holds token id {wrong[0]}, outside the vocabulary of vocab_size={vocab_size}")
    return array
