"""The tables of reason in memory: their rows, and what is printed of them. No model is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import latent_table


def test_every_row_is_an_experiment_with_a_folder_of_its_own(tmp_path):
    runs = [latent_table.Run("binding", model, 1) for model in (*latent_table.MODELS, *latent_table.BINDING)]
    assert len({run.folder(tmp_path) for run in runs}) == len(runs)
    configs = {run.model: run.config(smoke=False) for run in runs}
    rates = {model: config.optimizer.learning_rate for model, config in configs.items()}
    assert rates == dict.fromkeys(rates, 5e-3) | {"deep, rate/2": 2.5e-3, "deep, rate×2": 1e-2}
    assert configs["deep, longer"].train.steps == 3 * configs["deep"].train.steps
    assert configs["deep, half"].task.trained == 3


def row(*seeds: float, thinks: bool, **more: Any) -> dict[str, Any]:
    numbers = {
        "parameters": 1000,
        "state_bytes": 76_040,
        "multiply_adds_per_sequence": 12_329_280,
        "rate": 5e-3,
        "chance": 1 / 3,
    }
    runs = {
        str(seed): {
            "steps": 600,
            "accuracy": {passes: [value] * 6 for passes in (("1", "16") if thinks else ("0",))},
            "emptied": [0.0] * 6,
            "shuffled": [0.25] * 6,
            **more,
        }
        for seed, value in enumerate(seeds)
    }
    return {**numbers, "runs": runs}


def test_tables_have_a_ceiling_seeds_and_spread_and_fit_80_columns():
    rows = {"fixed": row(0.5, 0.7, 0.9, thinks=True), "deep, longer": row(0.5, thinks=False)}
    order = {"drawn": row(0.5, 0.7, thinks=True, walked={"4": [1.0, 0.0, 0.0]})}
    tables = latent_table.tables({"binding": rows, "ordering": order, "copy": {}})
    assert list(tables) == ["binding", "ordering", "walked", "sizes"]
    assert "| fixed | 16 |" + " 0.70 |" * 6 + " 0.20 | 3 |" in tables["binding"].splitlines()
    assert "| deep, longer |  |" + " 0.50 |" * 6 + "  | 1 |" in tables["binding"].splitlines()
    assert "| chance |  |" + " 0.33 |" * 6 + "  |  |" in tables["binding"].splitlines()
    assert "| drawn | 4 | 1.00 | 0.00 | 0.00 | 2 |" in tables["walked"].splitlines()
    assert "| ordering | drawn | 1,000 | 76,040 | 12,329,280 | 600 | 0.005 |" in tables["sizes"].splitlines()
    assert all(len(line) <= 80 for table in tables.values() for line in table.splitlines())


def test_an_order_is_read_from_its_links():
    mark = latent_table.MARK
    context = np.array([7, 9, 0, mark, 5, 0, 5, 7, 0])
    assert latent_table.order(context) == [5, 7, 9]


@pytest.mark.parametrize(("emptied", "shuffled"), [(True, False), (False, True)])
def test_controls_change_what_is_written_or_the_order_of_the_context_alone(emptied, shuffled):
    seen = []

    def predict(tokens, valid, *, write):
        seen.append((tokens, write))
        return tokens

    tokens = np.arange(20)[None]
    write = tokens < 15
    latent_table.control(predict, emptied=emptied, shuffled=shuffled)(tokens, np.ones((1, 20), bool), write=write)
    ((given, written),) = seen
    assert written.any() != emptied
    assert (given[0, 15:] == np.arange(15, 20)).all()
    assert sorted(given[0, :15]) == list(range(15))
    assert (given != tokens).any() == shuffled
