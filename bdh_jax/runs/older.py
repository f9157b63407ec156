"""Records of older versions in today's words, so that what was trained with them can still be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FILL = ("fill_every", "fill_episodes", "fill_rows")


def in_todays_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration, from JSON, whose renamed keys have their names of today. One of today comes back as it is.

    Options of a consolidation function were keys of their own beside ``consolidation.function``, None or empty where not given, and so
    was that of the rule "mesa"; the episodes of consolidation-aware training were part of the task "facts" and of ``train``.
    """
    today = {key: dict(part) if isinstance(part, Mapping) else part for key, part in config.items()}
    # What is no mapping is refused where it is read.
    consolidation, task, train = (_part(today, name) for name in ("consolidation", "task", "train"))
    named = [name for name in consolidation if name not in ("function", "every", "norm", "options")]
    flat = {name: consolidation.pop(name) for name in named}
    if named:
        consolidation["options"] = {name: value for name, value in flat.items() if value not in (None, [])}
    ridge, layers = train.pop("fill_ridge", None), train.pop("fill_layers", [])
    if task.get("name") == "facts" and task.get("fill_every"):
        task["name"] = "bdh_jax.lifelong.aware:AwareFactsConfig"
        train["hooks"] = ["bdh_jax.lifelong.aware:fill"]
        train["hook_options"] = {"ridge": ridge} | ({"layers": layers} if layers else {})
    elif task.get("name") == "facts":
        for name in _FILL:
            task.pop(name, None)
    if isinstance(today.get("model"), Mapping):
        today["model"] = model_in_todays_words(today["model"])
    return today


def model_in_todays_words(model: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`in_todays_words`, of the part ``model`` alone."""
    today = dict(model)
    if "ridge" in _part(today, "fast"):
        fast = dict(today["fast"])
        ridge = fast.pop("ridge")
        today["fast"] = fast | ({"options": {"ridge": ridge}} if fast.get("rule") == "mesa" else {})
    return today


def _part(config: Mapping[str, Any], name: str) -> Any:
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}
