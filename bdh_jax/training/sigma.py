"""The σ of tiny-BDH as its published program writes it: one for all examples, after each step of the optimiser, without a gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.fast_weights.sigma import SigmaRates, sigma_update
from bdh_jax.models.base import Model
from bdh_jax.tasks.base import Batch
from bdh_jax.training.hooks import History, Hooks, Taps, Update
from bdh_jax.types import Slow


def after_step(model: Model) -> Hooks:
    """σ ← :func:`bdh_jax.fast_weights.sigma.sigma_update` of all tokens of the batch, as ``synapse``, with the model's own rates.

    ``post`` and ``pre`` are y2 and x of the step's own forward pass, of the weights before the optimiser changed them. Tokens that are
    not valid count as silent ones.

    Raises:
      ConfigError: for a model without σ.
    """
    rates = getattr(model.config, "rates", None)
    if not (isinstance(rates, SigmaRates) and model.config.has_fast_weights):
        raise ConfigError(
            "train.hooks: bdh_jax.training.sigma:after_step writes the σ of a tiny-BDH, and this model has none; leave it out, or set "
            'model.architecture="tiny_bdh" with model.use_sigma=True'
        )

    def update(slow: Slow, taps: Taps, batch: Batch, history: History) -> tuple[Slow, History]:
        synapse = slow["synapse"]
        post, pre = (taps.collected[name] for name in ("post", "pre"))
        if batch.valid is not None:
            post = jnp.where(jnp.asarray(batch.valid)[None, :, :, None], post, jnp.zeros((), post.dtype))
        post, pre = (array.reshape(len(array), -1, array.shape[-1]) for array in (post, pre))
        of_field = jax.vmap(lambda sigma, post, pre: sigma_update(sigma, post, pre, **rates._asdict()))
        sigma = of_field(synapse[:, 0].mT, post, pre)
        return {**slow, "synapse": sigma.mT[:, None].astype(synapse.dtype)}, history

    remedy = "a smaller model.learning_rate, or model.clamp and model.row_norm"
    return Hooks(updates=(Update("sigma", lambda slow: (), update, collect=("post", "pre"), label="σ", remedy=remedy),))
