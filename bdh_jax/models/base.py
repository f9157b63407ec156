"""What a model is: declared weights and state, and three functions: embed, block, readout. Everything else follows, here, once.

A model of your own is an :class:`Architecture` (docs/how-to/model.md). From its declarations follow initial weights, checks, parameter
counts, the state of an episode and how both lie on a mesh; from its three functions follow calls of any length, the form token by
token, taps for probes and learning rules, and recomputation in the backward pass.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, overload

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bdh_jax.config import ConfigError, require
from bdh_jax.config.base import shown
from bdh_jax.config.identity import HOW
from bdh_jax.fast_weights import state as states
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.fast_weights.masks import Masks, Places, places
from bdh_jax.fast_weights.shapes import shapes
from bdh_jax.fast_weights.state import Activity, BatchMean, FastState, Sizes, batch_mean
from bdh_jax.parallel import axes as mesh_axes
from bdh_jax.parallel.axes import Leaf
from bdh_jax.parallel.collectives import WHOLE, ShardAxes, shard_axes, vary_like
from bdh_jax.types import Slow

StateKind = Literal["full", "none", "mean"]
DType = Literal["float32", "bfloat16", "float64"]
RowAxis = Literal["neuron", "head"]
"""Logical axis along which models stand side by side: neurons of the same heads, or heads."""
MOST_LAYERS = 4096
"""Layers are traced one by one: a program of more takes hours to make."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of every model's own configuration, which has at least these fields and says what the model is."""

    architecture: str = ""
    """Name in the table of models (``bdh_jax.models.registry``), or ``module:Class`` of a configuration of your own."""
    vocab_size: int = 256
    """V, tokens that there are; ids are 0 … V − 1."""
    n_layer: int = 1
    """L, layers."""
    d_model: int = 64
    """D, width of the residual stream."""
    dropout: float = 0.0
    """Share of the activations that are set to zero in training."""
    dtype: DType = "float32"
    """Compute dtype. Parameters and states are float32 (float64 when this is float64)."""
    remat: bool = dataclasses.field(default=False, metadata=HOW)
    """Recompute each layer in the backward pass instead of keeping its activations."""

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Dtype of activations."""
        return jnp.dtype(self.dtype)

    @property
    def state_dtype(self) -> jnp.dtype:
        """Dtype of parameters, states and rotary phases: at least float32."""
        return jnp.promote_types(jnp.float32, self.dtype)

    @property
    def fast(self) -> FastWeightConfig:
        """Settings of the fast weights; disabled for a model that has none."""
        return FastWeightConfig(enabled=False)

    @property
    def has_fast_weights(self) -> bool:
        """Whether there are fast weights, to consolidate."""
        return self.fast.enabled

    @property
    def has_state(self) -> bool:
        """Whether the model carries a state from call to call."""
        return False

    @property
    def draws_in_training(self) -> bool:
        """Whether a training step draws random numbers (:meth:`Architecture.draws`)."""
        return self.dropout > 0

    @property
    def parts(self) -> Mapping[str, ModelConfig]:
        """The models that this one is made of, by name: the weights of each stand under its name, and its taps begin with that and a dot."""
        return {}

    @property
    def no_part(self) -> str | None:
        """Why its layers cannot stand among those of another model, each called once and by itself; None if they can."""
        return None

    @property
    def widest(self) -> int:
        """Numbers that the widest array of a layer has for each token."""
        return self.d_model

    @property
    def slots(self) -> int:
        """How many writes may wait beside a matrix of the state; 0: every write goes there at once."""
        return 0

    def without_slots(self) -> ModelConfig:
        """The same model whose writes go to its state at once."""
        return self

    def check_mesh(self, shape: Mapping[str, int]) -> None:
        """Refuse a mesh that the model cannot be spread over.

        Args:
          shape: name of each mesh axis → its length.

        Raises:
          ConfigError: names the axis.
        """
        for name in ("heads", "neurons"):
            if shape[name] != 1:
                raise ConfigError(
                    f"mesh.{name}={shape[name]}: a {self.architecture!r} model has no rows to spread; set it to 1"
                )

    @property
    def whole_time(self) -> str | None:
        """Why time cannot be split over devices; None if it can."""
        return f"a {self.architecture!r} model needs all tokens in one place"

    def check_time(self, shape: Mapping[str, int]) -> None:
        """Refuse a mesh that splits time, of a model whose time cannot be split.

        Args:
          shape: name of each mesh axis → its length.

        Raises:
          ConfigError: says why.
        """
        reason = self.whole_time
        require(
            shape["sequence"] == 1 or reason is None,
            f"mesh.sequence={shape['sequence']} splits time, and {reason}; set it to 1",
        )

    def multiply_adds_per_token(self, length: int) -> int | None:
        """Multiply-adds of a forward pass over so many tokens, for each of them; None where nobody counted.

        Attention, BDH's among it, is counted with all T × T pairs of a call, those that a mask leaves out too. A mixer that is recurrent is counted
        by what it does with its state at each token, whatever the form that it is run in.
        """
        del length
        return None

    def joined(self, others: Sequence[ModelConfig], axis: RowAxis) -> Joined:
        """The model of which this one and others are parts, side by side (``bdh_jax.analysis.merging``).

        Args:
          others: configurations of the same architecture.
          axis: of the weights, along which they stand.

        Raises:
          ConfigError: if this architecture cannot be joined, or these models cannot.
        """
        del others
        raise ConfigError(
            f"models of the architecture {self.architecture!r} cannot be put side by side along {axis}s: they do not say how (joined of their "
            'configuration); take the mean of their weights, mode "average"'
        )

    def widened(self, n_neurons: int, axis: RowAxis) -> ModelConfig:
        """The same model with more neurons, where those that it has keep their place and phase (``bdh_jax.analysis.merging``).

        Args:
          n_neurons: over all heads, more than there are.
          axis: of the weights, along which the new ones stand.

        Raises:
          ConfigError: if this architecture, or this model, cannot grow so.
        """
        raise ConfigError(
            f"a model of the architecture {self.architecture!r} cannot grow to n_neurons={n_neurons} along {axis}s: it does not say how "
            "(widened of its configuration)"
        )

    def make_architecture(self) -> Architecture:
        """What the model is made of: what :meth:`build` makes a model of, and what another model can use as a part of its own."""
        raise NotImplementedError(f"{type(self).__name__} must say what its model is made of: define make_architecture()")

    def build(self, mesh: Mesh | None = None) -> Model:
        """The model that this describes, on a mesh or on one device."""
        return Model(self, mesh)


class Joined(NamedTuple):
    """A model whose parts are models."""

    config: ModelConfig
    scales: Mapping[str, float]
    """Name of a slow weight → what each part's is multiplied by; those that are not named keep their size."""
    state_scales: Mapping[str, float]
    """Name of an array of the state → the same."""


