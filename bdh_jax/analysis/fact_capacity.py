"""Capacity: how many facts a matrix of fast weights holds, by write rule and by kind of address.

A fact is an address k of length 1 and one of 64 values; it is written once, by the rule, with λ = η = 1. F95 is the largest number of
facts of which 95 % are answered right when all of them are asked for afterwards. Values are orthonormal, so that what is read at an
address is one number for each value, and the largest is the answer. No model is trained for this; addresses are drawn, or come from
a trained model.

Axis letters: B trials, F facts, K rows, V values.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from scipy import integrate, optimize, special

from bdh_jax.analysis import figures, probes
from bdh_jax.config import ConfigError
from bdh_jax.console import Progress
from bdh_jax.fast_weights.rules import scan_rule
from bdh_jax.fast_weights.rules.mesa import ridge_solution
from bdh_jax.kernels.fast_weight_scan import fast_weight_scan
from bdh_jax.models.bdh import BDH
from bdh_jax.tasks.facts import VALUES, combinations
from bdh_jax.types import Slow

CapacityRule = Literal["hebbian", "limited", "delta", "longhorn", "oja", "mesa"]
RULES: tuple[CapacityRule, ...] = get_args(CapacityRule)
LIMITS = {"clamp": 1.0, "threshold": 5e-3, "row_norm": 1.0}
"""Of rule "limited": the Hebbian one with the limits of the σ rule (https://github.com/ZhukMax/tiny_bdh_xor) after every write."""
RIDGE = 0.01
RECALL = 0.95
_DENSE, _TRAINED = "dense ±", "trained model"
_MOST_PER_ROW = 16
"""Largest F to try, in units of K."""
_PRECISION = 0.05
"""F95 is found to this share of itself."""
_HALF_NORMAL = 2 / math.pi
"""E[m]² / E[m²] of the size m of a normal number."""


@dataclasses.dataclass(frozen=True)
class Addresses:
    """How addresses are drawn.

    Attributes:
      rows: K.
      active: share of the rows that are not zero, in (0, 1]; their sizes are those of normal numbers, all positive, as in BDH. None
        draws all K with either sign, as the keys of attention are.
    """

    rows: int
    active: float | None

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise ConfigError(f"rows={self.rows} must be at least 2")
        if self.active is not None and not 1 <= self.active * self.rows <= self.rows:
            raise ConfigError(f"active={self.active} of rows={self.rows} must lie in 1/{self.rows} … 1: a share of the rows")

    @property
    def name(self) -> str:
        """For tables."""
        return _DENSE if self.active is None else f"{self.active:.2%} active"

    @property
    def mean_square_overlap(self) -> float:
        """E[(k·k')²] of two addresses. 1/K at best; positive ones overlap on average, too, by active · 2/π."""
        mean = 0.0 if self.active is None else self.active * _HALF_NORMAL
        return mean**2 + (1 - mean**2) / self.rows

    def draw(self, rng: np.random.Generator, trials: int, count: int) -> np.ndarray:
        """``count`` addresses for each of ``trials``, [B, F, K] float32 of length 1."""
        drawn = rng.standard_normal((trials, count, self.rows), dtype=np.float32)
        if self.active is not None:
            chosen = rng.random(drawn.shape, dtype=np.float32)
            winners = max(1, round(self.active * self.rows))
            last = np.partition(chosen, winners - 1, axis=-1)[..., winners - 1 : winners]
            drawn = np.where(chosen <= last, np.abs(drawn), np.float32(0))
        return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def theory(rule: CapacityRule, addresses: Addresses) -> float | None:
    """F95 of random addresses, from the noise that other facts bring; None for rules without a simple formula.

    The Hebbian rule reads 1 + n for the right value and n for each other, n a sum over about F/64 facts of products of addresses,
    with variance F/64 · E[(k·k')²]. Least squares ("mesa", ridge → 0) reads the value's own share h = K/F of a projection onto K of F
    dimensions, and noise of variance h (1 − h)/64. Either is right where the signal exceeds the largest of 63 noises, which at
    95 % needs the ratio s of signal and noise that :func:`_signal_to_noise` gives.

    Args:
      rule: the write rule.
      addresses: how addresses are drawn.

    Returns:
      F95, or None.
    """
    needed = _signal_to_noise()
    if rule == "hebbian":
        return VALUES / (needed**2 * addresses.mean_square_overlap)
    if rule == "mesa":
        return addresses.rows * (1 + VALUES / needed**2)
    return None


def right_share(signal: float, values: int) -> float:
    """P(s + n₀ > max n₁ … n_{V−1}) for standard normal n: how often the right one of V values is the largest.

    Args:
      signal: s, signal ÷ standard deviation of the noise.
      values: V ≥ 1.
    """
    # special.ndtr is the distribution function; that of scipy.stats takes twenty times as long for a number.
    area = integrate.quad(lambda z: math.exp(-z * z / 2) * special.ndtr(z + signal) ** (values - 1), -10, 10)[0]
    return area / math.sqrt(2 * math.pi)


@functools.cache
def _signal_to_noise() -> float:
    """The ratio s at which the right value is the largest in 95 % of the cases."""
    root: Any = optimize.brentq(lambda signal: right_share(signal, VALUES) - RECALL, 0, 20)
    return float(root)


def state_bytes(rule: CapacityRule, rows: int) -> int:
    """Bytes of float32 state: S, and the sum of k ⊗ k for "mesa"."""
    return 4 * rows * (VALUES + (rows if rule == "mesa" else 0))


@functools.partial(jax.jit, static_argnames="rule")
def recall(rule: CapacityRule, addresses: jax.Array, values: jax.Array, valid: jax.Array) -> jax.Array:
    """The share of facts that are answered right after all were written, one after another.

    Args:
      rule: the write rule.
      addresses: [B, F, K].
      values: [B, F] integers in [0, V).
      valid: [B, F] bool, the facts that there are.

    Returns:
      [] float32.
    """
    state = _readable_state(rule, addresses, values, valid)
    answers = jnp.argmax(jnp.einsum("bfk,bkv->bfv", addresses, state), axis=-1)
    return jnp.sum((answers == values) & valid) / jnp.sum(valid)


def _readable_state(rule: CapacityRule, addresses: jax.Array, values: jax.Array, valid: jax.Array) -> jax.Array:
    """What an address reads, [B, K, V], after all facts were written."""
    written = jax.nn.one_hot(values, VALUES, dtype=addresses.dtype)
    write = functools.partial(fast_weight_scan, addresses, addresses, written, valid=valid)
    if rule == "limited":
        _, state = write(implementation="recurrent", rule=scan_rule("hebbian", limits=LIMITS))
    else:
        _, state = write(implementation="chunked", rule=scan_rule("hebbian" if rule == "mesa" else rule))
    if rule == "mesa":
        kept = addresses * valid[..., None]
        gram = jnp.einsum("bfk,bfl->bkl", kept, kept)
        state = ridge_solution(gram, state[:, None], RIDGE)[:, 0]
    return state


def facts_at_recall(rule: CapacityRule, draw: Callable[[int], np.ndarray], *, start: int, most: int, seed: int) -> float:
    """F95: the number of facts at which recall falls through 0.95, by bisection.

    Args:
      rule: the write rule.
      draw: count F → addresses [B, F, K].
      start: where to begin looking.
      most: the largest F to try; a power of two.
      seed: of the values.

    Returns:
      F95 to 5 %; ``most`` if recall is higher there, which is then a lower bound.
    """
    pool: dict[int, tuple[jax.Array, jax.Array]] = {}

    def at(count: int) -> float:
        # Whole powers of two, so that few shapes are compiled; facts beyond the count are invalid tokens.
        size = max(16, 1 << (count - 1).bit_length())
        if size not in pool:
            drawn = draw(size)
            values = np.random.default_rng(seed).integers(0, VALUES, drawn.shape[:2])
            pool[size] = jnp.asarray(drawn), jnp.asarray(values)
        addresses, values = pool[size]
        valid = jnp.broadcast_to(jnp.arange(size) < count, values.shape)
        return float(recall(rule, addresses, values, valid))

    low, high = 1, min(max(start, 2), most)
    while at(high) >= RECALL:
        if high == most:
            return float(most)
        low, high = high, min(2 * high, most)
    while high > low + 1 and high / low > 1 + _PRECISION:
        middle = max(low + 1, min(high - 1, round(math.sqrt(low * high))))
        low, high = (middle, high) if at(middle) >= RECALL else (low, middle)
    return math.sqrt(low * high)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One measured capacity.

    Attributes:
      rule: the write rule.
      kind: name of the addresses.
      rows: K.
      active: mean share of the rows that are not zero.
      f95: one for each seed.
      theory: F95 by :func:`theory`, or None.
      at_limit: whether the search ended at its limit, so that ``f95`` is a lower bound.
    """

    rule: CapacityRule
    kind: str
    rows: int
    active: float
    f95: tuple[float, ...]
    theory: float | None
    at_limit: bool

    @property
    def mean(self) -> float:
        """Mean F95 over seeds."""
        return float(np.mean(self.f95))

    @property
    def per_kibibyte(self) -> float:
        """Facts per 1024 bytes of state."""
        return 1024 * self.mean / state_bytes(self.rule, self.rows)


@dataclasses.dataclass(frozen=True)
class CapacityResult:
    """What :func:`measure` returns."""

    entries: tuple[Entry, ...]

    def table(self) -> Table:
        """F95 for each rule and kind of address."""
        table = Table(
            "rule",
            "addresses",
            *("K", "F95", "± std", "F95 ÷ K", "theory", "facts/KiB"),
            title="Facts at 95 % recall",
            caption="Each fact written once, λ = η = 1. KiB of S, and of Σ k ⊗ k for mesa. ≥: search ended there",
        )
        for column in table.columns[2:]:
            column.justify = "right"
        for entry in self.entries:
            table.add_row(
                entry.rule,
                entry.kind,
                str(entry.rows),
                f"{'≥ ' if entry.at_limit else ''}{entry.mean:.0f}",
                f"{np.std(entry.f95, ddof=1):.0f}" if len(entry.f95) > 1 else "–",
                f"{entry.mean / entry.rows:.2f}",
                "–" if entry.theory is None else f"{entry.theory:.0f}",
                f"{entry.per_kibibyte:.2f}",
            )
        return table

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values for JSON."""
        return [{**dataclasses.asdict(entry), "facts_per_kibibyte": entry.per_kibibyte} for entry in self.entries]

    def plot(self) -> Any:
        """F95, and facts per KiB of state below it, against K and against the share of active rows at the K that most entries have.

        Returns:
          A ``matplotlib.figure.Figure``.
        """
        figure, panels = figures.make(2, 2, width=5, height=4, sharex="col")
        panels = panels.reshape(2, 2)
        looks = figures.lines(list(dict.fromkeys(entry.rule for entry in self.entries)))
        drawn = [entry for entry in self.entries if entry.kind != _TRAINED]
        sparse = [entry for entry in drawn if entry.kind != _DENSE]
        rows = collections.Counter(entry.rows for entry in sparse or self.entries).most_common(1)[0][0]
        kind = collections.Counter(entry.kind for entry in sparse or self.entries).most_common(1)[0][0]
        for (by_rows, by_active), per_kibibyte in zip(panels, (False, True), strict=True):
            draw = functools.partial(_draw, per_kibibyte=per_kibibyte)
            for rule, look in looks.items():
                style = {"color": look["color"], "label": rule}
                line = [entry for entry in sparse if entry.rule == rule and entry.kind == kind]
                draw(by_rows, [e.rows for e in line], line, marker=look["marker"], **style)
                line = [entry for entry in sparse if entry.rule == rule and entry.rows == rows]
                draw(by_active, [e.active for e in line], line, marker=look["marker"], **style)
                style["label"] = None
                line = [entry for entry in drawn if entry.rule == rule and entry.kind == _DENSE]
                draw(by_rows, [e.rows for e in line], line, marker="x", alpha=0.5, **style)
                trained = [entry for entry in self.entries if entry.rule == rule and entry.kind == _TRAINED]
                star = {"linestyle": "none", "marker": "*", "markersize": 11, **style}
                draw(by_rows, [e.rows for e in trained], trained, **star)
                draw(by_active, [e.active for e in trained], trained, **star)
            by_rows.set(ylabel="facts per KiB of state" if per_kibibyte else "facts at 95 % recall")
            for axes in (by_rows, by_active):
                axes.set(xscale="log", yscale="log")
                axes.grid(alpha=0.3)
        by_rows, by_active = panels[-1]
        by_rows.set(xlabel=f"rows K ({kind}; ×: {_DENSE})")
        by_active.set(xlabel=f"share of active rows at K = {rows}")
        by_rows.set_xticks(ticks := sorted({entry.rows for entry in self.entries}), map(str, ticks))
        by_rows.minorticks_off()
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc="outside right upper", title="dashed: theory\n★: trained models"
        )
        return figure


