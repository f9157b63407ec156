"""Models that become one: side by side along their neurons, as the paper merges them, or as the mean of their weights; and models that grow.

Side by side, every weight with the axis is concatenated along it, and of every other one, such as the embedding, the mean is taken
(arXiv 2509.26507, section on merging). Which axes a weight has its declaration says (:class:`bdh_jax.models.base.Weight`); what the parts are
multiplied by, and how the configuration says it, the model's configuration (:meth:`bdh_jax.models.base.ModelConfig.joined`). So a model merged
with itself is the same function, to rounding.

Optimiser states are not merged. Adam's moments are means of gradients that each model had on its own way, and no gradient of the
merged weights: a run that starts from them starts with fresh ones.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.config import ConfigError, require
from bdh_jax.fast_weights.state import FastState
from bdh_jax.models.base import ModelConfig, RowAxis, Weight, named_weights, same_but
from bdh_jax.parallel.axes import is_leaf
from bdh_jax.types import Slow

Mode = Literal["neurons", "heads", "average"]
MODES: tuple[Mode, ...] = get_args(Mode)
Along = Literal["neurons", "heads"]
ALONG: tuple[Along, ...] = get_args(Along)
_AXES: dict[str, RowAxis] = {"neurons": "neuron", "heads": "head"}


def merge(models: Sequence[tuple[ModelConfig, Slow]], mode: Mode = "neurons") -> tuple[ModelConfig, Slow]:
    """One model of several.

    Args:
      models: configuration and slow weights of each, M ≥ 2 of one architecture.
      mode: "neurons" continues each head with the neurons of the next model's, which keep their rotary phases; attention sums over all of
        them, so parts see each other in every layer. "heads" puts heads side by side: parts meet in the decoder alone, and the
        configuration needs no rotary period. "average" is the mean of all weights, of models of equal size.

    Returns:
      The configuration and the slow weights, in the dtypes of the models'.

    Raises:
      ConfigError: if they are of different architectures, if settings differ that have to be equal, or if models of this kind cannot be
        put side by side; it names the setting.
    """
    require(len(models) >= 2, f"{len(models)} model is none to merge; give two or more")
    configs, weights = zip(*models, strict=True)
    if mode == "average":
        same_but(configs, ())
        scales, axis, config = {}, None, configs[0]
    else:
        axis = _AXES[mode]
        same_kind(configs)
        config, scales, _ = configs[0].joined(configs[1:], axis)
    merged: Slow = {}
    for path, weight in named_weights(config.build().declared_slow()):
        parts = [_at(slow, path) for slow in weights]
        array = _joined(parts, weight.axes, axis, scales.get(path[-1], 1.0))
        if array.shape != weight.shape:
            raise ConfigError(
                f"{'.'.join(path)} of the merged model is {list(array.shape)}, and its configuration declares {list(weight.shape)}: the "
                "weights are not those of their configurations"
            )
        _put(merged, path, array)
    return config, merged


def same_kind(configs: Sequence[ModelConfig]) -> None:
    """Refuse models of different architectures.

    Raises:
      ConfigError: names both.
    """
    for number, config in enumerate(configs[1:], 2):
        require(
            type(config) is type(configs[0]),
            f"model 1 has the architecture {configs[0].architecture!r} and model {number} {config.architecture!r}: only models of one kind "
            "become one",
        )


def merge_states(configs: Sequence[ModelConfig], states: Sequence[FastState], along: Along = "neurons") -> FastState:
    """The state of a merged model in which every part finds what it had read and written: ρ, S and what goes with them.

    The parts must have read equally many tokens, for ρ is kept in the frame of absolute positions.

    Args:
      configs: of the models that were merged, in their order.
      states: of each, for the same B examples.
      along: the mode of :func:`merge`.

    Returns:
      A state to go on from with the merged model.

    Raises:
      ConfigError: if their positions differ, or a state holds arrays that cannot be put side by side, such as sums over pairs of rows.
    """
    axis = _AXES[along]
    scales = configs[0].joined(configs[1:], axis).state_scales
    declared = configs[0].build().declared_fast(states[0].batch_size)
    named, tree = jax.tree_util.tree_flatten_with_path(declared, is_leaf=is_leaf)
    leaves = [jax.tree.leaves(state) for state in states]
    require(
        all(len(parts) == len(named) for parts in leaves),
        f"the states have {', '.join(str(len(parts)) for parts in leaves)} arrays, and the model declares {len(named)}: give states of these "
        "models",
    )
    found = []
    for (path, leaf), *parts in zip(named, *leaves, strict=True):
        name = jax.tree_util.keystr(path[-1:], simple=True, separator=".")
        if axis in leaf.axes:
            require(
                name in scales,
                f"the state's {name} cannot be put side by side; go on from an empty state",
            )
            found.append(_joined(parts, leaf.axes, axis, scales[name]))
            continue
        require(
            not {"head", "neuron", "row"} & set(leaf.axes) and all(np.array_equal(part, parts[0]) for part in parts[1:]),
            f"the states differ in {name} ({', '.join(str(np.asarray(part).ravel()[:4]) for part in parts)}), which has to be equal: let "
            "all models read equally many tokens",
        )
        found.append(parts[0])
    return jax.tree.unflatten(tree, found)


def grow(
    config: ModelConfig, slow: Slow, n_neurons: int, key: jax.Array, along: Along = "heads"
) -> tuple[ModelConfig, Slow]:
    """The same model with more neurons. What it has keeps weights and rotary phases, and nothing reads the new neurons yet: weights that
    lead from them to the stream begin at zero, all others as in a fresh model, so that training can begin to use them.

    New heads ("heads") change nothing before they are trained: logits are the same, to the bit wherever the sum over the neurons of the
    decoder is made in the same order, zeros left out. New neurons in the heads that are there ("neurons") take part in the attention of
    those heads at once, so logits change.

    Args:
      config, slow: the model.
      n_neurons: over all heads, after growing.
      key: randomness of the new weights.
      along: which.

    Returns:
      The configuration and the slow weights, new arrays for those that grew.

    Raises:
      ConfigError: if models of this kind cannot grow, or not to this size.
    """
    axis = _AXES[along]
    wider = config.widened(n_neurons, axis)
    grown: Slow = {}
    declared = list(named_weights(wider.build().declared_slow()))
    for (path, weight), one in zip(declared, jax.random.split(key, len(declared)), strict=True):
        old = _at(slow, path)
        _put(grown, path, old if old.shape == weight.shape else _grown(old, weight, axis, one))
    return wider, grown


def _grown(old: jax.Array, weight: Weight, axis: RowAxis, key: jax.Array) -> jax.Array:
    place = weight.axes.index(axis)
    shape = tuple(n - old.shape[place] if index == place else n for index, n in enumerate(weight.shape))
    read = weight.axes[-1] == "model"  # maps are written x @ W: what leads to the stream ends with its axis
    new = jnp.zeros(shape, old.dtype) if read else weight.init(key, shape, old.dtype)
    return jnp.concatenate([jnp.asarray(old), new], axis=place)


def _joined(parts: Sequence[Any], axes: tuple[str, ...], axis: RowAxis | None, scale: float) -> jax.Array:
    """Concatenated along the axis, if the array has it; else the mean."""
    arrays = [jnp.asarray(part) for part in parts]
    if axis in axes:
        scaled = arrays if scale == 1.0 else [(array * scale).astype(array.dtype) for array in arrays]
        return jnp.concatenate(scaled, axis=axes.index(axis))
    shapes = {array.shape for array in arrays}
    require(len(shapes) == 1, f"the models have an array of shapes {sorted(shapes)}, of which there is no mean")
    return (functools.reduce(jnp.add, arrays) / len(arrays)).astype(arrays[0].dtype)


def _at(tree: Slow, path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda node, name: node[name], path, tree)


def _put(tree: Slow, path: tuple[str, ...], array: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = array
