"""What a training step takes of a device, before there is one: declared bytes, and the step as a compiler of the chip is given it.

Axis letters: B batch, T time, L layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from bdh_jax.models.base import Model
from bdh_jax.parallel.axes import Leaf
from bdh_jax.parallel.chips import Chip
from bdh_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from bdh_jax.parallel.planning import bytes_of, total_bytes
from bdh_jax.parallel.programs import Collective
from bdh_jax.tasks.base import Batch
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.optimizer import make_optimizer, split_trained
from bdh_jax.training.setup import Setup
from bdh_jax.training.state import abstract_state
from bdh_jax.training.step import make_train_step


class Needs(NamedTuple):
    """Bytes on one device. What is there between two steps are the arguments of a step's program, the rest its temporaries.

    Attributes:
      parameters: slow weights, in the dtype that they are trained in.
      optimizer: its state.
      state: the fast state that goes on from step to step, and what hooks remember.
      batch: of tokens, targets, weights and masks.
      gradients: of trained weights: their sum, and in the dtype of the layers those of one layer.
      weights: slow weights as the layers take them: whole heads and neurons at hand, in the dtype that they compute in.
      activations: what is kept of the forward pass and what the backward pass of a layer takes; None where the model declares none.
    """

    parameters: int
    optimizer: int
    state: int
    batch: int
    gradients: int
    weights: int
    activations: int | None

    @property
    def arguments(self) -> int:
        """Of the step's program."""
        return self.parameters + self.optimizer + self.state + self.batch

    @property
    def temporaries(self) -> int | None:
        """Of the step's program; None where activations are not declared."""
        return None if self.activations is None else self.gradients + self.weights + self.activations

    @property
    def total(self) -> int:
        """All of it that is declared."""
        return self.arguments + self.gradients + self.weights + (self.activations or 0)

    @property
    def dominant(self) -> str:
        """The largest part."""
        parts = {name: size for name, size in self._asdict().items() if size is not None}
        return max(parts, key=lambda name: parts[name])