def same_but(configs: Sequence[ModelConfig], names: Sequence[str]) -> list[Any]:
    """The configurations but the first, which have the same values as that in all fields that decide the function but some.

    Args:
      configs: of models that become one.
      names: fields that may differ.

    Raises:
      ConfigError: names the field and both values.
    """
    first, *others = configs
    for number, other in enumerate(others, 2):
        if type(other) is not type(first):
            raise ConfigError(
                f"model 1 has the architecture {first.architecture!r} and model {number} {other.architecture!r}: only models of one kind become "
                "one"
            )
        for field in dataclasses.fields(first):
            there, here = getattr(first, field.name), getattr(other, field.name)
            if there != here and field.name not in names and field.metadata != HOW:
                raise ConfigError(
                    f"model 1 has {field.name}={shown(there)} and model {number} {field.name}={shown(here)}: they become one only if it is equal"
                )
    return list(others)


def check_layers(config: ModelConfig) -> None:
    """Refuse more layers than a program can be made of.

    Raises:
      ConfigError: names both numbers.
    """
    require(
        config.n_layer <= MOST_LAYERS,
        f"n_layer={config.n_layer} must be at most {MOST_LAYERS}: layers are traced one by one",
    )


class Weight(NamedTuple):
    """A slow weight: declared once, and initialised, checked, counted and laid on a mesh from that."""

    axes: tuple[str, ...]
    """Logical names of its axes (``bdh_jax.parallel.axes.RULES``)."""
    shape: tuple[int, ...]
    init: Callable[..., jax.Array]
    """(key, shape, dtype) → array."""
    dtype: Any
    trained: bool = True
    """False: the optimiser leaves it alone, and no gradient reaches it."""

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices, not to rates, biases and scales."""
        return len(self.shape) >= 2

    def struct(self) -> jax.ShapeDtypeStruct:
        """Its shape and dtype, as ``jax.eval_shape`` gives them."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class LocalMap(NamedTuple):
    """A slow weight that maps one tap to another, y = x @ W: what a local learning rule changes."""

    path: tuple[str, ...]
    """Of the weight in the slow weights."""
    x: str
    """Tap of its inputs."""
    y: str
    """Tap of its outputs."""
    part: str
    """"attention" or "ffn"."""
    layer: int | None = None
    """The layer whose taps they are; None: the weight is shared, and those of all layers count."""
    inputs: int = 1
    """How many of the weight's axes, from the first on, are those of its inputs."""


