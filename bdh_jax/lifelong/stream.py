"""Streams of facts: episodes in which keys come again, and some get another value.

Axis letters: F facts, E episodes, P facts of an episode.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from bdh_jax.config import ConfigError, check_types
from bdh_jax.tasks.facts import FIRST_VALUE, KINDS, VALUES, combinations


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """What a stream of facts looks like."""

    facts: int = 1024
    """F, distinct keys."""
    pairs: int = 16
    """P."""
    repeats: float = 2.0
    """Times a fact is shown, on average. Each is shown once for sure; the rest falls on few facts, by Zipf's law."""
    reassigned: float = 0.25
    """Share of the facts that get another value later."""
    zipf: float = 1.0
    """Exponent of the law: fact number i is repeated in proportion to i^−zipf."""
    checkpoints: int = 4
    """Times at which all facts so far are asked for; the number of episodes is a multiple of it."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.pairs < 1 or self.checkpoints < 1:
            raise ConfigError(f"pairs={self.pairs} and checkpoints={self.checkpoints} must be at least 1")
        most = sum(len(getattr(combinations(), kind)) for kind in KINDS)
        if not self.pairs <= self.facts <= most:
            raise ConfigError(
                f"facts={self.facts} must lie in {self.pairs} … {most}, from the facts of an episode to all keys"
            )
        if self.repeats < 1 + self.reassigned:
            raise ConfigError(f"repeats={self.repeats} must be at least 1 + reassigned={1 + self.reassigned}")
        if not 0 <= self.reassigned <= 1:
            raise ConfigError(f"reassigned={self.reassigned} must lie in [0, 1]")


class Truth(NamedTuple):
    """What holds after a number of episodes, each [F]."""

    value: np.ndarray
    """int32 token id of the value; −1 before the fact is shown."""
    previous: np.ndarray
    """int32, the value before the last change; −1 without one."""
    last: np.ndarray
    """int, the episode that showed it last; −1 before."""


class Stream(NamedTuple):
    """A stream of facts."""

    keys: np.ndarray
    """[F, 2] int32."""
    kind: np.ndarray
    """[F] int, index into ``KINDS``."""
    facts: np.ndarray
    """[E, P] int, the facts of each episode, distinct within it."""
    written: np.ndarray
    """[E, P] int32, the values they have there."""

    @property
    def tokens(self) -> np.ndarray:
        """[E, 3P] int32: a b v, fact after fact."""
        tokens = np.concatenate([self.keys[self.facts], self.written[..., None]], axis=2)
        return tokens.reshape(len(self.facts), -1).astype(np.int32)

    def truth(self, episodes: int | None = None) -> Truth:
        """What holds after so many episodes; None for all."""
        value, previous = np.full((2, len(self.keys)), -1, np.int32)
        last = np.full(len(self.keys), -1)
        for episode in range(len(self.facts) if episodes is None else episodes):
            shown, written = self.facts[episode], self.written[episode]
            changed = (value[shown] >= 0) & (value[shown] != written)
            previous[shown] = np.where(changed, value[shown], previous[shown])
            value[shown], last[shown] = written, episode
        return Truth(value, previous, last)


def make_stream(config: StreamConfig, *, seed: int, validation: bool = False) -> Stream:
    """A stream: a pure function of its configuration and seed.

    Args:
      config: what it looks like.
      seed: of all draws.
      validation: draw from other randomness than the streams that results are reported on.

    Returns:
      The stream. E is ⌈repeats · F / P⌉, rounded up to a multiple of ``checkpoints``.
    """
    rng = np.random.default_rng([seed, validation])
    keys, kind = _keys(rng, config.facts)
    order, changes = _events(rng, config)
    # Not from the number of events: a frequent fact cannot come as often as the law says, and all streams are equally long.
    total = round(config.repeats * config.facts)
    episodes = -(-total // (config.pairs * config.checkpoints)) * config.checkpoints
    value = rng.integers(0, VALUES, config.facts)
    facts = np.full((episodes, config.pairs), -1)
    written = np.zeros((episodes, config.pairs), np.int32)
    filled, last, first_open = np.zeros(episodes, int), np.full(config.facts, -1), 0

    def place(fact: int, start: int) -> None:
        for episode in range(max(start, last[fact] + 1), episodes):
            if filled[episode] < config.pairs:
                facts[episode, filled[episode]] = fact
                written[episode, filled[episode]] = FIRST_VALUE + value[fact]
                filled[episode] += 1
                last[fact] = episode
                return

    for fact, change in zip(order.tolist(), changes.tolist(), strict=True):
        if change:
            value[fact] = (value[fact] + rng.integers(1, VALUES)) % VALUES
        while first_open < episodes - 1 and filled[first_open] == config.pairs:
            first_open += 1
        place(fact, first_open)
    # What is left open at the end is filled with facts that were not shown for a while, at the value they have there.
    for episode in np.flatnonzero(filled < config.pairs).tolist():
        before = Stream(keys, kind, np.maximum(facts, 0), written)
        now = before.truth(episode).value if episode else np.full(config.facts, -1, np.int32)
        absent = np.setdiff1d(np.flatnonzero(now >= 0), facts[episode : episode + 1, : filled[episode]])
        later = np.isin(absent, facts[episode + 1 :])
        absent = np.concatenate([rng.permutation(absent[~later]), rng.permutation(absent[later])])
        room = slice(filled[episode], config.pairs)
        facts[episode, room] = absent[: config.pairs - filled[episode]]
        written[episode, room] = now[facts[episode, room]]
        filled[episode] = config.pairs
    return Stream(keys, kind, facts, written)


def _keys(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys [F, 2] of all kinds, as evenly as they last, in random order; and their kinds [F]."""
    pools = [rng.permutation(getattr(combinations(), kind)) for kind in KINDS]
    sizes = np.array([len(pool) for pool in pools])
    shares = np.zeros(len(KINDS), int)
    for _ in range(count):
        shares[np.where(shares < sizes, shares, count + 1).argmin()] += 1
    keys = np.concatenate([pool[:share] for pool, share in zip(pools, shares, strict=True)])
    order = rng.permutation(count)
    return keys[order].astype(np.int32), np.repeat(np.arange(len(KINDS)), shares)[order]


def _events(rng: np.random.Generator, config: StreamConfig) -> tuple[np.ndarray, np.ndarray]:
    """Facts in the order in which they are shown [events], and whether one gets another value then."""
    count = config.facts
    introduced = rng.permutation(count) / count
    changed = rng.permutation(count)[: round(config.reassigned * count)]
    total = round(config.repeats * count)
    weights = np.arange(1, count + 1.0) ** -config.zipf
    # A fact can be shown once an episode, and the most frequent ones would be shown more often.
    most = max(1, total // config.pairs // 2)
    repeats = np.minimum(rng.multinomial(total - count - len(changed), weights / weights.sum()), most)
    again = np.repeat(rng.permutation(count), repeats)

    def later(facts: np.ndarray) -> np.ndarray:
        return introduced[facts] + (1 - introduced[facts]) * rng.uniform(1e-9, 1, len(facts))

    times = np.concatenate([introduced, later(changed), later(again)])
    facts = np.concatenate([np.arange(count), changed, again])
    changes = np.zeros(len(facts), bool)
    changes[count : count + len(changed)] = True
    order = times.argsort(kind="stable")
    return facts[order], changes[order]
