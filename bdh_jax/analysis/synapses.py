"""Which single synapses, and which neurons, tell sets of texts from each other, and what they write and read.

A synapse is here, as in the paper, one entry of an episode's state after a text: of the attention's ρ or of the fast weights S,
[L, H, N, D], a neuron and a coordinate of the width. (``slow["synapse"]`` is another thing, which no text changes.) What is searched is chosen without looking at which set a text is of; then every entry chosen is asked by the
Mann–Whitney test, and the answer is held against texts whose sets are shuffled:

- the largest of all, for the family of everything searched (:func:`bdh_jax.analysis.nulls.p_of_largest`),
- how many pass at a false discovery rate of 5 % (Benjamini and Hochberg), here and in shuffled sets,
- and what becomes of the selected ones on texts that took no part.

ρ is the sum of rotated keys, as the model holds it: with rotary positions, neurons of a pair trade places in it as text goes on.

Axis letters: see :mod:`bdh_jax.types`; C contrasts, M entries searched, P permutations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from bdh_jax.analysis.nulls import p_of, p_of_largest
from bdh_jax.fast_weights.state import FastState
from bdh_jax.layers.rotary import rope, rope_angles, rope_frequencies
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.types import Slow

Kind = Literal["rho", "S", "neuron", "token"]
"""An entry of ρ; of S; a neuron's code in the mean over a text's tokens; how often a token stands in the text, which needs no model."""

MOST_ENTRIES = 6000
"""M: of more, those are searched that vary most over the training texts, as many in every layer."""
LONGEST = 512
"""Tokens of a text that are read."""
LEAST_TEXTS = 8
"""Texts of a set: half of them are searched, half held out."""
FALSE_DISCOVERIES = 0.05
_BYTES = 1 << 28


class Texts(NamedTuple):
    """Texts as tokens, and what set each is of.

    Attributes:
      tokens: int32 [B, T], padded with zeros.
      valid: bool [B, T].
      labels: int64 [B], which of ``names``.
      names: of the sets.
    """

    tokens: np.ndarray
    valid: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def select(self, indices: np.ndarray) -> Texts:
        """Some of them."""
        return Texts(self.tokens[indices], self.valid[indices], self.labels[indices], self.names)


def as_texts(sets: Mapping[str, Sequence[np.ndarray]]) -> Texts:
    """Texts that were encoded, in the order of their sets. Those longer than ``LONGEST`` tokens are cut.

    Raises:
      ValueError: for fewer than two sets, a set of fewer than ``LEAST_TEXTS`` texts, an empty text, and a text that is there twice, which
        could be searched and held out at once.
    """
    if len(sets) < 2:
        raise ValueError(f"{len(sets)} set of texts: nothing to tell apart; give two or more")
    seen: dict[bytes, str] = {}
    for name, texts in sets.items():
        if len(texts) < LEAST_TEXTS:
            raise ValueError(f"set {name!r} has {len(texts)} texts; give {LEAST_TEXTS} or more, of which half are held out")
        for number, text in enumerate(texts):
            if not len(text):
                raise ValueError(f"text {number} of set {name!r} is empty; leave it out")
            key = np.asarray(text[:LONGEST], np.int32).tobytes()
            if key in seen:
                raise ValueError(f"text {number} of set {name!r} is in set {seen[key]!r} as well; leave it out of one")
            seen[key] = name
    flat = [np.asarray(text[:LONGEST], np.int32) for texts in sets.values() for text in texts]
    # Few lengths, few programs.
    length = -(-max(len(text) for text in flat) // 32) * 32
    tokens, valid = np.zeros((len(flat), length), np.int32), np.zeros((len(flat), length), bool)
    for row, text in enumerate(flat):
        tokens[row, : len(text)], valid[row, : len(text)] = text, True
    labels = np.repeat(np.arange(len(sets)), [len(texts) for texts in sets.values()])
    return Texts(tokens, valid, labels, tuple(sets))


def split(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the texts to search and of those held out: of every set half, drawn by chance (the odd one is held out)."""
    rng = np.random.default_rng((seed, len(labels)))
    train, test = [], []
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        train.append(order[: len(order) // 2])
        test.append(order[len(order) // 2 :])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


# What a model holds of a text.


@dataclasses.dataclass(frozen=True)
class Entries:
    """Numbers of every text.

    Attributes:
      kind: what they are.
      index: int64 [M, 4] layer, head, neuron, coordinate of "rho" and "S"; [M, 3] without the coordinate of "neuron"; [M, 1] of "token".
      values: float32 [B, M].
      of: how many there were to choose from.
    """

    kind: Kind
    index: np.ndarray
    values: np.ndarray
    of: int


def entries(
    kind: Kind,
    texts: Texts,
    train: np.ndarray,
    model: tuple[BDHConfig, Slow] | None = None,
    *,
    most: int = MOST_ENTRIES,
) -> Entries:
    """What is searched, chosen by its variance over the training texts, whatever their sets.

    States are those after the last token, divided by the number of tokens where nothing in them decays, so that long texts do not differ
    from short ones by their length alone.

    Args:
      kind: what.
      texts: all of them.
      train: indices of those that are searched.
      model: its configuration, and its slow weights; None for "token".
      most: entries.

    Raises:
      ValueError: for "S" of a model without fast weights.
    """
    if kind == "token" or model is None:
        return _choose(kind, lambda: iter([_token_shares(texts)]), train, most)
    config, slow = dataclasses.replace(model[0], dropout=0.0), model[1]
    if kind == "S" and not config.fast.enabled:
        raise ValueError("the model has no fast weights, so that there is no S; ask for rho")
    return _choose(kind, functools.partial(_batches, kind, config, slow, texts), train, most)


def _token_shares(texts: Texts) -> np.ndarray:
    size = int(texts.tokens.max()) + 1
    counts = [np.bincount(row[valid], minlength=size) for row, valid in zip(texts.tokens, texts.valid, strict=True)]
    return np.stack(counts).astype(np.float32)[:, None] / texts.valid.sum(axis=1, dtype=np.float32)[:, None, None]


def _choose(kind: Kind, batches: Callable[[], Iterator[np.ndarray]], train: np.ndarray, most: int) -> Entries:
    """Two passes over batches [B', L, ...]: variances, then the values of the entries that are kept."""
    origin = total = squares = np.zeros(())
    done = 0
    for batch in batches():
        chosen = batch[np.isin(np.arange(done, done + len(batch)), train)].astype(np.float64)
        if not done:
            # Differences to one text: sums of squares of them lose no digits.
            origin = np.asarray(batch[0], np.float64)
        chosen = chosen - origin
        total, squares = total + chosen.sum(axis=0), squares + (chosen**2).sum(axis=0)
        done += len(batch)
    variance = squares - total**2 / len(train)
    layers = variance.reshape(len(variance), -1)
    count = min(layers.shape[1], max(1, most // len(layers)))
    best = np.sort(np.argpartition(layers, layers.shape[1] - count, axis=1)[:, layers.shape[1] - count :], axis=1)
    index = np.stack(
        np.unravel_index((best + np.arange(len(layers))[:, None] * layers.shape[1]).ravel(), variance.shape), axis=1
    )
    where = (slice(None), *index.T)
    values = [np.asarray(batch)[where] for batch in batches()]
    return Entries(
        kind, index if kind != "token" else index[:, 1:], np.concatenate(values).astype(np.float32), variance.size
    )


def _batches(kind: Kind, config: BDHConfig, slow: Slow, texts: Texts) -> Iterator[np.ndarray]:
    """[B', L, H, N, D], or [B', L, H, N] of "neuron": all texts, so many at once as fit."""
    length, neurons = texts.tokens.shape[1], config.n_neurons
    each = config.n_layer * neurons * (2 * length if kind == "neuron" else config.d_model + length) * 4
    for rows in _rows(len(texts.labels), each):
        found = _observe(kind, config, slow, texts.tokens[rows], texts.valid[rows])
        yield np.asarray(found)[: len(texts.labels) - rows[0]]


def _rows(count: int, each: int) -> Iterator[np.ndarray]:
    """Indices of texts, so many at once as fit if each takes so many bytes. The last batch is filled up: one shape, one program."""
    size = int(np.clip(_BYTES // each, 1, count))
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe(kind: Kind, config: BDHConfig, slow: Slow, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    count = jnp.sum(valid, axis=1).astype(jnp.float32)
    if kind == "neuron":
        out = BDH(config).apply({"params": slow}, tokens, valid=valid, state="none", collect=("code",))
        code = jnp.moveaxis(out.collected["code"], 0, 1).astype(jnp.float32)  # [B, L, H, T, N]
        return jnp.einsum("blhtn,bt->blhn", code, valid.astype(jnp.float32)) / count[:, None, None, None]
    out = BDH(config).apply({"params": slow}, tokens, valid=valid)
    state = jnp.moveaxis(_state(kind, out.fast), 0, 1)
    return state if _decays(kind, config) else state / count[:, None, None, None, None]


def _state(kind: Kind, fast: object) -> jax.Array:
    """[L, B, H, N, D]."""
    assert isinstance(fast, FastState)
    state = fast.attention if kind == "rho" else fast.effective_memory()
    assert state is not None
    return state


def _decays(kind: Kind, config: BDHConfig) -> bool:
    if kind == "rho":
        return any(decay != 1 for decay in config.attention_decay)
    # What a rule writes over an older value, it forgets as well.
    return config.fast.decay != 1 or config.fast.learn_decay or not config.fast.rule_entry.linear


# The search.


class Search(NamedTuple):
    """What was found among M entries in C contrasts: of two sets the first against the second, of more each against all others.

    Attributes:
      contrasts: the set that each contrast is for, int64 [C].
      effects: rank-biserial correlation, float64 [C, M]: 1 if every text of the set has a larger value than every other, −1 smaller.
      p_values: of the Mann–Whitney test, two-sided, each for itself, [C, M].
      corrected: of the permutations, for the largest of everything searched, [C, M].
      discovered: bool [C, M], what passes at a false discovery rate of ``FALSE_DISCOVERIES``.
      largest_in_shuffled: the largest absolute effect in each permutation, [P].
      discovered_in_shuffled: how many pass in each permutation, int64 [P].
    """

    contrasts: np.ndarray
    effects: np.ndarray
    p_values: np.ndarray
    corrected: np.ndarray
    discovered: np.ndarray
    largest_in_shuffled: np.ndarray
    discovered_in_shuffled: np.ndarray

    @property
    def p_discovered(self) -> float:
        """The share of permutations in which as many pass."""
        return float(p_of(self.discovered.sum(), self.discovered_in_shuffled))

    @property
    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Contrast and entry of everything, the smallest corrected p-value first, and of equal ones the largest effect: two of [C · M]."""
        order = np.lexsort((-np.abs(self.effects).ravel(), self.p_values.ravel(), self.corrected.ravel()))
        contrast, entry = np.divmod(order, self.effects.shape[1])
        return contrast, entry


def search(values: np.ndarray, labels: np.ndarray, permutations: int = 999, seed: int = 0) -> Search:
    """Ask every entry whether it tells the sets apart.

    Args:
      values: [B, M] of the texts that are searched.
      labels: int [B], the set of each.
      permutations: P, in which texts trade their sets.
      seed: of the permutations.

    Returns:
      :class:`Search`. The statistic of which the largest counts is Mann–Whitney's in standard deviations, so that entries with ties and
      sets of other sizes are held to the same measure.
    """
    names = np.unique(labels)
    contrasts = names[:1] if len(names) == 2 else names
    ranks = stats.rankdata(values, axis=0)
    spread = np.sqrt(np.array([stats.tiecorrect(column) for column in ranks.T]))
    of = functools.partial(_mann_whitney, ranks, spread)
    (effects,), (z,), (p_values,) = of((labels[None] == contrasts[:, None])[None])
    rng = np.random.default_rng((seed, 3))
    shuffled_z, largest, discovered = [], [], []
    step = max(1, 2**22 // ranks[0].size // len(contrasts))
    for start in range(0, permutations, step):
        orders = np.stack([rng.permutation(labels) for _ in range(min(step, permutations - start))])
        effect, other, p = of(orders[:, None] == contrasts[None, :, None])
        shuffled_z.append(np.abs(other).reshape(len(orders), -1).max(axis=1))
        largest.append(np.abs(effect).reshape(len(orders), -1).max(axis=1))
        discovered.append(_passes(p.reshape(len(orders), -1)).sum(axis=1))
    corrected = p_of_largest(np.abs(z).ravel(), np.concatenate(shuffled_z)[:, None]).reshape(z.shape)
    return Search(
        contrasts,
        effects,
        p_values,
        corrected,
        _passes(p_values.reshape(1, -1)).reshape(p_values.shape),
        np.concatenate(largest),
        np.concatenate(discovered),
    )


def _mann_whitney(ranks: np.ndarray, spread: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``scipy.stats.mannwhitneyu(…, method="asymptotic")`` of many permutations at once: ranks stay, so that it is a product of matrices.

    Args:
      ranks: [B, M].
      spread: [M], the root of what ties leave of the variance; 0 where all are alike.
      member: bool [P, C, B].

    Returns:
      Rank-biserial correlations, statistics in standard deviations, and two-sided p-values, each [P, C, M].
    """
    first = member.sum(axis=-1, keepdims=True)
    second = member.shape[-1] - first
    sums = (member.reshape(-1, member.shape[-1]).astype(np.float64) @ ranks).reshape(*member.shape[:2], -1)
    above = sums - first * (first + 1) / 2 - first * second / 2
    deviation = np.sqrt(first * second * (member.shape[-1] + 1) / 12) * spread

    def in_deviations(value: np.ndarray) -> np.ndarray:
        return np.divide(value, deviation, out=np.zeros_like(above), where=deviation > 0)

    p_values = np.minimum(1, 2 * stats.norm.sf(in_deviations(np.maximum(0, np.abs(above) - 0.5))))
    return 2 * above / (first * second), in_deviations(above), p_values


def _passes(p_values: np.ndarray) -> np.ndarray:
    """[P, M] → bool: what passes in each row."""
    return stats.false_discovery_control(p_values, axis=1) <= FALSE_DISCOVERIES


class HeldOut(NamedTuple):
    """Entries that were selected, on texts that took no part.

    Attributes:
      effects: float64 [S], signed so that 1 is the direction that was found in the search.
      p_values: one-sided in that direction, each for itself, [S].
    """

    effects: np.ndarray
    p_values: np.ndarray


def hold_out(values: np.ndarray, labels: np.ndarray, found: Search, contrast: np.ndarray, entry: np.ndarray) -> HeldOut:
    """What is left of a selection.

    Args:
      values: [B', M] of the texts held out.
      labels: int [B'].
      found: the search.
      contrast, entry: int [S], what was selected.
    """
    effects, p_values = [], []
    for c, m in zip(contrast, entry, strict=True):
        member = labels == found.contrasts[c]
        sign = 1.0 if found.effects[c, m] >= 0 else -1.0
        test = stats.mannwhitneyu(sign * values[member, m], sign * values[~member, m], alternative="greater")
        effects.append(2 * test.statistic / (member.sum() * (~member).sum()) - 1)
        p_values.append(test.pvalue)
    return HeldOut(np.array(effects), np.array(p_values))


# In words.


class Traces(NamedTuple):
    """What happens in some synapses, token by token.

    Attributes:
      change: float32 [B, T, S], what the token added to the entry.
      read: float32 [B, T, S], what the entry, before it, gave to its coordinate at the token: its row's query times the entry.
    """

    change: np.ndarray
    read: np.ndarray


def trace(kind: Kind, config: BDHConfig, slow: Slow, texts: Texts, index: np.ndarray) -> Traces:
    """Follow synapses through texts, one token after another.

    Args:
      kind: "rho" or "S".
      config: of the model.
      slow: its weights.
      texts: to read.
      index: int [S, 4], as of :class:`Entries`.
    """
    config = dataclasses.replace(config, dropout=0.0)
    where = tuple(map(tuple, np.asarray(index).tolist()))
    parts = []
    for rows in _rows(len(texts.labels), config.n_layer * config.n_neurons * config.d_model * 4):
        found = _trace(kind, config, where, slow, texts.tokens[rows], texts.valid[rows])
        parts.append([np.asarray(array)[: len(texts.labels) - rows[0]] for array in found])
    return Traces(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _trace(
    kind: Kind, config: BDHConfig, where: tuple[tuple[int, ...], ...], slow: Slow, tokens: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    model = BDH(config)
    layer, head, neuron, width = jnp.asarray(where).T

    def at(fast: object) -> jax.Array:
        return _state(kind, fast)[layer, :, head, neuron, width]  # [S, B]

    def step(fast: Any, token: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        here, real = token
        out = model.apply({"params": slow}, here[:, None], fast, valid=real[:, None])
        return out.fast, (at(fast), at(out.fast))

    _, (before, after) = jax.lax.scan(step, model.init_fast(len(tokens)), (tokens.T, valid.T))  # each [T, S, B]
    name = "address" if kind == "S" else "code"
    rows = model.apply({"params": slow}, tokens, valid=valid, state="none", collect=(name,)).collected[name]
    if kind == "rho" and config.attention == "rope":
        neurons = jnp.arange(config.neurons_per_head)
        turns = rope_frequencies(neurons, config.neurons_per_head, config.rope_theta, config.state_dtype)
        rows = rope(rows, *(table[None] for table in rope_angles(jnp.arange(tokens.shape[1])[None], neurons, turns)))
    if kind == "S" and config.fast.scope == "shared":
        # All layers read the one S.
        rows = jnp.sum(rows, axis=0, keepdims=True)
    query = rows[layer, :, head, :, neuron]  # [S, B, T]
    read = jnp.moveaxis(query, 0, -1) * jnp.moveaxis(before, (0, 1, 2), (1, 2, 0))
    change = jnp.moveaxis(after - before, (0, 1, 2), (1, 2, 0))
    return change * valid[..., None], read * valid[..., None]


def codes(config: BDHConfig, slow: Slow, texts: Texts, index: np.ndarray) -> np.ndarray:
    """The code of some neurons at every token: float32 [B, T, S], 0 at padding.

    Args:
      config: of the model.
      slow: its weights.
      texts: to read.
      index: int [S, 3] layer, head, neuron.
    """
    config = dataclasses.replace(config, dropout=0.0)
    return np.asarray(_codes(config, slow, texts.tokens, texts.valid, jnp.asarray(index)))


@functools.partial(jax.jit, static_argnums=0)
def _codes(config: BDHConfig, slow: Slow, tokens: jax.Array, valid: jax.Array, index: jax.Array) -> jax.Array:
    out = BDH(config).apply({"params": slow}, tokens, valid=valid, state="none", collect=("code",))
    layer, head, neuron = index.T
    return jnp.moveaxis(out.collected["code"][layer, :, head, :, neuron], 0, -1) * valid[..., None]


def top_contexts(
    strength: np.ndarray, texts: Texts, decode: Callable[[Sequence[int]], str], count: int = 4, before: int = 12
) -> list[str]:
    """Where something is strongest, in words: at most one place a text, the strongest first.

    Args:
      strength: [B, T], of which the absolute value counts; places where it is zero are left out.
      texts: what was read.
      decode: tokens → text.
      count: of places.
      before: tokens before the one in brackets; half as many stand behind it.
    """
    size = np.abs(strength) * texts.valid
    places = size.argmax(axis=1)
    found = []
    for row in np.argsort(-size.max(axis=1), kind="stable")[:count]:
        at = int(places[row])
        if not size[row, at]:
            break
        line = texts.tokens[row][texts.valid[row]].tolist()
        parts = (line[max(0, at - before) : at], line[at : at + 1], line[at + 1 : at + 1 + before // 2])
        left, here, right = (decode(part).replace("\n", "⏎") for part in parts)
        found.append(f"{left}[{here}]{right}")
    return found
