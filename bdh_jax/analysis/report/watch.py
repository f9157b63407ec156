"""Watch it write: what one text leaves in the state, token by token, and what its predictions owe to that."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.analysis.nulls import p_of, p_of_largest
from bdh_jax.analysis.report.base import SIGNIFICANT, Finding, NotApplicable, Section, Subject, verdict
from bdh_jax.analysis.writing import (
    Course,
    Matrix,
    Watched,
    addresses,
    asked_again,
    certainty,
    last_reads,
    matrices,
    watch,
    worth,
)
from bdh_jax.models.bdh import BDHConfig

_TOKENS = 72
"""Tokens that are watched one by one: every one is a frame."""
_ROWS = 40
"""Rows of a matrix that the raster shows."""
_CELLS = 1024
"""Rows of a layer that a frame shows."""
_SEEDS, _SEQUENCES, _SHUFFLES, _DRAWS = 3, 24, 99, 199
_NUMBERS = 2**26
"""Numbers that are held at one time."""
_NAMES: Mapping[Matrix, str] = {"S": "fast_weights", "ρ": "attention"}
_CALLED: Mapping[Matrix, str] = {"S": "the fast weights S", "ρ": "the attention's state ρ"}
_LAYER_ROW = {"field": "layer", "type": "ordinal", "header": {"labelExpr": "'layer ' + datum.value", "title": None}}


class _Text(NamedTuple):
    """What is watched.

    Attributes:
      tokens: [T].
      shown: what stands for each token.
      spoken: whether it is text, and the token that comes is what counts.
    """

    tokens: np.ndarray
    shown: list[str]
    spoken: bool


def find(subject: Subject) -> list[Finding]:
    """See :class:`bdh_jax.analysis.report.base.Section`."""
    config = subject.config
    if not isinstance(config, BDHConfig):
        name = type(config).__name__.removesuffix("Config")
        kept = "another state" if config.has_state else "no state from token to token"
        raise NotApplicable(f"A {name} keeps {kept}: this watches the matrices S and ρ of a BDH.")
    text = _text(subject)
    seed = min(subject.seeds)
    watched = watch(config, subject.seeds[seed], text.tokens)
    main = matrices(config)[0]
    findings = [
        _filling(text, watched),
        _raster(text, watched.course[main], main),
        _frames(text, watched.course[main], main),
    ]
    for which in matrices(config):
        findings += [_again(subject, config, which), _contribution(subject, config, which, text, watched)]
    return findings


def _text(subject: Subject) -> _Text:
    """The user's first text; else the first held-out sequence that is no longer than can be shown, or the beginning of the first."""
    spoken = subject.decode is not None
    if subject.own and subject.encode is not None:
        tokens = np.asarray(subject.encode(next(iter(subject.own.values()))[0]), np.int32)[:_TOKENS]
    else:
        lines = [line[there] for line, there in zip(subject.tokens, subject.valid, strict=True)]
        tokens = next((line for line in lines if len(line) <= _TOKENS), lines[0])[:_TOKENS]
    if len(tokens) < 2:
        raise NotApplicable("Its sequences are one token long: nothing is read back.")
    decode = subject.decode
    shown = [_visible(decode([int(token)])) if decode is not None else str(token) for token in tokens]
    return _Text(tokens, shown, spoken)


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace("\t", "→").replace(" ", "␣") or "∅"


# How full.


