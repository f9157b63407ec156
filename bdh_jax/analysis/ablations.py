"""What a trained recall model uses: its scores with parts of it switched off, nothing trained again.

Every ablation takes the model apart from outside, by its configuration, its slow weights or the state between two calls. The
model itself is the same. Served are tasks of pairs (:class:`PairsTask`): a sequence is P pairs and then the query SEP key, and the
answer is one token, predicted at the sequence's end. The *prefix* is all of it before SEP.

A read of S does two things. At the query it gives the answer. In the prefix it changes what the later layers see, and so the
addresses they write under and what their attention stores. ``fast_read_off`` takes away the first, ``fast_write_off`` both; from
an empty S, a whole sequence without writes and one without reads are the same function.

Axis letters: E sequences, P pairs, B batch, T time, L layer, H head, N neurons per head, D model width, V vocabulary; K = H·N.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.table

from bdh_jax.analysis.fast_states import empty_memory, shuffle_rows
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.console import Progress
from bdh_jax.fast_weights.config import ADDRESS_SOURCES, AddressSource
from bdh_jax.fast_weights.state import FastState
from bdh_jax.models.base import ModelConfig
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.tasks.base import Task
from bdh_jax.tasks.recall import EvaluationSet
from bdh_jax.tasks.scores import Score
from bdh_jax.tasks.scoring import ROWS, ceiling, credit
from bdh_jax.types import Slow

Config = TypeVar("Config", bound=ModelConfig)
Predict = Callable[[np.ndarray], np.ndarray]
"""Sequences [E,T] int32 → logits [E,V] of their answers."""
Ablation = Callable[[BDHConfig, Slow], Predict]
"""What is left of a model: its configuration and slow weights → predictions."""

QUERY = 2
"""Tokens of a query: SEP and the key."""
CONTEXTS = (1, 2, 4, 8, 16)
"""Pairs that ``context_last`` leaves, in turn."""
STATE_BYTES = 2**31
"""States of one batch take at most so much; the last batch of a set is filled up with copies."""


@runtime_checkable
class PairsTask(Protocol):
    """What ablations ask of a task: sets of sequences whose answers are known, all of one length in a set.

    A sequence is P pairs of equal length, each with its key first, and then the query: SEP and a key. Its answer is one token,
    predicted at the key of the query.
    """

    vocab_size: int
    evaluation_sets: Mapping[str, EvaluationSet]
    """Name → set."""


# The ablations.


def normal(config: BDHConfig, slow: Slow) -> Predict:
    """The model as it is."""
    return lambda tokens: _in_batches(functools.partial(_answer, slow, config=config), tokens, ROWS)


def fast_off(config: BDHConfig, slow: Slow) -> Predict:
    """No S and no synapse, neither read nor written: ``fast.enabled=False`` with the other slow weights."""
    config = change(config, "fast", enabled=False)
    return normal(config, weights_of(config, slow))


def fast_write_off(config: BDHConfig, slow: Slow) -> Predict:
    """The learning rate is 0, so S stays empty for the whole sequence; the synapse is read. ``fast_off`` without a synapse."""
    config = without_writes(config)
    return normal(config, weights_of(config, slow))


def fast_read_off(config: BDHConfig, slow: Slow) -> Predict:
    """S is written and read in the prefix, and empty at the query, where nothing is written either; the synapse is read.

    So the query finds the attention state, the previous address and, in the later layers, all that reads of S have put there, but
    not S. Writing is off at the query because the key would read what SEP wrote.
    """
    query = without_writes(config)
    return _interrupted(config, slow, empty_memory, query, weights_of(query, slow))


def fast_rows_shuffled(config: BDHConfig, slow: Slow, seed: int = 0) -> Predict:
    """Between prefix and query the rows of S trade places (:func:`bdh_jax.analysis.fast_states.shuffle_rows`)."""
    return _interrupted(config, slow, functools.partial(shuffle_rows, seed=seed), config, slow)


def slow_read_off(config: BDHConfig, slow: Slow) -> Predict:
    """The synapse is zero. Needs a model that has one."""
    return normal(config, {**slow, "synapse": jnp.zeros_like(slow["synapse"])})


def carry_fast_state(config: BDHConfig, slow: Slow, streams: int = 8) -> Predict:
    """S and activity go on from one sequence to the next; attention state, previous address and position start anew.

    The sequences are cut, in their order, into so many streams of equal length; the first sequence of a stream starts from zeros.
    """

    def predict(tokens: np.ndarray) -> np.ndarray:
        count = len(tokens)
        length = -(-count // streams)
        index = np.minimum(np.arange(streams * length), count - 1)
        logits = _answers_in_turn(slow, tokens[index].reshape(streams, length, -1), config=config)
        return np.asarray(logits).reshape(streams * length, -1)[:count]

    return predict


def context_last(config: BDHConfig, slow: Slow, pairs: int, pair_length: int = 2) -> Predict:
    """Only the last ``pairs`` pairs of the prefix, and the query. A query of an earlier pair cannot be answered then.

    Args:
      config: of the model.
      slow: its weights.
      pairs: how many pairs are left; a shorter sequence is left as it is.
      pair_length: tokens of a pair.
    """
    predict = normal(config, slow)
    return lambda tokens: predict(tokens[:, -(pairs * pair_length + QUERY) :])


def other_address_source(config: BDHConfig, slow: Slow, source: AddressSource) -> Predict:
    """Addresses come from another source than the model was trained with."""
    return normal(change(config, "fast", address_source=source), slow)


# What they have in common.


@functools.partial(jax.jit, static_argnames="config")
def _answer(slow: Slow, tokens: jax.Array, *, config: BDHConfig) -> jax.Array:
    return BDH(config).apply({"params": slow}, tokens, state="none").logits[:, -1]


@functools.partial(jax.jit, static_argnames="config")
def _after_prefix(slow: Slow, tokens: jax.Array, *, config: BDHConfig) -> FastState:
    return BDH(config).apply({"params": slow}, tokens[:, :-QUERY]).carried


@functools.partial(jax.jit, static_argnames="config")
def _answer_query(slow: Slow, fast: FastState, tokens: jax.Array, *, config: BDHConfig) -> jax.Array:
    return BDH(config).apply({"params": slow}, tokens[:, -QUERY:], fast, state="none").logits[:, -1]


@functools.partial(jax.jit, static_argnames="config")
def _answers_in_turn(slow: Slow, tokens: jax.Array, *, config: BDHConfig) -> jax.Array:
    """tokens [S, R, T], R sequences one after another in each of S streams → logits [S, R, V]."""
    model = BDH(config)

    def step(fast: FastState, tokens: jax.Array) -> tuple[FastState, jax.Array]:
        output = model.apply({"params": slow}, tokens, fast)
        return output.carried.only_memory(), output.logits[:, -1]

    _, logits = jax.lax.scan(step, model.init_fast(tokens.shape[0]), tokens.swapaxes(0, 1))
    return logits.swapaxes(0, 1)


def _interrupted(
    config: BDHConfig,
    slow: Slow,
    change: Callable[[FastState], FastState],
    query_config: BDHConfig,
    query_slow: Slow,
) -> Predict:
    """The prefix by one model, a change of the state, the query by another."""

    def answers(tokens: np.ndarray) -> jax.Array:
        fast = change(_after_prefix(slow, tokens, config=config))
        return _answer_query(query_slow, fast, tokens, config=query_config)

    return lambda tokens: _in_batches(answers, tokens, _rows_with_state(config))


def _in_batches(function: Callable[[np.ndarray], jax.Array], tokens: np.ndarray, most: int) -> np.ndarray:
    """``function`` of rows of ``tokens`` [E,T], at most so many at once and always the same number."""
    count = len(tokens)
    rows = -(-count // -(-count // most))
    parts = []
    for first in range(0, count, rows):
        index = np.minimum(np.arange(first, first + rows), count - 1)
        parts.append(np.asarray(function(tokens[index])))
    return np.concatenate(parts)[:count]


def _rows_with_state(config: BDHConfig) -> int:
    one = jax.eval_shape(lambda: BDH(config).init_fast(1))
    return int(np.clip(STATE_BYTES // one.nbytes, 1, ROWS))


def without_writes(config: Config) -> Config:
    """The same model with a learning rate of 0, so that S stays empty."""
    # A rate that is learned lies in log space, where 0 is infinitely far: it is given up for a fixed one.
    return change(config, "fast", learning_rate=0.0, learn_learning_rate=False)


def weights_of(config: ModelConfig, slow: Slow) -> Slow:
    """Those of the weights that a model of this configuration has."""
    names = jax.eval_shape(config.build().init_slow, jax.random.key(0))
    return {name: slow[name] for name in names}


# Addresses.


class AddressCosine(NamedTuple):
    """How well a layer's address finds the right pair of one set.

    Only sequences whose query means one pair count; of the other pairs, only those with another key.
    """

    name: str
    """The set."""
    layer: int
    """From 1."""
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, which is not called
    """Sequences that count; without any the others are NaN."""
    own: float
    """Mean cosine between the queried key's address at the query and where its pair was shown."""
    others: float
    """Mean over sequences of the mean cosine to the other keys' addresses where they were shown."""
    nearest: float
    """Mean over sequences of the largest cosine to another key."""


