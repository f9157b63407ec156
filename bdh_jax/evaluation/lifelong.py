"""The lifelong benchmark: what is still known after the fast weights are reset, and what did keeping it cost?

A model that recalls facts within an episode (:mod:`bdh_jax.tasks.facts`) sees a stream of them, episode after episode. After each
one a consolidation function may move part of the fast weights into the synapse; then they are reset. Measured are recall on a
fresh state, of all facts at their latest values, and what it did to everything else.

    result = lifelong.run(model, slow, consolidation.row_topk(fraction=0.1, rate=0.1))
    rich.print(result.table())

Axis letters: M models, R streams, F facts, E episodes, P facts of an episode, C checkpoints, L layer, K neurons of a layer, T time.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bdh_jax import consolidation
from bdh_jax.config import BDHConfig, ConfigError
from bdh_jax.consolidation import Function
from bdh_jax.evaluation.learners import CONTESTANTS, RIDGE, Contestant, Learner, Slow, addresses, answers, consolidated
from bdh_jax.evaluation.progress import Progress
from bdh_jax.evaluation.stream import Stream, StreamConfig, make_stream
from bdh_jax.model import BDH
from bdh_jax.tasks.facts import (
    FIRST_VALUE,
    KINDS,
    VALUES,
    VOCABULARY,
    Kind,
    combinations,
    encode,
    initialise_new_ids,
    sample_episodes,
)

GATE = 0.99
"""Least in-episode recall, and least recall of ridge regression, of a model worth testing."""
AGES = (0, 1, 4, 16, 64, 256)
"""First age, in episodes, of each bin."""
_PROBE_EPISODES, _GATE_EPISODES, _PROBE_QUERIES, _PROBE_GRID = 48, 192, 8, 32
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class LifelongConfig:
    """Sizes of the benchmark."""

    stream: StreamConfig = dataclasses.field(default_factory=StreamConfig)
    streams: int = 10
    """R, test streams; every model sees the same ones."""
    validation_streams: int = 1
    """Streams, others than those, on which the first model chooses rates."""
    seed: int = 0
    """Of the first test stream; the others follow."""
    known: int = 256
    """Facts that the model learned by gradient: ``task.known`` of its training."""
    reference: str = "dense"
    """The row that all others are compared with."""

    def __post_init__(self):
        for name in ("streams", "validation_streams"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        most = len(combinations().known)
        if not 0 <= self.known <= most:
            raise ConfigError(f"known={self.known} must lie in 0 … {most}")


@dataclasses.dataclass(frozen=True)
class Gates:
    """Whether a model can be tested at all. A benchmark of retention says nothing of a model that fails them."""

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
            f"in-episode recall of {kind} keys is {r:.4f} < {GATE}" for kind, r in self.in_episode.items() if r < GATE
        ]
        facts = min(self.ridge)
        if self.ridge[facts] < GATE:
            failed.append(f"ridge regression recalls {self.ridge[facts]:.4f} < {GATE} of {facts} facts")
        return tuple(failed)


@dataclasses.dataclass(frozen=True)
class Row:
    """What one contestant did. Every score is an array [M, R], NaN where it is not defined."""

    name: str
    rate: float | None
    scores: dict[str, np.ndarray]
    curve: np.ndarray
    """[M, R, C], recall of the facts shown so far at each checkpoint; NaN but for the last of what is made in the end only."""
    facts_so_far: np.ndarray
    """[R, C]."""

    def mean(self, score: str) -> float:
        """Mean over models and streams; NaN if it is not defined."""
        return float(np.mean(self.scores[score]))


_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("recall", "recall", ".3f"),
    ("new_value", "new", ".3f"),
    ("old_value", "old", ".3f"),
    ("in_episode", "in-ep.", ".3f"),
    ("harm", "harm", "+.3f"),
    ("harm_known", "known", "+.3f"),
    ("bits_per_byte", "bits/B", ".4f"),
    ("milliseconds", "ms/ep.", ".1f"),
)
_NOTE = (
    "recall: of all facts after the last reset. new, old: of reassigned facts, answered with the value that holds and with the one "
    "before. in-ep.: recall within the episodes of the stream. harm, known: drop of recall in unrelated episodes, and of facts "
    "learned by gradient. bits/B: bits recalled above chance, per byte kept. Δ: against {reference}, mean and half of its 95 % "
    "interval over models and streams"
)


@dataclasses.dataclass(frozen=True)
class LifelongResult:
    """What the benchmark says."""

    rows: tuple[Row, ...]
    gates: tuple[Gates, ...]
    """One for each model."""
    config: LifelongConfig

    def table(self) -> Table:
        """The scores, means over models and streams, as a table that fits 100 columns."""
        reference = next((row for row in self.rows if row.name == self.config.reference), None)
        models, streams = self.rows[0].scores["recall"].shape
        stream = self.config.stream
        title = f"{stream.facts} facts, chance {1 / VALUES:.3f}; {models} model{'s' * (models > 1)} × {streams} stream{'s' * (streams > 1)}"
        table = Table(title=title, caption=self._caption(reference), box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("function", min_width=20)
        table.add_column("rate", justify="right")
        for number, (_, header, _) in enumerate(_COLUMNS):
            table.add_column(header, justify="right")
            if number == 0 and reference is not None:
                table.add_column("Δ recall", justify="right")
        for row in self.rows:
            cells = [_number(row.mean(score), form) for score, _, form in _COLUMNS]
            if reference is not None:
                cells.insert(1, _difference(row.scores["recall"] - reference.scores["recall"]))
            table.add_row(row.name, "" if row.rate is None else f"{row.rate:g}", *cells)
        return table

    def retention_table(self) -> Table:
        """Recall after the last reset by kind of key, and by age, as a table that fits 100 columns."""
        names = [name for name in self.rows[0].scores if name.startswith(("kind_", "age_"))]
        table = Table(
            title="recall by kind of key, and by episodes since the fact was shown last",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        table.add_column("function", min_width=20)
        for name in names:
            table.add_column(name.split("_", 1)[1].replace("_", " "), justify="right")
        for row in self.rows:
            table.add_row(row.name, *(_number(row.mean(name), ".3f") for name in names))
        return table

    def gates_table(self) -> Table:
        """The gates, one row a model, as a table that fits 100 columns."""
        table = Table(
            title="gates",
            caption="\n".join(f"FAILED, model {i}: {why}" for i, g in enumerate(self.gates) for why in g.failures) or None,
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        first = self.gates[0]
        headers = ["model", "dead", *(k.replace("_", " ") for k in first.in_episode), "new, raw"]
        headers += [f"ridge {f}" for f in first.ridge] + [f"written {f}" for f in first.ridge_written]
        headers += [f"cos {layer + 1}" for layer in range(len(first.drift))]
        for header in headers:
            table.add_column(header, justify="right")
        for number, gates in enumerate(self.gates):
            values = [*gates.in_episode.values(), gates.in_episode_raw_ids, *gates.ridge.values()]
            values += [*gates.ridge_written.values(), *gates.drift]
            table.add_row(str(number), str(gates.dead_keys), *(f"{value:.3f}" for value in values))
        return table

    def plot(self) -> Any:
        """Recall of the facts so far along the stream, and recall by age at its end.

        Returns:
          A ``matplotlib.figure.Figure``. Its colours repeat from the eleventh row on, with dashed lines.
        """
        from matplotlib.figure import Figure  # an optional dependency

        figure = Figure(figsize=(11, 5), layout="constrained")
        along, by_age = figure.subplots(1, 2, sharey=True)
        ages = [name for name in self.rows[0].scores if name.startswith("age_")]
        for number, row in enumerate(self.rows):
            style = {
                "color": f"C{number % 10}",
                "linestyle": ("-", "--", ":")[number // 10 % 3],
                "label": row.name,
                "marker": ".",
            }
            along.plot(row.facts_so_far.mean(axis=0), row.curve.mean(axis=(0, 1)), **style)
            by_age.plot([name.removeprefix("age_") for name in ages], [row.mean(name) for name in ages], **style)
        along.set(xlabel="facts shown so far", ylabel="recall after reset", ylim=(-0.02, 1.02))
        by_age.set(xlabel="episodes since the fact was shown last")
        figure.legend(*along.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, every single score included; None where one is not defined."""
        rows = []
        for row in self.rows:
            scores = {name: _plain(array) for name, array in row.scores.items()}
            mean = {name: _plain(row.mean(name)) for name in row.scores}
            entry = {"name": row.name, "rate": row.rate, "mean": mean, "scores": scores, "curve": _plain(row.curve)}
            rows.append({**entry, "facts_so_far": row.facts_so_far.tolist()})
        gates = [{**dataclasses.asdict(g), "failures": list(g.failures)} for g in self.gates]
        return {"config": dataclasses.asdict(self.config), "gates": gates, "rows": rows}

    def _caption(self, reference: Row | None) -> str:
        note = _NOTE if reference else _NOTE.split(". Δ")[0]
        failures = [f"GATE FAILED, model {i}: {why}" for i, g in enumerate(self.gates) for why in g.failures]
        return "\n".join([*failures, note.format(reference=self.config.reference)])


