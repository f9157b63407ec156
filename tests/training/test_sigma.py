"""A run of tiny-BDH with its hook, ended and gone on with, is the run that was not ended."""

from __future__ import annotations

import dataclasses
import signal

import chex
import jax
import numpy as np
import pytest

from bdh_jax.experiment import load, setup_of
from bdh_jax.models.tiny_bdh import TinyBDHConfig
from bdh_jax.runs.reporter import read_rows
from bdh_jax.training import loop


def test_a_killed_run_goes_on_with_its_sigma(tiny, successor, kill_at, tmp_path):
    model = TinyBDHConfig(vocab_size=12, interface="tokens", n_neurons=8, d_model=4, learning_rate=1.0, init_std=0.5)
    config = dataclasses.replace(tiny(hooks=("bdh_jax.training.sigma:after_step",)), model=model)
    with jax.debug_nans(False):
        loop.train(setup_of(config), successor(config), tmp_path / "whole")
        with pytest.raises(loop.Interrupted):
            loop.train(setup_of(config), successor(config, kill_at(signal.SIGTERM, "batch", 2)), tmp_path / "cut")
        loop.train(setup_of(config), successor(config), tmp_path / "cut")
    whole, cut = (load(tmp_path / name, "last")[1] for name in ("whole", "cut"))
    chex.assert_trees_all_equal(cut, whole)
    assert np.abs(whole["synapse"]).max() > 0.01
    logged = [row for row in read_rows(tmp_path / "cut" / "metrics.jsonl", until=6) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6]
    assert logged[0]["model/synapse_nonzero"] == 0 < logged[-1]["model/synapse_nonzero"]
    assert all(row["model/sigma_norm"] > 0 for row in logged)
