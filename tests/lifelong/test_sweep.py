"""The lifelong benchmark at several numbers of facts."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.config import ConfigError
from bdh_jax.lifelong import benchmark as lifelong
from bdh_jax.lifelong import sweep as lifelong_sweep
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.lifelong.contestants import CONTESTANTS
from bdh_jax.lifelong.stream import StreamConfig
from bdh_jax.tasks.facts import VOCABULARY
from tests.compiled import init

FAST = FastWeightConfig(synapse=True, address_source="gated", decay=0.9)
CONFIG = BDHConfig(
    vocab_size=VOCABULARY, n_layer=1, d_model=16, n_head=1, n_neurons=64, dropout=0.0, init_std=0.3, fast=FAST
)
SIZES = LifelongConfig(stream=StreamConfig(checkpoints=2), streams=2, known=8, reference="none")
ROWS = {name: CONTESTANTS[name] for name in ("none", "dense", "nearest_neighbour")}
RATES = {"dense": 0.1}


@pytest.fixture(scope="module")
def model():
    return BDH(CONFIG)


@pytest.fixture(scope="module")
def slow(model):
    return init(model, 0)


@pytest.fixture(scope="module")
def sweep(model, slow):
    return lifelong_sweep.run(model, [slow], ROWS, facts=(64, 32), config=SIZES, rates=RATES)


def test_each_number_of_facts_is_the_benchmark_alone(model, slow, sweep):
    assert sweep.facts == (32, 64)
    config = dataclasses.replace(SIZES, stream=dataclasses.replace(SIZES.stream, facts=64))
    alone = lifelong.benchmark(model, [slow], {name: ROWS[name] for name in ("none", "dense")}, config=config, rates=RATES)
    for row, expected in zip(sweep.results[1].rows, alone.rows, strict=False):
        for score in lifelong_sweep.SCORES:
            np.testing.assert_array_equal(row.scores[score], expected.scores[score])


def test_tables_have_a_column_for_each_number_and_say_how_sure_they_are(sweep):
    console = Console(width=100, record=True)
    for score in lifelong_sweep.SCORES:
        console.print(sweep.table(score))
    text = console.export_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    recall = [f"{result.rows[2].mean('recall'):.3f}" for result in sweep.results]
    assert next(line for line in lines if line.startswith("nearest_neighbour")).split()[1:] == recall
    assert "1 model × 2 streams, 95 % ± 0.000 at most" in " ".join(text.split())
    # nearest_neighbour harms nothing, since it is no model
    assert [line.split()[1:] for line in lines if line.startswith("nearest_neighbour")][2:] == [["–", "–"]] * 2


def test_the_figure_has_a_line_for_each_function_and_marks_the_neurons(sweep):
    figure = sweep.plot()
    for axis, score in zip(figure.axes, ("recall", "bits_per_byte"), strict=True):
        *lines, neurons = axis.get_lines()
        assert [line.get_label() for line in lines] == list(ROWS)
        for line, name in zip(lines, ROWS, strict=True):
            expected = [next(r for r in result.rows if r.name == name).mean(score) for result in sweep.results]
            np.testing.assert_allclose(line.get_ydata(), expected)
        assert set(neurons.get_xdata()) == {64}


def test_its_record_holds_every_result(sweep):
    record = json.loads(json.dumps(sweep.to_dict()))
    read = lifelong_sweep.LifelongSweep.from_dict(record)
    assert read.facts == sweep.facts
    assert json.dumps(read.to_dict()) == json.dumps(sweep.to_dict())
    with pytest.raises(ValueError, match="holds no several numbers of facts"):
        lifelong_sweep.LifelongSweep.from_dict(record["results"][0])
    assert record["neurons"] == 64
    assert [result["config"]["stream"]["facts"] for result in record["results"]] == [32, 64]
    assert record["results"][1]["rows"][1]["rate"] == 0.1


@pytest.mark.parametrize(
    ("facts", "message"),
    [((), "facts= must be one number"), ((32, 32), "facts=32,32 must be one"), ((32, 20000), r"facts=20000 must lie in 16")],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_measured(facts, message):
    with pytest.raises(ConfigError, match=message):
        lifelong_sweep.run(None, [], ROWS, facts=facts, config=SIZES)
