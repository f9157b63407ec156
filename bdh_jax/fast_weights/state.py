"""The state an episode carries: fast weights, attention state, and which rows were used.

Axis letters, here and everywhere: B batch, T time, L layer, H head, N neurons per head, D model width, V vocabulary;
K = H·N neurons in all.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.fast_weights.rules.tokenwise import ridge_solution
from bdh_jax.models.config import BDHConfig


@flax.struct.dataclass
class Activity:
    """How much each row of the fast weights was used in this episode. It is what a consolidation function looks at.

    Attributes:
      strength: [L, B, H, N], the sum over valid tokens of the address, of its size where it may be negative.
      energy: [L, B, H, N], the sum over valid tokens of the squared norm of the row that the Hebbian rule writes, ‖η k_i x‖², or
        ‖η β k_i x‖² with a gate. Rules that write what is not predicted yet write less than that.
      count: [B], the number of valid tokens, in the dtype of the others.
    """

    strength: jax.Array
    energy: jax.Array
    count: jax.Array


@flax.struct.dataclass
class FastState:
    """Everything an episode carries from one call of the model to the next. Nothing is hidden and nothing is in place.

    With ``state="mean"`` the batch axis has length 1, only ``memory``, ``gram`` and ``activity`` are present, and the state serves
    consolidation, not continuation.

    Attributes:
      attention: [L, B, H, N, D], linear-attention state ρ = Σ rope(code) ⊗ x, in the fixed rotary frame.
      memory: [L, B, H, N, D] ([1, ...] when shared), stored form of the fast weights; read it through
        :meth:`effective_memory`. None without fast weights.
      gram: [L, B, K, K] ([1, ...] when shared), Σ η k ⊗ k, decayed as S is; of rule "mesa", or with ``keep_gram``. None otherwise.
      previous_address: [L, B, H, N], address of the last valid token. None unless the address is "previous".
      previous_code: [L, B, H, N], code of the last valid token. None unless the attention is "shift".
      position: [B] int32, valid tokens since the episode's start.
      activity: :class:`Activity`, None without fast weights.
      ridge: of rule "mesa", 0 for the others.
    """

    attention: jax.Array | None
    memory: jax.Array | None
    previous_address: jax.Array | None
    previous_code: jax.Array | None
    position: jax.Array | None
    activity: Activity | None
    gram: jax.Array | None = None
    ridge: float = flax.struct.field(pytree_node=False, default=0.0)

    def effective_memory(self) -> jax.Array:
        """What an address reads, [L, B, H, N, D] (or [1, B, H, N, D] when shared by all layers): S, or (G + ridge)⁻¹ S of "mesa".

        Raises:
          ValueError: if the model has no fast weights.
        """
        if self.memory is None:
            raise ValueError("this state has no fast weights: the model was configured with fast.enabled=False")
        return self.memory if self.ridge == 0 else ridge_solution(self.gram, self.memory, self.ridge)

    def select(self, indices: jax.Array) -> FastState:
        """The examples ``indices`` [B'] of the batch, in that order; repeats are allowed.

        Raises:
          ValueError: for a mask, and for an index outside the batch where its value is known, that is outside ``jit``.
        """
        indices = jnp.asarray(indices)
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(
                f"indices has dtype {indices.dtype}; name examples by number (of a mask: jnp.flatnonzero(mask))"
            )
        if not isinstance(indices, jax.core.Tracer) and indices.size:
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self._batch_size:
                raise ValueError(f"index {low if low < 0 else high} is outside the batch of {self._batch_size} examples")
        return self._map(lambda leaf, axis: jnp.take(leaf, indices, axis=axis))

    def detach(self) -> FastState:
        """The same state without gradients to what produced it (truncated backpropagation through time)."""
        return jax.lax.stop_gradient(self)

    def reset(self, where: jax.Array | None = None) -> FastState:
        """Zeros for the examples where ``where`` [B] is true: their next token starts a new episode. None resets all.

        Raises:
          ValueError: if ``where`` is not one bool for each example.
        """
        if where is None:
            return jax.tree.map(jnp.zeros_like, self)
        where = jnp.asarray(where, bool)
        if where.shape != (self._batch_size,):
            raise ValueError(f"where has shape {where.shape}; it must be one bool for each example, [{self._batch_size}]")

        def clear(leaf: jax.Array, axis: int) -> jax.Array:
            shape = [1] * leaf.ndim
            shape[axis] = -1
            return jnp.where(where.reshape(shape), jnp.zeros((), leaf.dtype), leaf)

        return self._map(clear)

    @property
    def _batch_size(self) -> int:
        return (self.attention if self.memory is None else self.memory).shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def _map(self, function) -> FastState:
        """Apply ``function(leaf, batch_axis)``: arrays of one axis are [B], all others [L, B, ...]."""
        return jax.tree.map(lambda leaf: function(leaf, 0 if leaf.ndim == 1 else 1), self)


def zeros(config: BDHConfig, batch_size: int) -> FastState:
    """The state at the start of an episode.

    Args:
      config: the model's configuration.
      batch_size: B.

    Returns:
      A :class:`FastState` of zeros, floating leaves in ``config.state_dtype``, addresses in ``config.compute_dtype``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    rows = (config.n_layer, batch_size, config.n_head, config.neurons_per_head)
    fast = config.fast
    code = jnp.zeros(rows, config.compute_dtype)
    memory_shape = (config.memory_slots, *rows[1:], config.d_model)
    return FastState(
        attention=jnp.zeros((*rows, config.d_model), config.state_dtype),
        memory=jnp.zeros(memory_shape, config.state_dtype) if fast.enabled else None,
        gram=jnp.zeros((config.memory_slots, batch_size, config.n_neurons, config.n_neurons), config.state_dtype)
        if fast.enabled and fast.has_gram
        else None,
        ridge=fast.state_ridge,
        previous_address=code if fast.enabled and fast.address == "previous" else None,
        previous_code=code if config.attention == "shift" else None,
        position=jnp.zeros((batch_size,), jnp.int32),
        activity=Activity(
            strength=jnp.zeros(rows, config.state_dtype),
            energy=jnp.zeros(rows, config.state_dtype),
            count=jnp.zeros((batch_size,), config.state_dtype),
        )
        if fast.enabled
        else None,
    )


class LayerState(NamedTuple):
    """One layer's part of :class:`FastState`, without its leading layer axis. None: zeros, or not used."""

    attention: jax.Array | None = None
    memory: jax.Array | None = None
    gram: jax.Array | None = None
    previous_address: jax.Array | None = None
    previous_code: jax.Array | None = None
    strength: jax.Array | None = None
    energy: jax.Array | None = None


def layer_state(fast: FastState | None, index: int) -> LayerState:
    """The part of layer ``index``; of a shared S only the first layer has it."""
    if fast is None:
        return LayerState()
    activity = fast.activity
    memory, gram = (None if a is None or index >= a.shape[0] else a[index] for a in (fast.memory, fast.gram))
    return LayerState(
        attention=fast.attention[index],
        memory=memory,
        gram=gram,
        previous_address=None if fast.previous_address is None else fast.previous_address[index],
        previous_code=None if fast.previous_code is None else fast.previous_code[index],
        strength=None if activity is None else activity.strength[index],
        energy=None if activity is None else activity.energy[index],
    )


def check(fast: FastState, config: BDHConfig, batch_size: int) -> None:
    """Refuse a state that does not belong to this model and batch.

    Raises:
      ValueError: naming the leaf, its shape or dtype and those expected.
    """
    if not isinstance(fast, FastState):
        hint = "; pass its .fast" if hasattr(fast, "fast") else ""
        raise ValueError(f"fast is a {type(fast).__name__} and must be a FastState{hint}")
    if fast.ridge != config.fast.state_ridge:
        raise ValueError(
            f"fast is a state of fast.ridge={fast.ridge}, but this model has {config.fast.state_ridge} (0 for rules other than mesa); "
            "continue it with the model that made it"
        )
    expected = jax.eval_shape(lambda: zeros(config, batch_size))
    for field in dataclasses.fields(FastState):
        if not field.metadata.get("pytree_node", True):
            continue
        want, have = getattr(expected, field.name), getattr(fast, field.name)
        if (want is None) != (have is None):
            problem = "is missing" if have is None else "should be absent"
            hint = ' (a state made with state="mean" cannot be continued)' if have is None else ""
            raise ValueError(
                f"fast.{field.name} {problem} for this model configuration{hint}; start from model.init_fast(B)"
            )
        for w, h in zip(jax.tree.leaves(want), jax.tree.leaves(have), strict=True):
            if w.shape != jnp.shape(h):
                raise ValueError(
                    f"fast.{field.name} has shape {jnp.shape(h)}, but this model with a batch of {batch_size} needs {w.shape}"
                )
            if w.dtype != jnp.result_type(h):
                raise ValueError(
                    f"fast.{field.name} is {jnp.result_type(h)}, but this model (dtype={config.dtype!r}) carries {w.dtype}; continue the "
                    "state with the model that made it, or cast it"
                )
