"""Activity: how many neurons are active, where, and after what."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.analysis import activity
from bdh_jax.analysis.activity import KINDS, Activity
from bdh_jax.analysis.nulls import p_of_largest
from bdh_jax.analysis.report import activity_charts as charts
from bdh_jax.analysis.report.base import SIGNIFICANT, Finding, NotApplicable, Section, Subject, verdict
from bdh_jax.console import Progress
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.types import Slow

_SEQUENCES, _DRAWS = 48, 999
_LEAST_SEEDS = 3
"""Seeds from which an interval over them is drawn; with fewer it is over sequences or neurons."""
_BINS = 16
_TOKENS = 24
_RATES = (
    ("never", 0.0),
    ("up to 1 %", 0.01),
    ("1 to 10 %", 0.1),
    ("10 to 50 %", 0.5),
    ("50 to 99 %", 0.99),
    ("more than 99 %", 1.0),
)
"""Name → the largest share of tokens at which a neuron of it is active."""


class _Measured(NamedTuple):
    """What all findings are made of."""

    tokens: np.ndarray
    valid: np.ndarray
    trained: dict[int, Activity]
    untrained: dict[int, Activity]

    @property
    def models(self) -> dict[str, dict[int, Activity]]:
        return {"trained": self.trained, "untrained": self.untrained}


def find(subject: Subject) -> list[Finding]:
    """See :class:`bdh_jax.analysis.report.base.Section`."""
    config = subject.config
    if not isinstance(config, BDHConfig):
        name = type(config).__name__.removesuffix("Config")
        raise NotApplicable(f"A {name} has no neurons with a code and a gate: this asks for a BDH.")
    rows = max(2, round(_SEQUENCES * subject.budget))
    tokens, valid = subject.tokens[:rows], subject.valid[:rows]
    untrained = {seed: subject.untrained(seed) for seed in subject.seeds}

    def measured(models: Mapping[int, Slow]) -> dict[int, Activity]:
        return {seed: activity.measure(config, slow, tokens, valid) for seed, slow in models.items()}

    with Progress("activity", 7) as progress:
        all_of_it = _Measured(tokens, valid, measured(subject.seeds), measured(untrained))
        progress.advance()
        asked: tuple[Callable[[], Sequence[Finding]], ...] = (
            lambda: [_by_layer(all_of_it)],
            lambda: _over_steps(subject, all_of_it),
            lambda: _by_position(subject, all_of_it),
            lambda: _repeated(subject, config, untrained),
            lambda: [_by_neuron(all_of_it)],
            lambda: [_by_token(subject, all_of_it)],
        )
        findings: list[Finding] = []
        for ask in asked:
            findings += ask()
            progress.advance()
    return findings


def _by_layer(measured: _Measured) -> Finding:
    rows, means = [], {}
    for model, of_seed in measured.models.items():
        for seed, found in of_seed.items():
            for kind in KINDS:
                shares = np.nanmean(found.by_token[kind], axis=(1, 2))
                means[model, seed, kind] = shares
                rows += [
                    {"model": model, "seed": seed, "layer": layer, "kind": kind, "share": float(share)}
                    for layer, share in enumerate(shares, start=1)
                ]

    def of(found: Activity) -> np.ndarray:
        return activity.sequence_means(found.by_token["code"], measured.valid).mean(axis=0)

    effect, interval, over = _against_untrained(measured, of, "sequences")
    shown = {model: _mean(means, model, measured, "code") for model in measured.models}
    moved = _beside(effect, interval)
    says = (
        f"A token activates {_layers(shown['trained'])} of the neurons by their code, {_layers(_mean(means, 'trained', measured, 'gate'))} by "
        f"their gate and {_layers(_mean(means, 'trained', measured, 'gated'))} by both, layer by layer; in the mean over layers the code's share is "
        f"{moved} that before training ({_layers(shown['untrained'])})."
    )
    title = f"{_percent(np.mean(shown['trained']))} of the code is active after training, {_percent(np.mean(shown['untrained']))} before"
    return Finding(
        name="share_by_layer",
        title=title,
        says=says,
        null=f"Training changes nothing: the same model before its first step, with the same seed. The interval is Student's t, over {over}.",
        caption=(
            f"Share of the neurons of a layer that are not zero at a token, in the mean over {int(measured.valid.sum()):,} held-out tokens: by their "
            "code x, by their gate y, and by the product of both, which is what a layer decodes. One mark a seed; trained models, and the same "
            "models before training."
        ),
        alternative=f"Active shares by layer. {says}",
        rows=rows,
        chart=charts.by_layer(),
        effect=effect,
        interval=interval,
    )


def _over_steps(subject: Subject, measured: _Measured) -> list[Finding]:
    """The share at every checkpoint that was kept, or else what the run wrote down."""
    config = subject.config
    assert isinstance(config, BDHConfig)
    steps = {seed: sorted(kept) for seed, kept in subject.checkpoints.items() if len(kept) > 1}
    if not steps:
        return [_logged(subject)]
    rows, last = [], {}
    for seed, kept in steps.items():
        courses: list[tuple[int, Activity]] = [(0, measured.untrained[seed])]
        for step in kept:
            slow = subject.checkpoints[seed][step]()
            courses.append((step, activity.measure(config, slow, measured.tokens, measured.valid)))
        for step, found in courses:
            for layer in range(config.n_layer):
                rows += [
                    {"seed": seed, "step": step, "layer": layer + 1, "kind": kind, "share": _share(found, kind, layer)}
                    for kind in KINDS
                ]
        before, after = (activity.sequence_means(f.by_token["code"], measured.valid).mean(axis=0) for _, f in courses[-2:])
        last[seed] = after - before
    differences, over = _units(list(last.values()), "sequences")
    interval = activity.interval_of_mean(differences)
    effect = float(np.mean(differences))
    kept = next(iter(steps.values()))
    same = interval[0] <= 0 <= interval[1]
    says = (
        f"At the last checkpoint that was kept, of step {kept[-1]:,}, the active share of the code is {_beside(effect, interval)} that of the one "
        f"before, of step {kept[-2]:,}."
    )
    return [
        Finding(
            name="share_over_training",
            title="At the end of training the active share does not change measurably"
            if same
            else f"At the end of training the active share still {'falls' if effect < 0 else 'rises'}",
            says=says,
            null=f"Between the last two checkpoints nothing changes. The interval is Student's t, over {over}.",
            caption=(
                "Share of neurons of a layer that are not zero at a held-out token, at every checkpoint that was kept; step 0 is the model before "
                "training. `train.keep_every` keeps more of them."
            ),
            alternative=f"Active shares over training steps, by layer. {says}",
            rows=rows,
            chart=charts.over_steps(),
            effect=effect,
            interval=interval,
        )
    ]


def _logged(subject: Subject) -> Finding:
    """What the run's own metrics say of activity over training steps, if they say something."""
    rows = [
        {"seed": seed, "step": line["step"], "metric": key, "value": float(value)}
        for seed, lines in subject.metrics.items()
        for line in lines
        for key, value in line.items()
        if "activ" in key and isinstance(value, int | float)
    ]
    if not rows:
        return Finding(
            name="share_over_training",
            title="How activity came about was not recorded",
            says="The run kept one checkpoint and its metrics do not name activity; train.keep_every keeps checkpoints to look at.",
            null="",
            caption="Nothing is plotted: the run kept fewer than two checkpoints, and its metrics do not name activity.",
            alternative="No figure.",
            rows=[],
        )
    names = ", ".join(sorted({row["metric"] for row in rows}))
    return Finding(
        name="share_over_training",
        title="Activity while the model was trained",
        says=f"The run wrote down {names}, of the batches that it was trained on.",
        null="",
        caption=f"What the run wrote into its metrics: {names}. One line a seed.",
        alternative=f"{names} over training steps.",
        rows=rows,
        chart=charts.logged(),
    )