@states.exportable
@flax.struct.dataclass
class ModelOutput:
    """What one call of a model returns.

    Attributes:
      logits: [B, T, V], float32 or wider.
      fast: with ``state="full"`` the :class:`FastState` after the last token, with "mean" the :class:`BatchMean`; None with "none", or of a
        model that keeps nothing.
      collected: name → [L, ...] for each name in ``collect``; of BDH [L, B, H, T, N], or [L, B, T, D] for "decoded" and "read".
      losses: name → scalar, what the model adds to the loss of its task.
      metrics: name → scalar, what it would like to be logged.
    """

    logits: jax.Array
    fast: FastState | BatchMean | None
    collected: dict[str, jax.Array]
    losses: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    metrics: dict[str, jax.Array] = flax.struct.field(default_factory=dict)

    def __repr__(self) -> str:
        return shapes(self)

    @property
    def carried(self) -> FastState:
        """``fast``, to go on from.

        Raises:
          ValueError: if the call returned no state, or the mean of a batch.
        """
        if not isinstance(self.fast, FastState):
            raise ValueError(
                f'there is no state to go on from but {type(self.fast).__name__}: it takes a model that keeps one, and state="full"'
            )
        return self.fast

    @property
    def activity(self) -> Activity | None:
        """``fast.activity``; None with ``state="none"`` or without fast weights."""
        return None if self.fast is None else self.fast.activity


class LayerOutput(NamedTuple):
    """What a block returns.

    Attributes:
      x: [B, T, D].
      state: the layer's state after the last token, or None where none is wanted.
      taps: name → array that probes and learning rules may ask for, without the layer axis.
      losses: name → scalar, summed over layers.
      metrics: name → scalar, averaged over layers.
    """

    x: jax.Array
    state: Any
    taps: dict[str, jax.Array]
    losses: dict[str, jax.Array] | None = None
    metrics: dict[str, jax.Array] | None = None


class Call(NamedTuple):
    """What all layers of one call share: arrays.

    Attributes:
      masks: as given.
      places: where the tokens stand.
      extra: what the architecture computes once for all layers (:meth:`Architecture.shared`).
    """

    masks: Masks
    places: Places
    extra: Any = None


class Setup(NamedTuple):
    """What is known of a call before anything is computed.

    Attributes:
      final: what is wanted of the state after the last token.
      collect: names of taps to return.
      by_token: whether the tokens go one by one.
      axes: mesh axes that arrays are split over, inside ``jax.shard_map``.
    """

    final: StateKind
    collect: tuple[str, ...] = ()
    by_token: bool = False
    axes: ShardAxes = ShardAxes()


class Inputs(NamedTuple):
    """The arrays of a call that the layers see.

    Attributes:
      x: [B, T, D], embedded tokens.
      fast: the state to go on from, or None for the start of an episode.
      masks: of the tokens.
      draws: random arrays of the layers (:meth:`Architecture.draws`), or None.
    """

    x: jax.Array
    fast: FastState | None
    masks: Masks
    draws: Any = None

    @property
    def carried(self) -> FastState:
        """``fast`` of a call that goes on from a state, as every call token by token does.

        Raises:
          ValueError: if there is none.
        """
        if self.fast is None:
            raise ValueError("this call starts an episode, and there is no state yet: give model.init_fast(B)")
        return self.fast


class Activations(NamedTuple):
    """What a training step holds and sends of activations, declared: enough to plan by.

    Attributes:
      once: of a call, such as random draws and logits.
      between: what each layer hands to the next.
      kept: what a layer keeps for its backward pass.
      peak: what else is there at once while the gradient of a layer is computed.
      over_rows: what a layer sums over all shards of rows, forward and backward.
      within_head: what it sums over the shards of a head's neurons, likewise.
      over_time: what it hands from one part of time to the next, likewise.
      multiply_adds: of a forward pass, for each token.
    """

    once: tuple[Leaf, ...]
    between: tuple[Leaf, ...]
    kept: tuple[Leaf, ...]
    peak: tuple[Leaf, ...]
    over_rows: tuple[Leaf, ...]
    within_head: tuple[Leaf, ...]
    over_time: tuple[Leaf, ...]
    multiply_adds: int