def _filling(text: _Text, watched: Watched) -> Finding:
    rows: list[dict[str, Any]] = []
    for which, course in watched.course.items():
        for token, shown in enumerate(text.shown):
            rows += [
                {
                    "position": token + 1,
                    "token": shown,
                    "matrix": which,
                    "layer": layer + 1,
                    "nonzero": float(course.nonzero[token, layer]),
                    "norm": float(course.norm[token, layer]),
                    "read": float(course.read[token, _own(course, layer)].mean()),
                    "written": float(course.written[token, _own(course, layer)].mean()),
                }
                for layer in range(course.norm.shape[1])
            ]
    ends = "; ".join(
        f"{_CALLED[which]} {_each(course.nonzero[-1], '.0%')} of their entries and a norm of {', '.join(map(_size, course.norm[-1]))}"
        for which, course in watched.course.items()
    )
    says = f"After {len(text.tokens)} tokens have, layer by layer: {ends}."
    return Finding(
        name="filling",
        title="How the state fills while a text is read",
        says=says,
        null="",
        caption=(
            "Frobenius norm of each matrix of the state after each token of one held-out text, by layer. The table has the share of its entries "
            "that are not zero as well, and the shares of its rows that each token reads and writes."
        ),
        alternative=f"Norm of the state's matrices over tokens. {says}",
        rows=rows,
        chart={
            "height": 150,
            "mark": {"type": "line"},
            "encoding": {
                "row": {"field": "matrix", "type": "nominal", "title": None, "sort": list(watched.course)},
                "x": {"field": "position", "type": "quantitative", "title": "tokens read"},
                "y": {"field": "norm", "type": "quantitative", "title": "norm"},
                "color": {"field": "layer", "type": "ordinal", "title": "layer"},
                "tooltip": [
                    *({"field": name} for name in ("position", "token", "matrix", "layer")),
                    *({"field": name, "format": ".1%"} for name in ("nonzero", "read", "written")),
                    {"field": "norm", "format": ".4"},
                ],
            },
            "resolve": {"scale": {"y": "independent"}},
        },
    )


def _own(course: Course, layer: int) -> Any:
    """Which layers' reads and writes are those of one matrix: its own, or all where all share one."""
    return layer if course.norm.shape[1] == course.read.shape[1] else slice(None)


def _each(values: np.ndarray, form: str) -> str:
    return ", ".join(format(float(value), form) for value in values)


def _size(norm: float) -> str:
    return f"{norm:,.0f}" if norm >= 1000 else f"{norm:.3g}"


# Which rows.


def _raster(text: _Text, course: Course, which: Matrix) -> Finding:
    length, layers, neurons = course.written.shape
    rows: list[dict[str, Any]] = []
    for layer in range(layers):
        used = course.written[:, layer].sum(axis=0)
        # Rows that some tokens write and others do not say most, in the order in which they are written first.
        some = np.argsort(np.abs(used - length / 3), kind="stable")[:_ROWS]
        some = some[np.argsort(course.written[:, layer, some].argmax(axis=0), kind="stable")]
        for place, row in enumerate(some):
            read, written = course.read[:, layer, row], course.written[:, layer, row]
            for token in np.flatnonzero(read | written):
                does = "both" if read[token] and written[token] else "written" if written[token] else "read"
                rows.append(
                    {
                        "position": int(token) + 1,
                        "token": text.shown[token],
                        "layer": layer + 1,
                        "place": place + 1,
                        "row": int(row),
                        "does": does,
                    }
                )
    shares = ", ".join(
        f"{course.read[:, layer].mean():.0%} and {course.written[:, layer].mean():.0%}" for layer in range(layers)
    )
    says = f"A token reads and writes, of the {neurons:,} rows of {_CALLED[which]}, {shares}, layer by layer."
    return Finding(
        name="rows",
        title=f"A token touches {course.written.mean():.0%} of the rows",
        says=says,
        null="",
        caption=(
            f"Rows of {_CALLED[which]} that each token of the text reads (its address is not zero there), writes (its key is not), or both: "
            f"{min(_ROWS, neurons)} rows of a layer that about a third of the tokens write, in the order in which they are written first. "
            "Choose a layer below the figure. Equal tokens show as equal columns where their codes are equal."
        ),
        alternative=f"Rows over tokens, coloured by whether they are read or written. {says}",
        rows=rows,
        chart={
            "height": 280,
            "params": [{"name": "layer", "value": 1, "bind": {"input": "select", "options": list(range(1, layers + 1))}}],
            "transform": [{"filter": "datum.layer == layer"}],
            "mark": {"type": "rect"},
            "encoding": {
                "x": {
                    "field": "position",
                    "type": "ordinal",
                    "title": "token",
                    "axis": {"labelOverlap": True, "labelAngle": 0},
                },
                "y": {"field": "place", "type": "ordinal", "title": "row", "axis": {"labels": False, "ticks": False}},
                "color": {
                    "field": "does",
                    "type": "nominal",
                    "title": None,
                    "scale": {"domain": ["read", "written", "both"]},
                },
                "tooltip": [{"field": name} for name in ("position", "token", "layer", "row", "does")],
            },
        },
    )


