"""What may be added to a training step: something before the gradient, and something after the optimiser.

A hook is made by a factory ``(model, **options) -> Hooks``, which a configuration names as ``module:factory`` in ``train.hooks``; having the
model, it may do a forward pass of its own. Consolidation is one update.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError, require, require_choice
from bdh_jax.config.files import import_attribute
from bdh_jax.config.options import options_of
from bdh_jax.consolidation import ConsolidationConfig, as_consolidation, check, from_config
from bdh_jax.models.base import Model
from bdh_jax.tasks.base import Batch
from bdh_jax.training.config import TrainConfig
from bdh_jax.types import Slow

History = Any
States = Literal["none", "mean"]


class Taps(NamedTuple):
    """What an update sees of the step's own forward pass. No gradient flows into it."""

    fast: Any
    """The mean over the whole batch of the state that its rows ended in; None unless an update asks for ``state="mean"``."""
    collected: Mapping[str, jax.Array]
    """Name → array [L, B, ...] of the whole batch, its rows in order, also if the step ran in slices (train.accumulation). Every update
    finds what any of them collects."""
    metrics: Mapping[str, jax.Array] = {}
    """Name → scalar, what the model would like to be logged; the mean over slices."""


def _always(batch: Batch) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Something before the gradient."""

    prepare: Callable[[Slow, Batch], Slow]
    """(slow, batch) → the slow weights of the forward pass, with the leaves it was given. Gradients flow through it. With
    train.accumulation each slice runs it again, and sees its own rows but the whole ``batch.extra``."""
    reader: Model | None = None
    """The model of the forward pass, if another one than is trained: with the same weights, of another configuration."""
    when: Callable[[Batch], bool] = _always
    """Whether a batch is prepared. Asked while the step is traced: it may look at what there is, but at no number."""


@dataclasses.dataclass(frozen=True)
class Update:
    """Something after the optimiser."""

    name: str
    """Of its history in a checkpoint, and in messages; unlike the other updates'."""
    init: Callable[[Slow], History]
    """slow → history, a pytree of arrays; () for none."""
    update: Callable[[Slow, Taps, Batch, History], tuple[Slow, History]]
    """(slow, taps, batch, history) → (slow, history). ``slow`` is what the optimiser made, ``taps`` are of the slow weights before it."""
    state: States = "none"
    """What the forward pass returns of the state."""
    collect: tuple[str, ...] = ()
    """What it collects: names that the model's ``collect`` knows."""
    every: int = 1
    """Steps from one update to the next."""
    axes: Callable[[Slow], Any] | None = None
    """slow → a tree like the history, with a tuple of logical axes for each array; None keeps the history whole on every device."""
    label: str = ""
    """What messages call it; by default its name."""
    remedy: str = "a smaller optimizer.learning_rate or other train.hook_options"
    """What to try when it makes something that is not finite."""
    metrics: Callable[[Slow, History], dict[str, jax.Array]] | None = None
    """(slow, history) after the update → name → scalar, which is logged as ``<name of the update>_<name>``."""

    def __post_init__(self) -> None:
        require(self.name.isidentifier(), f"a hook's name {self.name!r} must be a word such as 'replay'")
        require_choice(f"state of hook {self.name!r}", self.state, States)
        require(self.every >= 1, f"every={self.every} of hook {self.name!r} must be at least 1")
        object.__setattr__(self, "label", self.label or f"hook {self.name!r}")


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What is added to a training step, in this order."""

    prepare: tuple[Prepare, ...] = ()
    updates: tuple[Update, ...] = ()

    def __post_init__(self) -> None:
        names = [update.name for update in self.updates]
        for name in names:
            require(names.count(name) == 1, f"two hooks are called {name!r}: their histories could not be told apart")
        require(
            sum(prepare.reader is not None for prepare in self.prepare) <= 1,
            "two hooks name a model to read with, and a forward pass has one; leave one of them out of train.hooks",
        )

    @property
    def state(self) -> States:
        """What the forward pass returns of the state."""
        return "mean" if any(update.state == "mean" for update in self.updates) else "none"

    @property
    def collect(self) -> tuple[str, ...]:
        """What it collects."""
        return tuple(dict.fromkeys(name for update in self.updates for name in update.collect))

    def init(self, slow: Slow) -> dict[str, History]:
        """The histories before the first step, by the names of the updates."""
        return {update.name: update.init(slow) for update in self.updates}


NO_HOOKS = Hooks()
HookFactory = Callable[[Model], Hooks]


def make_hooks(factories: Iterable[HookFactory], model: Model) -> Hooks:
    """All hooks of a training.

    Raises:
      ConfigError: for one that cannot go with this model or the others.
    """
    made = [factory(model) for factory in factories]
    for factory, hooks in zip(factories, made, strict=True):
        require(
            isinstance(hooks, Hooks),
            f"{_name(factory)} made a {type(hooks).__name__}; a hook's factory returns training.hooks.Hooks",
        )
    return Hooks(tuple(p for hooks in made for p in hooks.prepare), tuple(u for hooks in made for u in hooks.updates))


def named_hooks(config: TrainConfig) -> tuple[HookFactory, ...]:
    """The factories that ``train.hooks`` names, with their options.

    Raises:
      ConfigError: for one that cannot be imported, an option that none of them has, or one that two have.
    """
    factories = {name: import_attribute(name, "train.hooks") for name in config.hooks}
    given: dict[str, dict[str, Any]] = {name: {} for name in factories}
    for option, value in config.hook_options.items():
        takers = [name for name, factory in factories.items() if _takes(factory, option, value, f"hook {name!r}")]
        if not takers:
            raise ConfigError(f"train.hook_options.{option}: none of train.hooks={config.hooks} has this option")
        if len(takers) > 1:
            raise ConfigError(
                f"train.hook_options.{option} is an option of {' and of '.join(takers)}; rename it in one of them"
            )
        given[takers[0]] |= options_of(
            factories[takers[0]], {option: value}, f"train.hooks={takers[0]!r}", leave_out=("model",)
        )
    return tuple(functools.partial(factory, **given[name]) for name, factory in factories.items())


def consolidation_hook(config: ConsolidationConfig) -> tuple[HookFactory, ...]:
    """Consolidation as an update of the training step; empty for the function "none".

    Raises:
      ConfigError: for a name or option that does not exist.
    """
    consolidation = as_consolidation(from_config(config))
    if config.function == "none":
        return ()

    def make(model: Model) -> Hooks:
        slow = jax.eval_shape(model.init_slow, jax.random.key(0))
        tokens = jnp.zeros((1 if model.mesh is None else model.mesh.shape["data"], 2), jnp.int32)
        fast = jax.eval_shape(lambda slow: model.apply({"params": slow}, tokens, state="mean").fast, slow)
        check(consolidation, slow, fast)

        def update(slow: Slow, taps: Taps, batch: Batch, history: History) -> tuple[Slow, History]:
            return consolidation.update(slow, taps.fast, taps.fast.activity, history)

        return Hooks(
            updates=(
                Update(
                    "consolidation",
                    consolidation.init,
                    update,
                    state="mean",
                    every=config.every,
                    axes=consolidation.axes,
                    label=f"consolidation {config.function!r}",
                    remedy="a smaller consolidation.options.rate or another function",
                ),
            )
        )

    return (make,)


def _takes(factory: Callable[..., Hooks], option: str, value: Any, where: str) -> bool:
    try:
        options_of(factory, {option: value}, where, leave_out=("model",))
    except ConfigError as error:
        if "has no option" in str(error):
            return False
        raise
    return True


def _name(factory: Any) -> str:
    while isinstance(factory, functools.partial):
        factory = factory.func
    return getattr(factory, "__name__", repr(factory))