def address_cosines(config: BDHConfig, slow: Slow, name: str, data: EvaluationSet) -> tuple[AddressCosine, ...]:
    """Compare the address of the queried key with those of the keys in the context.

    With ``address="previous"`` a key's address is also what its value is written under. An address of zeros has cosine 0.

    Args:
      config: of a model with fast weights.
      slow: its weights.
      name: of the set.
      data: the set.

    Returns:
      One for each layer.
    """
    tokens = data.encoded.tokens
    keys = tokens[:, : -QUERY : _pair_length(data)]
    cosines = functools.partial(_key_cosines, slow, config=config, pair_length=_pair_length(data))
    by_row = _in_batches(lambda rows: cosines(rows).swapaxes(0, 1), tokens, _rows_with_state(config))  # [E, L, P]
    other = keys != tokens[:, -1:]
    # Without another key there is nothing to confuse it with.
    counts = (data.candidates.sum(axis=1) == 1) & other.any(axis=1)
    cosine, other = by_row[counts].swapaxes(0, 1), other[counts]
    own = cosine[:, data.candidates[counts]]  # [L, E]
    others = np.where(other, cosine, 0).sum(axis=2) / other.sum(axis=1)
    nearest = np.where(other, cosine, -np.inf).max(axis=2, initial=-np.inf)
    count = int(counts.sum())
    means = [[float(x[i].mean()) if count else float("nan") for x in (own, others, nearest)] for i in range(len(cosine))]
    return tuple(AddressCosine(name, layer, count, *three) for layer, three in enumerate(means, start=1))


