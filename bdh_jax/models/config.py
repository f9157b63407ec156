"""Settings of the models."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp

from bdh_jax.config.base import ConfigError, check_types, require, require_choice
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.parallel.mesh import MeshConfig

Attention = Literal["rope", "shift"]
Implementation = Literal["auto", "recurrent", "chunked", "parallel"]
Kernel = Literal["auto", "xla", "pallas", "pallas_interpret"]
DType = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True)
class BDHConfig:
    """The model. Defaults are the published 25 M parameter size with bytes as tokens (arXiv 2509.26507)."""

    vocab_size: int = 256
    n_layer: int = 6
    d_model: int = 256
    n_head: int = 4
    n_neurons: int = 32768
    """Neurons over all heads; each head has n_neurons / n_head, which must be even for the rotary pairs."""
    dropout: float = 0.1
    dtype: DType = "float32"
    """Compute dtype. Parameters and fast weights are float32 (float64 when this is float64)."""
    init_std: float = 0.02
    rope_theta: float = 65536.0
    attention: Attention = "rope"
    """"rope" is BDH. "shift" replaces rotated keys by the previous token's un-rotated code, the control for λ = 1."""
    attention_decay: tuple[float, ...] = (1.0,)
    """In (0, 1], what a valid token leaves of the attention's state, for all heads or one for each. 1 is the published code; the
    paper's matrix U may damp as well as rotate. Below 1 a head sees about the last 1 / (1 − decay) tokens, and so do addresses
    made of its gated codes."""
    implementation: Implementation = "auto"
    kernel: Kernel = "auto"
    chunk_size: int = 128
    """Tokens per chunk of the chunked form."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    fast: FastWeightConfig = FastWeightConfig()

    def __post_init__(self):
        check_types(self)
        if not isinstance(self.fast, FastWeightConfig):
            raise ConfigError(f"fast={self.fast!r} must be a FastWeightConfig, such as FastWeightConfig(rule='delta')")
        decays = self.attention_decay if isinstance(self.attention_decay, list | tuple) else (self.attention_decay,)
        object.__setattr__(self, "attention_decay", tuple(decays))
        for name in ("vocab_size", "n_layer", "d_model", "n_head", "n_neurons", "chunk_size"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(
            self.n_neurons % self.n_head == 0,
            f"n_neurons={self.n_neurons} is not divisible by n_head={self.n_head}; use n_neurons={self._round_neurons()}",
        )
        require(
            (self.n_neurons // self.n_head) % 2 == 0,
            f"n_neurons={self.n_neurons} with n_head={self.n_head} gives an odd number of neurons per head, and the rotary "
            f"embedding pairs them; use n_neurons={self._round_neurons()}",
        )
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require(self.rope_theta > 1, f"rope_theta={self.rope_theta} must be greater than 1")
        require_choice("dtype", self.dtype, DType)
        require_choice("attention", self.attention, Attention)
        require(
            len(self.attention_decay) in (1, self.n_head) and all(0 < decay <= 1 for decay in self.attention_decay),
            f"attention_decay={self.attention_decay} must be numbers in (0, 1]: one for all heads, or one for each of "
            f"n_head={self.n_head}",
        )
        require_choice("implementation", self.implementation, Implementation)
        require_choice("kernel", self.kernel, Kernel)
        if self.shared_across_layers:
            require(
                self.implementation in ("auto", "recurrent"),
                f'implementation={self.implementation!r} cannot run fast.scope="shared" with n_layer={self.n_layer}: a layer '
                'reads what earlier layers wrote at the same token, so only implementation="recurrent" (or "auto") exists',
            )
        elif self.memory_is_recurrent:
            what = (
                'fast.rule="mesa"' if self.fast.rule == "mesa" else "limits on S (fast.clamp, fast.threshold, fast.row_norm)"
            )
            require(
                self.implementation in ("auto", "recurrent"),
                f"implementation={self.implementation!r} cannot run {what}: there is only the form token by token; use "
                'implementation="recurrent" (or "auto")',
            )

    def check_mesh(self, mesh: MeshConfig) -> None:
        """Check that the model can be spread over a mesh.

        Raises:
          ConfigError: names what does not divide, or has to stay together.
        """
        require(
            self.n_head % mesh.heads == 0,
            f"mesh.heads={mesh.heads} does not divide model.n_head={self.n_head}: whole heads are spread over it",
        )
        pairs = 2 if self.attention == "rope" else 1
        require(
            self.neurons_per_head % (pairs * mesh.neurons) == 0,
            f"mesh.neurons={mesh.neurons} does not divide the {self.neurons_per_head} neurons of a head "
            f"(model.n_neurons={self.n_neurons}, model.n_head={self.n_head})"
            + (" into even parts, and the rotary embedding pairs them" if pairs == 2 else ""),
        )
        for name in ("heads", "neurons"):
            require(
                getattr(mesh, name) == 1 or not (self.fast.enabled and self.fast.has_gram),
                f'mesh.{name}={getattr(mesh, name)} splits the rows that model.fast.rule="mesa" and model.fast.keep_gram need '
                "together; set it to 1",
            )

    @property
    def has_state(self) -> bool:
        """Whether a call can go on from the state that another left."""
        return True

    @property
    def has_fast_weights(self) -> bool:
        """Whether there are fast weights, to consolidate."""
        return self.fast.enabled

    def _round_neurons(self) -> int:
        step = 2 * self.n_head
        return max(step, round(self.n_neurons / step) * step)

    @property
    def neurons_per_head(self) -> int:
        """N = n_neurons / n_head."""
        return self.n_neurons // self.n_head

    @property
    def shared_across_layers(self) -> bool:
        """Whether several layers write into one S, which makes the model sequential in time."""
        return self.fast.enabled and self.fast.scope == "shared" and self.n_layer > 1

    @property
    def memory_is_recurrent(self) -> bool:
        """Whether the fast weights have the form token by token only."""
        return self.fast.enabled and (self.fast.rule == "mesa" or self.fast.limited)

    @property
    def memory_slots(self) -> int:
        """How many S there are: one a layer, or one."""
        return 1 if self.fast.scope == "shared" else self.n_layer

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Dtype of activations."""
        return jnp.dtype(self.dtype)

    @property
    def state_dtype(self) -> jnp.dtype:
        """Dtype of parameters, fast weights, attention state and rotary phases: at least float32."""
        return jnp.promote_types(jnp.float32, self.dtype)


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The baseline: a GPT with layer norms before its parts and rotary positions (``bdh_jax.models.gpt``)."""

    architecture: Literal["gpt"] = "gpt"
    vocab_size: int = 256
    n_layer: int = 6
    d_model: int = 384
    n_head: int = 6
    width_factor: int = 4
    """Width of the hidden layer of an MLP, in ``d_model``."""
    dropout: float = 0.1
    dtype: DType = "float32"
    """Compute dtype. Parameters are float32 (float64 when this is float64)."""
    init_std: float = 0.02
    rope_theta: float = 10000.0
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self):
        for name in ("vocab_size", "n_layer", "d_model", "n_head", "width_factor"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(
            self.d_model % (2 * self.n_head) == 0,
            f"d_model={self.d_model} is not divisible by 2 · n_head={2 * self.n_head}: every head has an even width, as rotary "
            "positions need",
        )
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require(self.rope_theta > 1, f"rope_theta={self.rope_theta} must be greater than 1")
        require_choice("dtype", self.dtype, DType)

    def check_mesh(self, mesh: MeshConfig) -> None:
        """Check that the model can be spread over a mesh: examples can be.

        Raises:
          ConfigError: for an axis that a GPT has not.
        """
        for name in ("heads", "neurons"):
            require(
                getattr(mesh, name) == 1,
                f"mesh.{name}={getattr(mesh, name)}: a GPT is spread by examples alone; set it to 1",
            )

    @property
    def has_state(self) -> bool:
        """A GPT reads every window from its start."""
        return False

    @property
    def has_fast_weights(self) -> bool:
        """A GPT has none."""
        return False

    @property
    def fast(self) -> FastWeightConfig:
        """A GPT has no fast weights."""
        return FastWeightConfig(enabled=False)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Dtype of activations."""
        return jnp.dtype(self.dtype)

    @property
    def state_dtype(self) -> jnp.dtype:
        """Dtype of parameters: at least float32."""
        return jnp.promote_types(jnp.float32, self.dtype)


ModelConfig = BDHConfig | GPTConfig
