"""The state an episode carries from one call of the model to the next, as pytrees whose axes are declared with their fields.

A field made by :func:`array` names the axes of its array, once. Shapes, zeros, the choice and the reset of examples, sizes in bytes,
checks, files and shardings all follow from that. An array without a "batch" axis belongs to all examples together: choosing or
resetting some of them leaves it alone.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax import export
from jax.core import Tracer

from bdh_jax.fast_weights.shapes import shapes
from bdh_jax.kernels import token_step
from bdh_jax.kernels.token_step.arguments import Recent
from bdh_jax.parallel.axes import Leaf, is_leaf
from bdh_jax.types import Struct

Axes = tuple[str, ...]
T = TypeVar("T")


def array(*axes: str, dtype: str = "state") -> Any:
    """A field of a :class:`State` that holds one array, or None where a model does not use it.

    Args:
      axes: logical names of its axes (``bdh_jax.parallel.axes.RULES``).
      dtype: "state" (float32 or wider), "compute", or the name of a dtype.
    """
    return flax.struct.field(default=None, metadata={"axes": axes, "dtype": dtype})


def exportable(kind: type[T]) -> type[T]:
    """Let ``jax.export`` write functions that take or return this ``flax.struct`` dataclass; its static fields must be JSON."""
    # A class that is defined again, in a notebook, is another one under the same name: the first stays.
    with contextlib.suppress(ValueError):
        export.register_pytree_node_serialization(
            kind,
            serialized_name=f"{kind.__module__}.{kind.__qualname__}",
            serialize_auxdata=lambda static: json.dumps(static).encode(),
            deserialize_auxdata=lambda static: tuple(json.loads(static)),
            from_children=lambda aux_data, children: _from_children(kind, aux_data, children),
        )
    return kind


def _from_children(kind: type[Any], static: Iterable[Any], children: Iterable[Any]) -> Any:
    fields = dataclasses.fields(kind)
    names = [[f.name for f in fields if f.metadata.get("pytree_node", True) == is_node] for is_node in (True, False)]
    return kind(**dict(zip(names[0], children, strict=True)), **dict(zip(names[1], static, strict=True)))


class State(Struct):
    """Base of pytrees of arrays with declared axes. Subclasses are ``flax.struct`` dataclasses whose fields are :func:`array`, other
    states, tuples of states, or static."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        exportable(cls)
        # A class whose body has a __repr__ keeps it when it becomes a dataclass.
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = State.__repr__

    def __repr__(self) -> str:
        return shapes(self)

    def map_arrays(self, function: Callable[[Axes, Any], Any]) -> Self:
        """The same state with ``function(axes, array)`` in place of every array that is there."""
        return _map(self, function)

    @property
    def batch_size(self) -> int:
        """B.

        Raises:
          ValueError: if no array has a batch axis.
        """
        sizes: list[int] = []
        self.map_arrays(lambda axes, leaf: sizes.append(leaf.shape[axes.index("batch")]) if "batch" in axes else None)
        if not sizes:
            raise ValueError(f"this {type(self).__name__} is shared by all examples: no array of it has a batch axis")
        return sizes[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def detach(self) -> Self:
        """The same state without gradients to what produced it (truncated backpropagation through time)."""
        return jax.lax.stop_gradient(self)

    def select(self, indices: jax.Array) -> Self:
        """The examples ``indices`` [B'] of the batch, in that order; repeats are allowed.

        Raises:
          ValueError: for a mask, and for an index outside the batch where its value is known, that is outside ``jit``.
        """
        indices = jnp.asarray(indices)
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(
                f"indices has dtype {indices.dtype}; name examples by number (of a mask: jnp.flatnonzero(mask))"
            )
        if not isinstance(indices, Tracer) and indices.size:
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.batch_size:
                raise ValueError(f"index {low if low < 0 else high} is outside the batch of {self.batch_size} examples")

        def choose(axes: Axes, leaf: jax.Array) -> jax.Array:
            return jnp.take(leaf, indices, axis=axes.index("batch")) if "batch" in axes else leaf

        return self.map_arrays(choose)

    def reset(self, where: jax.Array | None = None) -> Self:
        """Zeros for the examples where ``where`` [B] is true: their next token starts a new episode. None resets everything.

        Raises:
          ValueError: if ``where`` is not one bool for each example.
        """
        if where is None:
            return jax.tree.map(jnp.zeros_like, self)
        where = jnp.asarray(where, bool)
        if where.shape != (self.batch_size,):
            raise ValueError(f"where has shape {where.shape}; it must be one bool for each example, [{self.batch_size}]")

        def clear(axes: Axes, leaf: jax.Array) -> jax.Array:
            if "batch" not in axes:
                return leaf
            shape = [-1 if axis == "batch" else 1 for axis in axes]
            return jnp.where(where.reshape(shape), jnp.zeros((), leaf.dtype), leaf)

        return self.map_arrays(clear)

    def mean_over_examples(self, weights: jax.Array | None = None) -> Self:
        """The same state with a batch axis of length 1: the mean over the examples, weighted by ``weights`` [B] if given."""

        def mean(axes: Axes, leaf: jax.Array) -> jax.Array:
            if "batch" not in axes:
                return leaf
            axis = axes.index("batch")
            if weights is None:
                return jnp.mean(leaf, axis=axis, keepdims=True)
            tiny = jnp.finfo(weights.dtype).tiny
            share = (weights / jnp.maximum(jnp.sum(weights), tiny)).astype(leaf.dtype)
            return jnp.expand_dims(jnp.tensordot(leaf, share, axes=(axis, 0)), axis)

        return self.map_arrays(mean)


def _map(node: Any, function: Callable[[Axes, Any], Any]) -> Any:
    if isinstance(node, tuple):
        return tuple(_map(child, function) for child in node)
    if not isinstance(node, State):
        return node
    values = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if value is None or not field.metadata.get("pytree_node", True):
            continue
        axes = field.metadata.get("axes")
        values[field.name] = _map(value, function) if axes is None else function(axes, value)
    return node.replace(**values)


class Sizes(NamedTuple):
    """Lengths of the axes of one model's arrays, and their dtypes."""

    axes: Mapping[str, int]
    """Logical axis → length."""
    dtypes: Mapping[str, Any]
    """"state" and "compute" → dtype."""

    def leaf(self, axes: Axes, dtype: str = "state") -> Leaf:
        """The declaration of an array with these axes."""
        return Leaf(axes, tuple(self.axes[axis] for axis in axes), self.dtypes.get(dtype) or jnp.dtype(dtype))


def declare(kind: type[Any], sizes: Sizes, present: Iterable[str] | None = None, **children: Any) -> Any:
    """A state with a :class:`Leaf` in place of every array.

    Args:
      kind: the class, whose fields say which axes.
      sizes: their lengths.
      present: names of the arrays that the model uses, the others are None; None for all.
      children: what its other fields hold: declared states, tuples of them, static values.
    """
    leaves = {}
    for field in dataclasses.fields(kind):
        axes = field.metadata.get("axes")
        if axes is not None and (present is None or field.name in present):
            leaves[field.name] = sizes.leaf(axes, field.metadata["dtype"])
    return kind(**leaves, **children)


def structs(declared: Any) -> Any:
    """A declared state as ``jax.eval_shape`` would give it."""
    return jax.tree.map(lambda leaf: leaf.struct(), declared, is_leaf=is_leaf)


def zeros(declared: Any) -> Any:
    """A declared state at the start of an episode. Every array has a buffer of its own, so that each can be donated."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), declared, is_leaf=is_leaf)


def check(fast: Any, declared: Any, hint: str) -> None:
    """Refuse a state that is not of the declared structure, shapes and dtypes.

    Args:
      fast: the state.
      declared: of the model and batch that it is for.
      hint: what to do about it, the end of the message.

    Raises:
      ValueError: naming the array, its shape or dtype and those expected.
    """
    have, want = (dict(_named(tree)) for tree in (fast, declared))
    for name, leaf in want.items():
        if name not in have:
            raise ValueError(f"fast.{name} is missing for this model configuration; {hint}")
        if not (hasattr(have[name], "shape") and hasattr(have[name], "dtype")):
            raise ValueError(f"fast.{name} is a {type(have[name]).__name__}, and must be an array; {hint}")
        if jnp.shape(have[name]) != leaf.shape:
            raise ValueError(f"fast.{name} has shape {jnp.shape(have[name])}, but this model needs {leaf.shape}; {hint}")
        if jnp.result_type(have[name]) != leaf.dtype:
            raise ValueError(f"fast.{name} is {jnp.result_type(have[name])}, but this model carries {leaf.dtype}; {hint}")
    for name in have:
        if name not in want:
            raise ValueError(f"fast.{name} should be absent for this model configuration; {hint}")
    made, now = dict(_settings(fast, "fast")), dict(_settings(declared, "fast"))
    for name, value in now.items():
        if made.get(name) != value:
            raise ValueError(f"{name} is {made.get(name)!r}, but this model has {value!r}; {hint}")


def _settings(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What is fixed about a state besides its arrays: the class of every part, and its static fields."""
    if isinstance(node, tuple) and not is_leaf(node):
        for number, child in enumerate(node):
            yield from _settings(child, f"{name}.{number}")
    elif isinstance(node, State):
        yield name, type(node).__name__
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if not field.metadata.get("pytree_node", True):
                yield f"{name}.{field.name}", value
            elif "axes" not in field.metadata:
                yield from _settings(value, f"{name}.{field.name}")


def _named(tree: Any) -> Iterable[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


# What BDH keeps.


@flax.struct.dataclass
class RuleState(State):
    """What a write rule keeps: S, and in subclasses what else the rule needs.

    Attributes:
      S: [B, H, N, D], the sums that the rule writes.
    """

    predicts_values: ClassVar[bool] = False
    """Whether what the synapse knows already was not written."""

    S: jax.Array = array("batch", "head", "neuron", "model")

    def effective(self) -> jax.Array:
        """What an address reads, [B, H, N, D]."""
        return self.S


@flax.struct.dataclass
class RecentWrites(State):
    """Writes of the last tokens that have not reached the matrix beside them yet: what is read is scale · M + Σ_w weight_w key_w ⊗ value_w
    (``bdh_jax.kernels.token_step``). Of zeros, as everything at the start of an episode, it says that the matrix is zero.

    Attributes:
      key: [B, H, W, N].
      value: [B, W, D].
      weight: [B, H, W], how much of a write is left; 0 in a slot that is not in use.
      scale: [B, H], how much of the matrix is left.
      used: int32, the slots in use, of all examples alike.
    """

    key: jax.Array = array("batch", "head", "slot", "neuron", dtype="compute")
    value: jax.Array = array("batch", "slot", "model", dtype="compute")
    weight: jax.Array = array("batch", "head", "slot")
    scale: jax.Array = array("batch", "head")
    used: jax.Array = array(dtype="int32")

    @property
    def arrays(self) -> Recent:
        """The same, as the kernels take it."""
        return Recent(self.key, self.value, self.weight, self.scale, self.used)

    def flush(self, matrix: jax.Array, where: jax.Array | None = None) -> tuple[jax.Array, RecentWrites]:
        """The matrix [B, H, N, D] with these writes in it, and slots that are free again; both as they are ``where`` that is False."""
        matrix, free = token_step.flush(matrix, self.arrays, where)
        return matrix, RecentWrites(*free)


@flax.struct.dataclass
class Memory(State):
    """Fast weights: one layer's own, or one for all layers.

    Attributes:
      written: what the write rule keeps.
      gram: [B, K, K], Σ η k ⊗ k, decayed as S is, if ``keep_gram`` asks for it.
      recent: writes that have not reached S; None where every write goes to S at once.
    """

    written: RuleState
    gram: jax.Array | None = array("batch", "row", "row")
    recent: RecentWrites | None = None

    def flush(self, where: jax.Array | None = None) -> Memory:
        """The same with all writes in S."""
        if self.recent is None:
            return self
        matrix, free = self.recent.flush(self.written.S, where)
        return self.replace(written=self.written.replace(S=matrix), recent=free)


@flax.struct.dataclass
class Use(State):
    """How much each row of one layer was used in this episode.

    Attributes:
      strength: [B, H, N], the sum over valid tokens of the address, of its size where it may be negative.
      energy: [B, H, N], the sum over valid tokens of the squared norm of the row that the Hebbian rule writes.
    """

    strength: jax.Array = array("batch", "head", "neuron")
    energy: jax.Array = array("batch", "head", "neuron")


@flax.struct.dataclass
class LayerState(State):
    """One layer's part of a :class:`FastState`. What a model does not use is None.

    Attributes:
      attention: [B, H, N, D], linear-attention state ρ = Σ rope(code) ⊗ x, in the fixed rotary frame.
      previous_code: [B, H, N], code of the last valid token; of attention "shift".
      previous_address: [B, H, N], address of the last valid token; of address "previous".
      memory: the layer's :class:`Memory`; None if all layers share one.
      use: its :class:`Use`.
      recent: writes that have not reached the attention's state; None where every write goes there at once.
    """

    attention: jax.Array | None = array("batch", "head", "neuron", "model")
    previous_code: jax.Array | None = array("batch", "head", "neuron", dtype="compute")
    previous_address: jax.Array | None = array("batch", "head", "neuron", dtype="compute")
    memory: Memory | None = None
    use: Use | None = None
    recent: RecentWrites | None = None

    def flush(self, where: jax.Array | None = None) -> LayerState:
        """The same with all writes where they belong."""
        memory = None if self.memory is None else self.memory.flush(where)
        if self.recent is None or self.attention is None:
            return self.replace(memory=memory)
        attention, free = self.recent.flush(self.attention, where)
        return self.replace(attention=attention, memory=memory, recent=free)


@exportable
@flax.struct.dataclass
class Activity:
    """How much each row of the fast weights was used in an episode. It is what a consolidation function looks at.

    Attributes:
      strength: [L, B, H, N], the sum over valid tokens of the address, of its size where it may be negative.
      energy: [L, B, H, N], the sum over valid tokens of the squared norm of the row that the Hebbian rule writes, ‖η k_i x‖², or
        ‖η β k_i x‖² with a gate. Rules that write what is not predicted yet write less than that.
      count: [B], the number of valid tokens, in the dtype of the others.
    """

    strength: jax.Array
    energy: jax.Array
    count: jax.Array

    def __repr__(self) -> str:
        return shapes(self)


class Written:
    """What an episode wrote, of all layers, stacked: the part of a state that a consolidation function looks at.

    Reading it stacks the layers' arrays; a model never does.
    """

    layers: tuple[Any, ...]
    shared: Memory | None
    count: jax.Array | None

    def memories(self) -> tuple[Memory, ...]:
        """The memories, one a layer, or one for all, with all that was written in them.

        Raises:
          ValueError: if the model has no fast weights.
        """
        if self.shared is not None:
            return (self.shared,)
        memories = tuple(m.flush() for layer in self.layers if (m := getattr(layer, "memory", None)) is not None)
        if not memories:
            raise ValueError("this state has no fast weights: the model was configured with fast.enabled=False")
        return memories

    @property
    def has_memory(self) -> bool:
        """Whether there are fast weights."""
        return self.shared is not None or any(getattr(layer, "memory", None) is not None for layer in self.layers)

    @property
    def memory(self) -> jax.Array | None:
        """S [L, B, H, N, D] ([1, ...] when shared), the sums that the rule writes; None without fast weights."""
        return _stack([m.written.S for m in self.memories()]) if self.has_memory else None

    @property
    def gram(self) -> jax.Array | None:
        """Σ η k ⊗ k, [L, B, K, K] ([1, ...] when shared), of rule "mesa" or with ``keep_gram``; None otherwise."""
        if not self.has_memory:
            return None
        return _stack([getattr(m.written, "gram", None) if m.gram is None else m.gram for m in self.memories()])

    def effective_memory(self) -> jax.Array:
        """What an address reads, [L, B, H, N, D] ([1, ...] when shared): S, or (G + ridge)⁻¹ S of "mesa".

        Raises:
          ValueError: if the model has no fast weights.
        """
        return jnp.stack([m.written.effective() for m in self.memories()])

    @property
    def predicts_values(self) -> bool:
        """Whether what the synapse knows already was not written."""
        return self.memories()[0].written.predicts_values

    @property
    def activity(self) -> Activity | None:
        """:class:`Activity`; None without fast weights."""
        if not self.has_memory or self.count is None:
            return None
        use = [layer.use for layer in self.layers]
        return Activity(_together([u.strength for u in use]), _together([u.energy for u in use]), self.count)


def _stack(arrays: list[Any]) -> jax.Array | None:
    return None if arrays[0] is None else _together(arrays)


def _together(arrays: list[Any]) -> jax.Array:
    """Arrays on a new first axis; shapes where they are shapes."""
    return jax.eval_shape(_stacked, arrays) if isinstance(arrays[0], jax.ShapeDtypeStruct) else _stacked(arrays)


def _stacked(arrays: list[Any]) -> jax.Array:
    return jnp.stack(arrays)


@flax.struct.dataclass
class TokenSteps(State):
    """How token steps went, of all examples together.

    Attributes:
      taken: int32, calls of one token.
      over_budget: int32, those in which some layer read a whole matrix, because more was active than its budget of rows.
    """

    taken: jax.Array = array(dtype="int32")
    over_budget: jax.Array = array(dtype="int32")


@flax.struct.dataclass
class FastState(State, Written):
    """Everything an episode carries from one call of the model to the next. Nothing is hidden and nothing is in place.

    Attributes:
      layers: what each layer keeps, of the model's own class (BDH: :class:`LayerState`).
      shared: what all layers share (BDH: the :class:`Memory` of ``fast.scope="shared"``), or None.
      position: [B] int32, valid tokens since the episode's start.
      count: [B], the same in the dtype of the activity, of the tokens that count towards it; None without fast weights.
      token_steps: :class:`TokenSteps` of a model that takes them, or None.
    """

    layers: tuple[Any, ...]
    shared: Any = None
    position: jax.Array = array("batch", dtype="int32")
    count: jax.Array | None = array("batch")
    token_steps: TokenSteps | None = None

    @property
    def attention(self) -> jax.Array | None:
        """[L, B, H, N, D], with all that was written in it; None if a layer keeps none."""
        return _stack([getattr(layer, "attention", None) for layer in self.flush().layers])

    @property
    def previous_address(self) -> jax.Array | None:
        """[L, B, H, N]; None unless the address is "previous"."""
        return _stack([getattr(layer, "previous_address", None) for layer in self.layers])

    @property
    def previous_code(self) -> jax.Array | None:
        """[L, B, H, N]; None unless the attention is "shift"."""
        return _stack([getattr(layer, "previous_code", None) for layer in self.layers])

    def with_memories(self, memories: Iterable[Memory]) -> FastState:
        """The same state with other memories, in the order of :meth:`memories`."""
        memories = tuple(memories)
        if self.shared is not None:
            return self.replace(shared=memories[0])
        layers = (layer.replace(memory=m) for layer, m in zip(self.layers, memories, strict=True))
        return self.replace(layers=tuple(layers))

    def map_memory(self, function: Callable[[jax.Array], jax.Array]) -> FastState:
        """The same state with ``function(S)`` in place of every S [B, H, N, D]."""
        return self.with_memories(m.replace(written=m.written.replace(S=function(m.written.S))) for m in self.memories())

    def only_memory(self) -> FastState:
        """Zeros in all but the fast weights and their activity: a new episode that goes on with what was written."""
        empty = self.reset()
        layers = tuple(e.replace(memory=s.memory, use=s.use) for e, s in zip(empty.layers, self.layers, strict=True))
        return empty.replace(layers=layers, shared=self.shared, count=self.count)

    def flush(self, where: jax.Array | None = None) -> FastState:
        """The same state with every write where it belongs, and all slots free; as it is where ``where``, a bool scalar, is False."""
        layers = (layer.flush(where) if isinstance(layer, LayerState) else layer for layer in self.layers)
        return self.replace(layers=tuple(layers))


@flax.struct.dataclass
class MeanLayer(State):
    """One layer's part of a :class:`BatchMean`."""

    memory: Memory | None = None
    use: Use | None = None


@flax.struct.dataclass
class BatchMean(State, Written):
    """What the examples of a batch wrote, on average: what ``state="mean"`` returns. It serves consolidation, not continuation.

    Attributes:
      layers: for each layer its memory, unless all share one, and its use, with a batch axis of length 1.
      shared: the :class:`Memory` of all layers, or None.
      count: [1].
    """

    layers: tuple[MeanLayer, ...]
    shared: Memory | None = None
    count: jax.Array | None = array("batch")


def declared_mean(declared: FastState) -> BatchMean:
    """The declaration of the batch mean of a declared state."""

    def one(axes: Axes, leaf: Leaf) -> Leaf:
        return leaf._replace(shape=tuple(1 if axis == "batch" else n for axis, n in zip(axes, leaf.shape, strict=True)))

    layers = tuple(MeanLayer(layer.memory, layer.use) for layer in declared.layers)
    return BatchMean(layers, declared.shared, declared.count).map_arrays(one)


def batch_mean(fast: FastState) -> BatchMean:
    """The mean over the examples of a full state."""
    fast = fast.flush()
    layers = tuple(
        MeanLayer(None if layer.memory is None else layer.memory.replace(recent=None), layer.use) for layer in fast.layers
    )
    return BatchMean(layers, fast.shared, fast.count).mean_over_examples()
