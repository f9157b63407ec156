"""The hook that lets a local rule change a model's weights after the optimiser.

    W ← keep · (W + rate · Δ)      on the linear maps that are chosen, with x and y of the step's own forward pass

The published program (github.com/jamclaug/llm-foundation, models/bdh) takes the same order. Two things differ. With ``train.accumulation`` it updates from
the last slice only, since that is what its layers remember; here x and y are of the whole batch. And a change that is not finite is
skipped there without a word, while here the training stops and names weight and rule.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdh_jax.config import require, require_choice
from bdh_jax.config.options import Options, options_of
from bdh_jax.config.seeds import key_of
from bdh_jax.models.base import LocalMap, Model
from bdh_jax.models.local_maps import activities, choose, matrix_of, weight_of, with_weight
from bdh_jax.tasks.base import Batch
from bdh_jax.training.hooks import Hooks, Taps, Update
from bdh_jax.training.local_rules.base import Context, LocalRule
from bdh_jax.training.local_rules.registry import LOCAL_RULES
from bdh_jax.types import Slow

Mode = Literal["hybrid", "hebbian"]
Target = Literal["next_token", "next_output"]
POWER_STEPS = 12
"""Steps of the power iteration that finds the top direction of a change."""
_NO_OPTIONS = Options()
_CONTEXT = ("weight", "x", "y", "context", "memory")


class History(NamedTuple):
    """What the hook remembers.

    Attributes:
      step: int32, updates of the optimiser so far.
      memory: name of a map → the memory of its rule.
      start: name → its weight before training; as measures are taken.
      before: all slow weights as the hook left them, for mode "hebbian"; else those that it changes, as measures are taken.
      local: name → the sum of all its local changes; as measures are taken.
      paths: [2] float32, lengths of the ways that the local changes and all changes made, over all these weights.
    """

    step: jax.Array
    memory: dict[str, Any]
    start: dict[str, jax.Array]
    before: Any
    local: dict[str, jax.Array]
    paths: Any


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a rule is applied.

    Attributes:
      rate: η, of every change.
      keep: share of a weight that is kept at each update.
      every: steps from one update to the next.
      until_step: the rule rests from that step on; None: never.
      centre: the mean of x is taken off first.
      remove_top: so many of the largest singular directions are taken out of a change.
      renormalise: each output's weights keep the norm that the optimiser gave them.
    """

    rate: Any = 1e-4
    keep: float = 0.9999
    every: int = 1
    until_step: int | None = None
    centre: bool = False
    remove_top: int = 0
    renormalise: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.keep <= 1, f"keep={self.keep} must lie in [0, 1]")
        require(self.every >= 1, f"every={self.every} must be at least 1")
        require(self.remove_top >= 0, f"remove_top={self.remove_top} must be ≥ 0")
        require(self.until_step is None or self.until_step >= 0, f"until_step={self.until_step} must be ≥ 0, or None")


