"""XOR of two bits, the task of github.com/ZhukMax/tiny_bdh_xor: four sequences of one token, whose target is 0 or 1.

Token 2a + b stands for the bits a and b. Every batch holds each of the four equally often.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bdh_jax.config import check_types, require
from bdh_jax.data.config import DataConfig
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.scores import Evaluation, Score
from bdh_jax.tasks.scoring import Predict

TARGETS = (0, 1, 1, 0)
"""By token."""


@dataclasses.dataclass(frozen=True)
class XORConfig(TaskConfig):
    """XOR of two bits."""

    name: str = "xor"

    def __post_init__(self) -> None:
        check_types(self)

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> XOR:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`.

        Raises:
          ConfigError: for a batch that does not hold the four sequences equally often.
        """
        del seed, data  # every batch is the same
        return XOR(self, batch_size)


class XOR(TaskBase):
    """XOR as a task."""

    vocab_size = len(TARGETS)
    sequence_length = 1

    def __init__(self, config: XORConfig, batch_size: int):
        require(
            batch_size % len(TARGETS) == 0,
            f"train.batch_size={batch_size} must be a multiple of {len(TARGETS)}: XOR has so many sequences, equally often",
        )
        self.config, self.batch_size = config, batch_size

    def batch(self, step: int) -> Batch:
        """The four sequences, [B, 1]; the same at every step."""
        del step
        tokens = np.arange(self.batch_size, dtype=np.int32)[:, None] % len(TARGETS)
        ones, yes = np.ones(tokens.shape, np.float32), np.ones(tokens.shape, bool)
        return Batch(tokens, np.array(TARGETS, np.int32)[tokens], ones, ones, yes, ~yes)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Accuracy of the larger of the logits of 0 and 1; its ceiling is 1, and chance ("chance") 1/2. "loss" is the mean cross-entropy in
        nats, and "p00" … "p11" are the probabilities of 1 given each pair of bits."""
        tokens = np.tile(np.arange(len(TARGETS), dtype=np.int32), 2)[:, None]
        logits = np.asarray(predict(tokens, np.ones(tokens.shape, bool)), np.float64)[: len(TARGETS), 0]
        targets = np.array(TARGETS)
        right = float((logits[:, :2].argmax(axis=-1) == targets).mean())
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        extra = {"chance": 0.5, "loss": float(-log[np.arange(len(TARGETS)), targets].mean())}
        extra |= {f"p{token:02b}": float(np.exp(log[token, 1])) for token in range(len(TARGETS))}
        score = Score("xor", count=len(TARGETS), accuracy=right, credit=right, ceiling=1.0, extra=extra)
        return Evaluation(rows=(score,), primary=right)


CONFIG = XORConfig
