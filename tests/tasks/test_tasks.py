"""What all tasks have in common: their names, what their token ids stand for, and the plain answers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.data.tokenizer import load_tokenizer, train_tokenizer
from bdh_jax.tasks import TASKS, Batch, CounterConfig, FactsConfig, NBackConfig, TaskBase, TextConfig
from bdh_jax.tasks.compositional_mqar import CompositionalMQARConfig
from bdh_jax.tasks.forgetting_mqar import ForgettingMQARConfig
from bdh_jax.tasks.ladder import LadderConfig
from bdh_jax.tasks.mqar import MQARConfig

NOT_A_TASK = 3


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    path.write_text(train_tokenizer([b"to be or not to be " * 50], 270))
    return load_tokenizer(path)


def test_only_tasks_of_the_same_tokens_go_together(bpe):
    meanings = [
        [NBackConfig().token_meaning(), CounterConfig().token_meaning()],
        [NBackConfig(encoding="text").token_meaning(), TextConfig().token_meaning(load_tokenizer(None))],
        [FactsConfig().token_meaning()],
        [kind(vocab_size=64).token_meaning() for kind in (MQARConfig, ForgettingMQARConfig)],
        [MQARConfig().token_meaning()],
        [CompositionalMQARConfig(vocab_size=64).token_meaning()],
        [CompositionalMQARConfig().token_meaning()],
        [LadderConfig(ladder=kind).token_meaning() for kind in ("copy", "binding", "ordering")],
        [LadderConfig(rungs=7).token_meaning()],
        [LadderConfig(variables=49).token_meaning()],
        [TextConfig().token_meaning(bpe)],
    ]
    for group in meanings:
        assert len(set(group)) == 1
    assert len({group[0] for group in meanings}) == len(meanings)


def test_a_name_finds_the_class_that_has_it():
    assert set(TASKS.names()) >= {"nback", "counter", "facts", "text"}
    for name in TASKS.names():
        assert TASKS.get(name, "task.name")().name == name
    with pytest.raises(ConfigError, match=r"task.name='tests.tasks.test_tasks:NOT_A_TASK': 3 is no configuration of a task"):
        TASKS.get("tests.tasks.test_tasks:NOT_A_TASK", "task.name")


def test_the_plain_loss_is_the_cross_entropy_of_every_position():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    targets = jnp.array([[0, 4, 2], [1, 1, 3]])
    batch = Batch(*[None] * 6)._replace(targets=targets)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_array_equal(TaskBase().losses(logits, batch), expected)