def _draw(axes: Any, points: Sequence[float], entries: Sequence[Entry], *, per_kibibyte: bool, **style: Any) -> None:
    """Measured values with their spread, and theory where there is one, in order of ``points``."""
    if not entries:
        return
    order = np.argsort(points)
    ordered, entries = np.asarray(points)[order], [entries[i] for i in order]
    unit = np.array([1024 / state_bytes(entry.rule, entry.rows) if per_kibibyte else 1 for entry in entries])
    means, spread = (np.array([of(entry.f95) for entry in entries]) for of in (np.mean, np.std))
    axes.errorbar(ordered, unit * means, unit * spread, capsize=2, **style)
    if entries[0].theory is not None:
        theories = unit * np.array([entry.theory for entry in entries])
        axes.plot(ordered, theories, linestyle="--", color=style["color"], alpha=style.get("alpha", 1))


def measure(
    kinds: Sequence[Addresses],
    *,
    rules: Sequence[str] = RULES,
    seeds: Sequence[int] = (0, 1, 2),
    trained: Sequence[tuple[BDH, Slow]] = (),
) -> CapacityResult:
    """F95 of every rule with every kind of address.

    Args:
      kinds: drawn addresses.
      rules: write rules.
      seeds: one trial each.
      trained: models with fast weights whose vocabulary is that of :mod:`bdh_jax.tasks.facts`; the addresses of their first layer are
        those of its keys of training, each alone on a fresh state, and there is one trial for each model.

    Returns:
      :class:`CapacityResult`.

    Raises:
      ConfigError: for an unknown rule.
    """
    if not rules:
        raise ConfigError(f"rules is empty: name at least one of {', '.join(RULES)}")
    chosen: list[CapacityRule] = []
    for rule in rules:
        if rule not in RULES:
            raise ConfigError(f"rule {rule!r} is not one of {', '.join(RULES)}")
        chosen.append(rule)
    entries = []
    with Progress("capacity", len(rules) * (len(kinds) + bool(trained))) as progress:
        for kind in kinds:
            for rule in chosen:
                expected = theory(rule, kind)
                guess = expected or kind.rows / 2
                most = 1 << math.ceil(math.log2(_MOST_PER_ROW * kind.rows))
                search = functools.partial(facts_at_recall, rule, start=int(guess), most=most)
                f95 = tuple(search(functools.partial(_draw_seeded, kind, seed), seed=seed) for seed in seeds)
                active = 1.0 if kind.active is None else max(1, round(kind.active * kind.rows)) / kind.rows
                entries.append(Entry(rule, kind.name, kind.rows, active, f95, expected, max(f95) >= most))
                progress.advance(1, _line(entries[-1]), keep=True)
        if trained:
            pools = [_trained_addresses(*model, seed) for seed, model in enumerate(trained)]
            rows = pools[0].shape[-1]
            most = 1 << int(math.log2(pools[0].shape[1]))
            for rule in chosen:
                f95 = tuple(
                    facts_at_recall(rule, lambda count, pool=pool: pool[:, :count], start=rows // 2, most=most, seed=seed)
                    for seed, pool in enumerate(pools)
                )
                active = float(np.mean([np.mean(pool > 0) for pool in pools]))
                entries.append(Entry(rule, _TRAINED, rows, active, f95, None, max(f95) >= most))
                progress.advance(1, _line(entries[-1]), keep=True)
    return CapacityResult(tuple(entries))


def _draw_seeded(kind: Addresses, seed: int, count: int) -> np.ndarray:
    return kind.draw(np.random.default_rng((seed, kind.rows)), 1, count)


def _trained_addresses(model: BDH, slow: Slow, seed: int) -> np.ndarray:
    """Addresses of the first layer of the keys of training, in random order, [1, F, K]."""
    keys = np.random.default_rng(seed).permutation(combinations().seen)
    of = jax.jit(lambda keys: probes.addresses(model, slow, keys)[:, 0])
    return np.concatenate([np.asarray(of(part)) for part in np.split(keys, 11)])[None]


def _line(entry: Entry) -> str:
    return f"{entry.rule}, {entry.kind}, K {entry.rows}: F95 {entry.mean:.0f}"
