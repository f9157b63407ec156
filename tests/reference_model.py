"""The whole model in NumPy float64, one example, one token and one neuron matrix at a time, written from the equations.

It shares no code with the library, so an error in one is not repeated in the other. Every token runs through all layers
before the next token starts, rope is a complex rotation, and what an invalid token did is thrown away. What a write rule does is
in :mod:`tests.contract.twins`.

Axis letters: B batch, T time, L layer, H head, N neurons per head, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.contract import twins

Writes = dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]]
"""(example, token, layer) → key [H, N] and value [D]."""


@dataclasses.dataclass
class State:
    """What one example carries; arrays as in ``FastState`` without the batch axis."""

    attention: np.ndarray  # [L, H, N, D]
    memory: list[twins.State]  # what the rule keeps, of each layer, or [one] shared
    gram: np.ndarray  # [L, K, K], or [1, K, K] shared, if it is kept beside what the rule keeps
    previous_address: np.ndarray  # [L, H, N]
    previous_code: np.ndarray  # [L, H, N]
    position: int
    strength: np.ndarray  # [L, H, N]
    energy: np.ndarray  # [L, H, N]
    count: float


def fresh(config: Any) -> State:
    """The state at the start of an episode."""
    layers, heads, neurons, width = config.n_layer, config.n_head, config.n_neurons // config.n_head, config.d_model
    slots = 1 if config.fast.scope == "shared" else layers
    rows = np.zeros((layers, heads, neurons))
    return State(
        attention=np.zeros((layers, heads, neurons, width)),
        memory=[twins.TWINS[config.fast.rule].start(twins.Sizes(heads, neurons, width)) for _ in range(slots)],
        gram=np.zeros((slots, heads * neurons, heads * neurons)),
        previous_address=rows.copy(),
        previous_code=rows.copy(),
        position=0,
        strength=rows.copy(),
        energy=rows.copy(),
        count=0.0,
    )


def run(
    config: Any,
    slow: Mapping[str, Any],
    tokens: np.ndarray,
    states: Sequence[State] | None = None,
    valid: np.ndarray | None = None,
    reset: np.ndarray | None = None,
    writes: Writes | None = None,
    kept: np.ndarray | None = None,
) -> tuple[np.ndarray, list[State], Writes]:
    """Run a batch.

    Args:
      config: a ``BDHConfig``; only its numbers and names are read.
      slow: weights by name.
      tokens: [B, T].
      states: one :class:`State` per example, or None for fresh ones. Not modified.
      valid: [B, T] bool or None.
      reset: [B, T] bool or None.
      writes: (key, value) by (example, token, layer) as an earlier run returned them, to be written in place of this run's
        own. That is what a gradient sees if it stops at the writes.
      kept: [L, B, H, T, N] bool, what dropout at ``config.dropout`` keeps, or None without dropout.

    Returns:
      logits [B, T, V], the final states, and the writes.
    """
    slow = {name: np.asarray(array, np.float64) for name, array in slow.items()}
    batch, length = tokens.shape
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    reset = np.zeros(tokens.shape, bool) if reset is None else reset
    logits = np.zeros((batch, length, slow["lm_head"].shape[1]))
    finals, made = [], {}
    for b in range(batch):
        state = fresh(config) if states is None else dataclasses.replace(states[b])
        for t in range(length):
            if reset[b, t]:
                state = fresh(config)
            scale = None if kept is None else kept[:, b, :, t] / (1 - config.dropout)
            x, changed = _token(config, slow, int(tokens[b, t]), state, (b, t), writes, made, scale)
            logits[b, t] = x @ slow["lm_head"]
            if valid[b, t]:
                state = changed
        finals.append(state)
    return logits, finals, made


def _token(
    config: Any,
    slow: Mapping[str, np.ndarray],
    token: int,
    state: State,
    place: tuple[int, int],
    writes: Writes | None,
    made: Writes,
    scale: np.ndarray | None,
) -> tuple[np.ndarray, State]:
    """All layers at one token. Returns the last x and the state as it is if the token counts."""
    fast = config.fast
    heads = config.n_head
    rate, decay = np.full(heads, float(fast.learning_rate)), np.full(heads, float(fast.decay))
    if "fast_log_learning_rate" in slow:
        rate = np.exp(slow["fast_log_learning_rate"])
    if "fast_logit_decay" in slow:
        decay = 1 / (1 + np.exp(-slow["fast_logit_decay"]))
    kept = np.asarray(config.attention_decay)
    if "attention_logit_decay" in slow:
        kept = 1 / (1 + np.exp(-slow["attention_logit_decay"]))
    attention, memory, gram = state.attention.copy(), list(state.memory), state.gram.copy()
    addresses, codes = state.previous_address.copy(), state.previous_code.copy()
    strength, energy = state.strength.copy(), state.energy.copy()

    x = _norm(slow["embed"][token])
    for layer in range(config.n_layer):
        code = np.maximum(np.einsum("d,dhn->hn", x, slow["encoder"]), 0)
        if config.code_top_k is not None:
            code = np.maximum(code - np.sort(code, axis=None)[-config.code_top_k - 1], 0)
        if config.attention == "rope":
            query = key = _rotate(code, state.position, config.rope_theta, config.rope_period or code.shape[1])
        else:
            query, key = code, state.previous_code[layer]
        attended = np.stack([_norm(query[h] @ attention[layer, h]) for h in range(heads)])
        gate = np.maximum(np.einsum("hd,hdn->hn", attended, slow["encoder_v"]), 0)
        gated = code * gate * (1 if scale is None else scale[layer])
        y = np.einsum("hn,hnd->d", gated, slow["decoder"])
        damping = np.broadcast_to(kept, heads)[:, None, None]
        attention[layer] = damping * attention[layer] + key[:, :, None] * x
        codes[layer] = code

        if fast.enabled:
            slot = 0 if fast.scope == "shared" else layer
            source = {"code": code, "gated": code * gate, "gate": gate}[fast.address_source]
            address = _address(source, fast.address_norm, fast.address_active)
            written = address if fast.address == "current" else state.previous_address[layer]
            made[(*place, layer)] = (written, x)
            written, value = made[(*place, layer)] if writes is None else writes[(*place, layer)]
            given = twins.Token(
                config=fast,
                slow=slow,
                synapse=slow["synapse"][slot] if "synapse" in slow else np.zeros(attention.shape[1:]),
                query=address,
                key=written,
                value=value,
                rate=rate,
                # Once a token for every S: a shared one decays before the first layer writes.
                decay=decay if slot == layer else np.ones(heads),
                gate=_share_written(slow, value),
            )
            read, memory[slot] = twins.TWINS[fast.rule].write(memory[slot], given)
            y = y + given.read(given.synapse) + read
            flat = written.ravel()
            gram[slot] = given.decay[0] * gram[slot] + rate[0] * given.gate * np.outer(flat, flat)
            addresses[layer] = address
            strength[layer] += np.abs(address)
            energy[layer] += (rate[:, None] * written) ** 2 * np.sum(value**2) * given.gate**2
        x = _norm(x + _norm(y))
    changed = State(attention, memory, gram, addresses, codes, state.position + 1, strength, energy, state.count + 1)
    return x, changed


def _share_written(slow: Mapping[str, np.ndarray], x: np.ndarray) -> float:
    """β, the share of a token that is written."""
    return float(1 / (1 + np.exp(-(slow["fast_gate"] @ x + slow["fast_gate_bias"])))) if "fast_gate" in slow else 1.0


def _norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5)


def _rotate(code: np.ndarray, position: int, theta: float, period: int) -> np.ndarray:
    """Neighbouring neurons as real and imaginary part, turned by position · θ^(−2j/P) radians, j counted anew after each period P."""
    heads, neurons = code.shape
    pairs = code[:, 0::2] + 1j * code[:, 1::2]
    pairs = pairs * np.exp(1j * position * theta ** (-2 * (np.arange(neurons // 2) % (period // 2)) / period))
    return np.stack([pairs.real, pairs.imag], axis=2).reshape(heads, neurons)


def _address(code: np.ndarray, norm: str, active: int) -> np.ndarray:
    if norm == "kwta":
        code = np.where(code >= np.sort(code, axis=None)[-active], code, 0)
        norm = "l2"
    if norm == "centred":
        code = code - code.mean()
        norm = "l2"
    if norm == "l2":
        return code / np.sqrt(np.sum(code**2) + 1e-12)
    if norm == "sum":
        return code / max(1.0, np.sum(code))
    if norm != "none":
        raise ValueError(f"the reference has no address norm {norm!r}")
    return code
