"""The lifelong benchmark: what is still known after the fast weights are reset, and what did keeping it cost?

A model that recalls facts within an episode (:mod:`bdh_jax.tasks.facts`) sees a stream of them, episode after episode. After each
one a consolidation function may move part of the fast weights into the synapse; then they are reset. Measured are recall on a
fresh state, of all facts at their latest values, and what it did to everything else.

    result = lifelong.run(model, slow, consolidation.row_topk(fraction=0.1, rate=0.1), beside=("none", "dense"))
    result.print()

Axis letters: M models, R streams, F facts, E episodes, P facts of an episode, C checkpoints, L layer, K neurons of a layer, T time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax import consolidation
from bdh_jax.analysis.probes import answers
from bdh_jax.config import ConfigError
from bdh_jax.console import Progress
from bdh_jax.consolidation import Function
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.lifelong.contestants import CONTESTANTS, Contestant, own_function
from bdh_jax.lifelong.finished_rows import FinishedRows
from bdh_jax.lifelong.learners import History, Learner
from bdh_jax.lifelong.preconditions import in_episode_recall, measure_preconditions, probe_episodes, share
from bdh_jax.lifelong.result import LifelongResult, Row
from bdh_jax.lifelong.stream import Stream, StreamConfig, make_stream
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.tasks.facts import KINDS, VALUES, VOCABULARY, combinations, initialise_new_ids
from bdh_jax.types import Slow

AGES = (0, 1, 4, 16, 64, 256)
"""First age, in episodes, of each bin."""

Probe = tuple[jax.Array, jax.Array, jax.Array]
"""Unrelated episodes: tokens, targets and where answers are, each [48, T]."""


def run(
    model: BDH,
    slow: Slow,
    consolidate: Function,
    *,
    name: str = "consolidation",
    beside: Sequence[str] = (),
    config: LifelongConfig | None = None,
    new_ids: int | None = 0,
) -> LifelongResult:
    """Benchmark one consolidation function on one model, its rate chosen as those of the rows beside it.

    Args:
      model: trained on the task "facts" (``configs/lifelong.py``), with fast weights and a synapse for each layer.
      slow: its parameters.
      consolidate: either form, see :mod:`bdh_jax.consolidation.base`; :func:`bdh_jax.lifelong.contestants.own_function` says what its rate is.
      name: of the table's row.
      beside: rows to compare it with, of ``CONTESTANTS``.
      config: sizes; None for 256 facts and two streams.
      new_ids: seed of :func:`bdh_jax.tasks.facts.initialise_new_ids`; None leaves new embeddings as they are.

    Returns:
      A result whose first row is the function's.

    Raises:
      ConfigError: for a model that the benchmark cannot use, or a row that does not exist.
      ConsolidationError: for a function that cannot be used, or that left slow weights which are NaN or infinite.
    """
    config = LifelongConfig(stream=StreamConfig(facts=256), streams=2) if config is None else config
    for other in beside:
        if other not in CONTESTANTS or other == name:
            raise ConfigError(f"beside names {other!r}; valid names: {', '.join(n for n in CONTESTANTS if n != name)}")
    rows = {name: own_function(name, consolidate), **{other: CONTESTANTS[other] for other in beside}}
    result = benchmark(model, [slow], rows, config=config, new_ids=new_ids)
    if not result.rows[0].scores["finite"].all():
        raise consolidation.ConsolidationError(
            f"{name} made slow weights NaN or infinite before the end of a stream: try a smaller rate, or look at one episode with "
            "consolidation.make_consolidator"
        )
    return result


def benchmark(
    model: BDH,
    slows: Sequence[Slow],
    contestants: Mapping[str, Contestant] | None = None,
    *,
    config: LifelongConfig | None = None,
    rates: Mapping[str, float] | None = None,
    new_ids: int | None = 0,
    finished: FinishedRows | None = None,
) -> LifelongResult:
    """Benchmark contestants on one or several models, all on the same streams.

    Args:
      model: as of :func:`run`.
      slows: M parameter trees of it.
      contestants: by name; None for all of ``CONTESTANTS``.
      config: sizes; None for the defaults.
      rates: contestant → rate. Of the others, the rate is the one with the largest recall minus harm of the first model on
        validation streams.
      new_ids: as of :func:`run`.
      finished: rows that are there are taken from it, and those that are measured added. It knows a contestant of your own by its name
        and rates only, unless ``Contestant.own`` is set, which keeps it out.

    Returns:
      A row for each contestant.

    Raises:
      ConfigError: for a model that the benchmark cannot use.
      ConsolidationError: for a function of your own that cannot be used.
    """
    config = LifelongConfig() if config is None else config
    contestants = CONTESTANTS if contestants is None else contestants
    check_model(model.config)
    for contestant in contestants.values():
        if contestant.own is not None:
            consolidation.check(contestant.own, slows[0], jax.eval_shape(lambda: model.init_fast(1)))
    raw = list(slows)
    if new_ids is not None:
        slows = [{**slow, "embed": jnp.asarray(initialise_new_ids(slow["embed"], seed=new_ids))} for slow in raw]
    slows = [{**slow, "synapse": jnp.zeros_like(slow["synapse"])} for slow in slows]
    chosen = dict(rates or {})
    rated = set(chosen)
    for contestant in contestants.values():
        if contestant.rate_of and contestant.rate_of not in rated:
            raise ConfigError(
                f"contestant {contestant.name!r} takes the rate of {contestant.rate_of!r}: name that one before it, or a rate"
            )
        rated |= {contestant.name} if contestant.rates else set()
    seeds = range(config.seed, config.seed + config.streams)
    streams = [make_stream(config.stream, seed=seed) for seed in seeds]
    validation = [
        make_stream(config.stream, seed=config.seed + i, validation=True) for i in range(config.validation_streams)
    ]
    before = {}
    for contestant in contestants.values():
        if finished is None:
            break
        row = finished.get(contestant, config, chosen.get(contestant.rate_of or contestant.name), new_ids=new_ids)
        if row is not None:
            before[contestant.name] = row
            chosen |= {contestant.name: row.rate} if contestant.rates else {}
    plays = sum(1 + (0 if c.name in chosen else len(c.rates)) for c in contestants.values()) + len(slows)
    with Progress(f"{config.stream.facts} facts", plays) as progress:
        preconditions = []
        for number, slow in enumerate(slows):
            preconditions.append(measure_preconditions(model, slow, raw[number], config.stream, seed=config.seed))
            progress.advance(
                1, f"preconditions of model {number}: " + ("; ".join(preconditions[-1].failures) or "met"), keep=True
            )
        unharmed = _measure_unharmed(model, slows, config)
        rows = []
        for contestant in contestants.values():
            name = contestant.name
            if name in before:
                rows.append(before[name])
                progress.advance(
                    1, f"{name}: recall {rows[-1].mean('recall'):.3f}, measured before an interruption", keep=True
                )
                continue
            arena = _Arena(model, contestant, config)
            asked = chosen.get(contestant.rate_of or name)
            if contestant.rates and name not in chosen:
                chosen[name] = _tune(arena, contestant, slows[:1], unharmed[:1], validation, progress)
            rows.append(arena.row(slows, unharmed, chosen.get(contestant.rate_of or name), streams))
            if finished is not None:
                finished.add(rows[-1], contestant, config, asked, new_ids=new_ids)
            broken = "" if rows[-1].scores["finite"].all() else "; WEIGHTS NaN OR INFINITE at the end of a stream"
            progress.advance(1, f"{name}: recall {rows[-1].mean('recall'):.3f}{broken}", keep=True)
    return LifelongResult(tuple(rows), tuple(preconditions), config)


def check_model(config: BDHConfig) -> None:
    """Refuse a model that the benchmark cannot use.

    Raises:
      ConfigError: names what is wrong and the remedy.
    """
    fast = config.fast
    if not (fast.enabled and fast.synapse) or fast.scope != "layer" or fast.address != "previous":
        raise ConfigError(
            f"fast.enabled={fast.enabled}, fast.synapse={fast.synapse}, fast.scope={fast.scope!r}, "
            f'fast.address={fast.address!r}: the lifelong benchmark needs fast weights with a synapse, scope="layer" and '
            'address="previous", as configs/lifelong.py has'
        )
    if fast.learn_learning_rate or fast.learn_decay:
        raise ConfigError(
            f"fast.learn_learning_rate={fast.learn_learning_rate}, fast.learn_decay={fast.learn_decay}: the lifelong benchmark gives "
            "many of its rows another η or λ, and cannot where they are weights. Train without"
        )
    if config.vocab_size < VOCABULARY:
        raise ConfigError(
            f'vocab_size={config.vocab_size}: the task "facts" has {VOCABULARY} token ids. Take a model of `bdh train lifelong`'
        )


_alone = jax.jit(answers, static_argnums=0)  # compiled once a model, however often it is benchmarked


class _Played(NamedTuple):
    """What happened on one stream. The keys asked for are those of the stream, and then those learned by gradient."""

    asked: jax.Array  # [C, F + known] answers on a fresh state, at every checkpoint
    final: jax.Array  # [F + known] in the end
    in_episode: jax.Array  # [C, E / C, P] whether the answer within the episode was right
    probe: jax.Array  # [C] recall in unrelated episodes, at every checkpoint
    final_probe: jax.Array  # in the end
    finite: jax.Array  # whether all slow weights are, in the end


def _play(
    learner: Learner,
    slow: Slow,
    keys: jax.Array,
    values: jax.Array,
    episodes: jax.Array,
    probe: Probe,
    known_keys: jax.Array,
) -> _Played:
    """One stream: keys [F, 2], final values [F], episodes [C, E / C, P, 3]."""
    model = learner.model

    def episode(carry: tuple[Slow, History], facts: jax.Array) -> tuple[tuple[Slow, History], jax.Array]:
        slow, history = carry
        tokens = facts.reshape(1, -1)
        output = model.apply({"params": slow}, tokens, learner.start(history), collect=learner.collect)
        right = jnp.zeros(len(facts), bool)
        if learner.by_model:
            right = answers(model, slow, facts[:, :2], output.carried) == facts[:, 2]
        return learner.update(slow, history, output, facts), right

    def segment(carry: tuple[Slow, History], episodes: jax.Array) -> tuple[tuple[Slow, History], tuple[jax.Array, ...]]:
        carry, right = jax.lax.scan(episode, carry, episodes)
        # What is made in the end only is not there yet; `_score` leaves out what was seen before it.
        recall = jnp.zeros(()) if learner.finish is not None else _probe(learner, *carry, probe)
        return carry, (right, learner.answer(*carry, asked), recall)

    asked = jnp.concatenate([keys, known_keys])
    slow = learner.prepare(slow)
    (slow, history), (right, along, probes) = jax.lax.scan(segment, (slow, learner.init(slow)), episodes)
    final, final_probe = along[-1], probes[-1]
    if learner.finish is not None:
        slow = learner.finish(slow, history, keys, values)
        final, final_probe = learner.answer(slow, history, asked), _probe(learner, slow, history, probe)
    finite = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(slow)]).all()
    return _Played(along, final, right, probes, final_probe, finite)


def _probe(learner: Learner, slow: Slow, history: History, probe: Probe) -> jax.Array:
    """Recall in unrelated episodes; 0, which `_score` leaves out, if answers are not the model's."""
    if not learner.by_model:
        return jnp.zeros(())
    start = learner.start(history)
    if start is None:
        return in_episode_recall(learner.model, slow, *probe)
    tokens, targets, answer = probe
    each = jax.vmap(lambda row: learner.model.apply({"params": slow}, row[None], start, state="none").logits[0])(tokens)
    return share(jnp.argmax(each, axis=-1) == targets, answer)


