"""Every setting, as frozen dataclasses. An experiment is one :class:`ExperimentConfig`.

A value out of range, or two that contradict each other, are a :class:`ConfigError` that names the key, the value and what would be
accepted. :mod:`bdh_jax.config_dict` has the way to configuration files and back.
"""

from __future__ import annotations

import dataclasses
import numbers
import typing
from typing import Any, Literal

import jax.numpy as jnp

Scope = Literal["layer", "shared"]
Address = Literal["previous", "current"]
AddressNorm = Literal["none", "l2", "sum", "kwta", "centred"]
AddressSource = Literal["code", "gated", "gate"]
WriteGradient = Literal["full", "stop"]
Rule = Literal["hebbian", "gated_hebbian", "delta", "gated_delta", "longhorn", "oja", "mesa"]
Attention = Literal["rope", "shift"]
Implementation = Literal["auto", "recurrent", "chunked", "parallel"]
Kernel = Literal["auto", "xla", "pallas", "pallas_interpret"]
DType = Literal["float32", "bfloat16", "float64"]
Loss = Literal["answer", "all", "weights"]


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the key, the value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise a :class:`ConfigError` with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: Any, annotation: Any) -> None:
    """Raise a :class:`ConfigError` that lists the choices unless the value is one of those of a ``Literal``."""
    choices = typing.get_args(annotation)
    require(value in choices, f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def _check_types(config: Any) -> None:
    """Refuse what is no whole number, or no part of a configuration, where one belongs. A whole number where a float belongs becomes
    one: 1 and 1.0 are the same setting, also to what hashes or traces it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in ("float", "float | None") and type(value) is int:
            object.__setattr__(config, field.name, float(value))
        elif field.type == "int" and not isinstance(value, numbers.Integral):
            raise ConfigError(f"{field.name}={value!r} must be a whole number")
        elif field.type == "FastWeightConfig" and not isinstance(value, FastWeightConfig):
            raise ConfigError(f"{field.name}={value!r} must be a FastWeightConfig, such as FastWeightConfig(rule='delta')")


@dataclasses.dataclass(frozen=True)
class FastWeightConfig:
    """Fast weights: the write-back S of shape [H, N, D] per layer and example (see ``bdh_jax.fast_weights.rules``)."""

    enabled: bool = True
    learning_rate: float = 1.0
    """η ≥ 0, the size of a write."""
    decay: float = 0.95
    """λ in (0, 1], applied once per valid token."""
    rule: Rule = "hebbian"
    """What is written (``bdh_jax.fast_weights.rules``). Rules that predict the value (all but the Hebbian and oja) predict it from the
    synapse too, if there is one. "mesa" keeps K × K numbers a layer and example, and has the recurrent form only."""
    ridge: float = 0.01
    """Of rule "mesa"; no other rule looks at it."""
    keep_gram: bool = False
    """Keep the sum of k ⊗ k beside S, K × K numbers a layer and example, for consolidation by least squares. "mesa" always does."""
    clamp: float | None = None
    """Largest absolute entry of S. This and the next two are limits put on S after every write, in this order; they have the
    recurrent form only."""
    threshold: float | None = None
    """Smaller entries of S become zero."""
    row_norm: float | None = None
    """Largest L2 norm of a row of S."""
    scope: Scope = "layer"
    """One S per layer, or one shared by all layers (then only the recurrent form exists for n_layer > 1)."""
    address: Address = "previous"
    """Write under the previous token's address (associates successive tokens) or the current one."""
    address_source: AddressSource = "code"
    """What becomes an address: the code (a function of the layer's input), the gated code (of its input and what attention
    found), or the gate alone. Only the last two tell equal tokens in different contexts apart in the first layer."""
    address_norm: AddressNorm = "l2"
    """Length 1 ("l2"), a sum of at most 1 ("sum", the published choice), or neither ("none"); "kwta" and "centred" have length 1 too,
    once all but the ``address_active`` largest of the K numbers are zero, or their mean is taken off."""
    address_active: int = 32
    """Of address norm "kwta" (k winners take all); no other norm looks at it."""
    write_gradient: WriteGradient = "full"
    """"stop" cuts the gradient through written keys and values; η, λ and the initial S keep theirs."""
    synapse: bool = False
    """Add the slow parameter that is read beside S, and where consolidation writes by default."""
    train_synapse: bool = False
    """Let the optimiser train the synapse; otherwise only consolidation changes it."""
    learn_learning_rate: bool = False
    """Learn η per head, in log space, from ``learning_rate``."""
    learn_decay: bool = False
    """Learn λ per head, in logit space, from ``decay``."""

    def __post_init__(self):
        _check_types(self)
        require_choice("fast.scope", self.scope, Scope)
        require_choice("fast.rule", self.rule, Rule)
        require_choice("fast.address", self.address, Address)
        require_choice("fast.address_source", self.address_source, AddressSource)
        require_choice("fast.address_norm", self.address_norm, AddressNorm)
        require_choice("fast.write_gradient", self.write_gradient, WriteGradient)
        require(self.learning_rate >= 0, f"fast.learning_rate={self.learning_rate} must be ≥ 0")
        require(0 < self.decay <= 1, f"fast.decay={self.decay} must lie in (0, 1]")
        require(self.address_active >= 1, f"fast.address_active={self.address_active} must be at least 1")
        require(self.ridge > 0, f"fast.ridge={self.ridge} must be positive")
        for name, limit in self.limits.items():
            require(limit is None or limit > 0, f"fast.{name}={limit} must be positive, or None for no limit")
        require(
            self.clamp is None or self.threshold is None or self.threshold <= self.clamp,
            f"fast.threshold={self.threshold} above fast.clamp={self.clamp} would leave nothing of S; make it smaller",
        )
        if self.has_gram:
            what = 'fast.rule="mesa"' if self.rule == "mesa" else "fast.keep_gram=True"
            require(
                not self.learn_learning_rate and not self.learn_decay,
                f"{what} sums over all rows with one η and one λ; set fast.learn_learning_rate and fast.learn_decay to False",
            )
        require(
            not self.keep_gram or ((self.hebbian or self.rule == "mesa") and not self.limited),
            f"fast.keep_gram=True with fast.rule={self.rule!r}: together with S it says what an episode wrote only for the Hebbian "
            'rules and "mesa" without limits on S; set it to False',
        )
        if self.rule == "mesa":
            require(
                not self.limited,
                'fast.rule="mesa" reads a solution of its sums, so limits on them mean nothing; set fast.clamp, '
                "fast.threshold and fast.row_norm to None",
            )
        require(
            not self.learn_learning_rate or self.learning_rate > 0,
            "fast.learn_learning_rate needs fast.learning_rate > 0: it is learned in log space",
        )
        require(
            not self.learn_decay or self.decay < 1,
            "fast.learn_decay needs fast.decay < 1: it is learned in logit space, where 1 is infinitely far",
        )
        require(
            not self.train_synapse or self.synapse, "fast.train_synapse needs fast.synapse=True: there is nothing to train"
        )

    @property
    def hebbian(self) -> bool:
        """Whether what is written does not depend on S."""
        return self.rule in ("hebbian", "gated_hebbian")

    @property
    def gated(self) -> bool:
        """Whether a learned gate says how much of each token is written."""
        return self.rule in ("gated_hebbian", "gated_delta")

    @property
    def has_gram(self) -> bool:
        """Whether the state holds the sum of k ⊗ k."""
        return self.rule == "mesa" or self.keep_gram

    @property
    def state_ridge(self) -> float:
        """The ridge that reading the state takes: that of "mesa", 0 for the other rules."""
        return self.ridge if self.enabled and self.rule == "mesa" else 0.0

    @property
    def limits(self) -> dict[str, float | None]:
        """Arguments of ``bdh_jax.fast_weights.rules.bound``."""
        return {"clamp": self.clamp, "threshold": self.threshold, "row_norm": self.row_norm}

    @property
    def limited(self) -> bool:
        """Whether S has any limit."""
        return any(limit is not None for limit in self.limits.values())

    @property
    def predicts_values(self) -> bool:
        """Whether the rule writes what reading would get wrong, so that what the synapse knows already is not written."""
        return self.rule in ("delta", "gated_delta", "longhorn", "mesa")

    def sums(self) -> FastWeightConfig:
        """The same with S and G as plain sums over an episode, as least squares needs them: undecayed Hebbian writes without limits,
        behind the gate if there is one before Hebbian writes already."""
        rule = self.rule if self.hebbian else "hebbian"
        no_limits = dict.fromkeys(self.limits)
        return dataclasses.replace(self, rule=rule, learning_rate=1.0, decay=1.0, keep_gram=True, **no_limits)


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
        _check_types(self)
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
    """The baseline: a GPT with layer norms before its parts and rotary positions (``bdh_jax.baselines.gpt``)."""

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


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text of a task that reads one (``bdh_jax.data``)."""

    path: str | None = None
    """Files to train on: one or several paths, folders or globs, with commas between; or a folder that ``bdh_jax.data.prepare``
    made, which has its own split, column and tokenizer. None takes tiny Shakespeare, downloaded once."""
    validation_path: str | None = None
    """Files to validate on; None keeps back ``validation_share`` of the others."""
    validation_share: float = 0.1
    """Of the documents, by their content; of the tokens if there are fewer than 100 documents."""
    column: str = "text"
    """Of JSON lines and Parquet files."""
    tokenizer: str | None = None
    """A byte-level BPE, as the file ``tokenizer.json`` of the tokenizers library; None: bytes are the tokens."""

    def __post_init__(self):
        require(0 < self.validation_share < 1, f"data.validation_share={self.validation_share} must lie in (0, 1)")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Base of every task's own configuration. ``name`` selects the task in ``bdh_jax.tasks``."""

    name: str = ""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, gradient clipping, weight decay on matrices only."""

    learning_rate: float = 1e-3
    """Peak rate."""
    warmup_steps: int = 100
    final_fraction: float = 0.0
    """The cosine ends at this fraction of the peak rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    """Global gradient norm limit; None does not clip."""

    def __post_init__(self):
        require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps={self.warmup_steps} must be ≥ 0")
        require(0 <= self.final_fraction <= 1, f"optimizer.final_fraction={self.final_fraction} must lie in [0, 1]")
        require_choice("optimizer.schedule", self.schedule, Literal["cosine", "constant"])
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must be ≥ 0")
        require(0 <= self.b1 < 1 and 0 <= self.b2 < 1, f"optimizer.b1={self.b1}, b2={self.b2} must lie in [0, 1)")
        require(self.eps > 0, f"optimizer.eps={self.eps} must be positive")
        require(
            self.clip_norm is None or self.clip_norm > 0, f"optimizer.clip_norm={self.clip_norm} must be positive or None"
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 1000
    batch_size: int = 32
    """Sequences per optimiser step, over all devices and accumulation slices."""
    accumulation: int = 1
    """Slices the batch is cut into; gradients are averaged over them before the update."""
    loss: Loss = "answer"
    """Positions that are trained: the answer, every valid position, or the weights the task gives."""
    fill_ridge: float = 0.1
    """Ridge of the least squares by which a task's ``fill`` episodes get into the synapse (tasks/facts.py: ``task.fill_every``)."""
    fill_layers: tuple[int, ...] = ()
    """Layers, from 0, whose part of the synapse they get into; empty for all."""
    carry_state: bool = False
    """Start each step from the fast state that the step before left in the same row, without a gradient into it: truncated
    backpropagation through time. For tasks whose rows go on from batch to batch."""
    log_contributions: bool = False
    """With each evaluation, log what fast weights and synapse add to the output of a layer, relative to the decoder's part."""
    evaluate_every: int = 100
    checkpoint_every: int = 200
    log_every: int = 10

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "evaluate_every", "checkpoint_every", "log_every"):
            require(getattr(self, name) >= 1, f"train.{name}={getattr(self, name)} must be at least 1")
        require(
            self.batch_size % self.accumulation == 0,
            f"train.batch_size={self.batch_size} is not divisible by train.accumulation={self.accumulation}",
        )
        require_choice("train.loss", self.loss, Loss)
        require(self.fill_ridge > 0, f"train.fill_ridge={self.fill_ridge} must be positive")
        require(
            not self.carry_state or self.accumulation == 1,
            f"train.carry_state=True with train.accumulation={self.accumulation}: the state of all rows is held anyway, so slices save "
            "no memory; set train.accumulation=1",
        )


@dataclasses.dataclass(frozen=True)
class ConsolidationConfig:
    """What moves fast weights into slow ones during training. Options that are None keep the function's own default."""

    function: str = "none"
    """A name in ``bdh_jax.consolidation.FUNCTIONS``, or ``module:function`` for your own (slow, fast, activity) -> slow."""
    every: int = 1
    """Training steps from one consolidation to the next. A step's episodes are the last ones of its rows."""
    norm: float | None = None
    """Scale every change to this many times the norm of the batch mean of S (``consolidation.at_norm``)."""
    rate: float | None = None
    fraction: float | None = None
    score: str | None = None
    level: float | None = None
    levels: int | None = None
    ratio: float | None = None
    protection: float | None = None
    ridge: float | None = None
    background: float | None = None
    drift: float | None = None
    tolerance: float | None = None
    seed: int | None = None
    target: str | None = None
    layers: tuple[int, ...] = ()
    """Layers, from 0, that ``least_squares``, ``kalman`` or ``null_space`` consolidate; empty for all."""

    def __post_init__(self):
        require(self.every >= 1, f"consolidation.every={self.every} must be at least 1")

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("function", "every", "norm")]
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, ())}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh: batch over ``data``, neurons over ``neurons``. ``data=-1`` takes all remaining devices."""

    data: int = 1
    neurons: int = 1
    distributed: bool = False
    """Call ``jax.distributed.initialize()`` first: one process per host of a pod."""

    def __post_init__(self):
        require(self.data == -1 or self.data >= 1, f"mesh.data={self.data} must be at least 1, or -1 for all devices left")
        require(self.neurons >= 1, f"mesh.neurons={self.neurons} must be at least 1")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: everything that decides its result."""

    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = BDHConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    consolidation: ConsolidationConfig = ConsolidationConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    seeds: tuple[int, ...] = ()
    """Several seeds: each runs in its own folder ``seed<k>`` of the workdir, and the table gives mean and spread."""

    def __post_init__(self):
        require(len(set(self.seeds)) == len(self.seeds), f"seeds={self.seeds} names a seed twice")
        require(min((self.seed, *self.seeds)) >= 0, f"seed={self.seed}, seeds={self.seeds} must not be negative")
        if isinstance(self.model, GPTConfig):
            require(self.mesh.neurons == 1, f"mesh.neurons={self.mesh.neurons}: a GPT has no neurons to spread; set it to 1")
            require(not self.train.carry_state, "train.carry_state=True: a GPT has no state to carry; set it to False")
            require(
                self.consolidation.function == "none",
                f"consolidation.function={self.consolidation.function!r}: a GPT has no fast weights to consolidate; set it to 'none'",
            )
        else:
            self._check_neurons()
        require(
            self.mesh.data == -1 or (self.train.batch_size // self.train.accumulation) % self.mesh.data == 0,
            f"mesh.data={self.mesh.data} does not divide the {self.train.batch_size // self.train.accumulation} sequences of a "
            f"slice (train.batch_size={self.train.batch_size}, train.accumulation={self.train.accumulation})",
        )
        filled = getattr(self.task, "fill_episodes", 0) if getattr(self.task, "fill_every", 0) else 0
        require(
            self.mesh.data == -1 or filled % self.mesh.data == 0,
            f"mesh.data={self.mesh.data} does not divide task.fill_episodes={filled}; change one of them",
        )
        require(
            not self.train.carry_state or getattr(self.task, "order", None) == "consecutive",
            "train.carry_state=True: rows of this task do not go on from batch to batch, so a state would leak into other text; set "
            'train.carry_state=False, or task.order="consecutive" of a text',
        )
        require(
            not self.train.carry_state or self.consolidation.function == "none",
            f"train.carry_state=True with consolidation.function={self.consolidation.function!r}: episodes that go on from step to "
            "step would be consolidated again and again; use one of them",
        )

    def _check_neurons(self) -> None:
        pairs = 2 if self.model.attention == "rope" else 1
        require(
            self.model.n_neurons // self.model.n_head % (pairs * self.mesh.neurons) == 0,
            f"mesh.neurons={self.mesh.neurons} does not divide the {self.model.n_neurons // self.model.n_head} neurons of a head "
            f"(model.n_neurons={self.model.n_neurons}, model.n_head={self.model.n_head})"
            + (" into even parts, and the rotary embedding pairs them" if pairs == 2 else ""),
        )
        require(
            self.mesh.neurons == 1 or not (self.model.fast.enabled and self.model.fast.has_gram),
            f'mesh.neurons={self.mesh.neurons} splits the rows that model.fast.rule="mesa" and model.fast.keep_gram need together; '
            "set it to 1",
        )
