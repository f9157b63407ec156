"""How the section on activity draws its rows: Vega-Lite specifications without their data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bdh_jax.analysis.activity import KINDS

SHARE = {"type": "quantitative", "axis": {"format": ".0%"}}
MODEL = {
    "field": "model",
    "type": "nominal",
    "title": None,
    "scale": {"domain": ["trained", "untrained"]},
}
BARS = {**MODEL, "scale": {"domain": ["trained", "untrained"], "range": ["#2b8cc4", "#9aa3ad"]}}
KIND = {"field": "kind", "type": "nominal", "title": None, "sort": list(KINDS)}
LAYER = {"field": "layer", "type": "ordinal", "title": "layer"}


def by_layer() -> dict[str, Any]:
    """A mark for each kind, layer, model and seed."""
    return {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.8},
        "height": 220,
        "encoding": {
            "x": {**LAYER, "axis": {"labelAngle": 0}},
            "xOffset": {"field": "kind", "sort": list(KINDS)},
            "y": {"field": "share", "title": "active neurons", **SHARE},
            "color": KIND,
            "shape": MODEL,
            "tooltip": tooltip("model", "seed", "layer", "kind", share=".2%"),
        },
    }


def over_steps() -> dict[str, Any]:
    """Lines over steps, a panel a layer."""
    return {
        "height": 110,
        "mark": {"type": "line", "point": True, "opacity": 0.8},
        "encoding": {
            "row": {**LAYER, "header": {"labelExpr": "'layer ' + datum.value", "title": None}},
            "x": {
                "field": "step",
                "type": "quantitative",
                "title": "training step",
                "axis": {"format": ",d", "tickMinStep": 1},
            },
            "y": {"field": "share", "title": "active", **SHARE},
            "color": KIND,
            "detail": {"field": "seed"},
            "tooltip": tooltip("seed", "step", "layer", "kind", share=".2%"),
        },
    }


def logged() -> dict[str, Any]:
    """What a run wrote down, over its steps."""
    return {
        "mark": {"type": "line"},
        "height": 200,
        "encoding": {
            "x": {
                "field": "step",
                "type": "quantitative",
                "title": "training step",
                "axis": {"format": ",d", "tickMinStep": 1},
            },
            "y": {"field": "value", "type": "quantitative", "title": None},
            "color": {"field": "metric", "type": "nominal", "title": None},
            "detail": {"field": "seed"},
            "tooltip": tooltip("seed", "step", "metric", value=".4"),
        },
    }


def by_position() -> dict[str, Any]:
    """Lines over positions, a panel a layer."""
    return {
        "height": 110,
        "mark": {"type": "line", "opacity": 0.85, "interpolate": "monotone"},
        "encoding": {
            "row": {**LAYER, "header": {"labelExpr": "'layer ' + datum.value", "title": None}},
            "x": {"field": "position", "type": "quantitative", "title": "position in the sequence"},
            "y": {"field": "share", "title": "active", **SHARE},
            "color": KIND,
            "detail": {"field": "seed"},
            "tooltip": tooltip("seed", "position", "layer", "kind", share=".2%"),
        },
    }


def repeated(what: str) -> dict[str, Any]:
    """Changes with their intervals, by layer and kind; what is trained stands beside what is not."""
    return {
        "height": 220,
        "transform": [{"calculate": "datum.kind + ', ' + datum.model", "as": "beside"}],
        "encoding": {
            "x": {**LAYER, "axis": {"labelAngle": 0}},
            "xOffset": {
                "field": "beside",
                "sort": [f"{kind}, {model}" for kind in KINDS for model in MODEL["scale"]["domain"]],
            },
            "color": KIND,
            "tooltip": tooltip(
                "model", "layer", "kind", fresh=".2%", repeated=".2%", change="+.1%", low="+.1%", high="+.1%"
            ),
        },
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "y": {
                        "field": "low",
                        "title": f"change in repeated {what}",
                        "type": "quantitative",
                        "axis": {"format": "+.1%"},
                    },
                    "y2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {"y": {"field": "change", "type": "quantitative"}, "shape": MODEL},
            },
        ],
    }


def by_neuron(rates: Sequence[str]) -> dict[str, Any]:
    """Bars of neurons by their rate, a panel a layer."""
    return {
        "height": 110,
        "mark": {"type": "bar"},
        "encoding": {
            "row": {**LAYER, "header": {"labelExpr": "'layer ' + datum.value", "title": None}},
            "x": {
                "field": "active at",
                "type": "nominal",
                "sort": list(rates),
                "title": "active at … of tokens",
                "axis": {"labelAngle": -30},
            },
            "xOffset": {"field": "model"},
            "y": {"field": "neurons", "title": "neurons", **SHARE},
            "color": BARS,
            "tooltip": tooltip("model", "layer", "active at", neurons=".1%"),
        },
    }


def by_token() -> dict[str, Any]:
    """A mark for each token, layer and kind."""
    return {
        "height": {"step": 15},
        "mark": {"type": "point", "filled": True, "size": 50},
        "encoding": {
            "y": {"field": "token", "type": "nominal", "sort": None, "title": None},
            "x": {"field": "share", "title": "active neurons", **SHARE},
            "color": LAYER,
            "shape": {"field": "kind", "type": "nominal", "title": None},
            "tooltip": tooltip("token", "count", "kind", "layer", share=".2%", deviation=".2%"),
        },
    }


def tooltip(*fields: str, **formatted: str) -> list[dict[str, str]]:
    """What a pointer is told: fields as they are, and others by their d3 format."""
    plain = [{"field": field, "type": "nominal"} for field in fields]
    return plain + [{"field": field, "type": "quantitative", "format": form} for field, form in formatted.items()]