def needs(setup: Setup, batch: Batch, lengths: Mapping[str, int]) -> Needs:
    """Declared bytes on a device.

    Args:
      setup: what is trained, and how; its mesh says only whether weights are split over ``data``.
      batch: shapes of a batch (:meth:`bdh_jax.tasks.base.TaskConfig.shapes`).
      lengths: name of each mesh axis → its length.
    """
    model, fsdp = setup.model.build(None), setup.mesh.fsdp
    declared = model.declared_slow()
    trained, _ = split_trained(declared, declared)
    hooks = make_hooks(setup.hooks, model)
    rows, length = batch.tokens.shape
    fast = total_bytes(model.declared_fast(rows), lengths) if setup.train.carry_state else 0
    slow = jax.tree.map(lambda weight: weight.struct(), declared, is_leaf=lambda leaf: hasattr(leaf, "init"))
    history = 0
    for update in hooks.updates:
        shapes = jax.eval_shape(update.init, slow)
        leaves, structure = jax.tree.flatten(shapes)
        axes = [()] * len(leaves) if update.axes is None else structure.flatten_up_to(update.axes(slow))
        for leaf, names in zip(leaves, axes, strict=True):
            history += bytes_of(Leaf(tuple(names) or ("row",) * leaf.ndim, leaf.shape, leaf.dtype), lengths)
    dtype = setup.model.compute_dtype
    cast = jax.tree.map(lambda weight: weight._replace(dtype=dtype), declared, is_leaf=lambda leaf: hasattr(leaf, "init"))
    gathered = fsdp and lengths["data"] > 1
    same = dtype == setup.model.state_dtype and not gathered
    return Needs(
        parameters=total_bytes(declared, lengths, fsdp=fsdp),
        optimizer=_optimizer(setup, trained, lengths),
        state=fast + history,
        batch=_batch(batch, lengths),
        gradients=total_bytes(trained, lengths)
        + (0 if dtype == setup.model.state_dtype else total_bytes(split_trained(cast, cast)[0], lengths)),
        weights=0 if same else total_bytes(cast, lengths),
        activations=_activations(model, setup, (rows // setup.train.accumulation, length), lengths),
    )


def _optimizer(setup: Setup, trained: Any, lengths: Mapping[str, int]) -> int:
    """Bytes of its state: what it keeps of each weight lies as the weight does."""
    optimizer = make_optimizer(setup.optimizer, setup.train.steps)
    structs = jax.tree.map(lambda weight: weight.struct(), trained, is_leaf=lambda leaf: hasattr(leaf, "init"))
    state = jax.eval_shape(optimizer.init, structs)

    def of_weight(leaf: Any, weight: Any) -> int:
        return bytes_of(weight._replace(shape=leaf.shape, dtype=leaf.dtype), lengths, fsdp=setup.mesh.fsdp)

    sizes = optax.tree.map_params(
        optimizer, of_weight, state, trained, transform_non_params=lambda leaf: math.prod(leaf.shape) * leaf.dtype.itemsize
    )
    return sum(jax.tree.leaves(sizes))


def _batch(batch: Batch, lengths: Mapping[str, int]) -> int:
    leaves = jax.tree.leaves(batch)
    return sum(-(-leaf.shape[0] // lengths["data"]) * math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)


def _activations(model: Model, setup: Setup, shape: tuple[int, int], lengths: Mapping[str, int]) -> int | None:
    """Bytes of what is kept of one slice of a batch, and of what the backward pass of a layer takes beside it."""
    found = model.architecture.activations(*shape, lengths["sequence"])
    if found is None:
        return None
    once, kept, peak, between = (
        sum(bytes_of(leaf, lengths) for leaf in leaves) for leaves in (found.once, found.kept, found.peak, found.between)
    )
    layers = setup.model.n_layer
    if setup.model.remat:
        return once + layers * between + kept + peak
    return once + layers * (between + kept) + peak


def lower_step(setup: Setup, batch: Batch, devices: list[Any]) -> tuple[jax.stages.Lowered, Mesh]:
    """A whole training step for devices that need not be there, and the mesh of them.

    Args:
      setup: what is trained, on which mesh.
      batch: shapes of a batch.
      devices: of a topology (:func:`bdh_jax.parallel.chips.devices`).

    Raises:
      ConfigError: if the mesh does not fit the devices, the batch or the model.
    """
    mesh = make_mesh(setup.mesh, devices)
    model = setup.model.build(mesh if mesh.size > 1 else None)
    hooks = make_hooks(setup.hooks, model)
    optimizer = make_optimizer(setup.optimizer, setup.train.steps)
    step = make_train_step(model, optimizer, setup, mesh, hooks=hooks)
    carried = setup.train.batch_size if setup.train.carry_state else None
    state = abstract_state(model, optimizer, mesh, hooks, carried, setup.mesh.fsdp)
    key = jax.eval_shape(functools.partial(jax.random.key, 0))
    of_examples, whole = batch_sharding(mesh), replicated(mesh)
    rows = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=of_examples), batch)
    with jax.set_mesh(mesh):  # a kernel for TPUs looks there for the kind of chip
        return step.lower(state, rows, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)), mesh


class Cost(NamedTuple):
    """What a step does, on one device.

    Attributes:
      flops: operations that are done, those of recomputation among them.
      useful: those that the model asks for, without recomputation.
      moved: bytes between a chip and its memory.
      sent: bytes to other chips.
    """

    flops: float
    useful: float
    moved: float
    sent: float

    def seconds(self, chip: Chip) -> dict[str, float]:
        """What each of them takes at the chip's stated rates."""
        return {
            "compute": self.flops / chip.flops,
            "memory": self.moved / chip.bandwidth,
            "network": self.sent / chip.interconnect,
        }

    def step(self, chip: Chip) -> float:
        """Seconds of a step, if computing and memory overlap, and neither does with what is sent."""
        seconds = self.seconds(chip)
        return max(seconds["compute"], seconds["memory"]) + seconds["network"]

    def bound(self, chip: Chip) -> str:
        """What takes longest."""
        seconds = self.seconds(chip)
        return max(seconds, key=lambda name: seconds[name])

    def share_of_peak(self, chip: Chip) -> float:
        """Of the chip's operations, those that the model asks for."""
        return self.useful / chip.flops / self.step(chip)


def declared_collectives(setup: Setup, batch: Batch, lengths: Mapping[str, int]) -> list[Collective] | None:
    """What a step sends, from declarations: sums of a layer, states that cross time, gradients, and weights that fsdp gathers.

    Scalars of norms are left out. None where the model declares no activations.
    """
    model = setup.model.build(None)
    rows, length = batch.tokens.shape
    slices = setup.train.accumulation
    found = model.architecture.activations(rows // slices, length, lengths["sequence"])
    if found is None:
        return None
    layers = setup.model.n_layer * slices
    passes = layers * (3 if setup.model.remat else 2)
    sent: list[Collective] = []

    def add(kind: str, axes: tuple[str, ...], size: int, times: int) -> None:
        axes = tuple(axis for axis in axes if lengths[axis] > 1)
        if axes and size:
            sent.append(Collective(kind, axes, math.prod(lengths[axis] for axis in axes), size, times))

    for leaf in found.over_rows:
        add("all-reduce", ("heads", "neurons"), bytes_of(leaf, lengths), passes)
    for leaf in found.within_head:
        add("all-reduce", ("neurons",), bytes_of(leaf, lengths), passes)
    rounds = 1 + math.ceil(math.log2(max(lengths["sequence"] - 1, 1)))
    for leaf in found.over_time:
        add("collective-permute", ("sequence",), bytes_of(leaf, lengths), rounds * passes)
    declared = model.declared_slow()
    trained, _ = split_trained(declared, declared)
    gradients = total_bytes(trained, lengths)
    if setup.mesh.fsdp:
        add("reduce-scatter", ("data",), gradients, slices)
        add("all-reduce", ("sequence",), gradients, slices)
        add("all-gather", ("data",), gradients, slices)
    else:
        add("all-reduce", ("data", "sequence"), gradients, slices)
    return sent


def declared_cost(setup: Setup, batch: Batch, lengths: Mapping[str, int], need: Needs | None = None) -> Cost | None:
    """What a step does, from declarations; None where the model declares no activations. ``need`` is that of the same, if it is known.

    Every activation of a layer is counted as written and read once in each pass over it, every weight as read once in each, and the
    optimiser's as read and written.
    """
    sent = declared_collectives(setup, batch, lengths)
    rows, length = batch.tokens.shape
    slices, remat = setup.train.accumulation, setup.model.remat
    found = setup.model.make_architecture().activations(rows // slices, length, lengths["sequence"])
    if sent is None or found is None:
        return None
    devices = math.prod(lengths.values())
    useful = 6 * found.multiply_adds * rows * length / devices
    need = needs(setup, batch, lengths) if need is None else need
    per_layer = sum(bytes_of(leaf, lengths) for leaf in (*found.kept, *found.peak, *found.between))
    once = sum(bytes_of(leaf, lengths) for leaf in found.once)
    passes = 4 if remat else 3
    moved = slices * passes * (2 * (setup.model.n_layer * per_layer + once) + (need.weights or need.gradients))
    moved += 2 * (need.parameters + need.optimizer) + need.gradients
    return Cost(useful * (4 / 3 if remat else 1), useful, moved, sum(one.sent for one in sent))