def _by_position(subject: Subject, measured: _Measured) -> list[Finding]:
    lengths = measured.valid.sum(axis=1)
    if lengths.max(initial=0) < 4:
        return []
    things = [(kind, layer) for kind in KINDS for layer in range(subject.config.n_layer)]
    means = {kind: np.mean([a.by_token[kind] for a in measured.trained.values()], axis=0) for kind in KINDS}
    stacked = np.stack([means[kind][layer] for kind, layer in things])  # [M, B, T]
    sequences = [
        stacked[:, row, there].astype(float)
        for row, there in enumerate(measured.valid)
        if there.sum() >= max(lengths.max() // 2, 4)
    ]
    trend = activity.over_positions(sequences, round(_DRAWS * subject.budget) or 1, np.random.default_rng(0))
    scale = np.std(trend.shuffled, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    p_values = p_of_largest(np.abs(trend.change) / scale, np.abs(trend.shuffled) / scale)
    chosen = int(np.argmax(np.abs(trend.change) / scale))
    (kind, layer), change, p = things[chosen], float(trend.change[chosen]), float(p_values[chosen])
    what = f"the {_word(kind)} of layer {layer + 1}"
    says = (
        f"From the first to the last position the active share of {what} changes by {_points(change)}, the most of all "
        f"{len(things)} that were looked at: "
        f"{verdict(p, other=' from sequences that begin anywhere')}."
    )
    return [
        Finding(
            name="share_by_position",
            title=(
                f"The {_word(kind)} of layer {layer + 1} {'gets sparser' if change < 0 else 'gets denser'} with position"
                if p < SIGNIFICANT
                else "No change of activity with position that could be told from none"
            ),
            says=says,
            null=(
                "Position does not matter: each sequence's shares moved round by a number of positions drawn for it, which keeps what "
                f"neighbouring tokens have in common; {len(trend.shuffled)} draws, corrected for kinds and layers (Westfall and Young)."
            ),
            caption=(
                f"Active share over the position in a held-out sequence, by layer; means over {len(sequences)} sequences and {_BINS} or fewer "
                "bins of positions. One line a seed."
            ),
            alternative=f"Active share over position, by layer. {says}",
            rows=_position_rows(measured),
            chart=charts.by_position(),
            effect=change,
            p_value=p,
        )
    ]


def _position_rows(measured: _Measured) -> list[dict[str, Any]]:
    length = measured.valid.shape[1]
    edges = np.unique(np.linspace(0, length, min(_BINS, length) + 1).round().astype(int))
    rows = []
    for seed, found in measured.trained.items():
        for kind in KINDS:
            for first, end in itertools.pairwise(edges):
                part = found.by_token[kind][:, :, first:end]
                if np.isnan(part).all():
                    continue
                rows += [
                    {"seed": seed, "kind": kind, "layer": layer, "position": (first + end - 1) / 2, "share": float(share)}
                    for layer, share in enumerate(np.nanmean(part, axis=(1, 2)), start=1)
                ]
    return rows


def _repeated(subject: Subject, config: BDHConfig, untrained: Mapping[int, Slow]) -> list[Finding]:
    """The same tokens at the same positions, read for the second time or for the first."""
    generator = np.random.default_rng(1)
    count = max(2, round(_SEQUENCES * subject.budget))
    try:
        repeated, fresh = activity.repeats(subject.tokens, subject.valid, count, generator)
    except ValueError:
        return []
    half = repeated.shape[1] // 2
    things = [(kind, layer) for kind in KINDS for layer in range(config.n_layer)]
    rows, differences = [], {}
    for model, weights in (("trained", subject.seeds), ("untrained", untrained)):
        second, first = (_second_half(config, weights, sequences, things) for sequences in (repeated, fresh))
        differences[model] = second - first
        rows += [_change(model, *of) for of in zip(things, first, second, strict=True)]
    draws = round(_DRAWS * subject.budget) or 1
    observed, flipped = activity.sign_flips(differences["trained"], draws, generator)
    p_values = p_of_largest(observed, flipped)
    chosen = int(np.argmax(observed))
    (kind, layer), p = things[chosen], float(p_values[chosen])
    mine, control = rows[chosen], rows[len(things) + chosen]
    without = control["low"] <= 0 <= control["high"]
    says = (
        f"Read for the second time, the same tokens change the active share of the {_word(kind)} of layer {layer + 1} by "
        f"{_signed(mine['change'])} of itself ({_percent(mine['fresh'], 4)} to {_percent(mine['repeated'], 4)}), the clearest change of all "
        f"{len(things)} that were looked at: "
        f"{verdict(p, other=' from none')}; untrained {_signed(control['change'])}{', not distinguishable from none' if without else ''}."
    )
    what = "text" if subject.decode else "input"
    title = (
        f"In repeated {what} the {_word(kind)} of layer {layer + 1} is {_percent(abs(mine['change']), 2)} {'less' if mine['change'] < 0 else 'more'} active"
        if p < SIGNIFICANT
        else f"No change of activity in repeated {what} that could be told from none"
    )
    return [
        Finding(
            name="fresh_and_repeated",
            title=title,
            says=says,
            null=(
                f"It does not matter what was read before: signs of the {len(fresh)} paired differences drawn anew, {draws} times, corrected for "
                "kinds and layers (Westfall and Young)."
            ),
            caption=(
                f"The last {half} tokens of sequences in which the same {half} tokens came before, against the same tokens at the same positions "
                f"after {half} others: relative change of the active share, by layer. Bars are 95 % intervals over {len(fresh)} pairs, in the mean "
                "over seeds; trained models, and the same models before training. The code of the first layer sees its token alone, so that nothing can change there."
            ),
            alternative=f"Relative change of the active share in repeated {what}, by layer. {says}",
            rows=rows,
            chart=charts.repeated(what),
            effect=mine["change"],
            p_value=p,
        )
    ]


def _second_half(
    config: BDHConfig, weights: Mapping[int, Slow], sequences: np.ndarray, things: Sequence[tuple[str, int]]
) -> np.ndarray:
    """The active share of each kind and layer in the second half of each sequence, in the mean over seeds: [M, P]."""
    half = sequences.shape[1] // 2
    measured = [activity.measure(config, slow, sequences).by_token for slow in weights.values()]
    of_seed = [[one[kind][layer][:, half:].mean(axis=1) for kind, layer in things] for one in measured]
    return np.mean(of_seed, axis=0).astype(float)


def _change(model: str, thing: tuple[str, int], first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """A row of the finding on repeats: the change, in the mean over pairs, as a share of what it was."""
    base, (low, high) = float(first.mean()), activity.interval_of_mean(second - first)
    change, low, high = (part / base if base else 0.0 for part in (float(np.mean(second - first)), low, high))
    return {
        "model": model,
        "kind": thing[0],
        "layer": thing[1] + 1,
        "fresh": base,
        "repeated": float(second.mean()),
        "change": change,
        "low": low,
        "high": high,
    }


def _by_neuron(measured: _Measured) -> Finding:
    rows = []
    for model, of_seed in measured.models.items():
        shares = np.mean([_rate_shares(found.by_neuron["code"]) for found in of_seed.values()], axis=0)
        rows += [
            {"model": model, "layer": layer + 1, "active at": name, "neurons": float(shares[layer, number])}
            for layer in range(len(shares))
            for number, (name, _) in enumerate(_RATES)
        ]

    def dead(found: Activity) -> np.ndarray:
        return (found.by_neuron["code"] == 0).mean(axis=0)

    effect, interval, over = _against_untrained(measured, dead, "neurons")
    after, always = (
        float(np.mean([test(found.by_neuron["code"]).mean() for found in measured.trained.values()]))
        for test in (lambda rate: rate == 0, lambda rate: rate > 0.99)
    )
    says = (
        f"{_percent(after)} of the neurons are never active and {_percent(always)} at more than 99 % of tokens; the share of dead ones is "
        f"{_beside(effect, interval)} that before training."
    )
    return Finding(
        name="neurons",
        title=f"{_percent(after, 2)} of the neurons are never active, {_percent(always, 2)} nearly always"
        if after or always
        else "No neuron is dead, and none is always active",
        says=says,
        null=f"Training kills and wakes no neuron: the same model before its first step. The interval is Student's t, over {over}.",
        caption=(
            f"Share of a layer's neurons by how often their code is active, on {int(measured.valid.sum()):,} held-out tokens, in the mean over "
            "seeds; trained models, and the same models before training."
        ),
        alternative=f"Histogram of how often neurons are active, by layer. {says}",
        rows=rows,
        chart=charts.by_neuron([name for name, _ in _RATES]),
        effect=effect,
        interval=interval,
    )


def _by_token(subject: Subject, measured: _Measured) -> Finding:
    layers = subject.config.n_layer
    ids = measured.tokens[measured.valid]
    kinds = ("code", "gated")
    things = [(kind, layer) for kind in kinds for layer in range(layers)]
    means = {kind: np.mean([a.by_token[kind] for a in measured.trained.values()], axis=0) for kind in kinds}
    values = np.stack([means[kind][layer][measured.valid] for kind, layer in things]).astype(float)
    observed = activity.explained_by_token(values, ids)
    generator = np.random.default_rng(2)
    draws = max(1, round(_DRAWS * subject.budget / 5))
    shuffled = np.stack([activity.explained_by_token(values, generator.permutation(ids)) for _ in range(draws)])
    p_values = p_of_largest(observed, shuffled)
    last = len(things) - 1
    expected, p = float(shuffled[:, last].mean()), float(p_values[last])
    commonest = [token for token, _ in collections.Counter(ids.tolist()).most_common(_TOKENS)]
    rows = []
    for kind in kinds:
        for layer in range(layers):
            here = means[kind][layer][measured.valid]
            for token in commonest:
                mine = here[ids == token]
                rows.append(
                    {
                        "token": _label(subject, token),
                        "count": len(mine),
                        "kind": kind,
                        "layer": layer + 1,
                        "share": float(mine.mean()),
                        "deviation": float(mine.std()),
                    }
                )
    says = (
        f"Which token it is explains {_percent(observed[last])} of the variance of the active share of the gated code in layer {layers}, and "
        f"{_layers(observed[:layers])} of that of the code, layer by layer; shuffled tokens {_percent(expected, 2)}: "
        f"{verdict(p)}."
    )
    return Finding(
        name="tokens",
        title=f"The token alone explains {_percent(observed[last], 2)} of how much a model activates for it",
        says=says,
        null=(
            f"The token does not matter: {draws} permutations of all tokens over all positions, corrected for kinds and layers (Westfall and "
            "Young). The code of the first layer is a function of its token: 100 % by construction."
        ),
        caption=(
            f"Active share at the {len(commonest)} most frequent of the held-out tokens, by layer: code and gated code, in the mean over places and "
            "seeds."
        ),
        alternative=f"Active share by token, for the most frequent tokens. {says}",
        rows=rows,
        chart=charts.by_token(),
        effect=float(observed[last]),
        p_value=p,
    )


def _against_untrained(
    measured: _Measured, of: Callable[[Activity], np.ndarray], units: str
) -> tuple[float, tuple[float, float], str]:
    """The difference between a trained model and the same untrained, its 95 % interval, and what that is over.

    Args:
      measured: of all models.
      of: what is compared → [n], a number for each sequence or neuron.
      units: what the numbers are of.
    """
    differences = [of(found) - of(measured.untrained[seed]) for seed, found in measured.trained.items()]
    values, over = _units(differences, units)
    return float(np.mean(values)), activity.interval_of_mean(values), over


def _units(differences: Sequence[np.ndarray], units: str) -> tuple[np.ndarray, str]:
    """What an interval is drawn over: seeds where there are enough of them, else what each seed has several of."""
    if len(differences) >= _LEAST_SEEDS:
        return np.array([np.mean(one) for one in differences]), f"{len(differences)} seeds"
    mean = np.mean(differences, axis=0)
    few = "one seed, which says nothing of another" if len(differences) == 1 else f"the mean of {len(differences)} seeds"
    return mean, f"{len(mean):,} {units} of {few}"


def _mean(means: Mapping[Any, np.ndarray], model: str, measured: _Measured, kind: str) -> np.ndarray:
    return np.mean([means[model, seed, kind] for seed in measured.trained], axis=0)


def _share(found: Activity, kind: str, layer: int) -> float:
    return float(np.nanmean(found.by_token[kind][layer]))


def _rate_shares(rates: np.ndarray) -> np.ndarray:
    """[L, K] → [L, R], the share of neurons in each class of ``_RATES``."""
    bounds = [bound for _, bound in _RATES]
    above = np.searchsorted(bounds, np.minimum(rates, 1.0), side="left")
    return np.stack([(above == number).mean(axis=1) for number in range(len(bounds))], axis=1)


def _label(subject: Subject, token: int) -> str:
    return repr(subject.decode([token])) if subject.decode else str(token)


def _word(kind: str) -> str:
    return {"code": "code", "gate": "gate", "gated": "gated code"}[kind]


def _layers(shares: np.ndarray) -> str:
    """Percentages of layers, such as "12, 9 and 4 %"; the ends alone where there are many."""
    texts = [f"{100 * share:.3g}" for share in shares]
    if len(texts) > 4:
        return f"{texts[0]} to {texts[-1]} %"
    return f"{', '.join(texts[:-1])} and {texts[-1]} %" if len(texts) > 1 else f"{texts[0]} %"


def _points(difference: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{'+' if difference > 0 else '−'}{100 * abs(difference):.3g} percentage points"


def _beside(difference: float, interval: tuple[float, float]) -> str:
    """Where a share is, as seen from the one that it is compared with."""
    if interval[0] <= 0 <= interval[1]:
        return "not distinguishable from"
    return f"{100 * abs(difference):.3g} percentage points {'below' if difference < 0 else 'above'}"


def _percent(share: float | np.floating, digits: int = 3) -> str:
    return f"{100 * float(share):.{digits}g} %"


def _signed(share: float) -> str:
    return f"{'+' if share > 0 else '−' if share < 0 else ''}{_percent(abs(share), 2)}"


SECTION = Section(
    title="Activity",
    asks=(
        "A BDH has many neurons, and few of them are active at a token. How many are, in which layers, when does that come about, and does it "
        "depend on the place, the token, and on what was read before?"
    ),
    find=find,
    place=10,
)