class _Unharmed(NamedTuple):
    """A model before any stream."""

    probe: float  # recall in unrelated episodes
    known: float  # recall of facts learned by gradient


class _Arena:
    """One contestant, compiled once for all models, streams and rates (unless its function needs to see the rate's value).

    Streams are played one at a time: on a CPU several at once take as much time each, and more memory.
    """

    def __init__(self, model: BDH, contestant: Contestant, config: LifelongConfig) -> None:
        self._model, self._contestant, self._config = model, contestant, config
        self._compiled: dict[float | None, Callable[..., _Played]] = {}

    def row(
        self, slows: Sequence[Slow], unharmed: Sequence[_Unharmed], rate: float | None, streams: Sequence[Stream]
    ) -> Row:
        """What the contestant does at a rate."""
        contestant, config = self._contestant, self._config
        learner = contestant.build(self._model, rate, config.stream.facts)
        shapes = jax.eval_shape(lambda slow: (learner.prepare(slow), learner.init(learner.prepare(slow))), slows[0])
        nbytes = learner.nbytes(*shapes)
        results = [
            [self._score(learner, slow, before, rate, stream, nbytes) for stream in streams]
            for slow, before in zip(slows, unharmed, strict=True)
        ]
        scores, course = (
            {name: np.array([[each[i][name] for each in of_model] for of_model in results]) for name in results[0][0][i]}
            for i in range(2)
        )
        so_far = np.array(
            [[(stream.truth(step).value >= 0).sum() for step in self._checkpoints(stream)] for stream in streams]
        )
        return Row(contestant.name, rate, scores, course, so_far)

    def _score(
        self, learner: Learner, slow: Slow, before: _Unharmed, rate: float | None, stream: Stream, nbytes: int
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        config = self._config.stream
        facts = np.concatenate([stream.keys[stream.facts], stream.written[..., None]], axis=2).astype(np.int32)
        arguments = (
            stream.keys,
            stream.truth().value,
            facts.reshape(config.checkpoints, -1, config.pairs, 3),
            probe_episodes("reserved", config.pairs),
            combinations().known[: self._config.known],
        )
        play = self._play(rate, slow, *arguments)
        start = time.perf_counter()
        played = jax.device_get(play(slow, *arguments))
        seconds = time.perf_counter() - start
        scores, course = _score(learner, stream, played, before, nbytes, self._config)
        return {**scores, "milliseconds": 1000 * seconds / len(stream.facts)}, course

    def _play(self, rate: float | None, *arguments: Any) -> Callable[..., _Played]:
        build, facts = self._contestant.build, self._config.stream.facts
        number = 0.0 if rate is None else rate
        if not self._contestant.traced:
            if rate not in self._compiled:
                play = jax.jit(functools.partial(_play, build(self._model, rate, facts)))
                self._compiled[rate] = play.lower(*arguments).compile()
            return self._compiled[rate]
        if None not in self._compiled:
            play = jax.jit(lambda rate, *rest: _play(build(self._model, rate, facts), *rest))
            self._compiled[None] = play.lower(number, *arguments).compile()
        return functools.partial(self._compiled[None], number)

    def _checkpoints(self, stream: Stream) -> list[int]:
        count = self._config.stream.checkpoints
        return [len(stream.facts) // count * (c + 1) for c in range(count)]


def _measure_unharmed(model: BDH, slows: Sequence[Slow], config: LifelongConfig) -> list[_Unharmed]:
    keys, values = combinations().known[: config.known], combinations().known_values[: config.known]
    recalled = [_mean(np.asarray(_alone(model, slow, keys)) == values) if config.known else np.nan for slow in slows]
    probes = [float(in_episode_recall(model, slow, *probe_episodes("reserved", config.stream.pairs))) for slow in slows]
    return [_Unharmed(*pair) for pair in zip(probes, recalled, strict=True)]


def _score(
    learner: Learner, stream: Stream, played: _Played, before: _Unharmed, nbytes: int, config: LifelongConfig
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Scores by name, in the end; and those that change along the stream, at every checkpoint, lists [C]."""
    count, episodes = len(played.asked), len(stream.facts)
    scores = {
        **_retention(stream, played.final, episodes),
        # What the second half of the stream still learns, with what the first left behind.
        "in_episode": float(played.in_episode[count // 2 :].mean()),
        **_harm(before, played.final, played.final_probe, config),
    }
    above_chance = max(0.0, (scores["recall"] - 1 / VALUES) / (1 - 1 / VALUES))
    bits = above_chance * len(stream.keys) * np.log2(VALUES)
    scores |= {"bits_per_byte": float(bits / nbytes), "kilobytes": nbytes / 1000, "finite": float(played.finite)}
    along = [
        {
            **_retention(stream, played.asked[c], episodes // count * (c + 1)),
            "in_episode": float(played.in_episode[c].mean()),
            **_harm(before, played.asked[c], played.probe[c], config),
        }
        for c in range(count)
    ]
    if learner.finish is not None:
        # What was asked for along the way was asked before the bound or the control was made.
        along = [dict.fromkeys(each, np.nan) | {"in_episode": each["in_episode"]} for each in along]
        along[-1] |= {name: scores[name] for name in along[-1] if name != "in_episode"}
    if not learner.by_model:
        for each in (scores, *along):
            each |= dict.fromkeys(("in_episode", "harm", "harm_known"), np.nan)
    return scores, {name: [each[name] for each in along] for name in along[0]}


def _retention(stream: Stream, asked: np.ndarray | jax.Array, episodes: int) -> dict[str, float]:
    """Recall after so many episodes, of the facts shown so far, in all and by kind and age.

    Args:
      stream: of F facts.
      asked: [F + known] answers.
      episodes: after which they were given.
    """
    truth = stream.truth(episodes)
    given, shown = asked[: len(stream.keys)], truth.value >= 0
    right = given == truth.value
    reassigned = truth.previous >= 0
    new, old = _mean(right[reassigned]), _mean((given == truth.previous)[reassigned])
    scores = {
        "recall": _mean(right[shown]),
        "new_value": new,
        "old_value": old,
        "neither_value": 1 - new - old,
    }
    scores |= {f"kind_{kind}": _mean(right[shown & (stream.kind == i)]) for i, kind in enumerate(KINDS)}
    age = episodes - 1 - truth.last
    # Bins that no stream of this length can reach are left out.
    firsts = [first for first in AGES if first < len(stream.facts)]
    for first, end in zip(firsts, [*firsts[1:], None], strict=True):
        here = shown & (age >= first) & (True if end is None else age < end)
        name = f"age_{first}+" if end is None else f"age_{first}" if end == first + 1 else f"age_{first}-{end - 1}"
        scores[name] = _mean(right[here])
    return scores


def _harm(
    before: _Unharmed, asked: np.ndarray | jax.Array, probe: np.ndarray | jax.Array, config: LifelongConfig
) -> dict[str, float]:
    """What was lost in unrelated episodes, and of the facts learned by gradient."""
    known = asked[len(asked) - config.known :] == combinations().known_values[: config.known]
    return {"harm": float(before.probe - probe), "harm_known": before.known - _mean(known)}


def _tune(
    arena: _Arena,
    contestant: Contestant,
    slows: Sequence[Slow],
    unharmed: Sequence[_Unharmed],
    validation: Sequence[Stream],
    progress: Progress,
) -> float:
    """The rate with the largest recall minus harm on validation streams."""
    best, chosen = -np.inf, contestant.rates[0]
    for rate in contestant.rates:
        row = arena.row(slows, unharmed, rate, validation)
        harm = row.mean("harm")
        merit = row.mean("recall") - (0 if np.isnan(harm) else max(0.0, harm))
        progress.advance(
            1, f"{contestant.name}, rate {rate:g}, validation: recall {row.mean('recall'):.3f}, harm {harm:+.3f}", keep=True
        )
        if merit > best:
            best, chosen = merit, rate
    return chosen


def _mean(values: np.ndarray | jax.Array) -> float:
    return float(values.mean()) if values.size else np.nan
