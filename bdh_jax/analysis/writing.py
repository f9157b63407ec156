"""What a text writes into the state of a BDH, token by token: how full it gets, which rows, and what is read from them again.

Two matrices with K rows of width D are watched in every layer: the fast weights S, and the state ρ of the attention, which every BDH
has. A row is *read* where the address is not zero, and *written* where the key is not. Of S both are as ``config.fast`` says; of ρ both
are the code, turned by its position.

Axis letters: see :mod:`bdh_jax.types`; K = H·N rows, M matrices (layers, or 1 of S that all layers share), S shuffles.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.analysis.fast_states import empty_attention, empty_memory, shuffle_attention_by, shuffle_rows_by
from bdh_jax.config.seeds import key_of
from bdh_jax.fast_weights.state import FastState
from bdh_jax.layers.rotary import rope, rope_angles, rope_frequencies
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.types import Slow

Matrix = Literal["S", "ρ"]


def matrices(config: BDHConfig) -> tuple[Matrix, ...]:
    """What there is to watch: S first, if there is one."""
    return ("S", "ρ") if config.fast.enabled else ("ρ",)


class Course(NamedTuple):
    """One matrix while one text is read.

    Attributes:
      nonzero: [T, M], share of its entries that are not zero after each token.
      norm: [T, M], its Frobenius norm then.
      rows: [T, M, K], the norm of each of its rows then.
      read: [T, L, K] bool, rows that each token's address reads.
      written: [T, L, K] bool, rows that each token writes.
    """

    nonzero: np.ndarray
    norm: np.ndarray
    rows: np.ndarray
    read: np.ndarray
    written: np.ndarray


class Predictions(NamedTuple):
    """What is predicted after each token, with one matrix as it is, empty, and with its rows shuffled: log-probabilities.

    Attributes:
      normal: [T, V].
      without: [T, V].
      shuffled: [S, T, V], the rows in another order at every token.
    """

    normal: np.ndarray
    without: np.ndarray
    shuffled: np.ndarray


class Watched(NamedTuple):
    """One text, read token by token."""

    course: dict[Matrix, Course]
    predictions: dict[Matrix, Predictions]


def watch(config: BDHConfig, slow: Slow, tokens: np.ndarray, *, shuffles: int = 8, seed: int = 0) -> Watched:
    """Read a text token by token, and look at the state after each.

    The token's own read is what is taken away: all that was read before it stays as it was.

    Args:
      config: of the model.
      slow: its weights.
      tokens: [T].
      shuffles: S ≥ 1, orders of the rows to predict with.
      seed: draws them.

    Returns:
      The :class:`Watched`.
    """
    if shuffles < 1:
        raise ValueError(f"shuffles={shuffles} must be at least 1")
    keys = jax.random.split(key_of(seed), shuffles)
    plain = config.without_slots()
    seen = jax.device_get(_watch(plain, slow, jnp.asarray(tokens, jnp.int32), keys))
    course, predictions = {}, {}
    for which in matrices(config):
        rows = seen["rows"][which]
        course[which] = Course(
            nonzero=seen["nonzero"][which],
            norm=np.sqrt(np.sum(np.square(rows, dtype=np.float64), axis=2)),
            rows=rows,
            read=seen["read"][which],
            written=seen["written"][which],
        )
        others = np.moveaxis(seen["others"][which], 1, 0)  # [1 + S, T, V]
        predictions[which] = Predictions(seen["normal"], others[0], others[1:])
    return Watched(course, predictions)


@functools.partial(jax.jit, static_argnums=0)
def _watch(config: BDHConfig, slow: Slow, tokens: jax.Array, keys: jax.Array) -> dict[str, Any]:
    model = config.build()
    names = ("code", "address") if config.fast.enabled else ("code",)

    def logs(token: jax.Array, fast: FastState) -> jax.Array:
        logits = model.apply({"params": slow}, token[None, None], fast, state="none").logits[0, 0]
        return jax.nn.log_softmax(logits)

    def step(fast: FastState, token: jax.Array) -> tuple[FastState, dict[str, Any]]:
        out = model.apply({"params": slow}, token[None, None], fast, collect=names)
        after = out.carried
        code = out.collected["code"][:, 0, :, 0]  # [L, H, N]
        read = {"ρ": _turned(config, code, fast.position) != 0}
        written = {"ρ": read["ρ"]}
        if config.attention == "shift" and fast.previous_code is not None:
            written["ρ"] = fast.previous_code[:, 0] != 0
        if config.fast.enabled:
            address = out.collected["address"][:, 0, :, 0]
            read["S"] = address != 0
            key = fast.previous_address[:, 0] if fast.previous_address is not None else address
            written["S"] = key != 0

        def other(which: Matrix) -> jax.Array:
            shuffled = jax.lax.map(lambda key: logs(token, _shuffled(fast, which, key)), keys)
            return jnp.concatenate([logs(token, _without(fast, which))[None], shuffled])

        others = {which: other(which) for which in matrices(config)}
        held = {which: _matrix(after, which)[:, 0] for which in matrices(config)}  # [M, H, N, D]
        return after, {
            "normal": jax.nn.log_softmax(out.logits[0, 0]),
            "others": others,
            "nonzero": {which: jnp.mean(matrix != 0, axis=(1, 2, 3)) for which, matrix in held.items()},
            "rows": {which: _flat(jnp.linalg.norm(matrix, axis=-1)) for which, matrix in held.items()},
            "read": {which: _flat(rows) for which, rows in read.items()},
            "written": {which: _flat(rows) for which, rows in written.items()},
        }

    return jax.lax.scan(step, model.init_fast(1), tokens)[1]


def _turned(config: BDHConfig, code: jax.Array, position: jax.Array) -> jax.Array:
    """What of a code [L, H, N] reaches ρ at a position [1]: both of a pair of which either is active, once they are turned."""
    if config.attention != "rope":
        return code
    cos, sin = _angles(config, position[:, None])
    return rope(code[:, :, None], cos, sin)[:, :, 0]


def _angles(config: BDHConfig, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    neurons = jnp.arange(config.neurons_per_head)
    turns = rope_frequencies(neurons, config.neurons_per_head, config.rope_theta, config.state_dtype)
    return rope_angles(position, neurons, turns)


def _flat(rows: jax.Array) -> jax.Array:
    return rows.reshape(rows.shape[0], -1)


def _matrix(fast: FastState, which: Matrix) -> jax.Array:
    """[M, B, H, N, D]."""
    matrix = fast.memory if which == "S" else fast.attention
    if matrix is None:
        raise ValueError(f"this state has no {which}")
    return matrix


def _without(fast: FastState, which: Matrix) -> FastState:
    return empty_memory(fast) if which == "S" else empty_attention(fast)


def _shuffled(fast: FastState, which: Matrix, key: jax.Array) -> FastState:
    return shuffle_rows_by(fast, key) if which == "S" else shuffle_attention_by(fast, key)


class LastRead(NamedTuple):
    """What is predicted after the last token of many texts: log-probabilities, as in :class:`Predictions`.

    Attributes:
      normal: [B, V].
      without: [B, V].
      shuffled: [S, B, V].
    """

    normal: np.ndarray
    without: np.ndarray
    shuffled: np.ndarray


def last_reads(
    config: BDHConfig, slow: Slow, texts: Sequence[np.ndarray], which: Matrix, *, shuffles: int = 99, seed: int = 1
) -> LastRead:
    """Take the last token's read of one matrix away, and give it other rows: what :func:`watch` does at every token, for many texts.

    Args:
      config: of the model.
      slow: its weights.
      texts: B texts, each [T ≥ 2], of any lengths.
      which: the matrix.
      shuffles: S.
      seed: draws the orders, one for all texts in each shuffle.

    Returns:
      The :class:`LastRead`.
    """
    longest = max(len(text) for text in texts) - 1
    before = np.stack([np.pad(text[:-1], (0, longest + 1 - len(text))) for text in texts]).astype(np.int32)
    valid = np.arange(longest)[None] < np.array([len(text) - 1 for text in texts])[:, None]
    last = np.array([text[-1] for text in texts], np.int32)[:, None]
    fast = _state_after(config.without_slots(), slow, before, valid)
    return reads(config, slow, fast, last, which, shuffles=shuffles, seed=seed)


def reads(
    config: BDHConfig, slow: Slow, fast: FastState, last: np.ndarray, which: Matrix, *, shuffles: int = 99, seed: int = 1
) -> LastRead:
    """As :func:`last_reads`, of a state that is given.

    Args:
      config: of the model.
      slow: its weights.
      fast: of B texts.
      last: [B, 1], the token that reads.
      which: the matrix.
      shuffles: S.
      seed: draws the orders.
    """
    keys = jax.random.split(key_of(seed), shuffles)
    return LastRead(*jax.device_get(_reads(config.without_slots(), which, slow, fast, last, keys)))


@functools.partial(jax.jit, static_argnums=0)
def _state_after(config: BDHConfig, slow: Slow, tokens: jax.Array, valid: jax.Array) -> FastState:
    return config.build().apply({"params": slow}, tokens, valid=valid).carried


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reads(
    config: BDHConfig, which: Matrix, slow: Slow, fast: FastState, last: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    model = config.build()

    def logs(fast: FastState) -> jax.Array:
        return jax.nn.log_softmax(model.apply({"params": slow}, last, fast, state="none").logits[:, 0])

    shuffled = jax.lax.map(lambda key: logs(_shuffled(fast, which, key)), keys)
    return logs(fast), logs(_without(fast, which)), shuffled


def worth(read: LastRead, came: np.ndarray | None) -> tuple[float, np.ndarray]:
    """Bits that the last read adds, in the mean over texts.

    Args:
      read: of B texts.
      came: [B], the token that stands after each, whose log-probability counts; None: the certainty of what is predicted counts.

    Returns:
      As it is, and [S], of rows in each other order.
    """
    if came is None:
        normal, without, shuffled = (certainty(part) for part in read)
    else:
        normal, without, shuffled = (part[..., np.arange(len(came)), came] / np.log(2) for part in read)
    return float((normal - without).mean()), (shuffled - without).mean(axis=-1)


def certainty(log_probabilities: np.ndarray) -> np.ndarray:
    """Minus the entropy, in bits, of log-probabilities [..., V] in nats: larger is surer."""
    return np.sum(np.exp(log_probabilities) * log_probabilities, axis=-1, dtype=np.float64) / np.log(2)


# Addresses.


def addresses(config: BDHConfig, slow: Slow, tokens: np.ndarray, valid: np.ndarray, which: Matrix) -> np.ndarray:
    """With what each token reads, of length 1 or zero; what is written under it is read again by who comes with the same.

    Args:
      config: of the model.
      slow: its weights.
      tokens: [B, T].
      valid: [B, T].
      which: the matrix.

    Returns:
      [B, T, L, K] float32: of S the address, of ρ the code, turned by its position if attention is "rope".
    """
    return jax.device_get(_addresses(config.without_slots(), which, slow, tokens, valid))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _addresses(config: BDHConfig, which: Matrix, slow: Slow, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    name = "address" if which == "S" else "code"
    out = config.build().apply({"params": slow}, tokens, valid=valid, state="none", collect=(name,))
    found = out.collected[name].astype(jnp.float32)  # [L, B, H, T, N]
    if which == "ρ" and config.attention == "rope":
        cos, sin = _angles(config, jnp.cumsum(valid, axis=1) - 1)
        found = jax.vmap(lambda code: rope(code, cos, sin))(found)
    rows = jnp.moveaxis(found, (1, 3), (0, 1)).reshape(*tokens.shape, config.n_layer, -1)
    length = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(length > 0, length, 1)


class AskedAgain(NamedTuple):
    """Addresses of a token that was there before, then and now.

    Attributes:
      same: [P, L], cosine of the address now and at the token's last occurrence before, for each of P occasions.
      other: [P, L], the mean cosine with all earlier tokens of other kinds.
      distance: [P] int, tokens between then and now.
      excess: [L], ``same`` above the mean of all pairs at that distance, in the mean over occasions.
      shuffled: [S, L], the same with the tokens in another order within their sequences.
    """

    same: np.ndarray
    other: np.ndarray
    distance: np.ndarray
    excess: np.ndarray
    shuffled: np.ndarray


def asked_again(
    address: np.ndarray, tokens: np.ndarray, valid: np.ndarray, *, shuffles: int = 199, seed: int = 0
) -> AskedAgain:
    """Does a token come back to its own address?

    Args:
      address: [B, T, L, K] of length 1, of :func:`addresses`.
      tokens: [B, T].
      valid: [B, T], of each sequence the first so many.
      shuffles: S.
      seed: draws them.

    Returns:
      The :class:`AskedAgain`. An occasion has an earlier token of the same kind and one of another kind; P may be 0.
    """
    rows = np.moveaxis(address, 2, 0)
    cosine = rows @ rows.swapaxes(-1, -2)  # [L, B, T, T]
    layers = len(cosine)
    above = cosine - _mean_at_distance(cosine, valid)
    lines = [line[there] for line, there in zip(tokens, valid, strict=True)]
    same, other, distance = [np.zeros((0, layers))], [np.zeros((0, layers))], [np.zeros(0, int)]
    for number, line in enumerate(lines):
        now, then = _occasions(line)
        equal = line[:, None] == line[None, :]
        earlier = np.tril(~equal, -1)
        others = earlier.sum(axis=1)
        now, then = now[others[now] > 0], then[others[now] > 0]
        part = cosine[:, number, : len(line), : len(line)]
        same.append(part[:, now, then].T)
        other.append(((part * earlier).sum(axis=2)[:, now] / others[now]).T)
        distance.append(now - then)

    def excess(lines: Sequence[np.ndarray]) -> np.ndarray:
        found = [above[:, number, now, then] for number, (now, then) in enumerate(map(_occasions, lines))]
        together = np.concatenate(found, axis=1)
        return together.mean(axis=1) if together.size else np.zeros(layers)

    rng = np.random.default_rng(seed)
    shuffled = np.array([excess([rng.permutation(line) for line in lines]) for _ in range(shuffles)])
    return AskedAgain(
        np.concatenate(same), np.concatenate(other), np.concatenate(distance), excess(lines), shuffled.reshape(-1, layers)
    )


def _occasions(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of tokens that were there before, and of their last occurrence then."""
    order = np.argsort(line, kind="stable")
    again = line[order[1:]] == line[order[:-1]]
    return order[1:][again], order[:-1][again]


def _mean_at_distance(cosine: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[L, B, T, T] → the mean over all valid pairs that are as far apart, [L, 1, T, T]."""
    length = cosine.shape[-1]
    pair = (valid[:, :, None] & valid[:, None, :]).astype(np.float64)
    mean = np.zeros((len(cosine), 1, length, length))
    for far in range(1, length):
        now = np.arange(far, length)
        weights = pair[:, now, now - far]
        if weights.any():
            values = cosine[:, :, now, now - far]
            mean[:, 0, now, now - far] = ((values * weights).sum(axis=(1, 2)) / weights.sum())[:, None]
    return mean
