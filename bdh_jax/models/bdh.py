"""BDH with fast weights.

One layer, applied L times with the same weights (arXiv 2509.26507 and its published code):

    code = relu(x @ encoder)                                   sparse, positive; with code_top_k = k what the k largest have
                                                               above the next one
    a    = LN(Σ_{s<t} μ^(t−s−1) (rope(code_t) · rope(code_s)) x_s)   linear attention, strictly past; μ = 1 unless configured
    gate = relu(a @ encoder_v)
    y    = LN((code * gate) @ decoder + r)
    x    = LN(x + y)

with r the read of the fast weights S (per layer and example, [H, N, D]; bdh_jax/fast_weights/memory.py):

    address a_t = norm(code_t)                                 or of code * gate, or of gate
    read    r_t = a_t @ (synapse + S_t)                        read before write
    write   S_{t+1} = λ S_t + η k_t ⊗ x_t                      k_t = a_{t−1}, or a_t; or another rule (bdh_jax/fast_weights/rules)

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bdh_jax.config import ConfigError, check_types, require, require_choice, require_sizes
from bdh_jax.config.identity import HOW
from bdh_jax.fast_weights.addresses import carried_over, scores_of_previous, shift_to_previous
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.fast_weights.masks import Places, keep
from bdh_jax.fast_weights.memory import Call as MemoryCall
from bdh_jax.fast_weights.memory import MemorySetup, MemoryWeights, read_and_write
from bdh_jax.fast_weights.state import (
    BatchMean,
    FastState,
    LayerState,
    MeanLayer,
    Memory,
    RecentWrites,
    Sizes,
    TokenSteps,
    Use,
    declare,
)
from bdh_jax.kernels import token_step
from bdh_jax.kernels.fast_weight_scan import dispatch, fast_weight_scan, own_scores
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Stretch
from bdh_jax.kernels.fast_weight_scan.dispatch import Form
from bdh_jax.layers.activity import above_the_rest, active_share
from bdh_jax.layers.norm import layer_norm
from bdh_jax.layers.projections import decode, encode, encode_by_head
from bdh_jax.layers.rotary import rope, rope_angles, rope_frequencies
from bdh_jax.models.base import (
    Activations,
    Architecture,
    Call,
    DType,
    Inputs,
    Joined,
    LayerOutput,
    LocalMap,
    Model,
    ModelConfig,
    RowAxis,
    Setup,
    Weight,
    check_layers,
    finish_state,
    mean_over_mesh,
    same_but,
    seen,
)
from bdh_jax.models.token_step import TokenStepConfig, count_step, make_room, with_slots, without_slots
from bdh_jax.parallel.axes import Leaf
from bdh_jax.parallel.collectives import vary_like
from bdh_jax.types import Slow

Attention = Literal["rope", "shift"]
Implementation = Literal["auto", "recurrent", "chunked", "parallel"]
Kernel = Literal["auto", "xla", "pallas", "pallas_interpret"]
_JOINED: dict[RowAxis, tuple[str, ...]] = {
    "neuron": ("n_neurons", "rope_period", "code_top_k"),
    "head": ("n_neurons", "n_head", "attention_decay", "code_top_k"),
}
"""What may differ between models that are joined along an axis."""


@dataclasses.dataclass(frozen=True)
class BDHConfig(ModelConfig):
    """The model. Defaults are the published 25 M parameter size with bytes as tokens (arXiv 2509.26507)."""

    architecture: str = "bdh"
    vocab_size: int = 256
    n_layer: int = 6
    """L, times that the one layer is applied."""
    d_model: int = 256
    n_head: int = 4
    """H, heads, each with its own neurons and attention."""
    n_neurons: int = 32768
    """Neurons over all heads; each head has n_neurons / n_head, which must be even for the rotary pairs."""
    dropout: float = 0.1
    dtype: DType = "float32"
    """Compute dtype. Parameters and fast weights are float32 (float64 when this is float64)."""
    code_top_k: int | None = None
    """k: of a token's code, over all heads, the k largest numbers are left, less the next largest, so that at most k neurons are active
    and a rounding moves a code by a rounding. The limit carries no gradient. None leaves the code as it is."""
    activity_penalty: float = 0.0
    """Added to the loss, times (Σ code)² / (K Σ code²), the share of neurons that would be active if all active ones were equally so, in
    the mean over layers and tokens (Hoyer-square; Yang, Wen, Li, DeepHoyer, ICLR 2020). It does not change with the scale of the code."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    rope_theta: float = 65536.0
    """Base of the rotary wavelengths: the largest is about 2π times as many tokens."""
    rope_period: int | None = None
    """Neurons of a head over which the rotary frequencies fall from the fastest to the slowest, before they begin again; None: all of
    them. A model that was merged or has grown (``bdh_jax.analysis.merging``) keeps the phases that its neurons were trained with so."""
    attention: Attention = "rope"
    """"rope" is BDH. "shift" replaces rotated keys by the previous token's un-rotated code, the control for λ = 1."""
    attention_decay: tuple[float, ...] = (1.0,)
    """In (0, 1], what a valid token leaves of the attention's state, for all heads or one for each. 1 is the published code; the
    paper's matrix U may damp as well as rotate. Below 1 a head sees about the last 1 / (1 − decay) tokens, and so do addresses
    made of its gated codes."""
    learn_attention_decay: bool = False
    """Learn μ per head, in logit space, from ``attention_decay``."""
    implementation: Implementation = dataclasses.field(default="auto", metadata=HOW)
    """Form of the computation: token by token, in chunks, or all at once. It changes speed, never the function; "auto" chooses."""
    kernel: Kernel = dataclasses.field(default="auto", metadata=HOW)
    """What computes it: XLA, or Pallas on an accelerator. It changes speed, never the function; "auto" chooses."""
    chunk_size: int = dataclasses.field(default=128, metadata=HOW)
    """Tokens per chunk of the chunked form."""
    remat: bool = dataclasses.field(default=False, metadata=HOW)
    """Recompute each layer in the backward pass instead of keeping its activations."""
    fast: FastWeightConfig = FastWeightConfig()  # pyright: ignore[reportIncompatibleMethodOverride] - chosen, where others compute it
    """The fast weights."""
    token_step: TokenStepConfig = dataclasses.field(default=TokenStepConfig(), metadata=HOW)
    """How calls of one token read and write: speed, never the function. ``bdh generate`` chooses it from what is active."""

    def __post_init__(self) -> None:
        check_types(self)
        if not isinstance(self.fast, FastWeightConfig):
            raise ConfigError(f"fast={self.fast!r} must be a FastWeightConfig, such as FastWeightConfig(rule='delta')")
        if not isinstance(self.token_step, TokenStepConfig):
            raise ConfigError(f"token_step={self.token_step!r} must be a TokenStepConfig, such as TokenStepConfig(slots=16)")
        decays = self.attention_decay if isinstance(self.attention_decay, list | tuple) else (self.attention_decay,)
        object.__setattr__(self, "attention_decay", tuple(decays))
        require_sizes(self, ("vocab_size", "n_layer", "d_model", "n_head", "n_neurons", "chunk_size"))
        check_layers(self)
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
        require(
            self.code_top_k is None or 1 <= self.code_top_k < self.n_neurons,
            f"code_top_k={self.code_top_k} must lie in [1, n_neurons − 1 = {self.n_neurons - 1}], or be None to keep every neuron's code",
        )
        require(self.activity_penalty >= 0, f"activity_penalty={self.activity_penalty} must be ≥ 0; 0 adds nothing")
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require(self.rope_theta > 1, f"rope_theta={self.rope_theta} must be greater than 1")
        require(
            self.rope_period is None or self.rope_period >= 2 and self.rope_period % 2 == 0,
            f"rope_period={self.rope_period} must be an even number of neurons, at least 2, or None for all of a head: the rotary embedding "
            "pairs them",
        )
        require_choice("dtype", self.dtype, DType)
        require_choice("attention", self.attention, Attention)
        require(
            len(self.attention_decay) in (1, self.n_head) and all(0 < decay <= 1 for decay in self.attention_decay),
            f"attention_decay={self.attention_decay} must be numbers in (0, 1]: one for all heads, or one for each of "
            f"n_head={self.n_head}",
        )
        require(
            not self.learn_attention_decay or max(self.attention_decay) < 1,
            f"learn_attention_decay needs attention_decay={self.attention_decay} below 1: it is learned in logit space, where 1 is infinitely "
            "far",
        )
        require_choice("implementation", self.implementation, Implementation)
        require_choice("kernel", self.kernel, Kernel)
        if self.token_by_token is not None:
            require(
                self.implementation in ("auto", "recurrent"),
                f"implementation={self.implementation!r} cannot run {self.token_by_token}: there is only the form token by token; use "
                'implementation="recurrent" (or "auto")',
            )

        if self.token_step.slots:
            reason = self.no_token_step
            require(
                reason is None, f"token_step.slots={self.token_step.slots} needs writes that can wait: {reason}; set it to 0"
            )

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
    def token_by_token(self) -> str | None:
        """What makes that only the form token by token exists; None if matrix forms exist too."""
        if self.shared_across_layers:
            # A layer reads what earlier layers wrote at the same token.
            return f'fast.scope="shared" with n_layer={self.n_layer}'
        return self.fast.token_by_token

    @property
    def widest(self) -> int:
        """Its codes."""
        return self.n_neurons

    @property
    def slots(self) -> int:
        """How many writes may wait beside a matrix of the state."""
        return self.token_step.slots

    def without_slots(self) -> BDHConfig:
        """The same model whose writes go to its state at once."""
        return dataclasses.replace(self, token_step=TokenStepConfig())

    @property
    def no_token_step(self) -> str | None:
        """Why writes cannot wait in slots; None if they can."""
        fast = self.fast
        if not fast.enabled:
            return None
        if not fast.rule_entry.linear:
            return f"fast.rule={fast.rule!r} writes what S does not hold yet"
        if fast.limited:
            return "limits on S (fast.clamp, fast.threshold, fast.row_norm) look at it after every write"
        if fast.scope == "shared":
            return 'fast.scope="shared" lets a layer read what others wrote at the same token (of one layer, use "layer")'
        return "fast.keep_gram=True adds up K × K numbers at every token" if fast.keep_gram else None

    @property
    def whole_time(self) -> str | None:
        """Why time cannot be split over devices; None if it can: what a part of time writes must not depend on what S holds before it."""
        fast = self.fast
        if self.implementation == "recurrent":
            return 'model.implementation="recurrent" goes token by token'
        if not fast.enabled:
            return None
        if fast.scope == "shared":
            return 'model.fast.scope="shared" goes token by token through all layers'
        if not fast.rule_entry.linear:
            return f"model.fast.rule={fast.rule!r} writes what S does not hold yet"
        if fast.limited:
            return "limits on S (model.fast.clamp, threshold, row_norm) look at it after every write"
        return "model.fast.keep_gram=True adds up K × K numbers" if fast.keep_gram else None

    @property
    def memory_slots(self) -> int:
        """How many S there are: one a layer, or one."""
        return 1 if self.fast.scope == "shared" else self.n_layer

    @property
    def has_state(self) -> bool:
        """It carries a state from call to call."""
        return True

    def check_mesh(self, shape: Mapping[str, int]) -> None:
        """Refuse a mesh that does not split heads and neurons evenly.

        Raises:
          ConfigError: names the axis and the numbers.
        """
        heads, neurons = shape["heads"], shape["neurons"]
        require(
            self.n_head % heads == 0,
            f"mesh.heads={heads} does not divide the heads of model.n_head={self.n_head}; use a divisor of it, and mesh.neurons for more "
            "devices",
        )
        pairs = 2 if self.attention == "rope" else 1
        require(
            self.neurons_per_head % (pairs * neurons) == 0,
            f"mesh.neurons={neurons} does not divide the {self.neurons_per_head} neurons of a head (model.n_neurons={self.n_neurons}, "
            f"model.n_head={self.n_head})" + (" into even parts, and the rotary embedding pairs them" if pairs == 2 else ""),
        )
        require(
            heads * neurons == 1 or not self.fast.needs_whole_rows,
            f"mesh.heads={heads} and mesh.neurons={neurons} split the rows that model.fast.rule={self.fast.rule!r} or model.fast.keep_gram "
            "needs together; set both to 1",
        )

    def multiply_adds_per_token(self, length: int) -> int:
        """Of a forward pass over so many tokens, for each: 3·D·K + T·K a layer (encoder, encoder_v, decoder; scores of the attention), T·K
        more with fast weights, and V·D for the logits. The whole T × T square is counted, as most others do. For rules that are not
        linear the count is that of the Hebbian one."""
        layer = 3 * self.d_model * self.n_neurons + (2 if self.fast.enabled else 1) * length * self.n_neurons
        return self.n_layer * layer + self.vocab_size * self.d_model

    def joined(self, others: Sequence[ModelConfig], axis: RowAxis) -> Joined:
        """See :meth:`bdh_jax.models.base.ModelConfig.joined`.

        With equal models it is the same function. Codes side by side in one head add up in the scores of its attention, so encoder and
        decoder take 1/√M of M models each; heads side by side add up in the decoder alone, which takes 1/M. An address of length 1 has
        √M times as many neurons of 1/√M the size, and so has what is written under it; the synapse that it reads takes 1/√M as well.
        """
        models = (self, *same_but([self, *others], _JOINED[axis]))
        self._check_addresses(axis)
        sizes = [model.neurons_per_head for model in models]
        require(
            axis == "neuron" or len(set(sizes)) == 1,
            f"heads of {', '.join(map(str, sizes))} neurons cannot stand side by side: join models with equal n_neurons / n_head",
        )
        share = 1 / math.sqrt(len(models))
        state = {"S": share, "previous_address": share, "strength": share, "energy": share**2}
        changes: dict[str, Any] = {"n_neurons": sum(model.n_neurons for model in models)}
        if self.code_top_k is not None:
            changes["code_top_k"] = sum(model.code_top_k or 0 for model in models)
        if self.fast.enabled and self.fast.address_norm == "kwta":
            changes["fast"] = dataclasses.replace(self.fast, address_active=len(models) * self.fast.address_active)
        if axis == "head":
            decays = [model.attention_decay * (model.n_head if len(model.attention_decay) == 1 else 1) for model in models]
            together = sum(decays, ())
            changes |= {"n_head": len(together), "attention_decay": together[:1] if len(set(together)) == 1 else together}
            scales, state = {"decoder": share**2, "synapse": share}, {**state, "attention": 1.0, "previous_code": 1.0}
        else:
            changes["rope_period"] = self._common_period(models)
            scales = {"encoder": share, "decoder": share, "synapse": share}
            state |= {"attention": share, "previous_code": share}
        return Joined(dataclasses.replace(self, **changes), scales, state)

    def _check_addresses(self, axis: RowAxis) -> None:
        """Refuse addresses whose products would grow with the number of models."""
        fast = self.fast
        if not fast.enabled:
            return
        shrinks = axis == "neuron" and fast.address_source != "gate" and fast.address_norm == "none"
        require(
            shrinks or fast.address_norm in ("l2", "kwta", "centred"),
            f"fast.address_norm={fast.address_norm!r} with fast.address_source={fast.address_source!r} makes addresses longer, or shorter, "
            "the more models are joined, and what they read with them: only lengths of 1 stay (address_norm='l2', 'kwta' or 'centred')",
        )
        require(
            not fast.limited,
            "limits on S (fast.clamp, fast.threshold, fast.row_norm) look at single entries, which are smaller in models that are joined; "
            "join models without limits",
        )

    def _common_period(self, models: Sequence[BDHConfig]) -> int | None:
        """The rotary period that all neurons keep when heads are continued by those of the next model."""
        if self.attention != "rope":
            return None
        periods = [model.rope_period or model.neurons_per_head for model in models]
        require(
            len(set(periods)) == 1 and all(model.neurons_per_head % periods[0] == 0 for model in models[:-1]),
            f"neurons that turn with rotary periods of {', '.join(map(str, periods))} in heads of "
            f"{', '.join(str(model.neurons_per_head) for model in models)} neurons cannot keep their phases in one head: join models of equal "
            "n_neurons and n_head (or heads, which keep theirs)",
        )
        return periods[0]

    def widened(self, n_neurons: int, axis: RowAxis) -> BDHConfig:
        """See :meth:`bdh_jax.models.base.ModelConfig.widened`."""
        require(
            n_neurons > self.n_neurons,
            f"n_neurons={n_neurons} must be more than the {self.n_neurons} that the model has",
        )
        require(
            not self.fast.enabled,
            "fast.enabled=True: what is written is read through all neurons, so new ones change what old ones read; grow a model without "
            "fast weights",
        )
        require(
            self.code_top_k is None,
            f"code_top_k={self.code_top_k}: new neurons would push old ones out of the k largest; grow a model with code_top_k=None",
        )
        if axis == "head":
            require(
                n_neurons % self.neurons_per_head == 0,
                f"n_neurons={n_neurons} is no multiple of the {self.neurons_per_head} neurons of a head; use "
                f"{(n_neurons // self.neurons_per_head + 1) * self.neurons_per_head}",
            )
            require(
                len(self.attention_decay) == 1,
                f"attention_decay={self.attention_decay} has a number for each head and none for new ones",
            )
            return dataclasses.replace(self, n_neurons=n_neurons, n_head=n_neurons // self.neurons_per_head)
        period = (self.rope_period or self.neurons_per_head) if self.attention == "rope" else None
        return dataclasses.replace(self, n_neurons=n_neurons, rope_period=period)

    def make_architecture(self) -> BDHArchitecture:
        """What it is made of."""
        return BDHArchitecture(self)

    def build(self, mesh: Mesh | None = None) -> BDH:
        """The model."""
        return BDH(self, mesh)


class BDH(Model):
    """Dragon Hatchling language model with optional fast weights, as a pure function of (slow, fast, tokens).

    Attributes:
      config: :class:`BDHConfig`.
      mesh: device mesh of ``bdh_jax.parallel.mesh.make_mesh``; None computes on one device. It never changes the function.
    """

    config: BDHConfig  # pyright: ignore[reportIncompatibleVariableOverride] - modules are frozen, which Flax does not say
    mesh: Mesh | None = None


class LayerWeights(NamedTuple):
    """The slow weights of one layer.

    Attributes:
      encoder: [D, H, N].
      encoder_v: [H, D, N].
      decoder: [H, N, D].
      memory: those that its fast weights use; None without fast weights.
      encoder_v_rows: [H, N, D], ``encoder_v`` by rows, where a call of one token has it.
      attention_decay: [H], μ in (0, 1), where it is learned.
    """

    encoder: jax.Array
    encoder_v: jax.Array
    decoder: jax.Array
    memory: MemoryWeights | None
    encoder_v_rows: jax.Array | None = None
    attention_decay: jax.Array | None = None


class BDHArchitecture(Architecture):
    """What BDH is made of."""

    config: BDHConfig
    shards_rows = True
    shares_weights = True
    outside: ClassVar[tuple[str, ...]] = ("embed", "lm_head")

    def __init__(self, config: BDHConfig):
        super().__init__(config)
        rows, width = ("batch", "head", "time", "neuron"), ("batch", "time", "model")
        self.taps = {"input": width, "code": rows, "gate": rows, "gated": rows, "decoded": width}
        if config.fast.enabled:
            self.taps |= {"address": rows, "read": width}

    # Declarations.

    def sizes(self, batch_size: int) -> Sizes:
        """Lengths of the logical axes."""
        config = self.config
        sizes = super().sizes(batch_size)
        rows = {"head": config.n_head, "neuron": config.neurons_per_head, "row": config.n_neurons}
        rows["slot"] = config.token_step.slots
        return Sizes({**sizes.axes, **rows}, sizes.dtypes)

    def weights(self) -> dict[str, Any]:
        """The slow weights by name."""
        config, fast = self.config, self.config.fast
        sizes = self.sizes(1).axes
        normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros

        def weight(*axes: str, init: Any = normal, trained: bool = True) -> Weight:
            return Weight(axes, tuple(sizes[axis] for axis in axes), init, config.state_dtype, trained)

        declared = {
            "embed": weight("vocab", "model"),
            "encoder": weight("model", "head", "neuron"),
            "encoder_v": weight("head", "model", "neuron"),
            "decoder": weight("head", "neuron", "model"),
            "lm_head": weight("model", "vocab"),
        }
        if config.learn_attention_decay:
            declared["attention_logit_decay"] = weight("head", init=_logits_of(config.attention_decay))
        if not fast.enabled:
            return declared
        if fast.synapse:
            synapse = weight("layer", "head", "neuron", "model", init=zeros, trained=fast.train_synapse)
            declared["synapse"] = synapse._replace(shape=(config.memory_slots, *synapse.shape[1:]))
        if fast.learn_learning_rate:
            start = nn.initializers.constant(math.log(fast.learning_rate))
            declared["fast_log_learning_rate"] = weight("head", init=start)
        for name, own in fast.rule_entry.weights.items():
            declared[f"fast_{name}"] = weight(*own.axes, init=own.init)
        if fast.learn_decay:
            start = nn.initializers.constant(math.log(fast.decay / (1 - fast.decay)))
            declared["fast_logit_decay"] = weight("head", init=start)
        return declared

    def local_maps(self) -> dict[str, LocalMap]:
        """Encoder, whose output is the code after its relu, and decoder. All layers have the same."""
        return {
            "encoder": LocalMap(("encoder",), "input", "code", "attention"),
            "decoder": LocalMap(("decoder",), "gated", "decoded", "ffn", inputs=2),
        }

    def state(self, batch_size: int) -> FastState:
        """The state of an episode, declared."""
        config, fast, sizes = self.config, self.config.fast, self.sizes(batch_size)
        present = {"attention"}
        present |= {"previous_code"} if config.attention == "shift" else set()
        present |= {"previous_address"} if fast.enabled and fast.address == "previous" else set()
        recent = declare(RecentWrites, sizes) if config.token_step.slots else None
        steps = declare(TokenSteps, sizes) if config.token_step.slots else None
        if not fast.enabled:
            layers = tuple(declare(LayerState, sizes, present, recent=recent) for _ in range(config.n_layer))
            return declare(FastState, sizes, {"position"}, layers=layers, token_steps=steps)
        rule = fast.rule_entry
        static = {} if rule.static is None else rule.static(fast.rule_options)
        written = declare(rule.state, sizes, **static)
        memory = declare(Memory, sizes, {"gram"} if fast.keeps_gram_beside else (), written=written, recent=recent)
        own = None if fast.scope == "shared" else memory
        use = declare(Use, sizes)
        layers = tuple(
            declare(LayerState, sizes, present, memory=own, use=use, recent=recent) for _ in range(config.n_layer)
        )
        return declare(FastState, sizes, layers=layers, shared=memory if own is None else None, token_steps=steps)

    def activations(self, batch: int, length: int, parts: int) -> Activations | None:
        """What training on B × T tokens holds of activations, T in so many parts; None where tokens go one by one.

        A layer keeps four arrays of neurons: the code, the code turned by its positions, the gate and the gated code. While its gradient is
        computed there are gradients of three of them, and scores; and one is there twice, by heads and by tokens.
        """
        config, sizes = self.config, self.sizes(batch).axes
        local = -(-length // parts)
        form = choose_form(config, local)
        if form == "recurrent":
            return None
        wide, narrow = config.state_dtype, config.compute_dtype
        tokens = {**sizes, "time": parts * local}

        def leaf(*axes: str, dtype: Any = narrow, **lengths: int) -> Leaf:
            return Leaf(axes, tuple({**tokens, **lengths}[axis] for axis in axes), dtype)

        neurons, width = leaf("batch", "head", "time", "neuron"), leaf("batch", "time", "model")
        of_heads = leaf("batch", "head", "time", "model", dtype=wide)
        state = leaf("batch", "head", "neuron", "model", dtype=wide)
        stretch = local if form == "parallel" else min(config.chunk_size, local)
        scores = leaf("batch", "head", "time", "level", dtype=wide, level=stretch)
        states = (
            []
            if form == "parallel"
            else [leaf("batch", "level", "head", "neuron", "model", dtype=wide, level=local // stretch)]
        )
        reads = 2 if config.fast.enabled else 1
        draws = [leaf("layer", "batch", "head", "time", "neuron", dtype=bool)] if config.dropout else []
        phases = [leaf("time", "neuron", dtype=wide)] * 2 if config.attention == "rope" else []
        logits = leaf("batch", "time", "vocab", dtype=wide)
        per_token = reads * (stretch if form == "parallel" else 2 * config.d_model + stretch)
        work = config.n_layer * config.n_neurons * (3 * config.d_model + per_token) + config.vocab_size * config.d_model
        return Activations(
            once=(*draws, *phases, logits, logits),
            between=(width,),
            kept=(*[neurons] * 4, of_heads, *states * reads),
            peak=(*[neurons] * 4, *[scores] * 2, of_heads),
            over_rows=(leaf("batch", "time", "model", dtype=wide),),
            within_head=(of_heads,),
            over_time=(state,) * reads,
            multiply_adds=work,
        )

    def check_machine(self, mesh: Mesh | None) -> None:
        """Refuse what cannot run here."""
        super().check_machine(mesh)
        choose_form(self.config, 1)
        slots = self.config.token_step.slots
        require(mesh is None or not slots, f"token_step.slots={slots} runs on one device; set it to 0, or use no mesh")

    def views(self, slow: Slow) -> dict[str, jax.Array]:
        """What calls of one token read of the slow weights in another order, made once: ``apply({"params": slow, "views": views}, …)``.
        They carry no gradient to the weights. Without them such a call reads all of ``encoder_v``."""
        if self.config.token_step.encoder_v is None:
            return {}
        return {"encoder_v_rows": jnp.swapaxes(slow["encoder_v"], 1, 2)}

    # The three functions.

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T] → [B, T, D]."""
        return layer_norm(jnp.asarray(slow["embed"], self.config.compute_dtype)[tokens])

    def block(
        self, weights: LayerWeights, x: jax.Array, state: LayerState | None, call: Call, draws: Any, setup: Setup
    ) -> LayerOutput:
        """One layer over [B, T, D]."""
        return layer(weights, x, state or LayerState(), call, draws, LayerSetup(self.config, setup))

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        """[B, T, D] → logits [B, T, V]."""
        config = self.config
        return jnp.einsum(
            "btd,dv->btv", x, slow["lm_head"].astype(config.compute_dtype), preferred_element_type=config.state_dtype
        )

    # How they compose.

    def by_token(self, length: int) -> bool:
        """Whether a call of so many tokens goes token by token."""
        return choose_form(self.config, length) == "recurrent"

    def layer_weights(self, slow: Slow, index: int) -> LayerWeights:
        """All layers have the same weights; each has a synapse of its own, unless all share one S."""
        fast = self.config.fast
        memory = None
        if fast.enabled:
            rate, decay = slow.get("fast_log_learning_rate"), slow.get("fast_logit_decay")
            memory = MemoryWeights(
                synapse=slow["synapse"][0 if fast.scope == "shared" else index] if fast.synapse else None,
                learning_rate=None if rate is None else jnp.exp(rate),
                decay=None if decay is None else jax.nn.sigmoid(decay),
                rule={name: slow[f"fast_{name}"] for name in fast.rule_entry.weights},
            )
        kept = slow.get("attention_logit_decay")
        return LayerWeights(
            slow["encoder"],
            slow["encoder_v"],
            slow["decoder"],
            memory,
            slow.get("encoder_v_rows"),
            None if kept is None else jax.nn.sigmoid(kept),
        )

    def draws(self, key: jax.Array, batch: int, length: int) -> jax.Array:
        """Dropout masks [L, B, H, T, N]."""
        config = self.config
        rows = (config.n_layer, batch, config.n_head, length, config.neurons_per_head)
        return jax.random.bernoulli(key, 1 - config.dropout, rows)

    def draw_axes(self) -> tuple[str, ...]:
        """Logical axes of the dropout masks."""
        return ("layer", "batch", "head", "time", "neuron")

    def shared(self, weights: Slow, inputs: Inputs, places: Places, setup: Setup) -> tuple[jax.Array, jax.Array] | None:
        """cos and sin of the rotary phases [B or 1, 1, T, N]; None for attention "shift"."""
        config = self.config
        if config.attention != "rope":
            return None
        local = weights["encoder"].shape[-1]
        neurons = setup.axes.first_neuron(local) + jnp.arange(local)
        period = config.neurons_per_head if config.rope_period is None else config.rope_period
        turning = neurons if config.rope_period is None else neurons % period
        frequencies = rope_frequencies(turning, period, config.rope_theta, config.state_dtype)
        position, length = places.position, inputs.x.shape[1]
        if inputs.fast is None and position.shape[0] > 1 and not setup.axes.sequence:
            # Positions lie in [0, T): one table of T angles, looked up, instead of B·T angles.
            tables = rope_angles(jnp.arange(length)[None], neurons, frequencies)
            cos, sin = (table[0, 0][position][:, None] for table in tables)
            return cos, sin
        return rope_angles(position, neurons, frequencies)

    def layers(self, weights: Slow, inputs: Inputs, setup: Setup) -> tuple[jax.Array, Any, Any]:
        """Layer after layer over the tokens at hand. Writes wait in slots from one call of one token to the next, and other calls find
        none."""
        if not self.config.token_step.slots:
            return self._layers(weights, inputs, setup)
        if not setup.by_token:
            steps = None if inputs.fast is None else inputs.fast.token_steps
            plain = inputs if inputs.fast is None else inputs._replace(fast=without_slots(inputs.fast))
            x, fast, found = self._layers(weights, plain, setup)
            if setup.final == "full":
                fast = with_slots(fast.replace(token_steps=steps), self.state(inputs.x.shape[0]))
            return x, fast, found
        inner, before = setup._replace(final="full"), make_room(inputs.carried)
        x, fast, (taps, losses, metrics) = self._layers(weights, inputs._replace(fast=before), inner)
        fast = fast.replace(token_steps=count_step(before, metrics["over_budget"] > 0))
        return x, finish_state(fast, setup), (taps, losses, metrics)

    def _layers(self, weights: Slow, inputs: Inputs, setup: Setup) -> tuple[jax.Array, Any, Any]:
        """One S for all layers goes from each to the next."""
        if not (self.config.fast.enabled and self.config.fast.scope == "shared"):
            return super().layers(weights, inputs, setup)
        # What one layer writes to a shared S the next one reads, whatever the caller wants in the end.
        inner = setup._replace(final="full") if self.config.shared_across_layers else setup
        call = self.call(weights, inputs, inner)
        x, fast, outputs = inputs.x, inputs.fast, []
        shared = None if fast is None else fast.shared
        for index in range(self.config.n_layer):
            state = LayerState(memory=shared) if fast is None else fast.layers[index].replace(memory=shared)
            block = functools.partial(layer, setup=LayerSetup(self.config, inner, first=index == 0))
            block = jax.checkpoint(block) if self.config.remat else block
            draws = self.layer_draws(inputs.draws, index)
            output = block(self.layer_weights(weights, index), x, state, call, draws)
            x, shared = output.x, None if output.state is None else output.state.memory
            outputs.append(output)
        states: tuple[Any, ...] = tuple(None if o.state is None else o.state.replace(memory=None) for o in outputs)
        after = self.finish(fast, states, call, inner, shared)
        if inner.final != setup.final and isinstance(after, FastState):
            after = finish_state(after, setup)
        return x, after, seen(outputs, setup)

    def finish(
        self,
        fast: FastState | None,
        layers: tuple[LayerState, ...],
        call: Call,
        setup: Setup,
        shared: Memory | None = None,
    ) -> FastState | BatchMean | None:
        """The state after the last token, from those of the layers and what they share."""
        if setup.final == "none":
            return None
        count = None
        if self.config.fast.enabled:
            count = setup.axes.sum_over_time(jnp.sum(call.places.counted, axis=1))
            if fast is not None and fast.count is not None:
                count = count + keep(fast.count, call.places.continues)
        if setup.final == "mean":
            of_layers = tuple(MeanLayer(layer.memory, layer.use) for layer in layers)
            mean = None if count is None else jnp.mean(count, keepdims=True)
            return mean_over_mesh(BatchMean(of_layers, shared, mean), setup)
        return FastState(layers, shared, call.places.end_position, count)


class LayerSetup(NamedTuple):
    """What a layer knows before anything is computed.

    Attributes:
      config: of the model.
      call: of the call.
      first: whether the layer is the first that uses its S at a token.
    """

    config: BDHConfig
    call: Setup
    first: bool = True

    @property
    def token_step(self) -> TokenStepConfig | None:
        """How a call of one token reads and writes, if writes wait in slots."""
        settings = self.config.token_step
        return settings if self.call.by_token and settings.slots else None

    def form(self, length: int) -> Form:
        """The form of the scans. A call that goes token by token has one token here."""
        return "recurrent" if self.call.by_token else choose_form(self.config, length)

    def memory(self, length: int) -> MemorySetup:
        """What the layer's fast weights know."""
        config = self.config
        dtypes = config.compute_dtype, config.state_dtype
        form = self.form(length)
        budget = None if self.token_step is None else self.token_step.memory
        return MemorySetup(
            config.fast, form, config.chunk_size, self.call.final, *dtypes, self.call.axes, self.first, budget
        )


def layer(
    weights: LayerWeights, x: jax.Array, state: LayerState, call: Call, dropout_mask: jax.Array | None, setup: LayerSetup
) -> LayerOutput:
    """One layer.

    Args:
      weights: its slow weights.
      x: [B, T, D].
      state: before the first token.
      call: masks, places and rotary phases, which all layers share.
      dropout_mask: [B, H, T, N] bool, or None.
      setup: what is known before anything is computed.

    Returns:
      The next x, the layer's state after the last token, and the arrays that probes may ask for.
    """
    config, dtype, axes = setup.config, setup.config.compute_dtype, setup.call.axes
    encoder = weights.encoder.astype(dtype)
    # What every shard does with x meets here again in the gradient: one sum over the mesh, D wide.
    local = vary_like(x, encoder)
    code = jax.nn.relu(encode(local, encoder))
    if config.code_top_k is not None:
        code = above_the_rest(code, config.code_top_k, axes.sum_over_rows)
    attended, next_state, over_budget = _attend(code, local, state, call, weights.attention_decay, setup)
    attended = layer_norm(axes.sum_within_head(attended)).astype(dtype)
    gate, over = _gate(attended, code, weights, setup)
    over_budget |= over
    gated = code * gate
    if dropout_mask is not None:
        gated = jnp.where(dropout_mask, gated / (1 - config.dropout), jnp.zeros((), dtype))
    y, over = _decode(gated, weights, setup)
    over_budget |= over

    taps = {"input": x, "code": code, "gate": gate, "gated": gated, "decoded": y}
    if weights.memory is not None:
        source = {"code": code, "gated": code * gate, "gate": gate}[config.fast.address_source]
        memory_call = MemoryCall(call.masks, call.places)
        used, written = read_and_write(weights.memory, source, local, state, memory_call, setup.memory(x.shape[1]))
        taps |= {"address": used.address, "read": used.read}
        y = y + used.read
        over_budget |= False if used.over_budget is None else used.over_budget
        next_state = written.replace(
            attention=next_state.attention, previous_code=next_state.previous_code, recent=next_state.recent
        )

    y = layer_norm(axes.sum_over_rows(y)).astype(dtype)
    # On a mesh every shard has the part of its own neurons.
    summed = {name: axes.sum_over_rows(taps[name]) for name in ("decoded", "read") if name in setup.call.collect}
    wanted = next_state if setup.call.final != "none" else None
    losses = {}
    if config.activity_penalty:
        share = active_share(code, config.n_neurons, axes.sum_over_rows)
        if call.masks.valid is not None:
            share = jnp.where(call.masks.valid, share, jnp.zeros((), share.dtype))
        losses["activity"] = config.activity_penalty / config.n_layer * jnp.mean(share)
    metrics = None if setup.token_step is None else {"over_budget": jnp.any(over_budget).astype(config.state_dtype)}
    return LayerOutput(layer_norm(x + y), wanted, {**taps, **summed}, losses=losses, metrics=metrics)


def _attend(
    code: jax.Array, x: jax.Array, state: LayerState, call: Call, learned: jax.Array | None, setup: LayerSetup
) -> tuple[jax.Array, LayerState, jax.Array | bool]:
    """Linear attention of each head to the past: the read [B, H, T, D], what is carried on, and where a budget was exceeded.

    It is the scan of the fast weights with λ = μ, η = 1 and values x for every head; that it sees the past alone is the causal mask of
    ``bdh_jax.kernels.fast_weight_scan.stretch.coefficients``.
    """
    config, axes, carried = setup.config, setup.call.axes, None
    if call.extra is None:
        carried = carried_over(code, state.previous_code, call.masks.valid, call.masks.reset, axes)
        query, (key, previous_code) = code, shift_to_previous(code, carried, call.masks.valid, call.masks.reset)
        previous_code = axes.from_last(previous_code)
    else:
        query = key = rope(code, *call.extra)
        previous_code = None
    decay = _attention_decay(setup, code.shape[1]) if learned is None else learned
    if setup.token_step is not None:
        if state.attention is None or state.recent is None:
            raise ValueError("a token step reads the attention's state and the slots beside it, and this layer has none")
        token = Stretch(query, key, x[:, None], None, call.masks.writes, call.masks.reset)
        budget, group = setup.token_step.attention, 1 if call.extra is None else 2
        dynamics = Dynamics(1.0, decay)
        attended, recent, over = token_step.step(
            token, state.attention, state.recent.arrays, dynamics, budget=budget, group=group
        )
        return attended, LayerState(state.attention, previous_code, recent=RecentWrites(*recent)), over
    form, scores = setup.form(x.shape[1]), None
    if form == "parallel":
        scores = own_scores(query)
        if call.extra is None:
            scores = scores_of_previous(scores, query, carried, call.masks.valid, call.masks.reset)
    attended, attention = fast_weight_scan(
        query,
        key,
        x,
        state.attention,
        decay=decay,
        valid=call.masks.writes,
        reset=call.masks.reset,
        implementation=form,
        chunk_size=config.chunk_size,
        final="full" if setup.call.final == "full" else "none",
        scores=scores,
        axes=axes,
    )
    return attended, LayerState(attention, previous_code), False


def _gate(
    attended: jax.Array, code: jax.Array, weights: LayerWeights, setup: LayerSetup
) -> tuple[jax.Array, jax.Array | bool]:
    """The gate [B, H, T, N], where only the gated code is wanted of active neurons alone; and where a budget was exceeded."""
    dtype, steps = setup.config.compute_dtype, setup.token_step
    whole = setup.config.fast.enabled and setup.config.fast.address_source == "gate" or "gate" in setup.call.collect
    if steps is None or steps.encoder_v is None or weights.encoder_v_rows is None or whole:
        return jax.nn.relu(encode_by_head(attended, weights.encoder_v.astype(dtype))), False
    gate, over = token_step.project(attended[:, :, 0], weights.encoder_v_rows, code[:, :, 0] != 0, steps.encoder_v)
    return jax.nn.relu(gate)[:, :, None], over


def _decode(gated: jax.Array, weights: LayerWeights, setup: LayerSetup) -> tuple[jax.Array, jax.Array | bool]:
    """What the decoder makes of the gated code, [B, T, D], and where a budget was exceeded."""
    config, steps = setup.config, setup.token_step
    if steps is None or steps.decoder is None:
        return decode(gated, weights.decoder.astype(config.compute_dtype), config.state_dtype), False
    y, over = token_step.read(gated[:, :, 0], weights.decoder, steps.decoder, sum_heads=True)
    return y[:, None].astype(config.state_dtype), over


def _logits_of(decays: tuple[float, ...]) -> Any:
    """An initialiser of logits [H] from decays in (0, 1), one for all heads or one for each."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        del key
        logits = jnp.asarray([math.log(decay / (1 - decay)) for decay in decays], dtype)
        # New heads of a model that has grown begin with what all of its heads began with.
        return jnp.broadcast_to(logits, shape)

    return init


def _attention_decay(setup: LayerSetup, heads: int) -> jax.Array | float:
    """A float if it is the same for all heads, for which there are shorter ways; else [H] of the heads at hand."""
    decays = setup.config.attention_decay
    if len(set(decays)) == 1:
        return decays[0]
    every = jnp.asarray(decays, setup.config.state_dtype)
    if heads == len(decays):
        return every
    return jax.lax.dynamic_slice_in_dim(every, setup.call.axes.first_head(heads), heads)


def choose_form(config: BDHConfig, length: int) -> Form:
    """The form of ``fast_weight_scan`` that implementation and kernel stand for at this length.

    Raises:
      ConfigError: for an explicit choice that cannot run.
    """
    implementation, kernel = config.implementation, config.kernel
    one_by_one = config.token_by_token
    if kernel in ("pallas", "pallas_interpret"):
        if one_by_one is not None:
            raise ConfigError(
                f"kernel={kernel!r} is a chunked kernel, and {one_by_one} has only the form token by token; use "
                'kernel="xla" (or "auto")'
            )
        if config.fast.enabled and not config.fast.rule_entry.linear:
            raise ConfigError(
                f"kernel={kernel!r} cannot run fast.rule={config.fast.rule!r}: the kernel writes k ⊗ x as it is; use "
                'kernel="xla" (or "auto")'
            )
        if implementation in ("recurrent", "parallel"):
            raise ConfigError(
                f"kernel={kernel!r} is a chunked kernel; it cannot run implementation={implementation!r}. "
                'Use implementation="chunked" or kernel="xla"'
            )
        return "recurrent" if implementation == "auto" and length == 1 else kernel
    if one_by_one is not None:
        return "recurrent"
    if implementation == "auto":
        return dispatch.choose_form(length, config.d_model, config.chunk_size)
    return implementation


CONFIG = BDHConfig
"""The entry of the table of models."""
