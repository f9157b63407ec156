"""What a model must pass before the lifelong benchmark says anything of it, and the probes that both use.

Axis letters: F facts, E episodes, P facts of an episode, L layer, K neurons of a layer, T time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.analysis.probes import addresses
from bdh_jax.lifelong.bounds import RIDGE
from bdh_jax.lifelong.stream import StreamConfig, make_stream
from bdh_jax.models.bdh import BDH
from bdh_jax.tasks.facts import FIRST_VALUE, KINDS, VALUES, Kind, combinations, encode, sample_episodes
from bdh_jax.types import Slow

LEAST_RECALL = 0.99
"""Least in-episode recall, and least recall of ridge regression, of a model worth testing."""
_PROBE_EPISODES, _PRECONDITION_EPISODES, _PROBE_QUERIES, _PROBE_GRID = 48, 192, 8, 32


@dataclasses.dataclass(frozen=True)
class Preconditions:
    """Whether a model can be tested at all. A benchmark of retention says nothing of a model that does not meet them."""

    dead_keys: int
    """Keys without an address (all zero) in some layer, of all keys of all kinds."""
    in_episode: dict[str, float]
    """Recall within an episode without a synapse, by kind of key."""
    ridge: dict[int, float]
    """Number of facts → share recalled by ridge regression on the addresses of a fresh state, in the best layer."""
    ridge_written: dict[int, float]
    """The same, fitted to the addresses under which an episode writes. Lower where an address depends on what came before."""
    drift: tuple[float, ...]
    """Mean cosine between a key's address in an episode and on a fresh state, by layer."""
    in_episode_raw_ids: float
    """Recall of keys with new ids whose embeddings are left as initialised."""

    @property
    def failures(self) -> tuple[str, ...]:
        """What fails, in words; empty if nothing does."""
        failed = []
        if self.dead_keys:
            failed.append(f"{self.dead_keys} keys have no address in some layer")
        failed += [
            f"in-episode recall of {kind} keys is {r:.4f} < {LEAST_RECALL}"
            for kind, r in self.in_episode.items()
            if r < LEAST_RECALL
        ]
        facts = min(self.ridge)
        if self.ridge[facts] < LEAST_RECALL:
            failed.append(f"ridge regression recalls {self.ridge[facts]:.4f} < {LEAST_RECALL} of {facts} facts")
        return tuple(failed)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Preconditions:
        """Those that ``dataclasses.asdict`` gave, also after a way through JSON, whose keys are text."""
        values = {field.name: entry[field.name] for field in dataclasses.fields(cls)}
        for name in ("ridge", "ridge_written"):
            values[name] = {int(facts): share for facts, share in values[name].items()}
        return cls(**{**values, "drift": tuple(values["drift"])})


def measure_preconditions(model: BDH, slow: Slow, raw: Slow, config: StreamConfig, *, seed: int) -> Preconditions:
    """Test a model before it is benchmarked.

    Args:
      model: as of :func:`bdh_jax.lifelong.benchmark.run`.
      slow: its parameters, with the embeddings of new ids that will be used.
      raw: the same with those that training left.
      config: of the streams.
      seed: of the stream whose facts ridge regression is fitted to.
    """
    keys = combinations()
    everything = np.concatenate([keys.seen, keys.held_out, keys.new_ids, keys.known, keys.reserved])
    rows = 512
    padded = everything[np.minimum(np.arange(-(-len(everything) // rows) * rows), len(everything) - 1)]
    alive = np.concatenate(
        [np.asarray(jnp.any(_addresses(model, slow, some) > 0, axis=-1)) for some in padded.reshape(-1, rows, 2)]
    )
    dead = int((~alive[: len(everything)]).any(axis=1).sum())

    probes = {kind: probe_episodes(kind, config.pairs, _PRECONDITION_EPISODES) for kind in KINDS}
    in_episode = {kind: float(in_episode_recall(model, slow, *probe)) for kind, probe in probes.items()}
    raw_ids = float(in_episode_recall(model, raw, *probes["new_ids"]))

    fresh, written, drift = {}, {}, ()
    for facts in sorted({256, model.config.n_neurons}):
        stream = make_stream(dataclasses.replace(config, facts=facts), seed=seed, validation=True)
        order = np.arange(facts - facts % config.pairs)
        values = stream.truth().value[order]
        tokens = np.concatenate([stream.keys[order], values[:, None]], axis=1).reshape(-1, 3 * config.pairs)
        here = np.asarray(_written_addresses(model, slow, tokens), np.float64)
        alone = np.asarray(_addresses(model, slow, stream.keys[order]), np.float64)
        layers = range(model.config.n_layer)
        fresh[facts] = max(_ridge_recall(alone[:, i], alone[:, i], values) for i in layers)
        written[facts] = max(_ridge_recall(here[:, i], alone[:, i], values) for i in layers)
        drift = drift or tuple(float((here[:, i] * alone[:, i]).sum(axis=1).mean()) for i in layers)
    return Preconditions(dead, in_episode, fresh, written, drift, raw_ids)


@functools.cache
def probe_episodes(kind: Kind, pairs: int, count: int = _PROBE_EPISODES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fresh episodes, the same always: tokens [count, T], targets [count, T], where answers are [count, T]."""
    rng = np.random.default_rng(len(kind))
    queries = min(_PROBE_QUERIES, pairs)
    encoded = encode(sample_episodes(rng, kind, count, pairs=pairs, queries=queries, grid=_grid(kind)))
    return encoded.tokens, encoded.targets, encoded.answer


def _grid(kind: Kind) -> int:
    # Reserved keys are few: only the whole alphabet holds enough of them.
    return 128 if kind == "reserved" else _PROBE_GRID


@functools.partial(jax.jit, static_argnums=0)
def in_episode_recall(model: BDH, slow: Slow, tokens: jax.Array, targets: jax.Array, answer: jax.Array) -> jax.Array:
    """Share of answers that are right, all queries of an episode one after another as in training."""
    logits = model.apply({"params": slow}, tokens, state="none").logits
    return share(jnp.argmax(logits, axis=-1) == targets, answer)


def share(right: jax.Array, where: jax.Array) -> jax.Array:
    """Share of what is right, of all places ``where``."""
    return jnp.sum(right & where) / jnp.sum(where)


_addresses = jax.jit(addresses, static_argnums=0)  # compiled once a model, however often it is benchmarked


@functools.partial(jax.jit, static_argnums=0)
def _written_addresses(model: BDH, slow: Slow, tokens: jax.Array) -> jax.Array:
    """Addresses [F, L, K] at the second token of every fact in episodes [E, 3P]."""
    address = model.apply({"params": slow}, tokens, state="none", collect=("address",)).collected["address"]
    address = jnp.moveaxis(address[:, :, :, 1::3], 3, 1)  # [L, P, E, H, N]
    address = jnp.moveaxis(address, (2, 1), (0, 1))
    return address.reshape(-1, model.config.n_layer, model.config.n_neurons)


def _ridge_recall(fitted: np.ndarray, asked: np.ndarray, values: np.ndarray) -> float:
    """Share of values [F] recalled from addresses [F, K] by ridge regression of one-hot values on other ones [F, K]."""
    labels = np.eye(VALUES)[values - FIRST_VALUE]
    solution = np.linalg.solve(fitted.T @ fitted + RIDGE * np.eye(fitted.shape[1]), fitted.T @ labels)
    return float(((asked @ solution).argmax(axis=1) == values - FIRST_VALUE).mean())
