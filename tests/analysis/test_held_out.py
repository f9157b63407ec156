"""Sequences that a model was not trained on, as its task shows them."""

from __future__ import annotations

import numpy as np

from bdh_jax.analysis.held_out import held_out
from bdh_jax.data.config import DataConfig
from bdh_jax.tasks import FactsConfig, NBackConfig, TextConfig


def test_of_a_text_they_are_windows_of_what_validates(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"never " * 200)
    (tmp_path / "held.txt").write_bytes(bytes(range(97, 117)) * 20)
    data = DataConfig(path=str(tmp_path / "train.txt"), validation_path=str(tmp_path / "held.txt"))
    task = TextConfig(length=16).make(seed=0, batch_size=8, data=data)
    tokens, valid = held_out(task, 4)
    assert tokens.shape == (4, 16)
    assert tokens.dtype == np.int32
    assert valid.all()
    text = (tmp_path / "held.txt").read_bytes()
    assert all(bytes(row.tolist()) in text for row in tokens.astype(np.uint8))
    assert len({row.tobytes() for row in tokens}) == 4


def test_of_an_n_back_they_are_of_the_longer_sets_and_each_comes_once():
    task = NBackConfig(evaluation_sequences=8).make(seed=0, batch_size=8)
    tokens, valid = held_out(task, 12)
    assert len(tokens) == 12
    firsts = {row[: there.sum() // 2].tobytes() for row, there in zip(tokens, valid, strict=True)}
    assert len(firsts) == 12
    of_set = {
        name: {row[:8].tobytes() for row in one.encoded.tokens.astype(np.int32)}
        for name, one in task.evaluation_sets.items()
    }
    assert {name: any(row[:8].tobytes() in rows for row in tokens) for name, rows in of_set.items()} == {
        "n2": False,
        "n4": True,
        "n8": True,
    }


def test_facts_known_by_heart_are_none_of_them():
    task = FactsConfig(known=8, pairs=4, queries=2, evaluation_sequences=8).make(seed=0, batch_size=8)
    tokens, valid = held_out(task, 6)
    assert len(tokens) == 6
    assert valid.sum(axis=1).min() * 2 >= valid.sum(axis=1).max() > 2
    assert (tokens[~valid] == 0).all()
