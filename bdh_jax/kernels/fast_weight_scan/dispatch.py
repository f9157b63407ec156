"""The public operation, its argument checks, and the choice between its forms.

Axis letters: see :mod:`bdh_jax.types`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.config import ConfigError
from bdh_jax.kernels.fast_weight_scan import pallas, reference, xla
from bdh_jax.kernels.fast_weight_scan.arguments import Dynamics, Final, Rate, ScanRule, Stretch, Wanted
from bdh_jax.kernels.fast_weight_scan.stretch import coefficients_like
from bdh_jax.parallel.collectives import WHOLE, ShardAxes, vary_like

Form = Literal["auto", "recurrent", "chunked", "parallel", "pallas", "pallas_interpret"]
FORMS = ("auto", "recurrent", "chunked", "parallel", "pallas", "pallas_interpret")


def choose_form(length: int, width: int, chunk_size: int) -> Form:
    """The form "auto" stands for, by multiply-adds per token and neuron.

    The parallel form spends T of them on scores (half of it masked away) and the chunked form 2·D + C, so the parallel
    form is cheaper up to about T = 2·D.

    Args:
      length: T.
      width: D.
      chunk_size: C.
    """
    if length == 1:
        return "recurrent"
    return "parallel" if length <= max(2 * width, chunk_size) else "chunked"


def fast_weight_scan(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: Any = None,
    *,
    learning_rate: Rate = 1.0,
    decay: Rate = 1.0,
    valid: jax.Array | None = None,
    reset: jax.Array | None = None,
    implementation: Form = "auto",
    chunk_size: int = 128,
    final: Final = "full",
    sum_heads: bool = False,
    rule: ScanRule = reference.HEBBIAN,
    write_gate: jax.Array | None = None,
    scores: jax.Array | None = None,
    axes: ShardAxes = WHOLE,
) -> tuple[jax.Array, Any]:
    """Read from and write to a matrix S at every token: r_t = q_t @ S_t, then S_{t+1} = λ S_t + η k_t ⊗ x_t.

    Strictly causal: a token reads before it writes. Linear attention is this with λ = η = 1 and rotated codes as query
    and key; Hebbian fast weights use addresses. All forms compute the same function and differ in speed. Another ``rule`` replaces the
    second formula; what it cannot do it says itself, and is refused.

    Args:
      query: [B, T, K], or [B, H, T, N] to keep a read per head.
      key: shape of ``query``.
      value: [B, T, D], shared by all heads; or [B, H, T, D] beside a ``query`` of that kind.
      state: S_0, [B, K, D] (or [B, H, N, D]); None starts from zeros and skips the initial read. A rule that keeps more than S takes a
        pytree of arrays [B, ...], never None.
      learning_rate: η ≥ 0, a scalar, one per head [H], or [B or 1, H or 1, T or 1, N or 1] for each example, head, token and row. With
        [B, T, K] inputs the heads are H equal parts of K.
      decay: λ in (0, 1], likewise. One a row exists token by token only.
      valid: [B, T] bool. An invalid token neither writes nor decays. None: all valid.
      reset: [B, T] bool. S is zero when that token reads: a new episode. None: no resets.
      implementation: "recurrent" scans tokens (the reference), "chunked" scans chunks, "parallel" is one masked product,
        "pallas" is the compiled kernel (TPU), "pallas_interpret" the same kernel interpreted anywhere, "auto"
        chooses by length among those that the rule has.
      chunk_size: tokens per chunk of the chunked and Pallas forms.
      final: "full" returns S_T, "mean" its mean over the batch [1, ...], "none" returns None in its place.
      sum_heads: sum the read over the heads, always so for [B, T, K] inputs. Cheaper than summing the result.
      rule: how a token writes (:class:`bdh_jax.kernels.fast_weight_scan.arguments.ScanRule`).
      write_gate: β in [0, 1], [B, T], how much of each token is written, of a rule that takes one and of no other.
      scores: q_t · k_s [B, H, T, T] beside a ``query`` [B, H, T, N], where they are known (``own_scores``): for ``implementation="parallel"``
        of a linear rule, and rates that all rows of a head share. The keys then matter for S_T alone. [B, 1, T, T], their sum over heads,
        where nothing tells the heads apart.
      axes: inside ``jax.shard_map``, of the mesh. Where it splits time, arrays hold the part of time at hand but ``state``, which is that
        before the first part, and what is returned of S_T is that after the last. Of linear rules, and rates that all rows share.

    Returns:
      read [B, T, D] (or [B, H, T, D] without ``sum_heads``) and S_T in the form of ``state``, both float32 or wider.

    Raises:
      ValueError: for shapes that do not fit each other.
      ConfigError: for a form that does not exist, that cannot run on this machine, or that this rule or these rates do not have.
    """
    _check_choices(implementation, final, chunk_size)
    _check_shapes(query, key, value, state)
    _check_masks(query, valid=valid, reset=reset)
    heads = _check_rates(query, learning_rate=learning_rate, decay=decay)
    if _is_array(state):
        state = state.astype(jnp.promote_types(jnp.float32, query.dtype))

    if (write_gate is not None) != rule.gated:
        problem = "needs a write_gate [B, T]" if write_gate is None else "takes no write_gate"
        raise ValueError(f"rule {rule.name!r} {problem}")
    if scores is not None:
        _check_scores(scores, query, implementation, rule, learning_rate)
    shape, dynamics = query.shape, Dynamics(learning_rate, decay)
    value = value[:, None] if value.ndim == 3 else value
    form = _form(implementation, rule, Stretch(query, key, value), dynamics, chunk_size)
    if query.ndim == 3:
        sum_heads = True
        query, key, state = _split_heads(query, key, state, heads)
    elif sum_heads and heads == 1 and value.shape[1] == 1 and form != "recurrent":
        # Heads that share their rates and their values and are summed are one head of K neurons. Token by token that would only keep
        # XLA from writing S in place.
        query, key, state = _merge_heads(query, key, state)
        scores = None if scores is None else jnp.sum(scores, axis=1, keepdims=True)
    if scores is not None and scores.shape[1] != query.shape[1]:
        raise ValueError(
            f"scores {scores.shape} are summed over heads, which values, rates or the read tell apart; give each head's"
        )
    stretch = Stretch(query, key, value, write_gate, valid, reset, scores)
    wanted = Wanted(final, sum_heads)
    read: jax.Array
    next_state: Any
    if axes.sequence:
        read, next_state = _over_time(form, rule, stretch, state, dynamics, wanted, chunk_size, axes)
    else:
        read, next_state = _run(form, rule, stretch, state, dynamics, wanted, chunk_size)
    if _is_array(next_state):
        next_state = next_state.reshape(next_state.shape[0], *shape[1:-2], shape[-1], next_state.shape[-1])
    return read[:, 0] if sum_heads else read, next_state


def _form(implementation: Form, rule: ScanRule, stretch: Stretch, dynamics: Dynamics, chunk_size: int) -> Form:
    """The form that runs. An explicit choice is taken or refused; "auto" takes what there is."""
    shape = jnp.shape(dynamics.decay)
    rows = len(shape) == 4 and shape[3] > 1
    if implementation == "auto":
        if not rule.has_matrix_form or rows:
            return "recurrent"
        return choose_form(stretch.query.shape[-2], stretch.value.shape[-1], chunk_size)
    if implementation == "recurrent":
        return implementation
    if not rule.has_matrix_form:
        raise ConfigError(
            f"implementation={implementation!r} cannot run rule {rule.name!r}: it has no matrix form, only the one token by token; use "
            'implementation="recurrent" (or "auto")'
        )
    if rows:
        raise ConfigError(
            f"implementation={implementation!r} has no decay for each row {shape}: there is only the form token by token; use "
            'implementation="recurrent" (or "auto")'
        )
    if implementation in ("pallas", "pallas_interpret"):
        if not rule.linear:
            raise ConfigError(
                f"implementation={implementation!r} cannot run rule {rule.name!r}: the kernel writes k ⊗ x as it is; use "
                'implementation="chunked" (kernel="xla")'
            )
        if len(shape) == 4 or stretch.value.shape[1] > 1:
            what = "a decay for each token" if len(shape) == 4 else "values for each head"
            raise ConfigError(
                f'implementation={implementation!r} cannot take {what}; use implementation="chunked" (kernel="xla")'
            )
    return implementation


def _run(
    form: Form,
    rule: ScanRule,
    stretch: Stretch,
    state: Any,
    dynamics: Dynamics,
    wanted: Wanted,
    chunk_size: int,
) -> tuple[jax.Array, Any]:
    if form == "recurrent":
        if state is None:
            shape = (*stretch.query.shape[:2], stretch.query.shape[-1], stretch.value.shape[-1])
            state = jnp.zeros(shape, jnp.promote_types(jnp.float32, stretch.query.dtype))
        read, state = reference.recurrent(stretch, state, dynamics, rule.write)
        if wanted.sum_heads:
            read = jnp.sum(read, axis=1, keepdims=True)
        if wanted.final == "mean":
            state = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0, keepdims=True), state)
        return read, None if wanted.final == "none" else state

    correct = None if rule.linear else rule.correct
    if rule.linear:
        stretch = _with_rates(stretch, dynamics.learning_rate)
    if form == "parallel":
        return xla.parallel(stretch, state, dynamics, wanted, correct)
    if form == "chunked":
        return xla.chunked(stretch, state, dynamics, wanted, chunk_size, correct)
    if form == "pallas":
        pallas.check_platform()
    return pallas.chunked(stretch, state, dynamics.decay, wanted, chunk_size, interpret=form == "pallas_interpret")


def _over_time(
    form: Form,
    rule: ScanRule,
    stretch: Stretch,
    state: jax.Array | None,
    dynamics: Dynamics,
    wanted: Wanted,
    chunk_size: int,
    axes: ShardAxes,
) -> tuple[jax.Array, jax.Array | None]:
    """As :func:`_run`, of one part of time: S_T = (what is kept) · S_0 + (what is written), and likewise the read, so that each part
    begins with zeros and adds what earlier ones left for it. That, a matrix like S, is all that crosses."""
    if not rule.linear:
        raise ConfigError(
            f"mesh.sequence splits time, and what rule {rule.name!r} writes depends on what S holds; set mesh.sequence=1, or use a linear rule"
        )
    log_decay = xla.ln_decay(dynamics.decay, stretch.query)
    if jnp.ndim(dynamics.decay) == 4 and jnp.shape(dynamics.decay)[3] > 1:
        raise ConfigError("mesh.sequence splits time, and a decay for each row goes token by token; set mesh.sequence=1")
    read, written = _run(form, rule, stretch, None, dynamics, Wanted("full", wanted.sum_heads), chunk_size)
    found = coefficients_like(stretch.query, log_decay, stretch.valid, stretch.reset)
    # [B or 1, H or 1] and two more axes, as S has them.
    kept = vary_like(found.kept[..., None, None], written)

    def later(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return first[0] * second[0], second[0] * first[1] + second[1]

    kept_before, before = axes.before((kept, written), later, (jnp.ones_like(kept), jnp.zeros_like(written)))
    if state is not None:
        before = before + kept_before * state
    initial = found.initial[..., None] * reference.read_all(stretch.query, before)
    read = read + (jnp.sum(initial, axis=1, keepdims=True) if wanted.sum_heads else initial)
    if wanted.final == "none":
        return read, None
    after = kept * before + written
    if wanted.final == "mean":
        after = jnp.mean(after, axis=0, keepdims=True)
    return read, axes.from_last(after)


def _with_rates(stretch: Stretch, learning_rate: Rate) -> Stretch:
    """The stretch with η and β in its values, or in its keys where they differ between heads or rows."""
    key, value, scores = stretch.key, stretch.value, stretch.scores
    if stretch.write_gate is not None:
        value = (value * stretch.write_gate[:, None, :, None]).astype(value.dtype)
    if not (isinstance(learning_rate, float) and learning_rate == 1.0):
        rate = jnp.asarray(learning_rate, jnp.promote_types(jnp.float32, key.dtype))
        rate = rate if rate.ndim == 4 else rate.reshape(1, -1, 1, 1)
        if rate.shape[1] == 1 and rate.shape[3] == 1:
            value = (value * rate).astype(value.dtype)
        else:
            key = (key * rate).astype(key.dtype)
            scores = None if scores is None else scores * jnp.swapaxes(rate, 2, 3).astype(scores.dtype)
    return stretch._replace(key=key, value=value, write_gate=None, scores=scores)


def _split_heads(
    query: jax.Array, key: jax.Array, state: jax.Array | None, heads: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """[B, T, K] → [B, H, T, N] for query and key; [B, K, D] → [B, H, N, D] for the state."""
    batch, length, neurons = query.shape
    if neurons % heads:
        raise ValueError(f"the K={neurons} rows do not divide into the {heads} heads of the rates")
    if heads == 1:  # no transpose, which could cost a copy
        return query[:, None], key[:, None], None if state is None else state[:, None]
    shape = (batch, length, heads, neurons // heads)
    query, key = (jnp.swapaxes(a.reshape(shape), 1, 2) for a in (query, key))
    return query, key, None if state is None else state.reshape(batch, heads, neurons // heads, -1)


def _merge_heads(query: jax.Array, key: jax.Array, state: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """[B, H, T, N] → [B, 1, T, K] for query and key; [B, H, N, D] → [B, 1, K, D] for the state."""
    batch, heads, length, neurons = query.shape
    query, key = (jnp.swapaxes(a, 1, 2).reshape(batch, 1, length, heads * neurons) for a in (query, key))
    return query, key, None if state is None else state.reshape(batch, 1, heads * neurons, -1)


def _is_array(state: Any) -> bool:
    """Whether a state is S alone, and no pytree."""
    return isinstance(state, jax.Array | np.ndarray)


def _check_choices(implementation: str, final: str, chunk_size: int) -> None:
    if implementation not in FORMS:
        raise ConfigError(f"implementation={implementation!r} is not one of {', '.join(map(repr, FORMS))}")
    if final not in ("full", "mean", "none"):
        raise ValueError(f"final={final!r} is not one of 'full', 'mean', 'none'")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array, state: Any) -> None:
    if query.ndim not in (3, 4) or query.shape != key.shape:
        raise ValueError(f"query {query.shape} and key {key.shape} must both be [B, T, K] or both [B, H, T, N]")
    batch, length = query.shape[0], query.shape[-2]
    shared = value.ndim == 3 and value.shape[:2] == (batch, length)
    of_heads = value.ndim == query.ndim == 4 and value.shape[:3] == query.shape[:3]
    if not (shared or of_heads):
        heads = f" or [{batch}, {query.shape[1]}, {length}, D]" if query.ndim == 4 else ""
        raise ValueError(f"value has shape {value.shape}; with query {query.shape} it must be [{batch}, {length}, D]{heads}")
    if length < 1:
        raise ValueError("the sequence is empty: T must be at least 1")
    if _is_array(state):
        rows = (*query.shape[:-2], query.shape[-1], value.shape[-1])
        if state.shape != rows:
            raise ValueError(
                f"state has shape {state.shape}; with query {query.shape} and value {value.shape} it must be {rows}"
            )
    elif state is not None and query.ndim == 3:
        raise ValueError(
            f"state is a {type(state).__name__}, which stands beside queries [B, H, T, N] only; query has shape {query.shape}"
        )


def _check_scores(scores: jax.Array, query: jax.Array, implementation: Form, rule: ScanRule, learning_rate: Rate) -> None:
    if implementation != "parallel" or not rule.linear:
        raise ValueError(
            f"scores are for the parallel form of a linear rule, not for implementation={implementation!r} of rule {rule.name!r}; leave "
            "them out"
        )
    if jnp.ndim(learning_rate) == 4 and jnp.shape(learning_rate)[3] > 1:
        raise ValueError(f"scores cannot have a learning_rate for each row, {jnp.shape(learning_rate)}; leave them out")
    length = query.shape[-2]
    shapes = [(query.shape[0], heads, length, length) for heads in (query.shape[1], 1)]
    if query.ndim != 4 or scores.shape not in shapes:
        raise ValueError(
            f"scores have shape {scores.shape}; with query {query.shape} they must be [B, H, T, T] or [B, 1, T, T]"
        )


def _check_masks(query: jax.Array, **masks: jax.Array | None) -> None:
    shape = (query.shape[0], query.shape[-2])
    for name, mask in masks.items():
        if mask is not None and (mask.shape != shape or mask.dtype != bool):
            raise ValueError(f"{name} has shape {mask.shape} and dtype {mask.dtype}; it must be bool {list(shape)}")


def _check_rates(query: jax.Array, **rates: Rate) -> int:
    """How many heads the rates speak of; 1 if all heads have the same."""
    batch, length, neurons = query.shape[0], query.shape[-2], query.shape[-1]
    heads = 1
    for name, rate in rates.items():
        shape = jnp.shape(rate)
        if len(shape) == 4 and query.ndim == 4:
            full = (batch, query.shape[1], length, neurons)
            fits = all(have in (1, want) for have, want in zip(shape, full, strict=True))
            # Rows of heads that are merged would no longer be told apart.
            heads = max(heads, query.shape[1] if shape[3] > 1 else shape[1])
        else:
            fits = not shape or (len(shape) == 1 and (query.ndim == 3 or shape[0] in (1, query.shape[1])))
            heads = max([heads, *shape]) if fits else heads
        if not fits:
            one = f"one rate per head [{query.shape[1]}], or " if query.ndim == 4 else "one rate per head [H]"
            four = "[B or 1, H or 1, T or 1, N or 1]" if query.ndim == 4 else ""
            raise ValueError(f"{name} has shape {shape}; with query {query.shape} it must be a scalar, {one}{four}")
    return heads
