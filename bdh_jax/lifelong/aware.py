"""Consolidation-aware training: batches that start from a synapse which holds other episodes already.

A model that was only trained on an empty synapse has never seen what consolidation leaves there. With this task and its hook
(``configs/lifelong.py:aware``) it learns to recall what is in the synapse, and to read and write beside it.

Axis letters: B batch, T time, E episodes, P facts of an episode, R rows.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.consolidation import least_squares
from bdh_jax.consolidation.rows import check_rate
from bdh_jax.data.config import DataConfig
from bdh_jax.models.bdh import BDH
from bdh_jax.tasks.base import Batch
from bdh_jax.tasks.facts import FIRST_VALUE, SEEN, VALUES, Facts, FactsConfig, combinations
from bdh_jax.training.hooks import Hooks, Prepare
from bdh_jax.types import Slow


@dataclasses.dataclass(frozen=True)
class AwareFactsConfig(FactsConfig):
    """Facts, some batches of which ask for what was consolidated into the synapse."""

    name: str = "bdh_jax.lifelong.aware:AwareFactsConfig"
    fill_every: int = 2
    """Every so many steps, the first included, the batch starts from a synapse filled with other episodes."""
    fill_episodes: int = 32
    """E, the episodes that fill it."""
    fill_rows: int = 4
    """Rows of such a batch that ask for what filled it, on a fresh state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("fill_every", "fill_episodes", "fill_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"task.{name}={getattr(self, name)} must be at least 1")
        if self.fill_episodes * self.pairs > SEEN:
            raise ConfigError(
                f"task.fill_episodes={self.fill_episodes} of task.pairs={self.pairs} need more than the {SEEN} keys there are"
            )

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> AwareFacts:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return AwareFacts(self, seed=seed, batch_size=batch_size)

    @property
    def extra_rows(self) -> int:
        """E."""
        return self.fill_episodes


class AwareFacts(Facts):
    """The task. A batch that fills the synapse has ``extra``: tokens [E, 3P] int32, whole episodes without queries."""

    config: AwareFactsConfig

    def __init__(self, config: AwareFactsConfig, *, seed: int, batch_size: int):
        """See :meth:`AwareFactsConfig.make`.

        Raises:
          ConfigError: as :class:`bdh_jax.tasks.facts.Facts`, and if no row is left for episodes.
        """
        if config.known_rows + config.fill_rows >= batch_size:
            raise ConfigError(
                f"task.known_rows={config.known_rows} and task.fill_rows={config.fill_rows} leave no row for episodes in a batch of "
                f"train.batch_size={batch_size}"
            )
        super().__init__(config, seed=seed, batch_size=batch_size)

    def asked_rows(self, step: int) -> int:
        """See :meth:`bdh_jax.tasks.facts.Facts.asked_rows`."""
        return super().asked_rows(step) + self._fill_rows(step)

    def asked(self, rng: np.random.Generator, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """See :meth:`bdh_jax.tasks.facts.Facts.asked`."""
        keys, values, extra = super().asked(rng, step)
        rows = self._fill_rows(step)
        if not rows:
            return keys, values, extra
        tokens, filled_keys, filled_values = self._fill(rng)
        which = rng.integers(0, len(filled_keys), (rows, self.asked_facts))
        return np.concatenate([keys, filled_keys[which]]), np.concatenate([values, filled_values[which]]), tokens

    def _fill_rows(self, step: int) -> int:
        return 0 if step % self.config.fill_every else self.config.fill_rows

    def _fill(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Episodes of distinct keys that training knows [E, 3P], their keys [E·P, 2] and values [E·P]."""
        count, pairs = self.config.fill_episodes, self.config.pairs
        keys = combinations().seen[rng.choice(len(combinations().seen), count * pairs, replace=False)]
        values = rng.integers(FIRST_VALUE, FIRST_VALUE + VALUES, count * pairs, dtype=np.int32)
        return np.concatenate([keys, values[:, None]], axis=1).reshape(count, 3 * pairs), keys, values


def fill(model: BDH, *, ridge: float = 0.1, layers: tuple[int, ...] = ()) -> Hooks:
    """The hook: a batch with ``extra`` is read with a synapse that holds these episodes.

    Gradients flow through it, so that how episodes are written is learned, too.

    Args:
      model: with a synapse, on one device or over ``data`` only.
      ridge: > 0, of the regression.
      layers: which layers' part of the synapse is filled, from 0, the others are zero; empty for all.

    Raises:
      ConfigError: for a model without a synapse or with a trained one, with learned rates, or with rows over several devices.
    """
    check_rate(ridge, "train.hook_options.ridge", least=0)
    _undecayed(model)
    reader = BDH(change(model.config, "fast", train_synapse=True), model.mesh)

    def prepare(slow: Slow, batch: Batch) -> Slow:
        return fill_synapse(model, slow, batch.extra, ridge, layers)

    return Hooks(prepare=(Prepare(prepare, reader, when=lambda batch: batch.extra is not None),))


def fill_synapse(model: BDH, slow: Slow, tokens: jax.Array, ridge: float, layers: tuple[int, ...] = ()) -> Slow:
    """The parameters with a synapse that holds what episodes wrote: the ridge regression on all their pairs.

    It is what :func:`bdh_jax.consolidation.least_squares` leaves of them with undecayed Hebbian writes, but that a stream's later
    episodes are written beside what the earlier ones left.

    Args:
      model: as of :func:`fill`.
      slow: its parameters; the synapse they hold is left out.
      tokens: episodes [E, T].
      ridge, layers: as of :func:`fill`.

    Returns:
      ``slow`` with another synapse.
    """
    slow = {**slow, "synapse": jnp.zeros_like(slow["synapse"])}
    fast = _undecayed(model).apply({"params": slow}, tokens, state="mean").fast
    fast = jax.tree.map(lambda leaf: leaf * tokens.shape[0], fast)  # the sum over episodes
    regression = least_squares(ridge, layers=layers or None)
    return regression.update(slow, fast, fast.activity, regression.init(slow))[0]


def _undecayed(model: BDH) -> BDH:
    """The model with undecayed Hebbian writes, whose address products are kept."""
    fast = model.config.fast
    if not (fast.enabled and fast.synapse):
        raise ConfigError("train.hooks: fill fills the synapse, but the model has none; set model.fast.synapse=True")
    if fast.train_synapse:
        raise ConfigError(
            "train.hooks: fill fills the synapse, which is no parameter to train then; set model.fast.train_synapse=False"
        )
    for axis in ("heads", "neurons"):
        if model.mesh is not None and dict(model.mesh.shape).get(axis, 1) > 1:
            raise ConfigError(
                f"mesh.{axis}={model.mesh.shape[axis]} splits the rows that filling the synapse (train.hooks) needs together; set it to 1"
            )
    return BDH(change(model.config, fast=fast.sums()), model.mesh)