def local_learning(
    model: Model,
    *,
    rule: str = "hebb",
    rate: float = 1e-4,
    keep: float = 0.9999,
    every: int = 1,
    until_step: int | None = None,
    where: str = "all",
    mode: Mode = "hybrid",
    target: Target = "next_token",
    centre: bool = False,
    remove_top: int = 0,
    renormalise: bool = False,
    measure: bool = True,
    rule_options: Options = _NO_OPTIONS,
) -> Hooks:
    """Change the model's linear maps by a local rule after each step of the optimiser.

    Args:
      model: it declares its linear maps (``Architecture.local_maps``).
      rule: a name of the table of local rules, or ``module:name`` of a :class:`LocalRule` of your own.
      where: "all", "attention", "ffn", or patterns of names with commas between, such as ``layer0.*,layer1.query``.
      mode: "hybrid": besides the gradient. "hebbian": instead of it, and what no rule changes stays as it was.
      target: of a rule that needs one: the embedding of the next token through a fixed random projection, with the root mean square of
        y; or y of the same map at the next token.
      measure: log the share of the local changes; takes three copies of the weights that are changed.
      rule_options: of the rule.
      rate, keep, every, until_step, centre, remove_top, renormalise: see :class:`Settings`.

    Raises:
      ConfigError: for a rule, option or pattern that does not exist, or a model that declares no linear maps.
    """
    require_choice("train.hook_options.mode", mode, Mode)
    require_choice("train.hook_options.target", target, Target)
    entry = LOCAL_RULES.get(rule, "train.hook_options.rule")
    options = options_of(entry.change, rule_options, f"train.hook_options.rule={rule!r}", leave_out=_CONTEXT)
    how = Settings(rate, keep, every, until_step, centre, remove_top, renormalise)
    maps = choose(model, where)
    apply = functools.partial(
        _apply,
        model=model,
        rule=entry._replace(change=functools.partial(entry.change, **options)),
        maps=maps,
        how=how,
        target=target,
    )

    def init(slow: Slow) -> History:
        memory = {name: entry.init(matrix_of(slow, one)) for name, one in maps.items()}
        start = {name: weight_of(slow, one) for name, one in maps.items()}
        before = slow if mode == "hebbian" else start if measure else ()
        return History(
            jnp.zeros((), jnp.int32),
            memory,
            _copies(start) if measure else {},
            _copies(before),
            jax.tree.map(jnp.zeros_like, start) if measure else {},
            jnp.zeros(2, jnp.float32) if measure else (),
        )

    def update(slow: Slow, taps: Taps, batch: Batch, history: History) -> tuple[Slow, History]:
        if mode == "hebbian":
            slow = history.before
        acts = (history.step + 1) % how.every == 0
        if how.until_step is not None:
            acts &= history.step < how.until_step
        memory = history.memory
        changed, memory = jax.lax.cond(
            acts,
            lambda: apply(slow, taps, batch, memory, history.step),
            lambda: ({name: weight_of(slow, one) for name, one in maps.items()}, memory),
        )
        after = slow
        for name, one in maps.items():
            after = with_weight(after, one.path, changed[name])
        if not measure:
            return after, history._replace(step=history.step + 1, memory=memory, before=after if mode == "hebbian" else ())
        plain, keep = {name: weight_of(slow, one) for name, one in maps.items()}, jnp.where(acts, how.keep, 1.0)
        local = {name: changed[name] - keep.astype(changed[name].dtype) * plain[name] for name in maps}
        before = history.before if mode == "hybrid" else {n: weight_of(history.before, one) for n, one in maps.items()}
        ways = [optax.tree.norm(local), optax.tree.norm({name: changed[name] - before[name] for name in maps})]
        return after, History(
            history.step + 1,
            memory,
            history.start,
            after if mode == "hebbian" else changed,
            jax.tree.map(jnp.add, history.local, local),
            history.paths + jnp.stack(ways).astype(jnp.float32),
        )

    def metrics(slow: Slow, history: History) -> dict[str, jax.Array]:
        del slow
        return shares(history, maps) if measure else {}

    return Hooks(
        updates=(
            Update(
                "local_learning",
                init,
                update,
                collect=tuple(dict.fromkeys(tap for one in maps.values() for tap in (one.x, one.y))),
                label=f"local rule {rule!r} on {where}",
                remedy="a smaller train.hook_options.rate or another rule",
                metrics=metrics,
            ),
        )
    )


def shares(history: History, maps: Mapping[str, LocalMap]) -> dict[str, jax.Array]:
    """How much of what happened to the weights the rule did: ``share``, the norm of the sum of all local changes over that of the whole
    change since the start; ``path_share``, the same of the lengths of the ways."""
    last = (
        history.before
        if set(history.before) == set(maps)
        else {n: weight_of(history.before, one) for n, one in maps.items()}
    )
    whole = optax.tree.norm({name: last[name] - history.start[name] for name in maps})
    tiny = jnp.finfo(jnp.float32).tiny
    local, every = history.paths
    return {
        "share": optax.tree.norm(history.local) / jnp.maximum(whole, tiny),
        "path_share": local / jnp.maximum(every, tiny),
    }


def change_of(rule: Callable[..., Any], weight: jax.Array, x: jax.Array, y: jax.Array, context: Context, memory: Any) -> Any:
    """What a rule makes of one map: (Δ [I, O], the next memory), in the dtype of the weight."""
    delta, memory = rule(weight, x.astype(weight.dtype), y.astype(weight.dtype), context, memory)
    require(
        getattr(delta, "shape", None) == weight.shape,
        f"a local rule returned a change of shape {getattr(delta, 'shape', None)} for a weight [I, O] of shape {weight.shape}",
    )
    return delta, memory


def without_top(delta: jax.Array, count: int) -> jax.Array:
    """A change [I, O] without its ``count`` largest singular directions, found by power iteration."""
    for _ in range(count):
        # Any start that is not orthogonal to the direction will do: the longest row is its own best guess.
        right = delta[jnp.argmax(jnp.sum(jnp.square(delta), axis=1))]
        right = jax.lax.fori_loop(0, POWER_STEPS, functools.partial(_power_step, delta), right)
        left = delta @ _unit(right)
        delta = delta - left[:, None] * _unit(right)[None]
    return delta