class Architecture(abc.ABC):
    """A model as declarations and functions. All of them are pure; ``config`` is all that an instance holds.

    Args:
      config: the model's configuration.
    """

    shards_rows: ClassVar[bool] = False
    """Whether its layers run inside ``jax.shard_map``, each shard with its own heads and neurons."""
    shares_weights: ClassVar[bool] = False
    """Whether all layers use the same weights."""
    outside: ClassVar[tuple[str, ...]] = ()
    """Names of slow weights that no layer uses: those of embed and readout."""
    taps: Mapping[str, tuple[str, ...]] = {}
    """Name of each tap → its logical axes, without that of the layers."""

    def __init__(self, config: Any):
        self.config = config

    # Declarations.

    @abc.abstractmethod
    def weights(self) -> dict[str, Any]:
        """The slow weights: a dict, nested as deep as you like, of :class:`Weight`."""

    def state(self, batch_size: int) -> FastState | None:
        """The state of an episode with a :class:`bdh_jax.parallel.axes.Leaf` in place of every array; None: nothing is kept."""
        del batch_size
        return None

    def local_maps(self) -> dict[str, LocalMap]:
        """Name → a linear map that local learning rules may change; none unless a model declares them."""
        return {}

    def sizes(self, batch_size: int) -> Sizes:
        """Lengths of the logical axes, from which declarations are made."""
        config = self.config
        lengths = {"batch": batch_size, "layer": config.n_layer, "model": config.d_model, "vocab": config.vocab_size}
        return Sizes(lengths, {"state": config.state_dtype, "compute": config.compute_dtype})

    def activations(self, batch: int, length: int, parts: int) -> Activations | None:
        """What training on B × T tokens holds of activations, T in so many parts; None: nobody declared it."""
        del batch, length, parts

    def check_machine(self, mesh: Mesh | None) -> None:
        """Refuse what cannot run here.

        Raises:
          ConfigError: names the setting and the remedy.
        """
        if self.config.dtype == "float64" and jnp.result_type(float) != jnp.float64:
            raise ConfigError(
                'dtype="float64" needs JAX\'s 64-bit mode: set JAX_ENABLE_X64=1 in the environment, or call '
                'jax.config.update("jax_enable_x64", True) before any array is made'
            )
        if mesh is not None:
            self.config.check_mesh(mesh.shape)
            self.config.check_time(mesh.shape)

    # The three functions.

    @abc.abstractmethod
    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T] → [B, T, D]."""

    @abc.abstractmethod
    def block(self, weights: Any, x: jax.Array, state: Any, call: Call, draws: Any, setup: Setup) -> LayerOutput:
        """One layer over [B, T, D].

        Args:
          weights: what :meth:`layer_weights` gives.
          x: the layer's input.
          state: the layer's state before the first token; None at the start of an episode.
          call: what all layers share.
          draws: the layer's random arrays, or None.
          setup: what is known before anything is computed.
        """

    @abc.abstractmethod
    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        """[B, T, D] → logits [B, T, V]."""

    # What usually stays as it is.

    @abc.abstractmethod
    def layer_weights(self, slow: Slow, index: int) -> Any:
        """The weights of layer ``index``: the same for all layers, or its own."""

    def views(self, slow: Slow) -> dict[str, jax.Array]:
        """Slow weights in another order, for calls of one token, made once: ``apply({"params": slow, "views": views}, …)``. A call without
        them gives the same."""
        del slow
        return {}

    def draws(self, key: jax.Array, batch: int, length: int) -> Any:
        """Random arrays of a call of B × T tokens, such as dropout masks. Their shapes are global, so that every mesh draws the same.

        Raises:
          ConfigError: for a model that has none, which therefore cannot drop anything out.
        """
        del key, batch, length
        raise ConfigError(
            f"dropout={self.config.dropout}: a model of {type(self).__name__} has no dropout; set it to 0, or define draws()"
        )

    def layer_draws(self, draws: Any, index: int) -> Any:
        """The part of layer ``index``."""
        return None if draws is None else jax.tree.map(lambda array: array[index], draws)

    def draw_axes(self) -> Any:
        """Logical axes of every array of :meth:`draws`, in a tree like it: for layers that run inside ``jax.shard_map`` or token by token."""
        return None

    def embed_draws(self, x: jax.Array, draws: Any) -> jax.Array:
        """The embedded tokens after dropout."""
        del draws
        return x

    def by_token(self, length: int) -> bool:
        """Whether a call of so many tokens goes token by token."""
        del length
        return False

    def shared(self, weights: Slow, inputs: Inputs, places: Places, setup: Setup) -> Any:
        """What is computed once for all layers of a call, such as rotary phases."""
        del weights, inputs, places, setup

    def finish(
        self, fast: FastState | None, layers: tuple[Any, ...], call: Call, setup: Setup, shared: Any = None
    ) -> FastState | BatchMean | None:
        """The state after the last token, from those of the layers and what they share."""
        del fast
        return finish_state(FastState(layers, shared, call.places.end_position), setup)

    def layers(self, weights: Slow, inputs: Inputs, setup: Setup) -> tuple[jax.Array, Any, _Seen]:
        """Layer after layer over the tokens at hand: x [B, T, D], the next state and what was seen on the way."""
        call = self.call(weights, inputs, setup)
        x, fast = inputs.x, inputs.fast
        outputs: list[LayerOutput] = []
        for index in range(self.config.n_layer):
            if index and self.shares_weights and (self.config.remat or setup.axes != WHOLE):
                # Backward this keeps apart the sums of the layers' gradients, which XLA would make one of all of them at the end.
                weights = jax.tree.map(jax.lax.optimization_barrier, weights)
            before = None if fast is None else fast.layers[index]
            draws = self.layer_draws(inputs.draws, index)
            output = self.run_block(setup)(self.layer_weights(weights, index), x, before, call, draws)
            chex.assert_shape(output.x, x.shape)
            x = output.x
            outputs.append(output)
        return x, self.finish(fast, tuple(o.state for o in outputs), call, setup), seen(outputs, setup)

    def call(self, weights: Slow, inputs: Inputs, setup: Setup) -> Call:
        """What all layers of a call share."""
        start = None if inputs.fast is None else inputs.fast.position
        batch, length, _ = inputs.x.shape
        found = places(inputs.masks, start, (batch, length), self.config.state_dtype, setup.axes)
        return Call(inputs.masks, found, self.shared(weights, inputs, found, setup))

    def run_block(self, setup: Setup) -> Callable[..., LayerOutput]:
        """:meth:`block` with its static part closed over, recomputed in the backward pass if the configuration says so."""
        block = functools.partial(self.block, setup=setup)
        return jax.checkpoint(block) if self.config.remat else block


_Seen = tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]


def seen(outputs: list[LayerOutput], setup: Setup) -> _Seen:
    """Taps that were asked for, stacked over the layers; losses summed and metrics averaged over them."""
    taps = {name: jnp.stack([output.taps[name] for output in outputs]) for name in setup.collect}
    losses = _sums([output.losses or {} for output in outputs])
    metrics = _sums([output.metrics or {} for output in outputs])
    return taps, losses, {name: total / len(outputs) for name, total in metrics.items()}


def _sums(of_layers: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return {name: functools.reduce(operator.add, (layer[name] for layer in of_layers)) for name in of_layers[0]}


class Model(nn.Module):
    """A model as a pure function of (slow, fast, tokens): ``model.apply({"params": slow}, tokens, fast)``.

    Attributes:
      config: of the model.
      mesh: device mesh of ``bdh_jax.parallel.mesh.make_mesh``; None computes on one device. It never changes the function.
    """

    config: ModelConfig
    mesh: Mesh | None = None

    if TYPE_CHECKING:
        # What Flax says of its method is that it returns anything.
        @overload
        def apply(
            self,
            variables: Mapping[str, Any],
            *args: Any,
            method: None = None,
            mutable: Literal[False] = False,
            **options: Any,
        ) -> ModelOutput: ...
        @overload
        def apply(
            self,
            variables: Mapping[str, Any],
            *args: Any,
            method: Literal["hidden"],
            mutable: Literal[False] = False,
            **options: Any,
        ) -> jax.Array: ...
        @overload
        def apply(self, variables: Mapping[str, Any], *args: Any, **options: Any) -> Any: ...
        def apply(self, variables: Mapping[str, Any], *args: Any, **options: Any) -> Any: ...

    @property
    def architecture(self) -> Architecture:
        """Its declarations and functions."""
        return self.config.make_architecture()

    def __call__(
        self,
        tokens: jax.Array,
        fast: FastState | None = None,
        *,
        valid: jax.Array | None = None,
        reset: jax.Array | None = None,
        write: jax.Array | None = None,
        state: StateKind = "full",
        collect: tuple[str, ...] = (),
        deterministic: bool = True,
    ) -> ModelOutput:
        """Process T tokens, from T = 1 (generation) to a whole prompt.

        Args:
          tokens: [B, T] integers in [0, V). Out-of-range ids raise when the values are known, that is outside ``jit``.
          fast: state to continue from; None starts an episode.
          valid: [B, T] bool. An invalid token does not write, decay, count, advance the position or become the previous
            address; its logits mean nothing. None: all valid.
          reset: [B, T] bool. A new episode starts at that token, as if from zeros. None: no resets.
          write: [B, T] bool. A token without it counts and reads, but neither writes nor lets decay what is written: frozen memory. None:
            all write.
          state: "full" returns the state after the last token; "none" forms none (training); "mean" returns the batch mean
            of what was written, for consolidation.
          collect: names of taps to return for every layer and token; BDH: "input" (x of the layer), "code", "gate", "gated" (their
            product), "address", "decoded" (what the decoder makes of it) and "read" (what fast weights and synapse add to that).
          deterministic: False applies dropout and other noise, and needs ``rngs={"dropout": key}``.

        Returns:
          :class:`ModelOutput`. ``apply({"params": slow, "logits": {"at": at}}, …)`` with ``at`` [B, A], integers in [0, T), forms logits of
          these tokens alone, [B, A, V].

        Raises:
          ValueError: for shapes, token ids, a state of another model, or names that do not fit; the message says which.
          ConfigError: for an implementation or kernel that cannot run here.
        """
        architecture = self.architecture
        architecture.check_machine(self.mesh)
        given = {"tokens": tokens, "valid": valid, "reset": reset, "write": write}
        tokens, *arrays = (_array(name, value) for name, value in given.items())
        masks = Masks(*arrays)
        collect = _names(collect)
        _check_arguments(architecture, tokens, fast, masks, state, collect)
        slow = self.slow_weights()
        # A model that keeps nothing has nothing to return.
        final = "none" if architecture.state(1) is None else state

        draws = None
        if self.config.draws_in_training and not deterministic:
            draws = architecture.draws(self.make_rng("dropout"), *tokens.shape)
        x = architecture.embed_draws(architecture.embed(slow, tokens), draws)
        inputs = Inputs(x, fast, masks, draws)
        x, fast, (taps, losses, metrics) = _run_layers(self, slow, inputs, final, collect)
        if (at := self.variables.get("logits", {}).get("at")) is not None:
            chex.assert_shape(at, (tokens.shape[0], None))
            x = jnp.take_along_axis(x, at[..., None], axis=1)
        logits = architecture.readout(slow, x)
        chex.assert_shape(logits, (*x.shape[:2], self.config.vocab_size))
        return ModelOutput(logits, fast, taps, losses, metrics)

    def hidden(
        self,
        tokens: jax.Array,
        *,
        valid: jax.Array | None = None,
        reset: jax.Array | None = None,
        write: jax.Array | None = None,
    ) -> jax.Array:
        """What logits are read from, [B, T, D], in an episode that starts here. ``architecture.readout`` makes logits of it, also of a part
        of the tokens, where those of all would be too large. Arguments and errors are those of a call."""
        architecture = self.architecture
        architecture.check_machine(self.mesh)
        masks = Masks(valid, reset, write)
        _check_arguments(architecture, tokens, None, masks, "none", ())
        slow = self.slow_weights()
        x = architecture.embed_draws(architecture.embed(slow, tokens), None)
        return _run_layers(self, slow, Inputs(x, None, masks, None), "none", ())[0]

    @nn.compact
    def slow_weights(self) -> Slow:
        """The slow weights, declared to Flax. What is not trained gets no gradient. Views of them (:meth:`Architecture.views`) stand
        beside them where they are given."""
        slow = _declare(self, self.architecture.weights())
        return {**slow, **self.variables.get("views", {})}

    def init_slow(self, key: jax.Array) -> Slow:
        """The slow weights to start from: ``init(key, tokens)["params"]`` for any tokens, without a pass through the model."""
        self.architecture.check_machine(self.mesh)
        return dict(self.init(key, method="slow_weights")["params"])

    def init_fast(self, batch_size: int) -> FastState:
        """The state at the start of an episode, for ``batch_size`` examples.

        Raises:
          ValueError: for a model that keeps no state, or an empty batch.
        """
        return states.zeros(self.declared_fast(batch_size))

    def declared_fast(self, batch_size: int) -> FastState:
        """The state with a declaration in place of every array; raises as :meth:`init_fast`."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        declared = self.architecture.state(batch_size)
        if declared is None:
            name = type(self.config).__name__.removesuffix("Config")
            raise ValueError(f"a {name} keeps no state from call to call; give none")
        return declared

    def declared_slow(self) -> dict[str, Any]:
        """The slow weights with a :class:`Weight` in place of every array."""
        return self.architecture.weights()


