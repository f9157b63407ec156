"""tiny-BDH (github.com/ZhukMax/tiny_bdh_xor): one neural field with low-rank relu maps, and σ, a matrix of fast synapses beside them.

    x  = R_in[token]                          the token, in neurons
    y1 = relu((x E) D_xᵀ)                     what the slow weights do
    y2 = y1 + (synapse + σ) q                 read before write; q = x
    z  = relu((y2 E) D_yᵀ)
    logits = z W_read
    σ ← forget, add η y2 ⊗ k, clamp, threshold, norm of rows; k = x

With its defaults this is the published program: ``interface="bits"`` reads a token as its binary digits and a constant and answers with
one logit, and the hook ``bdh_jax.training.sigma:after_step`` writes one σ for all examples after each step of the optimiser, which is the
slow weight ``synapse`` here. Beside it every example has a σ of its own, which starts at zero and is written token by token. What is
written under makes it useful there:

* ``address="current"``: y2 under the token's own x, as published. An equal token later reads what this one did.
* ``address="previous"``: y2 under the x of the token before, so that a token reads what followed it.
* ``address="mapped"``: q and k are learned images (x E) D_qᵀ and (x E) D_kᵀ. σ is then a linear memory whose every token may
  scale, erase or overwrite what lies in the direction that it reads: with q · k = −1/2 and +1 it is a stack.

``address_norm="l2"`` gives q and k length 1, and ``residual`` makes z + x of z, for several fields, one above another.

Axis letters: B batch, T time, V vocabulary, N neurons, which is also the width of the stream, D rank of the maps.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdh_jax.config import check_types, require, require_choice, require_sizes
from bdh_jax.config.identity import HOW
from bdh_jax.fast_weights.addresses import ADDRESS_NORM_EPSILON, shift_to_previous
from bdh_jax.fast_weights.masks import keep
from bdh_jax.fast_weights.sigma import SigmaForm, SigmaRates, SigmaTokens, sigma_scan
from bdh_jax.fast_weights.state import BatchMean, FastState, LayerState, Memory, RuleState, Sizes, Use, declare
from bdh_jax.models.base import (
    Architecture,
    Call,
    DType,
    LayerOutput,
    ModelConfig,
    Setup,
    Weight,
    check_layers,
    finish_state,
)
from bdh_jax.types import Slow

Interface = Literal["tokens", "bits"]
Address = Literal["current", "previous", "mapped"]
NEVER = -1e9
"""Logit of a token that the one logit of ``interface="bits"`` does not stand for."""


@dataclasses.dataclass(frozen=True)
class TinyBDHConfig(ModelConfig):
    """tiny-BDH, whose defaults are those of the published program (``bdh_jax.models.tiny_bdh``)."""

    architecture: str = "tiny_bdh"
    vocab_size: int = 4
    n_layer: int = 1
    """Fields, one above another."""
    d_model: int = 16
    """D, rank of the maps E, D_x, D_y."""
    n_neurons: int = 64
    """N, neurons of a field."""
    dropout: float = 0.0
    """There is none: it has to be 0."""
    dtype: DType = "float32"
    interface: Interface = "bits"
    """"bits": a token is its binary digits and a constant, which R_in maps, and one logit tells token 1 from token 0. "tokens": R_in has
    a row for every token and one for the constant, and W_read a column for every token."""
    init_std: float = 0.05
    """Standard deviation of the initial E, D_x, D_y, D_q and D_k."""
    init_std_outside: float = 0.2
    """Of the initial R_in and W_read."""
    use_sigma: bool = True
    """Whether there is a σ; without it the model sees nothing but the current token."""
    forget: float = 0.2
    """Share of σ that each write takes off, in [0, 1]."""
    learning_rate: float = 0.01
    """η ≥ 0, the size of a write."""
    clamp: float | None = 1.0
    """Largest absolute entry of σ. This and the next two are limits put on σ after every write, in this order; None is no limit."""
    threshold: float | None = 5e-3
    """Smaller entries of σ become zero."""
    row_norm: float | None = 1.0
    """Largest L2 norm of the synapses onto one neuron."""
    address: Address = "current"
    """What a token reads with and writes under: its own x; its own and that of the token before it; or two learned images of its own."""
    address_norm: Literal["none", "l2"] = "none"
    """"l2" gives what is read with and written under length 1."""
    residual: bool = False
    """Whether a field adds its z to its input; else it gives z alone."""
    implementation: Literal["auto", "recurrent", "parallel"] = dataclasses.field(default="auto", metadata=HOW)
    """How σ is written over a stretch of tokens: one after another, or all at once, which exists without limits. Never changes the
    function."""

    def __post_init__(self) -> None:
        check_types(self)
        require_sizes(self, ("vocab_size", "n_layer", "d_model", "n_neurons"))
        check_layers(self)
        require(self.dropout == 0, f"dropout={self.dropout}: tiny-BDH has no dropout; set it to 0")
        require_choice("dtype", self.dtype, DType)
        require_choice("interface", self.interface, Interface)
        require_choice("address", self.address, Address)
        require_choice("address_norm", self.address_norm, Literal["none", "l2"])
        require_choice("implementation", self.implementation, Literal["auto", "recurrent", "parallel"])
        require(
            self.vocab_size >= 2, f"vocab_size={self.vocab_size} must be at least 2: an answer is one of two tokens or more"
        )
        require(self.init_std > 0, f"init_std={self.init_std} must be positive")
        require(self.init_std_outside > 0, f"init_std_outside={self.init_std_outside} must be positive")
        require(0 <= self.forget <= 1, f"forget={self.forget} must lie in [0, 1]")
        require(self.learning_rate >= 0, f"learning_rate={self.learning_rate} must be ≥ 0")
        for name in ("clamp", "threshold", "row_norm"):
            limit = getattr(self, name)
            require(limit is None or limit > 0, f"{name}={limit} must be positive, or None for no limit")
        require(
            self.clamp is None or self.threshold is None or self.threshold <= self.clamp,
            f"threshold={self.threshold} above clamp={self.clamp} would leave nothing of σ; make it smaller",
        )
        require(
            self.implementation != "parallel" or not self.rates.limited,
            f"implementation='parallel' cannot put limits on σ (clamp={self.clamp}, threshold={self.threshold}, "
            f'row_norm={self.row_norm}), which look at it after every write; set them to None, or use implementation="recurrent"',
        )

    @property
    def rates(self) -> SigmaRates:
        """How σ is written."""
        return SigmaRates(self.forget, self.learning_rate, self.clamp, self.threshold, self.row_norm)

    @property
    def form(self) -> SigmaForm:
        """The form that ``implementation`` stands for."""
        if self.implementation == "auto":
            return "recurrent" if self.rates.limited else "parallel"
        return self.implementation

    @property
    def digits(self) -> int:
        """Binary digits of a token."""
        return (self.vocab_size - 1).bit_length()

    @property
    def has_fast_weights(self) -> bool:
        """σ is one."""
        return self.use_sigma

    @property
    def has_state(self) -> bool:
        """σ is carried from call to call."""
        return self.use_sigma

    def multiply_adds_per_token(self, length: int) -> int:
        """Of a forward pass, for each token: 4·N·D a field (6 with ``address="mapped"``), 2·N² to read and write σ and as much as N² to read
        the synapse, and N·V for the logits."""
        del length
        maps = (6 if self.use_sigma and self.address == "mapped" else 4) * self.n_neurons * self.d_model
        sigma = 3 * self.n_neurons**2 if self.use_sigma else 0
        return self.n_layer * (maps + sigma) + self.n_neurons * (1 if self.interface == "bits" else self.vocab_size)

    def make_architecture(self) -> TinyBDHArchitecture:
        """What it is made of."""
        return TinyBDHArchitecture(self)


class TinyBDHArchitecture(Architecture):
    """What a tiny-BDH is made of."""

    config: TinyBDHConfig

    def __init__(self, config: TinyBDHConfig):
        super().__init__(config)
        rows = ("batch", "time", "model")
        self.taps = {"pre": rows, "drive": rows, "post": rows, "z": rows}
        if config.use_sigma:
            self.taps |= {"key": rows}

    # Declarations.

    def sizes(self, batch_size: int) -> Sizes:
        """Lengths of the logical axes: the stream is as wide as there are neurons."""
        config, sizes = self.config, super().sizes(batch_size)
        own = {"head": 1, "neuron": config.n_neurons, "model": config.n_neurons, "wide": config.d_model}
        inputs, outputs = (
            (config.digits + 1, 1) if config.interface == "bits" else (config.vocab_size + 1, config.vocab_size)
        )
        return sizes._replace(axes={**sizes.axes, **own, "row": inputs, "vocab": outputs})

    def weights(self) -> dict[str, Any]:
        """The slow weights: r_in, field0 … with e, d_x, d_y (and d_q, d_k), w_read, synapse."""
        config, lengths = self.config, self.sizes(1).axes

        def weight(*axes: str, init: Any, trained: bool = True) -> Weight:
            return Weight(axes, tuple(lengths[axis] for axis in axes), init, config.state_dtype, trained)

        inside, outside = (nn.initializers.normal(std) for std in (config.init_std, config.init_std_outside))
        mapped = config.use_sigma and config.address == "mapped"
        names = ("e", "d_x", "d_y", "d_q", "d_k") if mapped else ("e", "d_x", "d_y")
        field = {name: weight("model", "wide", init=inside) for name in names}
        declared: dict[str, Any] = {"r_in": weight("row", "model", init=outside)}
        declared |= {f"field{index}": field for index in range(config.n_layer)}
        declared["w_read"] = weight("model", "vocab", init=outside)
        if config.use_sigma:
            zeros = nn.initializers.zeros
            declared["synapse"] = weight("layer", "head", "neuron", "model", init=zeros, trained=False)
        return declared

    def state(self, batch_size: int) -> FastState | None:
        """σ of every field and example, its rows the neurons read from: σᵀ [B, 1, N, N]."""
        config = self.config
        if not config.use_sigma:
            return None
        sizes = self.sizes(batch_size)
        present = {"previous_address"} if config.address == "previous" else set()
        memory = declare(Memory, sizes, (), written=declare(RuleState, sizes))
        field = declare(LayerState, sizes, present, memory=memory, use=declare(Use, sizes))
        return declare(FastState, sizes, layers=(field,) * config.n_layer)

    # The three functions.

    def embed(self, slow: Slow, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T] → [B, T, N]."""
        r_in = slow["r_in"].astype(self.config.compute_dtype)
        if self.config.interface == "tokens":
            return r_in[tokens] + r_in[-1:][None]
        shifts = jnp.arange(self.config.digits)[::-1].reshape(1, 1, -1)
        digits = ((tokens[..., None] >> shifts) & 1).astype(r_in.dtype)
        return jnp.concatenate([digits, jnp.ones_like(digits[..., :1])], axis=-1) @ r_in

    def layer_weights(self, slow: Slow, index: int) -> Slow:
        """Every field has its own maps, and its own synapse."""
        field = slow[f"field{index}"]
        return {**field, "synapse": slow["synapse"][index, 0]} if self.config.use_sigma else field

    def block(
        self, weights: Slow, x: jax.Array, state: LayerState | None, call: Call, draws: Any, setup: Setup
    ) -> LayerOutput:
        """One field over [B, T, N]."""
        del draws
        config = self.config
        maps = {name: weight.astype(x.dtype) for name, weight in weights.items() if name != "synapse"}
        drive = y2 = _low_rank(x, maps["e"], maps["d_x"])
        taps, metrics, after = {"pre": x, "drive": drive}, {}, None
        if config.use_sigma:
            query = self._address((x @ maps["e"]) @ maps["d_q"].T if config.address == "mapped" else x)
            key, previous = query, None
            if config.address == "mapped":
                key = self._address((x @ maps["e"]) @ maps["d_k"].T)
            elif config.address == "previous":
                carried = None if state is None else state.previous_address
                shifted, previous = shift_to_previous(query[:, None], carried, call.masks.valid, call.masks.reset)
                key, previous = shifted[:, 0], previous.astype(config.compute_dtype)
            wide = weights["synapse"].dtype
            query, key = query.astype(wide), key.astype(wide)
            known = query @ weights["synapse"]
            start = None if state is None or state.memory is None else state.memory.written.S[:, 0].mT
            if start is None:
                start = jnp.zeros((x.shape[0], config.n_neurons, config.n_neurons), wide)
            tokens = SigmaTokens(drive.astype(wide) + known, query, key)
            read, sigma = sigma_scan(tokens, start, call.masks, config.rates, config.form)
            y2 = read.astype(x.dtype)
            taps["key"] = key
            metrics = _measured("sigma", sigma) | _measured("synapse", weights["synapse"][None])
            if setup.final != "none":
                memory = Memory(RuleState(sigma.mT[:, None]))
                use = _use(SigmaTokens(read, query, key), None if state is None else state.use, call, config.learning_rate)
                after = LayerState(previous_address=previous, memory=memory, use=use)
        z = _low_rank(y2, maps["e"], maps["d_y"])
        taps |= {"post": y2, "z": z}
        return LayerOutput(x + z if config.residual else z, after, taps, metrics=metrics)

    def readout(self, slow: Slow, x: jax.Array) -> jax.Array:
        """[B, T, N] → logits [B, T, V]."""
        w_read = slow["w_read"].astype(self.config.compute_dtype)
        logits = jnp.einsum("btn,nv->btv", x, w_read, preferred_element_type=self.config.state_dtype)
        if self.config.interface == "tokens":
            return logits
        others = jnp.full((*logits.shape[:2], self.config.vocab_size - 2), NEVER, logits.dtype)
        return jnp.concatenate([jnp.zeros_like(logits), logits, others], axis=-1)

    # How they compose.

    def finish(
        self, fast: FastState | None, layers: tuple[Any, ...], call: Call, setup: Setup, shared: Any = None
    ) -> FastState | BatchMean | None:
        """The state after the last token."""
        if setup.final == "none" or not self.config.use_sigma:
            return None
        count = jnp.sum(call.places.counted, axis=1)
        if fast is not None and fast.count is not None:
            count = count + keep(fast.count, call.places.continues)
        return finish_state(FastState(layers, shared, call.places.end_position, count), setup)

    def _address(self, activity: jax.Array) -> jax.Array:
        if self.config.address_norm == "none":
            return activity
        wide = activity.astype(self.config.state_dtype)
        square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(square + ADDRESS_NORM_EPSILON)).astype(activity.dtype)