# Frames.


def _frames(text: _Text, course: Course, which: Matrix) -> Finding:
    rows = [
        {
            "position": token + 1,
            "token": shown,
            "written": int(course.written[token].sum()),
            "read": int(course.read[token].sum()),
            "norm": float(np.linalg.norm(course.norm[token])),
        }
        for token, shown in enumerate(text.shown)
    ]
    kept = _shown_rows(course)
    largest = course.rows[:, :, kept].max() or 1.0
    pictures = []
    for token in range(len(text.shown)):
        level = np.sqrt(course.rows[token][:, kept] / largest)  # [M, cells]
        written = course.written[token][:, kept]
        if len(level) < len(written):
            written = written.any(axis=0, keepdims=True)
        pictures.append(png(_cells(np.minimum(level, 1.0), written)))
    says = f"The last of {len(text.shown)} tokens leaves {rows[-1]['written']:,} rows written and {rows[-1]['read']:,} read, over all layers."
    shown = f"{len(kept):,} of its {course.rows.shape[2]:,} rows" if len(kept) < course.rows.shape[2] else "all its rows"
    caption = (
        f"{_CALLED[which][:1].upper()}{_CALLED[which][1:]} after each token. Choose a token, or go from one to the next with the arrow keys. Every cell is a row, "
        f"{shown} for each layer from left to right: the brighter, the larger its norm (square root, one scale for all tokens); orange where this "
        "token has written."
    )
    return Finding(
        name="frames",
        title="The state, frame by frame",
        says=says,
        null="",
        caption=caption,
        alternative=f"A picture of the rows' norms after each token. {says}",
        rows=rows,
        html=slider(text.shown, pictures, rows, which),
    )


def _shown_rows(course: Course) -> np.ndarray:
    """At most so many rows, those that grow largest, in their own order."""
    neurons = course.rows.shape[2]
    if neurons <= _CELLS:
        return np.arange(neurons)
    return np.sort(np.argsort(-course.rows.max(axis=(0, 1)), kind="stable")[:_CELLS])


_SHADES = 24