class _Group(nn.Module):
    """Slow weights under one name."""

    declared: Any

    @nn.compact
    def __call__(self) -> Slow:
        return _declare(self, self.declared)


def _declare(module: nn.Module, declared: Mapping[str, Any]) -> Slow:
    slow: Slow = {}
    for name, weight in declared.items():
        if isinstance(weight, Mapping):
            slow[name] = _Group(nn.FrozenDict(weight), name=name)()
            continue
        if not module.is_initializing() and not module.has_variable("params", name):
            path = (*module.path, name)
            raise ValueError(
                f"the slow weights have no {'.'.join(path)!r} {weight.shape}, which this configuration declares; add the one to start from: "
                f"model.init_slow(jax.random.key(0)){''.join(f'[{part!r}]' for part in path)}, or change the configuration"
            )
        array = module.param(name, weight.init, weight.shape, weight.dtype)
        slow[name] = array if weight.trained else jax.lax.stop_gradient(array)
    return slow


def _run_layers(
    model: Model, slow: Slow, inputs: Inputs, final: StateKind, collect: tuple[str, ...]
) -> tuple[jax.Array, Any, _Seen]:
    """All layers; on a mesh inside ``jax.shard_map`` where the architecture says so, so that no collective moves an N-sized array."""
    architecture, mesh = model.architecture, model.mesh
    if mesh is not None and inputs.x.shape[1] % mesh.shape["sequence"]:
        return _padded(model, slow, inputs, final, collect)
    batch, length, _ = inputs.x.shape
    length //= 1 if mesh is None else mesh.shape["sequence"]
    by_token = architecture.by_token(length)
    if by_token and inputs.fast is None:
        inputs = inputs._replace(fast=model.init_fast(batch))
    setup = Setup(final, collect, by_token)
    core = _token_by_token if by_token and length > 1 else _all_at_once
    if mesh is None or not architecture.shards_rows:
        return core(architecture, slow, inputs, setup)
    setup = setup._replace(axes=shard_axes(mesh))

    declared, slow = (
        {k: v for k, v in tree.items() if k not in architecture.outside} for tree in (architecture.weights(), slow)
    )
    rows = mesh_axes.spec_of(("batch", "time"), mesh)
    fast_specs = None if inputs.fast is None else mesh_axes.specs(model.declared_fast(batch), mesh)
    draws = None
    if inputs.draws is not None:
        draws = jax.tree.map(lambda _, axes: mesh_axes.spec_of(axes, mesh), inputs.draws, architecture.draw_axes())
    final_specs = None
    if final == "full":
        final_specs = mesh_axes.specs(model.declared_fast(batch), mesh)
    elif final == "mean":
        final_specs = mesh_axes.specs(states.declared_mean(model.declared_fast(batch)), mesh, batched=False)
    tap_specs = {name: mesh_axes.spec_of(("layer", *architecture.taps[name]), mesh) for name in collect}

    def on_shard(slow: Slow, inputs: Inputs) -> tuple[jax.Array, Any, _Seen]:
        # Here once, and not at every use of a weight, so that gradients cross the mesh once, summed over layers and tokens.
        slow = jax.tree.map(lambda weight: vary_like(weight, inputs.x), slow)
        x, fast, (taps, losses, metrics) = core(architecture, slow, inputs, setup)
        losses, metrics = jax.tree.map(setup.axes.mean_over_tokens, (losses, metrics))
        return x, fast, (taps, losses, metrics)

    return jax.shard_map(
        on_shard,
        mesh=mesh,
        in_specs=(mesh_axes.specs(declared, mesh), Inputs._make((rows, fast_specs, Masks._make((rows, rows, rows)), draws))),
        out_specs=(rows, final_specs, (tap_specs, P(), P())),
        # JAX's kernel interpreter mixes indices that differ between shards with ones that do not, which the check refuses.
        check_vma=getattr(model.config, "kernel", None) != "pallas_interpret",
    )(slow, inputs)


