"""How benchmarks/manpages_table.py chooses, and what it prints; no model is trained."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.data.corpus import Corpus, build_corpus, training_windows
from bdh_jax.data.documents import read_documents
from bdh_jax.models.base import count_parameters
from configs.manpages import get_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch):
    """The file, in a folder that is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("manpages_table", ROOT / "benchmarks" / "manpages_table.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "manpages_table", module)
    spec.loader.exec_module(module)
    return module


def scored_by(monkeypatch, table, bits) -> list[Any]:
    """Let ``bits`` say what a run comes to; returns the runs that were asked for."""
    asked = []

    def scored(runs, options):
        asked.extend(run for run in runs.values() if run not in asked)
        return {name: bits(run) for name, run in runs.items()}

    monkeypatch.setattr(table, "scored", scored)
    monkeypatch.setattr(table, "is_done", lambda run, options: True)
    return asked


def test_models_are_of_one_size():
    sizes = {}
    for variant in ("", "decay", "write_back", "gated_deltanet", "gpt"):
        config = get_config(variant)
        assert (config.task.length, config.model.vocab_size) == (512, 256)
        sizes[variant] = count_parameters(config.model.build().declared_slow())
    assert sizes[""] == 131_072
    assert all(abs(size / sizes[""] - 1) < 0.02 for size in sizes.values()), sizes
    assert get_config("decay").model.learn_attention_decay
    assert not get_config("").model.learn_attention_decay
    assert get_config("decay,tbptt").train.carry_state


@pytest.mark.parametrize(("names", "problem"), [("gpt,decay", "each is a model"), ("gpt,tbptt", "a GPT has no state")])
def test_variants_that_exclude_each_other_are_refused(names, problem):
    with pytest.raises(ConfigError, match=problem):
        get_config(names)


def test_rates_are_tried_as_far_as_the_best_one_is_at_an_end(monkeypatch, table):
    best = {"": 8e-3, "decay": 1.0, "gated_deltanet": 4e-3, "gpt": 5e-3}
    asked = scored_by(monkeypatch, table, lambda run: abs(math.log(run.rate / best[run.variant])))
    found: dict[str, Any] = {}
    rates = table.best_rates(found, argparse.Namespace())
    assert rates == pytest.approx(
        {"BDH": 8e-3, "BDH with μ": 0.128, "write-back": 0.128, "gated DeltaNet": 4e-3, "GPT": 4e-3}
    )
    tried = {name: sorted(run.rate for run in asked if run.variant == name) for name in best}
    assert tried["decay"] == pytest.approx([4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128])
    assert tried["gpt"] == pytest.approx([2e-3, 4e-3, 8e-3])
    assert all(run.seed == table.VALIDATION_SEED for run in asked)


def test_what_helps_is_put_together_and_the_best_is_taken(monkeypatch, table):
    worth = {("rule", "gated_delta"): 0.1, ("learning_rate", 0.001): 0.2, ("decay", 0.999): 0.05}
    scored_by(monkeypatch, table, lambda run: 3 - sum(worth.get(item, 0) for item in run.fast))
    found = table.sweep(1e-3, {}, argparse.Namespace())
    assert found["best"] == "all that helped"
    best = {"rule": "gated_delta", "learning_rate": 0.001, "decay": 0.999}
    assert found["rows"]["all that helped"] == {"fast": best, "bits": pytest.approx(2.65)}


def test_where_nothing_helps_it_stays_as_it_is(monkeypatch, table):
    scored_by(monkeypatch, table, lambda run: 3 + len(run.fast))
    assert table.sweep(1e-3, {}, argparse.Namespace())["best"] == "as it is"


def test_kinds_that_are_known_are_not_trained_and_count(monkeypatch, table):
    asked = scored_by(monkeypatch, table, lambda run: 3.0)
    known = {name: {"fast": fast, "bits": 2.0 if name == "delta" else 3.5} for name, fast in table.CHANGES.items()}
    del known["λ .9"], known["η .3"]
    found = table.sweep(1e-3, known, argparse.Namespace())
    # Three of them are better than "as it is", which is known to have 3.5.
    assert {run.name for run in asked} == {"λ .9", "η .3", "all that helped"}
    assert found["best"] == "delta"
    assert [name for name in found["rows"] if name in table.CHANGES] == list(table.CHANGES)


def test_a_part_without_a_run_takes_the_place_of_nothing(table):
    row = {"parameters": 1, "runs": {"0": None}}
    assert not table.any_run({"BDH": row})
    assert table.any_run({"BDH": row, "GPT": {**row, "runs": {"0": None, "1": {"normal": {}}}}})


@pytest.mark.parametrize(
    ("parts", "trained"),
    [
        (["rates"], {"rates"}),
        (["twice"], {"rates", "sweep", "twice"}),
        (["carried"], {"rates", "sweep", "models", "carried"}),
    ],
)
def test_a_part_is_trained_with_what_it_is_chosen_by_and_nothing_else(monkeypatch, table, parts, trained):
    asked = scored_by(monkeypatch, table, lambda run: 3.0)
    monkeypatch.setattr(table, "described", lambda rows, options: {})
    table.measured(argparse.Namespace(parts=parts, seeds="0,1", given=False, kinds=(), models=tuple(table.MODELS)), {})
    assert {run.part for run in asked} == trained


def test_passages_that_stand_twice_have_the_write_back_of_recall_beside_models_without(monkeypatch, table):
    asked = scored_by(monkeypatch, table, lambda run: 3.0)
    monkeypatch.setattr(table, "described", lambda rows, options: {})
    table.measured(argparse.Namespace(parts=["twice"], seeds="0,1,2", given=False, kinds=(), models=tuple(table.MODELS)), {})
    runs = [run for run in asked if run.part == "twice"]
    assert sorted((run.name, run.seed) for run in runs) == sorted(
        (name, seed) for name in table.TWICE_MODELS for seed in range(3)
    )
    assert {run.fast for run in runs if run.name == "write-back"} == {tuple(table.RECALL.items())}
    assert all(run.twice and run.steps is None for run in runs)


def test_a_part_alone_does_not_empty_the_page(monkeypatch, table, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("as it was", encoding="utf-8")
    command = ["manpages_table.py", "--workdir", str(tmp_path), "--data", "none", "--parts", "rates", "--write", str(page)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        table.main()
    assert stopped.value.code == 2
    assert "there is no sweep, models, carried: neither --parts nor" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "as it was"


KNOWN = {
    "pages": {"documents": 9},
    "rates": [
        {"model": "BDH", "rate": 8e-3, "bits": 3.0},
        {"model": "BDH with μ", "rate": 4e-3, "bits": None},
        {"model": "BDH with μ", "rate": 2e-3, "bits": 2.5},
        {"model": "BDH with μ", "rate": 1e-3, "bits": 2.5},
        {"model": "gated DeltaNet", "rate": 4e-3, "bits": 2.0},
        {"model": "GPT", "rate": 4e-3, "bits": 2.0},
    ],
    "sweep": {"best": "delta", "rows": {"delta": {"fast": {"rule": "delta"}, "bits": 2.0}}},
}
"""What a file of numbers says."""


def test_what_is_given_is_not_measured_again_unless_it_is_named(monkeypatch, table):
    asked = scored_by(monkeypatch, table, lambda run: 3.0 + len(run.fast))
    monkeypatch.setattr(table, "described", lambda rows, options: {})
    table.measured(argparse.Namespace(parts=["models"], seeds="0", given=True, kinds=(), models=tuple(table.MODELS)), KNOWN)
    assert {run.part for run in asked} == {"models"}
    rates = {"BDH": 8e-3, "BDH with μ": 1e-3, "write-back": 1e-3, "gated DeltaNet": 4e-3, "GPT": 4e-3}
    assert {run.name: run.rate for run in asked} == rates
    assert {run.fast for run in asked if run.name == "write-back"} == {(("rule", "delta"),)}
    asked.clear()
    found = table.measured(
        argparse.Namespace(parts=["sweep"], seeds="0", given=True, kinds=(), models=tuple(table.MODELS)), KNOWN
    )
    assert {(run.part, run.rate) for run in asked} == {("sweep", 1e-3)}
    assert found["sweep"]["best"] == "as it is"
    asked.clear()
    table.measured(argparse.Namespace(parts=["sweep"], seeds="0", given=True, kinds=["λ .9"], models=()), KNOWN)
    assert "delta" not in {run.name for run in asked}


def test_models_that_are_known_are_not_trained_and_count(monkeypatch, table):
    asked = scored_by(monkeypatch, table, lambda run: 2.5)
    monkeypatch.setattr(table, "described", lambda rows, options: {name: {"new": True} for name, _ in rows})
    known = KNOWN | {
        "models": {
            name: {"runs": {"0": scores(2.0 if name == "gated DeltaNet" else 3.0)}} for name in table.MODELS if name != "GPT"
        },
        "carried": {"gated DeltaNet": {"known": True}, "BDH with μ": {"known": True}},
    }
    options = argparse.Namespace(parts=["models", "carried"], seeds="0,1", given=True, kinds=(), models=["write-back"])
    found = table.measured(options, known)
    assert {(run.part, run.name) for run in asked} == {("models", "write-back"), ("carried", "write-back")}
    assert found["models"] == known["models"] | {"write-back": {"new": True}}
    # By their bits the best two are now others.
    assert found["carried"] == {"write-back": {"new": True}, "gated DeltaNet": {"known": True}}


@pytest.mark.parametrize(
    ("known", "pages", "said"),
    [({}, {"documents": 9}, "--given needs rates, sweep in"), (KNOWN, {"documents": 8}, "was measured on other pages")],
)
def test_what_cannot_be_given_is_refused(monkeypatch, table, tmp_path, capsys, known, pages, said):
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps(known), encoding="utf-8")
    monkeypatch.setattr(table, "prepare", lambda data, out: pages)
    command = ["manpages_table.py", "--workdir", str(tmp_path), "--data", "none", "--parts", "models", "--given"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(file)])
    with pytest.raises(SystemExit) as stopped:
        table.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert json.loads(file.read_text(encoding="utf-8")) == known


def test_numbers_of_other_parts_stay(monkeypatch, table, tmp_path):
    file = tmp_path / "numbers.json"
    file.write_text('{"twice": {"BDH": 1}, "rates": []}', encoding="utf-8")
    monkeypatch.setattr(table, "prepare", lambda data, out: {})
    monkeypatch.setattr(table, "measured", lambda options, known: {"rates": [{"model": "GPT"}]})
    monkeypatch.setattr(table, "tables", lambda found: [])
    command = ["manpages_table.py", "--workdir", str(tmp_path), "--data", "none", "--parts", "rates", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    table.main()
    numbers = json.loads(file.read_text(encoding="utf-8"))
    assert (numbers["twice"], numbers["rates"]) == ({"BDH": 1}, [{"model": "GPT"}])
    assert list(numbers["commands"]) == ["rates"]
    assert "--parts rates" in numbers["commands"]["rates"]


def test_windows_begin_where_passages_that_stand_twice_do(table, tmp_path):
    rng = np.random.default_rng(0)
    text = rng.integers(97, 123, 256 * 6).astype(np.uint8)
    text[300:302] = np.frombuffer("é".encode(), np.uint8)
    text[511:513] = np.frombuffer("é".encode(), np.uint8)  # the second passage ends within it, and the third begins there
    file = tmp_path / "twice.jsonl"
    table.write(file, table.doubled(Corpus(text, np.array([0, 700]))))
    corpus = build_corpus(read_documents(file), lambda document: np.frombuffer(document, np.uint8))
    assert corpus.documents == 4 + 1
    windows = training_windows(corpus, 512, seed=3)
    first = {windows[number].tokens[:256].tobytes() for number in range(4)}
    assert first == {text[start : start + 256].astype(np.int32).tobytes() for start in (0, 768, 1024, 1280)}
    for number in range(8):
        np.testing.assert_array_equal(windows[number].tokens[:256], windows[number].tokens[256:])


def scores(bits: float, *ablations: str) -> dict[str, Any]:
    share = {"count": 200_000, "bits_per_byte": bits, "goes_on": 0.5}
    parts = {
        "whole": share,
        "context": {"new": share, "once": share},
        "place": {"0–15": share, "256–511": share},
        "twice": {"first": share, "again": share},
    }
    return {"normal": {**parts, "carried": bits}, **dict.fromkeys(ablations, parts)}


def test_tables_pair_seeds_and_fit_80_columns(table):
    def row(*bits: float, ablations: tuple[str, ...] = ()) -> dict[str, Any]:
        runs = {str(seed): scores(value, *ablations) for seed, value in enumerate(bits)}
        numbers = {"parameters": 131_072, "state_bytes": 1_048_576, "multiply_adds_per_token": 1_000_000, "rate": 8e-3}
        return {**numbers, "steps": 500, "tokens": 1_024_000, "runs": runs}

    models = {name: row(2.5, 2.6, 2.7) for name in table.MODELS}
    models["write-back"] = row(2.61, 2.7, 2.79, ablations=("fast_off",))
    models["GPT"]["runs"]["2"] = None
    pages = dict.fromkeys(("documents", "kept", "train_bytes", "train_documents", "held_out_bytes", "held_out_documents"), 9)
    rates = [{"model": "GPT", "rate": 4e-3, "bits": None}]
    best = {"best": "as it is", "rows": {"as it is": {"fast": {}, "bits": 2.5}}}
    carried = {name: models[name] for name in ("write-back", "gated DeltaNet")}
    twice = {name: row(2.5, 2.6, 2.7) for name in ("BDH with μ", "write-back")}
    twice["write-back"] = row(2.4, 2.5, 2.6)
    tried = {"rates": rates, "sweep": best}
    lines = table.tables({"pages": pages, "models": models, "twice": twice, "carried": carried, **tried})
    # .11, .10 and .09: mean .1, standard deviation .01, and 4.303 ÷ √3 of it.
    assert "| all bytes | +0.100 ± 0.025 | +0.000 ± 0.000 |" in lines
    assert "| GPT | 0.004 | diverged |" in lines
    assert "| write-back | 2.500 ± 0.100 | 2.500 ± 0.100 | -0.100 ± 0.000 |" in lines
    assert any(line.startswith("| GPT | 2.500 | 2.600 |  | 2.550 ± 0.071 |") for line in lines)
    assert not [line for line in lines if line.startswith("|") and len(line) > 80]
