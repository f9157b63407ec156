"""The text of a model card: what a model is, what it scored, and how it was made, from a run's own records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.tasks.base import TaskConfig
from bdh_jax.tasks.scores import AnyScore

_LINK = "https://arxiv.org/abs/2509.26507"


class Card(NamedTuple):
    """What a card tells."""

    name: str
    model: ModelConfig
    task: TaskConfig
    config: Mapping[str, Any]
    """The run's whole configuration, as JSON keeps it, without paths of the machine."""
    step: int
    """Of the weights."""
    scores: Sequence[AnyScore]
    """Of these very weights; empty if they were not evaluated."""
    starts: Sequence[Mapping[str, Any]]
    """Of the run: versions, device, commit."""
    origin: Mapping[str, Any] | None
    """What the run started from."""
    licence: str | None
    use: Sequence[str]
    """Commands that use the folder."""

    def text(self) -> str:
        """The card, in Markdown with a header of YAML that Hugging Face reads."""
        return "\n".join([*self._header(), "", *self._what(), *self._scores(), *self._use(), *self._made(), *self._terms()])

    def _header(self) -> list[str]:
        lines = ["---", "library_name: bdh_jax"]
        if self.licence:
            lines.append(f"license: {self.licence}")
        if self.task.reads_text:
            lines.append("pipeline_tag: text-generation")
        return [*lines, "tags:", "- jax", f"- {json.dumps(self.model.architecture)}", "---"]

    def _what(self) -> list[str]:
        model = self.model
        weights = count_parameters(model.build().declared_slow())
        kind = f"[Dragon Hatchling (BDH)]({_LINK})" if model.architecture == "bdh" else f"`{model.architecture}`"
        return [
            f"# {self.name}",
            "",
            f"A {kind} model of {weights:,} weights: {model.n_layer} layers, width {model.d_model}, {model.vocab_size} tokens. It was trained on "
            f"the task `{self.task.name}` with bdh_jax; these are its weights at step {self.step:,}.",
            "",
        ]

    def _scores(self) -> list[str]:
        lines = ["## Scores", ""]
        if not self.scores:
            return [*lines, "These weights were not evaluated.", ""]
        columns = self.scores[0].COLUMNS
        lines += ["| evaluation set | " + " | ".join([*columns.values(), self.scores[0].COUNTED]) + " |"]
        lines += ["|---" * (len(columns) + 2) + "|"]
        for score in self.scores:
            numbers = [f"{getattr(score, name):.4f}" for name in columns]
            lines.append(" | ".join([f"| {score.name}", *numbers, f"{score.count:,} |"]))
        return [*lines, "", "One run, one seed: how much scores differ between seeds is not known from it.", ""]

    def _use(self) -> list[str]:
        return ["## Use", "", "```", *self.use, "```", ""]

    def _made(self) -> list[str]:
        train, optimizer = self.config["train"], self.config["optimizer"]
        rows = {
            "steps": f"{self.step:,} of {train['steps']:,}",
            "sequences a step": train["batch_size"],
            "optimiser": f"AdamW, rate {optimizer['learning_rate']:g}, weight decay {optimizer['weight_decay']:g}, {optimizer['schedule']}",
            "seed": self.config["seed"],
        }
        if self.starts:
            last = self.starts[-1]
            rows |= {name: last[name] for name in ("time",) if name in last}
            rows |= {name: version for name, version in (last.get("versions") or {}).items() if version}
            rows |= {"device": (last.get("device") or {}).get("kind", "unknown")}
            rows |= {"commit": (last.get("git") or {}).get("commit")} if last.get("git") else {}
        lines = ["## How it was made", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
        if self.origin:
            lines += ["", f"It did not start from random weights, but from: `{json.dumps(self.origin)}`."]
        return [*lines, "", "Its whole configuration:", "", "```json", json.dumps(self.config, indent=2), "```", ""]

    def _terms(self) -> list[str]:
        stated = "None is stated: whoever shares the model has to say it." if not self.licence else f"`{self.licence}`."
        return ["## Licence", "", stated, ""]
