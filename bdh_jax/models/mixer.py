"""The frame of the models that others compare with: embedding, blocks around what mixes tokens over time, norms, logits.

    x = embedding[token]
    x = x + mixer(RMSNorm(x))     the one part in which these models differ
    x = x + FFN(RMSNorm(x))       W_out (silu(W_gate x) · W_in x); only with ``d_ff`` above 0
    logits = RMSNorm(x) @ embeddingᵀ, or an ``lm_head`` of their own

With ``gated_convolution`` above 0 the mixer of every other layer, beginning with the first, is a gated short convolution
u + conv(u) · (W u + b): how the published comparison of recall (arXiv 2312.04927) puts a convolution in front of each mixer.

A mixer reads its state after it wrote the token at hand, where :func:`bdh_jax.kernels.fast_weight_scan.fast_weight_scan` reads before;
:func:`read_written` has the one by the other.

Axis letters: see :mod:`bdh_jax.types`; N is the width of a head's keys here, C the channels of a convolution.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bdh_jax.config import check_types, require, require_choice, require_sizes
from bdh_jax.config.identity import HOW
from bdh_jax.fast_weights.rules import scan_rule
from bdh_jax.fast_weights.state import FastState, Sizes, State, array, declare
from bdh_jax.kernels.fast_weight_scan import fast_weight_scan
from bdh_jax.layers.convolution import short_convolution
from bdh_jax.models.base import (
    Architecture,
    Call,
    DType,
    LayerOutput,
    ModelConfig,
    Setup,
    Weight,
    check_layers,
    named_weights,
)
from bdh_jax.types import Slow

NORM_EPSILON = 1e-5
Implementation = Literal["auto", "recurrent", "chunked", "parallel"]
"""Forms of the scan (:func:`bdh_jax.kernels.fast_weight_scan.fast_weight_scan`)."""


@dataclasses.dataclass(frozen=True)
class MixerConfig(ModelConfig):
    """What the models of this frame have in common."""

    n_layer: int = 2
    d_ff: int = 0
    """Width of the hidden layer of the feed-forward part; 0: there is none."""
    gated_convolution: int = 0
    """Tokens that the gated convolution of every other layer sees, its own among them; 0: every layer has the model's mixer."""
    tied: bool = True
    """Whether logits are read with the embedding."""
    dropout: float = 0.0
    """There is none: it has to be 0."""
    dtype: DType = "float32"
    init_std: float = 0.02
    """Standard deviation of the initial weights; those that end in the residual start smaller, by √(2·n_layer)."""
    remat: bool = dataclasses.field(default=False, metadata=HOW)

    sized: ClassVar[tuple[str, ...]] = ()
    """Fields of a subclass that are lengths of an axis."""

    def __post_init__(self) -> None:
        check_types(self)
        require_sizes(self, ("vocab_size", "n_layer", "d_model", *self.sized))
        check_layers(self)
        require(self.d_ff >= 0, f"d_ff={self.d_ff} must be at least 0")
        require(
            self.gated_convolution == 0 or self.gated_convolution >= 2,
            f"gated_convolution={self.gated_convolution} must be 0, for none, or at least 2: with 1 a token would see itself alone",
        )
        require(
            self.gated_convolution == 0 or self.n_layer >= 2,
            f"n_layer={self.n_layer} with gated_convolution={self.gated_convolution} leaves no layer to the model's own mixer; make it 2",
        )
        require(self.dropout == 0, f"dropout={self.dropout}: a {self.architecture!r} model has no dropout; set it to 0")
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require_choice("dtype", self.dtype, DType)

    @property
    def has_state(self) -> bool:
        """What the mixers carry."""
        return True

    @property
    def widest(self) -> int:
        """The hidden layer of the feed-forward part, or the stream."""
        return max(self.d_model, self.d_ff)

    def is_convolution(self, index: int) -> bool:
        """Whether the mixer of this layer is a gated convolution."""
        return self.gated_convolution > 0 and index % 2 == 0

    def mixing(self, length: int) -> int:
        """Multiply-adds of one layer's mixer for each token, besides its matrices, over so many tokens."""
        raise NotImplementedError

    def multiply_adds_per_token(self, length: int) -> int:
        """Of a forward pass: one for each number of the layers' matrices, V·D for the logits, and what mixing costs."""
        declared = self.make_architecture().weights()
        layers = [(index, declared[f"layer{index}"]) for index in range(self.n_layer)]
        matrices = sum(math.prod(w.shape) for _, layer in layers for _, w in named_weights(layer) if len(w.shape) == 2)
        mixers = sum(not self.is_convolution(index) for index, _ in layers)
        return matrices + mixers * self.mixing(length) + self.vocab_size * self.d_model


