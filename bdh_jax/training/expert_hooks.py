"""A learning rule for one expert of a mixture: any hook of a model, applied to the weights and taps of the expert that is that model.

    train.hooks = ("bdh_jax.training.expert_hooks:of_experts",)
    train.hook_options = {"experts": {"slim": {"hook": "module:factory", "rate": 1e-3}}}

The hook sees the expert as a model of its own: its weights (without those of embed and readout, which it has none of), its taps, and of each
layer the tokens that are routed to it there. The optimiser trains whatever the expert declares as trained.

Axis letters: L layer, B batch, T time, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError, require
from bdh_jax.config.files import import_attribute
from bdh_jax.config.options import options_of
from bdh_jax.models.base import Architecture, Model, ModelConfig
from bdh_jax.tasks.base import Batch
from bdh_jax.training.hooks import Hooks, Taps, Update
from bdh_jax.types import Slow

ROUTE = "route"
"""The tap that says which part of a model, in the order of their names, read a token."""


def of_experts(model: Model, *, experts: Mapping[str, Any]) -> Hooks:
    """The hooks of several experts.

    Args:
      model: a mixture.
      experts: name → options of its hook; ``hook`` among them names its factory, as in ``train.hooks``.

    Returns:
      Their updates, each under the expert's name and its own. In the taps that it sees, what a token was to an expert that it is not routed
      to is zero.

    Raises:
      ConfigError: for a model that is no mixture, an expert that it does not have, a hook or option that does not exist, or a hook that
        needs more than an update after the optimiser.
    """
    config = model.config
    if not config.parts or ROUTE not in model.architecture.taps:
        raise ConfigError(
            f"train.hooks: of_experts is for a mixture, and this model is a {config.architecture!r}; name the expert's hook itself"
        )
    made = [_of_expert(config, name, options) for name, options in experts.items()]
    return Hooks(updates=tuple(update for updates in made for update in updates))


def _of_expert(config: ModelConfig, name: str, options: Any) -> list[Update]:
    where, known = f"train.hook_options.experts.{name}", config.parts
    require(name in known, f"{where}: there is no such expert; this mixture has {', '.join(known)}")
    require(
        isinstance(options, Mapping) and isinstance(options.get("hook"), str),
        f"{where}={options!r} must be a mapping with the key hook, such as {{'hook': 'module:factory'}}",
    )
    factory = import_attribute(options["hook"], f"{where}.hook")
    rest = {key: value for key, value in options.items() if key != "hook"}
    expert = known[name].build()
    hooks = factory(expert, **options_of(factory, rest, where, leave_out=("model",)))
    require(
        isinstance(hooks, Hooks) and not hooks.prepare and hooks.state == "none",
        f"{where}.hook={options['hook']!r} needs more than an update after the optimiser from what was collected, and an expert has no more; "
        "name another",
    )
    number = list(known).index(name)
    return [_wrapped(update, name, number, expert.architecture) for update in hooks.updates]


def _wrapped(update: Update, name: str, number: int, expert: Architecture) -> Update:
    """The update of an expert as one of the mixture."""

    def init(slow: Slow) -> Any:
        return update.init(slow[name])

    axes, metrics = update.axes, update.metrics

    def apply(slow: Slow, taps: Taps, batch: Batch, history: Any) -> tuple[Slow, Any]:
        chosen = taps.collected[ROUTE][..., number] > 0  # [L, B, T]
        own = {tap: _only(taps.collected[f"{name}.{tap}"], expert.taps[tap], chosen) for tap in update.collect}
        part, history = update.update(slow[name], Taps(None, own), batch, history)
        return {**slow, name: part}, history

    return Update(
        f"{name}_{update.name}",
        init,
        apply,
        collect=(ROUTE, *(f"{name}.{tap}" for tap in update.collect)),
        every=update.every,
        metrics=None if metrics is None else lambda slow, history: metrics(slow[name], history),
        axes=None if axes is None else lambda slow: axes(slow[name]),
        label=f"{update.label} of the expert {name!r}",
        remedy=update.remedy,
    )


def _only(array: jax.Array, axes: tuple[str, ...], chosen: jax.Array) -> jax.Array:
    """[L, …] with zeros at the tokens that are not chosen; as it is where it has no axis of tokens."""
    if "batch" not in axes or "time" not in axes:
        return array
    order = sorted(("batch", "time"), key=axes.index)
    mask = chosen if order == ["batch", "time"] else jnp.swapaxes(chosen, 1, 2)
    shape = [chosen.shape[0]] + [array.shape[1 + i] if axis in order else 1 for i, axis in enumerate(axes)]
    return jnp.where(mask.reshape(shape), array, jnp.zeros((), array.dtype))