def _padded(
    model: Model, slow: Slow, inputs: Inputs, final: StateKind, collect: tuple[str, ...]
) -> tuple[jax.Array, Any, _Seen]:
    """The layers over tokens that the parts of time do not divide: invalid ones, which change nothing, fill the last part."""
    architecture, mesh = model.architecture, model.mesh
    batch, length, _ = inputs.x.shape
    more = -length % (1 if mesh is None else mesh.shape["sequence"])

    def longer(array: jax.Array, time: int) -> jax.Array:
        return jnp.pad(array, [(0, more if axis == time else 0) for axis in range(array.ndim)])

    valid = jnp.ones((batch, length), bool) if inputs.masks.valid is None else inputs.masks.valid
    masks = jax.tree.map(lambda mask: longer(mask, 1), inputs.masks._replace(valid=valid))
    draws = inputs.draws
    if draws is not None:
        draws = jax.tree.map(lambda array, axes: longer(array, axes.index("time")), draws, architecture.draw_axes())
    padded = Inputs(longer(inputs.x, 1), inputs.fast, masks, draws)
    x, fast, (taps, losses, metrics) = _run_layers(model, slow, padded, final, collect)
    for name, array in taps.items():
        time = 1 + architecture.taps[name].index("time")
        taps[name] = jax.lax.slice_in_dim(array, 0, length, axis=time)
    losses = {name: value * ((length + more) / length) for name, value in losses.items()}
    return x[:, :length], fast, (taps, losses, metrics)