@dataclasses.dataclass(frozen=True)
class HeadsConfig(MixerConfig):
    """What models have in common whose heads each have a matrix, behind one short convolution."""

    n_head: int = 2
    """H, matrices."""
    d_key: int = 16
    """N, width of a head's keys."""
    d_value: int = 32
    """M, width of a head's values."""
    conv_size: int = 4
    """Tokens that the short convolution sees, its own among them."""

    sized: ClassVar[tuple[str, ...]] = ("n_head", "d_key", "d_value")

    @property
    def widths(self) -> tuple[int, int]:
        """Of the keys and of the values of all heads."""
        return self.n_head * self.d_key, self.n_head * self.d_value


@flax.struct.dataclass
class Convolved(State):
    """What a gated convolution carries.

    Attributes:
      past: [B, W, D], inputs of the last tokens.
    """

    past: jax.Array | None = array("batch", "slot", "model", dtype="compute")


@flax.struct.dataclass
class Recurrent(State):
    """What a recurrent mixer carries.

    Attributes:
      S: [B, H, N, M], the sums of keys ⊗ values, values M wide.
      past: [B, W, C], inputs of the last tokens to the short convolution; None of one that sees its own token alone, and without one.
    """

    S: jax.Array | None = array("batch", "head", "neuron", "wide")
    past: jax.Array | None = array("batch", "slot", "row", dtype="compute")