def _apply(
    slow: Slow,
    taps: Taps,
    batch: Batch,
    memory: dict[str, Any],
    step: jax.Array,
    *,
    model: Model,
    rule: LocalRule,
    maps: Mapping[str, LocalMap],
    how: Settings,
    target: Target,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Name → the changed weight, in its own shape; and the next memories."""
    axes = model.architecture.taps
    collected, negative = taps.collected, None
    if "negative" in rule.needs:
        names = tuple(dict.fromkeys(tap for one in maps.values() for tap in (one.x, one.y)))
        # Both passes with the same weights, which the optimiser has just changed: equal tokens then give no change at all.
        collected = _taps(model, slow, batch, names)
        negative = _taps(model, slow, batch._replace(tokens=shuffled(jnp.asarray(batch.tokens), step)), names)
    surprise = _surprise(model, slow, batch) if "surprise" in rule.needs else None
    changed, memories = {}, {}
    for number, (name, one) in enumerate(maps.items()):
        x, y = (activities(collected, axes, one, side) for side in "xy")
        weight = matrix_of(slow, one)
        layers = len(x) // batch.tokens.size
        share = jnp.ones(batch.tokens.shape) if batch.valid is None else batch.valid.astype(jnp.float32)
        share = jnp.tile((share / jnp.sum(share)).reshape(-1), layers) / layers
        if how.centre:
            x = x - (share.astype(x.dtype) @ x)[None]
        context = Context(share.astype(weight.dtype))
        if surprise is not None:
            context = context._replace(surprise=jnp.tile(surprise.reshape(-1), layers).astype(weight.dtype))
        if negative is not None:
            pair = (activities(negative, axes, one, side).astype(weight.dtype) for side in "xy")
            context = context._replace(negative=tuple(pair))
        if "target" in rule.needs:
            context = context._replace(target=_target(target, model, slow, batch, y, number).astype(weight.dtype))
        delta, memories[name] = change_of(rule.change, weight, x, y, context, memory[name])
        delta = without_top(delta, how.remove_top)
        new = how.keep * (weight + how.rate * delta)
        if how.renormalise:
            length, before = (jnp.sqrt(jnp.sum(jnp.square(w), axis=0, keepdims=True)) for w in (new, weight))
            new = new * before / jnp.maximum(length, jnp.finfo(new.dtype).tiny)
        changed[name] = new.reshape(weight_of(slow, one).shape)
    return changed, memories


def shuffled(tokens: jax.Array, step: jax.Array) -> jax.Array:
    """Tokens [B, T], each row in another order at every step."""
    order = jnp.argsort(jax.random.uniform(jax.random.fold_in(key_of(0), step), tokens.shape), axis=1)
    return jnp.take_along_axis(tokens, order, axis=1)


def _taps(model: Model, slow: Slow, batch: Batch, collect: tuple[str, ...]) -> Mapping[str, jax.Array]:
    masks = {"valid": batch.valid, "reset": batch.reset}
    return model.apply({"params": slow}, batch.tokens, **masks, state="none", collect=collect).collected


def _surprise(model: Model, slow: Slow, batch: Batch) -> jax.Array:
    """The loss of every token, [B, T] nats, where the loss counts it; of the others 0."""
    logits = model.apply({"params": slow}, batch.tokens, valid=batch.valid, reset=batch.reset, state="none").logits
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return losses * (batch.answer > 0)


def _target(kind: Target, model: Model, slow: Slow, batch: Batch, y: jax.Array, number: int) -> jax.Array:
    """What y [M, O] should be."""
    layers = len(y) // batch.tokens.size
    if kind == "next_output":
        by_time = y.reshape(layers, *batch.tokens.shape, -1)
        return jnp.concatenate([by_time[:, :, 1:], by_time[:, :, -1:]], axis=2).reshape(y.shape)
    token = model.architecture.embed(slow, jnp.asarray(batch.targets))
    token = token.reshape(-1, token.shape[-1])
    token = token / jnp.sqrt(jnp.mean(jnp.square(token), axis=1, keepdims=True) + 1e-12)
    key = jax.random.fold_in(key_of(1), number)
    projection = jax.random.normal(key, (token.shape[1], y.shape[1]), token.dtype) / token.shape[1] ** 0.5
    return jnp.tile(token @ projection, (layers, 1)) * jnp.sqrt(jnp.mean(jnp.square(y)))


def _copies(tree: Any) -> Any:
    """Arrays with buffers of their own, so that each can be given up."""
    return jax.tree.map(jnp.copy, tree)


def _power_step(delta: jax.Array, step: jax.Array, right: jax.Array) -> jax.Array:
    del step
    return delta.T @ (delta @ _unit(right))


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(vector))), jnp.finfo(vector.dtype).tiny)