def _all_at_once(architecture: Architecture, slow: Slow, inputs: Inputs, setup: Setup) -> tuple[jax.Array, Any, _Seen]:
    return architecture.layers(slow, inputs, setup)


def _token_by_token(architecture: Architecture, slow: Slow, inputs: Inputs, setup: Setup) -> tuple[jax.Array, Any, _Seen]:
    """``jax.lax.scan`` over tokens with the fast state as its explicit carry; each token runs through all layers."""
    one = setup._replace(final="full")

    def step(fast: FastState, token: tuple[jax.Array, Masks, Any]) -> tuple[FastState, tuple[jax.Array, _Seen]]:
        x, masks, draws = token
        x, fast, seen = architecture.layers(slow, Inputs(x, fast, masks, draws), one)
        return fast, (x, seen)

    # Each token keeps a time axis of length 1; absent masks stay None.
    x = jnp.moveaxis(inputs.x, 1, 0)[:, :, None]
    masks = jax.tree.map(lambda mask: mask.T[..., None], inputs.masks)
    draws = None
    if inputs.draws is not None:
        draws = jax.tree.map(_time_first, inputs.draws, architecture.draw_axes())
    fast, (x, (taps, losses, metrics)) = jax.lax.scan(step, inputs.carried, (x, masks, draws))
    x = jnp.moveaxis(x[:, :, 0], 0, 1)
    for name, array in taps.items():
        time = 1 + architecture.taps[name].index("time")
        taps[name] = jnp.moveaxis(jnp.squeeze(array, time + 1), 0, time)
    losses, metrics = ({name: jnp.mean(values) for name, values in named.items()} for named in (losses, metrics))
    return x, finish_state(fast, setup), (taps, losses, metrics)


