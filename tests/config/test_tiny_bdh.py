"""The variants of configs/tiny_bdh.py: all exist, all combine with the small one, and neighbours are as large as what stands beside them."""

from __future__ import annotations

import pytest

from bdh_jax.config.files import load_config
from bdh_jax.experiment import config_json, experiment_from
from bdh_jax.models.base import count_parameters
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gru import GRUConfig
from bdh_jax.models.tiny_bdh import TinyBDHConfig
from configs import tiny_bdh

TASKS = ("", "copy", "recall", "brackets", "new_rule")


def joined(*names):
    return ",".join(name for name in names if name)


def trained(config):
    weights = config.model.build().declared_slow()
    weights.pop("synapse", None)
    return count_parameters(weights)


@pytest.mark.parametrize("task", TASKS)
def test_neighbours_have_as_many_parameters(task):
    own = tiny_bdh.get_config(task)
    for name, kind in (("gru", GRUConfig), ("bdh", BDHConfig)):
        beside = tiny_bdh.get_config(joined(task, name))
        assert isinstance(beside.model, kind)
        assert trained(beside) == pytest.approx(trained(own), rel=0.06)
        assert (beside.task, beside.optimizer, beside.train.steps) == (own.task, own.optimizer, own.train.steps)


@pytest.mark.parametrize("task", TASKS)
def test_variants_combine_and_survive_json(task):
    for name in ("", *tiny_bdh.VARIANTS):
        if name in TASKS and name:
            continue
        for small in ("", "smoke") if name != "smoke" else ("",):
            config = tiny_bdh.get_config(joined(task, name, small))
            assert experiment_from(config_json(config)) == config
            assert "smoke" not in (name, small) or config.train.steps == 20
    assert load_config("tiny_bdh", "--config") == tiny_bdh.get_config()


def test_what_the_variants_change():
    assert tiny_bdh.get_config().model == TinyBDHConfig()
    assert tiny_bdh.get_config().train.hooks == (tiny_bdh.AFTER_STEP,)
    without = tiny_bdh.get_config("no_sigma")
    assert (without.model.use_sigma, without.train.hooks) == (False, ())
    published, plain = (tiny_bdh.get_config(name).model for name in ("new_rule,published", "new_rule"))
    assert published.rates == TinyBDHConfig().rates._replace(learning_rate=plain.learning_rate)
    assert not plain.rates.limited
    assert tiny_bdh.get_config("brackets,neurons256").model.n_neurons == 256


def test_the_documentation_names_every_variant():
    for name in tiny_bdh.VARIANTS:
        assert f"\n    {name} " in tiny_bdh.__doc__