def run(
    model: BDH,
    slow: Slow,
    consolidate: Function,
    *,
    name: str = "consolidation",
    config: LifelongConfig | None = None,
    new_ids: int | None = 0,
) -> LifelongResult:
    """Benchmark one consolidation function on one model.

    Args:
      model: trained on the task "facts" (``configs/lifelong.py``), with fast weights and a synapse for each layer.
      slow: its parameters.
      consolidate: either form, see :mod:`bdh_jax.consolidation.base`.
      name: of the table's row.
      config: sizes; None for 256 facts and two streams.
      new_ids: seed of :func:`bdh_jax.tasks.facts.initialise_new_ids`; None leaves new embeddings as they are.

    Returns:
      A result of one row.

    Raises:
      ConfigError: for a model that the benchmark cannot use.
      ConsolidationError: for a function that cannot be used.
    """
    config = LifelongConfig(stream=StreamConfig(facts=256), streams=2) if config is None else config
    check_model(model.config)
    consolidation.check(consolidate, slow, jax.eval_shape(lambda: model.init_fast(1)))
    contestant = Contestant(name, lambda model, rate, facts: consolidated(model, consolidate))
    return benchmark(model, [slow], {name: contestant}, config=config, new_ids=new_ids)


def benchmark(
    model: BDH,
    slows: Sequence[Slow],
    contestants: Mapping[str, Contestant] | None = None,
    *,
    config: LifelongConfig | None = None,
    rates: Mapping[str, float] | None = None,
    new_ids: int | None = 0,
    console: Console | None = None,
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
      console: where progress is shown: a bar in a terminal or notebook, log lines anywhere else.

    Returns:
      A row for each contestant.

    Raises:
      ConfigError: for a model that the benchmark cannot use.
    """
    config = LifelongConfig() if config is None else config
    contestants = CONTESTANTS if contestants is None else contestants
    check_model(model.config)
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
    plays = sum(1 + (0 if c.name in chosen else len(c.rates)) for c in contestants.values()) + len(slows)
    with Progress("lifelong", plays, console) as progress:
        gates = []
        for number, slow in enumerate(slows):
            gates.append(measure_gates(model, slow, raw[number], config))
            progress.advance(f"gates of model {number}: " + ("; ".join(gates[-1].failures) or "passed"))
        unharmed = _measure_unharmed(model, slows, config)
        rows = []
        for contestant in contestants.values():
            arena = _Arena(model, contestant, config)
            if contestant.rates and contestant.name not in chosen:
                chosen[contestant.name] = _tune(arena, contestant, slows[:1], unharmed[:1], validation, progress)
            rate = chosen.get(contestant.rate_of or contestant.name)
            rows.append(arena.row(slows, unharmed, rate, streams))
            progress.advance(f"{contestant.name}: recall {rows[-1].mean('recall'):.3f}")
    return LifelongResult(tuple(rows), tuple(gates), config)


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
    if config.vocab_size < VOCABULARY:
        raise ConfigError(
            f'vocab_size={config.vocab_size}: the task "facts" has {VOCABULARY} token ids. Train with configs/lifelong.py'
        )


def measure_gates(model: BDH, slow: Slow, raw: Slow, config: LifelongConfig) -> Gates:
    """Test a model before it is benchmarked.

    Args:
      model: as of :func:`run`.
      slow: its parameters, with the embeddings of new ids that will be used.
      raw: the same with those that training left.
      config: of the benchmark.
    """
    keys = combinations()
    everything = np.concatenate([keys.seen, keys.held_out, keys.new_ids, keys.known, keys.reserved])
    rows = 512
    padded = everything[np.minimum(np.arange(-(-len(everything) // rows) * rows), len(everything) - 1)]
    alive = np.concatenate(
        [np.asarray(jnp.any(_addresses(model, slow, some) > 0, axis=-1)) for some in padded.reshape(-1, rows, 2)]
    )
    dead = int((~alive[: len(everything)]).any(axis=1).sum())

    probes = {kind: _probe(kind, config.stream.pairs, _GATE_EPISODES) for kind in KINDS}
    in_episode = {kind: float(_recall(model, slow, *probe)) for kind, probe in probes.items()}
    raw_ids = float(_recall(model, raw, *probes["new_ids"]))

    fresh, written, drift = {}, {}, ()
    for facts in sorted({256, model.config.n_neurons}):
        stream = make_stream(dataclasses.replace(config.stream, facts=facts), seed=config.seed, validation=True)
        order = np.arange(facts - facts % config.stream.pairs)
        values = stream.truth().value[order]
        tokens = np.concatenate([stream.keys[order], values[:, None]], axis=1).reshape(-1, 3 * config.stream.pairs)
        here = np.asarray(_written_addresses(model, slow, tokens), np.float64)
        alone = np.asarray(_addresses(model, slow, stream.keys[order]), np.float64)
        layers = range(model.config.n_layer)
        fresh[facts] = max(_ridge_recall(alone[:, i], alone[:, i], values) for i in layers)
        written[facts] = max(_ridge_recall(here[:, i], alone[:, i], values) for i in layers)
        drift = drift or tuple(float((here[:, i] * alone[:, i]).sum(axis=1).mean()) for i in layers)
    return Gates(dead, in_episode, fresh, written, drift, raw_ids)


class _Played(NamedTuple):
    """What happened on one stream. The keys asked for are those of the stream, and then those learned by gradient."""

    asked: jax.Array  # [C, F + known] answers on a fresh state, at every checkpoint
    final: jax.Array  # [F + known] in the end
    in_episode: jax.Array  # [C, E / C, P] whether the answer within the episode was right
    probe: jax.Array  # recall in unrelated episodes, in the end


def _play(learner: Learner, slow: Slow, keys, values, episodes, probe, known_keys) -> _Played:
    """One stream: keys [F, 2], final values [F], episodes [C, E / C, P, 3]."""
    model = learner.model

    def episode(carry, facts):
        slow, memory = carry
        tokens = facts.reshape(1, -1)
        output = model.apply({"params": slow}, tokens, learner.start(memory), collect=learner.collect)
        right = jnp.zeros(len(facts), bool)
        if learner.by_model:
            right = answers(model, slow, facts[:, :2], output.fast) == facts[:, 2]
        return learner.update(slow, memory, output, facts), right

    def segment(carry, episodes):
        carry, right = jax.lax.scan(episode, carry, episodes)
        return carry, (right, learner.answer(*carry, asked))

    asked = jnp.concatenate([keys, known_keys])
    slow = learner.prepare(slow)
    (slow, memory), (right, along) = jax.lax.scan(segment, (slow, learner.init(slow)), episodes)
    final = along[-1]
    if learner.finish is not None:
        slow = learner.finish(slow, memory, keys, values)
        final = learner.answer(slow, memory, asked)
    start, recall = learner.start(memory), jnp.zeros(())
    if learner.by_model and start is None:
        recall = _in_episode(model, slow, *probe)
    elif learner.by_model:
        tokens, targets, answer = probe
        each = jax.vmap(lambda row: model.apply({"params": slow}, row[None], start, state="none").logits[0])(tokens)
        recall = _share(jnp.argmax(each, axis=-1) == targets, answer)
    return _Played(along, final, right, recall)


class _Unharmed(NamedTuple):
    """A model before any stream."""

    probe: float  # recall in unrelated episodes
    known: float  # recall of facts learned by gradient


class _Arena:
    """One contestant, compiled once for all models, streams and rates (unless its function needs to see the rate's value).

    Streams are played one at a time: on a CPU several at once take as much time each, and more memory.
    """

    def __init__(self, model: BDH, contestant: Contestant, config: LifelongConfig):
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
        scores = {name: np.array([[s[name] for s, _ in of_model] for of_model in results]) for name in results[0][0][0]}
        curves = np.array([[curve for _, curve in of_model] for of_model in results])
        so_far = np.array(
            [[(stream.truth(step).value >= 0).sum() for step in self._checkpoints(stream)] for stream in streams]
        )
        return Row(contestant.name, rate, scores, curves, so_far)

    def _score(self, learner, slow, before, rate, stream, nbytes):
        config = self._config.stream
        facts = np.concatenate([stream.keys[stream.facts], stream.written[..., None]], axis=2).astype(np.int32)
        arguments = (
            stream.keys,
            stream.truth().value,
            facts.reshape(config.checkpoints, -1, config.pairs, 3),
            _probe("reserved", config.pairs),
            combinations().known[: self._config.known],
        )
        play = self._play(rate, slow, *arguments)
        start = time.perf_counter()
        played = jax.device_get(play(slow, *arguments))
        seconds = time.perf_counter() - start
        scores, curve = _score(learner, stream, played, before, nbytes, self._config)
        return {**scores, "milliseconds": 1000 * seconds / len(stream.facts)}, curve

    def _play(self, rate, *arguments):
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
    recalled = [_mean(np.asarray(_answers(model, slow, keys)) == values) if config.known else np.nan for slow in slows]
    probes = [float(_recall(model, slow, *_probe("reserved", config.stream.pairs))) for slow in slows]
    return [_Unharmed(*pair) for pair in zip(probes, recalled, strict=True)]


def _score(
    learner: Learner, stream: Stream, played: _Played, before: _Unharmed, nbytes: int, config: LifelongConfig
) -> tuple[dict[str, float], list[float]]:
    """Scores by name, and the curve [C]."""
    truth = stream.truth()
    facts = len(stream.keys)
    final, known = played.final[:facts], played.final[facts:]
    right = final == truth.value
    reassigned = truth.previous >= 0
    age = len(stream.facts) - 1 - truth.last
    count = len(played.asked)
    curve = []
    for checkpoint in range(count):
        value = stream.truth(len(stream.facts) // count * (checkpoint + 1)).value
        shown = value >= 0
        curve.append(float((played.asked[checkpoint, :facts] == value)[shown].mean()))
    recall = float(right.mean())
    if learner.finish is not None:
        # What was asked for along the way was asked before the bound or the control was made.
        curve = [np.nan] * (count - 1) + [recall]
    above_chance = max(0.0, (recall - 1 / VALUES) / (1 - 1 / VALUES))
    bits = above_chance * len(right) * np.log2(VALUES)
    new = _mean(right[reassigned])
    old = _mean((final == truth.previous)[reassigned])
    # What the second half of the stream still learns, with what the first left behind.
    late = played.in_episode[count // 2 :]
    scores = {
        "recall": recall,
        "new_value": new,
        "old_value": old,
        "neither_value": 1 - new - old,
        "in_episode": float(late.mean()),
        "harm": float(before.probe - played.probe),
        "harm_known": before.known - _mean(known == combinations().known_values[: config.known]),
        "bits_per_byte": float(bits / nbytes),
        "kilobytes": nbytes / 1000,
    }
    if not learner.by_model:
        scores |= dict.fromkeys(("in_episode", "harm", "harm_known"), np.nan)
    scores |= {f"kind_{kind}": _mean(right[stream.kind == i]) for i, kind in enumerate(KINDS)}
    # Bins that no stream of this length can reach are left out.
    firsts = [first for first in AGES if first < len(stream.facts)]
    for first, end in zip(firsts, [*firsts[1:], None], strict=True):
        here = (age >= first) & (True if end is None else age < end)
        name = f"age_{first}+" if end is None else f"age_{first}" if end == first + 1 else f"age_{first}-{end - 1}"
        scores[name] = _mean(right[here])
    return scores, curve


def _tune(arena, contestant, slows, unharmed, validation, progress) -> float:
    """The rate with the largest recall minus harm on validation streams."""
    best, chosen = -np.inf, contestant.rates[0]
    for rate in contestant.rates:
        row = arena.row(slows, unharmed, rate, validation)
        harm = row.mean("harm")
        merit = row.mean("recall") - (0 if np.isnan(harm) else max(0.0, harm))
        progress.advance(f"{contestant.name}, rate {rate:g}, validation: recall {row.mean('recall'):.3f}, harm {harm:+.3f}")
        if merit > best:
            best, chosen = merit, rate
    return chosen


@functools.cache
def _probe(kind: Kind, pairs: int, count: int = _PROBE_EPISODES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fresh episodes, the same always: tokens [count, T], targets [count, T], where answers are [count, T]."""
    rng = np.random.default_rng(len(kind))
    queries = min(_PROBE_QUERIES, pairs)
    encoded = encode(sample_episodes(rng, kind, count, pairs=pairs, queries=queries, grid=_probe_grid(kind)))
    return encoded.tokens, encoded.targets, encoded.answer


def _probe_grid(kind: Kind) -> int:
    # Reserved keys are few: only the whole alphabet holds enough of them.
    return 128 if kind == "reserved" else _PROBE_GRID


def _in_episode(model: BDH, slow: Slow, tokens, targets, answer) -> jax.Array:
    """Share of answers that are right, all queries of an episode one after another as in training."""
    logits = model.apply({"params": slow}, tokens, state="none").logits
    return _share(jnp.argmax(logits, axis=-1) == targets, answer)


def _share(right: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(right & where) / jnp.sum(where)


# Compiled once a model, however often it is benchmarked.
_recall = jax.jit(_in_episode, static_argnums=0)
_addresses = jax.jit(addresses, static_argnums=0)
_answers = jax.jit(answers, static_argnums=0)


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


def interval(values: np.ndarray) -> tuple[float, float]:
    """Bounds of the 95 % bootstrap interval of a mean, each number drawn as a unit. NaN if any is.

    Args:
      values: of any shape.
    """
    values = np.ravel(values)
    if np.isnan(values).any():
        return np.nan, np.nan
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _difference(values: np.ndarray) -> str:
    low, high = interval(values)
    return "" if np.isnan(low) or not values.any() else f"{values.mean():+.3f}±{(high - low) / 2:.3f}"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _number(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)


def _plain(value: Any) -> Any:
    """Lists of floats with None for NaN, which JSON does not know."""
    return np.where(np.isnan(value), None, np.asarray(value, object)).tolist()
