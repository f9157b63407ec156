"""Records of older versions can still be used."""

from __future__ import annotations

import pytest

from bdh_jax.experiment import config_json, experiment_from
from bdh_jax.runs.older import in_todays_words, model_in_todays_words

CONSOLIDATION = {"function": "row_topk", "every": 2, "norm": None, "rate": 0.5, "score": None, "layers": []}
FILL = {"fill_every": 2, "fill_episodes": 8, "fill_rows": 3}


def test_options_that_were_keys_become_options():
    config = experiment_from(in_todays_words({"consolidation": CONSOLIDATION}))
    assert config.consolidation.function == "row_topk"
    assert config.consolidation.every == 2
    assert config.consolidation.options == {"rate": 0.5}


def test_the_aware_experiment_is_its_task_and_hook():
    train = {"fill_ridge": 0.01, "fill_layers": [0]}
    config = experiment_from(in_todays_words({"task": {"name": "facts", "pairs": 8, **FILL}, "train": train}))
    assert type(config.task).__name__ == "AwareFactsConfig"
    assert (config.task.pairs, config.task.fill_every, config.task.extra_rows, config.task.fill_rows) == (8, 2, 8, 3)
    assert config.train.hooks == ("bdh_jax.lifelong.aware:fill",)
    assert config.train.hook_options == {"ridge": 0.01, "layers": (0,)}
    plain = experiment_from(in_todays_words({"task": {"name": "facts", **FILL, "fill_every": 0}, "train": train}))
    assert plain.task.name == "facts"
    assert plain.train.hooks == ()


@pytest.mark.parametrize(("rule", "options"), [("mesa", {"ridge": 0.5}), ("hebbian", {})])
def test_the_ridge_is_an_option_of_the_rule_that_has_one(rule, options):
    """It was a key of all fast weights, whatever their rule."""
    stored = {"n_head": 2, "fast": {"rule": rule, "ridge": 0.5, "decay": 0.9}}
    model = experiment_from(in_todays_words({"model": stored})).model
    assert (model.n_head, model.fast.rule, model.fast.decay, model.fast.options) == (2, rule, 0.9, options)
    assert model_in_todays_words(stored)["fast"] == in_todays_words({"model": stored})["model"]["fast"]
    assert stored["fast"]["ridge"] == 0.5


def test_a_record_of_today_is_left_alone():
    for name in ("facts", "bdh_jax.lifelong.aware:AwareFactsConfig"):
        values = {"task": {"name": name}, "consolidation": {"function": "dense", "options": {"rate": 0.1}}}
        values["model"] = {"fast": {"rule": "mesa", "options": {"ridge": 0.1}}}
        today = config_json(experiment_from(values))
        assert in_todays_words(today) == today
