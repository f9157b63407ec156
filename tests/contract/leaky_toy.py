"""The write-back of bdh-fast-weights v0.2 as published, which reads the future as soon as there are two layers.

One buffer F [K, D], zero at the start of a sequence, is shared by all layers, and a layer runs over all tokens before the next
one starts. So the second layer reads at token t what the first wrote at tokens after t. It is here for the checks of causality
to find.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def logits(slow, tokens, *, layers: int, learning_rate: float, stop_gradient: bool = True):
    """Logits [B, T, V] and F [B, K, D] after the sequence.

    Args:
      slow: weights in this library's shapes.
      tokens: [B, T].
      layers: L.
      learning_rate: η.
      stop_gradient: the published code has no gradient through writes.
    """
    _, heads, neurons = slow["encoder"].shape

    def norm(x):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)

    def one(tokens):
        length = len(tokens)
        x = norm(slow["embed"][tokens])
        width = x.shape[-1]
        buffer = jnp.zeros((heads * neurons, width), x.dtype)
        angle = jnp.arange(length)[:, None] * 65536.0 ** (-2 * jnp.arange(neurons // 2)[None] / neurons)
        turn = jnp.exp(1j * angle)
        strictly_past = jnp.tril(jnp.ones((length, length), bool), -1)
        for _ in range(layers):
            code = jax.nn.relu(jnp.einsum("td,dhn->htn", x, slow["encoder"]))
            pairs = (code[..., 0::2] + 1j * code[..., 1::2]) * turn[None]
            scores = jnp.real(jnp.einsum("htj,hsj->hts", pairs, jnp.conj(pairs)))  # the dot product of rotated codes
            attended = norm(jnp.where(strictly_past[None], scores, 0) @ x[None])
            gate = jax.nn.relu(jnp.einsum("htd,hdn->htn", attended, slow["encoder_v"]))
            y = jnp.einsum("htn,hnd->td", code * gate, slow["decoder"])
            flat = jnp.swapaxes(code, 0, 1).reshape(length, -1)
            previous = jnp.concatenate([jnp.zeros_like(flat[:1]), flat[:-1]])  # the first token writes nothing

            def token(buffer, inputs):
                code, previous, x = inputs
                write = learning_rate * previous[:, None] * x[None]
                return buffer + (jax.lax.stop_gradient(write) if stop_gradient else write), code @ buffer

            buffer, reads = jax.lax.scan(token, buffer, (flat, previous, x))
            x = norm(x + norm(y + reads))
        return x @ slow["lm_head"], buffer

    slow = jax.tree.map(jnp.asarray, slow)
    return jax.vmap(one)(tokens)
