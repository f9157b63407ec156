"""Consolidation-aware training: a batch that starts from a synapse which holds other episodes already.

A model that was only trained on an empty synapse has never seen what consolidation leaves there. With a task that gives batches a
``fill`` (``configs/lifelong.py:aware``), it learns to recall what is in the synapse, and to read and write beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.consolidation import least_squares
from bdh_jax.models.bdh import BDH
from bdh_jax.tasks.base import Batch
from bdh_jax.training.optimizer import Slow


def fill_synapse(model: BDH, slow: Slow, fill: Batch, ridge: float, layers: Sequence[int] = ()) -> Slow:
    """The parameters with a synapse that holds what episodes wrote: the ridge regression on all their pairs.

    It is what :func:`bdh_jax.consolidation.least_squares` leaves of them with undecayed Hebbian writes, but that a stream's later
    episodes are written beside what the earlier ones left.

    Args:
      model: with a synapse, on one device or over ``data`` only.
      slow: its parameters; the synapse they hold is left out.
      fill: episodes, arrays [B,T].
      ridge: > 0.
      layers: which layers' part of the synapse is filled, the others are zero; empty for all.

    Returns:
      ``slow`` with another synapse.

    Raises:
      ConfigError: for a model without a synapse or with a trained one, with learned rates, or with neurons over several devices.
    """
    writer = _undecayed(model)
    slow = {**slow, "synapse": jnp.zeros_like(slow["synapse"])}
    fast = writer.apply({"params": slow}, fill.tokens, valid=fill.valid, reset=fill.reset, state="mean").fast
    fast = jax.tree.map(lambda leaf: leaf * fill.tokens.shape[0], fast)  # the sum over episodes
    regression = least_squares(ridge, layers=layers or None)
    return regression.update(slow, fast, fast.activity, regression.init(slow))[0]


def make_reader(model: BDH) -> BDH:
    """The model that reads a filled synapse. Gradients flow through it, so that how episodes are written is learned, too."""
    return BDH(change(model.config, "fast", train_synapse=True), model.mesh)


def _undecayed(model: BDH) -> BDH:
    """The model with undecayed Hebbian writes, whose address products are kept."""
    fast = model.config.fast
    if not (fast.enabled and fast.synapse):
        raise ConfigError(
            "the task fills the synapse (task.fill_every), but the model has none; set model.fast.synapse=True"
        )
    if fast.train_synapse:
        raise ConfigError(
            "the task fills the synapse (task.fill_every), which is no parameter to train then; set model.fast.train_synapse=False"
        )
    if model.mesh is not None and model.mesh.shape["neurons"] > 1:
        raise ConfigError(
            f"mesh.neurons={model.mesh.shape['neurons']} splits the rows that filling the synapse (task.fill_every) needs together; "
            "set it to 1"
        )
    return BDH(change(model.config, fast=fast.sums()), model.mesh)
