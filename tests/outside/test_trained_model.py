"""A trained model gets a synapse and consolidates, as docs/how-to/trained_model.md shows it."""

from __future__ import annotations

import re
import runpy

import numpy as np

from tests.compiled import apply
from tests.pages import ROOT, commands, write_files
from tests.processes import run_text

PAGE = "docs/how-to/trained_model.md"


def test_a_model_trained_without_a_synapse_gets_one(tmp_path, monkeypatch, capsys):
    assert write_files(PAGE, tmp_path) == ["keep.py"]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (train,) = commands(PAGE)
    status, _, errors = run_text(*train, folder=tmp_path)
    assert status == 0, errors
    monkeypatch.chdir(tmp_path)
    ran = runpy.run_path("keep.py")
    sizes = [float(size) for size in re.findall(r"has norm ([\d.]+)", capsys.readouterr().out)]
    assert len(sizes) == 4
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    # What is written is read: the same tokens from an empty state have other logits than before.
    tokens, model, slow = np.arange(6)[None], ran["model"], ran["slow"]
    empty = {**slow, "synapse": np.zeros_like(slow["synapse"])}
    logits, without = (np.asarray(apply(model, weights, tokens).logits) for weights in (slow, empty))
    assert np.any(logits != without)