@functools.partial(jax.jit, static_argnames=("config", "pair_length"))
def _key_cosines(slow: Slow, tokens: jax.Array, *, config: BDHConfig, pair_length: int) -> jax.Array:
    """[L, B, P]: cosine of each context key's address with the query key's, over all K neurons."""
    output = BDH(config).apply({"params": slow}, tokens, state="none", collect=("address",))
    address = output.collected["address"].astype(config.state_dtype)  # [L, B, H, T, N]
    keys, query = address[:, :, :, :-QUERY:pair_length], address[:, :, :, -1]
    product = jnp.einsum("lbhpn,lbhn->lbp", keys, query)
    size = jnp.sum(jnp.square(keys), axis=(2, 4)) * jnp.sum(jnp.square(query), axis=(2, 3))[..., None]
    return jnp.where(size > 0, product * jax.lax.rsqrt(jnp.where(size > 0, size, 1.0)), 0.0)


# All of it.


@dataclasses.dataclass(frozen=True)
class AblationResult:
    """Scores of one model under every ablation that it has."""

    scores: dict[str, dict[str, Score]]
    """Ablation → set → score. A set is missing where the ablation would change nothing of it."""
    addresses: tuple[AddressCosine, ...]
    """For each set and layer; empty without fast weights."""

    def table(self) -> rich.table.Table:
        """Credit ÷ ceiling: one row an ablation, one column a set."""
        return score_table([self])

    def address_table(self) -> rich.table.Table:
        """Cosines of addresses: one row for each set and layer."""
        return address_table([self])

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON; a mean over no sequence is None."""
        addresses = [
            {key: None if value != value else value for key, value in row._asdict().items()} for row in self.addresses
        ]
        scores = {name: {key: score.to_dict() for key, score in row.items()} for name, row in self.scores.items()}
        return {"scores": scores, "addresses": addresses}


def score_table(results: Sequence[AblationResult]) -> rich.table.Table:
    """Credit ÷ ceiling of one or several models: one row an ablation, one column a set.

    Args:
      results: of models of one configuration; of several, the table has mean and standard deviation.
    """
    first = results[0].scores
    table = _table("credit ÷ ceiling", results)
    table.add_column("ablation")
    for name in first["normal"]:
        table.add_column(name, justify="right")
    for ablation, sets in first.items():
        ratios = {name: [result.scores[ablation][name].ratio for result in results] for name in sets}
        table.add_row(ablation, *(_cell(ratios[name], 4) if name in sets else "" for name in first["normal"]))
    return table


def address_table(results: Sequence[AblationResult]) -> rich.table.Table:
    """Cosines of addresses of one or several models: one row for each set and layer.

    Args:
      results: as of :func:`score_table`.
    """
    table = _table("cosine of the queried key's address with those in the context", results)
    table.add_column("set")
    for header in ("layer", "sequences", "its own", "other keys, mean", "other keys, largest"):
        table.add_column(header, justify="right")
    for rows in zip(*(result.addresses for result in results), strict=True):
        columns = [[getattr(row, name) for row in rows] for name in ("own", "others", "nearest")]
        cells = [_cell(numbers, 3) if rows[0].count else "" for numbers in columns]
        table.add_row(rows[0].name, str(rows[0].layer), str(rows[0].count), *cells)
    return table


def _table(title: str, results: Sequence[AblationResult]) -> rich.table.Table:
    several = f", mean ± standard deviation of {len(results)} models" if len(results) > 1 else ""
    return rich.table.Table(title=title + several, box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))


def _cell(numbers: Sequence[float], digits: int) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:.{digits}f}"
    return f"{statistics.mean(numbers):.3f} ±{statistics.stdev(numbers):.3f}"


def run(config: BDHConfig, slow: Slow, task: Task) -> AblationResult:
    """Score a trained model under every ablation that it has, on all evaluation sets of a task.

    Ablations of what a model lacks (fast weights, a synapse) are left out, and so is a context as long as the whole prefix.

    Args:
      config: of the model.
      slow: its weights.
      task: a :class:`PairsTask`.

    Returns:
      The result.

    Raises:
      ConfigError: if the task is another one, or has token ids that the model does not know.
    """
    sets = pair_sets(task)
    if task.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the task has token ids up to {task.vocab_size - 1}, but the model has vocab_size={config.vocab_size}: it knows none "
            "of the others. Name the task that it was trained on"
        )
    work = [(name, data, ablation) for ablation in _names(config, slow) for name, data in sets.items()]
    work = [(name, data, ablation) for name, data, ablation in work if _changes(ablation, data)]
    scores: dict[str, dict[str, Score]] = {}
    addresses: list[AddressCosine] = []
    measured = sets if config.fast.enabled else {}
    with Progress("ablations", len(work) + len(measured)) as progress:
        for name, data, ablation in work:
            predict = _build(ablation, config, slow, data)
            scores.setdefault(ablation, {})[name] = _score(name, data, predict(data.encoded.tokens))
            progress.advance(1, f"{ablation} {name} {scores[ablation][name].ratio:.3f}")
        for name, data in measured.items():
            addresses.extend(address_cosines(config, slow, name, data))
            progress.advance(1, f"addresses {name}")
    return AblationResult(scores=scores, addresses=tuple(addresses))


_STATELESS: dict[str, Ablation] = {
    "normal": normal,
    "fast_off": fast_off,
    "fast_read_off": fast_read_off,
    "fast_write_off": fast_write_off,
    "slow_read_off": slow_read_off,
    "fast_rows_shuffled": fast_rows_shuffled,
    "carry_fast_state": carry_fast_state,
}
_CONTEXT, _SOURCE = "context_last_", "address_source_"


def _names(config: BDHConfig, slow: Slow) -> list[str]:
    contexts = [f"{_CONTEXT}{pairs}" for pairs in CONTEXTS]
    if not config.fast.enabled:
        return ["normal", *contexts]
    names = [name for name in _STATELESS if name != "slow_read_off" or "synapse" in slow]
    others = [source for source in ADDRESS_SOURCES if source != config.fast.address_source]
    return [*names, *contexts, *(f"{_SOURCE}{source}" for source in others)]


def _changes(name: str, data: EvaluationSet) -> bool:
    return not name.startswith(_CONTEXT) or int(name.removeprefix(_CONTEXT)) < data.values.shape[1]


def _build(name: str, config: BDHConfig, slow: Slow, data: EvaluationSet) -> Predict:
    if name.startswith(_CONTEXT):
        return context_last(config, slow, int(name.removeprefix(_CONTEXT)), _pair_length(data))
    for source in ADDRESS_SOURCES:
        if name == f"{_SOURCE}{source}":
            return other_address_source(config, slow, source)
    return _STATELESS[name](config, slow)


def _pair_length(data: EvaluationSet) -> int:
    return (data.encoded.tokens.shape[1] - QUERY) // data.values.shape[1]


def pair_sets(task: Task) -> Mapping[str, EvaluationSet]:
    """The evaluation sets of a task of pairs.

    Raises:
      ConfigError: for a task without such sets; names it and the remedy.
    """
    sets = task.evaluation_sets if isinstance(task, PairsTask) else {}
    if not sets or not all(map(_of_pairs, sets.values())):
        raise ConfigError(
            f"task.name={task.config.name!r}, as configured, has no sequences of pairs with a query, whose answer is one token. "
            'Ablations are for tasks such as n-back with task.encoding="integer" and the counter-benchmarks: name one with --config'
        )
    return sets


def _of_pairs(data: EvaluationSet) -> bool:
    """Whether a set is what :class:`PairsTask` says, told from its sequences."""
    tokens, width = data.encoded.tokens, _pair_length(data)
    length, pairs = tokens.shape[1], data.values.shape[1]
    if (
        width < 1
        or length != pairs * width + QUERY
        or not np.array_equal(data.positions, np.full((len(tokens), 1), length - 1))
    ):
        return False
    # Each pair that the query may mean begins with the key asked for.
    keys = tokens[:, :-QUERY:width]
    return bool((keys == tokens[:, -1:])[data.candidates].all())


def _score(name: str, data: EvaluationSet, logits: np.ndarray) -> Score:
    answers = logits.argmax(axis=-1)
    return Score(
        name=name,
        count=len(answers),
        accuracy=float((answers == data.answers).mean()),
        credit=float(credit(answers, data.values, data.candidates).mean()),
        ceiling=float(ceiling(data.values, data.candidates).mean()),
    )