def _time_first(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The array with time in front, and a time axis of length 1 where it was."""
    time = axes.index("time")
    return jnp.expand_dims(jnp.moveaxis(array, time, 0), time + 1)


def finish_state(fast: FastState, setup: Setup) -> FastState | BatchMean | None:
    """The state that a caller asked for, from the full one."""
    if setup.final == "none":
        return None
    return mean_over_mesh(batch_mean(fast), setup) if setup.final == "mean" else fast


def mean_over_mesh(mean: BatchMean, setup: Setup) -> BatchMean:
    """The mean over the whole batch, from that of the examples at hand."""
    return jax.tree.map(setup.axes.mean_over_batch, mean)


def count_parameters(declared: Mapping[str, Any]) -> int:
    """Numbers that declared weights hold."""
    return sum(math.prod(weight.shape) for _, weight in named_weights(declared))


def named_weights(declared: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Weight]]:
    """Every declared weight with its path."""
    for name, weight in declared.items():
        if isinstance(weight, Mapping):
            yield from named_weights(weight, (*path, name))
        else:
            yield (*path, name), weight


def _array(name: str, value: Any) -> Any:
    """The array that was given, or lists as one; of masks, also None."""
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except ValueError:
            raise ValueError(f"{name} is a list of rows of different lengths; pad them to one length [B, T]") from None
    if not (hasattr(value, "shape") and hasattr(value, "dtype")) and (value is not None or name == "tokens"):
        kind = "integers" if name == "tokens" else "bool"
        raise ValueError(f"{name} is a {type(value).__name__}; it must be an array of {kind}, [B, T]")
    return value


def _names(collect: Any) -> tuple[str, ...]:
    if isinstance(collect, list | tuple) and all(isinstance(name, str) for name in collect):
        return tuple(collect)
    raise ValueError(f"collect={shown(collect)} must be a tuple of names, such as ('code',)")


def _check_arguments(
    architecture: Architecture,
    tokens: jax.Array,
    fast: FastState | None,
    masks: Masks,
    state: StateKind,
    collect: tuple[str, ...],
) -> None:
    vocab_size = architecture.config.vocab_size
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens has shape {tokens.shape} and dtype {tokens.dtype}; it must be integers [B, T]")
    batch, length = tokens.shape
    if length < 1 or batch < 1:
        raise ValueError(f"tokens is empty, {tokens.shape}: B and T must be at least 1")
    if not isinstance(tokens, Tracer):
        ids = np.asarray(tokens)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise ValueError(f"token id {bad} is outside the vocabulary of vocab_size={vocab_size}: ids are 0 … V − 1")
    for name, mask in masks._asdict().items():
        if mask is not None and (mask.shape != (batch, length) or mask.dtype != bool):
            raise ValueError(f"{name} has shape {mask.shape} and dtype {mask.dtype}; it must be bool [{batch}, {length}]")
    if not isinstance(state, str) or state not in ("full", "none", "mean"):
        raise ValueError(f"state={shown(state)} is not one of 'full', 'none', 'mean'")
    declared = architecture.state(batch)
    name = type(architecture).__name__
    if state == "mean" and (declared is None or not declared.has_memory):
        raise ValueError('state="mean" is the batch mean of the fast weights, and this model has none (fast.enabled=False)')
    for tap in collect:
        if tap not in architecture.taps:
            valid = ", ".join(architecture.taps) or "nothing"
            raise ValueError(f"collect names {tap!r}; this model can return {valid}")
    if fast is not None:
        if declared is None:
            raise ValueError(f"fast is given, but {name} keeps no state from call to call; leave it out")
        _check_state(fast, declared, batch)


def _check_state(fast: Any, declared: FastState, batch: int) -> None:
    if isinstance(fast, BatchMean):
        raise ValueError(
            'fast is a BatchMean: a state made with state="mean" cannot be continued; start from model.init_fast(B)'
        )
    if not isinstance(fast, FastState):
        hint = "; pass its .fast" if hasattr(fast, "fast") else ""
        raise ValueError(f"fast is a {type(fast).__name__} and must be a FastState{hint}")
    states.check(
        fast, declared, f"continue it with the model that made it and its batch of {batch}, or start from model.init_fast(B)"
    )
