"""Write rules in NumPy, one token of one example at a time, written from the equations: what the library's rules are held to.

``TWINS`` is the table that :mod:`tests.reference_model` looks a rule up in. The test of a rule that comes from outside the library
adds its own with :func:`register`.

Axis letters: H head, N neurons per head, D model width; K = H·N.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

State = dict[str, np.ndarray]
"""What a rule keeps of one example, by name: "S" [H, N, D], and whatever else a rule needs."""


@dataclasses.dataclass(frozen=True)
class Token:
    """What a rule is given at one token.

    Attributes:
      config: a ``FastWeightConfig``; only its numbers and names are read.
      slow: weights by name.
      synapse: [H, N, D], zeros without one.
      query: [H, N], the address that reads.
      key: [H, N], the address that is written to.
      value: [D], what is written.
      rate: η [H].
      decay: λ [H]; ones where another layer has written to the same S at this token.
      gate: β, 1 without a gate.
    """

    config: Any
    slow: Mapping[str, np.ndarray]
    synapse: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    rate: np.ndarray
    decay: np.ndarray
    gate: float

    def read(self, matrix: np.ndarray) -> np.ndarray:
        """[H, N, D] at the query, [D]."""
        return np.einsum("hn,hnd->d", self.query, matrix)

    def predicted(self, matrix: np.ndarray) -> np.ndarray:
        """[H, N, D] at the key, [D]."""
        return np.einsum("hn,hnd->d", self.key, matrix)

    def decayed(self, matrix: np.ndarray) -> np.ndarray:
        """λ [H, N, D]."""
        return self.decay[:, None, None] * matrix

    def written(self, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """η k ⊗ x, [H, N, D]."""
        return self.rate[:, None, None] * key[:, :, None] * value


class Sizes(NamedTuple):
    """H, N and D."""

    heads: int
    neurons: int
    width: int


def only_S(sizes: Sizes) -> State:
    """The state of a rule that keeps S and nothing else, at the start of an episode."""
    return {"S": np.zeros(sizes)}


class Twin(NamedTuple):
    """A rule.

    Attributes:
      write: state and token to the read [D] (without the synapse's part) and the next state. Reads before it writes, and leaves
        its arguments as they are.
      start: the state at the start of an episode, all zeros.
    """

    write: Callable[[State, Token], tuple[np.ndarray, State]]
    start: Callable[[Sizes], State] = only_S


def hebbian(state: State, token: Token) -> tuple[np.ndarray, State]:
    """S' + η β k ⊗ x with S' = λ S, within the limits if there are some."""
    S = token.decayed(state["S"]) + token.written(token.key, token.gate * token.value)
    return token.read(state["S"]), {"S": limited(token.config, S)}


def delta(state: State, token: Token) -> tuple[np.ndarray, State]:
    """S' + η β k ⊗ (x − what synapse and S' say of k)."""
    kept = token.decayed(state["S"])
    error = token.gate * (token.value - token.predicted(token.synapse) - token.predicted(kept))
    return token.read(state["S"]), {"S": kept + token.written(token.key, error)}


def longhorn(state: State, token: Token) -> tuple[np.ndarray, State]:
    """The delta rule with β = 1 ÷ (1 + η‖k‖²)."""
    beta = 1 / (1 + np.sum(token.rate[:, None] * token.key**2))
    return delta(state, dataclasses.replace(token, gate=beta))


def oja(state: State, token: Token) -> tuple[np.ndarray, State]:
    """S' + η (k − S' x ÷ D) ⊗ x."""
    kept = token.decayed(state["S"])
    key = token.key - np.einsum("hnd,d->hn", kept, token.value) / len(token.value)
    return token.read(state["S"]), {"S": kept + token.written(key, token.value)}


def mesa(state: State, token: Token) -> tuple[np.ndarray, State]:
    """S' + η k ⊗ x and G' + η k ⊗ k, read (G + ridge)⁻¹ S; what the synapse says of k is not written."""
    S, gram = state["S"], state["gram"]
    solution = np.linalg.solve(gram + token.config.options["ridge"] * np.eye(len(gram)), S.reshape(len(gram), -1)).reshape(
        S.shape
    )
    error = token.value - token.predicted(token.synapse)
    key = token.key.ravel()
    return token.read(solution), {
        "S": token.decayed(S) + token.written(token.key, error),
        "gram": token.decay[0] * gram + token.rate[0] * np.outer(key, key),
    }


def S_and_gram(sizes: Sizes) -> State:
    """S, and G [K, K]."""
    rows = sizes.heads * sizes.neurons
    return {"S": np.zeros(sizes), "gram": np.zeros((rows, rows))}


def limited(config: Any, S: np.ndarray) -> np.ndarray:
    """S within the limits of the configuration."""
    if config.clamp is not None:
        S = np.clip(S, -config.clamp, config.clamp)
    if config.threshold is not None:
        S = np.where(np.abs(S) < config.threshold, 0, S)
    if config.row_norm is not None:
        S = S / np.maximum(1, np.linalg.norm(S, axis=-1, keepdims=True) / config.row_norm)
    return S


TWINS: dict[str, Twin] = {
    "hebbian": Twin(hebbian),
    "gated_hebbian": Twin(hebbian),
    "delta": Twin(delta),
    "gated_delta": Twin(delta),
    "longhorn": Twin(longhorn),
    "oja": Twin(oja),
    "mesa": Twin(mesa, S_and_gram),
}
"""``FastWeightConfig.rule`` → its twin."""


def register(rule: str, twin: Twin) -> None:
    """Add the twin of a rule.

    Raises:
      ValueError: if the rule has another one.
    """
    if TWINS.setdefault(rule, twin) != twin:
        raise ValueError(f"rule {rule!r} has a twin already")