class MixerArchitecture(Architecture):
    """What a model of this frame is made of; a subclass adds its mixer."""

    config: Any
    outside: ClassVar[tuple[str, ...]] = ("embed", "norm", "lm_head")

    # What a mixer says of itself.

    @abc.abstractmethod
    def mixer_weights(self) -> dict[str, Any]:
        """The slow weights of one mixer."""

    @abc.abstractmethod
    def mixer_state(self, sizes: Sizes) -> State:
        """What one mixer carries, declared."""

    @abc.abstractmethod
    def mix(self, weights: Slow, x: jax.Array, state: Any, call: Call, setup: Setup) -> tuple[jax.Array, Any]:
        """The mixer's output [B, T, D] and its state, from the normed stream x [B, T, D]; a state of None is the start of an episode."""

    # Declarations.

    def dense(self, rows: int, columns: int, *, last: bool = False, bias: bool = False) -> dict[str, Weight]:
        """A linear map, [rows, columns], and its bias [columns]; ``last``: into the residual."""
        std = self.config.init_std / ((2 * self.config.n_layer) ** 0.5 if last else 1)
        axes = ("wide", "model") if last else ("model", "wide")
        declared = {"kernel": Weight(axes, (rows, columns), nn.initializers.normal(std), self.config.state_dtype)}
        return declared | ({"bias": self.vector(columns)} if bias else {})

    def vector(self, length: int, init: Any = nn.initializers.zeros, axis: str = "wide") -> Weight:
        """Numbers [length] that no weight decay reaches."""
        return Weight((axis,), (length,), init, self.config.state_dtype)

    def convolution(self, size: int, channels: int, *, bias: bool = False) -> dict[str, Weight]:
        """A short convolution over each channel, [size, channels], and its bias [channels]; both begin as PyTorch's do."""

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -1, 1) / size**0.5

        kernel = Weight(("time", "wide"), (size, channels), uniform, self.config.state_dtype)
        return {"kernel": kernel} | ({"bias": self.vector(channels, uniform)} if bias else {})

    def weights(self) -> dict[str, Any]:
        """The slow weights: embed, layer0 …, norm, and lm_head unless it is tied."""
        config, width = self.config, self.config.d_model
        normal = nn.initializers.normal(config.init_std)

        def norm() -> dict[str, Weight]:
            return {"scale": self.vector(width, nn.initializers.ones, "model")}

        def layer(index: int) -> dict[str, Any]:
            if config.is_convolution(index):
                conv, gate = (
                    self.convolution(config.gated_convolution, width, bias=True),
                    self.dense(width, width, bias=True),
                )
                declared: dict[str, Any] = {"mixer_norm": norm(), "convolution": {"conv": conv, "gate": gate}}
            else:
                declared = {"mixer_norm": norm(), "mixer": self.mixer_weights()}
            if config.d_ff:
                names = ("ffn_gate", "ffn_in")
                declared |= {"ffn_norm": norm()} | {name: self.dense(width, config.d_ff) for name in names}
                declared["ffn_out"] = self.dense(config.d_ff, width, last=True)
            return declared

        embedding = Weight(("vocab", "model"), (config.vocab_size, width), normal, config.state_dtype)
        head = Weight(("model", "vocab"), (width, config.vocab_size), normal, config.state_dtype)
        return {
            "embed": embedding,
            **{f"layer{index}": layer(index) for index in range(config.n_layer)},
            "norm": norm(),
            **({} if config.tied else {"lm_head": head}),
        }

    def state(self, batch_size: int) -> FastState:
        """What each layer's mixer carries."""
        config, sizes = self.config, self.sizes(batch_size)
        past = with_axes(sizes, slot=max(config.gated_convolution - 1, 0))
        layers = tuple(
            declare(Convolved, past) if config.is_convolution(index) else self.mixer_state(sizes)
            for index in range(config.n_layer)
        )
        return declare(FastState, sizes, {"position"}, layers=layers)

    # The three functions.

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T] → [B, T, D]."""
        return slow["embed"].astype(self.config.compute_dtype)[tokens]

    def layer_weights(self, slow: Slow, index: int) -> Slow:
        """Every layer has its own."""
        return slow[f"layer{index}"]

    def block(self, weights: Slow, x: jax.Array, state: Any, call: Call, draws: Any, setup: Setup) -> LayerOutput:
        """One layer over [B, T, D]."""
        del draws
        u = rms_norm(x, weights["mixer_norm"]["scale"])
        if "convolution" in weights:
            mixed, after = self.convolve_gated(weights["convolution"], u, state, call)
        else:
            mixed, after = self.mix(weights["mixer"], u, state, call, setup)
        x = x + mixed
        if self.config.d_ff:
            u = rms_norm(x, weights["ffn_norm"]["scale"])
            hidden = jax.nn.silu(linear(weights["ffn_gate"], u)) * linear(weights["ffn_in"], u)
            x = x + linear(weights["ffn_out"], hidden)
        return LayerOutput(x, None if setup.final == "none" else after, {})

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        """[B, T, D] → logits [B, T, V]."""
        x = rms_norm(x, slow["norm"]["scale"])
        head = slow["embed"].T if self.config.tied else slow["lm_head"]
        return jnp.einsum("btd,dv->btv", x, head.astype(x.dtype), preferred_element_type=self.config.state_dtype)

    def convolve_gated(
        self, weights: Slow, u: jax.Array, state: Convolved | None, call: Call
    ) -> tuple[jax.Array, Convolved]:
        """The gated short convolution u + conv(u) · (W u + b) of u [B, T, D], and its state."""
        past = None if state is None else state.past
        convolved, past = convolve(weights["conv"], u, past, call)
        return u + convolved * linear(weights["gate"], u), Convolved(past)


class HeadsArchitecture(MixerArchitecture):
    """What a model of :class:`HeadsConfig` is made of."""

    config: Any

    def heads_weights(self, **own: Any) -> dict[str, Any]:
        """The map to queries, keys and values, their convolution if there is one, the map to the output's gate, the norm of each head and the
        map back; ``own`` are a model's other weights."""
        config, width, (keys, values) = self.config, self.config.d_model, self.config.widths
        conv = {"conv": self.convolution(config.conv_size, 2 * keys + values)} if config.conv_size else {}
        return {
            "in": self.dense(width, 2 * keys + values),
            **conv,
            **own,
            "gate": self.dense(width, values),
            "norm": self.vector(config.d_value, nn.initializers.ones),
            "out": self.dense(values, width, last=True),
        }

    def mixer_state(self, sizes: Sizes) -> State:
        """S, and the last inputs of the convolution."""
        config, (keys, values) = self.config, self.config.widths
        lengths = {"head": config.n_head, "neuron": config.d_key, "wide": config.d_value}
        # A checkpoint holds no array without numbers.
        present = {"S", "past"} if config.conv_size > 1 else {"S"}
        return declare(Recurrent, with_axes(sizes, **lengths, slot=config.conv_size - 1, row=2 * keys + values), present)

    def heads_in(
        self, weights: Slow, x: jax.Array, state: Recurrent | None, call: Call
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array | None]:
        """Query, key [B, H, T, N] and value [B, H, T, M] of the normed stream x [B, T, D], and what the convolution carries on."""
        config, (keys, _) = self.config, self.config.widths
        rows, past = linear(weights["in"], x), None
        if config.conv_size:
            rows, past = convolve(weights["conv"], rows, None if state is None else state.past, call)
            rows = jax.nn.silu(rows)
        query, key, value = (split_heads(part, config.n_head) for part in jnp.split(rows, (keys, 2 * keys), axis=-1))
        return (query, key, value), past

    def heads_out(self, weights: Slow, x: jax.Array, read: jax.Array) -> jax.Array:
        """What is read [B, H, T, M], normed by head and gated by the stream x [B, T, D] that went in: [B, T, D]."""
        gate = split_heads(linear(weights["gate"], x), self.config.n_head)
        return linear(weights["out"], join_heads(rms_norm(read.astype(x.dtype), weights["norm"]) * jax.nn.silu(gate)))


def with_axes(sizes: Sizes, **lengths: int) -> Sizes:
    """The same sizes with these lengths of logical axes."""
    return sizes._replace(axes={**sizes.axes, **lengths})