def _cells(level: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Levels in [0, 1] and whether a row is written, [M, cells] each, as palette indices [height, width]: layers side by side."""
    index = np.round(level * (_SHADES - 1)).astype(np.uint8) + np.where(written, _SHADES, 0).astype(np.uint8)
    side = 2 ** int(np.ceil(np.log2(index.shape[1]) / 2))
    height = -(-index.shape[1] // side)
    nothing = 2 * _SHADES
    grids = [np.pad(row, (0, side * height - len(row)), constant_values=nothing).reshape(height, side) for row in index]
    gap = np.full((height, 1), nothing, np.uint8)
    parts = [part for grid in grids for part in (grid, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _palette() -> bytes:
    """Dark to light blue, then dark to light orange, then what is between two layers."""
    ends = (((18, 24, 38), (158, 216, 255)), ((96, 44, 0), (255, 190, 92)))
    shades = [
        tuple(round(a + (b - a) * step / (_SHADES - 1)) for a, b in zip(low, high, strict=True))
        for low, high in ends
        for step in range(_SHADES)
    ]
    return bytes(value for colour in [*shades, (128, 128, 128)] for value in colour)


def png(index: np.ndarray) -> bytes:
    """A PNG of palette indices [height, width] uint8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = index.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), index], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"PLTE", _palette()) + chunk(b"IDAT", zlib.compress(lines, 9))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def slider(shown: Sequence[str], pictures: Sequence[bytes], rows: Sequence[Mapping[str, Any]], which: Matrix) -> str:
    """Frames without a script: a token is the label of a radio button, which shows its picture. Arrow keys go from one to the next.

    Args:
      shown: what stands for each token.
      pictures: a PNG each.
      rows: "written", "read" and "norm" of each, which a screen reader says.
      which: the matrix; one group of a page each.

    Returns:
      HTML, escaped.
    """
    name = f"frames-{_NAMES[which]}"
    numbers = range(len(shown))
    style = [
        f".{name} input{{position:absolute;opacity:0;width:1px;height:1px}}",
        f".{name} .frame{{display:none;margin:.6rem 0 0}}",
        f".{name} img{{width:100%;max-width:46rem;image-rendering:pixelated;display:block}}",
        f".{name} label{{cursor:pointer;padding:.1rem .2rem;border-radius:.2rem;font-family:ui-monospace,Menlo,Consolas,monospace}}",
        *(f"#{name}-{n}:checked~.frame:nth-of-type({n + 1}){{display:block}}" for n in numbers),
        ",".join(f"#{name}-{n}:checked~p label:nth-of-type({n + 1})" for n in numbers) + "{background:#0072b2;color:#fff}",
        ",".join(f"#{name}-{n}:focus-visible~p label:nth-of-type({n + 1})" for n in numbers) + "{outline:3px solid #e69f00}",
    ]
    # What a screen reader says of the token that the arrow keys come to.
    said = [
        f"after token {n + 1}, {token}: {rows[n]['written']:,} rows written, {rows[n]['read']:,} read, norm {_size(rows[n]['norm'])}"
        for n, token in enumerate(shown)
    ]
    inputs = [
        f'<input type="radio" name="{name}" id="{name}-{n}" aria-label="{html.escape(said[n], quote=True)}"'
        f"{' checked' if n == len(shown) - 1 else ''}>"
        for n in numbers
    ]
    labels = [f'<label for="{name}-{n}">{html.escape(shown[n])}</label>' for n in numbers]
    frames = [
        f'<div class="frame"><img alt="State after token {n + 1}: {rows[n]["written"]} rows written, norm {_size(rows[n]["norm"])}" '
        f'src="data:image/png;base64,{base64.b64encode(pictures[n]).decode()}">'
        f"<span>token {n + 1} of {len(shown)}: {rows[n]['written']:,} rows written, {rows[n]['read']:,} read, norm {_size(rows[n]['norm'])}</span>"
        "</div>"
        for n in numbers
    ]
    return (
        f'<div class="{name}" role="radiogroup" aria-label="the state after each token"><style>{"".join(style)}</style>{"".join(inputs)}'
        f'<p style="line-height:1.9;overflow-wrap:anywhere">{"".join(labels)}</p>{"".join(frames)}</div>'
    )


# Asked again.


