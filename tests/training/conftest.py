"""A task and an experiment small enough that a whole training takes a second after compilation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import pytest

from bdh_jax.experiment import ExperimentConfig
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.tasks import Batch, Evaluation, Score, TaskBase, TaskConfig
from bdh_jax.training.config import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class SuccessorConfig(TaskConfig):
    """Of the task below."""

    name: str = "successor"

    def make(self, *, seed, batch_size, data=None):
        return Successor(seed, batch_size)


class Successor(TaskBase):
    """Predict token + 1. ``before`` is called with "batch" or "evaluate" and how many came before, to break things."""

    vocab_size, sequence_length, accuracy_name = 12, 6, "recall"

    def __init__(self, seed: int, batch_size: int, before: Callable[[str, int], None] | None = None):
        self.config = SuccessorConfig()
        self.evaluations = 0
        self._seed, self._batch_size = seed, batch_size
        self._before = before or (lambda what, number: None)

    def batch(self, step: int) -> Batch:
        self._before("batch", step)
        rng = np.random.default_rng([self._seed, step])
        shape = (self._batch_size, self.sequence_length)
        tokens = rng.integers(0, 10, shape).astype(np.int32)
        answer = np.zeros(shape, np.float32)
        answer[:, -1] = 1
        weights = rng.random(shape, np.float32)
        return Batch(tokens, tokens + 1, answer, weights, np.ones(shape, bool), np.zeros(shape, bool))

    def evaluate(self, predict) -> Evaluation:
        self._before("evaluate", self.evaluations)
        self.evaluations += 1
        tokens = np.arange(40, dtype=np.int32).reshape(8, 5) % 10
        right = np.argmax(predict(tokens, np.ones(tokens.shape, bool)), axis=-1) == tokens + 1
        accuracy = float(right[:, -1].mean())
        return Evaluation(
            (Score("succ", 8, accuracy, accuracy, 1.0, {"everywhere": float(right.mean())}),), primary=accuracy
        )


@pytest.fixture(scope="session")
def successor():
    """``successor(config, before=None)`` makes the task."""
    return lambda config, before=None: Successor(config.seed, config.train.batch_size, before)


@pytest.fixture(scope="session")
def tiny():
    """``tiny(**changes of TrainConfig)`` makes an experiment; ``model`` and ``optimizer`` change those parts, ``consolidation`` adds it."""

    def make(*, model=(), optimizer=(), consolidation=None, seed=0, mesh=None, **train) -> ExperimentConfig:
        settings = {
            "steps": 6,
            "batch_size": 4,
            "evaluate_every": 4,
            "checkpoint_every": 3,
            "log_every": 1,
            "loss": "weights",
        }
        config = ExperimentConfig(
            task=SuccessorConfig(),
            model=BDHConfig(
                vocab_size=12,
                n_layer=1,
                d_model=8,
                n_head=1,
                n_neurons=16,
                dropout=0.1,
                fast=FastWeightConfig(learning_rate=0.5),
            ),
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
            train=TrainConfig(**settings | train),
            seed=seed,
        )
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, **dict(model)),
            optimizer=dataclasses.replace(config.optimizer, **dict(optimizer)),
        )
        if consolidation is not None:
            fast = dataclasses.replace(config.model.fast, synapse=True)
            model_config = dataclasses.replace(config.model, fast=fast)
            config = dataclasses.replace(config, model=model_config, consolidation=consolidation)
        return config if mesh is None else dataclasses.replace(config, mesh=mesh)

    return make


@pytest.fixture
def kill_at():
    """``kill_at(signal, what, number)`` is a ``before`` that sends this process a signal at that point."""

    def make(number, what, at):
        def before(event, count):
            if (event, count) == (what, at):
                os.kill(os.getpid(), number)

        return before

    return make
