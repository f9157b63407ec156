"""Weights under the names and shapes of the published BDH code (github.com/pathwaycom/bdh)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig

NAMES = ("embed.weight", "encoder", "encoder_v", "decoder", "lm_head")
BUFFER = "freqs"
"""Ends the name of what is no weight, such as the rotary frequencies."""


def from_pathway(
    state_dict: Mapping[str, np.ndarray], n_head: int | None = None, *, n_layer: int = 6, dropout: float = 0.1
) -> tuple[BDHConfig, dict[str, np.ndarray]]:
    """Read published weights.

    Args:
      state_dict: numpy arrays: ``embed.weight`` [V, D], ``encoder`` and ``encoder_v`` [H, D, N], ``decoder`` [H·N, D],
        ``lm_head`` [D, V]. A head tied to the embedding may be missing, or be ``lm_head.weight`` [V, D]. Other names (buffers such
        as the rotary frequencies) must end in ``freqs``.
      n_head: H, checked against the weights; None takes it from them.
      n_layer: L. Layers share weights, so the arrays do not tell; the published default is 6.
      dropout: the rate to train with; the weights do not tell that either.

    Returns:
      The configuration, without fast weights, and the slow weights, exact copies in this library's shapes. Add fast
      weights with ``dataclasses.replace(config, fast=FastWeightConfig(...))``.

    Raises:
      ValueError: for a missing or unknown name, shapes that do not fit each other, or weights that are no finite floats.
    """
    state_dict = _with_head(state_dict)
    missing = [name for name in NAMES if name not in state_dict]
    unknown = [name for name in state_dict if name not in NAMES and not name.endswith(BUFFER)]
    if missing or unknown:
        raise ValueError(
            f"not a BDH state dict: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; expected {', '.join(NAMES)}"
        )
    embed, encoder, encoder_v, decoder, lm_head = (np.asarray(state_dict[name]) for name in NAMES)
    if encoder.ndim != 3:
        raise ValueError(f"encoder has shape {encoder.shape}; expected [H, D, N]")
    heads, width, neurons = encoder.shape
    if n_head is not None and n_head != heads:
        raise ValueError(f"n_head={n_head}, but encoder has shape {encoder.shape}, that is {heads} heads")
    vocab = embed.shape[0]
    expected = ((vocab, width), (heads, width, neurons), (heads, width, neurons), (heads * neurons, width), (width, vocab))
    for name, array, shape in zip(NAMES, (embed, encoder, encoder_v, decoder, lm_head), expected, strict=True):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; with encoder {encoder.shape} it must be {shape}")
        _check_finite(name, array)
    config = BDHConfig(
        vocab_size=vocab,
        n_layer=n_layer,
        d_model=width,
        n_head=heads,
        n_neurons=heads * neurons,
        dropout=dropout,
        fast=FastWeightConfig(enabled=False),
    )
    slow = {
        "embed": embed.copy(),
        "encoder": np.ascontiguousarray(encoder.transpose(1, 0, 2)),
        "encoder_v": encoder_v.copy(),
        "decoder": decoder.reshape(heads, neurons, width).copy(),
        "lm_head": lm_head.copy(),
    }
    return config, slow


def _with_head(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with ``lm_head`` [D, V] of a head that is tied to the embedding: saved once, or as a module's weight [V, D]."""
    arrays = dict(state_dict)
    if "lm_head" in arrays:
        return arrays
    if "lm_head.weight" in arrays:
        arrays["lm_head"] = np.asarray(arrays.pop("lm_head.weight")).T
    elif all(name in arrays for name in NAMES if name != "lm_head"):
        logging.getLogger("bdh_jax").warning("there is no lm_head: it is taken to be tied to embed.weight")
        arrays["lm_head"] = np.asarray(arrays["embed.weight"]).T
    return arrays


def _check_finite(name: str, array: np.ndarray) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} is {array.dtype}; weights are floats")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        place = tuple(map(int, wrong[0]))
        raise ValueError(
            f"{name} holds {len(wrong)} values that are not finite, such as {array[place]} at {place}; take an earlier checkpoint"
        )


def to_pathway(slow: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_pathway`: numpy arrays under the published names and shapes.

    Also turns gradients of the slow weights into the published layout. A synapse or learned rates have no published
    counterpart and are left out.
    """
    encoder = np.asarray(slow["encoder"])
    decoder = np.asarray(slow["decoder"])
    return {
        "embed.weight": np.asarray(slow["embed"]),
        "encoder": np.ascontiguousarray(encoder.transpose(1, 0, 2)),
        "encoder_v": np.asarray(slow["encoder_v"]),
        "decoder": decoder.reshape(-1, decoder.shape[-1]),
        "lm_head": np.asarray(slow["lm_head"]),
    }
