"""Language models scored in bits per byte: with carried or reset state, by position in the context, and with parts switched off.

Axis letters: B batch, T time, L layer, K neurons over all heads, D model width, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.box
import rich.table

from bdh_jax.analysis import figures
from bdh_jax.analysis.ablations import weights_of, without_writes
from bdh_jax.config.convert import change
from bdh_jax.console import Progress
from bdh_jax.data.corpus import Corpus, window
from bdh_jax.data.documents import DataError
from bdh_jax.fast_weights.state import FastState
from bdh_jax.models.base import ModelConfig
from bdh_jax.tasks.text import LOGITS_BYTES
from bdh_jax.types import Slow

Costs = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]

CHUNK = 128
"""Tokens of one call of the model while a state is carried."""


class PositionScore(NamedTuple):
    """How well tokens at some distance from the start of their context are predicted."""

    first: int
    """Distance of the first, in tokens."""
    last: int
    """Of the last."""
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, which is not called
    """Bytes."""
    bits_per_byte: float


def carried(config: ModelConfig, slow: Slow, corpus: Corpus, token_bytes: np.ndarray, *, rows: int = 8) -> PositionScore:
    """Bits per byte of a text that is read through with one state. (What it costs from empty states a task's ``evaluate`` says.)

    Args:
      config: of the model.
      slow: its weights.
      corpus: the text.
      token_bytes: [V], bytes of each token.
      rows: so many parts of the text are read side by side; each starts with an empty state. What cannot be shared out evenly, fewer
        than ``rows`` tokens at the end, is not scored.

    Returns:
      One :class:`PositionScore` of all tokens.

    Raises:
      DataError: if there are fewer tokens than rows.
      ValueError: for a model without a state to carry.
    """
    nats = size = 0.0
    longest = 0
    for distance, losses, weight, counted in _costs(config, slow, corpus, token_bytes, rows, context=None):
        nats += float((losses * weight).sum())
        size += float((counted * weight).sum())
        longest = max(longest, int(distance.max()))
    return PositionScore(0, longest, int(size), nats / math.log(2) / size)


def by_position(
    config: ModelConfig, slow: Slow, corpus: Corpus, token_bytes: np.ndarray, *, context: int, rows: int = 1
) -> tuple[PositionScore, ...]:
    """Bits per byte by how many tokens of the same document a model has read before, in contexts far longer than those of its training.

    Args:
      config, slow, corpus, token_bytes, rows: as in :func:`carried`.
      context: tokens of the longest context; the text is cut into such stretches, and what is left over at its end is not scored.

    Returns:
      One score for the distances 0 … 63, 64 … 127, 128 … 255 and so on, as far as the documents go.

    Raises:
      DataError: if the text is shorter than a context.
    """
    edges = [0, *(2**power for power in range(6, 1 + int(math.log2(context)))), context]
    edges = sorted({edge for edge in edges if edge <= context})
    nats, size = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for distance, losses, weight, counted in _costs(config, slow, corpus, token_bytes, rows, context):
        place = np.searchsorted(edges, distance, side="right") - 1
        np.add.at(nats, place, losses * weight)
        np.add.at(size, place, counted * weight)
    return tuple(
        PositionScore(low, high - 1, int(count), float(cost / math.log(2) / count))
        for low, high, count, cost in zip(edges, edges[1:], size, nats, strict=False)
        if count
    )


def cache_bytes(config: ModelConfig, context: int) -> int:
    """Bytes of a transformer's cache of keys and values: 2·L·D numbers a token, in the state's dtype, of equal layers and width."""
    return 2 * config.n_layer * config.d_model * config.state_dtype.itemsize * context


def equal_context(config: ModelConfig) -> int:
    """The context at which that cache is as large as the state of one sequence; beyond it the state is smaller."""
    return -(-state_bytes(config) // cache_bytes(config, 1))


def state_bytes(config: ModelConfig) -> int:
    """Bytes of the state of one sequence, whatever its length."""
    return jax.eval_shape(lambda: config.build().init_fast(1)).nbytes


def ablations(config: ModelConfig, slow: Slow) -> dict[str, tuple[ModelConfig, Slow]]:
    """A model with parts switched off, nothing trained again: name → configuration and weights.

    ``normal``; with fast weights ``fast_write_off`` (S stays empty) and ``fast_off`` (no S and no synapse); with a synapse
    ``slow_read_off`` (the synapse is zero). :mod:`bdh_jax.analysis.ablations` has more, for questions with one answer at their end.
    """
    variants: dict[str, tuple[ModelConfig, Slow]] = {"normal": (config, slow)}
    if not config.fast.enabled:
        return variants
    off = change(config, "fast", enabled=False)
    for name, other in {"fast_write_off": without_writes(config), "fast_off": off}.items():
        variants[name] = (other, weights_of(other, slow))
    if "synapse" in slow:
        variants["slow_read_off"] = (config, {**slow, "synapse": jnp.zeros_like(slow["synapse"])})
    return variants


def positions_table(scores: Mapping[str, Sequence[PositionScore]], title: str) -> rich.table.Table:
    """Bits per byte: one row for each distance, one column for each model."""
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, show_edge=False)
    table.add_column("tokens read before", justify="right")
    for name in scores:
        table.add_column(name, justify="right")
    for rows in zip(*scores.values(), strict=True):
        table.add_row(f"{rows[0].first:,} – {rows[0].last:,}", *(f"{row.bits_per_byte:.4f}" for row in rows))
    return table


def plot_positions(scores: Mapping[str, Sequence[PositionScore]], train_length: int) -> Any:
    """A matplotlib figure of :func:`positions_table`'s numbers, with a line where training contexts ended."""
    figure, (axes,) = figures.make(width=6.5, height=4)
    looks = figures.lines(list(scores))
    for name, rows in scores.items():
        axes.plot([row.last + 1 for row in rows], [row.bits_per_byte for row in rows], **looks[name])
    axes.axvline(train_length, color="0.6", lw=1, ls="--")
    axes.text(train_length, axes.get_ylim()[1], " training length", color="0.4", va="top", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens read before, up to", fontsize=9)
    axes.set_ylabel("bits per byte", fontsize=9)
    figures.legend(figure, axes)
    return figure


def _costs(
    config: ModelConfig, slow: Slow, corpus: Corpus, token_bytes: np.ndarray, rows: int, context: int | None
) -> Costs:
    """(distances, losses, weights, bytes), each [B,T], for one chunk of tokens after another. The state is emptied every ``context``
    tokens (None: never). A distance is counted from where it was empty: the start of a context or of a document."""
    total = len(corpus.tokens) - 1
    length = total // rows
    if context is not None:
        length -= length % context
    if length < 1:
        raise DataError(
            f"{len(corpus.tokens)} tokens in {rows} rows are fewer than a context of {context or 1} needs; give more text, or a "
            "shorter context"
        )
    if context is None and not config.has_state:
        raise ValueError(f"a {config.architecture!r} model has no state to carry; by_position needs none")
    # A long context is read in chunks with a state; a short one, or one of a model without a state, at once.
    with_state = config.has_state and (context is None or context > CHUNK)
    empty = config.build().init_fast(rows) if with_state else None
    most = max(1, LOGITS_BYTES // (rows * config.vocab_size * config.state_dtype.itemsize))
    step = min(CHUNK, most) if with_state or context is None else context
    state, read = empty, np.zeros((rows, 1), np.int64)
    with Progress("tokens", length) as progress:
        done = 0
        while done < length:
            here = done if context is None else done % context
            if here == 0:
                state, read = empty, np.zeros((rows, 1), np.int64)
            size = min(step, (length if context is None else context) - here)
            pieces = [window(corpus, row * (total // rows) + done, size) for row in range(rows)]
            tokens, targets, reset, weight = (np.stack(arrays) for arrays in zip(*pieces, strict=True))
            losses, state = _run(config, with_state, most, slow, tokens, targets, reset, state)
            count = read + np.arange(size)
            distance = count - np.maximum.accumulate(np.where(reset, count, 0), axis=1)
            yield distance, np.asarray(losses, np.float64), weight, token_bytes[targets]
            read = distance[:, -1:] + 1
            done += size
            progress.advance(size)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    config: ModelConfig,
    with_state: bool,
    most: int,
    slow: Slow,
    tokens: jax.Array,
    targets: jax.Array,
    reset: jax.Array,
    state: FastState | None,
) -> tuple[jax.Array, FastState | None]:
    """Costs [B,T] and the next state; logits are made of ``most`` tokens at a time."""
    model, length = config.build(), tokens.shape[1]
    if with_state or length <= most:
        out = model.apply({"params": slow}, tokens, state, reset=reset, state="full" if with_state else "none")
        after = out.carried if with_state else None
        return optax.softmax_cross_entropy_with_integer_labels(out.logits, targets), after
    x = model.apply({"params": slow}, tokens, reset=reset, method="hidden")

    def costs(first: jax.Array) -> jax.Array:
        logits = model.architecture.readout(slow, jax.lax.dynamic_slice_in_dim(x, first, most, axis=1))
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jax.lax.dynamic_slice_in_dim(targets, first, most, axis=1)
        )

    # The last part starts earlier, so that all are of one length.
    starts = np.minimum(np.arange(0, length, most), length - most)
    parts = jax.lax.map(costs, jnp.asarray(starts))
    whole = jnp.moveaxis(parts[:-1], 0, 1).reshape(len(tokens), -1)
    return jnp.concatenate([whole, parts[-1][:, whole.shape[1] - length :]], axis=1), None
