"""The whole model in NumPy float64, one example, one token and one neuron matrix at a time, written from the equations.

It shares no code with the library, so an error in one is not repeated in the other. Every token runs through all layers
before the next token starts, rope is a complex rotation, and what an invalid token did is thrown away.

Axis letters: B batch, T time, L layer, H head, N neurons per head, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class State:
    """What one example carries; arrays as in ``FastState`` without the batch axis."""

    attention: np.ndarray  # [L, H, N, D]
    memory: np.ndarray  # [L, H, N, D], or [1, H, N, D] shared
    gram: np.ndarray  # [L, K, K], or [1, K, K] shared
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
        memory=np.zeros((slots, heads, neurons, width)),
        gram=np.zeros((slots, heads * neurons, heads * neurons)),
        previous_address=rows.copy(),
        previous_code=rows.copy(),
        position=0,
        strength=rows.copy(),
        energy=rows.copy(),
        count=0.0,
    )


def run(
    config: Any, slow: dict[str, np.ndarray], tokens: np.ndarray, states=None, valid=None, reset=None, writes=None, kept=None
):
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


def _token(config, slow, token, state, place, writes, made, scale):
    """All layers at one token. Returns the last x and the state as it is if the token counts."""
    fast = config.fast
    heads = config.n_head
    rate, decay = np.full(heads, float(fast.learning_rate)), np.full(heads, float(fast.decay))
    if "fast_log_learning_rate" in slow:
        rate = np.exp(slow["fast_log_learning_rate"])
    if "fast_logit_decay" in slow:
        decay = 1 / (1 + np.exp(-slow["fast_logit_decay"]))
    attention, memory, gram = state.attention.copy(), state.memory.copy(), state.gram.copy()
    addresses, codes = state.previous_address.copy(), state.previous_code.copy()
    strength, energy = state.strength.copy(), state.energy.copy()

    x = _norm(slow["embed"][token])
    for layer in range(config.n_layer):
        code = np.maximum(np.einsum("d,dhn->hn", x, slow["encoder"]), 0)
        if config.attention == "rope":
            query = key = _rotate(code, state.position, config.rope_theta)
        else:
            query, key = code, state.previous_code[layer]
        attended = np.stack([_norm(query[h] @ attention[layer, h]) for h in range(heads)])
        gate = np.maximum(np.einsum("hd,hdn->hn", attended, slow["encoder_v"]), 0)
        gated = code * gate * (1 if scale is None else scale[layer])
        y = np.einsum("hn,hnd->d", gated, slow["decoder"])
        damping = np.broadcast_to(config.attention_decay, heads)[:, None, None]
        attention[layer] = damping * attention[layer] + key[:, :, None] * x
        codes[layer] = code

        if fast.enabled:
            slot = 0 if fast.scope == "shared" else layer
            source = {"code": code, "gated": code * gate, "gate": gate}[fast.address_source]
            address = _address(source, fast.address_norm, fast.address_active)
            synapse = slow["synapse"][slot] if "synapse" in slow else np.zeros(memory.shape[1:])
            y = y + np.einsum("hn,hnd->d", address, synapse + _readable(fast, memory[slot], gram[slot]))
            if slot == layer:  # once a token for every S: a shared one decays before the first layer writes
                memory[slot] *= decay[:, None, None]
                gram[slot] *= decay[0]
            written = address if fast.address == "current" else state.previous_address[layer]
            made[(*place, layer)] = (written, x)
            written, value = made[(*place, layer)] if writes is None else writes[(*place, layer)]
            rows = rate[:, None] * written
            _write(fast, slow, memory[slot], gram[slot], synapse, written, value, rate)
            addresses[layer] = address
            strength[layer] += np.abs(address)
            energy[layer] += rows**2 * np.sum(value**2) * _gate(fast, slow, value) ** 2
        x = _norm(x + _norm(y))
    changed = State(attention, memory, gram, addresses, codes, state.position + 1, strength, energy, state.count + 1)
    return x, changed


def _readable(fast, memory, gram):
    if fast.rule != "mesa":
        return memory
    solution = np.linalg.solve(gram + fast.ridge * np.eye(len(gram)), memory.reshape(len(gram), -1))
    return solution.reshape(memory.shape)


def _write(fast, slow, memory, gram, synapse, key, value, rate):
    """Change S [H, N, D], which has decayed, and G [K, K] in place."""
    width, x = len(value), value
    if fast.rule in ("delta", "gated_delta", "longhorn", "mesa"):
        known = np.einsum("hn,hnd->d", key, synapse)
        if fast.rule != "mesa":
            known = known + np.einsum("hn,hnd->d", key, memory)
        value = value - known
    gate = _gate(fast, slow, x)
    value = gate * value
    if fast.rule == "longhorn":
        value = value / (1 + np.sum(rate[:, None] * key**2))
    if fast.rule == "oja":
        key = key - np.einsum("hnd,d->hn", memory, value) / width
    if fast.has_gram:
        gram += rate[0] * gate * np.outer(key.ravel(), key.ravel())
    memory += rate[:, None, None] * key[:, :, None] * value
    if fast.clamp is not None:
        np.clip(memory, -fast.clamp, fast.clamp, out=memory)
    if fast.threshold is not None:
        memory[np.abs(memory) < fast.threshold] = 0
    if fast.row_norm is not None:
        memory /= np.maximum(1, np.linalg.norm(memory, axis=-1, keepdims=True) / fast.row_norm)


def _gate(fast, slow, x):
    """β, the share of a token that is written."""
    return 1 / (1 + np.exp(-(slow["fast_gate"] @ x + slow["fast_gate_bias"]))) if fast.gated else 1.0


def _norm(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5)


def _rotate(code, position, theta):
    """Neighbouring neurons as real and imaginary part, turned by position · θ^(−2j/N) radians."""
    heads, neurons = code.shape
    pairs = code[:, 0::2] + 1j * code[:, 1::2]
    pairs = pairs * np.exp(1j * position * theta ** (-2 * np.arange(neurons // 2) / neurons))
    return np.stack([pairs.real, pairs.imag], axis=2).reshape(heads, neurons)


def _address(code, norm, active):
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
    return code
