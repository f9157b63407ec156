"""Two ways to find out whether a model reads the future, for any function from tokens to logits.

Axis letters: B batch, T time, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def moved_by_later_tokens(logits: Callable[[np.ndarray], jax.Array], tokens: np.ndarray, vocab: int) -> float:
    """The largest change of any logit when only tokens after its position are changed; exactly 0 for a causal model.

    Args:
      logits: tokens [B, T] to logits [B, T, V], the same compiled function for every call.
      tokens: [B, T].
      vocab: V.

    Raises:
      AssertionError: if changing tokens changes nothing at all: then this says nothing about the future either.
    """
    base = np.asarray(logits(tokens))
    assert np.isfinite(base).all()
    worst = 0.0
    for cut in range(1, tokens.shape[1]):
        changed = tokens.copy()
        changed[:, cut:] = (changed[:, cut:] + 1 + cut) % vocab
        moved = np.asarray(logits(changed)) != base
        assert moved[:, cut:].any(), f"tokens from position {cut} on have no influence at all"
        if moved[:, :cut].any():
            worst = max(worst, np.abs(np.asarray(logits(changed)) - base)[:, :cut].max())
    return float(worst)


def influence(gradients: Callable[[np.ndarray], jax.Array], tokens: np.ndarray, vocab: int) -> np.ndarray:
    """How much each token's embedding moves the logits at each position, by gradient.

    Args:
      gradients: weights of the logits [M, B, T, V] to the gradients of the M weighted sums by the embedding table, [M, V, D].
      tokens: [B, T], all distinct, so that every row of the table belongs to one token.
      vocab: V.

    Returns:
      [B, T, B, T]: entry [b, t, c, s] is the norm of the gradient of a random mix of the logits at (b, t) by the embedding of
      token (c, s). A causal model has exact zeros wherever c ≠ b or s > t.
    """
    batch, length = tokens.shape
    assert len(np.unique(tokens)) == tokens.size
    mix = np.random.default_rng(1).normal(size=vocab)
    here = np.eye(batch * length).reshape(-1, batch, length, 1) * mix
    norms = np.linalg.norm(np.asarray(gradients(here), np.float64), axis=-1)[:, tokens]
    return norms.reshape(batch, length, batch, length)


def at_once(logits: Callable[..., jax.Array], embed: np.ndarray, *rest) -> Callable[[np.ndarray], jax.Array]:
    """``gradients`` of :func:`influence`, in one program.

    Args:
      logits: embedding table [V, D] and ``rest`` to logits [B, T, V].
      embed: [V, D].
      *rest: further arguments of ``logits``.
    """

    def all_gradients(here, embed, *rest):
        out, pull = jax.vjp(lambda embed: logits(embed, *rest), embed)
        return jax.vmap(pull)(here.astype(out.dtype))[0]

    return lambda here: jax.jit(all_gradients)(jnp.asarray(here), jnp.asarray(embed), *rest)


def allowed(tokens: np.ndarray, valid: np.ndarray | None, reset: np.ndarray | None) -> np.ndarray:
    """[B, T, B, T] bool: which tokens a position may see: itself, and the valid ones before it in its own episode."""
    batch, length = tokens.shape
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    episode = np.zeros(tokens.shape, int) if reset is None else np.cumsum(reset, axis=1)
    may = np.zeros((batch, length, batch, length), bool)
    for b in range(batch):
        for t in range(length):
            for s in range(t + 1):
                may[b, t, b, s] = s == t or (valid[b, s] and episode[b, s] == episode[b, t])
    return may