def _again(subject: Subject, config: BDHConfig, which: Matrix) -> Finding:
    held = config.n_layer * config.n_neurons * subject.tokens.shape[1]
    count = max(1, min(round(_SEQUENCES * subject.budget), len(subject.tokens), _NUMBERS // held))
    tokens, valid = subject.tokens[:count], subject.valid[:count]
    shuffles = max(_DRAWS, round(_DRAWS * subject.budget))
    found = {
        seed: asked_again(addresses(config, subject.seeds[seed], tokens, valid, which), tokens, valid, shuffles=shuffles)
        for seed in sorted(subject.seeds)[:_SEEDS]
    }
    occasions = len(next(iter(found.values())).distance)
    name = f"asked_again_{_NAMES[which]}"
    if not occasions:
        return Finding(
            name=name,
            title="No token comes twice",
            says=f"In {count} held-out sequences no token comes a second time, so no address is asked again.",
            null="",
            caption="Nothing is plotted.",
            alternative="No figure.",
            rows=[],
        )
    rows = [
        {
            "seed": seed,
            "layer": layer + 1,
            "distance": int(distance),
            "then and now": float(one.same[chosen, layer].mean()),
            "occasions": int(chosen.sum()),
            "another token": float(one.other[chosen, layer].mean()),
        }
        for seed, one in found.items()
        for layer in range(config.n_layer)
        for distance, chosen in _by_distance(one.distance)
    ]
    same = np.mean([one.same.mean(axis=0) for one in found.values()], axis=0)
    other = np.mean([one.other.mean(axis=0) for one in found.values()], axis=0)
    excess = np.mean([one.excess for one in found.values()], axis=0)
    shuffled = np.mean([one.shuffled for one in found.values()], axis=0)
    spread = np.maximum(shuffled.std(axis=0), 1e-12)
    p = float(p_of_largest(excess / spread, shuffled / spread).max())
    of = ", ".join(f"{a:.3f} (another token {b:.3f})" for a, b in zip(same, other, strict=True))
    says = f"A token that comes again meets its own address of before with a cosine of {of}, layer by layer: "
    says += verdict(p, found=" in every layer", other=" from another token's in some layer") + "."
    return Finding(
        name=name,
        title=(
            f"What is asked again finds its own rows of {which}"
            if p < SIGNIFICANT
            else f"Not every layer finds its own rows of {which} again"
        ),
        says=says,
        null=(
            "Which token it is does not matter: tokens in another order within their sequences, with the mean at each distance taken off first, "
            f"{shuffles} times; corrected for layers (Westfall and Young)."
        ),
        caption=(
            f"Cosine between the address with which a token reads {_CALLED[which]} and that of the same token's last occurrence before, over the "
            f"number of tokens between them; {occasions:,} occasions in {count} held-out sequences, a line a seed. Dashed: with earlier tokens of other kinds."
            + (" Addresses of ρ turn with their position, so that what is far away is met less." if which == "ρ" else "")
        ),
        alternative=f"Cosine of addresses over distance, by layer. {says}",
        rows=rows,
        chart={
            "height": 130,
            "encoding": {
                "x": {
                    "field": "distance",
                    "type": "quantitative",
                    "title": "tokens since",
                    "scale": {"type": "log", "nice": False},
                },
            },
            "layer": [
                {
                    "mark": {"type": "line", "point": True},
                    "encoding": {
                        "y": {"field": "then and now", "type": "quantitative", "title": "cosine"},
                        "detail": {"field": "seed"},
                        "color": {"field": "layer", "type": "ordinal", "title": "layer"},
                        "tooltip": [
                            *({"field": name} for name in ("seed", "layer", "distance", "occasions")),
                            {"field": "then and now", "format": ".3f"},
                            {"field": "another token", "format": ".3f"},
                        ],
                    },
                },
                {
                    "mark": {"type": "line", "strokeDash": [4, 3]},
                    "encoding": {
                        "y": {"field": "another token", "type": "quantitative"},
                        "detail": {"field": "seed"},
                        "color": {"field": "layer", "type": "ordinal"},
                    },
                },
            ],
        },
        effect=float(excess.min()),
        p_value=p,
    )


def _by_distance(distance: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Occasions in at most eight groups: the median distance of each, and which belong to it."""
    edges = np.unique(np.quantile(distance, np.linspace(0, 1, 9)).astype(int))
    group = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, max(0, len(edges) - 2))
    return [(int(np.median(distance[group == g])), group == g) for g in np.unique(group)]


# What predictions owe to it.


def _contribution(subject: Subject, config: BDHConfig, which: Matrix, text: _Text, watched: Watched) -> Finding:
    rows = _token_rows(text, watched, which)
    state = config.n_layer * config.n_neurons * config.d_model
    count = max(2, min(round(_SEQUENCES * subject.budget), _NUMBERS // state))
    lines = [line[there] for line, there in zip(subject.tokens[:count], subject.valid[:count], strict=True)]
    lines = [line for line in lines if len(line) >= 3]
    shuffles = max(_SHUFFLES, round(_SHUFFLES * subject.budget))
    effects, others, by_seed = [], [], []
    for seed in sorted(subject.seeds)[:_SEEDS]:
        effect, other = _last(config, subject.seeds[seed], lines, which, text.spoken, shuffles)
        effects.append(effect)
        others.append(other)
        by_seed.append(f"{effect:+.2f}".replace("-", "−"))
    effect, other = float(np.mean(effects)), np.mean(others, axis=0)
    p = float(p_of(effect, other))
    gives = "bits to the token that comes" if text.spoken else "bits of certainty to the answer"
    beside = (
        f"{effect:+.2f} {gives} ({', '.join(by_seed)} by seed), the same numbers in other rows {other.mean():+.2f}".replace(
            "-", "−"
        )
    )
    says = f"What the last token reads from {_CALLED[which]} adds {beside}: {verdict(p, other=' from rows in any order')}."
    what = (
        "the log-probability of the token that stands there"
        if text.spoken
        else "the certainty (minus the entropy) of what is predicted for that place"
    )
    return Finding(
        name=f"contribution_{_NAMES[which]}",
        title=(
            f"Reading {which} is worth {effect:.2g} bits {'a token' if text.spoken else 'of certainty at the end'}".replace(
                "-", "−"
            )
            if p < SIGNIFICANT
            else f"What {which} holds in which row: no difference that could be told from none"
        ),
        says=says,
        null=(
            f"Which row holds what does not matter: the rows of {which} in another order at that token, {shuffles} times, the same for all "
            f"{len(lines)} held-out sequences."
        ),
        caption=(
            f"One held-out text. Under each token stands by how many bits {what} changes when its prediction reads {_CALLED[which]}, and the "
            "colour says the same: blue more, orange less. What was read before is left as it was, and only this one read is taken away. "
            "Small numbers: the mean over eight random orders of the rows."
        ),
        alternative=f"A text with the contribution of {which} to each prediction. {says}",
        rows=rows,
        html=_coloured(rows),
        effect=effect,
        p_value=p,
    )


def _token_rows(text: _Text, watched: Watched, which: Matrix) -> list[dict[str, Any]]:
    """One row for every predicted place: from the second token on, and after the last where certainty is what counts."""
    predictions = watched.predictions[which]
    if text.spoken:
        came = text.tokens[1:]
        place = np.arange(len(came))
        normal, without, shuffled = (part[..., place, came] / np.log(2) for part in predictions)
        shown = text.shown[1:]
    else:
        normal, without, shuffled = (certainty(part) for part in predictions)
        shown = [*text.shown[1:], "?"]
    return [
        {
            "position": number + 2,
            "token": token,
            "bits": float(normal[number] - without[number]),
            "rows shuffled": float(shuffled[:, number].mean() - without[number]),
        }
        for number, token in enumerate(shown)
    ]


def _last(
    config: BDHConfig, slow: Any, lines: Sequence[np.ndarray], which: Matrix, spoken: bool, shuffles: int
) -> tuple[float, np.ndarray]:
    """Bits that the last read adds, in the mean over sequences, and the same of rows in each other order, [S]."""
    read = last_reads(config, slow, [line[:-1] for line in lines] if spoken else lines, which, shuffles=shuffles)
    return worth(read, np.array([line[-1] for line in lines]) if spoken else None)


def _coloured(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tokens with their numbers under them, coloured on any background."""
    cells = []
    for row in rows:
        bits = row["bits"]
        strength = min(1.0, abs(bits) / 4) * 0.75
        red, green, blue = (0, 114, 178) if bits >= 0 else (213, 94, 0)
        number, other = (f"{value:+.1f}".replace("-", "−") for value in (bits, row["rows shuffled"]))
        cells.append(
            f'<span style="display:inline-flex;flex-direction:column;align-items:center;min-width:1.9rem;margin:0 .1rem .4rem 0">'
            f'<span style="background:rgba({red},{green},{blue},{strength:.2f});border-radius:.2rem;padding:.05rem .25rem;'
            f'font-family:ui-monospace,Menlo,Consolas,monospace">{html.escape(row["token"])}</span>'
            f'<span style="font-size:.7rem">{number}</span><span style="font-size:.65rem;opacity:.8">{other}</span></span>'
        )
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(cells)}</div>'


SECTION = Section(
    title="Watch it write",
    asks=(
        "What does a text leave in the state while it is read, does a token find again what was written under it, and what would be predicted "
        "without?"
    ),
    find=find,
    place=60,
)