def _low_rank(x: jax.Array, e: jax.Array, d: jax.Array) -> jax.Array:
    """relu((x E) Dᵀ) of x [B, T, N]."""
    return jax.nn.relu((x @ e) @ d.T)


def _measured(name: str, matrices: jax.Array) -> dict[str, jax.Array]:
    """What is logged of σ after the last token [B, N, N], and of the synapse: the share of entries that are not zero, the norm, and the
    size of the strongest, means over the examples."""
    matrices = jax.lax.stop_gradient(matrices)
    return {
        f"{name}_nonzero": jnp.mean((matrices != 0).astype(matrices.dtype)),
        f"{name}_norm": jnp.mean(jnp.sqrt(jnp.sum(jnp.square(matrices), axis=(1, 2)))),
        f"{name}_largest": jnp.mean(jnp.max(jnp.abs(matrices), axis=(1, 2))),
    }


def _use(tokens: SigmaTokens, before: Use | None, call: Call, learning_rate: float) -> Use:
    """How much each row was used, over this call and the episode's earlier ones."""
    counted = call.places.counted
    strength = jnp.einsum("btn,bt->bn", jnp.abs(tokens.query), counted.astype(tokens.query.dtype))
    writes = counted if call.masks.write is None else counted * call.masks.write
    size = writes.astype(tokens.drive.dtype) * jnp.sum(jnp.square(tokens.drive), axis=-1)
    energy = learning_rate**2 * jnp.einsum("btn,bt->bn", jnp.square(tokens.key), size)
    use = Use(strength[:, None], energy[:, None])
    if before is None:
        return use
    return jax.tree.map(lambda now, then: now + keep(then, call.places.continues), use, before)


CONFIG = TinyBDHConfig
"""The entry of the table of models."""