def linear(weights: Slow, x: jax.Array) -> jax.Array:
    """x @ kernel + bias, if there is one: [B, T, I] → [B, T, O], in the dtype of x."""
    y = x @ weights["kernel"].astype(x.dtype)
    return y + weights["bias"].astype(x.dtype)[None, None] if "bias" in weights else y


def convolve(weights: Slow, x: jax.Array, past: jax.Array | None, call: Call) -> tuple[jax.Array, jax.Array | None]:
    """The short convolution of a call's rows x [B, T, C], with its bias if there is one; and the rows to go on with [B, W, C], None if W = 0."""
    y, past = short_convolution(x, weights["kernel"].astype(x.dtype), past, call.masks.writes, call.masks.reset)
    return (y + weights["bias"].astype(x.dtype)[None, None] if "bias" in weights else y), past


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x ÷ √(mean x² + ε) · scale over the last axis: x [..., F] and scale [F] → [..., F] in the dtype of x; statistics in float32 or wider."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + NORM_EPSILON)
    return (normed * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, H·N] → [B, H, T, N]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def join_heads(x: jax.Array) -> jax.Array:
    """[B, H, T, N] → [B, T, H·N]."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Tokens(NamedTuple):
    """What a recurrent mixer makes of the tokens of a call.

    Attributes:
      query: q [B, H, T, N].
      key: k, likewise; of length 1 with a ``gate``, or shorter.
      value: v [B, H, T, M].
      decay: λ in (0, 1], [B, H, T, 1]; or [B, H, T, N], which goes token by token, without ``gate``.
      gate: β [B, H, T], or None.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    decay: jax.Array
    gate: jax.Array | None = None


def read_written(
    tokens: Tokens, state: jax.Array | None, call: Call, *, implementation: Any = "auto", final: Any = "full"
) -> tuple[jax.Array, jax.Array | None]:
    """S_t = λ_t S_{t−1} + k_t ⊗ u_t, and q_t @ S_t: the token reads what it wrote itself.

    Without a gate u = v. With it this is the gated delta rule, u = β (v − kᵀ λ S), each head a memory of its own. Both are what
    ``fast_weight_scan`` computes, which reads S_{t−1}: q @ S_t = q' @ S_{t−1} + (q·k) v, as S_t is linear in S_{t−1}.

    Args:
      tokens: of the call.
      state: S before the first token [B, H, N, M], float32 or wider; None for zeros.
      call: its masks. A token that does not write reads as if it wrote, and leaves S as it is.
      implementation: form of the scan.
      final: "none" returns no S.

    Returns:
      what was read [B, H, T, M], float32 or wider, and S after the last token.

    Raises:
      ValueError: as ``fast_weight_scan``, for shapes that do not fit.
      ConfigError: likewise, for a form of the scan that cannot run here.
    """
    query, key, value, decay, gate = tokens
    batch, heads = query.shape[:2]
    wide = jnp.promote_types(jnp.float32, query.dtype)
    own = jnp.sum(query.astype(wide) * key.astype(wide), axis=-1, keepdims=True)
    if gate is None:
        options = {"valid": call.masks.writes, "reset": call.masks.reset, "decay": decay, "implementation": implementation}
        read, state = fast_weight_scan((decay * query).astype(query.dtype), key, value, state, final=final, **options)
        return read + own * value, state
    own = own * gate[..., None]
    query = (decay * (query - own * key)).astype(query.dtype)

    # In the library's delta rule heads are parts of one address, which predict the value together; here each predicts its own.
    def apart(array: jax.Array) -> jax.Array:
        return array.reshape(batch * heads, 1, *array.shape[2:])

    def of_all(mask: jax.Array | None) -> jax.Array | None:
        return None if mask is None else jnp.repeat(mask, heads, axis=0)

    read, after = fast_weight_scan(
        apart(query),
        apart(key),
        apart(value),
        None if state is None else apart(state),
        decay=apart(decay),
        rule=scan_rule("gated_delta"),
        write_gate=gate.reshape(batch * heads, -1),
        valid=of_all(call.masks.writes),
        reset=of_all(call.masks.reset),
        implementation=implementation,
        final=final,
    )
    shape = (batch, heads)
    return read.reshape(*shape, *read.shape[2:]) + own * value, None if after is None else after.reshape(
        *shape, *after.shape[2:]
    )


def timescale(low: float = 0.001, high: float = 0.1) -> Any:
    """Initial values whose softplus is spread evenly over the logarithms of [low, high]: what dt of Mamba-2 and gated DeltaNet begins with."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(low), math.log(high)))
        return step + jnp.log(-jnp.expm1(-step))

    return init


def log_of_uniform(low: float, high: float) -> Any:
    """Initial values whose exponential is spread evenly over [low, high]."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.log(jax.random.uniform(key, shape, dtype, low, high))

    return init
